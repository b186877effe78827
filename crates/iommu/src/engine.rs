//! The translation engine: from a request to guest physical memory, for one channel.
//!
//! ```text
//!  request ─► context ─► PASID directory, entry ─► IOTLB ─hit──────────────► guest physical
//!             (cached)   (cached)                     └─miss─► walk, insert ──┘
//! ```
//!
//! Nothing here is shared with another channel, and nothing blocks.

mod attached;
mod entry;
mod walk;

use mem::{Access, Gpa, GuestMemory, Iova};
use pci::RequesterId;

use crate::cache::{Cached, Caches, PasidState, Tag};
use crate::counters::ChannelCounters;
use crate::format::vtd::{exceeds, Translation};
use crate::software::{Attachments, GrantCheck};
use crate::{
    AddressSpace, ContextSource, DeviceContext, DomainId, FaultReason, Pasid, PasidTable, Stage,
    StageTwo,
};

/// First address of the range where writes are interrupts and not memory (VT-d 3.14).
const INTERRUPT_START: u64 = 0xfee0_0000;
/// Last address of that range.
const INTERRUPT_LAST: u64 = 0xfeef_ffff;

/// Most words of guest memory that one translation loads or updates, the look-up of the device's
/// context aside: a directory entry, a PASID-table entry of 8 words, and a nested walk in which
/// every entry changes under every attempt.
pub const MAX_TABLE_ACCESSES: u64 = {
    let walk = pgtable::MAX_ATTEMPTS as u64 * pgtable::MAX_LEVELS as u64 * 2;
    1 + 8 + walk * (walk + 1) + walk
};

/// A request of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) requester: RequesterId,
    pub(crate) space: AddressSpace,
    pub(crate) address: Iova,
    pub(crate) access: Access,
    /// Whether the device asks for translations itself (ATS).
    pub(crate) translation_request: bool,
}

/// What a request reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) gpa: Gpa,
    /// Bytes from there that the same translation covers, less one.
    pub(crate) len_minus_one: u64,
    /// Whether faults are not recorded.
    pub(crate) fault_disable: bool,
}

/// Why a request reaches nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: FaultReason,
    /// Whether that is not to be recorded.
    pub(crate) fault_disable: bool,
}

/// The engine at work for one channel.
pub(crate) struct Engine<'a, M> {
    pub(crate) memory: &'a M,
    /// Where contexts come from; `None` while translation is off.
    pub(crate) contexts: Option<&'a dyn ContextSource>,
    /// What is attached to the device; `None` as long as nothing has been.
    pub(crate) attached: Option<&'a Attachments>,
    /// Which PASIDs requests may carry; `None` for any.
    pub(crate) grants: Option<&'a GrantCheck>,
    pub(crate) caches: &'a mut Caches,
    pub(crate) counters: &'a ChannelCounters,
}

impl<M: GuestMemory> Engine<'_, M> {
    /// Translates one request.
    pub(crate) fn translate(&mut self, request: &Request) -> Result<Target, Refusal> {
        self.counters.translations.add(1);
        if let Some(attached) = self.attached {
            self.caches.context = self.caches.context.or_else(|| attached.device.whole());
            if self.caches.context.is_none() {
                return outside_interrupt_range(self.by_host_table(request, attached)?);
            }
        }
        let Some(context) = self.context(request)? else {
            return untranslated(request);
        };
        let fault_disable = match context {
            DeviceContext::PassThrough { fault_disable, .. }
            | DeviceContext::StageTwo { fault_disable, .. } => fault_disable,
            DeviceContext::PasidTable(table) => table.fault_disable,
        };
        let refused = |reason| Refusal { reason, fault_disable };
        let target = match context {
            DeviceContext::PassThrough { ats, .. } => {
                check_without_table(request, ats).map_err(refused)?;
                identity(request.address, fault_disable)
            }
            DeviceContext::StageTwo { domain, table, ats, .. } => {
                check_without_table(request, ats).map_err(refused)?;
                let cached = self.by_stage_two(request, domain, &table).map_err(refused)?;
                target(&cached, request.address, fault_disable)
            }
            DeviceContext::PasidTable(table) => self.by_pasid_table(request, &table)?,
        };
        outside_interrupt_range(target)
    }

    /// The device's context; `None` while translation is off.
    fn context(&mut self, request: &Request) -> Result<Option<DeviceContext>, Refusal> {
        if self.caches.context.is_some() {
            return Ok(self.caches.context);
        }
        let Some(source) = self.contexts else { return Ok(None) };
        self.counters.context_lookups.add(1);
        match source.lookup(self.memory, request.requester) {
            Ok(context) => {
                self.caches.context = Some(context);
                Ok(Some(context))
            }
            Err(fault) => Err(Refusal { reason: fault.reason, fault_disable: fault.fault_disable }),
        }
    }

    fn by_stage_two(
        &mut self,
        request: &Request,
        domain: DomainId,
        table: &StageTwo,
    ) -> Result<Cached, FaultReason> {
        // The model vouches for the number of levels; if it is wrong, the context is.
        let format = table.format().ok_or(FaultReason::ContextInvalid)?;
        self.probe(request, Tag::of_device(domain), false, |memory| {
            walk::stage_two(memory, (table.root, &format), request.address, request.access)
        })
    }

    fn by_pasid_table(&mut self, request: &Request, table: &PasidTable) -> Result<Target, Refusal> {
        let refused = |reason| Refusal { reason, fault_disable: table.fault_disable };
        let (pasid, privileged) = entry::select(request, table).map_err(refused)?;
        let state = self.pasid_state(table, pasid, request.space.pasid.is_some())?;
        self.by_entry(request, &state, pasid, privileged, table.caps.address_bits)
    }

    /// Translates a request by the entry of `pasid`; `address_bits` is how wide an address may be
    /// that is not translated.
    fn by_entry(
        &mut self,
        request: &Request,
        state: &PasidState,
        pasid: Pasid,
        privileged: bool,
        address_bits: u8,
    ) -> Result<Target, Refusal> {
        let refused = |reason| Refusal { reason, fault_disable: state.fault_disable };
        let tag = Tag::of_pasid(state.domain, pasid, request.space.pasid.is_some());
        let (address, access) = (request.address, request.access);
        let cached = match &state.translation {
            Translation::PassThrough => {
                if exceeds(Gpa(address.0), address_bits) {
                    return Err(refused(FaultReason::AddressWidth { stage: Stage::Two }));
                }
                return Ok(identity(address, state.fault_disable));
            }
            Translation::SecondStage(root, format) => {
                self.probe(request, tag, privileged, |memory| {
                    walk::stage_two(memory, (*root, format), address, access)
                })
            }
            Translation::FirstStage(one) => {
                entry::check_privilege(one, privileged).map_err(refused)?;
                self.probe(request, tag, privileged, |memory| {
                    walk::stage_one(memory, one, address, access, privileged)
                })
            }
            Translation::Nested(one, root, format) => {
                entry::check_privilege(one, privileged).map_err(refused)?;
                self.probe(request, tag, privileged, |memory| {
                    walk::nested(memory, one, (*root, format), address, access, privileged)
                })
            }
        };
        Ok(target(&cached.map_err(refused)?, address, state.fault_disable))
    }

    /// The cached translation if it will do; else that of `walk`, which is then cached.
    ///
    /// An entry that does not allow the access is not the last word: the guest may have granted
    /// more since, and a first write has to mark the page dirty.
    fn probe(
        &mut self,
        request: &Request,
        tag: Tag,
        privileged: bool,
        walk: impl FnOnce(&M) -> Result<Cached, FaultReason>,
    ) -> Result<Cached, FaultReason> {
        if let Some(cached) = self.caches.iotlb.get(tag, request.address) {
            if cached.allowed.contains(request.access, privileged) {
                self.counters.iotlb_hits.add(1);
                return Ok(*cached);
            }
        }
        self.counters.iotlb_misses.add(1);
        self.counters.walks.add(1);
        let cached = walk(self.memory)?;
        self.caches.iotlb.insert(tag, request.address, cached);
        self.caches.publish(self.counters);
        Ok(cached)
    }
}

/// A request while translation is off. Nothing is recorded: there is no unit at work.
fn untranslated(request: &Request) -> Result<Target, Refusal> {
    match request.space.pasid {
        None => Ok(identity(request.address, true)),
        Some(_) => Err(Refusal { reason: FaultReason::PasidDisabled, fault_disable: true }),
    }
}

/// What a context without PASID table demands of a request.
fn check_without_table(request: &Request, ats: bool) -> Result<(), FaultReason> {
    if request.space.pasid.is_some() {
        return Err(FaultReason::PasidDisabled);
    }
    if request.translation_request && !ats {
        return Err(FaultReason::AtsDisabled);
    }
    check_interrupt_range(request)
}

/// Requests without PASID never reach memory in the interrupt range, mapped or not.
fn check_interrupt_range(request: &Request) -> Result<(), FaultReason> {
    let inside = (INTERRUPT_START..=INTERRUPT_LAST).contains(&request.address.0);
    if inside && request.space.pasid.is_none() {
        return Err(FaultReason::InterruptAddress);
    }
    Ok(())
}

/// Interrupts are not made by mapping a page onto their addresses.
fn outside_interrupt_range(target: Target) -> Result<Target, Refusal> {
    let gpa = target.gpa.0;
    if gpa > INTERRUPT_LAST {
        return Ok(target);
    }
    match INTERRUPT_START.checked_sub(gpa) {
        None | Some(0) => Err(Refusal {
            reason: FaultReason::InterruptAddress,
            fault_disable: target.fault_disable,
        }),
        Some(below) => Ok(Target { len_minus_one: target.len_minus_one.min(below - 1), ..target }),
    }
}

fn identity(address: Iova, fault_disable: bool) -> Target {
    Target { gpa: Gpa(address.0), len_minus_one: u64::MAX - address.0, fault_disable }
}

fn target(cached: &Cached, address: Iova, fault_disable: bool) -> Target {
    let (gpa, len_minus_one) = cached.translate(address);
    Target { gpa, len_minus_one, fault_disable }
}

#[cfg(all(test, not(loom)))]
mod tests;
