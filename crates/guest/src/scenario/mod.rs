//! The scenarios that the lab can ask for, each in a process of its own.

use std::time::{Duration, Instant};

use guest_protocol::scenario as name;
use guest_protocol::FromGuest;

use crate::child::{Child, Event};
use crate::failure::{Failure, Outcome};
use crate::report::{Counts, Report};
use crate::setup;

mod accessed_dirty;
mod in_flight;
mod isolation;
mod misplaced;
mod rebind;
mod storm;
mod sva_copy;

/// Something that the lab can ask for.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// When it is killed and counts as failed.
    pub(crate) deadline: Duration,
    run: fn(&mut Report, u64) -> Outcome<Counts>,
}

/// Long enough for a slow machine without hardware virtualization.
const DEADLINE: Duration = Duration::from_secs(300);
/// The storm lasts until the machine is killed.
const STORM_DEADLINE: Duration = Duration::from_secs(3600);

static SCENARIOS: [Scenario; 6] = [
    Scenario { name: name::SVA_COPY, deadline: DEADLINE, run: sva_copy::run },
    Scenario { name: name::ISOLATION, deadline: DEADLINE, run: isolation::run },
    Scenario { name: name::REBIND, deadline: DEADLINE, run: rebind::run },
    Scenario { name: name::ACCESSED_DIRTY, deadline: DEADLINE, run: accessed_dirty::run },
    Scenario { name: name::IN_FLIGHT, deadline: DEADLINE, run: in_flight::run },
    Scenario { name: name::STORM, deadline: STORM_DEADLINE, run: storm::run },
];

/// A part of a scenario that runs in a process of its own.
struct Worker {
    name: &'static str,
    run: fn(&mut Report, &[String]) -> Outcome<Counts>,
}

static WORKERS: [Worker; 3] = [
    Worker { name: isolation::WORKER, run: isolation::work },
    Worker { name: rebind::WORKER, run: rebind::work },
    Worker { name: storm::WORKER, run: storm::work },
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
    match setup::ready() {
        Ok(accelerator) => report.note(&accelerator.to_string()),
        Err(error) => return report.check("the accelerator is configured", Err(error.into())),
    }
    let ended = (scenario.run)(report, seed);
    conclude(report, ended, "the scenario reached its end");
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

fn conclude(report: &mut Report, ended: Outcome<Counts>, check: &str) {
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
