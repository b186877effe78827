//! The shared queue: accepted or retry, by an API in process.

use dsa::model::Submission;
use dsa::spec::Portal;

use super::super::accelerator::copy_as;
use super::super::{check, equal, succeeded, Guest, Setup, Space, Verdict, PAGE, SHARED};
use super::{COPY, DESTINATION, RECORD, SOURCE};

const WQ: usize = SHARED.index as usize;

fn submit(guest: &Guest, portal: Portal, space: &Space, index: u64) -> Submission {
    let addresses = [SOURCE, DESTINATION + 64 * index, RECORD + 32 * index];
    let descriptor = copy_as(space.pasid, addresses, 64);
    guest.rig.device.submit(WQ, portal, &descriptor.to_bytes())
}

fn processes(guest: &mut Guest) -> Verdict<[Space; 2]> {
    let mut spaces = [guest.process(0x10)?, guest.process(0x11)?];
    for (space, byte) in spaces.iter_mut().zip([0x11, 0x22]) {
        for at in COPY {
            space.allocate(&mut guest.rig.ram, at, PAGE);
        }
        space.write(&guest.rig.ram, SOURCE, &[byte; 64]);
    }
    Ok(spaces)
}

/// Each descriptor works in the name of the PASID that it was submitted with; a full queue says
/// retry, at its threshold on the limited portal and at its size on the other.
pub fn shared_queue(setup: Setup) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let spaces = processes(&mut guest)?;
    let threshold = u64::from(SHARED.threshold);
    for index in 0..threshold {
        let space = &spaces[index as usize % 2];
        let answer = submit(&guest, Portal::LIMITED, space, index);
        equal(answer, Submission::Accepted, "below the threshold")?;
    }
    let answer = submit(&guest, Portal::LIMITED, &spaces[0], threshold);
    equal(answer, Submission::Retry, "at the threshold")?;
    for index in threshold..SHARED.size.into() {
        let space = &spaces[index as usize % 2];
        let answer = submit(&guest, Portal::UNLIMITED, space, index);
        equal(answer, Submission::Accepted, "below the size")?;
    }
    let answer = submit(&guest, Portal::UNLIMITED, &spaces[0], 0);
    equal(answer, Submission::Retry, "at the size")?;

    for index in 0..u64::from(SHARED.size) {
        let (owner, byte) = [(0, 0x11), (1, 0x22)][index as usize % 2];
        succeeded(&guest.wait_record(&spaces[owner], RECORD + 32 * index)?)?;
        let at = DESTINATION + 64 * index;
        equal(spaces[owner].read(&guest.rig.ram, at, 64), vec![byte; 64], "its own bytes")?;
        equal(spaces[1 - owner].read(&guest.rig.ram, at, 64), vec![0; 64], "the other's page")?;
    }
    let answer = submit(&guest, Portal::LIMITED, &spaces[0], 0);
    equal(answer, Submission::Accepted, "an empty queue")?;
    let counters = guest.rig.device.counters();
    let accepted = u64::from(SHARED.size) + 1;
    equal((counters.accepted, counters.retries), (accepted, 2), "accepted and retries")
}

/// A plain store to the portal of a shared queue moves nothing.
pub fn plain_stores_to_shared(setup: Setup) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let [space, _] = processes(&mut guest)?;
    let before = guest.rig.device.counters();
    guest.accelerator.store(&guest.rig, SHARED, &copy_as(space.pasid, COPY, 64));
    guest.rig.settle()?;
    let after = guest.rig.device.counters();
    equal(after.descriptors, before.descriptors, "descriptors taken up")?;
    equal(after.portal_ignored, before.portal_ignored + 1, "stores ignored")?;
    equal(space.read(&guest.rig.ram, DESTINATION, 64), vec![0; 64], "the destination")?;
    check(space.read(&guest.rig.ram, RECORD, 32) == [0; 32], "the record")
}
