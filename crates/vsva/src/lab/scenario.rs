//! The scenarios of the lab.

use std::collections::BTreeSet;
use std::time::Duration;

use guest_protocol::scenario;
use iommu::Numbering;

use crate::assets::Linux;
use crate::server::{Commands, GuestConfig, HostCalls, PasidTable, StageTwo};

/// What a scenario's guests are like. Scenarios of one kind can share a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Their kernel.
    pub linux: Linux,
    /// What they have of the host.
    pub config: GuestConfig,
}

/// The newest Linux, which numbers its PASIDs itself, over a real second stage.
const NEWEST: Kind = Kind {
    linux: Linux::Newest,
    config: GuestConfig { stage_two: StageTwo::Shuffled, ..GuestConfig::USUAL },
};

/// Linux 6.1 on a unit with virtual commands, in the layout that it uses.
const PARAVIRTUAL: Kind = Kind {
    linux: Linux::V6_1,
    config: GuestConfig { commands: Commands::Revision33, ..GuestConfig::USUAL },
};

/// One of the Linux 6.1 guests that use one host at the same time.
const fn tenant(quota: u32, numbering: Numbering) -> Kind {
    Kind { config: GuestConfig { quota, numbering, ..PARAVIRTUAL.config }, ..PARAVIRTUAL }
}

/// What the guests of a scenario with [`Plan::Tenants`] are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenants {
    /// They take their PASIDs from the host. The second one is killed.
    pub paravirtual: [Kind; 2],
    /// It numbers its PASIDs itself and copies throughout.
    pub copying: Kind,
}

/// Their quotas are small, so that they are full most of the time, and differ.
const fn tenants(numbering: Numbering) -> Plan {
    let paravirtual = [tenant(64, numbering), tenant(48, numbering)];
    let copying = Kind { config: GuestConfig::USUAL, ..NEWEST };
    Plan::Tenants(Tenants { paravirtual, copying })
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

/// One scenario: what it shows, and the broken server that it must not pass on.
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
    /// The name of the sabotage that must turn it red.
    pub sabotage: &'static str,
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

/// Both owners of PASID tables.
const BOTH: &[PasidTable] = &[PasidTable::Guest, PasidTable::Host];

/// Every scenario, in running order.
pub const SCENARIOS: [Scenario; 11] = [
    Scenario {
        name: scenario::SVA_COPY,
        shows: "a process's plain addresses work in every operation of the accelerator",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        tables: BOTH,
        limit: Duration::from_secs(120),
        sabotage: "corrupt-copy",
    },
    Scenario {
        name: scenario::ISOLATION,
        shows: "two processes with the same addresses each see their own memory, and nobody a third one's",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        tables: BOTH,
        limit: Duration::from_secs(120),
        sabotage: "wrong-pasid",
    },
    Scenario {
        name: scenario::REBIND,
        shows: "200 processes bind, work and exit, and nothing is left of them",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        tables: BOTH,
        limit: Duration::from_secs(300),
        sabotage: "leak-cache",
    },
    Scenario {
        name: scenario::ACCESSED_DIRTY,
        shows: "the guest kernel sees exactly the pages that the device read and wrote",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        tables: BOTH,
        limit: Duration::from_secs(120),
        sabotage: "no-accessed-dirty",
    },
    Scenario {
        name: scenario::IN_FLIGHT,
        shows: "once an unmapping is acknowledged, no byte goes to or comes from the old page",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        tables: BOTH,
        limit: Duration::from_secs(180),
        sabotage: "skip-iotlb-invalidation",
    },
    Scenario {
        name: scenario::STAGE_TWO,
        shows: "the host's second stage is in force: a page taken out of it is out of the device's reach until it is back",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        tables: BOTH,
        limit: Duration::from_secs(120),
        sabotage: "skip-stage-two",
    },
    Scenario {
        name: "kill",
        shows: "a guest killed while copying leaves nothing behind, and the next one works",
        plan: Plan::KillAndReplace,
        kind: NEWEST,
        calls: HostCalls::Direct,
        tables: BOTH,
        limit: Duration::from_secs(180),
        sabotage: "keep-dead-guests",
    },
    Scenario {
        name: scenario::VCMD,
        shows: "an unmodified Linux 6.1 takes its PASIDs from the host, and the host's books have each",
        plan: Plan::Shared,
        kind: PARAVIRTUAL,
        calls: HostCalls::Direct,
        tables: &[PasidTable::Guest],
        limit: Duration::from_secs(120),
        sabotage: "generous-quota",
    },
    Scenario {
        name: "tenants",
        shows: "three guests on one host at once keep to their own PASIDs, one is killed, the others go on",
        plan: tenants(Numbering::Identity),
        kind: PARAVIRTUAL,
        calls: HostCalls::Direct,
        tables: &[PasidTable::Guest],
        limit: TENANTS_LIMIT,
        sabotage: "forget-owner",
    },
    Scenario {
        name: "tenants-private",
        shows: "the same with numbers of each guest's own, and the host called by encoded bytes only",
        plan: tenants(Numbering::Private),
        kind: PARAVIRTUAL,
        calls: HostCalls::Bytes,
        tables: &[PasidTable::Guest],
        limit: TENANTS_LIMIT,
        sabotage: "shared-numbers",
    },
    Scenario {
        name: "tenants-host",
        shows: "two newest Linux on one host use the same PASIDs, each bound under a number of the host's; one is killed",
        plan: Plan::Twins,
        kind: NEWEST,
        calls: HostCalls::Direct,
        tables: &[PasidTable::Host],
        limit: TENANTS_LIMIT,
        sabotage: "shared-numbers",
    },
];

/// For each part of a scenario with several guests, which share the processors.
const TENANTS_LIMIT: Duration = Duration::from_secs(150);

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
mod tests {
    use super::*;

    fn names_of(wanted: &[&str], wishes: Wishes) -> Result<Vec<String>, SelectError> {
        let wanted: Vec<_> = wanted.iter().map(|&name| name.to_owned()).collect();
        Ok(select(&wanted, wishes)?.into_iter().map(|run| run.name).collect())
    }

    fn with(table: PasidTable) -> Wishes {
        Wishes { table: Some(table), ..Wishes::default() }
    }

    #[test]
    fn names_select_in_running_order() {
        let chosen = names_of(&["kill", "sva-copy", "vcmd"], Wishes::default()).unwrap();
        assert_eq!(chosen, ["sva-copy", "kill", "sva-copy/host", "kill/host", "vcmd"]);
        let all = names_of(&[], Wishes::default()).unwrap();
        let runs: usize = SCENARIOS.iter().map(|scenario| scenario.tables.len()).sum();
        assert_eq!(all.len(), runs);
        assert_eq!(all.last().unwrap(), "tenants-host");
        let error = names_of(&["rebind", "nothing"], Wishes::default()).unwrap_err();
        assert!(error.to_string().contains("\"nothing\"; there are: sva-copy, "));
    }

    #[test]
    fn one_owner_of_the_tables_can_be_wanted() {
        let host = names_of(&["tenants", "rebind"], with(PasidTable::Host)).unwrap();
        assert_eq!(host, ["rebind/host", "tenants/host"]);
        assert_eq!(names_of(&[], with(PasidTable::Host)).unwrap().len(), SCENARIOS.len());
        // What is about the host's tables is left out, unless it was asked for by its name.
        let guest = names_of(&[], with(PasidTable::Guest)).unwrap();
        assert_eq!(guest.len(), SCENARIOS.len() - 1);
        let refused = names_of(&["tenants-host"], with(PasidTable::Guest)).unwrap_err();
        assert_eq!(refused, SelectError::NeedsHostTable { scenario: "tenants-host" });
        let none = Wishes { stage_two: Some(StageTwo::None), ..Wishes::default() };
        assert!(!names_of(&[], none).unwrap().contains(&"stage-two".to_owned()));
        let refused = names_of(&["stage-two"], none).unwrap_err();
        assert_eq!(refused, SelectError::NeedsStageTwo { scenario: "stage-two" });
    }

    #[test]
    fn guests_are_as_the_run_wants_them() {
        let wishes = Wishes { stage_two: Some(StageTwo::Identity), ..with(PasidTable::Host) };
        for run in select(&[], wishes).unwrap() {
            let config = run.kind().config;
            assert_eq!(
                (config.pasid_table, config.stage_two),
                (PasidTable::Host, StageTwo::Identity)
            );
            let asks = config.commands != Commands::Off;
            assert_eq!(config.numbering == Numbering::Identity, asks, "{}", run.name);
        }
        for run in select(&[], Wishes::default()).unwrap() {
            let single = run.scenario.kind.linux == Linux::Newest;
            assert_eq!(run.kind().config.stage_two == StageTwo::Shuffled, single, "{}", run.name);
        }
    }

    #[test]
    fn the_guest_knows_every_scenario() {
        for scenario in SCENARIOS.iter().filter(|scenario| scenario.plan == Plan::Shared) {
            assert!(scenario::ALL.contains(&scenario.name), "{}", scenario.name);
        }
    }
}
