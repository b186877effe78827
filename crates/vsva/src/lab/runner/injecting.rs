//! What scenarios on memory that is not there ask of the server, in terms of what every server has: to do something
//! wrong on purpose, and to have nothing left in the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::server::{Check, GuestId, LabServer};
use crate::inspect::snapshot::PAGE_REQUESTS_OUTSTANDING;
use crate::server::Injection;

/// How long what was submitted may still leave traces on the host: an answer is on its way to the device, a PASID is
/// parked until its last use is over.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// How often the host is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Has the server do wrong what `values` says, or nothing (any more) if it is empty.
pub(super) fn inject(
    server: &mut dyn LabServer,
    guest: GuestId,
    values: &BTreeMap<String, u64>,
) -> Check {
    let done = match written(values).as_deref() {
        None => server.clear_injections(guest).map(|()| "nothing goes wrong any more".to_owned()),
        Some(text) => match text.parse::<Injection>() {
            Ok(injection) => server.inject(guest, injection).map(|()| injection.to_string()),
            Err(error) => return check("the server injects", Err(format!("{text}: {error}"))),
        },
    };
    check("the server injects", done.map_err(|error| error.to_string()))
}

/// The injection as on the command line; one without a number has zero here.
fn written(values: &BTreeMap<String, u64>) -> Option<String> {
    let (name, value) = values.first_key_value()?;
    Some(if *value == 0 { name.clone() } else { format!("{name}={value}") })
}

/// Waits until nothing is left of what was submitted.
pub(super) fn settled(server: &mut dyn LabServer, guest: GuestId) -> Vec<Check> {
    let until = Instant::now() + SETTLES_WITHIN;
    loop {
        let outstanding = outstanding(server, guest);
        let parked = server.space().parked;
        let settled = outstanding.as_ref().map_or(true, |count| *count == 0) && parked == 0;
        if settled || Instant::now() >= until {
            let outstanding =
                outstanding.and_then(|count| none(count, "page requests outstanding"));
            return vec![
                check("no page request is unanswered", outstanding),
                check("no PASID is parked", none(parked.into(), "PASIDs parked")),
            ];
        }
        std::thread::sleep(LOOK);
    }
}

fn outstanding(server: &dyn LabServer, guest: GuestId) -> Result<u64, String> {
    let counters = server.counters(guest);
    let count = counters.iter().find(|(name, _)| *name == PAGE_REQUESTS_OUTSTANDING);
    count
        .map(|(_, count)| *count)
        .ok_or_else(|| format!("the server does not count {PAGE_REQUESTS_OUTSTANDING}"))
}

fn none(count: u64, what: &str) -> Result<String, String> {
    let text = format!("{count} {what}");
    if count == 0 {
        Ok(text)
    } else {
        Err(text)
    }
}

fn check(what: &str, outcome: Result<String, String>) -> Check {
    let ok = outcome.is_ok();
    Check { check: what.to_owned(), ok, detail: outcome.unwrap_or_else(|error| error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scenario_asks_for_is_written_as_on_the_command_line() {
        let values = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        assert_eq!(written(&BTreeMap::new()), None);
        assert_eq!(written(&values("answer-twice", 0)).unwrap(), "answer-twice");
        let text = written(&values("fail-walk", 4)).unwrap();
        assert_eq!(text, "fail-walk=4");
        assert_eq!(text.parse::<Injection>().unwrap().to_string(), text);
    }

    #[test]
    fn only_nothing_is_none() {
        assert_eq!(none(0, "requests"), Ok("0 requests".to_owned()));
        assert_eq!(none(2, "requests"), Err("2 requests".to_owned()));
    }
}
