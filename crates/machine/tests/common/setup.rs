//! The ways in which a scenario is run.

use iommu::{Numbering, VmConfig};
use vtd::model::{Options, PasidTableMode};

use super::Drive;

/// Who works, and whose tables translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    pub drive: Drive,
    pub tables: PasidTableMode,
}

impl Setup {
    /// The guest's own tables translate.
    pub const fn guest_owned(drive: Drive) -> Self {
        Self { drive, tables: PasidTableMode::Guest }
    }

    /// The host's tables do.
    pub const fn host_owned(drive: Drive) -> Self {
        Self { drive, tables: PasidTableMode::Host }
    }

    /// The VM.
    pub fn config(&self, name: &str) -> VmConfig {
        // Guests that number their PASIDs themselves take the same ones.
        let numbering = match self.tables {
            PasidTableMode::Guest => Numbering::default(),
            PasidTableMode::Host => Numbering::Private,
        };
        VmConfig { numbering, ..VmConfig::named(name) }
    }

    /// Its remapping unit.
    pub fn unit(&self) -> Options {
        match self.tables {
            PasidTableMode::Guest => Options::default(),
            PasidTableMode::Host => Options::host_owned(),
        }
    }
}
