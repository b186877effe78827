//! The scenarios that the lab can ask for, each in a process of its own.

use std::io;
use std::time::{Duration, Instant};

use guest_protocol::scenario as name;
use guest_protocol::{sync, FromGuest};

use crate::child::{Child, Event};
use crate::failure::{Failure, Outcome};
use crate::kmsg::{self, KernelLog};
use crate::report::{Account, Counts, Report};
use crate::setup;

mod accessed_dirty;
mod cow_fork;
mod endless;
mod in_flight;
mod injected;
mod isolation;
mod lazy_anon;
mod lazy_file;
mod misplaced;
mod mprotect_munmap;
mod oom_kill;
mod rebind;
mod stage_two;
mod storm;
mod sva_copy;
mod swap;
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
    /// The accelerator's queues that may block on a fault, too.
    Blocking(fn(&mut Report, u64) -> Outcome<Counts>),
    /// The same, over and over: nothing of it may stay behind.
    Repeated(fn(&mut Report, u64) -> Outcome<Counts>),
    /// The same, by somebody who cannot say all that was done.
    Killing(fn(&mut Report, u64) -> Outcome<Account>),
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

const fn blocking(name: &'static str, run: fn(&mut Report, u64) -> Outcome<Counts>) -> Scenario {
    Scenario { name, deadline: DEADLINE, run: Run::Blocking(run) }
}

const fn repeated(name: &'static str, run: fn(&mut Report, u64) -> Outcome<Counts>) -> Scenario {
    Scenario { name, deadline: DEADLINE, run: Run::Repeated(run) }
}

static SCENARIOS: [Scenario; 23] = [
    on_accelerator(name::SVA_COPY, sva_copy::run),
    on_accelerator(name::ISOLATION, isolation::run),
    on_accelerator(name::REBIND, rebind::run),
    on_accelerator(name::ACCESSED_DIRTY, accessed_dirty::run),
    on_accelerator(name::IN_FLIGHT, in_flight::run),
    on_accelerator(name::STAGE_TWO, stage_two::run),
    repeated(name::LAZY_ANON, lazy_anon::run),
    repeated(name::LAZY_FILE, lazy_file::run),
    repeated(name::COW_FORK, cow_fork::run),
    repeated(name::MPROTECT_MUNMAP, mprotect_munmap::run),
    repeated(name::SWAP, swap::run),
    Scenario { name: name::OOM_KILL, deadline: DEADLINE, run: Run::Killing(oom_kill::run) },
    blocking(name::STORM, storm::run),
    blocking(name::DROP_RESPONSE, injected::drop_response),
    blocking(name::DELAY_RESPONSE, injected::delay_response),
    blocking(name::OVERFLOW_QUEUE, injected::overflow_queue),
    blocking(name::DELAY_INVALIDATION, injected::delay_invalidation),
    blocking(name::FAIL_WALK, injected::fail_walk),
    blocking(name::ANSWER_TWICE, injected::answer_twice),
    Scenario { name: name::VCMD, deadline: DEADLINE, run: Run::Allocator(vcmd::run) },
    Scenario { name: name::ENDLESS, deadline: UNTIL_STOPPED, run: Run::Blocking(endless::run) },
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

static WORKERS: [Worker; 6] = [
    Worker { name: isolation::WORKER, run: isolation::work },
    Worker { name: rebind::WORKER, run: rebind::work },
    Worker { name: oom_kill::WORKER, run: oom_kill::work },
    Worker { name: storm::WORKER, run: storm::work },
    Worker { name: endless::COPYING, run: endless::copy },
    Worker { name: endless::MISSING, run: endless::miss },
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
    let log = KernelLog::from_now();
    carry_out(report, scenario, seed);
    report.check("the kernel complains of nothing", quiet(log));
}

/// The kernel has found no fault in itself since `log` was opened.
fn quiet(log: io::Result<KernelLog>) -> Outcome {
    let lines = log?.lines()?;
    match kmsg::complaints(&lines) {
        None => Ok(format!("in {} lines of its log", lines.len())),
        Some(complaints) => Err(Failure::new(complaints)),
    }
}

fn carry_out(report: &mut Report, scenario: &Scenario, seed: u64) {
    let end = "the scenario reached its end";
    match scenario.run {
        Run::Accelerator(run) if ready(report, false) => {
            let ended = run(report, seed);
            conclude(report, ended, end);
        }
        Run::Blocking(run) if ready(report, true) => {
            let ended = run(report, seed);
            conclude(report, ended, end);
        }
        Run::Repeated(run) if ready(report, true) => {
            let ended = repeat(report, run, seed);
            conclude(report, ended, end);
        }
        Run::Killing(run) if ready(report, true) => {
            let ended = run(report, seed);
            conclude(report, ended, end);
        }
        Run::Allocator(run) => {
            let ended = run(report, seed);
            conclude(report, ended, end);
        }
        Run::Accelerator(_) | Run::Blocking(_) | Run::Repeated(_) | Run::Killing(_) => {}
    }
}

/// How often a scenario is repeated that must leave nothing behind.
const ROUNDS: u64 = 3;
/// After which the lab samples what the server holds.
const SAMPLED: [u64; 2] = [1, ROUNDS];

/// Runs a scenario over and over. After each round nothing may be outstanding, and after the last the server may hold
/// no more than after the first.
fn repeat(
    report: &mut Report,
    run: fn(&mut Report, u64) -> Outcome<Counts>,
    seed: u64,
) -> Outcome<Counts> {
    let mut counts = Counts::default();
    for round in 1..=ROUNDS {
        let seed = seed ^ (round - 1) << 8;
        let done = match round {
            1 => run(report, seed),
            _ => report.repeat(&format!("round {round}"), |report| run(report, seed)),
        };
        counts.add(done?);
        report.sync(sync::SETTLED, &[])?;
        if !report.is_good() {
            break;
        }
        report.steady(round, SAMPLED)?;
    }
    Ok(counts)
}

/// Configures the accelerator. False, and a check that does not hold, if it is not as it is wanted.
fn ready(report: &mut Report, blocking: bool) -> bool {
    let accelerator = match setup::ready() {
        Ok(accelerator) => accelerator,
        Err(error) => {
            report.check("the accelerator is configured", Err(error.into()));
            return false;
        }
    };
    report.note(&accelerator.to_string());
    if blocking && !accelerator.can_block() {
        let text = "its capabilities say that it cannot, or its page requests are off";
        report.check("the accelerator blocks on a fault", Err(Failure::new(text)));
        return false;
    }
    true
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
