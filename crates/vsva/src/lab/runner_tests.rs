//! The runner against pretended guests and a pretended server.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;

use super::super::scenario::{select, Wishes};
use super::super::server::{EncodedCalls, GuestDevices, PasidRecord, PasidSpace};
use super::killing::WAITING;
use super::*;
use crate::inspect::snapshot::{
    DESCRIPTORS_BLOCKED, PAGE_REQUESTS_FORGOTTEN, PAGE_REQUESTS_OUTSTANDING,
};
use crate::server::{GuestConfig, Injection, PasidTable};

/// What a pretended guest does next.
enum Step {
    Say(FromGuest),
    Fail(fn() -> GuestError),
}

/// Everything that happened, in order.
type Log = Rc<RefCell<Vec<String>>>;

struct FakeGuest {
    steps: VecDeque<Step>,
    log: Log,
}

impl Guest for FakeGuest {
    fn send(&mut self, message: &ToGuest) -> Result<(), GuestError> {
        let said = match message {
            ToGuest::Run { scenario, .. } => format!("run {scenario}"),
            ToGuest::Continue { ok } => format!("continue {ok}"),
            ToGuest::Pasids { pasids } => format!("pasids {pasids:?}"),
            ToGuest::PowerOff => "power off".to_owned(),
        };
        self.log.borrow_mut().push(said);
        Ok(())
    }

    fn hear(&mut self, _limit: Duration) -> Result<Option<FromGuest>, GuestError> {
        match self.steps.pop_front() {
            Some(Step::Say(message)) => Ok(Some(message)),
            Some(Step::Fail(error)) => Err(error()),
            None => Ok(None),
        }
    }

    fn receive(&mut self, wait: &Wait) -> Result<FromGuest, GuestError> {
        match self.steps.pop_front() {
            Some(Step::Say(message)) => Ok(message),
            Some(Step::Fail(error)) => Err(error()),
            // A silent guest: the wait passes at once.
            None => Err(match wait.check() {
                Ok(()) => {
                    GuestError::Expired { what: "a silent guest".to_owned(), limit: OFF_LIMIT }
                }
                Err(error) => error,
            }),
        }
    }

    fn kill(&mut self) -> Result<(), GuestError> {
        self.log.borrow_mut().push("killed".to_owned());
        Ok(())
    }

    fn wait_off(&mut self, _wait: &Wait) -> Result<(), GuestError> {
        Ok(())
    }

    fn console(&self) -> String {
        "a console line".to_owned()
    }
}

impl Drop for FakeGuest {
    fn drop(&mut self) {
        self.log.borrow_mut().push("guest dropped".to_owned());
    }
}

/// Starts guests out of scripts, one after the other.
struct Scripts {
    scripts: VecDeque<Vec<Step>>,
    log: Log,
}

impl Starter for Scripts {
    fn start(
        &mut self,
        _number: u32,
        linux: Linux,
        _devices: &Devices,
        _dir: PrivateDir,
    ) -> Result<Box<dyn Guest>, GuestError> {
        if linux != Linux::Newest {
            self.log.borrow_mut().push(format!("started {linux:?}"));
        }
        let mut steps: VecDeque<Step> = self.scripts.pop_front().expect("a script left").into();
        // One without a script hangs while booting.
        if !steps.is_empty() {
            let hello = FromGuest::Hello { kernel: "7.3".to_owned(), cpus: 2 };
            steps.push_front(Step::Say(hello));
            // As about a module that does not load.
            steps.push_front(Step::Say(FromGuest::Note { text: "a module".to_owned() }));
        }
        Ok(Box::new(FakeGuest { steps, log: Rc::clone(&self.log) }))
    }
}

/// A server whose guests do `step` more descriptors and bytes each time that it is asked.
struct FakeServer {
    step: u64,
    asked: RefCell<u64>,
    records: RefCell<VecDeque<Vec<u32>>>,
    still_held: bool,
    /// Groups of page requests that it drops when a guest is killed.
    unanswered: u64,
    log: Log,
}

impl FakeServer {
    fn page_requests(&self) -> Vec<(&'static str, u64)> {
        let log = self.log.borrow();
        let times = |what: &str| log.iter().filter(|entry| *entry == what).count() as u64;
        let (storms, killed) = (times("run endless"), times("killed"));
        if storms == 0 {
            return Vec::new();
        }
        // Each descriptor that waits has asked for two groups.
        let waiting = WAITING * (storms - killed);
        vec![
            (PAGE_REQUESTS_OUTSTANDING, 2 * waiting),
            (DESCRIPTORS_BLOCKED, waiting),
            (PAGE_REQUESTS_FORGOTTEN, self.unanswered * killed),
        ]
    }
}

impl LabServer for FakeServer {
    fn add_guest(
        &mut self,
        _dir: &Path,
        _config: GuestConfig,
    ) -> Result<GuestDevices, ServerError> {
        Ok(GuestDevices { guest: GuestId(1), devices: Devices::default() })
    }

    fn wait_gone(&mut self, _guest: GuestId, limit: Duration) -> Result<Duration, ServerError> {
        self.log.borrow_mut().push("waited until gone".to_owned());
        if self.still_held {
            return Err(ServerError::StillHeld { what: "two domains".to_owned(), after: limit });
        }
        Ok(Duration::from_millis(3))
    }

    fn counters(&self, _guest: GuestId) -> Vec<(&'static str, u64)> {
        let mut asked = self.asked.borrow_mut();
        let count = *asked * self.step;
        *asked += 1;
        let mut counters = self.page_requests();
        counters.extend([(counts::DESCRIPTORS, count), (counts::BYTES, count)]);
        counters
    }

    /// Each time that it is asked, the next list.
    fn pasids(&self, _guest: GuestId) -> Result<PasidRecord, ServerError> {
        let live = self.records.borrow_mut().pop_front();
        Ok(PasidRecord { live: live.unwrap_or_default(), ..PasidRecord::default() })
    }

    fn space(&self) -> PasidSpace {
        PasidSpace::default()
    }

    fn encoded_calls(&self) -> Option<EncodedCalls> {
        None
    }

    fn inject(&mut self, _: GuestId, injection: Injection) -> Result<(), ServerError> {
        Err(ServerError::CannotInject(injection))
    }

    fn clear_injections(&mut self, _: GuestId) -> Result<(), ServerError> {
        Ok(())
    }

    fn sync(
        &mut self,
        _guest: GuestId,
        point: &str,
        _values: &BTreeMap<String, u64>,
    ) -> Vec<Check> {
        let check = Check { check: point.to_owned(), ok: point != "bad", detail: String::new() };
        vec![check]
    }
}

struct Ran {
    report: Report,
    log: Vec<String>,
    stopped: bool,
}

fn run(names: &[&str], still_held: bool, scripts: Vec<Vec<Step>>) -> Ran {
    let guests_own = Wishes { table: Some(PasidTable::Guest), ..Wishes::default() };
    run_with(guests_own, names, still_held, scripts)
}

fn run_with(wishes: Wishes, names: &[&str], still_held: bool, scripts: Vec<Vec<Step>>) -> Ran {
    run_waiting(2 * WAITING, wishes, names, still_held, scripts)
}

fn run_waiting(
    unanswered: u64,
    wishes: Wishes,
    names: &[&str],
    still_held: bool,
    scripts: Vec<Vec<Step>>,
) -> Ran {
    let log = Log::default();
    let mut server = FakeServer {
        step: 100,
        asked: RefCell::default(),
        records: RefCell::new([vec![3, 4], vec![3, 5]].into()),
        still_held,
        unanswered,
        log: Rc::clone(&log),
    };
    let mut starter = Scripts { scripts: scripts.into(), log: Rc::clone(&log) };
    let mut report = Report::default();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut runner = Runner {
        server: &mut server,
        starter: &mut starter,
        screen: &Screen::none(),
        report: &mut report,
        guests: 0,
    };
    let stopped = runner.run(&select(&names, wishes).unwrap()).is_err();
    assert!(starter.scripts.is_empty(), "fewer guests than scripts");
    let log = log.borrow().clone();
    Ran { report, log, stopped }
}

impl Ran {
    fn failures(&self) -> Vec<(&str, &str, &str)> {
        let failed = self.report.records.iter().filter(|record| !record.ok);
        failed.map(|record| (&*record.scenario, &*record.check, &*record.detail)).collect()
    }
}

fn check(ok: bool) -> Step {
    Step::Say(FromGuest::Check { check: "a check".to_owned(), ok, detail: String::new() })
}

fn point(name: &str) -> Step {
    Step::Say(FromGuest::Sync { point: name.to_owned(), values: BTreeMap::new() })
}

fn holds(pasids: &[u32]) -> Step {
    Step::Say(FromGuest::Holds { refused: false, pasids: pasids.to_vec() })
}

fn done(scenario: &str) -> Step {
    Step::Say(FromGuest::Done { scenario: scenario.to_owned() })
}

/// The guest's account; the pretended server counts 100 between a scenario's beginning and this.
fn counted(descriptors: u64) -> Step {
    let values = BTreeMap::from([(counts::DESCRIPTORS.to_owned(), descriptors)]);
    Step::Say(FromGuest::Counts { values })
}

fn good(scenario: &str) -> Vec<Step> {
    vec![check(true), counted(100), done(scenario)]
}

#[test]
fn scenarios_share_a_guest_that_is_then_switched_off() {
    let mut script = good("sva-copy");
    script.push(point("steady"));
    script.extend(good("rebind"));
    let run = run(&["sva-copy", "rebind"], false, vec![script]);
    assert_eq!(run.failures(), []);
    assert!(run.report.ok());
    let expected = [
        "run sva-copy",
        "run rebind",
        "continue true",
        "power off",
        "guest dropped",
        "waited until gone",
    ];
    assert_eq!(run.log, expected);
    assert!(run.report.counters[counts::DESCRIPTORS] > 0);
}

#[test]
fn a_failed_check_fails_the_run_and_the_guest_goes_on() {
    let mut script = vec![check(false), point("bad"), counted(100), done("sva-copy")];
    script.extend(good("rebind"));
    let run = run(&["sva-copy", "rebind"], false, vec![script]);
    assert_eq!(run.failures(), [("sva-copy", "a check", ""), ("sva-copy", "bad", "")]);
    assert!(run.log.contains(&"continue false".to_owned()));
    assert!(run.log.contains(&"run rebind".to_owned()));
}

#[test]
fn counts_that_differ_or_are_missing_are_failures() {
    let script = vec![check(true), counted(99), done("sva-copy")];
    let differing = run(&["sva-copy"], false, vec![script]);
    let expected =
        ("sva-copy", "guest's and server's counts agree", "descriptors: guest 99, server 100");
    assert_eq!(differing.failures(), [expected]);
    let missing = run(&["sva-copy"], false, vec![vec![check(true), done("sva-copy")]]);
    assert_eq!(missing.failures()[0].1, "the guest says what it counted");
    let unknown = BTreeMap::from([("storks".to_owned(), 1)]);
    let script =
        vec![check(true), Step::Say(FromGuest::Counts { values: unknown }), done("sva-copy")];
    let unknown = run(&["sva-copy"], false, vec![script]);
    assert_eq!(unknown.failures()[0].2, "storks: guest 1, server none");
}

#[test]
fn a_scenario_without_a_check_is_a_failure() {
    let run = run(&["sva-copy"], false, vec![vec![counted(100), done("sva-copy")]]);
    assert_eq!(run.failures()[0].1, "the scenario asserts something");
}

#[test]
fn after_a_dead_guest_the_next_scenario_gets_a_new_one() {
    let dying = vec![check(true), Step::Fail(|| GuestError::Fatal("out of memory".to_owned()))];
    let run = run(&["sva-copy", "rebind"], false, vec![dying, good("rebind")]);
    let why = "the guest program gave up: out of memory";
    assert_eq!(run.failures(), [("sva-copy", "the scenario runs to its end", why)]);
    assert_eq!(run.log.iter().filter(|entry| *entry == "guest dropped").count(), 2);
}

#[test]
fn a_guest_that_hangs_while_booting_is_booted_again_once() {
    let once = run(&["sva-copy"], false, vec![vec![], good("sva-copy")]);
    assert_eq!(once.failures(), []);
    assert_eq!(once.report.boots_repeated, 1);
    assert!(once.report.verdict().contains("1 guests hung while booting"));

    let twice = run(&["sva-copy"], false, vec![vec![], vec![]]);
    assert_eq!(twice.failures()[0].1, "the guest boots");
    assert!(!twice.report.ok());
}

#[test]
fn messages_out_of_turn_end_the_scenario() {
    for (step, name) in [(done("rebind"), "Done"), (counted(100), "Counts")] {
        let run = run(&["sva-copy"], false, vec![vec![check(true), counted(100), step]]);
        let why = format!("the guest sent {name}, which has no place here");
        assert_eq!(run.failures(), [("sva-copy", "the scenario runs to its end", &*why)]);
    }
}

#[test]
fn an_endless_scenario_ends() {
    let script =
        (0..=MAX_MESSAGES).map(|_| Step::Say(FromGuest::Note { text: "and".to_owned() })).collect();
    let run = run(&["sva-copy"], false, vec![script]);
    assert!(run.failures()[0].2.contains("more than 10000 messages"));
}

#[test]
fn kill_takes_two_guests_and_asks_for_what_is_left() {
    let run = run(&["kill"], false, vec![vec![point(sync::STORM)], good("sva-copy")]);
    assert_eq!(run.failures(), []);
    let expected = [
        "run endless",
        "continue true",
        "killed",
        "waited until gone",
        "guest dropped",
        "run sva-copy",
        "power off",
        "guest dropped",
        "waited until gone",
    ];
    assert_eq!(run.log, expected);
    let checks: Vec<_> = run.report.records.iter().map(|record| &*record.check).collect();
    assert!(checks.contains(&AFTER_KILL));
    assert!(checks.contains(&"second guest: a check"));
    let ended =
        run.report.records.iter().find(|record| record.check.contains("in flight")).unwrap();
    let detail = "8 descriptors waited; 16 groups dropped, 0 answered by its unit, 0 by the host, 0 by the time-out; 0 left";
    assert_eq!(ended.detail, detail);
}

#[test]
fn a_guest_that_waited_for_nothing_was_killed_too_late() {
    let scripts = vec![vec![point(sync::STORM)], good("sva-copy")];
    let guests_own = Wishes { table: Some(PasidTable::Guest), ..Wishes::default() };
    let run = run_waiting(0, guests_own, &["kill"], false, scripts);
    let checks: Vec<_> = run.failures().into_iter().map(|(_, check, _)| check).collect();
    assert_eq!(checks, ["page requests that were in flight end with it"]);
}

#[test]
fn each_owner_of_the_tables_has_a_guest_of_its_own() {
    let (mut own, mut hosts) = (good("sva-copy"), good("sva-copy"));
    own.push(point(sync::STORM));
    hosts.push(point(sync::STORM));
    // The guest that others have left is the one that is killed.
    let scripts = vec![own, good("sva-copy"), hosts, good("sva-copy")];
    let run = run_with(Wishes::default(), &["sva-copy", "kill"], false, scripts);
    assert_eq!(run.failures(), []);
    assert_eq!(run.log.iter().filter(|entry| *entry == "killed").count(), 2);
    let mut names: Vec<_> = run.report.records.iter().map(|record| &*record.scenario).collect();
    names.retain(|name| ![BOOT, POWER_OFF].contains(name));
    names.dedup();
    assert_eq!(names, ["sva-copy", "kill", "sva-copy/host", "kill/host"]);
}

#[test]
fn a_storm_that_never_begins_says_why() {
    let script = vec![check(false), done("endless")];
    let run = run(&["kill"], false, vec![script]);
    assert_eq!(run.failures()[0], ("kill", "a check", ""));
    assert_eq!(run.failures()[1].2, "the guest sent Done, which has no place here");
}

#[test]
fn what_the_server_keeps_of_a_dead_guest_is_a_failure() {
    let kept = run(&["sva-copy"], true, vec![good("sva-copy")]);
    let why = "after 10s the server still held two domains";
    assert_eq!(kept.failures(), [("power-off", "the server frees all of the guest", why)]);
    let killed = run(&["kill"], true, vec![vec![point(sync::STORM)]]);
    assert_eq!(killed.failures(), [("kill", "the scenario runs to its end", why)]);
}

#[test]
fn a_stop_ends_the_run_without_a_failure() {
    let stopping = vec![check(true), Step::Fail(|| Stopped.into())];
    let run = run(&["sva-copy", "rebind"], false, vec![stopping]);
    assert!(run.stopped);
    assert_eq!(run.failures(), []);
    assert_eq!(run.log.last().unwrap(), "waited until gone");
}

#[test]
fn a_scenario_of_another_kind_gets_a_guest_of_its_own() {
    let vcmd =
        vec![check(true), holds(&[3, 4]), counted(100), holds(&[3, 5]), holds(&[]), done("vcmd")];
    let run = run(&["rebind", "vcmd"], false, vec![good("rebind"), vcmd]);
    assert_eq!(run.failures(), []);
    let started = run.log.iter().position(|entry| entry == "started V6_1").unwrap();
    assert_eq!(run.log[started - 1], "waited until gone");
    let books = run.report.records.iter().find(|record| record.check.contains("books")).unwrap();
    assert_eq!(books.detail, "3 times, at most 2 numbers; at the end 0 live, 0 parked");
}

#[test]
fn numbers_that_are_not_on_the_hosts_record_are_a_failure() {
    let vcmd = vec![check(true), holds(&[3]), holds(&[3, 5]), counted(100), done("vcmd")];
    let run = run(&["vcmd"], false, vec![vcmd]);
    assert!(run.log.contains(&"continue false".to_owned()));
    assert!(run.log.contains(&"continue true".to_owned()));
    let checks: Vec<_> = run.failures().into_iter().map(|(_, check, _)| check).collect();
    // And what is left at the end.
    let expected =
        ["the host's record is what the guest holds", "host's books balance with the guest's"];
    assert_eq!(checks, expected);
}

#[test]
fn what_scenarios_without_memory_ask_of_the_server_is_a_check() {
    let values = BTreeMap::from([(scenario::DROP_RESPONSE.to_owned(), 3)]);
    let inject = Step::Say(FromGuest::Sync { point: sync::INJECT.to_owned(), values });
    let mut script = vec![inject, point(sync::INJECT_NOTHING), point(sync::SETTLED)];
    script.extend(good("drop-response"));
    let run = run(&["drop-response"], false, vec![script]);
    let failures = run.failures().into_iter();
    // The server here counts on whenever it is asked, and was once more.
    let failures = failures.filter(|(_, check, _)| !check.contains("counts agree"));
    let details: Vec<_> = failures.map(|(_, _, detail)| detail).collect();
    let expected = [
        "the server cannot inject drop-response=3",
        "the server does not count page_requests_outstanding",
    ];
    assert_eq!(details, expected);
    let answers = run.log.iter().filter(|line| line.starts_with("continue"));
    assert_eq!(answers.collect::<Vec<_>>(), ["continue false", "continue true", "continue false"]);
}
