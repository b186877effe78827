//! The story against two pretended guests and a pretended server.

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;

use super::super::super::super::scenario::{select, Scenario, Wishes};
use super::super::super::super::server::{EncodedCalls, GuestDevices, PasidSpace};
use super::*;
use crate::server::{GuestConfig, Injection, PasidTable};

/// What the pretended server does wrong.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Wrong {
    #[default]
    Nothing,
    /// Both guests' PASIDs are the same one of the host's.
    Meets,
    /// PASIDs are granted and never bound.
    BindsNothing,
    /// The death of one is a fault of the other's.
    Disturbs,
    /// The server gives the second guest no number, so that its copies end at once.
    Refuses,
    /// Something of the guests is left on the host.
    Keeps,
}

/// A guest that copies as long as it may.
struct Actor {
    says: VecDeque<FromGuest>,
    breaks_off: bool,
}

impl Guest for Actor {
    fn send(&mut self, message: &ToGuest) -> Result<(), GuestError> {
        let again = FromGuest::Sync { point: sync::AGAIN.to_owned(), values: BTreeMap::default() };
        match message {
            ToGuest::Run { scenario, .. } => {
                assert_eq!(scenario, scenario::STREAM);
                let (check, ok) = ("copies".to_owned(), !self.breaks_off);
                let done = FromGuest::Done { scenario: scenario.clone() };
                let next = if ok { again } else { done };
                self.says.extend([FromGuest::Check { check, ok, detail: String::new() }, next]);
            }
            ToGuest::Continue { ok: true } => self.says.push_back(again),
            ToGuest::Continue { ok: false } => {
                let values = BTreeMap::from([(counts::PARTIAL_COMPLETIONS.to_owned(), 0)]);
                let scenario = scenario::STREAM.to_owned();
                self.says.extend([FromGuest::Counts { values }, FromGuest::Done { scenario }]);
            }
            ToGuest::PowerOff => {}
            ToGuest::Pasids { .. } => panic!("it asked for no numbers"),
        }
        Ok(())
    }

    fn hear(&mut self, _limit: Duration) -> Result<Option<FromGuest>, GuestError> {
        Ok(self.says.pop_front())
    }

    fn receive(&mut self, _wait: &Wait) -> Result<FromGuest, GuestError> {
        Ok(self.says.pop_front().expect("nobody waits for it in vain"))
    }

    fn kill(&mut self) -> Result<(), GuestError> {
        self.says.clear();
        Ok(())
    }

    fn wait_off(&mut self, _wait: &Wait) -> Result<(), GuestError> {
        Ok(())
    }

    fn console(&self) -> String {
        String::new()
    }
}

struct Stage {
    wrong: Wrong,
}

impl Starter for Stage {
    fn start(
        &mut self,
        number: u32,
        _linux: Linux,
        _devices: &Devices,
        _dir: PrivateDir,
    ) -> Result<Box<dyn Guest>, GuestError> {
        let hello = FromGuest::Hello { kernel: "7.3".to_owned(), cpus: 2 };
        let breaks_off = self.wrong == Wrong::Refuses && number == 2;
        Ok(Box::new(Actor { says: [hello].into(), breaks_off }))
    }
}

/// A host whose guests each have the same PASID, but between rounds.
struct House {
    wrong: Wrong,
    guests: u32,
    gone: Vec<GuestId>,
    asked: Rc<Cell<u64>>,
}

impl House {
    fn tick(&self) -> u64 {
        self.asked.set(self.asked.get() + 1);
        self.asked.get()
    }
}

impl LabServer for House {
    fn add_guest(&mut self, _dir: &Path, config: GuestConfig) -> Result<GuestDevices, ServerError> {
        assert!(config.numbers_host_table());
        assert_eq!((config.pasid_table, config.numbering), (PasidTable::Host, Numbering::Private));
        self.guests += 1;
        Ok(GuestDevices { guest: GuestId(self.guests), devices: Devices::default() })
    }

    fn wait_gone(&mut self, guest: GuestId, _limit: Duration) -> Result<Duration, ServerError> {
        self.gone.push(guest);
        Ok(Duration::from_millis(3))
    }

    fn counters(&self, _guest: GuestId) -> Vec<(&'static str, u64)> {
        let disturbed = self.wrong == Wrong::Disturbs && !self.gone.is_empty();
        let mut all: Vec<_> = ["faults_lost", "ungranted", "software_errors", "protocol_errors"]
            .map(|name| (name, 0))
            .into();
        all.extend([
            ("faults", u64::from(disturbed)),
            (counts::BYTES, self.tick()),
            (counts::PARTIAL_COMPLETIONS, 0),
            ("pasids_reclaimed", 1),
        ]);
        all
    }

    fn pasids(&self, guest: GuestId) -> Result<PasidRecord, ServerError> {
        // Now and then a guest is between two rounds.
        if self.tick() % 8 < 3 {
            return Ok(PasidRecord::default());
        }
        let host = if self.wrong == Wrong::Meets { 7 } else { 6 + guest.0 };
        let bound = if self.wrong == Wrong::BindsNothing { vec![] } else { vec![1] };
        Ok(PasidRecord { live: vec![1], hosts: vec![host], bound, parked: Vec::new() })
    }

    fn space(&self) -> PasidSpace {
        let there = self.guests - self.gone.len() as u32;
        let quota = GuestConfig::USUAL.quota;
        let live = u32::from(self.wrong == Wrong::Keeps);
        PasidSpace { capacity: 9000, reserved: there * quota, live, ..PasidSpace::default() }
    }

    fn encoded_calls(&self) -> Option<EncodedCalls> {
        None
    }

    fn inject(&mut self, _: GuestId, injection: Injection) -> Result<(), ServerError> {
        Err(ServerError::CannotInject(injection))
    }

    fn clear_injections(&mut self, _: GuestId) -> Result<(), ServerError> {
        Ok(())
    }

    fn sync(&mut self, _: GuestId, point: &str, _: &BTreeMap<String, u64>) -> Vec<Check> {
        panic!("{point} is not the server's");
    }
}

/// Runs the story; gives what failed.
fn failures(wrong: Wrong) -> Vec<String> {
    let mut report = Report::default();
    let mut server = House { wrong, guests: 0, gone: Vec::new(), asked: Rc::default() };
    let mut runner = Runner {
        server: &mut server,
        starter: &mut Stage { wrong },
        screen: &Screen::none(),
        report: &mut report,
        guests: 0,
    };
    let mut runs = select(&["tenants-host".to_owned()], Wishes::default()).unwrap();
    let shortened = Scenario { limit: Duration::from_millis(200), ..*runs[0].scenario };
    runs[0].scenario = Box::leak(Box::new(shortened));
    runner.run(&runs).unwrap();
    assert_eq!(server.gone.len(), 2);
    let failed = report.records.into_iter().filter(|record| !record.ok);
    failed.map(|record| record.check).collect()
}

#[test]
fn the_whole_story() {
    assert_eq!(failures(Wrong::Nothing), [""; 0]);
}

#[test]
fn guests_that_meet_on_the_host_are_a_failure() {
    let check = "both guests' same PASIDs have different numbers on the host";
    assert_eq!(failures(Wrong::Meets), [check]);
}

#[test]
fn numbers_that_are_bound_nowhere_are_a_failure() {
    assert_eq!(failures(Wrong::BindsNothing), ["the scenario runs to its end"]);
}

#[test]
fn a_guest_that_breaks_off_is_not_waited_for() {
    let checks = ["second: copies", "the scenario runs to its end"];
    assert_eq!(failures(Wrong::Refuses), checks);
}

#[test]
fn a_death_that_others_notice_is_a_failure() {
    let check = "copies went on throughout, without a fault";
    assert_eq!(failures(Wrong::Disturbs), [check]);
}

#[test]
fn what_is_left_on_the_host_is_a_failure() {
    assert_eq!(failures(Wrong::Keeps), ["the host's books balance"]);
}
