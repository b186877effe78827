//! One of several guests that run at the same time.

use super::super::play::{Heard, Playing};
use super::*;

/// What a guest is answered at the end of a round.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    /// Another round.
    On,
    /// Nothing yet: it stands still.
    Hold,
    /// To go on to what comes after its rounds.
    Enough,
}

/// A guest with the scenario that it runs.
pub(super) struct Tenant {
    pub(super) booted: Booted,
    pub(super) name: &'static str,
    state: State,
    go: Go,
    /// Rounds that it has done.
    rounds: u64,
    /// The end of the last one, and the longest time between two.
    last: Instant,
    longest: Duration,
    /// The server's counters when it began.
    before: BTreeMap<&'static str, u64>,
}

enum State {
    Idle,
    /// It runs, and waits at this point if there is one.
    Plays(Box<Playing>, Option<String>),
    Over,
    Killed,
}

impl Tenant {
    pub(super) fn new(booted: Booted, name: &'static str) -> Self {
        Self {
            booted,
            name,
            state: State::Idle,
            go: Go::On,
            rounds: 0,
            last: Instant::now(),
            longest: Duration::ZERO,
            before: BTreeMap::new(),
        }
    }

    /// Has it run a scenario of the guest program's.
    pub(super) fn begin(
        &mut self,
        runner: &mut Runner<'_>,
        run: &'static str,
    ) -> Result<(), Trouble> {
        let prefix = format!("{}: ", self.name);
        self.before = runner.counters(self.booted.id);
        let playing = runner.begin(&mut self.booted, run, &prefix)?;
        self.state = State::Plays(Box::new(playing), None);
        self.last = Instant::now();
        Ok(())
    }

    /// Takes the next thing that it says, if it says something soon.
    pub(super) fn look(&mut self, runner: &mut Runner<'_>, scenario: &str) -> Result<(), Trouble> {
        let State::Plays(playing, waits) = &mut self.state else { return Ok(()) };
        let Some(message) = self.booted.guest.hear(LOOK)? else { return Ok(()) };
        match runner.take(scenario, &mut self.booted, playing, message)? {
            Heard::Nothing => {}
            Heard::Waits { point, .. } if [sync::AGAIN, sync::STRANGERS].contains(&&*point) => {
                let at_end_of_round = point == sync::AGAIN;
                *waits = Some(point);
                if at_end_of_round {
                    self.end_round()?;
                }
            }
            Heard::Waits { point, values } => {
                runner.carry_out(scenario, &mut self.booted, playing, &point, &values)?;
            }
            Heard::Over => self.state = State::Over,
        }
        Ok(())
    }

    fn end_round(&mut self) -> Result<(), Trouble> {
        self.rounds += 1;
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
        self.let_go(self.go)
    }

    /// Says how it goes on at the end of its round, which may be now.
    pub(super) fn let_go(&mut self, go: Go) -> Result<(), Trouble> {
        self.go = go;
        if go == Go::Hold || !self.waits_at(sync::AGAIN) {
            return Ok(());
        }
        if go == Go::Enough {
            // Once: what comes after may have rounds, too.
            self.go = Go::On;
        }
        self.answer(&ToGuest::Continue { ok: go == Go::On })
    }

    /// Has it stand still at the end of its round.
    pub(super) fn hold(&mut self) {
        self.go = Go::Hold;
    }

    /// Answers what it waits for.
    pub(super) fn answer(&mut self, answer: &ToGuest) -> Result<(), Trouble> {
        if let State::Plays(_, waits) = &mut self.state {
            *waits = None;
        }
        Ok(self.booted.guest.send(answer)?)
    }

    pub(super) fn kill(&mut self) -> Result<(), Trouble> {
        self.state = State::Killed;
        Ok(self.booted.guest.kill()?)
    }

    pub(super) fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Whether it waits for an answer.
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, State::Plays(_, Some(_)))
    }

    /// Whether it waits at this point.
    pub(super) fn waits_at(&self, wanted: &str) -> bool {
        matches!(&self.state, State::Plays(_, Some(point)) if point == wanted)
    }

    /// Whether there is nothing more to come.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over | State::Killed)
    }

    pub(super) fn is_killed(&self) -> bool {
        matches!(self.state, State::Killed)
    }

    /// Whether its devices met no error, whatever became of the other guests; `now`: the server's counters.
    pub(super) fn undisturbed(&self, now: &BTreeMap<&'static str, u64>) -> Check {
        let grown = |name: &str| since(&self.before, now, name);
        let errors = ["faults", "faults_lost", "ungranted", "software_errors", "protocol_errors"];
        let bad = errors.iter().filter(|name| grown(name) != Some(0)).copied();
        let bad: Vec<_> = bad.collect();
        let verdict = match bad.as_slice() {
            [] => "no fault".to_owned(),
            bad => format!("but {}", bad.join(", ")),
        };
        let bytes = grown(counts::BYTES).unwrap_or(0);
        let detail = format!(
            "{} rounds, {bytes} bytes, at most {:.1} s between rounds, {verdict}",
            self.rounds,
            self.longest.as_secs_f64(),
        );
        let check = "copies went on throughout, without a fault".to_owned();
        Check { check, ok: bad.is_empty() && bytes > 0, detail }
    }
}
