//! Portals (BAR 2): where descriptors are written to.

/// Length of a portal's page in bytes. Every 64-byte aligned offset in it is the same portal.
pub const PORTAL_SIZE: u64 = 0x1000;
/// Distance from one work queue's portals to the next one's, in bytes: four pages.
pub const PORTAL_STRIDE: u64 = 0x4000;

/// One of the four portals of a work queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Portal {
    /// Takes descriptors only up to the queue's threshold (matters for shared queues).
    pub limited: bool,
    /// Completion interrupts come from interrupt message storage instead of the MSI-X table.
    pub ims: bool,
}

impl Portal {
    /// The portal that Linux gives to user space: limited, MSI-X.
    pub const LIMITED: Self = Self { limited: true, ims: false };
    /// The unlimited MSI-X portal.
    pub const UNLIMITED: Self = Self { limited: false, ims: false };

    /// The work queue and portal at `offset` in BAR 2.
    pub const fn at(offset: u64) -> (u64, Self) {
        let page = offset % PORTAL_STRIDE / PORTAL_SIZE;
        (offset / PORTAL_STRIDE, Self { limited: page & 1 != 0, ims: page & 2 != 0 })
    }

    /// Offset of this portal of work queue `wq` in BAR 2.
    pub const fn offset(self, wq: u8) -> u64 {
        wq as u64 * PORTAL_STRIDE + (self.limited as u64 + 2 * self.ims as u64) * PORTAL_SIZE
    }
}
