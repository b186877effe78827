//! Clients that break rules: what they get, and that nobody else notices.

mod peer;

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use dsa::spec::Status;
use mem::Policy;
use peer::*;
use vsva::server::{GuestConfig, GuestPlace, LINES_PER_PERIOD, PERIOD};

/// Shows that a place works: a copy by its accelerator.
fn works(place: &GuestPlace, name: &str) {
    let ram = ram(name, true);
    let mut accelerator = Accelerator::new(place, &ram);
    assert_copies(&mut accelerator, &ram);
    drop(accelerator);
    place.wait_ended(PATIENCE).unwrap();
}

fn assert_copies(accelerator: &mut Accelerator, ram: &std::fs::File) {
    let (from, to, record) = (16 << 20, 32 << 20, 0x1000);
    let bytes: Vec<u8> = (0..COPY).map(|n| (n % 251) as u8).collect();
    ram.write_all_at(&bytes, from).unwrap();
    ram.write_all_at(&[0; 32], record).unwrap();
    accelerator.copy(from, to, record);
    assert_eq!(completed(ram, record).status.status(), Ok(Status::Success));
    let mut copied = vec![0; bytes.len()];
    ram.read_exact_at(&mut copied, to).unwrap();
    assert!(copied == bytes);
}

#[test]
fn a_second_client_is_refused_at_once_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server(Policy::SealedOnly);
    let place = server.add_guest(dir.path(), "guest", GuestConfig::default()).unwrap();
    let ram = ram("second-client", true);
    let mut first = Accelerator::new(&place, &ram);
    let begun = Instant::now();
    assert!(Client::stranger(&place.devices().functions[0].path).closed());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(count(&place, "clients_refused"), 1);
    assert_copies(&mut first, &ram);
}

#[test]
fn memory_that_could_shrink_is_refused_by_the_name_of_its_seal() {
    let dir = tempfile::tempdir().unwrap();
    let (strict, said) = server(Policy::SealedOnly);
    let place = strict.add_guest(dir.path(), "guest", GuestConfig::default()).unwrap();
    let unsealed = ram("unsealed", false);
    let mut client = Client::new(&place.devices().functions[0].path);
    assert_eq!(client.map(&unsealed, 0), Err(EPERM));
    assert_eq!(place.memory(), (0, 0));
    assert_eq!(count(&place, "memory_refused"), 1);
    let said = said.lock().unwrap();
    let [(_, line)] = said.as_slice() else { panic!("{said:?}") };
    for word in ["guest: ", "F_SEAL_SHRINK", "--allow-unsealed", "kills this server"] {
        assert!(line.contains(word), "{line:?} lacks {word:?}");
    }

    let dir = tempfile::tempdir().unwrap();
    let (lenient, said) = server(Policy::AllowUnsealed);
    let place = lenient.add_guest(dir.path(), "guest", GuestConfig::default()).unwrap();
    let mut accelerator = Accelerator::new(&place, &unsealed);
    assert_copies(&mut accelerator, &unsealed);
    assert!(said.lock().unwrap().is_empty());
}

#[test]
fn nobody_can_truncate_memory_in_the_middle_of_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server(Policy::SealedOnly);
    let place = server.add_guest(dir.path(), "guest", GuestConfig::default()).unwrap();
    let ram = ram("truncated", true);
    let mut accelerator = Accelerator::new(&place, &ram);
    let bytes = vec![0x5a; COPY as usize];
    ram.write_all_at(&bytes, 16 << 20).unwrap();
    let record = |index: u64| 0x1000 + 32 * index;
    let target = |index: u64| (18 << 20) + index * u64::from(COPY);
    let queue = u64::from(QUEUE);
    (0..queue).for_each(|index| accelerator.copy(16 << 20, target(index), record(index)));
    let unfinished = || {
        let mut status = [0];
        ram.read_exact_at(&mut status, record(queue - 1)).unwrap();
        status[0] == 0
    };
    let mut attempts = 0;
    while unfinished() {
        for len in [0, 17 << 20, RAM - 1] {
            let error = ram.set_len(len).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(EPERM as i32));
        }
        attempts += 1;
    }
    assert!(attempts > 0, "the copies were over too soon");
    for index in 0..queue {
        assert_eq!(completed(&ram, record(index)).status.status(), Ok(Status::Success));
        let mut copied = vec![0; bytes.len()];
        ram.read_exact_at(&mut copied, target(index)).unwrap();
        assert!(copied == bytes, "copy {index}");
    }
}

#[test]
fn garbage_ends_its_own_connection_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (server, said) = server(Policy::SealedOnly);
    let place = server.add_guest(dir.path(), "bad", GuestConfig::default()).unwrap();
    let other = server.add_guest(dir.path(), "good", GuestConfig::default()).unwrap();
    let (ram, other_ram) = (ram("bad", true), ram("good", true));
    let mut accelerator = Accelerator::new(&place, &ram);
    let mut neighbour = Accelerator::new(&other, &other_ram);
    for round in 1..=5 {
        let mut iommu = Client::new(&place.devices().functions[1].path);
        iommu.map(&ram, 0).unwrap();
        // As a header: a reply nobody asked for, of 4 GiB.
        iommu.socket.write_all(&[0xff; 64]).unwrap();
        assert!(iommu.closed());
        drop(iommu);
        eventually("the claims are gone", || place.memory().0 == 1);
        assert_eq!(count(&place, "protocol_errors"), round);
        assert_eq!(count(&other, "protocol_errors"), 0);
        assert_copies(&mut accelerator, &ram);
        assert_copies(&mut neighbour, &other_ram);
    }
    let said = said.lock().unwrap();
    assert_eq!(said.len(), 5);
    let blamed = |line: &str| line.starts_with("bad: connection ended: protocol error");
    assert!(said.iter().all(|(_, line)| blamed(line)), "{said:?}");
}

#[test]
fn a_flood_of_refusals_is_a_few_lines() {
    let dir = tempfile::tempdir().unwrap();
    let (server, said) = server(Policy::SealedOnly);
    let place = server.add_guest(dir.path(), "guest", GuestConfig::default()).unwrap();
    let unsealed = ram("flood", false);
    let mut client = Client::new(&place.devices().functions[0].path);
    let begun = Instant::now();
    let mut refused = 0;
    while begun.elapsed() < PERIOD + PERIOD / 4 {
        assert_eq!(client.map(&unsealed, 0), Err(EPERM));
        refused += 1;
    }
    assert!(refused > 10 * LINES_PER_PERIOD, "{refused} in {:?} is no flood", begun.elapsed());
    assert_eq!(count(&place, "memory_refused"), u64::from(refused));
    let said = said.lock().unwrap();
    assert!(said.len() > LINES_PER_PERIOD as usize, "it goes on in the next second");
    for lines in said.windows(LINES_PER_PERIOD as usize + 1) {
        let apart = lines[LINES_PER_PERIOD as usize].0 - lines[0].0;
        // Lines are timed a little after they are allowed.
        assert!(apart + PERIOD / 10 >= PERIOD, "{apart:?}");
    }
    assert!(said.iter().any(|(_, line)| line.ends_with("more lines not shown")));
    drop(client);
    place.wait_ended(PATIENCE).unwrap();
    drop(said);
    works(&place, "after-the-flood");
}
