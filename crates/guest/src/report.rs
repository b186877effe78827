//! A scenario's side of its pipe to PID 1: what it found, and where it waits.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use guest_protocol::{counts, decode, encode, sync, FromGuest, Lines, ToGuest};

use crate::failure::{clip, Context, Failure, Outcome};

/// A scenario's own account: amounts by the names in `guest_protocol::counts`.
pub(crate) type Account = BTreeMap<String, u64>;

/// What a scenario made the accelerator do; `guest_protocol` defines the words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) descriptors: u64,
    pub(crate) bytes: u64,
    pub(crate) partial_completions: u64,
}

impl Counts {
    /// Adds another account to this one.
    pub(crate) fn add(&mut self, other: Self) {
        self.descriptors += other.descriptors;
        self.bytes += other.bytes;
        self.partial_completions += other.partial_completions;
    }

    /// The account in a message; what is missing counts zero.
    pub(crate) fn from_values(values: &Account) -> Self {
        let value = |name| values.get(name).copied().unwrap_or_default();
        Self {
            descriptors: value(counts::DESCRIPTORS),
            bytes: value(counts::BYTES),
            partial_completions: value(counts::PARTIAL_COMPLETIONS),
        }
    }
}

impl From<Counts> for Account {
    fn from(counts: Counts) -> Self {
        Self::from([
            (counts::DESCRIPTORS.to_owned(), counts.descriptors),
            (counts::BYTES.to_owned(), counts.bytes),
            (counts::PARTIAL_COMPLETIONS.to_owned(), counts.partial_completions),
        ])
    }
}

/// The pipe. When its other end is gone nobody can learn anything any more, and the process exits.
pub(crate) struct Report {
    output: Box<dyn Write>,
    input: Box<dyn Read>,
    lines: Lines,
    /// Checks that did not hold.
    failed: usize,
    /// While something is done once more.
    repeating: Option<Repeating>,
}

/// Something that is done once more: of its checks only those are sent that do not hold.
struct Repeating {
    /// Begins every check's text.
    what: String,
    /// Checks that held.
    held: usize,
}

impl Report {
    /// Over this process's standard streams.
    pub(crate) fn on_stdio() -> Self {
        Self::over(Box::new(io::stdout()), Box::new(io::stdin()))
    }

    /// Over streams of its own.
    pub(crate) fn over(output: Box<dyn Write>, input: Box<dyn Read>) -> Self {
        Self { output, input, lines: Lines::new(), failed: 0, repeating: None }
    }

    /// One assertion, with what was measured or why it does not hold.
    pub(crate) fn check(&mut self, check: &str, outcome: Outcome) {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(failure) => (false, failure.to_string()),
        };
        self.failed += usize::from(!ok);
        let check = match &mut self.repeating {
            Some(repeating) if ok => return repeating.held += 1,
            Some(repeating) => clip(&format!("{}: {check}", repeating.what)),
            None => clip(check),
        };
        self.send(&FromGuest::Check { check, ok, detail: clip(&detail) });
    }

    /// Does something once more whose checks were all told before. Now they are one check, and one
    /// more for each that does not hold.
    pub(crate) fn repeat<T>(
        &mut self,
        what: &str,
        run: impl FnOnce(&mut Self) -> Outcome<T>,
    ) -> Outcome<T> {
        let failed = self.failed;
        self.repeating = Some(Repeating { what: what.to_owned(), held: 0 });
        let done = run(self);
        let held = self.repeating.take().map_or(0, |repeating| repeating.held);
        if self.failed == failed {
            self.check(what, Ok(format!("every check holds as before: {held}")));
        }
        done
    }

    /// Whether every check held.
    pub(crate) fn is_good(&self) -> bool {
        self.failed == 0
    }

    /// A line for the log.
    pub(crate) fn note(&mut self, text: &str) {
        self.send(&FromGuest::Note { text: clip(text) });
    }

    /// The scenario's own account.
    pub(crate) fn counts(&mut self, counts: impl Into<Account>) {
        self.send(&FromGuest::Counts { values: counts.into() });
    }

    /// Waits until the other side has done what `point` asks for.
    pub(crate) fn sync(&mut self, point: &str, values: &[(&str, u64)]) -> Outcome<()> {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        self.send(&FromGuest::Sync { point: point.to_owned(), values });
        match self.answer(&format!("sync point {point}"))? {
            true => Ok(()),
            false => {
                Err(Failure::new(format!("the other side could not do what {point} asks for")))
            }
        }
    }

    /// Between iterations, when nothing is open and nothing in flight: after the first of the two in
    /// `sampled` the lab samples what the server holds, after the second it must be no more, and
    /// after others nothing is asked.
    pub(crate) fn steady(&mut self, iteration: u64, sampled: [u64; 2]) -> Outcome<()> {
        let values = [("iteration", iteration)];
        match sampled.iter().position(|&chosen| chosen == iteration) {
            Some(0) => self.sync(sync::SAMPLE, &values),
            Some(_) => self.sync(sync::STEADY, &values),
            None => Ok(()),
        }
    }

    /// A part that is repeated is over: whether the other side wants it once more.
    pub(crate) fn again(&mut self) -> Outcome<bool> {
        self.send(&FromGuest::Sync { point: sync::AGAIN.to_owned(), values: BTreeMap::new() });
        self.answer("the end of a part")
    }

    /// PASIDs that another guest was granted, and this one not.
    pub(crate) fn strangers(&mut self) -> Outcome<Vec<u32>> {
        self.send(&FromGuest::Sync { point: sync::STRANGERS.to_owned(), values: BTreeMap::new() });
        match self.receive().at("another guest's PASIDs")? {
            ToGuest::Pasids { pasids } => Ok(pasids),
            other => Err(Failure::new(format!("not another guest's PASIDs, but {other:?}"))),
        }
    }

    /// Has the PASIDs that the kernel holds, ascending, compared with the host's record; `refused`
    /// if it was just refused another.
    pub(crate) fn holds(&mut self, refused: bool, pasids: Vec<u32>) -> Outcome<()> {
        let count = pasids.len();
        self.send(&FromGuest::Holds { refused, pasids });
        match self.answer("the host's record")? {
            true => Ok(()),
            false => Err(Failure::new(format!("the host's record is not the {count} held"))),
        }
    }

    /// The answer to `question`.
    fn answer(&mut self, question: &str) -> Outcome<bool> {
        match self.receive().at(question)? {
            ToGuest::Continue { ok } => Ok(ok),
            other => Err(Failure::new(format!("{question} answered by {other:?}"))),
        }
    }

    fn receive(&mut self) -> Outcome<ToGuest> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(decode(&line?)?);
            }
            let mut bytes = [0; 4096];
            let got = self.input.read(&mut bytes)?;
            let Some(bytes) = bytes.get(..got).filter(|bytes| !bytes.is_empty()) else {
                return Err(Failure::new("the pipe was closed"));
            };
            self.lines.feed(bytes);
        }
    }

    fn send(&mut self, message: &FromGuest) {
        let sent = encode(message)
            .map_err(io::Error::other)
            .and_then(|line| self.output.write_all(line.as_bytes()))
            .and_then(|()| self.output.flush());
        if let Err(error) = sent {
            eprintln!("guest-init: cannot report: {error}");
            std::process::exit(EXIT_UNREPORTED);
        }
    }
}

/// Exit code of a process whose pipe is gone.
const EXIT_UNREPORTED: i32 = 3;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Rc<RefCell<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn talk(answers: &'static [u8], speak: impl FnOnce(&mut Report)) -> Vec<FromGuest> {
        let sink = Sink::default();
        speak(&mut Report::over(Box::new(sink.clone()), Box::new(answers)));
        let bytes = sink.0.borrow();
        bytes.split_inclusive(|byte| *byte == b'\n').map(|line| decode(line).unwrap()).collect()
    }

    #[test]
    fn checks_say_what_was_measured_or_what_is_wrong() {
        let said = talk(b"", |report| {
            report.check("a", Ok("fine".into()));
            report.check("b", Err(Failure::new("broken")));
        });
        let check = |check: &str, ok, detail: &str| FromGuest::Check {
            check: check.into(),
            ok,
            detail: detail.into(),
        };
        assert_eq!(said, [check("a", true, "fine"), check("b", false, "broken")]);
    }

    #[test]
    fn what_is_repeated_is_one_check_or_what_does_not_hold() {
        let said = talk(b"", |report| {
            let done = report.repeat("round 2", |report| {
                report.check("a", Ok("fine".into()));
                report.check("b", Ok("fine".into()));
                Ok(7)
            });
            assert_eq!((done, report.is_good()), (Ok(7), true));
            let broken = report.repeat("round 3", |report| {
                report.check("a", Ok("fine".into()));
                report.check("b", Err(Failure::new("broken")));
                Err::<(), _>(Failure::new("no more"))
            });
            assert!(broken.is_err() && !report.is_good());
            report.check("c", Ok("fine".into()));
        });
        let check = |check: &str, ok, detail: &str| FromGuest::Check {
            check: check.into(),
            ok,
            detail: detail.into(),
        };
        let expected = [
            check("round 2", true, "every check holds as before: 2"),
            check("round 3: b", false, "broken"),
            check("c", true, "fine"),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_sync_point_waits_for_its_answer() {
        let answers =
            b"{\"type\":\"Continue\",\"ok\":true}\n{\"type\":\"Continue\",\"ok\":false}\n\
            {\"type\":\"PowerOff\"}\nnonsense\n";
        let said = talk(answers, |report| {
            assert_eq!(report.sync("one", &[("x", 1)]), Ok(()));
            let refused = report.sync("two", &[]).unwrap_err().to_string();
            assert!(refused.contains("could not do what two asks for"), "{refused}");
            for _ in 0..3 {
                assert!(report.sync("three", &[]).is_err());
            }
        });
        assert_eq!(said.len(), 5);
    }

    #[test]
    fn two_iterations_are_compared_and_no_others() {
        let answers =
            b"{\"type\":\"Continue\",\"ok\":true}\n{\"type\":\"Continue\",\"ok\":false}\n";
        let said = talk(answers, |report| {
            let steady: Vec<_> =
                (0..6).map(|iteration| report.steady(iteration, [2, 4]).is_ok()).collect();
            assert_eq!(steady, [true, true, true, true, false, true]);
        });
        let point = |point: &str, iteration| FromGuest::Sync {
            point: point.into(),
            values: Account::from([("iteration".into(), iteration)]),
        };
        assert_eq!(said, [point(sync::SAMPLE, 2), point(sync::STEADY, 4)]);
    }

    #[test]
    fn what_is_held_is_compared_by_the_other_side() {
        let answers =
            b"{\"type\":\"Continue\",\"ok\":true}\n{\"type\":\"Continue\",\"ok\":false}\n";
        let said = talk(answers, |report| {
            assert_eq!(report.holds(true, vec![1, 2]), Ok(()));
            let differs = report.holds(false, vec![3]).unwrap_err().to_string();
            assert_eq!(differs, "the host's record is not the 1 held");
        });
        let first = FromGuest::Holds { refused: true, pasids: vec![1, 2] };
        assert_eq!(said, [first, FromGuest::Holds { refused: false, pasids: vec![3] }]);
    }

    #[test]
    fn the_other_side_says_when_it_is_enough_and_whose_numbers_are_strange() {
        let answers =
            b"{\"type\":\"Continue\",\"ok\":true}\n{\"type\":\"Continue\",\"ok\":false}\n\
            {\"type\":\"Pasids\",\"pasids\":[7]}\n{\"type\":\"Continue\",\"ok\":false}\n";
        let said = talk(answers, |report| {
            assert_eq!([report.again(), report.again()], [Ok(true), Ok(false)]);
            assert_eq!(report.strangers(), Ok(vec![7]));
            assert!(report.strangers().is_err());
        });
        let points = said.iter().map(|message| match message {
            FromGuest::Sync { point, .. } => point.as_str(),
            other => panic!("{other:?}"),
        });
        let expected = [sync::AGAIN, sync::AGAIN, sync::STRANGERS, sync::STRANGERS];
        assert_eq!(points.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn counts_add_and_survive_the_message() {
        let mut counts = Counts { descriptors: 1, bytes: 2, partial_completions: 3 };
        counts.add(counts);
        assert_eq!(Counts::from_values(&counts.into()), counts);
        assert_eq!(counts.bytes, 4);
    }
}
