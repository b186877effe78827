//! Things that end while descriptors wait for pages: in which order, that nobody is left waiting, and that nothing moves
//! afterwards. Each end comes twice.

use iommu::Vm;
use mem::Gpa;
use pci::Function;

use super::super::accelerator::{self, Command, ACTIVE, CMDSTATUS};
use super::super::pages::refuse;
use super::super::{
    check, equal, Accelerator, Guest, Pages, Rig, Setup, Space, Unit, Verdict, DEDICATED, DEVICE,
    PAGE, RAM,
};
use super::lazy::{boot, complete, nothing_is_left, process, submit};
use super::{DESTINATION, RECORD, SOURCE};

/// Descriptors that wait.
const WAITING: u64 = 5;

/// A guest in which [`WAITING`] descriptors of a process wait for pages, each with its request in the guest's queue.
fn waiting(setup: Setup) -> Verdict<(Guest, Space)> {
    let mut guest = boot(setup)?;
    let space = process(&mut guest, DEDICATED, 0x10)?;
    for index in 0..WAITING {
        submit(&guest, DEDICATED, index);
    }
    let pages = guest.pages.as_ref().ok_or("no queue")?;
    guest.rig.wait("the page requests", || pages.waiting(&guest.rig) == WAITING)?;
    let outstanding = guest.rig.machine.vm().page_request_counters().outstanding;
    equal(outstanding, WAITING, "groups outstanding")?;
    equal(guest.rig.device.counters().blocked, WAITING, "descriptors that wait")?;
    Ok((guest, space))
}

/// Gives the process pages now: what moves after its end would be seen in them.
fn bait(guest: &mut Guest, space: &mut Space) -> Vec<Gpa> {
    let pages = [SOURCE, DESTINATION, RECORD & !(PAGE - 1)];
    for at in pages {
        space.allocate(&mut guest.rig.ram, at, WAITING * 16 * PAGE);
    }
    let untouched = (DESTINATION..DESTINATION + WAITING * 16 * PAGE).step_by(PAGE as usize);
    untouched.chain([RECORD]).map(|at| space.page(at)).collect()
}

/// Nothing was written there.
fn is_untouched(guest: &Guest, pages: &[Gpa]) -> Verdict {
    guest.rig.settle()?;
    check(
        pages.iter().all(|page| guest.rig.ram.is_stamped(*page, 0)),
        "a byte was written after the end",
    )
}

/// A process and its queue work as if nothing had been.
fn the_next_works(guest: &mut Guest, number: u32) -> Verdict {
    let mut space = process(guest, DEDICATED, number)?;
    submit(guest, DEDICATED, 0);
    complete(guest, &mut space, 1)?;
    nothing_is_left(guest)?;
    guest.accelerator.close(&guest.rig, DEDICATED)?;
    guest.unit.unbind(&guest.rig, space.pasid)?;
    guest.drain(&mut space, refuse)
}

/// No PASID is parked or bound, and nothing is cached for any. Those that a guest has numbered itself may be held for it
/// for a while.
fn pasids_are_back(guest: &Guest) -> Verdict {
    let vm = guest.rig.machine.vm();
    guest.rig.wait("the end of parked PASIDs", || vm.pasid_usage().parked == 0)?;
    let report = guest.rig.host.pasid_report();
    let mut entries = report.vms.iter().flat_map(|vm| &vm.entries);
    let bound = entries.any(|entry| entry.holders.iter().any(|holder| holder == "iommu"));
    check(!bound, "a PASID is in a table of the host's")?;
    let [iotlb, pasid_entries, _] = guest.rig.footprint();
    equal([iotlb, pasid_entries], [0; 2], "cached entries")
}

/// An unbind while requests are out: entry, caches, device TLB, then the drain; all of it twice.
pub fn unbind(setup: Setup) -> Verdict {
    let (mut guest, mut space) = waiting(setup)?;
    for _ in 0..2 {
        guest.unit.forget(&mut guest.rig, space.pasid)?;
        guest.drain(&mut space, refuse)?;
        nothing_is_left(&guest)?;
    }
    let untouched = bait(&mut guest, &mut space);
    // What is submitted now finds no PASID.
    submit(&guest, DEDICATED, 0);
    is_untouched(&guest, &untouched)?;
    nothing_is_left(&guest)?;
    guest.accelerator.close(&guest.rig, DEDICATED)?;
    pasids_are_back(&guest)?;
    the_next_works(&mut guest, 0x11)?;
    pasids_are_back(&guest)
}

/// A process is killed: its memory goes first (the entry is cleared with FPD), then its queue is closed, then it is
/// unbound, which clears and drains once more.
pub fn process_exit(setup: Setup) -> Verdict {
    let (mut guest, mut space) = waiting(setup)?;
    guest.unit.forget(&mut guest.rig, space.pasid)?;
    let untouched = bait(&mut guest, &mut space);
    // The queue's close waits for what is in it, and the handler has no memory to give any more.
    guest.accelerator.start(&guest.rig, Command::DrainWq, 1 << DEDICATED.index);
    let drained =
        |guest: &Guest, _: &Space| accelerator::read32(&guest.rig, CMDSTATUS) & ACTIVE == 0;
    guest.serve_until("the queue's drain", &mut space, refuse, drained)?;
    equal(accelerator::read32(&guest.rig, CMDSTATUS), 0, "status of the drain")?;
    guest.accelerator.command(&guest.rig, Command::ResetWq, 1 << DEDICATED.index)?;
    for _ in 0..2 {
        guest.unit.forget(&mut guest.rig, space.pasid)?;
        guest.drain(&mut space, refuse)?;
    }
    is_untouched(&guest, &untouched)?;
    nothing_is_left(&guest)?;
    pasids_are_back(&guest)?;
    the_next_works(&mut guest, 0x10)
}

/// The function is reset: it forgets what it asked, and answers that come yet are for nobody.
pub fn function_reset(setup: Setup) -> Verdict {
    let (mut guest, mut space) = waiting(setup)?;
    let untouched = bait(&mut guest, &mut space);
    for _ in 0..2 {
        // Device control: initiate function-level reset.
        guest.rig.device.config_write(0x48, &0x8000u16.to_le_bytes());
        guest.rig.settle()?;
        nothing_is_left(&guest)?;
    }
    let answered = guest.rig.machine.vm().page_request_counters().answered;
    // The guest's own handler does not know yet.
    guest.drain(&mut space, |_: &mut _, _: &mut _, _: &_| super::super::Code::Success)?;
    is_untouched(&guest, &untouched)?;
    let counters = guest.rig.machine.vm().page_request_counters();
    equal(counters.answered, answered, "answers that reached the device")?;
    equal(guest.rig.device.counters().page_responses_unexpected, 0, "unexpected answers")?;
    guest.unit.forget(&mut guest.rig, space.pasid)?;
    guest.accelerator = Accelerator::probe_with(&guest.rig, true)?;
    guest.accelerator.configure(&guest.rig)?;
    pasids_are_back(&guest)?;
    the_next_works(&mut guest, 0x10)
}

/// The guest is reset, IOMMU first: both functions are as after power-on, and the next kernel works.
pub fn guest_reset(setup: Setup) -> Verdict {
    let (mut guest, mut space) = waiting(setup)?;
    let untouched = bait(&mut guest, &mut space);
    for _ in 0..2 {
        Function::reset(&guest.rig.carrier);
        guest.rig.device.reset();
        let ticket = guest.rig.machine.vm().release_pasids();
        let vm = guest.rig.machine.vm();
        guest.rig.wait("the end of PASIDs", || vm.is_complete(ticket))?;
        is_untouched(&guest, &untouched)?;
        nothing_is_left(&guest)?;
        pasids_are_back(&guest)?;
    }
    guest.rig.ram.restart();
    guest.pages = Some(Pages::enable(&mut guest.rig)?);
    guest.unit = Unit::boot_with(&mut guest.rig, true)?;
    guest.accelerator = Accelerator::probe_with(&guest.rig, true)?;
    guest.accelerator.configure(&guest.rig)?;
    the_next_works(&mut guest, 0x10)
}

/// The guest dies: nobody is left to answer, everything of it is free, and the next guest on the host works.
pub fn death(setup: Setup) -> Verdict {
    let (mut guest, mut space) = waiting(setup)?;
    let untouched = bait(&mut guest, &mut space);
    let vm = guest.rig.machine.vm().clone();
    for _ in 0..2 {
        let ticket = guest.rig.machine.close();
        guest.rig.wait("the end of the VM", || vm.is_complete(ticket))?;
        is_untouched(&guest, &untouched)?;
        nothing_is_left(&guest)?;
    }
    equal(guest.rig.footprint(), [0; 3], "cached entries and devices")?;
    equal(guest.rig.host.vms(), 0, "VMs of the host")?;
    let report = guest.rig.host.pasid_report();
    equal((report.live, report.parked, report.promised), (0, 0, 0), "PASIDs of the host")?;
    equal(vm.attach(DEVICE).is_err(), true, "no device attaches")?;
    guest.rig.wait("the memory to be free", || !guest.rig.ram.is_held())?;
    let mut next = Guest::boot_paging(Rig::on(&guest.rig.host, setup, RAM))?;
    the_next_works(&mut next, 0x10)
}
