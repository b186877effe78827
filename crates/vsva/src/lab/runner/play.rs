//! A scenario of the guest program's, from the lab's message to run it to its account.

use super::super::pasids::Comparisons;
use super::*;

/// A scenario that a guest runs, and what it said so far.
pub(super) struct Playing {
    run: &'static str,
    /// Begins every check's text.
    prefix: String,
    /// The server's counters before it.
    before: BTreeMap<&'static str, u64>,
    failed_before: usize,
    messages: usize,
    checks: usize,
    counted: bool,
    comparisons: Comparisons,
}

/// What a message of a guest's leaves to be done.
pub(super) enum Heard {
    /// Nothing.
    Nothing,
    /// The guest waits at this point.
    Waits { point: String, values: BTreeMap<String, u64> },
    /// The scenario is over.
    Over,
}

impl Runner<'_> {
    /// Runs the guest's scenario `part` for the lab's `run`; `prefix` begins every check's text.
    pub(super) fn play(
        &mut self,
        booted: &mut Booted,
        run: &Run,
        part: &'static str,
        prefix: &str,
    ) -> Result<(), Trouble> {
        let mut playing = self.begin(booted, part, prefix)?;
        let wait = Wait::new(format!("the end of scenario {part}"), run.scenario.limit);
        loop {
            let message = booted.guest.receive(&wait)?;
            match self.take(&run.name, booted, &mut playing, message)? {
                Heard::Nothing => {}
                Heard::Waits { point, values } => {
                    self.carry_out(&run.name, booted, &playing, &point, &values)?;
                }
                Heard::Over => return Ok(()),
            }
        }
    }

    /// Has the guest run a scenario of its.
    pub(super) fn begin(
        &mut self,
        booted: &mut Booted,
        run: &'static str,
        prefix: &str,
    ) -> Result<Playing, Trouble> {
        let before = self.counters(booted.id);
        booted.guest.send(&ToGuest::Run { scenario: run.to_owned(), seed: self.report.seed })?;
        Ok(Playing {
            run,
            prefix: prefix.to_owned(),
            before,
            failed_before: self.report.failed(),
            messages: 0,
            checks: 0,
            counted: false,
            comparisons: Comparisons::default(),
        })
    }

    /// Takes a message of a guest that plays; `scenario` is the lab's.
    pub(super) fn take(
        &mut self,
        scenario: &str,
        booted: &mut Booted,
        playing: &mut Playing,
        message: FromGuest,
    ) -> Result<Heard, Trouble> {
        playing.messages += 1;
        if playing.messages > MAX_MESSAGES {
            return Err(GuestError::Endless { limit: MAX_MESSAGES }.into());
        }
        match message {
            FromGuest::Check { check, ok, detail } => {
                playing.checks += 1;
                let check = format!("{}{check}", playing.prefix);
                self.record(scenario, Check { check, ok, detail });
            }
            FromGuest::Note { text } => self.note(&format!("{}{text}", playing.prefix)),
            FromGuest::Sync { point, values } => return Ok(Heard::Waits { point, values }),
            FromGuest::Holds { refused, pasids } => {
                let ok = self.compare(scenario, booted, playing, refused, &pasids)?;
                booted.guest.send(&ToGuest::Continue { ok })?;
            }
            FromGuest::Counts { values } if !playing.counted => {
                playing.counted = true;
                let mut check = agreement(&values, &playing.before, &self.counters(booted.id));
                check.check.insert_str(0, &playing.prefix);
                self.record(scenario, check);
            }
            FromGuest::Done { scenario: done } if done == playing.run => {
                self.conclude(scenario, playing);
                return Ok(Heard::Over);
            }
            other => return Err(GuestError::Unexpected(name_of(&other)).into()),
        }
        Ok(Heard::Nothing)
    }

    /// Has the server do what the point asks for at which a guest waits, and lets the guest go on.
    pub(super) fn carry_out(
        &mut self,
        scenario: &str,
        booted: &mut Booted,
        playing: &Playing,
        point: &str,
        values: &BTreeMap<String, u64>,
    ) -> Result<(), Trouble> {
        let ok = self.sync((scenario, &playing.prefix), booted.id, point, values);
        Ok(booted.guest.send(&ToGuest::Continue { ok })?)
    }

    /// Compares what a guest says that it holds with the host's record; only what differs is a check of its own.
    fn compare(
        &mut self,
        scenario: &str,
        booted: &Booted,
        playing: &mut Playing,
        refused: bool,
        held: &[u32],
    ) -> Result<bool, ServerError> {
        let record = self.server.pasids(booted.id)?;
        let quota = booted.kind.config.quota;
        let compared = playing.comparisons.compare(held, refused, quota, record);
        let ok = compared.is_ok();
        if let Err(detail) = compared {
            let check = format!("{}the host's record is what the guest holds", playing.prefix);
            self.record(scenario, Check { check, ok, detail });
        }
        Ok(ok)
    }

    fn conclude(&mut self, scenario: &str, playing: &Playing) {
        if let Some(mut check) = playing.comparisons.check() {
            check.check.insert_str(0, &playing.prefix);
            self.record(scenario, check);
        }
        self.require(scenario, playing.checks > 0, "the scenario asserts something");
        // One that broke off has said so, and has no account to give.
        let counted = playing.counted || self.report.failed() > playing.failed_before;
        self.require(scenario, counted, "the guest says what it counted");
    }
}
