//! What lies below a guest: its memory itself, or a stage 2 of the host's.

use iommu::{
    ArmFlags, ArmStageTwo, FaultReason, Granule, Hardware, Layout, SecondStageLevels, SoftwareHost,
    Stage, StageTwoConfig, StageTwoFault, StageTwoFormat, StageTwoOwner, VmConfig,
};
use mem::Gpa;

use super::cell::Stop;
use super::common::Guest;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ground {
    Direct,
    VtdIdentity,
    VtdShuffled,
    /// Granules of 4 KiB, with flags kept by hardware.
    ArmIdentity,
    /// Granules of 16 KiB, with flags kept by software.
    ArmShuffled,
}

pub const GROUNDS: [Ground; 5] = [
    Ground::Direct,
    Ground::VtdIdentity,
    Ground::VtdShuffled,
    Ground::ArmIdentity,
    Ground::ArmShuffled,
];

const SHUFFLED: Layout = Layout::Shuffled { seed: 0x5eed };

impl Ground {
    pub fn config(self) -> Option<StageTwoConfig> {
        let vtd = StageTwoFormat::Vtd { levels: SecondStageLevels::Four };
        let arm = |granule, flags| {
            let format = ArmStageTwo::new(granule, 44, 48).unwrap();
            StageTwoFormat::Arm(format.with_flags(flags))
        };
        let (format, layout) = match self {
            Self::Direct => return None,
            Self::VtdIdentity => (vtd, Layout::Identity),
            Self::VtdShuffled => (vtd, SHUFFLED),
            Self::ArmIdentity => (arm(Granule::Kib4, ArmFlags::AccessDirty), Layout::Identity),
            Self::ArmShuffled => (arm(Granule::Kib16, ArmFlags::Fault), SHUFFLED),
        };
        Some(StageTwoConfig { format, layout })
    }

    pub fn is_arm(self) -> bool {
        matches!(self, Self::ArmIdentity | Self::ArmShuffled)
    }

    /// A guest of a host with that IOMMU.
    pub fn guest(self, hardware: Hardware) -> Guest {
        let config = VmConfig { stage_two: self.config(), ..VmConfig::named("guest") };
        Guest::with(&SoftwareHost::with_hardware(hardware), config)
    }

    /// The level at which a walk for 1 GiB parts from one for the memory, which begins at 0 and
    /// ends at 16 MiB.
    fn level_of_nowhere(self) -> u8 {
        match self {
            Self::Direct => 0,
            // Entries for 1 GiB.
            Self::VtdIdentity | Self::VtdShuffled | Self::ArmIdentity => 3,
            // Entries for 32 MiB.
            Self::ArmShuffled => 2,
        }
    }

    /// A stop at `gpa`, from 1 GiB on, which the engine wanted for a `table` or for the request
    /// itself: `direct` without a stage 2.
    pub fn nowhere(self, direct: Stop, gpa: u64, table: bool) -> Stop {
        let level = self.level_of_nowhere();
        let stage = if table { Stage::TwoForTable } else { Stage::Two };
        self.nowhere_as(direct, FaultReason::NotPresent { stage, level }, gpa, table)
    }

    /// The same where `reason` says what the engine wanted there.
    pub fn nowhere_as(self, direct: Stop, reason: FaultReason, gpa: u64, table: bool) -> Stop {
        if self == Self::Direct {
            return direct;
        }
        let (gpa, level) = (Gpa(gpa), self.level_of_nowhere());
        let owner = StageTwoOwner::Host;
        Stop::new(reason).at(StageTwoFault { gpa, table, level, owner })
    }
}
