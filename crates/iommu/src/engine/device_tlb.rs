//! What a device whose ATS is on does with its own TLB: it looks there first, and keeps what its
//! translation requests bring.
//!
//! A hit asks nobody: no context, no PASID-table entry, no grant. So whatever has to end such an
//! access empties the device's TLB, too.

use mem::GuestMemory;

use super::{Engine, Origin, Refusal, Request, Target};
use crate::cache::{Caches, Completion, Rights, Tag};

/// What the device's own TLB has for `request`, if that will do.
#[inline]
pub(crate) fn hit(caches: &Caches, request: &Request) -> Option<Target> {
    let completion = caches.device_tlb.get(Tag::of_space(request.space), request.address)?;
    completion.allows(request.access).then(|| reached(completion, request))
}

impl<M: GuestMemory> Engine<'_, M> {
    /// Translates what a device did not find in its own TLB, and keeps it there, in place of what did
    /// not allow the access.
    ///
    /// While translation is off nothing is kept: nobody would have it forgotten.
    #[inline(never)]
    pub(crate) fn translate_for_device(self, request: &Request) -> Result<Target, Refusal> {
        self.counters.device_tlb_misses.add(1);
        let mut origin = Origin::NONE;
        let Self { caches, counters, attached, .. } = self;
        let mut engine = Engine { caches, origin: Some(&mut origin), ..self };
        let target = engine.translate(request)?;
        if caches.context.is_none() && attached.is_none() {
            return Ok(target);
        }
        let Origin { cached, privileged } = origin;
        let completion = Completion::new(
            request.address,
            (target.output, target.len_minus_one),
            (cached.size_bits, cached.scope_bits),
            Rights::of(cached.allowed, privileged),
            target.fault_disable,
        );
        caches.device_tlb.open();
        caches.device_tlb.insert(Tag::of_space(request.space), request.address, completion);
        caches.publish(counters);
        Ok(reached(&completion, request))
    }
}

fn reached(completion: &Completion, request: &Request) -> Target {
    let (output, len_minus_one) = completion.translate(request.address);
    Target { output, len_minus_one, fault_disable: completion.fault_disable }
}
