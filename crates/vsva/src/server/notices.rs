//! Lines for a person about what guests do, and never more than a few a second.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
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

struct Recent {
    since: Instant,
    said: u32,
    suppressed: u64,
}

impl Notices {
    pub(crate) fn new(guest: &str, lines: Lines) -> Self {
        let recent = Recent { since: Instant::now(), said: 0, suppressed: 0 };
        Self { guest: guest.to_owned(), lines, recent: Mutex::new(recent) }
    }

    /// Says it, unless this guest has had its share.
    pub(crate) fn say(&self, what: impl fmt::Display) {
        self.say_at(Instant::now(), what);
    }

    fn say_at(&self, now: Instant, what: impl fmt::Display) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(recent.since) >= PERIOD {
            let suppressed = std::mem::take(&mut recent.suppressed);
            *recent = Recent { since: now, said: 0, suppressed: 0 };
            if suppressed > 0 {
                recent.said += 1;
                (self.lines)(&format!("{}: {suppressed} more lines not shown", self.guest));
            }
        }
        if recent.said >= LINES_PER_PERIOD {
            recent.suppressed += 1;
            return;
        }
        recent.said += 1;
        (self.lines)(&format!("{}: {what}", self.guest));
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
}
