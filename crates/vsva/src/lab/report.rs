//! What a run of the lab found, as lines, as a table and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{json, Value};

use super::server::Check;
use crate::term::{self, printable, Mark, Screen};

/// One assertion and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The scenario that made it, or a phase of the lab's own such as `boot`.
    pub scenario: String,
    /// What is asserted.
    pub check: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was measured, or what is wrong.
    pub detail: String,
}

/// What a run of the lab found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every assertion, in the order of the run.
    pub records: Vec<Record>,
    /// The server's counters, summed over all guests.
    pub counters: BTreeMap<&'static str, u64>,
    /// What ran: versions by name (`vsva`, `qemu`, `kernel`).
    pub versions: BTreeMap<&'static str, String>,
    /// The seed of the guest's random choices.
    pub seed: u64,
    /// How long the run took, fetching not included.
    pub took: Duration,
    /// Guests that hung while booting and were booted again.
    pub boots_repeated: u32,
}

impl Report {
    /// Whether something was asserted and all of it held.
    pub fn ok(&self) -> bool {
        !self.records.is_empty() && self.failed() == 0
    }

    /// The number of assertions that did not hold.
    pub fn failed(&self) -> usize {
        self.records.iter().filter(|record| !record.ok).count()
    }

    /// Records one assertion of `scenario` and shows it.
    pub(super) fn record(&mut self, screen: &Screen, scenario: &str, check: Check) {
        let Check { check, ok, detail } = check;
        let (check, detail) = (printable(&check), printable(&detail));
        let mark = if ok { Mark::Ok } else { Mark::Fail };
        screen.mark(mark, &format!("{check:<CHECK_COLUMN$}  {detail}"));
        self.records.push(Record { scenario: scenario.to_owned(), check, ok, detail });
    }

    /// The table that a run ends with, at most `width` columns wide.
    pub fn table(&self, width: u16) -> String {
        let mut table = term::table(width);
        table.set_header(["scenario", "check", "result", "measured"]);
        let mut last = "";
        for record in &self.records {
            let scenario = if record.scenario == last { "" } else { &record.scenario };
            let result = if record.ok { "ok" } else { "FAIL" };
            table.add_row([scenario, &record.check, result, &record.detail]);
            last = &record.scenario;
        }
        table.to_string()
    }

    /// The counters, two to a line.
    pub fn counters(&self) -> String {
        let cells: Vec<String> =
            self.counters.iter().map(|(name, value)| format!("  {name:<24}{value:>16}")).collect();
        cells.chunks(2).map(<[String]>::concat).collect::<Vec<_>>().join("\n")
    }

    /// The run in one sentence.
    pub fn verdict(&self) -> String {
        let (all, failed) = (self.records.len(), self.failed());
        let seconds = self.took.as_secs_f64();
        let verdict = match failed {
            0 if all == 0 => format!("nothing was checked, in {seconds:.1} s"),
            0 => format!("all {all} checks hold, in {seconds:.1} s"),
            _ => format!("{failed} of {all} checks FAILED, in {seconds:.1} s"),
        };
        match self.boots_repeated {
            0 => verdict,
            count => format!("{verdict}; {count} guests hung while booting and were booted again"),
        }
    }

    /// The run as one JSON object.
    pub fn json(&self) -> Value {
        json!({
            "ok": self.ok(),
            "checks": self.records,
            "counters": self.counters,
            "versions": self.versions,
            "seed": self.seed,
            "boots_repeated": self.boots_repeated,
            "seconds": self.took.as_secs_f64(),
        })
    }
}

/// The column in which the measured part of a line begins, where the check leaves room.
const CHECK_COLUMN: usize = 44;

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[bool]) -> Report {
        let mut report = Report { took: Duration::from_millis(1500), ..Report::default() };
        for (number, &ok) in outcomes.iter().enumerate() {
            let check =
                Check { check: format!("check {number}"), ok, detail: "7 bytes".to_owned() };
            report.record(&Screen::none(), "sva-copy", check);
        }
        report
    }

    #[test]
    fn one_failure_or_nothing_at_all_is_not_ok() {
        assert!(report(&[true, true]).ok());
        assert!(!report(&[true, false]).ok());
        assert!(!report(&[]).ok());
        assert_eq!(report(&[true, true]).verdict(), "all 2 checks hold, in 1.5 s");
        assert!(report(&[true, false]).verdict().starts_with("1 of 2 checks FAILED"));
    }

    #[test]
    fn json_has_the_promised_keys() {
        let mut report = report(&[true]);
        report.counters.insert("walks", 3);
        let json = report.json();
        assert_eq!(json["ok"], true);
        assert_eq!(json["counters"]["walks"], 3);
        let check =
            json!({"scenario": "sva-copy", "check": "check 0", "ok": true, "detail": "7 bytes"});
        assert_eq!(json["checks"], json!([check]));
    }

    #[test]
    fn the_table_keeps_to_its_width_and_names_a_scenario_once() {
        let table = report(&[true, false]).table(60);
        assert!(table.lines().all(|line| line.chars().count() <= 60), "{table}");
        assert_eq!(table.matches("sva-copy").count(), 1);
        assert!(table.contains("FAIL"));
    }

    #[test]
    fn a_guest_cannot_move_the_cursor() {
        let mut report = Report::default();
        let check = Check { check: "a\x1b[2J".to_owned(), ok: true, detail: "b\nc".to_owned() };
        report.record(&Screen::none(), "x", check);
        assert_eq!(report.records[0].check, "a [2J");
        assert_eq!(report.records[0].detail, "b c");
    }
}
