//! Things that end while copies run.

use iommu::{AddressSpace, AttachError, Vm};
use mem::{Gpa, Iova};
use pci::Function;
use vtd::model::Progress;

use super::super::accelerator::{self, Command, ACTIVE, CMDSTATUS};
use super::super::{
    check, equal, pasid, succeeded, Guest, Rig, Setup, Space, Verdict, DEDICATED, DEVICE, PAGE,
    PROBE, RAM,
};
use super::{DESTINATION, RECORD, SOURCE};

/// Pages that a copy covers.
const PAGES: u64 = 64;
const LEN: u32 = (PAGES * PAGE) as u32;
/// Copies that are under way.
const COPIES: u64 = 15;
/// What the guest's own data is.
const DATA: u64 = 0x0123_4567_89ab_cdef;
/// What a source holds that no longer belongs to the process.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
/// What a destination holds that no longer belongs to the process.
const TAKEN: u64 = 0xdead_dead_dead_dead;

/// A process with a source and destinations for [`COPIES`], and its queue.
fn process(guest: &mut Guest) -> Verdict<Space> {
    let mut space = guest.process(0x10)?;
    for at in pages() {
        space.allocate(&mut guest.rig.ram, at, PAGE);
    }
    space.allocate(&mut guest.rig.ram, RECORD, 1);
    for at in pages_of(SOURCE) {
        guest.rig.ram.stamp(space.page(at), DATA);
    }
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
    Ok(space)
}

/// Virtual addresses of the pages of source and destination.
fn pages() -> impl Iterator<Item = u64> {
    pages_of(SOURCE).chain(pages_of(DESTINATION))
}

fn pages_of(base: u64) -> impl Iterator<Item = u64> + Clone {
    (0..PAGES).map(move |index| base + index * PAGE)
}

/// Submits the copies, all to the same place.
fn submit(guest: &Guest, space: &Space) {
    space.write(&guest.rig.ram, RECORD, &[0; 32 * COPIES as usize]);
    for index in 0..COPIES {
        let descriptor = accelerator::copy([SOURCE, DESTINATION, RECORD + 32 * index], LEN);
        guest.accelerator.store(&guest.rig, DEDICATED, &descriptor);
    }
}

/// While copies run, all of their pages are taken away and others put in their place. After the
/// wait descriptor no byte comes from or goes to the old ones.
pub fn unmap_under_copy(setup: Setup, rounds: u32) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let mut space = process(&mut guest)?;
    for round in 0..rounds {
        let begun = guest.rig.device.counters().descriptors;
        submit(&guest, &space);
        guest.rig.wait("a copy", || guest.rig.device.counters().descriptors > begun)?;
        // Lets it get a little further, as far as the round says.
        guest.rig.driver.step_engines(round as usize % 5);
        (0..round % 7 * 200).for_each(|_| std::hint::spin_loop());
        let ram = &mut guest.rig.ram;
        let old = [SOURCE, DESTINATION]
            .map(|base| pages_of(base).map(|at| space.unmap(ram, at)).collect::<Vec<Gpa>>());
        for base in [SOURCE, DESTINATION] {
            guest.unit.flush_pages(&guest.rig, &space, base, PAGES)?;
        }
        // They belong to somebody else now.
        old[1].iter().for_each(|page| guest.rig.ram.stamp(*page, TAKEN));
        old[0].iter().for_each(|page| guest.rig.ram.stamp(*page, SECRET));
        let ram = &mut guest.rig.ram;
        for at in pages() {
            let page = ram.page();
            ram.stamp(page, DATA);
            space.map(ram, at, page);
        }
        for index in 0..COPIES {
            guest.wait_record(&space, RECORD + 32 * index)?;
        }
        let record = guest.copy(DEDICATED, &space, [SOURCE, DESTINATION, RECORD], LEN)?;
        succeeded(&record)?;
        let ram = &mut guest.rig.ram;
        let untouched = old[1].iter().all(|page| ram.is_stamped(*page, TAKEN));
        check(untouched, "a byte went to an old page")?;
        let stale = pages_of(DESTINATION).any(|at| ram.has(space.page(at), SECRET));
        check(!stale, "a byte came from an old page")?;
        old.into_iter().flatten().for_each(|page| ram.give_back(page));
    }
    Ok(())
}

/// A page is taken away in the middle of an access to it: the wait descriptor does not complete before the access is
/// over. Only without threads, for it is the caller who looks what the unit is about.
pub fn unmap_under_access(setup: Setup) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let mut space = guest.process(0x10)?;
    space.allocate(&mut guest.rig.ram, SOURCE, PAGE);
    let probe = guest.rig.machine.attach(PROBE).map_err(|error| error.to_string())?;
    guest.unit.admit(&guest.rig, PROBE)?;
    let channel = probe.channel();
    let of_process = AddressSpace { pasid: Some(space.pasid), privileged: false };
    let access = channel.enter();
    let read = access.read(of_process, Iova(SOURCE), &mut [0; 8]);
    read.map_err(|error| error.to_string())?;

    space.unmap(&mut guest.rig.ram, SOURCE);
    let flush = guest.unit.queue_flush(&guest.rig, &space, SOURCE, 1);
    let progress = loop {
        match guest.rig.machine.poll() {
            Progress::More => {}
            progress => break progress,
        }
    };
    check(
        matches!(progress, Progress::Waiting(_)),
        "a wait descriptor completed during an access",
    )?;
    drop(access);
    guest.unit.wait(&guest.rig, flush)
}

/// Resets, by command and of the function, while copies run: nothing moves afterwards.
pub fn reset_under_copy(setup: Setup) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let space = process(&mut guest)?;
    let device = guest.rig.device.clone();
    let destination = || pages_of(DESTINATION).map(|at| space.page(at));
    let resets: [fn(&Guest) -> Verdict; 2] = [reset_device, reset_function];
    for reset in resets {
        submit(&guest, &space);
        guest.rig.driver.step_engines(2);
        check(device.counters().descriptors > 0, "copies run")?;
        let abandoned = device.counters().abandoned;
        reset(&guest)?;
        destination().for_each(|page| guest.rig.ram.stamp(page, TAKEN));
        guest.rig.settle()?;
        let untouched = destination().all(|page| guest.rig.ram.is_stamped(page, TAKEN));
        check(untouched, "a byte was written after the reset")?;
        let records = space.read(&guest.rig.ram, RECORD, 32 * COPIES as usize);
        check(records.iter().all(|byte| *byte == 0), "a record was written")?;
        equal(device.counters().abandoned, abandoned + COPIES, "copies abandoned")?;

        // It works again.
        let accelerator = accelerator::Accelerator::probe(&guest.rig)?;
        accelerator.configure(&guest.rig)?;
        accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
        let record = guest.copy(DEDICATED, &space, [SOURCE, DESTINATION, RECORD], LEN)?;
        succeeded(&record)?;
        destination().try_for_each(|page| {
            check(guest.rig.ram.is_stamped(page, DATA), "a copy after the reset")
        })?;
    }
    Ok(())
}

/// The Reset Device command: complete only when the engines have let go of what they ran.
fn reset_device(guest: &Guest) -> Verdict {
    let raised = guest.rig.vectors.count(0);
    guest.accelerator.start(&guest.rig, Command::ResetDevice, 0);
    let active = accelerator::read32(&guest.rig, CMDSTATUS) & ACTIVE != 0;
    check(active, "the reset waits for the engines")?;
    guest.accelerator.finish(&guest.rig, raised)
}

/// A reset of the function, which configuration space asks for. It is over when the engines have
/// nothing left; a driver waits 100 ms.
fn reset_function(guest: &Guest) -> Verdict {
    // Device control: initiate function-level reset.
    guest.rig.device.config_write(0x48, &0x8000u16.to_le_bytes());
    guest.rig.driver.step_engines(1);
    Ok(())
}

/// The VM ends while copies run: nothing moves afterwards, everything is free, and the next VM on
/// the same host works.
pub fn vm_death_under_copy(setup: Setup) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let space = process(&mut guest)?;
    submit(&guest, &space);
    let device = guest.rig.device.clone();
    let begun = || {
        guest.rig.driver.step_engines(1);
        device.counters().descriptors > 0
    };
    guest.rig.wait("a copy", begun)?;
    let vm = guest.rig.machine.vm().clone();
    let ticket = guest.rig.machine.close();
    guest.rig.wait("the end of the VM", || vm.is_complete(ticket))?;
    let destination = pages_of(DESTINATION).map(|at| space.page(at));
    destination.clone().for_each(|page| guest.rig.ram.stamp(page, TAKEN));
    guest.rig.settle()?;
    check(destination.clone().all(|page| guest.rig.ram.is_stamped(page, TAKEN)), "a late byte")?;
    equal(guest.rig.footprint(), [0; 3], "cached entries and devices")?;
    equal(guest.rig.host.vms(), 0, "VMs of the host")?;
    equal(vm.attach(DEVICE).map(drop), Err(AttachError::Closed), "a device attaches")?;
    check(vm.memory().segments().is_empty(), "memory of the VM")?;
    guest.rig.wait("the memory to be free", || !guest.rig.ram.is_held())?;

    // Its registers still answer, and the next VM is none the wiser.
    guest.rig.device.bar_read(0, 0, &mut [0; 4]);
    guest.rig.carrier.bar_read(0, 0, &mut [0; 4]);
    let next = Rig::on(&guest.rig.host, setup, RAM);
    let mut next = Guest::boot_on(next)?;
    let mut space = Space::new(&mut next.rig.ram, pasid(0x10));
    for at in super::COPY {
        space.allocate(&mut next.rig.ram, at, PAGE);
    }
    next.unit.bind(&mut next.rig, &space)?;
    space.write(&next.rig.ram, SOURCE, b"next");
    next.accelerator.open(&next.rig, DEDICATED, space.pasid)?;
    succeeded(&next.copy(DEDICATED, &space, super::COPY, 4)?)?;
    equal(space.read(&next.rig.ram, DESTINATION, 4), b"next".to_vec(), "the next VM's copy")
}
