//! The scenarios of the lab.

use std::collections::BTreeSet;
use std::time::Duration;

use guest_protocol::scenario;
use iommu::{Numbering, DEFAULT_QUOTA};

use crate::assets::Linux;
use crate::server::{Commands, GuestConfig, HostCalls};

/// What a scenario's guests are like. Scenarios of one kind can share a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Their kernel.
    pub linux: Linux,
    /// What they have of the host.
    pub config: GuestConfig,
}

/// The newest Linux, which numbers its PASIDs itself.
const NEWEST: Kind = Kind {
    linux: Linux::Newest,
    config: GuestConfig {
        quota: DEFAULT_QUOTA,
        numbering: Numbering::Identity,
        commands: Commands::Off,
    },
};

/// Linux 6.1 on a unit with virtual commands, in the layout that it uses.
const PARAVIRTUAL: Kind = Kind {
    linux: Linux::V6_1,
    config: GuestConfig {
        quota: DEFAULT_QUOTA,
        numbering: Numbering::Identity,
        commands: Commands::Revision33,
    },
};

/// One of the Linux 6.1 guests that use one host at the same time.
const fn tenant(quota: u32, numbering: Numbering) -> Kind {
    let config = GuestConfig { quota, numbering, commands: Commands::Revision33 };
    Kind { linux: Linux::V6_1, config }
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
    Plan::Tenants(Tenants { paravirtual, copying: NEWEST })
}

/// How a scenario uses guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Runs to its end in a guest that other scenarios use too.
    Shared,
    /// Kills its own guest in the middle, then runs `sva-copy` in another one on the same server.
    KillAndReplace,
    /// Runs three guests at the same time on one server, and kills one of them.
    Tenants(Tenants),
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
    /// How long it may take in one guest, boot not included.
    pub limit: Duration,
    /// The name of the sabotage that must turn it red.
    pub sabotage: &'static str,
}

impl Scenario {
    /// The kernels of its guests.
    pub fn kernels(&self) -> BTreeSet<Linux> {
        match &self.plan {
            Plan::Shared | Plan::KillAndReplace => [self.kind.linux].into(),
            Plan::Tenants(Tenants { paravirtual: [one, other], copying }) => {
                [one.linux, other.linux, copying.linux].into()
            }
        }
    }
}

/// Every scenario, in running order.
pub const SCENARIOS: [Scenario; 9] = [
    Scenario {
        name: scenario::SVA_COPY,
        shows: "a process's plain addresses work in every operation of the accelerator",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        limit: Duration::from_secs(120),
        sabotage: "corrupt-copy",
    },
    Scenario {
        name: scenario::ISOLATION,
        shows: "two processes with the same addresses each see their own memory, and nobody a third one's",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        limit: Duration::from_secs(120),
        sabotage: "wrong-pasid",
    },
    Scenario {
        name: scenario::REBIND,
        shows: "200 processes bind, work and exit, and nothing is left of them",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        limit: Duration::from_secs(300),
        sabotage: "leak-cache",
    },
    Scenario {
        name: scenario::ACCESSED_DIRTY,
        shows: "the guest kernel sees exactly the pages that the device read and wrote",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        limit: Duration::from_secs(120),
        sabotage: "no-accessed-dirty",
    },
    Scenario {
        name: scenario::IN_FLIGHT,
        shows: "once an unmapping is acknowledged, no byte goes to or comes from the old page",
        plan: Plan::Shared,
        kind: NEWEST,
        calls: HostCalls::Direct,
        limit: Duration::from_secs(180),
        sabotage: "skip-iotlb-invalidation",
    },
    Scenario {
        name: "kill",
        shows: "a guest killed while copying leaves nothing behind, and the next one works",
        plan: Plan::KillAndReplace,
        kind: NEWEST,
        calls: HostCalls::Direct,
        limit: Duration::from_secs(180),
        sabotage: "keep-dead-guests",
    },
    Scenario {
        name: scenario::VCMD,
        shows: "an unmodified Linux 6.1 takes its PASIDs from the host, and the host's books have each",
        plan: Plan::Shared,
        kind: PARAVIRTUAL,
        calls: HostCalls::Direct,
        limit: Duration::from_secs(120),
        sabotage: "generous-quota",
    },
    Scenario {
        name: "tenants",
        shows: "three guests on one host at once keep to their own PASIDs, one is killed, the others go on",
        plan: tenants(Numbering::Identity),
        kind: PARAVIRTUAL,
        calls: HostCalls::Direct,
        limit: TENANTS_LIMIT,
        sabotage: "forget-owner",
    },
    Scenario {
        name: "tenants-private",
        shows: "the same with numbers of each guest's own, and the host called by encoded bytes only",
        plan: tenants(Numbering::Private),
        kind: PARAVIRTUAL,
        calls: HostCalls::Bytes,
        limit: TENANTS_LIMIT,
        sabotage: "shared-numbers",
    },
];

/// For each part of a scenario with several guests, which share the processors.
const TENANTS_LIMIT: Duration = Duration::from_secs(150);

/// A name that is no scenario's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no scenario {given:?}; there are: {}", names().join(", "))]
pub struct UnknownScenario {
    /// The name as given.
    pub given: String,
}

/// The scenarios of the given names in running order, or all of them if none is given.
///
/// # Errors
/// [`UnknownScenario`] for the first name that is none.
pub fn select(wanted: &[String]) -> Result<Vec<&'static Scenario>, UnknownScenario> {
    if let Some(given) = wanted.iter().find(|name| !names().contains(&name.as_str())) {
        return Err(UnknownScenario { given: given.clone() });
    }
    let chosen =
        |scenario: &&Scenario| wanted.is_empty() || wanted.iter().any(|name| name == scenario.name);
    Ok(SCENARIOS.iter().filter(chosen).collect())
}

fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_in_running_order() {
        let chosen = select(&["kill".to_owned(), "sva-copy".to_owned()]).unwrap();
        let chosen: Vec<_> = chosen.iter().map(|scenario| scenario.name).collect();
        assert_eq!(chosen, ["sva-copy", "kill"]);
        assert_eq!(select(&[]).unwrap().len(), SCENARIOS.len());
        let error = select(&["rebind".to_owned(), "nothing".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("\"nothing\"; there are: sva-copy, "));
    }

    #[test]
    fn the_guest_knows_every_scenario() {
        for scenario in SCENARIOS.iter().filter(|scenario| scenario.plan == Plan::Shared) {
            assert!(scenario::ALL.contains(&scenario.name), "{}", scenario.name);
        }
    }
}
