//! The story against three pretended guests and a pretended server.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;

use super::super::super::scenario::{select, Wishes};
use super::super::super::server::{EncodedCalls, GuestDevices, PasidSpace};
use super::*;
use crate::server::{Commands, GuestConfig, Injection};

/// What pretended guests and their server do wrong.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Wrong {
    /// Guests that hang while booting, by their number in the run.
    hang: &'static [u32],
    /// The second guest dies at its first round's end.
    dies: bool,
    /// A guest's frees take another's number away.
    meddles: bool,
    /// The server keeps the killed guest's quota.
    keeps_quota: bool,
}

/// What happened, for all of them to see.
#[derive(Default)]
struct World {
    frees: Cell<u32>,
    gone: Cell<[bool; 3]>,
    dropped: Cell<u32>,
    strangers: RefCell<Vec<Vec<u32>>>,
    asked: Cell<u64>,
}

/// A guest that answers as the guest program does.
struct Actor {
    role: usize,
    says: VecDeque<FromGuest>,
    parts: u32,
    wrong: Wrong,
    world: Rc<World>,
}

fn at(point: &str) -> FromGuest {
    FromGuest::Sync { point: point.to_owned(), values: BTreeMap::new() }
}

impl Actor {
    fn end(&mut self, run: &str) {
        self.says.push_back(FromGuest::Counts {
            values: BTreeMap::from([(counts::PASIDS_UNAVAILABLE.to_owned(), 0)]),
        });
        self.says.push_back(FromGuest::Done { scenario: run.to_owned() });
    }
}

impl Guest for Actor {
    fn send(&mut self, message: &ToGuest) -> Result<(), GuestError> {
        let copying = self.role == COPYING;
        match message {
            ToGuest::Run { scenario, .. } => {
                assert_eq!(scenario == scenario::STREAM, copying);
                let check = FromGuest::Check {
                    check: "a check".to_owned(),
                    ok: true,
                    detail: String::new(),
                };
                self.says.extend([check, at(sync::AGAIN)]);
            }
            ToGuest::Continue { ok: true } => self.says.push_back(at(sync::AGAIN)),
            ToGuest::Continue { ok: false } if copying => self.end(scenario::STREAM),
            ToGuest::Continue { ok: false } => {
                self.parts += 1;
                match self.parts {
                    1 => self.says.push_back(at(sync::STRANGERS)),
                    _ => self.end(scenario::TENANT),
                }
            }
            ToGuest::Pasids { pasids } => {
                self.world.frees.set(self.world.frees.get() + 1);
                self.world.strangers.borrow_mut().push(pasids.clone());
                self.says.push_back(at(sync::AGAIN));
            }
            ToGuest::PowerOff => {}
        }
        Ok(())
    }

    fn hear(&mut self, _limit: Duration) -> Result<Option<FromGuest>, GuestError> {
        if self.wrong.dies && self.role == SECOND && self.says.front() == Some(&at(sync::AGAIN)) {
            return Err(GuestError::Fatal("out of memory".to_owned()));
        }
        Ok(self.says.pop_front())
    }

    fn receive(&mut self, wait: &Wait) -> Result<FromGuest, GuestError> {
        let expired = || GuestError::Expired { what: format!("{wait:?}"), limit: OFF_LIMIT };
        self.says.pop_front().ok_or_else(expired)
    }

    fn kill(&mut self) -> Result<(), GuestError> {
        assert_eq!(self.role, SECOND);
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

impl Drop for Actor {
    fn drop(&mut self) {
        self.world.dropped.set(self.world.dropped.get() + 1);
    }
}

struct Stage {
    wrong: Wrong,
    world: Rc<World>,
    roles: Rc<RefCell<Vec<usize>>>,
}

impl Starter for Stage {
    fn start(
        &mut self,
        number: u32,
        _linux: Linux,
        _devices: &Devices,
        _dir: PrivateDir,
    ) -> Result<Box<dyn Guest>, GuestError> {
        let role = *self.roles.borrow().last().unwrap();
        let mut says = VecDeque::new();
        if !self.wrong.hang.contains(&number) {
            says.push_back(FromGuest::Hello { kernel: "6.1".to_owned(), cpus: 2 });
        }
        let (wrong, world) = (self.wrong, self.world.clone());
        Ok(Box::new(Actor { role, says, parts: 0, wrong, world }))
    }
}

/// A host whose guests have one, two and no PASIDs.
struct House {
    wrong: Wrong,
    world: Rc<World>,
    roles: Rc<RefCell<Vec<usize>>>,
}

impl House {
    fn role(&self, guest: GuestId) -> usize {
        self.roles.borrow()[guest.0 as usize]
    }
}

impl LabServer for House {
    fn add_guest(&mut self, _dir: &Path, config: GuestConfig) -> Result<GuestDevices, ServerError> {
        let role = match (config.commands, config.quota) {
            (Commands::Off, _) => COPYING,
            (_, 64) => FIRST,
            _ => SECOND,
        };
        let mut gone = self.world.gone.get();
        gone[role] = false;
        self.world.gone.set(gone);
        let mut roles = self.roles.borrow_mut();
        roles.push(role);
        let guest = GuestId(roles.len() as u32 - 1);
        Ok(GuestDevices { guest, devices: Devices::default() })
    }

    fn wait_gone(&mut self, guest: GuestId, _limit: Duration) -> Result<Duration, ServerError> {
        let mut gone = self.world.gone.get();
        gone[self.role(guest)] = true;
        self.world.gone.set(gone);
        Ok(Duration::from_millis(3))
    }

    fn counters(&self, guest: GuestId) -> Vec<(&'static str, u64)> {
        let errors = ["faults", "faults_lost", "ungranted", "software_errors", "protocol_errors"];
        let mut all: Vec<_> = errors.map(|name| (name, 0)).into();
        let taken = u64::from(self.role(guest) == SECOND);
        self.world.asked.set(self.world.asked.get() + 1);
        all.extend([
            (counts::BYTES, self.world.asked.get()),
            (counts::PASIDS_UNAVAILABLE, 5),
            (counts::PASIDS_ALLOCATED, 7),
            (counts::PASIDS_FREED, 7 - taken),
            ("pasids_reclaimed", taken),
        ]);
        all
    }

    fn pasids(&self, guest: GuestId) -> Result<PasidRecord, ServerError> {
        let live = match self.role(guest) {
            FIRST => vec![1, 4],
            // Half of its quota, at least.
            SECOND if self.wrong.meddles && self.world.frees.get() > 0 => (5..29).collect(),
            SECOND => (5..30).collect(),
            _ => Vec::new(),
        };
        Ok(PasidRecord { hosts: live.clone(), live, ..PasidRecord::default() })
    }

    fn space(&self) -> PasidSpace {
        let mut gone = self.world.gone.get();
        if self.wrong.keeps_quota {
            gone[SECOND] = false;
        }
        let quotas = [64, 48, 1000].into_iter().zip(gone).filter(|(_, gone)| !gone);
        let reserved = quotas.map(|(quota, _)| quota).sum();
        PasidSpace { capacity: 2000, reserved, ..PasidSpace::default() }
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

/// Runs the story; what failed, and what happened.
fn run(wrong: Wrong) -> (Report, Rc<World>) {
    let world = Rc::<World>::default();
    let roles = Rc::default();
    let mut server = House { wrong, world: world.clone(), roles: Rc::clone(&roles) };
    let mut starter = Stage { wrong, world: world.clone(), roles };
    let mut report = Report::default();
    let mut runner = Runner {
        server: &mut server,
        starter: &mut starter,
        screen: &Screen::none(),
        report: &mut report,
        guests: 0,
    };
    runner.run(&select(&["tenants".to_owned()], Wishes::default()).unwrap()).unwrap();
    (report, world)
}

fn failures(report: &Report) -> Vec<(&str, &str)> {
    let failed = report.records.iter().filter(|record| !record.ok);
    failed.map(|record| (&*record.check, &*record.detail)).collect()
}

#[test]
fn the_whole_story() {
    let (report, world) = run(Wrong::default());
    assert_eq!(failures(&report), []);
    // Each tried the other's numbers, and nobody else was asked to.
    assert_eq!(*world.strangers.borrow(), [(5..30).collect(), vec![1, 4]]);
    assert_eq!(world.gone.get(), [true; 3]);
    assert_eq!(world.dropped.get(), 3);
    let said = |check: &str| report.records.iter().filter(|record| record.check == check).count();
    assert_eq!(said("the server frees all of the killed guest"), 1);
    assert_eq!(said("the server frees all of the guest"), 2);
    assert_eq!(said("second 6.1: a check"), 1);
    let balance =
        report.records.iter().find(|record| record.check.starts_with("second 6.1: every"));
    assert_eq!(balance.unwrap().detail, "7 granted, 6 freed, 1 taken back");
}

#[test]
fn a_number_taken_by_another_guest_is_a_failure() {
    let (report, _) = run(Wrong { meddles: true, ..Wrong::default() });
    let check = "first 6.1: its frees change nothing of the second 6.1's";
    assert_eq!(failures(&report), [(check, "25 before, 24 now")]);
}

#[test]
fn a_quota_that_is_kept_is_a_failure() {
    let (report, _) = run(Wrong { keeps_quota: true, ..Wrong::default() });
    let checks: Vec<_> = failures(&report).into_iter().map(|(check, _)| check).collect();
    assert_eq!(checks, ["its PASIDs are drained, its quota is back", "the host's books balance"]);
}

#[test]
fn a_guest_that_dies_by_itself_ends_all() {
    let (report, world) = run(Wrong { dies: true, ..Wrong::default() });
    let why = "the guest program gave up: out of memory";
    assert_eq!(failures(&report), [("the scenario runs to its end", why)]);
    assert_eq!((world.gone.get(), world.dropped.get()), ([true; 3], 3));
}

#[test]
fn one_that_hangs_while_booting_is_booted_again_beside_the_others() {
    let (report, world) = run(Wrong { hang: &[2], ..Wrong::default() });
    assert_eq!(failures(&report), []);
    assert_eq!((report.boots_repeated, world.dropped.get()), (1, 4));

    let (report, world) = run(Wrong { hang: &[2, 4], ..Wrong::default() });
    assert_eq!(failures(&report)[0].0, "the guest boots");
    assert_eq!((world.gone.get(), world.dropped.get()), ([true; 3], 4));
}
