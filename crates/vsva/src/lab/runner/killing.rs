//! A guest that is killed while it copies and while its devices wait for pages, and the one after it.

use super::*;
use crate::inspect::snapshot::{
    DESCRIPTORS_BLOCKED, PAGE_ANSWERS_AUTOMATIC, PAGE_REQUESTS_FORGOTTEN,
    PAGE_REQUESTS_OUTSTANDING, PAGE_REQUESTS_TIMED_OUT, PAGE_REQUESTS_WITHDRAWN,
};

/// The longest from the beginning of the storm to [`STORM_DESCRIPTORS`].
const STORM_LIMIT: Duration = Duration::from_secs(30);

/// How many descriptors of the storm are done before the guest is killed in the middle of it.
const STORM_DESCRIPTORS: u64 = 200;

/// How often the server's counters are looked at during the storm.
const STORM_LOOK: Duration = Duration::from_millis(50);

/// Descriptors that wait for pages when it is killed, at least: each has several pages to ask for, so not all are
/// through before the kill takes effect.
pub(super) const WAITING: u64 = 8;

/// How often the server's counters are looked at for that.
const WAITING_LOOK: Duration = Duration::from_millis(1);

impl Runner<'_> {
    /// Kills a guest in the middle of its work, and runs a scenario in another one on the same server.
    pub(super) fn kill_and_replace(
        &mut self,
        run: &Run,
        shared: &mut Option<Booted>,
    ) -> Result<(), Stopped> {
        let Some(mut first) = self.shared_or_new(run, shared)? else { return Ok(()) };
        if let Err(trouble) = self.kill_in_storm(&mut first, run) {
            return self.abandon(&run.name, first, &trouble);
        }
        drop(first);
        let Some(mut second) = self.boot(run)? else { return Ok(()) };
        match self.play(&mut second, run, scenario::SVA_COPY, "second guest: ") {
            Ok(()) => *shared = Some(second),
            Err(trouble) => self.abandon(&run.name, second, &trouble)?,
        }
        Ok(())
    }

    fn kill_in_storm(&mut self, booted: &mut Booted, run: &Run) -> Result<(), Trouble> {
        let storm = ToGuest::Run { scenario: scenario::ENDLESS.to_owned(), seed: self.report.seed };
        booted.guest.send(&storm)?;
        let wait = Wait::new("the beginning of the storm", run.scenario.limit);
        let mut begun = false;
        for _ in 0..MAX_MESSAGES {
            let message = booted.guest.receive(&wait)?;
            match self.aside(run, message) {
                None => {}
                Some(FromGuest::Sync { point, .. }) if point == sync::STORM => {
                    begun = true;
                    break;
                }
                Some(other) => return Err(GuestError::Unexpected(name_of(&other)).into()),
            }
        }
        if !begun {
            return Err(GuestError::Endless { limit: MAX_MESSAGES }.into());
        }
        let before = self.counters(booted.id);
        booted.guest.send(&ToGuest::Continue { ok: true })?;
        let (descriptors, bytes) = self.let_it_storm(booted, run, &before)?;
        let alive = self.let_it_wait(booted, run)?;
        booted.guest.kill()?;
        let detail = format!("after {descriptors} descriptors and {bytes} bytes");
        let check = "QEMU is killed in the middle of copies".to_owned();
        self.record(&run.name, Check { check, ok: true, detail });
        let took = self.server.wait_gone(booted.id, GONE_LIMIT)?;
        let check = "the server frees all of the killed guest".to_owned();
        let detail = format!("in {:.1} ms", took.as_secs_f64() * 1e3);
        self.record(&run.name, Check { check, ok: true, detail });
        self.record(&run.name, ended_by_death(&alive, &self.counters(booted.id)));
        self.sync((&run.name, ""), booted.id, AFTER_KILL, &BTreeMap::new());
        self.add_counters(booted.id);
        Ok(())
    }

    /// Waits until the storm has done [`STORM_DESCRIPTORS`], and says how many it did and how many bytes.
    fn let_it_storm(
        &mut self,
        booted: &mut Booted,
        run: &Run,
        before: &BTreeMap<&'static str, u64>,
    ) -> Result<(u64, u64), Trouble> {
        let storm = Wait::new(format!("{STORM_DESCRIPTORS} descriptors of the storm"), STORM_LIMIT);
        for _ in 0..MAX_MESSAGES {
            let now = self.counters(booted.id);
            let done = since(before, &now, counts::DESCRIPTORS).unwrap_or(0);
            if done >= STORM_DESCRIPTORS {
                return Ok((done, since(before, &now, counts::BYTES).unwrap_or(0)));
            }
            storm.check()?;
            match booted.guest.receive(&Wait::new("the storm's next words", STORM_LOOK)) {
                Ok(message) => {
                    if let Some(other) = self.aside(run, message) {
                        return Err(GuestError::Unexpected(name_of(&other)).into());
                    }
                }
                Err(GuestError::Expired { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(GuestError::Endless { limit: MAX_MESSAGES }.into())
    }

    /// Waits for a moment at which the guest's devices wait for pages, and gives what was counted then. Its kernel
    /// answers within a millisecond or so, so the kill must follow at once.
    fn let_it_wait(
        &mut self,
        booted: &mut Booted,
        run: &Run,
    ) -> Result<BTreeMap<&'static str, u64>, Trouble> {
        let wait = Wait::new(format!("{WAITING} descriptors that wait for pages"), STORM_LIMIT);
        loop {
            let now = self.counters(booted.id);
            if of(&now, DESCRIPTORS_BLOCKED) >= WAITING && of(&now, PAGE_REQUESTS_OUTSTANDING) > 0 {
                return Ok(now);
            }
            wait.check()?;
            std::thread::sleep(WAITING_LOOK);
            if let Some(message) = booted.guest.hear(WAITING_LOOK)? {
                if let Some(other) = self.aside(run, message) {
                    return Err(GuestError::Unexpected(name_of(&other)).into());
                }
            }
        }
    }
}

/// Whether groups of page requests were unanswered when the guest died, and ended with it: given back or dropped, and
/// not by a time-out.
fn ended_by_death(
    alive: &BTreeMap<&'static str, u64>,
    dead: &BTreeMap<&'static str, u64>,
) -> Check {
    let ended = |name| since(alive, dead, name).unwrap_or(0);
    let (forgotten, withdrawn) = (ended(PAGE_REQUESTS_FORGOTTEN), ended(PAGE_REQUESTS_WITHDRAWN));
    let (by_unit, timed_out) = (ended(PAGE_ANSWERS_AUTOMATIC), ended(PAGE_REQUESTS_TIMED_OUT));
    let left = of(dead, PAGE_REQUESTS_OUTSTANDING) + of(dead, DESCRIPTORS_BLOCKED);
    Check {
        check: "page requests that were in flight end with it".to_owned(),
        ok: forgotten + withdrawn + by_unit > 0 && timed_out == 0 && left == 0,
        detail: format!(
            "{} descriptors waited; {forgotten} groups dropped, {by_unit} answered by its unit, {withdrawn} by the \
             host, {timed_out} by the time-out; {left} left",
            of(alive, DESCRIPTORS_BLOCKED),
        ),
    }
}

/// A count; zero if the server has none.
fn of(counters: &BTreeMap<&'static str, u64>, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}
