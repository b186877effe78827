//! The ways in which a scenario is run.

use iommu::{Layout, Numbering, SecondStageLevels, StageTwoConfig, StageTwoFormat, VmConfig};
use vtd::model::{Options, PasidTableMode};

use super::{Drive, Verdict};

/// Who works, whose tables translate, and whether a stage 2 of the host is under them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    pub drive: Drive,
    pub tables: PasidTableMode,
    pub stage_two: Option<StageTwoConfig>,
}

impl Setup {
    /// The guest's own tables translate.
    pub const fn guest_owned(drive: Drive) -> Self {
        Self { drive, tables: PasidTableMode::Guest, stage_two: None }
    }

    /// The host's tables do.
    pub const fn host_owned(drive: Drive) -> Self {
        Self { drive, tables: PasidTableMode::Host, stage_two: None }
    }

    /// The same over a stage 2 whose frames lie anywhere.
    pub const fn over_stage_two(self) -> Self {
        let config = StageTwoConfig {
            format: StageTwoFormat::Vtd { levels: SecondStageLevels::Four },
            layout: Layout::Shuffled { seed: 5 },
        };
        Self { stage_two: Some(config), ..self }
    }

    /// The VM.
    pub fn config(&self, name: &str) -> VmConfig {
        // Guests that number their PASIDs themselves take the same ones.
        let numbering = match self.tables {
            PasidTableMode::Guest => Numbering::default(),
            PasidTableMode::Host => Numbering::Private,
        };
        VmConfig { numbering, stage_two: self.stage_two, ..VmConfig::named(name) }
    }

    /// Its remapping unit.
    pub fn unit(&self) -> Options {
        match self.tables {
            PasidTableMode::Guest => Options::default(),
            PasidTableMode::Host => Options::host_owned(),
        }
    }
}

/// Fails unless `scenario` ends well.
pub fn run(scenario: impl Fn(Setup) -> Verdict, setup: Setup) {
    assert_eq!(scenario(setup), Ok(()));
}

/// A test of each scenario in each kind of setup.
macro_rules! in_every_setup {
    ($($name:ident: $scenario:expr, $drive:expr;)*) => {
        mod with_tables_of_the_guest {
            use super::*;
            use $crate::common::{run, Setup};
            $(#[test] fn $name() { run($scenario, Setup::guest_owned($drive)); })*
        }

        mod with_tables_of_the_host {
            use super::*;
            use $crate::common::{run, Setup};
            $(#[test] fn $name() { run($scenario, Setup::host_owned($drive)); })*
        }

        mod with_tables_of_the_guest_over_stage_two {
            use super::*;
            use $crate::common::{run, Setup};
            $(#[test] fn $name() { run($scenario, Setup::guest_owned($drive).over_stage_two()); })*
        }

        mod with_tables_of_the_host_over_stage_two {
            use super::*;
            use $crate::common::{run, Setup};
            $(#[test] fn $name() { run($scenario, Setup::host_owned($drive).over_stage_two()); })*
        }
    };
}
pub(crate) use in_every_setup;
