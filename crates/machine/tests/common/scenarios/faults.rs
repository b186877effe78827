//! Requests that are refused, and who learns of it.

use dsa::spec::Status;

use super::super::unit::{self, FaultRecord, FAULT_MESSAGE, FAULT_PENDING, FECTL, FSTS};
use super::super::{check, equal, pasid, Guest, Setup, Space, Verdict, DEDICATED, DEVICE, PAGE};
use super::{COPY, DESTINATION, SOURCE};

/// Reason of a PASID-table entry that is not present (SPT.2).
const PASID_NOT_PRESENT: u8 = 0x59;
const UNBOUND: u32 = 0x12;

/// A guest with a process whose queue is made to use a PASID that was never bound.
fn guest_with_unbound_queue(setup: Setup) -> Verdict<(Guest, Space)> {
    let mut guest = Guest::boot(setup)?;
    let mut space = guest.process(0x10)?;
    for at in COPY {
        space.allocate(&mut guest.rig.ram, at, PAGE);
    }
    space.write(&guest.rig.ram, SOURCE, b"secret");
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
    guest.rig.device.inject_wq_pasid(DEDICATED.index.into(), pasid(UNBOUND));
    Ok((guest, space))
}

/// Submits a copy and waits until the device has given it up.
fn submit(guest: &Guest, times: u64) -> Verdict {
    let descriptor = super::super::accelerator::copy(COPY, 6);
    guest.accelerator.store(&guest.rig, DEDICATED, &descriptor);
    let device = &guest.rig.device;
    guest.rig.wait("a software error", || device.counters().software_errors >= times)?;
    let pending = || unit::read32(&guest.rig, FSTS) & FAULT_PENDING != 0;
    guest.rig.wait("a fault in the recording registers", pending)
}

/// A PASID that was never bound moves no byte; the guest finds its number in the IOMMU's fault
/// recording registers and in the device's SWERROR.
pub fn unbound_pasid(setup: Setup) -> Verdict {
    let (guest, space) = guest_with_unbound_queue(setup)?;
    submit(&guest, 1)?;
    guest.rig.settle()?;
    equal(space.read(&guest.rig.ram, DESTINATION, 6), vec![0; 6], "the destination")?;
    equal(space.read(&guest.rig.ram, COPY[2], 32), vec![0; 32], "the record")?;

    let faults = guest.unit.take_faults(&guest.rig);
    let fault = |at: u64, read| FaultRecord {
        source: DEVICE.bits(),
        pasid: Some(UNBOUND),
        reason: PASID_NOT_PRESENT,
        page: at & !(PAGE - 1),
        read,
    };
    check(faults.contains(&fault(SOURCE, true)), &format!("the source: {faults:x?}"))?;
    check(faults.contains(&fault(COPY[2], false)), &format!("the record: {faults:x?}"))?;
    let others = faults.iter().filter(|f| f.pasid != Some(UNBOUND)).count();
    equal(others, 0, "faults with another PASID")?;

    let error = guest.accelerator.take_software_error(&guest.rig).ok_or("no SWERROR")?;
    let expected = (Status::TranslationError as u8, DEDICATED.index, UNBOUND, true, COPY[2]);
    let got = (error.code, error.wq, error.pasid, error.write, error.address);
    equal(got, expected, "SWERROR")?;
    check(guest.rig.vectors.count(0) > 0, "the device's interrupt")
}

/// The IOMMU's fault event: a message for the first fault, none while it is not serviced, one
/// that waits while it is masked.
pub fn fault_message(setup: Setup) -> Verdict {
    let (guest, _space) = guest_with_unbound_queue(setup)?;
    let message = || guest.rig.messages.take();
    submit(&guest, 1)?;
    guest.rig.settle()?;
    guest.rig.wait("both faults", || guest.rig.machine.unit_counters().faults_recorded >= 2)?;
    equal(message(), vec![FAULT_MESSAGE], "messages of the first faults")?;
    submit(&guest, 2)?;
    guest.rig.wait("more faults", || guest.rig.machine.unit_counters().faults_recorded >= 4)?;
    equal(message(), vec![], "messages while the first is not serviced")?;

    equal(guest.unit.take_faults(&guest.rig).len(), 4, "faults recorded")?;
    equal(unit::read32(&guest.rig, FSTS) & 0xff, 0, "FSTS")?;
    unit::write32(&guest.rig, FECTL, 1 << 31);
    submit(&guest, 3)?;
    equal(message(), vec![], "messages while the event is masked")?;
    check(unit::read32(&guest.rig, FECTL) >> 30 & 1 == 1, "FECTL.IP")?;
    unit::write32(&guest.rig, FECTL, 0);
    equal(message(), vec![FAULT_MESSAGE], "messages once it is unmasked")?;
    check(unit::read32(&guest.rig, FECTL) >> 30 & 1 == 0, "FECTL.IP is clear")
}
