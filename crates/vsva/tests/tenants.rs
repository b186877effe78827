//! Guests of one host: quotas, private and equal numbers, death, and what `inspect` shows meanwhile.

mod peer;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use iommu::{AllocPasidError, GuestPasid, Numbering, Pasid, PasidRange, Vm as _};
use mem::Policy;
use peer::*;
use vsva::inspect::snapshot::{Guest, Snapshot, State};
use vsva::inspect::wire::{Refusal, MAX_REQUEST, SOCKET};
use vsva::inspect::{Client as Asker, Error};
use vsva::server::{
    Ask, Commands, GuestConfig, GuestPlace, HostCalls, Inspector, ServeError, Server, MAX_CLIENTS,
};
use vtd::spec::VcmdLayout;

const SMALL: GuestConfig =
    GuestConfig { quota: 4, commands: Commands::Revision33, ..GuestConfig::USUAL };

/// A server with these guests in a directory, and its inspector.
struct Host {
    inspector: Option<Inspector>,
    places: Arc<Places>,
    dir: tempfile::TempDir,
    said: Said,
}

struct Places {
    server: Server,
    places: Vec<GuestPlace>,
}

impl Host {
    fn new(configs: &[GuestConfig]) -> Self {
        Self::calling(HostCalls::Direct, configs)
    }

    fn calling(calls: HostCalls, configs: &[GuestConfig]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, said) = server_calling(calls, Policy::SealedOnly);
        let add = |(index, config): (usize, &GuestConfig)| {
            server.add_guest(dir.path(), &format!("guest{index}"), *config).unwrap()
        };
        let places = configs.iter().enumerate().map(add).collect();
        let places = Arc::new(Places { server, places });
        let shown = places.clone();
        let ask: Ask = Box::new(move |name| match name {
            None => Ok(shown.server.snapshot(&shown.places)),
            Some(name) => Err(Refusal::NoGuest { name: name.to_owned(), known: Vec::new() }),
        });
        let inspector = Some(Inspector::start(dir.path(), ask).unwrap());
        Self { inspector, places, dir, said }
    }

    fn place(&self, index: usize) -> &GuestPlace {
        &self.places.places[index]
    }

    fn asker(&self) -> Asker {
        Asker::connect(self.dir.path()).unwrap()
    }

    fn snapshot(&self) -> Snapshot {
        self.asker().ask(None).unwrap()
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }
}

/// A guest's kernel, as far as virtual commands go: its unit's registers over the socket.
struct Unit {
    client: Client,
    layout: VcmdLayout,
}

impl Unit {
    const ALLOC: u64 = 1;
    const FREE: u64 = 2;

    fn new(place: &GuestPlace) -> Self {
        let layout = place.config().commands.layout().unwrap();
        Self { client: Client::new(&place.devices().functions[1].path), layout }
    }

    /// Carries out a command; gives the status code and the result.
    fn command(&mut self, opcode: u64, operand: u32) -> (u64, u32) {
        // VCMD, VCRSP, and where operand, status and result begin (10.4.44, 10.4.45).
        let (vcmd, vcrsp, operand_at, status, result_at) = match self.layout {
            VcmdLayout::Revision30 => (0xe10, 0xe20, 8, (1, 0b11), 8),
            VcmdLayout::Revision33 => (0xe00, 0xe10, 16, (1, 0x7f), 16),
        };
        let command = opcode | u64::from(operand) << operand_at;
        self.client.write(0, vcmd, &command.to_le_bytes());
        let mut response = 0;
        eventually("the command is carried out", || {
            response = u64::from_le_bytes(self.client.read(0, vcrsp));
            response & 1 == 0
        });
        (response >> status.0 & status.1, (response >> result_at & 0xf_ffff) as u32)
    }

    fn alloc(&mut self) -> Result<u32, u64> {
        match self.command(Self::ALLOC, 0) {
            (0, pasid) => Ok(pasid),
            (status, _) => Err(status),
        }
    }

    fn free(&mut self, pasid: u32) -> Result<(), u64> {
        match self.command(Self::FREE, pasid) {
            (0, _) => Ok(()),
            (status, _) => Err(status),
        }
    }
}

fn live(guest: &Guest) -> Vec<u32> {
    let live = guest.pasids.iter().filter(|entry| entry.state == State::Live);
    live.map(|entry| entry.guest).collect()
}

#[test]
fn each_guest_has_its_quota_and_no_other_guests_numbers() {
    for (commands, calls) in
        [(Commands::Revision30, HostCalls::Direct), (Commands::Revision33, HostCalls::Bytes)]
    {
        let host = Host::calling(calls, &[GuestConfig { commands, ..SMALL }; 2]);
        let mut units = [0, 1].map(|index| Unit::new(host.place(index)));
        let had = units.each_mut().map(|unit| [(); 4].map(|()| unit.alloc().unwrap()));
        for unit in &mut units {
            assert!(unit.alloc().is_err(), "over quota");
        }
        let mut all = had.concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8, "identity: no two guests have the same");
        // A stranger's is refused and changes nothing.
        assert!(units[0].free(had[1][0]).is_err());
        let snapshot = host.snapshot();
        for (guest, mut had) in snapshot.guests.iter().zip(had) {
            had.sort_unstable();
            assert_eq!(live(guest), had);
            assert!(guest.pasids.iter().all(|entry| entry.host == Some(entry.guest)));
            assert_eq!((guest.quota, guest.live, guest.parked), (4, 4, 0));
            assert_eq!(guest.counters["pasids_unavailable"], 1);
        }
        assert_eq!(snapshot.guests[0].counters["pasid_frees_refused"], 1);
        assert_eq!((snapshot.space.reserved, snapshot.space.live), (8, 8));
        // What is given back can be had again.
        units[0].free(had[0][0]).unwrap();
        assert!(units[0].free(had[0][0]).is_err(), "twice");
        units[0].alloc().unwrap();
    }
}

#[test]
fn private_numbers_are_the_same_in_two_guests_and_differ_on_the_host() {
    let private = GuestConfig { numbering: Numbering::Private, ..SMALL };
    let host = Host::new(&[private, private]);
    let mut units = [0, 1].map(|index| Unit::new(host.place(index)));
    let numbers = units.each_mut().map(|unit| [(); 3].map(|()| unit.alloc().unwrap()));
    assert_eq!(numbers[0], numbers[1]);
    let snapshot = host.snapshot();
    let mut hosts: Vec<_> =
        snapshot.guests.iter().flat_map(|guest| &guest.pasids).map(|entry| entry.host).collect();
    hosts.sort_unstable();
    hosts.dedup();
    assert_eq!(hosts.len(), 6);
    // One guest's number freed leaves the other's alone.
    units[0].free(numbers[0][1]).unwrap();
    let guests = host.snapshot().guests;
    assert_eq!([guests[0].live, guests[1].live], [2, 3]);
}

#[test]
fn a_death_gives_everything_back_and_is_measured() {
    die(HostCalls::Direct);
}

#[test]
fn a_death_gives_everything_back_by_bytes_too() {
    die(HostCalls::Bytes);
}

fn die(calls: HostCalls) {
    let host = Host::calling(calls, &[SMALL, SMALL]);
    let (place, survivor) = (host.place(0), host.place(1));
    let mut survivor = Unit::new(survivor);
    let mut kept = [(); 2].map(|()| survivor.alloc().unwrap());
    kept.sort_unstable();
    for life in 1..=5 {
        let ram = ram("a-death", true);
        let mut accelerator = Accelerator::new(place, &ram);
        let mut unit = Unit::new(place);
        for _ in 0..4 {
            unit.alloc().unwrap();
        }
        assert!(unit.alloc().is_err());
        (0..QUEUE).for_each(|_| accelerator.copy(16 << 20, 32 << 20, 0x2000));
        // As kill -9: the sockets are gone in the middle of all of it.
        drop((unit, accelerator));
        eventually("the guest's end", || place.last_end().is_some() && !place.is_connected());
        let snapshot = host.snapshot();
        let [dead, other] = snapshot.guests.as_slice() else { panic!("{snapshot:?}") };
        assert_eq!((dead.live, dead.parked, dead.pasids.len()), (0, 0, 0), "{dead:?}");
        let end = dead.last_end.unwrap();
        assert_eq!(end.pasids, 4);
        assert!(end.reclaim_us > 0 && end.took_us > 0, "{end:?}");
        assert_eq!(dead.counters["guests_ended"], life);
        assert_eq!(dead.counters["pasids_reclaimed"], 4 * life);
        assert_eq!((other.live, other.last_end), (2, None), "nobody else noticed");
        assert_eq!((snapshot.space.live, snapshot.space.parked), (2, 0));
    }
    assert_eq!(live(&host.snapshot().guests[1]), kept);
    assert!(kept.iter().all(|pasid| survivor.free(*pasid).is_ok()));
    let said = host.said();
    assert_eq!(said.len(), 5, "{said:?}");
    assert!(said
        .iter()
        .all(|line| line.starts_with("guest0: 4 PASIDs taken back, out of all use in ")));
}

#[test]
fn a_reset_of_the_unit_gives_its_pasids_back() {
    let host = Host::new(&[SMALL]);
    let mut unit = Unit::new(host.place(0));
    for _ in 0..3 {
        unit.alloc().unwrap();
    }
    unit.client.reset();
    // When it is answered, nothing is left.
    assert_eq!(host.place(0).vm().pasid_usage().live, 0);
    let guest = host.snapshot().guests.remove(0);
    assert_eq!((guest.connected, guest.live, guest.parked, guest.last_end), (true, 0, 0, None));
    assert_eq!(guest.counters["pasids_reclaimed"], 3);
    for _ in 0..4 {
        unit.alloc().unwrap();
    }
}

#[test]
fn quotas_of_all_guests_fit_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server(Policy::SealedOnly);
    let capacity = server.pasids().capacity;
    let quota = |quota| GuestConfig { quota, ..SMALL };
    let place = server.add_guest(dir.path(), "most", quota(capacity - 3)).unwrap();
    assert_eq!(server.pasids().promised, capacity - 3);
    let refused = server.add_guest(dir.path(), "rest", quota(4)).err().unwrap();
    assert!(matches!(
        refused,
        ServeError::Host(iommu::HostError::QuotaUnavailable { quota: 4, available: 3 })
    ));
    assert!(!dir.path().join("rest-dsa.sock").exists());
    let small = server.add_guest(dir.path(), "rest", quota(3)).unwrap();
    place.close();
    small.close();
    assert_eq!(server.pasids().promised, 0, "all is given back");
}

#[test]
fn a_guest_without_commands_is_shown_the_vmms_grants() {
    let host = Host::new(&[GuestConfig { quota: 2, ..GuestConfig::default() }]);
    let vm = host.place(0).vm();
    let range = PasidRange::new(Pasid::new(5).unwrap(), Pasid::new(9).unwrap()).unwrap();
    let granted = vm.alloc_pasid(range).unwrap();
    assert_eq!(granted, GuestPasid(Pasid::new(5).unwrap()));
    vm.alloc_pasid(range).unwrap();
    assert_eq!(vm.alloc_pasid(range), Err(AllocPasidError::QuotaExceeded { quota: 2 }));
    let guest = host.snapshot().guests.remove(0);
    assert_eq!((live(&guest), guest.vcmd), (vec![5, 6], None));
    assert!(guest.pasids[0].age_ms.is_some());
    assert!(!guest.pasids[0].holders.is_empty());
}

#[test]
fn it_can_be_watched_while_guests_come_and_go() {
    let host = Host::new(&[SMALL, SMALL]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let guests = [0, 1].map(|index| {
            let (place, stop) = (host.place(index), &stop);
            scope.spawn(move || {
                let mut lives = 0;
                while !stop.load(Ordering::SeqCst) {
                    let mut unit = Unit::new(place);
                    let pasids: Vec<_> = (0..4).map_while(|_| unit.alloc().ok()).collect();
                    unit.free(pasids[0]).unwrap();
                    drop(unit);
                    lives += 1;
                    eventually("the guest's end", || !place.is_connected());
                }
                lives
            })
        });
        let stopping = StopOnDrop(&stop);
        let mut asker = host.asker();
        for _ in 0..40 {
            let snapshot = asker.ask(None).unwrap();
            for guest in &snapshot.guests {
                assert!(guest.live + guest.parked <= guest.quota, "{guest:?}");
                assert_eq!(guest.pasids.len() as u32, guest.live + guest.parked, "{guest:?}");
            }
        }
        drop(stopping);
        for guest in guests {
            assert!(guest.join().unwrap() > 1, "guests came and went");
        }
    });
    let space = host.snapshot().space;
    assert_eq!((space.live, space.parked, space.reserved), (0, 0, 8));
}

#[test]
fn clients_that_break_rules_are_refused_and_others_served() {
    let host = Host::new(&[SMALL]);
    let socket = host.dir.path().join(SOCKET);
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let answer = |request: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        // Reset, where it did not want to hear all of it.
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let malformed = "{\"version\":1,\"refused\":\"malformed\"}\n";
    assert_eq!(answer(b"GET / HTTP/1.1\r\n\r\n"), malformed);
    assert_eq!(answer(b"{\"version\":-1}\n"), malformed);
    assert_eq!(answer(&[b'['; MAX_REQUEST]), malformed);
    assert_eq!(answer(b"\xff\n{\"version\":1}\n"), malformed, "and nothing after it");
    let mut asker = host.asker();
    let refused = asker.ask(Some("guest9")).unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::NoGuest { name, .. }) if name == "guest9"));
    assert_eq!(asker.ask(None).unwrap().inspections.refusals, 5);

    // Another version is told ours, and may go on with it.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..2 {
        stream.write_all(b"{\"version\":2,\"wish\":[]}\n").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        let refused = "{\"version\":1,\"refused\":{\"version\":{\"got\":2,\"known\":1}}}\n";
        assert_eq!(answer, refused);
    }
}

#[test]
fn silent_clients_take_only_their_places() {
    let mut host = Host::new(&[SMALL]);
    let silent: Vec<_> = (0..MAX_CLIENTS).map(|_| host.asker()).collect();
    let busy =
        |error: &Error| matches!(error, Error::Refused(Refusal::Busy { limit: MAX_CLIENTS }));
    assert!(host.asker().ask(None).is_err_and(|error| busy(&error)));
    drop(silent);
    eventually("a place is free", || host.asker().ask(None).is_ok());
    // A client that says nothing does not keep the server from ending.
    let mut waiting = host.asker();
    thread::sleep(Duration::from_millis(20));
    host.inspector = None;
    assert!(waiting.ask(None).is_err());
    assert!(!host.dir.path().join(SOCKET).exists());
}
