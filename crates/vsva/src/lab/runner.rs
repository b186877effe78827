//! Runs scenarios in guests and records what comes out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use guest_protocol::{counts, scenario, sync, FromGuest, ToGuest};

use super::machine::{file_error, Guest, GuestError, Wait, BOOT_LIMIT};
use super::report::Report;
use super::scenario::{Kind, Plan, Run};
use super::server::{Check, GuestId, LabServer, ServerError, AFTER_KILL};
use crate::assets::Linux;
use crate::private::PrivateDir;
use crate::qemu::Devices;
use crate::stop::Stopped;
use crate::term::{Mark, Screen};

/// How often a guest is booted until it says hello. Under software emulation Linux was seen to hang early in its boot, before
/// it knows of our devices, when the host is overloaded. It is said when that happens; a second time in a row is a failure.
const BOOT_ATTEMPTS: u32 = 2;

/// The longest that a guest may take to switch itself off.
const OFF_LIMIT: Duration = Duration::from_secs(30);

/// The longest that the server may hold something of a guest that has ended.
const GONE_LIMIT: Duration = Duration::from_secs(10);

/// The most messages that one scenario may send: a guest in a loop must not fill memory.
const MAX_MESSAGES: usize = 10_000;

/// The phases of the lab's own in results, beside the scenarios' names.
const BOOT: &str = "boot";
const POWER_OFF: &str = "power-off";

mod injecting;
mod killing;
mod play;
mod tenants;

/// Starts guests; the tests' one starts pretended ones.
pub(super) trait Starter {
    /// Starts guest number `number` of this run with `linux` and `devices`, whose sockets are in `dir`.
    fn start(
        &mut self,
        number: u32,
        linux: Linux,
        devices: &Devices,
        dir: PrivateDir,
    ) -> Result<Box<dyn Guest>, GuestError>;
}

/// A guest that said hello.
struct Booted {
    guest: Box<dyn Guest>,
    id: GuestId,
    kind: Kind,
}

/// A guest that was started.
struct Launched {
    booted: Booted,
    number: u32,
    begun: Instant,
    /// For its hello.
    wait: Wait,
}

/// Why there is no guest, and the end of its console.
type Unborn = (Trouble, String);

/// Why a scenario cannot go on.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// A run of the lab under way.
pub(super) struct Runner<'a> {
    pub(super) server: &'a mut dyn LabServer,
    pub(super) starter: &'a mut dyn Starter,
    pub(super) screen: &'a Screen,
    pub(super) report: &'a mut Report,
    pub(super) guests: u32,
}

impl Runner<'_> {
    /// Runs `runs` in order. What goes wrong in one is a failed check of it, and the next one gets a new guest.
    ///
    /// # Errors
    /// [`Stopped`] when the user asked to stop; everything is then given back already.
    pub(super) fn run(&mut self, runs: &[Run]) -> Result<(), Stopped> {
        let mut shared = None;
        for run in runs {
            self.screen.line(&format!("{}: {}", run.name, run.scenario.shows));
            match run.scenario.plan {
                Plan::Shared => self.in_shared_guest(run, &mut shared)?,
                Plan::KillAndReplace => self.kill_and_replace(run, &mut shared)?,
                Plan::Tenants(tenants) => {
                    self.retire(shared.take())?;
                    self.tenants(run, &tenants)?;
                }
                Plan::Twins => {
                    self.retire(shared.take())?;
                    self.twins(run)?;
                }
            }
        }
        self.retire(shared)
    }

    fn in_shared_guest(&mut self, run: &Run, shared: &mut Option<Booted>) -> Result<(), Stopped> {
        let Some(mut booted) = self.shared_or_new(run, shared)? else { return Ok(()) };
        match self.play(&mut booted, run, run.scenario.name, "") {
            Ok(()) => *shared = Some(booted),
            Err(trouble) => self.abandon(&run.name, booted, &trouble)?,
        }
        Ok(())
    }

    /// The guest that others have left, if it is of the kind that is wanted, or else a new one; `None` if it does not boot.
    fn shared_or_new(
        &mut self,
        run: &Run,
        shared: &mut Option<Booted>,
    ) -> Result<Option<Booted>, Stopped> {
        match shared.take() {
            Some(booted) if booted.kind == run.kind() => Ok(Some(booted)),
            other => {
                self.retire(other)?;
                self.boot(run)
            }
        }
    }

    /// Boots one more guest and waits for its hello; `None` after a failure, which is then recorded for `run`.
    fn boot(&mut self, run: &Run) -> Result<Option<Booted>, Stopped> {
        let launched = self.launch(run.kind());
        self.welcome(&run.name, run.kind(), launched)
    }

    /// Waits for the hello of a guest that was launched as `kind`; launches it again if it hangs while booting. `None`
    /// after a failure, which is then recorded for `scenario`.
    fn welcome(
        &mut self,
        scenario: &str,
        kind: Kind,
        mut launched: Result<Launched, Unborn>,
    ) -> Result<Option<Booted>, Stopped> {
        for attempt in 1.. {
            match launched.and_then(|launched| self.hear_hello(launched)) {
                Ok(booted) => return Ok(Some(booted)),
                Err((Trouble::Guest(GuestError::Expired { .. }), console))
                    if attempt < BOOT_ATTEMPTS =>
                {
                    let last = console.lines().last().unwrap_or_default().to_owned();
                    self.note(&format!(
                        "the guest hangs while booting, and is booted again: {last}"
                    ));
                    self.report.boots_repeated += 1;
                    launched = self.launch(kind);
                }
                Err((trouble, console)) => {
                    self.fail(scenario, "the guest boots", &trouble, &console)?;
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Starts one more guest.
    fn launch(&mut self, kind: Kind) -> Result<Launched, Unborn> {
        let begun = Instant::now();
        let unborn = |trouble: Trouble| (trouble, String::new());
        let dir = PrivateDir::new()
            .map_err(file_error(&std::env::temp_dir()))
            .map_err(|error| unborn(error.into()))?;
        let given = self.server.add_guest(dir.path(), kind.config);
        let given = given.map_err(|error| unborn(error.into()))?;
        self.guests += 1;
        let number = self.guests;
        let started = self.starter.start(number, kind.linux, &given.devices, dir);
        let guest = started.map_err(|error| {
            self.account(given.guest);
            unborn(error.into())
        })?;
        let wait = Wait::new("the guest program's hello", BOOT_LIMIT);
        Ok(Launched { booted: Booted { guest, id: given.guest, kind }, number, begun, wait })
    }

    /// Waits for a guest's hello.
    fn hear_hello(&mut self, launched: Launched) -> Result<Booted, Unborn> {
        let Launched { mut booted, number, begun, wait } = launched;
        match self.hello(booted.guest.as_mut(), &wait) {
            Ok((kernel, cpus)) => {
                let seconds = begun.elapsed().as_secs_f64();
                let detail = format!("Linux {kernel}, {cpus} CPUs, {seconds:.1} s");
                let check = format!("guest {number} reaches user space");
                self.record(BOOT, Check { check, ok: true, detail });
                Ok(booted)
            }
            Err(error) => {
                let Booted { guest, id, .. } = booted;
                let console = guest.console();
                drop(guest);
                self.account(id);
                Err((error.into(), console))
            }
        }
    }

    /// Waits for the guest program's hello: its kernel and its processors. Before it the guest may have notes to make.
    fn hello(&self, guest: &mut dyn Guest, wait: &Wait) -> Result<(String, u32), GuestError> {
        for _ in 0..MAX_MESSAGES {
            match guest.receive(wait)? {
                FromGuest::Hello { kernel, cpus } => return Ok((kernel, cpus)),
                FromGuest::Note { text } => self.note(&text),
                other => return Err(GuestError::Unexpected(name_of(&other))),
            }
        }
        Err(GuestError::Endless { limit: MAX_MESSAGES })
    }

    /// Has the server do what a point asks for; `prefix` begins every check's text.
    fn sync(
        &mut self,
        (scenario, prefix): (&str, &str),
        guest: GuestId,
        point: &str,
        values: &BTreeMap<String, u64>,
    ) -> bool {
        let mut all = true;
        let checks = match point {
            sync::INJECT | sync::INJECT_NOTHING => {
                vec![injecting::inject(self.server, guest, values)]
            }
            sync::SETTLED => injecting::settled(self.server, guest),
            _ => self.server.sync(guest, point, values),
        };
        for mut check in checks {
            all &= check.ok;
            check.check.insert_str(0, prefix);
            self.record(scenario, check);
        }
        all
    }

    /// Takes what a guest may say at any time, and gives back the rest.
    fn aside(&mut self, run: &Run, message: FromGuest) -> Option<FromGuest> {
        match message {
            FromGuest::Note { text } => self.note(&text),
            FromGuest::Check { check, ok, detail } => {
                self.record(&run.name, Check { check, ok, detail });
            }
            other => return Some(other),
        }
        None
    }

    /// Ends a guest in the orderly way and checks that the server then holds nothing of it.
    fn retire(&mut self, booted: Option<Booted>) -> Result<(), Stopped> {
        let Some(mut booted) = booted else { return Ok(()) };
        let off = Wait::new("the guest's switching itself off", OFF_LIMIT);
        let ended =
            booted.guest.send(&ToGuest::PowerOff).and_then(|()| booted.guest.wait_off(&off));
        if let Err(error) = ended {
            return self.abandon(POWER_OFF, booted, &error.into());
        }
        let Booted { guest, id, .. } = booted;
        drop(guest);
        match self.server.wait_gone(id, GONE_LIMIT) {
            Ok(took) => {
                let check = "the server frees all of the guest".to_owned();
                let detail = format!("in {:.1} ms", took.as_secs_f64() * 1e3);
                self.record(POWER_OFF, Check { check, ok: true, detail });
            }
            Err(error) => {
                self.fail(POWER_OFF, "the server frees all of the guest", &error.into(), "")?;
            }
        }
        self.add_counters(id);
        Ok(())
    }

    /// Records what a guest failed with, shows the end of its console, and ends it.
    fn abandon(
        &mut self,
        scenario: &str,
        booted: Booted,
        trouble: &Trouble,
    ) -> Result<(), Stopped> {
        let Booted { guest, id, .. } = booted;
        let console = guest.console();
        drop(guest);
        self.account(id);
        self.fail(scenario, "the scenario runs to its end", trouble, &console)
    }

    /// Lets the server finish with a guest that has ended unhappily.
    fn account(&mut self, guest: GuestId) {
        if let Err(error) = self.server.wait_gone(guest, GONE_LIMIT) {
            self.note(&error.to_string());
        }
        self.add_counters(guest);
    }

    fn fail(
        &mut self,
        scenario: &str,
        check: &str,
        trouble: &Trouble,
        console: &str,
    ) -> Result<(), Stopped> {
        if let Trouble::Guest(GuestError::Stopped(stopped)) = trouble {
            return Err(*stopped);
        }
        let detail = trouble.to_string();
        self.record(scenario, Check { check: check.to_owned(), ok: false, detail });
        if !console.is_empty() {
            self.screen.line("       the end of the guest's console:");
            for line in console.lines() {
                self.screen.line(&format!("       | {line}"));
            }
        }
        Ok(())
    }

    /// Records `check` only if it does not hold: what goes without saying needs no line.
    fn require(&mut self, scenario: &str, ok: bool, check: &str) {
        if !ok {
            let detail = "it did not".to_owned();
            self.record(scenario, Check { check: check.to_owned(), ok, detail });
        }
    }

    fn record(&mut self, scenario: &str, check: Check) {
        self.report.record(self.screen, scenario, check);
    }

    fn note(&self, text: &str) {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        self.screen.mark(Mark::Note, &text);
    }

    fn counters(&self, guest: GuestId) -> BTreeMap<&'static str, u64> {
        self.server.counters(guest).into_iter().collect()
    }

    fn add_counters(&mut self, guest: GuestId) {
        for (name, value) in self.server.counters(guest) {
            let sum = self.report.counters.entry(name).or_default();
            *sum = sum.saturating_add(value);
        }
    }
}

/// How much the counter `name` grew, if the server has it.
fn since(
    before: &BTreeMap<&'static str, u64>,
    now: &BTreeMap<&'static str, u64>,
    name: &str,
) -> Option<u64> {
    let now = now.get(name)?;
    Some(now.saturating_sub(before.get(name).copied().unwrap_or(0)))
}

/// Compares the guest's account of a scenario with the server's.
fn agreement(
    guest: &BTreeMap<String, u64>,
    before: &BTreeMap<&'static str, u64>,
    now: &BTreeMap<&'static str, u64>,
) -> Check {
    let mut ok = !guest.is_empty();
    let mut parts = Vec::new();
    for (name, value) in guest {
        let server = since(before, now, name);
        if server == Some(*value) {
            parts.push(format!("{name} {value}"));
        } else {
            ok = false;
            let server = server.map_or("none".to_owned(), |server| server.to_string());
            parts.push(format!("{name}: guest {value}, server {server}"));
        }
    }
    if guest.is_empty() {
        parts.push("the guest counted nothing".to_owned());
    }
    let check = "guest's and server's counts agree".to_owned();
    Check { check, ok, detail: parts.join(", ") }
}

/// A message's name, for saying that it came out of turn.
fn name_of(message: &FromGuest) -> &'static str {
    match message {
        FromGuest::Hello { .. } => "Hello",
        FromGuest::Check { .. } => "Check",
        FromGuest::Note { .. } => "Note",
        FromGuest::Sync { .. } => "Sync",
        FromGuest::Holds { .. } => "Holds",
        FromGuest::Counts { .. } => "Counts",
        FromGuest::Done { .. } => "Done",
        FromGuest::Fatal { .. } => "Fatal",
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
