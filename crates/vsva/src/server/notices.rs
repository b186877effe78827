//! Lines for a person about what guests do, and never more than a few a second.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most lines that one guest can cause in [`PERIOD`].
pub const LINES_PER_PERIOD: u32 = 10;
/// The period that [`LINES_PER_PERIOD`] counts in.
pub const PERIOD: Duration = Duration::from_secs(1);

/// Where lines go.
pub type Lines = Arc<dyn Fn(&str) + Send + Sync>;

/// Lines about one guest, limited in number: a guest cannot flood whoever reads them.
pub(crate) struct Notices {
    guest: String,
    lines: Lines,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// When the last lines were said, the oldest first; [`LINES_PER_PERIOD`] at most.
    said: VecDeque<Instant>,
    suppressed: u64,
}

impl Notices {
    pub(crate) fn new(guest: &str, lines: Lines) -> Self {
        Self { guest: guest.to_owned(), lines, recent: Mutex::default() }
    }

    /// Says it, unless this guest has had its share.
    pub(crate) fn say(&self, what: impl fmt::Display) {
        self.say_at(Instant::now(), what);
    }

    /// Says how many lines were left out, if some were and there is room for one.
    pub(crate) fn say_suppressed(&self) {
        self.account(&mut self.recent(), Instant::now());
    }

    fn say_at(&self, now: Instant, what: impl fmt::Display) {
        let mut recent = self.recent();
        self.account(&mut recent, now);
        if recent.take_turn(now) {
            (self.lines)(&format!("{}: {what}", self.guest));
        } else {
            recent.suppressed = recent.suppressed.saturating_add(1);
        }
    }

    fn account(&self, recent: &mut Recent, now: Instant) {
        if recent.suppressed > 0 && recent.take_turn(now) {
            let suppressed = std::mem::take(&mut recent.suppressed);
            (self.lines)(&format!("{}: {suppressed} more lines not shown", self.guest));
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// Whether a line may be said now; it is counted then. In no period, wherever it begins, are
    /// there more than [`LINES_PER_PERIOD`].
    fn take_turn(&mut self, now: Instant) -> bool {
        if self.said.len() >= LINES_PER_PERIOD as usize {
            let oldest = self.said.front().copied().unwrap_or(now);
            if now.saturating_duration_since(oldest) < PERIOD {
                return false;
            }
            self.said.pop_front();
        }
        self.said.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ten_lines_a_second_and_is_accounted_for() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let sink = said.clone();
        let notices = Notices::new(
            "guest 0",
            Arc::new(move |line| sink.lock().unwrap().push(line.to_owned())),
        );
        let start = Instant::now();
        for n in 0..1000 {
            notices.say_at(start, n);
        }
        assert_eq!(said.lock().unwrap().len(), LINES_PER_PERIOD as usize);
        notices.say_at(start + PERIOD, "later");
        let said = said.lock().unwrap();
        assert_eq!(said[10..], ["guest 0: 990 more lines not shown", "guest 0: later"]);
    }

    #[test]
    fn no_second_has_more_than_ten_lines_wherever_it_begins() {
        let said = Arc::new(Mutex::new(0));
        let sink = said.clone();
        let notices = Notices::new("guest 0", Arc::new(move |_| *sink.lock().unwrap() += 1));
        let start = Instant::now();
        let mut times = Vec::new();
        for millisecond in 0..5000 {
            let now = start + Duration::from_millis(millisecond);
            let before = *said.lock().unwrap();
            notices.say_at(now, "again");
            times.extend((before..*said.lock().unwrap()).map(|_| now));
        }
        assert_eq!(times.len(), 50, "all that there is room for");
        for window in times.windows(LINES_PER_PERIOD as usize + 1) {
            assert!(window[LINES_PER_PERIOD as usize] - window[0] >= PERIOD);
        }
    }
}
