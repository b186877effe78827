//! Invalidations of translations, rewritten to what is bound.

use core::ops::Bound;

use iommu::nesting::{Entry, Scope};
use iommu::{DomainId, StageOneInvalidation, Vm};
use pci::RequesterId;

use super::device::{Slot, Tag};
use super::work::{Target, Work};
use super::{Budget, Shadow, CHANGE_COST};

impl<V: Vm> Shadow<V> {
    /// Goes on forgetting translations of a device; whether that is done.
    pub(super) fn forget_translations(
        &mut self,
        requester: RequesterId,
        work: &mut Work,
        (domain, target, what): (Option<DomainId>, Target, StageOneInvalidation),
        budget: &mut Budget,
    ) -> bool {
        let Some(device) = self.devices.get(&requester) else { return true };
        let slots = match target {
            Target::Pasid(pasid) => device.slots(pasid),
            Target::NoPasid => [Some(None), None],
            Target::All => return self.forget_all(requester, work, (domain, what), budget),
        };
        for slot in slots.into_iter().flatten() {
            work.known |= self.forget_slot(requester, slot, (domain, what), budget);
        }
        true
    }

    fn forget_all(
        &mut self,
        requester: RequesterId,
        work: &mut Work,
        what: (Option<DomainId>, StageOneInvalidation),
        budget: &mut Budget,
    ) -> bool {
        while let Some(slot) = self.slot_after(requester, work.slot) {
            if budget.is_spent() {
                return false;
            }
            budget.take(1);
            work.slot = Some(slot);
            work.known |= self.forget_slot(requester, slot, what, budget);
        }
        true
    }

    fn slot_after(&self, requester: RequesterId, last: Option<Slot>) -> Option<Slot> {
        let bound = &self.devices.get(&requester)?.bound;
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        bound.range((from, Bound::Unbounded)).next().map(|(slot, _)| *slot)
    }

    /// Whether that was about something that is bound.
    fn forget_slot(
        &mut self,
        requester: RequesterId,
        slot: Slot,
        (domain, what): (Option<DomainId>, StageOneInvalidation),
        budget: &mut Budget,
    ) -> bool {
        let concerned = |tag: &&Tag| domain.is_none_or(|domain| tag.domain == domain);
        let tag = self.devices.get(&requester).and_then(|device| device.bound.get(&slot));
        if tag.filter(concerned).is_none() {
            return false;
        }
        let Some(bindings) = &self.bindings else { return false };
        if bindings.entry(requester, slot) == Some(Entry::PassThrough) {
            return true; // without a first stage there is nothing to forget
        }
        budget.take(CHANGE_COST);
        match bindings.invalidate(Scope::Entry(requester, slot), &[what]) {
            Ok(ticket) => self.latest = self.latest.max(Some(ticket)),
            // What cannot be forgotten is not used.
            Err(error) => self.refuse(requester, slot, error),
        }
        true
    }
}
