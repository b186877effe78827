//! The translation engine: from a request to guest physical memory, for one channel.
//!
//! ```text
//!  request ─► context ─► PASID directory, entry ─► IOTLB ─hit───────────────────────► output
//!             (cached)   (cached)                     └─miss─► walk, stage 2, insert ──┘
//! ```
//!
//! A device whose ATS is on looks into its own TLB first ([`device_tlb`]); what it does not find there
//! goes this way.
//!
//! In a VM with a stage 2 of the host's, every address in the guest's tables goes through that
//! ([`GuestPhysical`]), and so does what they lead to; what is cached is all of it together.
//!
//! Nothing here is shared with another channel, and nothing blocks.

mod attached;
mod device_tlb;
mod entry;
mod smmuv3;
mod walk;

use mem::{Access, Gpa, GuestMemory, Iova};
use pci::RequesterId;

use crate::cache::{Allowed, Cached, Caches, Kind, Mapping, PasidState, Tag};
use crate::counters::ChannelCounters;
use crate::format::vtd::{exceeds, Translation};
use crate::software::{Attachments, GrantCheck};
use crate::stage_two::{GuestPhysical, Output, Untranslated};
use crate::{
    AddressSpace, ContextFault, ContextSource, DeviceContext, DomainId, FaultReason, Pasid,
    PasidTable, Stage, StageTwo, StageTwoFault, StageTwoOwner,
};

pub(crate) use device_tlb::hit as device_tlb_hit;
pub(crate) use walk::{allowed, level, reason, request, Walked};

/// First address of the range where writes are interrupts and not memory (VT-d 3.14).
const INTERRUPT_START: u64 = 0xfee0_0000;
/// Last address of that range.
const INTERRUPT_LAST: u64 = 0xfeef_ffff;

/// Most words of guest memory that one translation loads or updates, the look-up of the device's
/// context aside: a directory entry, a PASID-table entry of 8 words, each at an address that is
/// walked for, too (a context descriptor's is), and a nested walk in which every entry changes under
/// every attempt. The host's stage 2 has each of them looked up once more, in the host's memory.
pub const MAX_TABLE_ACCESSES: u64 = {
    let walk = pgtable::MAX_ATTEMPTS as u64 * pgtable::MAX_LEVELS as u64 * 2;
    walk + 1 + walk + 8 + walk * (walk + 1) + walk
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
    pub(crate) output: Output,
    /// Bytes from there that the same translation covers, less one.
    pub(crate) len_minus_one: u64,
    /// Whether faults are not recorded.
    pub(crate) fault_disable: bool,
}

/// What a translation was made of, for a device that keeps it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) cached: Cached,
    /// The privilege that the request was taken to have.
    pub(crate) privileged: bool,
}

impl Origin {
    /// Of no translation yet.
    const NONE: Self = Self { cached: <Cached>::NONE, privileged: false };
}

/// Why a request reaches nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: FaultReason,
    /// Where stage 2 stopped it, if that did.
    pub(crate) stage_two: Option<StageTwoFault>,
    /// Whether that is not to be recorded.
    pub(crate) fault_disable: bool,
}

impl Refusal {
    pub(crate) fn new(stop: impl Into<Stop>, fault_disable: bool) -> Self {
        let Stop { reason, stage_two } = stop.into();
        Self { reason, stage_two, fault_disable }
    }

    /// Whether the host's stage 2 stopped the request.
    pub(crate) fn is_hosts(&self) -> bool {
        self.stage_two.is_some_and(|stop| stop.owner == StageTwoOwner::Host)
    }
}

/// Where a translation stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stop {
    reason: FaultReason,
    stage_two: Option<StageTwoFault>,
}

impl From<FaultReason> for Stop {
    fn from(reason: FaultReason) -> Self {
        Self { reason, stage_two: None }
    }
}

impl Stop {
    /// In the host's stage 2, on the way to an entry of a table, or (`table` is false) to what the
    /// request asked for.
    fn of_host(stop: &Untranslated, table: bool) -> Self {
        let stage = if table { Stage::TwoForTable } else { Stage::Two };
        Self::at(stop.reason(stage), stop, table)
    }

    /// The same where `reason` says it better.
    fn at(reason: FaultReason, stop: &Untranslated, table: bool) -> Self {
        let (gpa, level) = (stop.gpa, stop.level());
        let owner = StageTwoOwner::Host;
        Self { reason, stage_two: Some(StageTwoFault { gpa, table, level, owner }) }
    }
}

/// The engine at work for one channel.
pub(crate) struct Engine<'a, M> {
    pub(crate) memory: &'a GuestPhysical<'a, M>,
    /// Where contexts come from; `None` while translation is off.
    pub(crate) contexts: Option<&'a dyn ContextSource>,
    /// What is attached to the device; `None` as long as nothing has been.
    pub(crate) attached: Option<&'a Attachments>,
    /// Which PASIDs requests may carry; `None` for any.
    pub(crate) grants: Option<&'a GrantCheck>,
    pub(crate) caches: &'a mut Caches,
    pub(crate) counters: &'a ChannelCounters,
    /// Where to say what a translation was made of, if somebody wants to know.
    pub(crate) origin: Option<&'a mut Origin>,
}

impl<M: GuestMemory> Engine<'_, M> {
    /// Translates one request.
    pub(crate) fn translate(&mut self, request: &Request) -> Result<Target, Refusal> {
        self.counters.translations.add(1);
        if self.caches.context.is_none() {
            self.look_up_context(request)?;
        }
        // Matched in place: it is large, and only a part of it is wanted.
        let target = match self.caches.context {
            None => match self.attached {
                Some(attached) => self.by_host_table(request, attached)?,
                None => return self.untranslated(request),
            },
            Some(DeviceContext::PassThrough { domain, ats, fault_disable }) => {
                let refused = |stop| Refusal::new(stop, fault_disable);
                check_without_table(request, ats).map_err(|reason| refused(reason.into()))?;
                let tag = Tag::of_device(domain);
                self.identity(request, tag, false, fault_disable).map_err(refused)?
            }
            Some(DeviceContext::StageTwo { domain, table, ats, fault_disable }) => {
                let refused = |stop| Refusal::new(stop, fault_disable);
                check_without_table(request, ats).map_err(|reason| refused(reason.into()))?;
                let cached = self.by_stage_two(request, domain, &table).map_err(refused)?;
                self.target(&cached, request.address, (false, fault_disable))
            }
            Some(DeviceContext::PasidTable(table)) => self.by_pasid_table(request, &table)?,
            // To an SMMU, an interrupt is a write like any other.
            Some(DeviceContext::Smmuv3(stream)) => return self.by_stream(request, &stream),
        };
        outside_interrupt_range(target)
    }

    /// Finds the device's context and keeps it. There is none while translation is off, nor for a
    /// device that is translated by PASID-table entries of the host's.
    #[inline(never)]
    fn look_up_context(&mut self, request: &Request) -> Result<(), Refusal> {
        if let Some(attached) = self.attached {
            self.caches.context = attached.device.whole();
            return Ok(());
        }
        let Some(source) = self.contexts else { return Ok(()) };
        self.counters.context_lookups.add(1);
        match source.lookup(self.memory, request.requester) {
            Ok(context) => {
                self.caches.context = Some(context);
                Ok(())
            }
            Err(ContextFault { reason, fault_disable }) => {
                let stop = match self.memory.take_stop() {
                    Some(stop) => Stop::at(reason, &stop, true),
                    None => reason.into(),
                };
                Err(Refusal::new(stop, fault_disable))
            }
        }
    }

    /// A request while translation is off. Nothing is recorded: there is no unit at work.
    fn untranslated(&mut self, request: &Request) -> Result<Target, Refusal> {
        if request.space.pasid.is_some() {
            return Err(Refusal::new(FaultReason::PasidDisabled, true));
        }
        self.identity(request, Tag::physical(), false, true)
            .map_err(|stop| Refusal::new(stop, true))
    }

    /// A request whose address is a guest physical one.
    fn identity(
        &mut self,
        request: &Request,
        tag: Tag,
        privileged: bool,
        fault_disable: bool,
    ) -> Result<Target, Stop> {
        let Request { address, .. } = *request;
        if !self.memory.has_stage_two() {
            let all = half_of(address);
            self.tell(&all.at(Output(all.base.0)), privileged);
            let (output, len_minus_one) = (Output(address.0), u64::MAX - address.0);
            return Ok(Target { output, len_minus_one, fault_disable });
        }
        let cached = self.probe(request, tag, privileged, |_| Ok(half_of(address)))?;
        Ok(self.target(&cached, address, (privileged, fault_disable)))
    }

    fn by_stage_two(
        &mut self,
        request: &Request,
        domain: DomainId,
        table: &StageTwo,
    ) -> Result<Cached, Stop> {
        // The model vouches for the number of levels; if it is wrong, the context is.
        let format = table.format().ok_or(FaultReason::ContextInvalid)?;
        self.probe(request, Tag::of_device(domain), false, |memory| {
            walk::stage_two(memory, (table.root, &format), request.address, request.access)
        })
    }

    fn by_pasid_table(&mut self, request: &Request, table: &PasidTable) -> Result<Target, Refusal> {
        let refused = |reason| Refusal::new(reason, table.fault_disable);
        let (pasid, privileged) = entry::select(request, table).map_err(refused)?;
        if let Some(target) = self.hit_by_entry(request, pasid, privileged) {
            return Ok(target);
        }
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
        let refused = |stop| Refusal::new(stop, state.fault_disable);
        let privileges =
            |one| entry::check_privilege(one, privileged).map_err(|reason| refused(reason.into()));
        let tag = Tag::of_pasid(state.domain, pasid, request.space.pasid.is_some());
        let (address, access) = (request.address, request.access);
        let cached = match &state.translation {
            Translation::PassThrough => {
                if exceeds(Gpa(address.0), address_bits) {
                    let reason = FaultReason::AddressWidth { stage: Stage::Two };
                    return Err(refused(reason.into()));
                }
                let target = self.identity(request, tag, privileged, state.fault_disable);
                return target.map_err(refused);
            }
            Translation::SecondStage(root, format) => {
                self.probe(request, tag, privileged, |memory| {
                    walk::stage_two(memory, (*root, format), address, access)
                })
            }
            Translation::FirstStage(one) => {
                privileges(one)?;
                self.probe(request, tag, privileged, |memory| {
                    walk::stage_one(memory, &one.into(), address, access, privileged)
                        .map(|found| found.cached)
                })
            }
            Translation::Nested(one, root, format) => {
                privileges(one)?;
                self.probe(request, tag, privileged, |memory| {
                    let two = (*root, format);
                    walk::nested(memory, &one.into(), two, address, access, privileged)
                        .map(|found| found.cached)
                })
            }
        };
        let cached = cached.map_err(refused)?;
        Ok(self.target(&cached, address, (privileged, state.fault_disable)))
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
        walk: impl FnOnce(&GuestPhysical<'_, M>) -> Result<Cached<Gpa>, Stop>,
    ) -> Result<Cached, Stop> {
        if let Some(cached) = self.hit(&[tag], request.address, request.access, privileged) {
            return Ok(cached);
        }
        self.miss(request, tag, walk)
    }

    /// Walks, and caches what that finds. Kept out of the way of the hits.
    #[inline(never)]
    fn miss(
        &mut self,
        request: &Request,
        tag: Tag,
        walk: impl FnOnce(&GuestPhysical<'_, M>) -> Result<Cached<Gpa>, Stop>,
    ) -> Result<Cached, Stop> {
        self.counters.walks.add(1);
        let found = walk(self.memory)?;
        if self.memory.has_stage_two() {
            check_output(found.translate(request.address).0)?;
        }
        self.fill(tag, request.address, found, request.access)
    }

    /// What is cached for `address` under one of `tags` and allows the access.
    #[inline]
    fn hit(
        &mut self,
        tags: &[Tag],
        address: Iova,
        access: Access,
        privileged: bool,
    ) -> Option<Cached> {
        let found = tags.iter().find_map(|tag| {
            let cached = self.caches.iotlb.get(*tag, address)?;
            cached.allowed.contains(access, privileged).then_some(*cached)
        });
        let counter =
            if found.is_some() { &self.counters.iotlb_hits } else { &self.counters.iotlb_misses };
        counter.add(1);
        found
    }

    /// What a request reaches by `cached`.
    #[inline]
    fn target(
        &mut self,
        cached: &Cached,
        address: Iova,
        (privileged, fault_disable): (bool, bool),
    ) -> Target {
        self.tell(cached, privileged);
        target(cached, address, fault_disable)
    }

    /// Says what a translation is made of.
    #[inline]
    fn tell(&mut self, cached: &Cached, privileged: bool) {
        if let Some(origin) = &mut self.origin {
            **origin = Origin { cached: *cached, privileged };
        }
    }

    /// Completes a translation by the host's stage 2, if there is one, and caches it.
    fn fill(
        &mut self,
        tag: Tag,
        address: Iova,
        found: Cached<Gpa>,
        access: Access,
    ) -> Result<Cached, Stop> {
        let cached = self
            .memory
            .complete(found, address, access)
            .map_err(|stop| Stop::of_host(&stop, false))?;
        self.caches.iotlb.insert(tag, address, cached);
        self.caches.publish(self.counters);
        Ok(cached)
    }
}

/// The half of the address space that `address` is in, mapped to itself.
fn half_of(address: Iova) -> Cached<Gpa> {
    Cached {
        base: Gpa(address.0 & 1 << 63),
        size_bits: 63,
        scope_bits: 63,
        kind: Kind::StageTwo,
        allowed: Allowed::ALL,
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

/// With a stage 2 of the host's behind it, `gpa` is not where the access ends, and it may be no
/// interrupt's address all the same.
fn check_output(gpa: Gpa) -> Result<(), FaultReason> {
    if (INTERRUPT_START..=INTERRUPT_LAST).contains(&gpa.0) {
        return Err(FaultReason::InterruptAddress);
    }
    Ok(())
}

/// Interrupts are not made by mapping a page onto their addresses.
fn outside_interrupt_range(target: Target) -> Result<Target, Refusal> {
    let output = target.output.0;
    if output > INTERRUPT_LAST {
        return Ok(target);
    }
    match INTERRUPT_START.checked_sub(output) {
        None | Some(0) => Err(Refusal::new(FaultReason::InterruptAddress, target.fault_disable)),
        Some(below) => Ok(Target { len_minus_one: target.len_minus_one.min(below - 1), ..target }),
    }
}

fn target(cached: &Cached, address: Iova, fault_disable: bool) -> Target {
    let (output, len_minus_one) = cached.translate(address);
    Target { output, len_minus_one, fault_disable }
}

#[cfg(all(test, not(loom)))]
mod tests;
