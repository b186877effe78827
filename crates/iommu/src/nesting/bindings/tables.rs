//! The nested tables of bindings: one for each first stage, however many entries name it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use pci::RequesterId;

use crate::{
    FaultQueueId, HwptFlags, HwptId, HwptParent, HwptRequest, ObjectError, ObjectId, StageOneTable,
    Vm, VtdStageOne,
};

/// What two entries have in common if one nested table serves both: root, width, flags.
type Key = (u64, u8, u64);

fn key(table: &VtdStageOne) -> Key {
    (table.root.0, table.address_width, table.flags.bits())
}

#[derive(Debug)]
struct Table {
    hwpt: HwptId,
    users: usize,
}

/// Nested tables over one parent, counted.
#[derive(Debug)]
pub(super) struct Tables {
    parent: HwptId,
    /// Where page requests go of what they are attached to.
    fault: Option<FaultQueueId>,
    tables: BTreeMap<Key, Table>,
    /// Not used here any more, but not gone yet.
    retired: Vec<HwptId>,
}

impl Tables {
    pub(super) fn new(parent: HwptId) -> Self {
        Self { parent, fault: None, tables: BTreeMap::new(), retired: Vec::new() }
    }

    /// The same, with a queue for page requests.
    pub(super) fn with_fault_queue(self, queue: Option<FaultQueueId>) -> Self {
        Self { fault: queue, ..self }
    }

    /// The table that everything nested stands on.
    pub(super) fn parent(&self) -> HwptId {
        self.parent
    }

    pub(super) fn get(&self, table: &VtdStageOne) -> Option<HwptId> {
        self.tables.get(&key(table)).map(|table| table.hwpt)
    }

    /// Another user of the nested table for `table`, which is made if there is none.
    pub(super) fn acquire<V: Vm>(
        &mut self,
        vm: &V,
        device: RequesterId,
        table: &VtdStageOne,
    ) -> Result<HwptId, ObjectError> {
        if let Some(existing) = self.tables.get_mut(&key(table)) {
            existing.users += 1;
            return Ok(existing.hwpt);
        }
        // Also of a table for requests without PASID: all of a device must say so.
        let flags = HwptFlags::PASID | HwptFlags::for_fault_queue(self.fault);
        let hwpt = vm.alloc_hwpt(&HwptRequest {
            device,
            parent: HwptParent::Hwpt(self.parent),
            flags,
            data: Some(StageOneTable::Vtd(*table)),
            fault: self.fault,
        })?;
        self.tables.insert(key(table), Table { hwpt, users: 1 });
        Ok(hwpt)
    }

    /// One user less; the last one's table ends.
    pub(super) fn release<V: Vm>(&mut self, vm: &V, table: &VtdStageOne) {
        let Some(existing) = self.tables.get_mut(&key(table)) else { return };
        existing.users = existing.users.saturating_sub(1);
        if existing.users == 0 {
            self.retired.push(existing.hwpt);
            self.tables.remove(&key(table));
        }
        self.reap(vm);
    }

    /// Ends retired tables; those that the host still uses are tried again next time.
    pub(super) fn reap<V: Vm>(&mut self, vm: &V) {
        self.retired.retain(|hwpt| vm.destroy((*hwpt).into()) == Err(ObjectError::Busy));
    }

    /// Those that are not gone yet.
    pub(super) fn into_retired(self) -> impl Iterator<Item = ObjectId> {
        self.retired.into_iter().map(Into::into)
    }

    /// How many there are, retired ones included.
    pub(super) fn len(&self) -> usize {
        self.tables.len() + self.retired.len()
    }
}
