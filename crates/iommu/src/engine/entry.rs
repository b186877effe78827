//! From a PASID to the entry that says how its requests are translated.

use mem::{Gpa, GuestMemory};

use super::{check_interrupt_range, target, Engine, Origin, Refusal, Request, Stop, Target};
use crate::cache::{PasidState, Tag};
use crate::format::vtd::{exceeds, DirectoryEntry, EntryError, PasidEntry, StageOne, Translation};
use crate::sabotage::{self, Sabotage};
use crate::stage_two::GuestPhysical;
use crate::{FaultReason, Pasid, PasidTable};

/// The PASID whose entry translates `request`, and whether the request is privileged.
pub(super) fn select(request: &Request, table: &PasidTable) -> Result<(Pasid, bool), FaultReason> {
    if request.translation_request && !table.ats {
        return Err(FaultReason::AtsDisabled);
    }
    let (pasid, privileged) = match request.space.pasid {
        Some(_) if !table.pasid_enable => return Err(FaultReason::PasidDisabled),
        Some(pasid) => (pasid, request.space.privileged),
        None => (table.rid_pasid, table.rid_privileged),
    };
    if u64::from(pasid.get()) >> table.pasid_bits.min(Pasid::BITS as u8) != 0 {
        return Err(FaultReason::PasidRange);
    }
    check_interrupt_range(request)?;
    if sabotage::is(Sabotage::WrongPasid) {
        return Ok((Pasid::from_field(pasid.get() ^ 1), privileged));
    }
    Ok((pasid, privileged))
}

/// Whether the entry takes a request of this privilege.
pub(super) fn check_privilege(entry: &StageOne, privileged: bool) -> Result<(), FaultReason> {
    if privileged && !entry.supervisor {
        return Err(FaultReason::SupervisorDisabled);
    }
    Ok(())
}

impl<M: GuestMemory> Engine<'_, M> {
    /// The translation of most requests: entry and page are cached. Nothing is copied on the way.
    pub(super) fn hit_by_entry(
        &mut self,
        request: &Request,
        pasid: Pasid,
        privileged: bool,
    ) -> Option<Target> {
        let requested = request.space.pasid.is_some();
        let state = self.caches.pasids.get(pasid)?;
        let permitted = match &state.translation {
            Translation::FirstStage(one) | Translation::Nested(one, ..) => {
                check_privilege(one, privileged).is_ok()
            }
            Translation::SecondStage(..) => true,
            Translation::PassThrough => false,
        };
        if !permitted || requested && !state.granted {
            return None;
        }
        let tag = Tag::of_pasid(state.domain, pasid, requested);
        let cached = self.caches.iotlb.get(tag, request.address)?;
        if !cached.allowed.contains(request.access, privileged) {
            return None;
        }
        self.counters.iotlb_hits.add(1);
        if let Some(origin) = &mut self.origin {
            **origin = Origin { cached: *cached, privileged };
        }
        Some(target(cached, request.address, state.fault_disable))
    }

    /// The entry of `pasid`, from the cache or from the table; `requested` if the request named
    /// the PASID. Then it has to be granted, where grants are enforced: to a request that it was
    /// not granted for, an entry is not there.
    pub(super) fn pasid_state(
        &mut self,
        table: &PasidTable,
        pasid: Pasid,
        requested: bool,
    ) -> Result<PasidState, Refusal> {
        let cached = self.caches.pasids.get(pasid);
        // What was granted when it was cached is granted still: taking it back invalidates.
        if let Some(state) = cached.filter(|state| state.granted || !requested) {
            return Ok(*state);
        }
        let granted = self.grants.is_none_or(|grants| requested && grants.is_granted(pasid));
        if requested && !granted {
            self.counters.ungranted.add(1);
            return Err(Refusal::new(FaultReason::PasidEntryNotPresent, table.fault_disable));
        }
        self.counters.pasid_entry_reads.add(1);
        let state = PasidState { granted, ..read(self.memory, table, pasid)? };
        self.caches.pasids.insert(pasid, state);
        self.caches.publish(self.counters);
        Ok(state)
    }
}

/// Reads the entry of `pasid` through the directory.
fn read<M: GuestMemory>(
    memory: &GuestPhysical<'_, M>,
    table: &PasidTable,
    pasid: Pasid,
) -> Result<PasidState, Refusal> {
    let mut fault_disable = table.fault_disable;
    let refuse = |reason: FaultReason, fault_disable| Err(Refusal::new(reason, fault_disable));
    let unreachable = |reason, fault_disable| {
        let stop = memory.take_stop().map(|stop| Stop::at(reason, &stop, true));
        Err(Refusal::new(stop.unwrap_or(reason.into()), fault_disable))
    };

    let directory = DirectoryEntry::address(table.directory, pasid)
        .and_then(|at| memory.load_u64(at).ok())
        .map(DirectoryEntry::from_bits);
    let Some(directory) = directory else {
        return unreachable(FaultReason::PasidDirectoryAccess, fault_disable);
    };
    fault_disable |= directory.fault_disable();
    if !directory.present() {
        return refuse(FaultReason::PasidDirectoryNotPresent, fault_disable);
    }
    if directory.reserved() != 0 || exceeds(directory.table(), table.caps.address_bits) {
        return refuse(FaultReason::PasidDirectoryReserved, fault_disable);
    }

    let entry = PasidEntry::address(directory.table(), pasid).and_then(|at| load(memory, at));
    let Some(entry) = entry else {
        return unreachable(FaultReason::PasidEntryAccess, fault_disable);
    };
    fault_disable |= entry.word0.fault_disable();
    if !entry.word0.present() {
        return refuse(FaultReason::PasidEntryNotPresent, fault_disable);
    }
    match entry.decode(&table.caps) {
        Ok(translation) => {
            let domain = entry.domain();
            Ok(PasidState { domain, fault_disable, granted: false, translation })
        }
        Err(EntryError::Reserved { .. }) => refuse(FaultReason::PasidEntryReserved, fault_disable),
        Err(_) => refuse(FaultReason::PasidEntryInvalid, fault_disable),
    }
}

/// Loads an entry word by word, the one with P first and each with acquire ordering: a guest
/// that sets P last is never seen half way. One that rewrites a present entry has to invalidate
/// it afterwards, which takes what was loaded here along.
fn load<M: GuestMemory>(memory: &M, at: Gpa) -> Option<PasidEntry> {
    let mut words = [0; 8];
    for (index, word) in (0..).zip(&mut words) {
        *word = memory.load_u64(at.checked_add(8 * index)?).ok()?;
    }
    Some(PasidEntry::from_words(words))
}
