//! Configuration tables in BAR 0: groups (GRPCFG), work queues (WQCFG), interrupt permissions
//! (MSIXPERM). Their places are in [`Offsets`](super::Offsets).

use bitfield_struct::bitfield;

/// Length of a group's configuration in bytes.
pub const GRPCFG_SIZE: u32 = 64;
/// Offset of a group's work queues: a bitmap of 256 bits.
pub const GRPCFG_WQS: u32 = 0;
/// Offset of a group's engines: a bitmap of 64 bits.
pub const GRPCFG_ENGINES: u32 = 32;
/// Offset of a group's [`GroupFlags`].
pub const GRPCFG_FLAGS: u32 = 40;
/// Distance between MSIXPERM registers in bytes; each is 32 bits wide.
pub const MSIXPERM_STRIDE: u32 = 8;

/// Group flags (GRPCFG + 40).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct GroupFlags {
    /// Traffic class A.
    #[bits(3)]
    pub tc_a: u8,
    /// Traffic class B.
    #[bits(3)]
    pub tc_b: u8,
    #[bits(1)]
    __: u8,
    /// Use the global read buffer limit.
    pub use_global_limit: bool,
    /// Read buffers reserved for this group.
    pub buffers_reserved: u8,
    #[bits(4)]
    __: u8,
    /// Read buffers this group may use.
    pub buffers_allowed: u8,
    #[bits(36)]
    __: u64,
}

/// Interrupt permission of one MSI-X table entry (MSIXPERM).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct MsixPerm {
    #[bits(2)]
    __: u8,
    /// Descriptors' interrupts through this entry are dropped.
    pub ignore: bool,
    /// The PASID field counts: only descriptors with that PASID may use the entry.
    pub pasid_enable: bool,
    #[bits(8)]
    __: u8,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
}

/// The configuration of a work queue (WQCFG), 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct WqConfig {
    /// Number of entries (dword 0, bits 15:0).
    pub size: u16,
    /// Entries that limited portals may fill (dword 1, bits 15:0; shared queues).
    pub threshold: u16,
    /// Mode, PASID, priority (dword 2).
    pub mode: WqMode,
    /// Limits of descriptors (dword 3).
    pub limits: WqLimits,
    /// Occupancy interrupt handle (dword 4).
    pub occupancy_handle: WqOccupancyHandle,
    /// Occupancy limit (dword 5).
    pub occupancy_limit: WqOccupancyLimit,
    /// Occupancy and state (dword 6).
    pub occupancy: WqOccupancy,
}

impl WqConfig {
    /// Length of WQCFG in bytes, when WQCAP says that it is 32 (DSA 1.0).
    pub const SIZE: usize = 32;
    /// Length of WQCFG in dwords.
    pub const DWORDS: usize = 8;

    /// The dwords of the register.
    pub const fn to_dwords(self) -> [u32; Self::DWORDS] {
        [
            self.size as u32,
            self.threshold as u32,
            self.mode.into_bits(),
            self.limits.into_bits(),
            self.occupancy_handle.into_bits(),
            self.occupancy_limit.into_bits(),
            self.occupancy.into_bits(),
            0,
        ]
    }

    /// The configuration in these dwords.
    pub const fn from_dwords(dwords: [u32; Self::DWORDS]) -> Self {
        Self {
            size: dwords[0] as u16,
            threshold: dwords[1] as u16,
            mode: WqMode::from_bits(dwords[2]),
            limits: WqLimits::from_bits(dwords[3]),
            occupancy_handle: WqOccupancyHandle::from_bits(dwords[4]),
            occupancy_limit: WqOccupancyLimit::from_bits(dwords[5]),
            occupancy: WqOccupancy::from_bits(dwords[6]),
        }
    }
}

/// WQCFG dword 2. Writable while the queue is disabled.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct WqMode {
    /// The queue is dedicated to one submitter; else shared.
    pub dedicated: bool,
    /// Descriptors may ask to block on fault.
    pub block_on_fault: bool,
    /// No translation requests for this queue (needs WQCAP).
    pub ats_disable: bool,
    /// No page requests for this queue (DSA 2.0).
    pub prs_disable: bool,
    /// Priority, 1 to 15.
    #[bits(4)]
    pub priority: u8,
    /// PASID (dedicated queues).
    #[bits(20)]
    pub pasid: u32,
    /// Requests carry a PASID.
    pub pasid_enable: bool,
    /// Requests are privileged (dedicated queues).
    pub privileged: bool,
    #[bits(2)]
    __: u8,
}

/// WQCFG dword 3. Writable while the queue is disabled.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct WqLimits {
    /// Largest transfer, as a power of two.
    #[bits(5)]
    pub max_transfer_shift: u8,
    /// Largest batch, as a power of two.
    #[bits(4)]
    pub max_batch_shift: u8,
    #[bits(23)]
    __: u32,
}

/// WQCFG dword 4. Writable while the queue is disabled.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct WqOccupancyHandle {
    /// Interrupt handle of the occupancy interrupt.
    pub handle: u16,
    /// The handle's table is interrupt message storage, not MSI-X.
    pub ims: bool,
    #[bits(15)]
    __: u16,
}

/// WQCFG dword 5.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct WqOccupancyLimit {
    /// Occupancy at which the interrupt is raised.
    pub limit: u16,
    /// The occupancy interrupt is enabled.
    pub interrupt_enable: bool,
    #[bits(15)]
    __: u16,
}

/// WQCFG dword 6. Read-only but for `interrupt_generated`.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct WqOccupancy {
    /// Descriptors in the queue.
    pub occupancy: u16,
    /// An occupancy interrupt was raised. Write 1 to clear.
    pub interrupt_generated: bool,
    #[bits(12)]
    __: u16,
    /// The mode may be changed though the device is not configurable.
    pub mode_support: bool,
    /// State.
    #[bits(2, default = WqState::Disabled)]
    pub state: WqState,
}

/// State of a work queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum WqState {
    /// Takes nothing.
    #[default]
    Disabled = 0,
    /// Takes descriptors.
    Enabled = 1,
    /// Takes nothing more and is being emptied.
    Disabling = 2,
    /// No queue has this value.
    Reserved = 3,
}

impl WqState {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Disabled,
            1 => Self::Enabled,
            2 => Self::Disabling,
            _ => Self::Reserved,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}
