//! The scenarios of the lab.

use std::collections::BTreeSet;
use std::time::Duration;

use guest_protocol::scenario;
use iommu::Numbering;

use crate::assets::Linux;
use crate::server::{GuestConfig, HostCalls, PasidTable, StageTwo};

mod table;

use self::table::BOTH;
pub use self::table::SCENARIOS;

/// What a scenario's guests are like. Scenarios of one kind can share a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Their kernel.
    pub linux: Linux,
    /// What they have of the host.
    pub config: GuestConfig,
}

/// What the guests of a scenario with [`Plan::Tenants`] are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenants {
    /// They take their PASIDs from the host. The second one is killed.
    pub paravirtual: [Kind; 2],
    /// It numbers its PASIDs itself and copies throughout.
    pub copying: Kind,
}

/// How a scenario uses guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Runs to its end in a guest that other scenarios use too.
    Shared,
    /// Kills its guest in the middle, then runs `sva-copy` in another one on the same server.
    KillAndReplace,
    /// Runs three guests at the same time on one server, and kills one of them.
    Tenants(Tenants),
    /// Runs two guests at the same time that number their PASIDs themselves, and kills one of them.
    Twins,
}

/// One scenario: what it shows, and the broken servers that it must not pass on.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// What it shows, in a sentence.
    pub shows: &'static str,
    /// How it uses guests.
    pub plan: Plan,
    /// What its guests are like, if its plan has none of their own.
    pub kind: Kind,
    /// How its server's host is called unless the user wants it otherwise.
    pub calls: HostCalls,
    /// Who owns the PASID tables: once for each, unless the user wants one of them.
    pub tables: &'static [PasidTable],
    /// How long it may take in one guest, boot not included.
    pub limit: Duration,
    /// The names of the sabotages each of which must turn it red.
    pub sabotages: &'static [&'static str],
}

impl Scenario {
    /// The kernels of its guests.
    pub fn kernels(&self) -> BTreeSet<Linux> {
        match &self.plan {
            Plan::Shared | Plan::KillAndReplace | Plan::Twins => [self.kind.linux].into(),
            Plan::Tenants(Tenants { paravirtual: [one, other], copying }) => {
                [one.linux, other.linux, copying.linux].into()
            }
        }
    }

    /// Whether it can be run so at all.
    ///
    /// # Errors
    /// [`SelectError`]: what it needs.
    fn check(&self, table: PasidTable, stage_two: Option<StageTwo>) -> Result<(), SelectError> {
        if self.plan == Plan::Twins && table == PasidTable::Guest {
            return Err(SelectError::NeedsHostTable { scenario: self.name });
        }
        if self.name == scenario::STAGE_TWO && stage_two == Some(StageTwo::None) {
            return Err(SelectError::NeedsStageTwo { scenario: self.name });
        }
        Ok(())
    }
}

/// Why there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// A name is no scenario's.
    #[error("there is no scenario {given:?}; there are: {}", names().join(", "))]
    Unknown {
        /// The name as given.
        given: String,
    },
    /// A scenario is about numbers that only a host has that owns the PASID tables.
    #[error(
        "{scenario} is about guests in a PASID table of the host's: it needs --pasid-table host"
    )]
    NeedsHostTable {
        /// The scenario.
        scenario: &'static str,
    },
    /// A scenario is about the host's second stage.
    #[error(
        "{scenario} is about the host's second stage: it needs --stage-two identity or shuffled"
    )]
    NeedsStageTwo {
        /// The scenario.
        scenario: &'static str,
    },
}

/// What the user wants otherwise than the scenarios say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Who owns the PASID tables.
    pub table: Option<PasidTable>,
    /// The host's second stage.
    pub stage_two: Option<StageTwo>,
}

/// A scenario that is run once: with the PASID tables of one owner.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name in results: the scenario's, and what distinguishes this run from its other one.
    pub name: String,
    /// The scenario.
    pub scenario: &'static Scenario,
    table: PasidTable,
    stage_two: Option<StageTwo>,
}

impl Run {
    fn new(scenario: &'static Scenario, table: PasidTable, stage_two: Option<StageTwo>) -> Self {
        let usual = scenario.tables.first().is_none_or(|usual| *usual == table);
        let name = match usual {
            true => scenario.name.to_owned(),
            false => format!("{}/{table}", scenario.name),
        };
        Self { name, scenario, table, stage_two }
    }

    /// What a guest is like that the scenario wants to be like `kind`.
    pub fn kind_of(&self, kind: Kind) -> Kind {
        let mut config = GuestConfig { pasid_table: self.table, ..kind.config };
        config.stage_two = self.stage_two.unwrap_or(config.stage_two);
        if config.numbers_host_table() {
            // Each may take what numbers it likes.
            config.numbering = Numbering::Private;
        }
        Kind { config, ..kind }
    }

    /// What its guests are like, if its plan has none of their own.
    pub fn kind(&self) -> Kind {
        self.kind_of(self.scenario.kind)
    }
}

/// What to run for the scenarios of the given names, or for all of them if none is given, in running order: scenarios of
/// one kind with the tables of one owner follow each other, so that they can share a guest.
///
/// # Errors
/// [`SelectError`] for the first name with which something is wrong.
pub fn select(wanted: &[String], wishes: Wishes) -> Result<Vec<Run>, SelectError> {
    if let Some(given) = wanted.iter().find(|name| !names().contains(&name.as_str())) {
        return Err(SelectError::Unknown { given: given.clone() });
    }
    let chosen =
        |scenario: &Scenario| wanted.is_empty() || wanted.iter().any(|name| name == scenario.name);
    let mut runs = Vec::new();
    for alike in SCENARIOS.chunk_by(|one, next| one.kind == next.kind) {
        for table in BOTH {
            for scenario in alike.iter().filter(|scenario| chosen(scenario)) {
                let tables = wishes.table.as_ref().map_or(scenario.tables, std::slice::from_ref);
                if !tables.contains(table) {
                    continue;
                }
                match scenario.check(*table, wishes.stage_two) {
                    Ok(()) => runs.push(Run::new(scenario, *table, wishes.stage_two)),
                    // One that was not asked for by its name is left out.
                    Err(_) if wanted.is_empty() => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(runs)
}

fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name).collect()
}

#[cfg(test)]
mod tests;
