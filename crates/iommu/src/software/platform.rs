//! What the VMs of a software host share besides PASIDs: the hardware that they see, and the
//! domain ids of its caches.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;

use spin::mutex::SpinMutex;

use super::host_table::HostTable;
use crate::stage_two::HostTables;
use crate::{DomainId, Hardware, SmmuCaps, TableCaps};

/// Domain ids that are not handed out: zero, which hardware keeps for what is not present, and one,
/// which everything without a second stage shares.
const RESERVED_DOMAINS: u16 = 2;

/// Domains that one host has out at most: one for each device that has had something attached.
pub const MAX_DOMAINS: usize = 0x1_0000 - RESERVED_DOMAINS as usize;

impl Hardware {
    /// VT-d in scalable mode with all that the software host can do.
    pub const VTD: Self = Self::Vtd(TableCaps::FULL);

    /// An SMMUv3 with all that the software host can do.
    pub const SMMUV3: Self = Self::Smmuv3(SmmuCaps::FULL);
}

impl Default for Hardware {
    fn default() -> Self {
        Self::VTD
    }
}

/// The hardware that a host stands in for.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) hardware: Hardware,
    /// Tables in the host's memory.
    pub(crate) tables: Arc<HostTables>,
    domains: SpinMutex<Domains>,
}

impl Default for Platform {
    fn default() -> Self {
        Self::new(Hardware::default())
    }
}

#[derive(Debug, Default)]
struct Domains {
    /// How many of them were ever out.
    used: u16,
    free: BTreeSet<u16>,
}

impl Platform {
    pub(crate) fn new(hardware: Hardware) -> Self {
        Self { hardware, tables: Arc::new(HostTables::new()), domains: SpinMutex::default() }
    }

    /// Memory for a device's PASID table.
    pub(crate) fn pasid_table(&self, pasid_bits: u32) -> Option<HostTable> {
        HostTable::new(pasid_bits, &self.tables)
    }

    /// A domain that nobody has; `None` if all are out.
    pub(crate) fn domain(self: &Arc<Self>) -> Option<Domain> {
        let mut domains = self.domains.lock();
        let number = match domains.free.pop_first() {
            Some(number) => number,
            None => {
                let number = domains.used.checked_add(RESERVED_DOMAINS)?;
                domains.used += 1;
                number
            }
        };
        Some(Domain { platform: self.clone(), id: DomainId(number) })
    }
}

/// A domain id that nobody else has; given back when dropped.
#[derive(Debug)]
pub(crate) struct Domain {
    platform: Arc<Platform>,
    id: DomainId,
}

impl Domain {
    pub(crate) fn id(&self) -> DomainId {
        self.id
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        self.platform.domains.lock().free.insert(self.id.0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn domains_are_handed_out_once_and_come_back() {
        let platform = Arc::new(Platform::default());
        let mut all: alloc::vec::Vec<_> = core::iter::from_fn(|| platform.domain()).collect();
        assert_eq!(all.len(), MAX_DOMAINS);
        let numbers: BTreeSet<_> = all.iter().map(Domain::id).collect();
        assert_eq!(numbers.len(), MAX_DOMAINS);
        assert_eq!(numbers.first(), Some(&DomainId(2)));
        assert_eq!(numbers.last(), Some(&DomainId(u16::MAX)));
        let gone = all.swap_remove(17).id();
        assert_eq!(platform.domain().map(|domain| domain.id()), Some(gone));
    }
}
