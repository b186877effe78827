//! Walking the host's stage 2.

use alloc::sync::Arc;

use mem::{Access, Gpa, HostAddr};
use pgtable::{ArmStageTwo, Format, Leaf, Rights, SecondStage, WalkFault, MIN_TABLE_BITS};

use super::frames::HOST_BITS;
use super::tables::NoTable;
use super::{Frames, HostTables, StageTwoConfig, StageTwoFormat};
use crate::cache::Allowed;
use crate::engine::{self, Walked};
use crate::sabotage::{self, Sabotage};
use crate::{FaultReason, HostError, Stage};

/// A format of the host's tables.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostFormat {
    Vtd(SecondStage),
    Arm(ArmStageTwo),
}

/// Calls a method of the format, whichever it is.
macro_rules! with {
    ($format:expr, $name:ident => $call:expr) => {
        match $format {
            HostFormat::Vtd($name) => $call,
            HostFormat::Arm($name) => $call,
        }
    };
}

impl HostFormat {
    /// `None` if memory cannot be mapped with it.
    fn new(format: StageTwoFormat) -> Option<Self> {
        match format {
            StageTwoFormat::Vtd { levels } => Some(Self::Vtd(SecondStage {
                output_bits: HOST_BITS,
                one_gib_pages: false,
                snoop_control: false,
                device_tlb: false,
                ..SecondStage::new(levels)
            })),
            StageTwoFormat::Arm(format) => {
                let possible = format.levels() >= 2 && format.sizes().output_bits >= HOST_BITS;
                possible.then_some(Self::Arm(format))
            }
        }
    }

    pub(super) fn levels(&self) -> u8 {
        with!(self, format => format.levels())
    }

    /// log2 of the bytes that one entry of level `level` covers.
    pub(super) fn size_bits(&self, level: u8) -> u32 {
        with!(self, format => format.size_bits(level))
    }

    /// log2 of the bytes of a table of level `level`.
    pub(super) fn table_bits(&self, level: u8) -> u32 {
        with!(self, format => format.table_bits(level)).max(MIN_TABLE_BITS)
    }

    pub(super) fn translates(&self, gpa: Gpa) -> bool {
        with!(self, format => format.check_address(gpa.0).is_ok())
    }

    pub(super) fn entry_address(&self, table: HostAddr, level: u8, gpa: Gpa) -> HostAddr {
        HostAddr(with!(self, format => format.entry_address(table.0, level, gpa.0)))
    }

    pub(super) fn decode(&self, level: u8, entry: u64) -> pgtable::Entry {
        with!(self, format => format.decode(level, entry))
    }

    pub(super) fn table_entry(&self, table: HostAddr) -> u64 {
        with!(self, format => format.table_entry(table.0))
    }

    pub(super) fn leaf_entry(&self, level: u8, page: HostAddr, rights: Rights) -> u64 {
        with!(self, format => format.leaf_entry(level, page.0, rights))
    }
}

/// The host's stage 2 of one VM, as the engine walks it. Its root stays for the VM's life.
#[derive(Debug)]
pub(crate) struct HostStageTwo {
    pub(super) tables: Arc<HostTables>,
    pub(super) root: HostAddr,
    pub(super) format: HostFormat,
    pub(super) frames: Frames,
}

/// Why stage 2 does not translate an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Untranslated {
    pub(crate) gpa: Gpa,
    fault: WalkFault<NoTable>,
}

/// Where stage 2 maps an address to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HostLeaf {
    pub(crate) base: HostAddr,
    /// log2 of the bytes of the mapping.
    pub(crate) size_bits: u32,
    pub(crate) allowed: Allowed,
}

impl HostStageTwo {
    /// An empty table.
    ///
    /// # Errors
    ///
    /// If there is no memory for it, or memory cannot be mapped with it.
    pub(crate) fn new(
        config: &StageTwoConfig,
        tables: &Arc<HostTables>,
    ) -> Result<Self, HostError> {
        let format = HostFormat::new(config.format).ok_or(HostError::UnsupportedStageTwo)?;
        let root_bits = format.table_bits(format.levels());
        let root = tables.allocate(root_bits).ok_or(HostError::NoMemory)?;
        let frames = Frames::new(config.layout, format.size_bits(1), format.size_bits(2));
        Ok(Self { tables: tables.clone(), root, format, frames })
    }

    /// The root, for tables that name it.
    pub(crate) fn root(&self) -> HostAddr {
        self.root
    }

    /// The format, for tables that name it.
    #[allow(dead_code)] // for PASID tables that the host owns
    pub(crate) fn format(&self) -> &HostFormat {
        &self.format
    }

    /// Which byte of the guest lies at `host`; `None` where none ever does.
    pub(crate) fn guest_at(&self, host: HostAddr) -> Option<Gpa> {
        self.frames.guest(host)
    }

    /// Looks `gpa` up for `access`. What walks mark is marked.
    pub(crate) fn walk(&self, gpa: Gpa, access: Access) -> Result<HostLeaf, Untranslated> {
        if sabotage::is(Sabotage::SkipStageTwo) {
            let base = HostAddr(gpa.0 & !0xfff);
            return Ok(HostLeaf { base, size_bits: 12, allowed: Allowed::ALL });
        }
        with!(&self.format, format => self.walk_by(format, gpa, access))
    }

    fn walk_by<F: Walked>(
        &self,
        format: &F,
        gpa: Gpa,
        access: Access,
    ) -> Result<HostLeaf, Untranslated> {
        let request = engine::request(access, false, false);
        let leaf = pgtable::walk(format, self.root.0, gpa.0, &request, &*self.tables)
            .map_err(|fault| Untranslated { gpa, fault: format.adapt(fault) })?;
        let Leaf { base, size_bits, .. } = leaf;
        let allowed = engine::allowed(format, &leaf, false);
        Ok(HostLeaf { base: HostAddr(base), size_bits, allowed })
    }
}

impl HostLeaf {
    /// The host address for `gpa`, which lies in the mapping, and the number of bytes from there
    /// to the mapping's end, less one.
    pub(crate) fn translate(&self, gpa: Gpa) -> (HostAddr, u64) {
        let mask = (1 << self.size_bits) - 1;
        (HostAddr(self.base.0 | gpa.0 & mask), mask - (gpa.0 & mask))
    }
}

impl Untranslated {
    /// What that means at `stage`.
    pub(crate) fn reason(&self, stage: Stage) -> FaultReason {
        let unreachable = |level, NoTable| FaultReason::TableAccess { stage, level };
        engine::reason(self.fault, stage, unreachable)
    }

    /// Level of the entry at which it stopped; zero if at none.
    pub(crate) fn level(&self) -> u8 {
        engine::level(&self.fault)
    }
}
