//! Two VMs on one host, whose guests take their PASIDs from it by virtual commands.

use iommu::{Numbering, SoftwareHost, Vm, VmConfig};
use vtd::model::Options;
use vtd::spec::VcmdLayout;

use super::super::accelerator::copy;
use super::super::random::Random;
use super::super::unit::{self, ALLOCATE_PASID, FAULT_PENDING, FREE_PASID, FSTS};
use super::super::{check, equal, pasid, succeeded, Guest, Rig, Setup, Space, Verdict};
use super::super::{DEDICATED, OTHER, PAGE, RAM};
use super::{COPY, DESTINATION, RECORD, SOURCE};

/// Status code of a free (3.3): the PASID is not this guest's.
const INVALID_PASID: u64 = 16;
const LEN: usize = 20_001;

/// A guest that asks for its PASIDs; it has no others.
fn tenant(host: &SoftwareHost, setup: Setup, numbering: Numbering) -> Verdict<Guest> {
    let config = VmConfig { quota: 2, numbering, enforce_grants: true, ..setup.config("tenant") };
    let virtual_commands = Some(VcmdLayout::Revision33);
    let unit = Options { virtual_commands, ..setup.unit() };
    Guest::boot_on(Rig::with(host, setup, RAM, config, unit))
}

fn allocate(guest: &Guest) -> Verdict<u32> {
    let granted = guest.unit.virtual_command(&guest.rig, ALLOCATE_PASID, 0)?;
    granted.map_err(|status| format!("allocation: status {status}"))
}

/// A process with this PASID, and memory for a copy.
fn process(guest: &mut Guest, number: u32) -> Verdict<Space> {
    let mut space = guest.process(number)?;
    for at in [SOURCE, DESTINATION] {
        space.allocate(&mut guest.rig.ram, at, LEN as u64);
    }
    space.allocate(&mut guest.rig.ram, RECORD, 1);
    Ok(space)
}

/// Lets all of them copy at the same time; each finds its own bytes.
fn copy_at_once(guests: &[(Guest, Space)], random: &mut Random) -> Verdict {
    let mut expected = Vec::new();
    for (guest, space) in guests {
        let ram = &guest.rig.ram;
        let data = random.bytes(LEN);
        space.write(ram, SOURCE, &data);
        space.write(ram, DESTINATION, &[0; LEN]);
        space.write(ram, RECORD, &[0; 32]);
        guest.accelerator.store(&guest.rig, DEDICATED, &copy(COPY, LEN as u32));
        expected.push(data);
    }
    for ((guest, space), data) in guests.iter().zip(expected) {
        succeeded(&guest.wait_record(space, RECORD)?)?;
        let copied = space.read(&guest.rig.ram, DESTINATION, LEN);
        check(copied == data, "its own bytes")?;
    }
    Ok(())
}

/// Two guests use the same PASID at the same time, each with its own memory behind it; one gives it
/// back, and the other goes on with it.
pub fn private_numbers(setup: Setup) -> Verdict {
    let host = SoftwareHost::new();
    let mut random = Random::new(3);
    let mut guests = Vec::new();
    for _ in 0..2 {
        let mut guest = tenant(&host, setup, Numbering::Private)?;
        let number = allocate(&guest)?;
        let space = process(&mut guest, number)?;
        guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
        guests.push((guest, space));
    }
    let same = guests[0].1.pasid;
    equal(guests[1].1.pasid, same, "the guests' numbers")?;
    let hosts: Vec<_> = host.pasid_report().vms.iter().map(|vm| vm.entries[0].host).collect();
    check(hosts.len() == 2 && hosts[0] != hosts[1], "one number of the host each")?;
    for _ in 0..20 {
        copy_at_once(&guests, &mut random)?;
    }

    let (first, space) = guests.remove(0);
    equal(first.unit.virtual_command(&first.rig, FREE_PASID, same.get())?, Ok(0), "the free")?;
    refused(&first, &space, 1)?;
    copy_at_once(&guests, &mut random)?;
    let ungranted = guests[0].0.rig.machine.vm().counters().ungranted;
    equal(ungranted, 0, "the other guest's refusals")
}

/// Two guests that number their PASIDs themselves, both from the same number on, over tables of
/// the host: each PASID is one of the host's while it is bound, and never the other guest's. One
/// guest is killed, and the other goes on.
pub fn own_numbers(setup: Setup) -> Verdict {
    const NUMBER: u32 = 0x10;
    let host = SoftwareHost::new();
    let mut random = Random::new(5);
    let mut guests = Vec::new();
    for _ in 0..2 {
        let mut guest = Guest::boot_on(Rig::on(&host, setup, RAM))?;
        let space = process(&mut guest, NUMBER)?;
        guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
        guests.push((guest, space));
    }
    let hosts: Vec<_> = host.pasid_report().vms.iter().map(|vm| vm.entries[0].host).collect();
    check(hosts.len() == 2 && hosts[0] != hosts[1], "one number of the host each")?;
    for _ in 0..20 {
        copy_at_once(&guests, &mut random)?;
    }

    let (killed, _space) = guests.remove(0);
    let vm = killed.rig.machine.vm().clone();
    let ticket = killed.rig.machine.close();
    killed.rig.wait("the end of the VM", || vm.is_complete(ticket))?;
    copy_at_once(&guests, &mut random)?;
    equal(vm.pasid_usage().live + vm.pasid_usage().parked, 0, "PASIDs of the one that is gone")?;

    let (mut other, space) = guests.remove(0);
    other.accelerator.close(&other.rig, DEDICATED)?;
    other.exit(space)?;
    equal(other.rig.machine.unit_counters().bindings.bound, 0, "bound in the other")?;
    let ticket = other.rig.machine.reset();
    other.rig.wait("the reset", || other.rig.machine.vm().is_complete(ticket))?;
    equal(other.rig.machine.vm().pasid_usage().live, 0, "PASIDs of the other")?;
    host.check_books().map_err(|error| error.to_string())
}

/// A copy that has to be refused because its PASID is not granted; the error is the `nth` of the device.
fn refused(guest: &Guest, space: &Space, nth: u64) -> Verdict {
    let ram = &guest.rig.ram;
    space.write(ram, SOURCE, &[7; 64]);
    space.write(ram, DESTINATION, &[0; 64]);
    space.write(ram, RECORD, &[0; 32]);
    guest.accelerator.store(&guest.rig, DEDICATED, &copy(COPY, 64));
    let device = &guest.rig.device;
    guest.rig.wait("a software error", || device.counters().software_errors >= nth)?;
    equal(space.read(ram, DESTINATION, 64), vec![0; 64], "the destination")?;
    equal(space.read(ram, RECORD, 32), vec![0; 32], "the record")?;
    check(guest.rig.machine.vm().counters().ungranted > 0, "the requests are counted")?;
    let pending = || unit::read32(&guest.rig, FSTS) & FAULT_PENDING != 0;
    guest.rig.wait("a fault in the recording registers", pending)?;
    let faults = guest.unit.take_faults(&guest.rig);
    let of_it = faults.iter().filter(|fault| fault.pasid == Some(space.pasid.get())).count();
    check(of_it > 0, "the guest is told")
}

/// A guest binds a process to a PASID that is another guest's, and to one of its own: it can do
/// nothing with the first, not even give it back, and its tables do not matter.
pub fn strangers_number(setup: Setup) -> Verdict {
    let host = SoftwareHost::new();
    let mut victim = tenant(&host, setup, Numbering::Identity)?;
    let theirs = allocate(&victim)?;
    let space = process(&mut victim, theirs)?;
    victim.accelerator.open(&victim.rig, DEDICATED, space.pasid)?;
    let victim = [(victim, space)];
    let mut random = Random::new(4);
    copy_at_once(&victim, &mut random)?;

    let mut guest = tenant(&host, setup, Numbering::Identity)?;
    let own = allocate(&guest)?;
    check(own != theirs, "a number of its own")?;
    let strange = process(&mut guest, theirs)?;
    guest.accelerator.open(&guest.rig, DEDICATED, pasid(theirs))?;
    refused(&guest, &strange, 1)?;
    let freed = guest.unit.virtual_command(&guest.rig, FREE_PASID, theirs)?;
    equal(freed, Err(INVALID_PASID), "the free of another's")?;

    let mut space = guest.process(own)?;
    for at in COPY {
        space.allocate(&mut guest.rig.ram, at, PAGE);
    }
    guest.accelerator.open(&guest.rig, OTHER, space.pasid)?;
    succeeded(&guest.copy(OTHER, &space, COPY, 64)?)?;
    copy_at_once(&victim, &mut random)
}
