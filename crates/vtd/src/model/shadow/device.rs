//! A device as the guest's tables have it, and what of it is bound.

use alloc::collections::BTreeMap;

use iommu::{DomainId, GuestPasid, Pasid, PasidTable};

/// Requests of a device with one PASID, or those without any.
pub(super) type Slot = Option<GuestPasid>;

/// What the guest's context entry said when it was read last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Context {
    /// It was not read: translation is off, and requests without PASID pass through.
    #[default]
    Off,
    /// There is none, or none that is valid.
    Blocked,
    /// The device's PASIDs are in this table.
    Table(PasidTable),
}

/// What the guest's entry says of what is bound by it, but for the translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag {
    /// By which its invalidations name it.
    pub(super) domain: DomainId,
    /// Whether faults are not recorded.
    pub(super) fault_disable: bool,
}

/// A device.
#[derive(Clone, Debug, Default)]
pub(super) struct Device {
    pub(super) context: Context,
    pub(super) bound: BTreeMap<Slot, Tag>,
}

/// PASIDs in one PASID table.
pub(super) const PASIDS_PER_TABLE: u32 = 64;

impl Device {
    /// The PASID that stands for requests without one.
    pub(super) fn rid_pasid(&self) -> Option<Pasid> {
        match self.context {
            Context::Table(table) => Some(table.rid_pasid),
            Context::Off | Context::Blocked => None,
        }
    }

    /// What requests of `pasid` stand for: themselves, and maybe those without PASID.
    pub(super) fn slots(&self, pasid: Pasid) -> [Option<Slot>; 2] {
        let without = (self.rid_pasid() == Some(pasid)).then_some(None);
        [Some(Some(GuestPasid(pasid))), without]
    }

    /// Number of PASIDs that requests may carry.
    pub(super) fn pasids(&self) -> u32 {
        match self.context {
            Context::Table(table) if table.pasid_enable => {
                1 << table.pasid_bits.min(Pasid::BITS as u8)
            }
            _ => 0,
        }
    }

    /// The lowest PASID from that with number `first` on that is bound.
    pub(super) fn next_bound(&self, first: u32) -> Option<GuestPasid> {
        let first = Pasid::new(first)?;
        self.bound.range(Some(GuestPasid(first))..).next().and_then(|(slot, _)| *slot)
    }
}
