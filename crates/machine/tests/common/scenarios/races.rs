//! Things that end while copies run.

use iommu::{AttachError, Vm};
use mem::Gpa;
use pci::Function;

use super::super::accelerator::{self, Command, ACTIVE, CMDSTATUS};
use super::super::{check, equal, pasid, Drive, Guest, Space, Verdict, DEDICATED, DEVICE, PAGE};
use super::{DESTINATION, RECORD, SOURCE};

/// Pages that a copy covers.
const PAGES: u64 = 64;
const LEN: u32 = (PAGES * PAGE) as u32;
/// Copies that are under way.
const COPIES: u64 = 4;
/// What the guest's own data is.
const DATA: u64 = 0x0123_4567_89ab_cdef;
/// What a page holds that no longer belongs to the process.
const TAKEN: u64 = 0xdead_dead_dead_dead;

/// A process with a source and destinations for [`COPIES`], and its queue.
fn process(guest: &mut Guest) -> Verdict<Space> {
    let mut space = guest.process(0x10)?;
    for at in pages() {
        space.allocate(&mut guest.rig.ram, at, PAGE);
    }
    space.allocate(&mut guest.rig.ram, RECORD, 1);
    for at in (SOURCE..SOURCE + u64::from(LEN)).step_by(PAGE as usize) {
        guest.rig.ram.stamp(space.page(at), DATA);
    }
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
    Ok(space)
}

/// Virtual addresses of the pages of source and destination.
fn pages() -> impl Iterator<Item = u64> {
    [SOURCE, DESTINATION].into_iter().flat_map(|base| (0..PAGES).map(move |i| base + i * PAGE))
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
pub fn unmap_under_copy(drive: Drive, rounds: u32) -> Verdict {
    let mut guest = Guest::boot(drive)?;
    let mut space = process(&mut guest)?;
    for round in 0..rounds {
        submit(&guest, &space);
        // Lets the copies get into their stride, a little further each time.
        let begun = guest.rig.device.counters().descriptors;
        let mut patience = round % 7 * 40;
        guest.rig.wait("a copy", || {
            patience = patience.saturating_sub(1);
            patience == 0 || guest.rig.device.counters().descriptors > begun
        })?;
        let ram = &mut guest.rig.ram;
        let old: Vec<Gpa> = pages().map(|at| space.unmap(ram, at)).collect();
        for base in [SOURCE, DESTINATION] {
            guest.unit.flush_pages(&guest.rig, &space, base, PAGES.trailing_zeros())?;
        }
        // They belong to somebody else now.
        old.iter().for_each(|page| guest.rig.ram.stamp(*page, TAKEN));
        let ram = &mut guest.rig.ram;
        for at in pages() {
            let page = ram.page();
            ram.stamp(page, DATA);
            space.map(ram, at, page);
        }
        for index in 0..COPIES {
            guest.wait_record(&space, RECORD + 32 * index)?;
        }
        let ram = &mut guest.rig.ram;
        check(old.iter().all(|page| ram.is_stamped(*page, TAKEN)), "a byte went to an old page")?;
        let stale = pages().any(|at| ram.has(space.page(at), TAKEN));
        check(!stale, "a byte came from an old page")?;
        old.into_iter().for_each(|page| ram.give_back(page));
    }
    Ok(())
}

/// Resets, by command and of the function, while copies run: nothing moves afterwards.
pub fn reset_under_copy() -> Verdict {
    let mut guest = Guest::boot(Drive::Inline)?;
    let space = process(&mut guest)?;
    let device = guest.rig.device.clone();
    let destination = || (0..PAGES).map(|i| DESTINATION + i * PAGE).map(|at| space.page(at));
    let resets: [fn(&Guest) -> Verdict; 2] = [reset_device, reset_function];
    for reset in resets {
        submit(&guest, &space);
        guest.rig.driver.step_engines(2);
        check(device.counters().descriptors > 0, "copies run")?;
        let abandoned = device.counters().abandoned;
        reset(&guest)?;
        destination().for_each(|page| guest.rig.ram.stamp(page, TAKEN));
        guest.rig.settle();
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
        super::super::succeeded(&record)?;
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
pub fn vm_death_under_copy(drive: Drive) -> Verdict {
    let mut guest = Guest::boot(drive)?;
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
    let destination = (0..PAGES).map(|i| space.page(DESTINATION + i * PAGE));
    destination.clone().for_each(|page| guest.rig.ram.stamp(page, TAKEN));
    let over = || {
        let counters = device.counters();
        counters.descriptors - counters.errors() - counters.abandoned == 0
    };
    let _ = over;
    guest.rig.settle();
    check(destination.clone().all(|page| guest.rig.ram.is_stamped(page, TAKEN)), "a late byte")?;
    equal(guest.rig.footprint(), [0; 3], "cached entries and devices")?;
    equal(guest.rig.host.vms(), 0, "VMs of the host")?;
    equal(vm.attach(DEVICE).map(drop), Err(AttachError::Closed), "a device attaches")?;
    check(vm.memory().segments().is_empty(), "memory of the VM")?;
    guest.rig.wait("the memory to be free", || !guest.rig.ram.is_held())?;

    // Its registers still answer, and the next VM is none the wiser.
    guest.rig.device.bar_read(0, 0, &mut [0; 4]);
    guest.rig.carrier.bar_read(0, 0, &mut [0; 4]);
    let next = super::super::Rig::on(&guest.rig.host, drive);
    let mut next = Guest::boot_on(next)?;
    let mut space = Space::new(&mut next.rig.ram, pasid(0x10));
    for at in super::COPY {
        space.allocate(&mut next.rig.ram, at, PAGE);
    }
    next.unit.bind(&mut next.rig, &space)?;
    space.write(&next.rig.ram, SOURCE, b"next");
    next.accelerator.open(&next.rig, DEDICATED, space.pasid)?;
    super::super::succeeded(&next.copy(DEDICATED, &space, super::COPY, 4)?)?;
    equal(space.read(&next.rig.ram, DESTINATION, 4), b"next".to_vec(), "the next VM's copy")
}
