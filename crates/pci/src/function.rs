//! What a transport (vfio-user, or a VMM's own bus) needs of a PCI function.

use alloc::sync::Arc;

/// The kind of a base address register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// 32-bit memory.
    Memory32,
    /// 64-bit memory; occupies two registers.
    Memory64,
}

/// A base address register that a function decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Index of its (first) register, 0 to 5.
    pub index: u8,
    /// 32- or 64-bit memory.
    pub kind: BarKind,
    /// Whether reads have no side effect and writes may merge.
    pub prefetchable: bool,
    /// Size in bytes, a power of two, at least 4096.
    pub size: u64,
}

/// Where a function's message-signalled interrupts go.
pub trait InterruptSink: Send + Sync {
    /// Delivers MSI-X `vector`. An implementation that has nothing bound to it drops it.
    fn raise(&self, vector: u16);
}

/// A PCI function as a transport sees it: configuration space, BAR contents, reset, interrupts.
///
/// Every number here may come from a hostile peer: an access outside what exists reads as all
/// ones and writes nothing; it never panics. Accesses return at once: work that an access causes
/// is done elsewhere, by whoever drives the device.
pub trait Function: Send + Sync {
    /// The BARs it decodes, in order of index.
    fn bars(&self) -> &[Bar];

    /// Number of MSI-X vectors.
    fn vectors(&self) -> u16;

    /// Reads configuration space (4096 bytes) from `offset`.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space from `offset`; read-only bits keep their value.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// Reads from BAR `bar` at `offset` bytes from its start.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes to BAR `bar` at `offset` bytes from its start.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// Function-level reset: all state as after power-on, work in flight abandoned.
    fn reset(&self);

    /// Sets or removes the destination of its interrupts.
    fn set_interrupts(&self, sink: Option<Arc<dyn InterruptSink>>);
}
