//! From the guest's tables to what is bound.

use iommu::{ContextSource, DeviceContext, DomainId, GuestPasid, Pasid, PasidTable, Vm};
use pci::RequesterId;

use super::device::{Context, Device, Slot, PASIDS_PER_TABLE};
use super::read::{self, GuestEntry};
use super::work::Work;
use super::{Budget, Shadow, View};

/// Words of root and context entry, as entries of a PASID table.
const CONTEXT_COST: u32 = 2;

impl<V: Vm> Shadow<V> {
    /// Reads the context entry of a device, and its PASID entries if it changed, or if `all`;
    /// whether that is done.
    pub(super) fn read_context(
        &mut self,
        requester: RequesterId,
        all: bool,
        work: &mut Work,
        view: View<'_>,
        budget: &mut Budget,
    ) -> bool {
        if work.table.is_none() {
            budget.take(CONTEXT_COST);
            let context = context(requester, view);
            let Some(device) = self.devices.get_mut(&requester) else { return true };
            let changed = core::mem::replace(&mut device.context, context) != context;
            if !changed && !all {
                return true;
            }
        }
        self.read_entries(requester, work, view, budget)
    }

    /// Goes on reading all PASID entries of a device; whether that is done.
    pub(super) fn read_entries(
        &mut self,
        requester: RequesterId,
        work: &mut Work,
        view: View<'_>,
        budget: &mut Budget,
    ) -> bool {
        let Some(pasids) = self.devices.get(&requester).map(Device::pasids) else { return true };
        let tables = pasids.div_ceil(PASIDS_PER_TABLE);
        let mut next = match work.table {
            Some(next) => next,
            None => {
                self.read_without_pasid(requester, view, budget);
                0
            }
        };
        while next < tables && !budget.is_spent() {
            self.read_table(requester, next, view, budget);
            next += 1;
        }
        work.table = Some(next);
        next >= tables && self.end_from(requester, pasids, budget)
    }

    /// Ends what is bound to PASIDs from number `first` on; whether that is done.
    fn end_from(&mut self, requester: RequesterId, first: u32, budget: &mut Budget) -> bool {
        while let Some(pasid) = self.next_bound(requester, first) {
            if budget.is_spent() {
                return false;
            }
            budget.take(self.set(requester, Some(pasid), None));
        }
        true
    }

    fn next_bound(&self, requester: RequesterId, first: u32) -> Option<GuestPasid> {
        self.devices.get(&requester)?.next_bound(first)
    }

    /// Requests without PASID.
    fn read_without_pasid(&mut self, requester: RequesterId, view: View<'_>, budget: &mut Budget) {
        let Some(device) = self.devices.get(&requester) else { return };
        let want = match device.context {
            Context::Off => Some(GuestEntry::PASS_THROUGH),
            Context::Blocked => None,
            Context::Table(table) => self.entry_of(&table, table.rid_pasid, view, budget),
        };
        budget.take(self.set(requester, None, want));
    }

    /// The PASIDs of one PASID table.
    fn read_table(
        &mut self,
        requester: RequesterId,
        index: u32,
        view: View<'_>,
        budget: &mut Budget,
    ) {
        let Some(device) = self.devices.get(&requester) else { return };
        let Context::Table(table) = device.context else { return };
        let first = index * PASIDS_PER_TABLE;
        let end = device.pasids().min(first + PASIDS_PER_TABLE);
        self.count_read(1, budget);
        let Ok(leaf) = read::leaf(view.memory, &table, Pasid::from_field(first)) else {
            while let Some(pasid) = self.next_bound(requester, first) {
                if pasid.0.get() >= end {
                    break;
                }
                budget.take(self.set(requester, Some(pasid), None));
            }
            return;
        };
        self.count_read(end.saturating_sub(first), budget);
        for number in first..end {
            let pasid = Pasid::from_field(number);
            let entry = read::entry(view.memory, &table, &leaf, pasid).ok();
            self.set_pasid(requester, &table, pasid, entry, budget);
        }
    }

    /// Reads the entry of `pasid` in a device's table, which the guest tags with `domain`;
    /// whether anything of it is bound, or was.
    pub(super) fn read_entry(
        &mut self,
        requester: RequesterId,
        domain: DomainId,
        pasid: Pasid,
        view: View<'_>,
        budget: &mut Budget,
    ) -> bool {
        let Some(device) = self.devices.get(&requester) else { return false };
        let Context::Table(table) = device.context else { return false };
        let was_bound = device.is_bound(pasid, domain);
        let is_rid_pasid = table.rid_pasid == pasid;
        let covered = pasid.get() < device.pasids();
        if is_rid_pasid {
            self.read_without_pasid(requester, view, budget);
        }
        if covered {
            let entry = self.entry_of(&table, pasid, view, budget);
            self.set_pasid(requester, &table, pasid, entry, budget);
        }
        was_bound || self.devices.get(&requester).is_some_and(|of| of.is_bound(pasid, domain))
    }

    /// What a PASID's own requests are translated by. PASID 0 is no host's to grant: where it is
    /// the RID_PASID, as usual, its entry is for requests without PASID alone.
    fn set_pasid(
        &mut self,
        requester: RequesterId,
        table: &PasidTable,
        pasid: Pasid,
        entry: Option<GuestEntry>,
        budget: &mut Budget,
    ) {
        let entry = entry.filter(|_| pasid != table.rid_pasid || pasid.get() != 0);
        budget.take(self.set(requester, Some(GuestPasid(pasid)), entry));
    }

    /// The valid entry of `pasid`, if it has one.
    fn entry_of(
        &mut self,
        table: &PasidTable,
        pasid: Pasid,
        view: View<'_>,
        budget: &mut Budget,
    ) -> Option<GuestEntry> {
        self.count_read(2, budget);
        let leaf = read::leaf(view.memory, table, pasid).ok()?;
        read::entry(view.memory, table, &leaf, pasid).ok()
    }

    fn count_read(&mut self, entries: u32, budget: &mut Budget) {
        self.counters.entries_read += u64::from(entries);
        budget.take(entries);
    }
}

impl Device {
    /// Whether requests of `pasid` are bound by an entry with this domain.
    fn is_bound(&self, pasid: Pasid, domain: DomainId) -> bool {
        let with_domain = |slot: Slot| self.bound.get(&slot).is_some_and(|of| of.domain == domain);
        self.slots(pasid).into_iter().flatten().any(with_domain)
    }
}

fn context(requester: RequesterId, view: View<'_>) -> Context {
    let Some(root) = view.root else { return Context::Off };
    match root.lookup(view.memory, requester) {
        Ok(DeviceContext::PasidTable(table)) => Context::Table(table),
        Ok(_) | Err(_) => Context::Blocked,
    }
}
