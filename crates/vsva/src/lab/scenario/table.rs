//! The table of scenarios.

use std::time::Duration;

use guest_protocol::scenario;
use iommu::Numbering;

use super::{Kind, Plan, Scenario, Tenants};
use crate::assets::Linux;
use crate::server::{Commands, GuestConfig, HostCalls, PageTimeout, PasidTable, StageTwo};

/// The newest Linux, which numbers its PASIDs itself, over a real second stage.
const NEWEST: Kind = Kind {
    linux: Linux::Newest,
    config: GuestConfig { stage_two: StageTwo::Shuffled, ..GuestConfig::USUAL },
};

/// The same where something goes wrong on purpose: those who wait for it give up sooner than usual.
const INJECTED: Kind = Kind {
    config: GuestConfig {
        page_request_timeout: PageTimeout::After(Duration::from_secs(2)),
        invalidation_timeout: Duration::from_millis(500),
        ..NEWEST.config
    },
    ..NEWEST
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

/// Their quotas are small, so that they are full most of the time, and differ.
const fn tenants(numbering: Numbering) -> Plan {
    let paravirtual = [tenant(64, numbering), tenant(48, numbering)];
    let copying = Kind { config: GuestConfig::USUAL, ..NEWEST };
    Plan::Tenants(Tenants { paravirtual, copying })
}

/// Both owners of PASID tables.
pub(super) const BOTH: &[PasidTable] = &[PasidTable::Guest, PasidTable::Host];

/// The sabotage that scenarios must notice which assert that nothing grows.
const LEAK: &str = "leak-cache";

/// What scenarios are like that need nothing special.
const IN_ONE_GUEST: Scenario = Scenario {
    name: "",
    shows: "",
    plan: Plan::Shared,
    kind: NEWEST,
    calls: HostCalls::Direct,
    tables: BOTH,
    limit: Duration::from_secs(120),
    sabotages: &[],
};

/// What scenarios are like in which something goes wrong on purpose. What their guests make of it
/// does not depend on who owns the tables.
const INJECTION: Scenario = Scenario {
    kind: INJECTED,
    tables: &[PasidTable::Guest],
    sabotages: &["ignore-injections"],
    ..IN_ONE_GUEST
};

/// Every scenario, in running order.
pub const SCENARIOS: [Scenario; 24] = [
    Scenario {
        name: scenario::SVA_COPY,
        shows: "a process's plain addresses work in every operation of the accelerator",
        sabotages: &["corrupt-copy"],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::ISOLATION,
        shows: "two processes with the same addresses each see their own memory, and nobody a third one's",
        sabotages: &["wrong-pasid"],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::REBIND,
        shows: "200 processes bind, work and exit, and nothing is left of them",
        limit: Duration::from_secs(300),
        sabotages: &[LEAK],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::ACCESSED_DIRTY,
        shows: "the guest kernel sees exactly the pages that the device read and wrote",
        sabotages: &["no-accessed-dirty"],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::IN_FLIGHT,
        shows: "once an unmapping is acknowledged, no byte goes to or comes from the old page",
        limit: Duration::from_secs(180),
        sabotages: &["skip-iotlb-invalidation"],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::STAGE_TWO,
        shows: "the host's second stage is in force: a page taken out of it is out of the device's reach until it is back",
        sabotages: &["skip-stage-two"],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::LAZY_ANON,
        shows: "the device uses memory that nothing has touched: its faults are the guest kernel's to resolve",
        sabotages: &["lose-blocked", LEAK],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::LAZY_FILE,
        shows: "the device reads and writes files that are on a disk and in no cache",
        sabotages: &["corrupt-copy", LEAK],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::COW_FORK,
        shows: "parent and child of a fork write the same pages through the device, and each sees its own",
        sabotages: &["skip-device-tlb-invalidation", LEAK],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::MPROTECT_MUNMAP,
        shows: "memory that is taken away under running copies: each copy is complete or has faulted",
        sabotages: &["skip-device-tlb-invalidation", LEAK],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::SWAP,
        shows: "the device uses pages that the guest kernel has swapped out",
        sabotages: &["skip-device-tlb-invalidation", LEAK],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::OOM_KILL,
        shows: "processes killed with page requests in flight leave nothing behind",
        // With tables of its own first: there a host could answer for the guest.
        tables: &[PasidTable::Host, PasidTable::Guest],
        sabotages: &["answer-taken", LEAK],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::STORM,
        shows: "many processes fault at once on few credits, and another queue goes on",
        sabotages: &["block-the-queue", LEAK],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: "kill",
        shows: "a guest killed while it copies and waits for pages leaves nothing behind, and the next one works",
        plan: Plan::KillAndReplace,
        limit: Duration::from_secs(180),
        sabotages: &["keep-dead-guests"],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: scenario::DROP_RESPONSE,
        shows: "an answer to a page request is lost: the host gives one, the guest is none the wiser",
        ..INJECTION
    },
    Scenario {
        name: scenario::DELAY_RESPONSE,
        shows: "answers to page requests are late: descriptors wait for them",
        ..INJECTION
    },
    Scenario {
        name: scenario::OVERFLOW_QUEUE,
        shows: "the page request queue overflows: the guest clears it, the device asks again",
        ..INJECTION
    },
    Scenario {
        name: scenario::DELAY_INVALIDATION,
        shows: "the device is late to answer an invalidation: the guest hears of it and tries again",
        ..INJECTION
    },
    Scenario {
        name: scenario::FAIL_WALK,
        shows: "a word of a table cannot be had: one copy fails, the next works",
        ..INJECTION
    },
    Scenario {
        name: scenario::ANSWER_TWICE,
        shows: "the device hears answers twice: it notices, and nothing else happens",
        ..INJECTION
    },
    Scenario {
        name: scenario::VCMD,
        shows: "an unmodified Linux 6.1 takes its PASIDs from the host, and the host's books have each",
        kind: PARAVIRTUAL,
        tables: &[PasidTable::Guest],
        sabotages: &["generous-quota"],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: "tenants",
        shows: "three guests on one host at once keep to their own PASIDs, one is killed, the others go on",
        plan: tenants(Numbering::Identity),
        kind: PARAVIRTUAL,
        tables: &[PasidTable::Guest],
        limit: TENANTS_LIMIT,
        sabotages: &["forget-owner"],
        ..IN_ONE_GUEST
    },
    Scenario {
        name: "tenants-private",
        shows: "the same with numbers of each guest's own, and the host called by encoded bytes only",
        plan: tenants(Numbering::Private),
        kind: PARAVIRTUAL,
        calls: HostCalls::Bytes,
        tables: &[PasidTable::Guest],
        limit: TENANTS_LIMIT,
        sabotages: &["shared-numbers"],
    },
    Scenario {
        name: "tenants-host",
        shows: "two newest Linux on one host use the same PASIDs, each bound under a number of the host's; one is killed",
        plan: Plan::Twins,
        tables: &[PasidTable::Host],
        limit: TENANTS_LIMIT,
        sabotages: &["shared-numbers"],
        ..IN_ONE_GUEST
    },
];

/// For each part of a scenario with several guests, which share the processors.
const TENANTS_LIMIT: Duration = Duration::from_secs(150);
