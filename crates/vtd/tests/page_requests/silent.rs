//! A device that never answers an invalidation of its own TLB holds up nobody but whoever waits for it,
//! and that for no longer than the time-out; whoever owns the PASID tables.

use std::time::Duration;

use iommu::{Channel, Endpoint, Vm};
use mem::{Gpa, GuestMemory, Iova};
use pci::RequesterId;
use vtd::driver::{Clock, Registers, SubmitError};
use vtd::model::Options;
use vtd::spec::{Descriptor, DeviceTlbScope, PasidCacheScope};

use super::driver::{Queue, Rig};
use crate::guest::{DEVICE, PASID, QIE, TE, VIRTUAL};

/// 00:11.0.
const OTHER: RequesterId = RequesterId::from_bits(0x88);
/// Its tables: context, PASID directory (as far from that of the other one as both are long), PASID
/// table, page-table root. What both share are tables further down: of what shares a first stage, the
/// host has everybody forget at once.
const CONTEXT: Gpa = Gpa(0x2100);
const DIRECTORY: Gpa = Gpa(0x8_0000);
const PASID_TABLE: Gpa = Gpa(0xb_0000);
const ROOT: Gpa = Gpa(0xb_1000);
/// More polls than it takes to read the guest's tables.
const POLLS: u32 = 4096;
const TIMEOUT: Duration = Duration::from_millis(20);
const ITE: u32 = 1 << 6;

/// A guest with two devices.
struct Two {
    rig: Rig,
    other: Endpoint,
    channels: [Channel; 2],
}

/// For each owner of the tables.
fn each_owner(test: impl Fn(Two)) {
    for options in [Options::default(), Options::host_owned()] {
        let rig = Rig::new(Options { invalidation_timeout: TIMEOUT, ..options });
        let other = rig.vm.attach(OTHER).unwrap();
        other.set_ats(true);
        store_tables(&*rig.vm.memory());
        let _ = rig.unit.model.borrow_mut().add_device(OTHER);
        let channels = [rig.unit.endpoint.channel(), other.channel()];
        test(Two { rig, other, channels });
    }
}

/// As those of the first device, with an address space of its own.
fn store_tables(memory: &impl GuestMemory) {
    let words = [
        (CONTEXT.0, DIRECTORY.0 | 7 << 9 | 0b1_1101),
        (DIRECTORY.0, PASID_TABLE.0 | 1),
        (PASID_TABLE.0, 4 << 6 | 2 << 2 | 1),
        (PASID_TABLE.0 + 8, 1 << 23 | 2),
        (PASID_TABLE.0 + 0x40, 1 << 6 | 2 << 2 | 1),
        (PASID_TABLE.0 + 0x48, 1 << 23 | 2),
        (PASID_TABLE.0 + 0x50, ROOT.0),
        (ROOT.0, 0x6000 | 7),
    ];
    words.into_iter().for_each(|(at, word)| memory.store_u64(Gpa(at), word).unwrap());
}

/// Everything of a device's own TLB.
fn forget(source: RequesterId) -> Descriptor {
    let scope = DeviceTlbScope { address: Iova(0x7fff_ffff_ffff_f000), large: true };
    Descriptor::PasidDeviceTlb { source, pasid: PASID.pasid, scope }
}

fn late(source_id: RequesterId) -> Result<(), SubmitError> {
    Err(SubmitError::DeviceTimeout { source_id })
}

impl Two {
    /// Both devices have a translation; the first one keeps its answers to itself.
    fn fall_silent(&self) {
        for channel in &self.channels {
            channel.enter().write(PASID, VIRTUAL, b"cached").unwrap();
        }
        self.rig.unit.endpoint.withhold_invalidation_answers(true);
    }

    fn timeouts(&self) -> u64 {
        self.rig.unit.model.borrow().counters().invalidation_timeouts
    }

    /// Submits; gives whether it took as long as a time-out.
    fn submit(
        &self,
        queue: &mut Queue<'_>,
        what: &[Descriptor],
    ) -> (Result<(), SubmitError>, bool) {
        let before = self.rig.unit.now.get();
        let result = queue.submit(what, false);
        let took = Duration::from_nanos(self.rig.unit.now.get() - before);
        (result, took >= TIMEOUT)
    }
}

#[test]
fn another_device_is_not_held_up() {
    each_owner(|two| {
        let (mut queue, _requests) = two.rig.start();
        two.fall_silent();
        for round in 1..=3 {
            assert_eq!(two.submit(&mut queue, &[forget(DEVICE)]), (late(DEVICE), true));
            assert_eq!(two.timeouts(), round);
            assert_eq!(two.submit(&mut queue, &[forget(OTHER)]), (Ok(()), false));
            let others = [Descriptor::PasidCache(PasidCacheScope::Global)];
            assert_eq!(two.submit(&mut queue, &others), (Ok(()), false));
            assert_eq!(two.submit(&mut queue, &[]), (Ok(()), false));
        }
        // In one submission there is one wait, which is for both.
        assert_eq!(two.submit(&mut queue, &[forget(OTHER), forget(DEVICE)]), (late(DEVICE), true));
        two.rig.unit.endpoint.withhold_invalidation_answers(false);
        assert_eq!(two.submit(&mut queue, &[forget(DEVICE)]), (Ok(()), false));
        assert_eq!(two.timeouts(), 4);
    });
}

/// Both have had their time when the first is named.
#[test]
fn two_that_are_silent_are_one_time_out() {
    each_owner(|two| {
        let (mut queue, _requests) = two.rig.start();
        two.fall_silent();
        two.other.withhold_invalidation_answers(true);
        let (result, timed_out) = two.submit(&mut queue, &[forget(DEVICE), forget(OTHER)]);
        assert_eq!((result, timed_out), (late(DEVICE), true));
        let others = [Descriptor::PasidCache(PasidCacheScope::Global)];
        assert_eq!(two.submit(&mut queue, &others), (Ok(()), false));
        assert_eq!(two.submit(&mut queue, &[forget(OTHER)]), (late(OTHER), true));
        assert_eq!(two.timeouts(), 2);
    });
}

/// Translation on and off is of accesses in flight and not of devices' answers.
#[test]
fn commands_in_registers_do_not_wait_for_an_answer() {
    each_owner(|two| {
        let (_queue, _requests) = two.rig.start();
        two.fall_silent();
        let unit = &two.rig.unit;
        // No time-out has been reported of this one, nor will be.
        let owed = two.rig.vm.invalidate(iommu::Invalidation::DeviceTlbPasid {
            requester: DEVICE,
            pasid: None,
            range: mem::Range { start: Iova(0), last: Iova(u64::MAX) },
        });
        for (command, enabled) in [(QIE, 0), (QIE | TE, TE)] {
            unit.write32(0x18, command);
            let done = || {
                unit.pause();
                unit.read32(0x1c) & TE == enabled
            };
            assert!((0..POLLS).any(|_| done()), "TE {enabled:#x}");
        }
        assert!(!two.rig.vm.is_complete(owed));
    });
}

/// Nor does a reset, and what comes after it owes nothing of before.
#[test]
fn a_reset_of_the_unit_ends_what_is_owed() {
    each_owner(|two| {
        let (mut queue, _requests) = two.rig.start();
        two.fall_silent();
        assert_eq!(two.submit(&mut queue, &[forget(DEVICE)]), (late(DEVICE), true));
        let access = two.channels[1].enter();
        let reset = two.rig.unit.model.borrow_mut().reset();
        assert!(!two.rig.vm.is_complete(reset), "an access is in flight");
        drop(access);
        assert!(two.rig.vm.is_complete(reset));
        assert_eq!(two.rig.unit.read32(0x34) & ITE, 0);
        let before = two.timeouts();
        let (mut queue, _requests) = two.rig.start();
        assert_eq!(two.submit(&mut queue, &[forget(OTHER)]), (Ok(()), false));
        assert_eq!(two.timeouts(), before);
    });
}
