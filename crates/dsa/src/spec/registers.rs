//! The general registers of BAR 0: their places, and their fields.

use bitfield_struct::bitfield;

/// VERSION of DSA 1.0.
pub const VERSION_1_0: u32 = 0x100;

/// What a register does with writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RegisterAccess {
    /// Ignores them.
    ReadOnly,
    /// Stores its writable bits.
    ReadWrite,
    /// Stores its writable bits while the device is disabled, else ignores them.
    WhileDisabled,
    /// Clears the bits that are written as one.
    WriteOneToClear,
    /// Acts on them; reads as zero.
    WriteOnly,
}

/// A general register of BAR 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Register {
    /// Name in the specification.
    pub name: &'static str,
    /// Offset in bytes.
    pub offset: u32,
    /// Length in bytes.
    pub size: u32,
    /// What it does with writes.
    pub access: RegisterAccess,
}

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $offset:literal, $size:literal, $access:ident;)*) => {
        /// Offsets of the general registers in BAR 0, in bytes.
        pub mod offset {
            $($(#[$doc])* pub const $name: u32 = $offset;)*
        }

        /// The general registers, by offset.
        pub const REGISTERS: &[Register] = &[$(Register {
            name: stringify!($name),
            offset: $offset,
            size: $size,
            access: RegisterAccess::$access,
        },)*];
    };
}

registers! {
    /// Version: major in 15:8, minor in 7:0.
    VERSION = 0x00, 4, ReadOnly;
    /// General capabilities.
    GENCAP = 0x10, 8, ReadOnly;
    /// Work queue capabilities.
    WQCAP = 0x20, 8, ReadOnly;
    /// Group capabilities.
    GRPCAP = 0x30, 8, ReadOnly;
    /// Engine capabilities.
    ENGCAP = 0x38, 8, ReadOnly;
    /// Operations: bit n for operation code n.
    OPCAP = 0x40, 32, ReadOnly;
    /// Places of the tables.
    OFFSETS = 0x60, 16, ReadOnly;
    /// General configuration.
    GENCFG = 0x80, 4, WhileDisabled;
    /// General control.
    GENCTRL = 0x88, 4, ReadWrite;
    /// General status.
    GENSTS = 0x90, 4, ReadOnly;
    /// Interrupt cause.
    INTCAUSE = 0x98, 4, WriteOneToClear;
    /// Command.
    CMD = 0xa0, 4, WriteOnly;
    /// Command status.
    CMDSTATUS = 0xa8, 4, ReadOnly;
    /// Commands: bit n for command code n. Only if GENCAP says so.
    CMDCAP = 0xb0, 8, ReadOnly;
    /// Software error.
    SWERROR = 0xc0, 32, WriteOneToClear;
}

/// General capabilities (GENCAP).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct GenCap {
    /// Descriptors may block on page faults.
    pub block_on_fault: bool,
    /// Copies may overlap.
    pub overlapping_copy: bool,
    /// Cache control for memory writes.
    pub cache_control_memory: bool,
    /// Cache control for cache flush.
    pub cache_control_flush: bool,
    /// CMDCAP is there; else commands 1 to 12 are.
    pub command_capabilities: bool,
    /// Durable writes.
    pub durable_write: bool,
    /// Inter-domain operations (DSA 2.0).
    pub inter_domain: bool,
    /// Translation fetch with a stride (DSA 2.0).
    pub fetch_stride: bool,
    /// Destination readback.
    pub destination_readback: bool,
    /// Drain readback addresses.
    pub drain_readback: bool,
    /// 16-byte fill patterns (DSA 2.0).
    pub fill_16: bool,
    /// 64-bit CRC (DSA 2.0).
    pub crc_64: bool,
    /// Fault information in completion records (DSA 2.0).
    pub fault_info: bool,
    #[bits(1)]
    __: u8,
    /// Event log entry size (DSA 2.0).
    #[bits(2)]
    pub event_log_entry: u8,
    /// Largest transfer, as a power of two.
    #[bits(5)]
    pub max_transfer_shift: u8,
    /// Largest batch, as a power of two.
    #[bits(4)]
    pub max_batch_shift: u8,
    /// Interrupt message storage, in units of 256 entries.
    #[bits(6)]
    pub ims_size: u8,
    /// The configuration can be changed.
    pub configurable: bool,
    #[bits(32)]
    __: u32,
}

/// Work queue capabilities (WQCAP).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct WqCap {
    /// Entries that all queues share out.
    pub total_entries: u16,
    /// Number of work queues.
    pub queues: u8,
    /// A WQCFG takes `32 << config_shift` bytes.
    #[bits(4)]
    pub config_shift: u8,
    #[bits(20)]
    __: u32,
    /// Shared mode.
    pub shared: bool,
    /// Dedicated mode.
    pub dedicated: bool,
    /// ATS can be disabled for a queue.
    pub ats_disable: bool,
    /// Priorities.
    pub priority: bool,
    /// The occupancy can be read.
    pub occupancy: bool,
    /// Occupancy interrupts.
    pub occupancy_interrupt: bool,
    /// Operations can be chosen for a queue.
    pub operation_config: bool,
    /// Page requests can be disabled for a queue (DSA 2.0).
    pub prs_disable: bool,
    #[bits(8)]
    __: u8,
}

/// Group capabilities (GRPCAP).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct GrpCap {
    /// Number of groups.
    pub groups: u8,
    /// Read buffers that all groups share out.
    pub read_buffers: u8,
    /// Read buffers can be allotted to groups.
    pub read_buffer_controls: bool,
    /// The global read buffer limit.
    pub global_limit: bool,
    /// Progress limits (DSA 2.0).
    pub progress_limits: bool,
    #[bits(45)]
    __: u64,
}

/// Engine capabilities (ENGCAP).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct EngCap {
    /// Number of engines.
    pub engines: u8,
    #[bits(56)]
    __: u64,
}

/// Places of the tables in BAR 0 (OFFSETS), each in units of 0x100 bytes; 0 if it is not there.
#[bitfield(u128)]
#[derive(PartialEq, Eq, Hash)]
pub struct Offsets {
    /// Group configuration.
    pub grpcfg: u16,
    /// Work queue configuration.
    pub wqcfg: u16,
    /// Interrupt permissions.
    pub msixperm: u16,
    /// Interrupt message storage.
    pub ims: u16,
    /// Performance monitor.
    pub perfmon: u16,
    /// Inter-domain permissions (DSA 2.0).
    pub idpt: u16,
    #[bits(32)]
    __: u32,
}

/// General configuration (GENCFG).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct GenCfg {
    /// Global read buffer limit.
    pub read_buffer_limit: u8,
    #[bits(4)]
    __: u8,
    /// Unprivileged descriptors may ask for completion interrupts.
    pub user_interrupts: bool,
    #[bits(19)]
    __: u32,
}

/// General control (GENCTRL).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct GenCtrl {
    /// Interrupt on a software error.
    pub software_error_interrupt: bool,
    /// Interrupt on halt.
    pub halt_interrupt: bool,
    #[bits(30)]
    __: u32,
}

/// General status (GENSTS).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct GenSts {
    /// State of the device.
    #[bits(2, default = DeviceState::Disabled)]
    pub state: DeviceState,
    /// Reset that is needed to leave the halt state.
    #[bits(2, default = ResetType::Software)]
    pub reset: ResetType,
    #[bits(28)]
    __: u32,
}

/// State of the device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum DeviceState {
    /// Can be configured.
    #[default]
    Disabled = 0,
    /// Works.
    Enabled = 1,
    /// A Disable Device or Reset Device command is being carried out.
    Disabling = 2,
    /// Stopped by an error; needs a reset.
    Halted = 3,
}

impl DeviceState {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Disabled,
            1 => Self::Enabled,
            2 => Self::Disabling,
            _ => Self::Halted,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// The reset that a halted device needs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum ResetType {
    /// A Reset Device command.
    #[default]
    Software = 0,
    /// A function-level reset.
    FunctionLevel = 1,
    /// A warm reset of the platform.
    Warm = 2,
    /// A cold reset of the platform.
    Cold = 3,
}

impl ResetType {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Software,
            1 => Self::FunctionLevel,
            2 => Self::Warm,
            _ => Self::Cold,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// Interrupt cause (INTCAUSE). Write 1 to clear.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct IntCause {
    /// SWERROR became valid.
    pub software_error: bool,
    /// A command completed.
    pub command: bool,
    /// A queue's occupancy.
    pub occupancy: bool,
    /// Performance monitor.
    pub perfmon: bool,
    /// The device halted.
    pub halt: bool,
    /// Event log (DSA 2.0).
    pub event_log: bool,
    #[bits(25)]
    __: u32,
    /// Interrupt handles were revoked.
    pub handles_revoked: bool,
}
