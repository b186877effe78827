//! What a device is built with, and the capability registers that follow from it.

use iommu::Pasid;

use crate::spec::{
    CommandCode, EngCap, GenCap, GrpCap, Offsets, Opcode, WqCap, WqConfig, GRPCFG_SIZE,
    MSIXPERM_STRIDE,
};

/// Most work queues a device can be built with: one interrupt vector each and one more.
pub const MAX_QUEUES: u8 = 16;
/// Most groups a device can be built with: GRPCFG fits between MSIXPERM and WQCFG.
pub const MAX_GROUPS: u8 = 4;
/// Most engines a device can be built with.
pub const MAX_ENGINES: u8 = 16;
/// Most entries that all work queues of a device share out: what a guest can make it remember.
pub const MAX_ENTRIES: u16 = 1024;

/// Offset of MSIXPERM in BAR 0.
pub(super) const MSIXPERM: u32 = 0x200;
/// Offset of GRPCFG in BAR 0.
pub(super) const GRPCFG: u32 = 0x300;
/// Offset of WQCFG in BAR 0.
pub(super) const WQCFG: u32 = 0x400;
/// Read buffers that each engine of a group must be allowed at least (Enable Device).
pub(super) const BUFFERS_PER_ENGINE: u32 = 4;

/// Largest transfer, as a power of two: 2 GiB.
const MAX_TRANSFER_SHIFT: u8 = 31;
/// Largest batch, as a power of two: 1024 descriptors.
const MAX_BATCH_SHIFT: u8 = 10;

// The tables do not run into each other, whatever a device is built with.
const _: () = {
    assert!(MSIXPERM + MSIXPERM_STRIDE * (MAX_QUEUES as u32 + 1) <= GRPCFG);
    assert!(GRPCFG + GRPCFG_SIZE * MAX_GROUPS as u32 <= WQCFG);
    assert!(WQCFG + WqConfig::SIZE as u32 * MAX_QUEUES as u32 <= 0x1000);
};

/// What a device is built with. The default is what DSA 1.0 hardware has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Work queues, 1 to [`MAX_QUEUES`].
    pub queues: u8,
    /// Entries that all work queues share out, 1 to [`MAX_ENTRIES`].
    pub entries: u16,
    /// Groups, 1 to [`MAX_GROUPS`].
    pub groups: u8,
    /// Engines, 1 to [`MAX_ENGINES`].
    pub engines: u8,
    /// Read buffers; they are only accounted for. At least four for each engine.
    pub read_buffers: u8,
    /// Whether interrupt handles are to be requested by command, as virtual devices want it.
    /// Handles are MSI-X indices all the same.
    pub interrupt_handles: bool,
    /// PCI device serial number.
    pub serial_number: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            queues: 8,
            entries: 128,
            groups: 4,
            engines: 4,
            read_buffers: 96,
            interrupt_handles: false,
            serial_number: 0,
        }
    }
}

/// Why a device cannot be built: our caller's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Number of work queues.
    #[error("{got} work queues, not 1 to {max}")]
    Queues {
        /// What was asked for.
        got: u8,
        /// What is possible.
        max: u8,
    },
    /// Number of queue entries.
    #[error("{got} queue entries, not 1 to {max}")]
    Entries {
        /// What was asked for.
        got: u16,
        /// What is possible.
        max: u16,
    },
    /// Number of groups.
    #[error("{got} groups, not 1 to {max}")]
    Groups {
        /// What was asked for.
        got: u8,
        /// What is possible.
        max: u8,
    },
    /// Number of engines.
    #[error("{got} engines, not 1 to {max}")]
    Engines {
        /// What was asked for.
        got: u8,
        /// What is possible.
        max: u8,
    },
    /// Number of read buffers.
    #[error("{got} read buffers, fewer than the {min} that the engines need")]
    ReadBuffers {
        /// What was asked for.
        got: u8,
        /// What is needed.
        min: u32,
    },
    /// The configuration space.
    #[error(transparent)]
    Layout(#[from] pci::LayoutError),
}

/// A checked [`Config`]: gives every capability register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps(Config);

impl Caps {
    /// Drains cannot name addresses to read back from (GENCAP).
    pub(super) const DRAIN_READBACK: bool = false;

    pub(super) fn new(config: Config) -> Result<Self, ConfigError> {
        let Config { queues, entries, groups, engines, read_buffers, .. } = config;
        if queues == 0 || queues > MAX_QUEUES {
            return Err(ConfigError::Queues { got: queues, max: MAX_QUEUES });
        }
        if entries == 0 || entries > MAX_ENTRIES {
            return Err(ConfigError::Entries { got: entries, max: MAX_ENTRIES });
        }
        if groups == 0 || groups > MAX_GROUPS {
            return Err(ConfigError::Groups { got: groups, max: MAX_GROUPS });
        }
        if engines == 0 || engines > MAX_ENGINES {
            return Err(ConfigError::Engines { got: engines, max: MAX_ENGINES });
        }
        let min = u32::from(engines) * BUFFERS_PER_ENGINE;
        if u32::from(read_buffers) < min {
            return Err(ConfigError::ReadBuffers { got: read_buffers, min });
        }
        Ok(Self(config))
    }

    pub(super) fn config(&self) -> &Config {
        &self.0
    }

    pub(super) fn queues(&self) -> usize {
        self.0.queues.into()
    }

    pub(super) fn groups(&self) -> usize {
        self.0.groups.into()
    }

    pub(super) fn engines(&self) -> usize {
        self.0.engines.into()
    }

    /// MSI-X vectors: 0 for the device's own events, 1 and up for work queues.
    pub(super) fn vectors(&self) -> u16 {
        u16::from(self.0.queues) + 1
    }

    /// GENCAP.
    pub(super) fn gencap(&self) -> GenCap {
        GenCap::new()
            .with_block_on_fault(true)
            .with_overlapping_copy(true)
            .with_cache_control_memory(true)
            .with_command_capabilities(self.0.interrupt_handles)
            .with_destination_readback(true)
            .with_drain_readback(Self::DRAIN_READBACK)
            .with_max_transfer_shift(MAX_TRANSFER_SHIFT)
            .with_max_batch_shift(MAX_BATCH_SHIFT)
            .with_configurable(true)
    }

    pub(super) fn wqcap(&self) -> WqCap {
        WqCap::new()
            .with_total_entries(self.0.entries)
            .with_queues(self.0.queues)
            .with_shared(true)
            .with_dedicated(true)
            .with_priority(true)
            .with_occupancy(true)
    }

    pub(super) fn grpcap(&self) -> GrpCap {
        GrpCap::new()
            .with_groups(self.0.groups)
            .with_read_buffers(self.0.read_buffers)
            .with_read_buffer_controls(true)
            .with_global_limit(true)
    }

    pub(super) fn engcap(&self) -> EngCap {
        EngCap::new().with_engines(self.0.engines)
    }

    /// OPCAP: every operation of DSA 1.0.
    pub(super) fn opcap(&self) -> [u64; 4] {
        let mut words = [0; 4];
        for &opcode in Opcode::ALL {
            words[usize::from(opcode as u8 / 64)] |= 1 << (opcode as u8 % 64);
        }
        words
    }

    pub(super) fn offsets(&self) -> Offsets {
        Offsets::new()
            .with_grpcfg((GRPCFG >> 8) as u16)
            .with_wqcfg((WQCFG >> 8) as u16)
            .with_msixperm((MSIXPERM >> 8) as u16)
    }

    /// CMDCAP; zero (and commands 1 to 12 implied) unless interrupt handles are requested.
    pub(super) fn cmdcap(&self) -> u64 {
        if !self.0.interrupt_handles {
            return 0;
        }
        CommandCode::ALL.iter().fold(0, |bits, &code| bits | 1 << code as u8)
    }
}

/// The PASID in a 20-bit field, if `enable` says that it counts.
pub(super) fn pasid_field(enable: bool, field: u32) -> Option<Pasid> {
    enable.then(|| Pasid::from_field(field))
}
