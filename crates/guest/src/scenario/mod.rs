//! The scenarios that the lab can ask for, each in a process of its own.

use std::time::{Duration, Instant};

use guest_protocol::scenario as name;
use guest_protocol::FromGuest;

use crate::child::{Child, Event};
use crate::failure::{Failure, Outcome};
use crate::report::{Account, Counts, Report};
use crate::setup;

mod accessed_dirty;
mod in_flight;
mod isolation;
mod misplaced;
mod rebind;
mod stage_two;
mod endless;
mod sva_copy;
mod vcmd;

/// Something that the lab can ask for.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// When it is killed and counts as failed.
    pub(crate) deadline: Duration,
    run: Run,
}

/// What a scenario works on: with the report and the seed of its random choices, to its account.
enum Run {
    /// The accelerator, which is configured first.
    Accelerator(fn(&mut Report, u64) -> Outcome<Counts>),
    /// The kernel's PASID allocator.
    Allocator(fn(&mut Report, u64) -> Outcome<Account>),
}

/// Long enough for a slow machine without hardware virtualization.
const DEADLINE: Duration = Duration::from_secs(300);
/// For those that last until the lab has enough, or kills the machine.
const UNTIL_STOPPED: Duration = Duration::from_secs(3600);

const fn on_accelerator(
    name: &'static str,
    run: fn(&mut Report, u64) -> Outcome<Counts>,
) -> Scenario {
    Scenario { name, deadline: DEADLINE, run: Run::Accelerator(run) }
}

static SCENARIOS: [Scenario; 10] = [
    on_accelerator(name::SVA_COPY, sva_copy::run),
    on_accelerator(name::ISOLATION, isolation::run),
    on_accelerator(name::REBIND, rebind::run),
    on_accelerator(name::ACCESSED_DIRTY, accessed_dirty::run),
    on_accelerator(name::IN_FLIGHT, in_flight::run),
    on_accelerator(name::STAGE_TWO, stage_two::run),
    Scenario { name: name::VCMD, deadline: DEADLINE, run: Run::Allocator(vcmd::run) },
    Scenario { name: name::ENDLESS, deadline: UNTIL_STOPPED, run: Run::Accelerator(endless::run) },
    Scenario {
        name: name::STREAM,
        deadline: UNTIL_STOPPED,
        run: Run::Accelerator(sva_copy::stream),
    },
    Scenario { name: name::TENANT, deadline: UNTIL_STOPPED, run: Run::Allocator(vcmd::tenant) },
];

/// A part of a scenario that runs in a process of its own.
struct Worker {
    name: &'static str,
    run: fn(&mut Report, &[String]) -> Outcome<Counts>,
}

static WORKERS: [Worker; 3] = [
    Worker { name: isolation::WORKER, run: isolation::work },
    Worker { name: rebind::WORKER, run: rebind::work },
    Worker { name: endless::WORKER, run: endless::work },
];

/// The scenario of this name.
pub(crate) fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

/// Runs a scenario to its end in this process.
pub(crate) fn run(report: &mut Report, name: &str, seed: u64) {
    let Some(scenario) = find(name) else {
        return report.check("scenario exists", Err(Failure::new(name)));
    };
    let end = "the scenario reached its end";
    match scenario.run {
        Run::Accelerator(run) => match setup::ready() {
            Ok(accelerator) => {
                report.note(&accelerator.to_string());
                let ended = run(report, seed);
                conclude(report, ended, end);
            }
            Err(error) => report.check("the accelerator is configured", Err(error.into())),
        },
        Run::Allocator(run) => {
            let ended = run(report, seed);
            conclude(report, ended, end);
        }
    }
}

/// Runs a part of a scenario to its end in this process.
pub(crate) fn work(report: &mut Report, arguments: &[String]) {
    let Some((name, arguments)) = arguments.split_first() else {
        return report.check("worker exists", Err(Failure::new("no name")));
    };
    match WORKERS.iter().find(|worker| worker.name == name) {
        Some(worker) => {
            let ended = (worker.run)(report, arguments);
            conclude(report, ended, "the worker reached its end");
        }
        None => report.check("worker exists", Err(Failure::new(name))),
    }
}

/// Hears a worker to its end and adds what it did to `counts`. Says what its checks found; the
/// first that does not hold is the failure.
fn finish(mut worker: Child, deadline: Instant, counts: &mut Counts) -> Outcome {
    let mut found = Vec::new();
    let mut failure = None;
    loop {
        match worker.event(deadline)? {
            Event::Message(FromGuest::Check { ok: true, detail, .. }) => found.push(detail),
            Event::Message(FromGuest::Check { check, detail, .. }) => {
                failure.get_or_insert(Failure::new(format!("{check}: {detail}")));
            }
            Event::Message(FromGuest::Counts { values }) => {
                counts.add(Counts::from_values(&values));
            }
            Event::Message(FromGuest::Note { .. }) => {}
            Event::Message(other) => {
                failure.get_or_insert(Failure::new(format!("unexpected {other:?}")));
            }
            Event::Garbage(error) => {
                failure.get_or_insert(Failure::new(format!("said nonsense: {error}")));
            }
            Event::Closed => break,
            Event::Silent => {
                failure.get_or_insert(Failure::new("not done in time"));
                break;
            }
        }
    }
    let trouble = worker.end(deadline)?.trouble().map(Failure::new);
    match failure.or(trouble) {
        Some(failure) => Err(failure),
        None => Ok(found.join(", ")),
    }
}

fn conclude(report: &mut Report, ended: Outcome<impl Into<Account>>, check: &str) {
    match ended {
        Ok(counts) => report.counts(counts),
        Err(failure) => report.check(check, Err(failure)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_the_protocol_is_there_and_no_other() {
        assert_eq!(SCENARIOS.each_ref().map(|scenario| scenario.name), name::ALL);
        assert!(find("reboot").is_none());
    }
}
