//! Guests that die in the middle of copies, again and again, leave nothing behind. Alone in its
//! program: it counts what the process has.

mod peer;

use std::fs;
use std::os::unix::fs::FileExt as _;

use dsa::spec::Status;
use mem::Policy;
use peer::holdings::{mappings, Holdings};
use peer::*;
use vsva::server::GuestConfig;

/// Lives of guests in one place.
const LIVES: u64 = 50;

#[test]
fn fifty_deaths_in_the_middle_of_copies_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (server, said) = server(Policy::SealedOnly);
    let place = server.add_guest(dir.path(), "guest", GuestConfig::default()).unwrap();
    let ram = ram("fifty-lives", true);
    let before = Holdings::now();
    let mut submitted = 0;
    for life in 1..=LIVES {
        // Refused if anything of the last guest were in the way.
        let mut accelerator = Accelerator::new(&place, &ram);
        let mut iommu = Client::new(&place.devices().functions[1].path);
        iommu.map(&ram, 0).unwrap();
        assert_eq!(place.memory(), (2, 1));
        assert_eq!(mappings("fifty-lives"), 1);
        ram.write_all_at(&[0; 32], 0x1000).unwrap();
        accelerator.copy(16 << 20, 32 << 20, 0x1000);
        assert_eq!(completed(&ram, 0x1000).status.status(), Ok(Status::Success));
        (0..QUEUE).for_each(|_| accelerator.copy(16 << 20, 32 << 20, 0x2000));
        submitted += u64::from(QUEUE) + 1;
        drop(accelerator);
        drop(iommu);
        // They may be gone for us before they are for the server.
        eventually("the server notices", || {
            place.wait_ended(PATIENCE).is_ok() && place.memory().0 == 0
        });
        assert_eq!(place.lives(), life);
        assert_eq!(place.memory(), (0, 0));
        assert_eq!(mappings("fifty-lives"), 0);
        assert_eq!(Holdings::now(), before, "after life {life}");
    }
    assert_eq!(count(&place, "clients_refused"), 0);
    let executed = count(&place, "descriptors");
    assert!(executed < submitted, "no life ended in the middle of its {submitted} copies");
    assert!(said.lock().unwrap().is_empty());
    assert_eq!(server.vms(), 1);
    place.close();
    assert_eq!(server.vms(), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "sockets and tables are removed");
}
