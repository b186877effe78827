//! Where the IOMMU's own interrupts go: they are memory writes, and somebody has to put them on
//! the bus.

use mem::Gpa;

/// Sends a message-signalled interrupt of the IOMMU itself: `data` written to `address` (in
/// 0xFEE0_0000..=0xFEEF_FFFF). The shell knows how: over vfio-user it is a DMA write through the
/// connection of a function that is bus master.
pub trait MessageSink: Send + Sync {
    /// Sends it, or counts that it could not. Never waits for the peer.
    fn send(&self, address: Gpa, data: u32);
}
