//! What the demo found, as lines, as tables and as JSON.

use std::time::Duration;

use serde::Serialize;
use serde_json::{json, Value};

use super::trace::Hop;
use crate::lab::Record;
use crate::term;

/// One request and the way that it took.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// Who makes it.
    pub by: String,
    /// Its hops, from the consumer to the consumer.
    pub hops: Vec<Hop>,
}

/// One environment in which a consumer asks for a PASID.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Its name.
    pub name: String,
    /// The way that its requests take.
    pub route: String,
    /// The number that its first request brought.
    pub number: u32,
    /// Whose number that is.
    pub space: String,
    /// How many hops that request took.
    pub hops: usize,
    /// What an allocation and its return take together, in microseconds.
    pub microseconds: f64,
}

/// What a run of the demo found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every check, in the order of the run.
    pub records: Vec<Record>,
    /// Requests that were followed.
    pub requests: Vec<Request>,
    /// The environments, side by side.
    pub environments: Vec<Environment>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Whether something was checked and all of it holds.
    pub fn ok(&self) -> bool {
        !self.records.is_empty() && self.failed() == 0
    }

    /// The number of checks that do not hold.
    pub fn failed(&self) -> usize {
        self.records.iter().filter(|record| !record.ok).count()
    }

    /// The environments in a table, at most `width` columns wide. A pair is an allocation and its return.
    pub fn side_by_side(&self, width: u16) -> String {
        let mut table = term::table(width);
        table.set_header(["environment", "route", "PASID", "of", "hops", "per pair"]);
        for environment in &self.environments {
            table.add_row([
                environment.name.clone(),
                environment.route.clone(),
                format!("{:#x}", environment.number),
                environment.space.clone(),
                environment.hops.to_string(),
                format!("{:.1} µs", environment.microseconds),
            ]);
        }
        table.to_string()
    }

    /// The run in one sentence.
    pub fn verdict(&self) -> String {
        let (all, failed) = (self.records.len(), self.failed());
        let seconds = self.took.as_secs_f64();
        match failed {
            0 if all == 0 => format!("nothing was checked, in {seconds:.3} s"),
            0 => format!("all {all} checks hold, in {seconds:.3} s"),
            _ => format!("{failed} of {all} checks FAILED, in {seconds:.3} s"),
        }
    }

    /// The run as one JSON object.
    pub fn json(&self) -> Value {
        json!({
            "ok": self.ok(),
            "checks": self.records,
            "requests": self.requests,
            "environments": self.environments,
            "seconds": self.took.as_secs_f64(),
        })
    }
}
