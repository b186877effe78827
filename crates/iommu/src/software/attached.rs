//! What is attached to a device, as its accesses find it.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::mutex::SpinMutex;

use super::host_table::{Change, HostTable, ProgramError};
use super::GrantCheck;
use crate::format::vtd::PasidEntry;
use crate::{DeviceContext, FaultReason, Pasid, TableCaps};

/// The entry of the host's PASID table by which requests without PASID are translated.
pub(crate) const RID_PASID: Pasid = Pasid::from_field(0);

/// How a device is translated once something has been attached to it: by the host's PASID table
/// or, if what is attached is a table for all of its PASIDs, by that.
///
/// Written under the VM's lock; read by accesses, which take a lock only when they have no context
/// of a whole-device table cached, for a few instructions.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The table, and what the device's IOMMU can do; `None` if that has none such.
    table: Option<(HostTable, TableCaps)>,
    /// Whether `whole` has something.
    delegated: AtomicBool,
    whole: SpinMutex<Option<DeviceContext>>,
}

impl Attached {
    /// Nothing is attached: every request is blocked.
    pub(crate) fn new(table: Option<(HostTable, TableCaps)>) -> Self {
        Self { table, delegated: AtomicBool::new(false), whole: SpinMutex::new(None) }
    }

    /// The entry of a PASID, and what the device's IOMMU can do.
    pub(crate) fn read(&self, host: Pasid) -> Result<(PasidEntry, &TableCaps), FaultReason> {
        let (table, caps) = self.table.as_ref().ok_or(FaultReason::ContextNotPresent)?;
        Ok((table.read(host)?, caps))
    }

    /// How wide an address may be that is not translated.
    pub(crate) fn address_bits(&self) -> u8 {
        self.table.as_ref().map_or(0, |(_, caps)| caps.address_bits)
    }

    /// See [`HostTable::program`].
    pub(super) fn program(&self, host: Pasid, entry: &PasidEntry) -> Result<(), ProgramError> {
        self.table.as_ref().ok_or(ProgramError::Range)?.0.program(host, entry)
    }

    /// See [`HostTable::replace`].
    pub(super) fn replace(&self, host: Pasid, entry: &PasidEntry) -> Option<Change> {
        self.table.as_ref()?.0.replace(host, entry)
    }

    /// See [`HostTable::clear`].
    pub(super) fn clear(&self, host: Pasid) {
        if let Some((table, _)) = &self.table {
            table.clear(host);
        }
    }

    /// See [`HostTable::wipe`].
    pub(super) fn wipe(&self, host: Pasid) {
        if let Some((table, _)) = &self.table {
            table.wipe(host);
        }
    }

    /// Has all requests of the device translated by `context`; with `None`, by the host's table.
    pub(crate) fn set_whole(&self, context: Option<DeviceContext>) {
        *self.whole.lock() = context;
        self.delegated.store(context.is_some(), Ordering::Release);
    }

    /// The context by which the whole device is translated, if it is.
    pub(crate) fn whole(&self) -> Option<DeviceContext> {
        self.delegated.load(Ordering::Acquire).then(|| *self.whole.lock()).flatten()
    }
}

/// What is attached to the device of a channel, and the host's numbers for the VM's PASIDs.
#[derive(Debug)]
pub(crate) struct Attachments {
    pub(crate) device: Arc<Attached>,
    pub(crate) grants: GrantCheck,
}
