//! Devices that the host translates by a PASID table of its own.
//!
//! A request names the VM's PASID, the table is indexed by the host's: the VM's grants say which
//! one stands behind it. What is cached goes by the VM's number, since a channel is of one VM.

use mem::{Gpa, GuestMemory, HostAddr};

use super::{check_interrupt_range, Engine, Refusal, Request, Target};
use crate::cache::PasidState;
use crate::format::vtd::{PasidEntry, StageOne, Translation};
use crate::sabotage::{self, Sabotage};
use crate::software::{Attachments, RID_PASID};
use crate::{FaultReason, Hardware, Pasid, TableCaps};

impl<M: GuestMemory> Engine<'_, M> {
    /// Translates a request by the host's PASID table.
    pub(super) fn by_host_table(
        &mut self,
        request: &Request,
        attached: &Attachments,
    ) -> Result<Target, Refusal> {
        check_interrupt_range(request).map_err(refused)?;
        let pasid = request.space.pasid;
        let state = match self.caches.pasids.get(pasid.unwrap_or(RID_PASID)) {
            // What was granted when it was cached is granted still: taking it back invalidates.
            Some(state) if state.granted == pasid.is_some() => *state,
            _ => self.host_entry(pasid, attached).map_err(refused)?,
        };
        let (pasid, privileged) = match pasid {
            Some(pasid) => (pasid, request.space.privileged),
            None => (RID_PASID, false),
        };
        self.by_entry(request, &state, pasid, privileged, attached.device.address_bits())
    }

    /// The host's entry for requests with the VM's `pasid`, or without any.
    fn host_entry(
        &mut self,
        pasid: Option<Pasid>,
        attached: &Attachments,
    ) -> Result<PasidState, FaultReason> {
        let host = match pasid {
            None => RID_PASID,
            Some(pasid) => attached.grants.host_of(pasid).ok_or_else(|| {
                self.counters.ungranted.add(1);
                FaultReason::PasidEntryNotPresent
            })?,
        };
        let host = match sabotage::is(Sabotage::WrongPasid) {
            true => Pasid::from_field(host.get() ^ 1),
            false => host,
        };
        self.counters.pasid_entry_reads.add(1);
        let (entry, caps) = attached.device.read(host).map_err(|reason| match reason {
            // Whether there is a table for the entry is the host's affair.
            FaultReason::PasidDirectoryNotPresent => FaultReason::PasidEntryNotPresent,
            reason => reason,
        })?;
        let translation = self.translation(&entry, caps)?;
        let state = PasidState {
            domain: entry.domain(),
            fault_disable: entry.word0.fault_disable(),
            granted: pasid.is_some(),
            translation,
        };
        self.caches.pasids.insert(pasid.unwrap_or(RID_PASID), state);
        self.caches.publish(self.counters);
        Ok(state)
    }

    /// What an entry asks for. Every guest physical address goes through the VM's stage 2 anyway,
    /// if it has one, so what is left of an entry that names it is the first stage.
    fn translation(
        &self,
        entry: &PasidEntry,
        caps: &TableCaps,
    ) -> Result<Translation, FaultReason> {
        let invalid = FaultReason::PasidEntryInvalid;
        let Hardware::Vtd(every) = Hardware::VTD else { return Err(invalid) };
        let own = |root: Gpa| {
            let own = self.memory.root() == Some(HostAddr(root.0));
            own.then_some(()).ok_or(invalid)
        };
        let first = |mut one: StageOne| {
            one.format.output_bits = caps.address_bits;
            one.format.one_gib_pages = caps.first_stage_1g;
            Translation::FirstStage(one)
        };
        // What was programmed is in order; what the hardware can do was checked then.
        match entry.decode(&every).map_err(|_| invalid)? {
            Translation::FirstStage(one) if self.memory.root().is_none() => Ok(first(one)),
            Translation::Nested(one, root, _) => own(root).map(|()| first(one)),
            Translation::SecondStage(root, _) => own(root).map(|()| Translation::PassThrough),
            Translation::PassThrough if self.memory.root().is_none() => {
                Ok(Translation::PassThrough)
            }
            Translation::FirstStage(_) | Translation::PassThrough => Err(invalid),
        }
    }
}

fn refused(reason: FaultReason) -> Refusal {
    Refusal::new(reason, false)
}
