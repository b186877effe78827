//! What nobody who binds in order ever does: events that do not match.

use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::mutex::SpinMutex as Mutex;

use ioasid::{Priority, Refusal, Tag};
use mem::{Gpa, MemoryMap};
use pci::RequesterId;

use super::*;
use crate::{
    Host, HwptFlags, HwptParent, HwptRequest, Numbering, PasidEvent, PasidHold, PasidRange,
    PasidSubscriber, SoftwareHost, SoftwareVm, Vm, VmConfig,
};

const DEVICE: RequesterId = RequesterId::from_bits(8);

/// PASIDs of a VM, with references, that no table knows.
struct Strangers {
    host: SoftwareHost,
    vm: SoftwareVm,
    all: Vec<(HostPasid, Tag, Option<PasidHold>)>,
}

#[derive(Default)]
struct Collector(Mutex<Vec<(HostPasid, Tag, Option<PasidHold>)>>);

impl PasidSubscriber for Collector {
    fn commit(&self, event: &PasidEvent<'_>) {
        self.0.lock().push((event.host, event.tag, event.hold().ok()));
    }
}

impl Strangers {
    fn new(count: u32) -> Self {
        let host = SoftwareHost::new();
        let collector = Arc::new(Collector::default());
        let subscription = host.subscribe("test", Priority::Cpu, collector.clone()).unwrap();
        let config = VmConfig { numbering: Numbering::Private, ..VmConfig::named("strangers") };
        let vm = host.create_vm(config).unwrap();
        let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x1000)]).unwrap());
        let _endpoint = vm.attach(DEVICE).unwrap();
        let request = HwptRequest {
            device: DEVICE,
            parent: HwptParent::Ioas(vm.ioas().unwrap()),
            flags: HwptFlags::PASID,
            data: None,
            fault: None,
        };
        let hwpt = vm.alloc_hwpt(&request).unwrap();
        for _ in 0..count {
            let pasid = vm.alloc_pasid(PasidRange::ALL).unwrap();
            vm.attach_hwpt(DEVICE, Some(pasid), hwpt).unwrap();
        }
        drop(subscription);
        let all = core::mem::take(&mut *collector.0.lock());
        Self { host, vm, all }
    }

    /// Every reference was given back, so nothing is left of the VM.
    fn end(self) {
        let Self { host, vm, all } = self;
        drop(all);
        let ticket = vm.close();
        while !vm.is_complete(ticket) {}
        assert_eq!((host.pasid_report().live, host.pasid_report().parked), (0, 0));
        host.check_books().unwrap();
    }
}

fn table() -> PasidTranslation {
    let config = TranslationConfig { vcpus: 1, flat_bits: 4, ..Default::default() };
    PasidTranslation::new(config, |_| Ok(None)).unwrap()
}

fn guest(number: u32) -> GuestPasid {
    GuestPasid(Pasid::new(number).unwrap())
}

#[test]
fn a_second_bind_of_a_number_is_refused_and_changes_nothing() {
    let mut strangers = Strangers::new(2);
    let translation = table();
    let shared = &translation.shared;
    let [(first, tag, hold), (second, other, other_hold)] = &mut strangers.all[..] else {
        panic!("two were bound")
    };
    shared.try_prepare(guest(5), *first, *tag, hold).unwrap();
    shared.open(guest(5), *first, *tag);
    let again = shared.try_prepare(guest(5), *second, *other, other_hold);
    assert_eq!(again, Err(Refusal::NoSpace));
    assert!(other_hold.is_some(), "its reference is the caller's still");
    // What is told of it all the same finds nothing of its own.
    shared.open(guest(5), *second, *other);
    shared.give_up(guest(5), *other);
    shared.end_binding(guest(5), *other);
    shared.close(guest(5), *other);
    assert_eq!(translation.peek(guest(5)), Some(*first));
    let counters = translation.counters();
    assert_eq!((counters.refused, counters.conflicts, counters.unmatched), (1, 1, 3));
    shared.end_binding(guest(5), *tag);
    assert_eq!(translation.peek(guest(5)), None);
    // Now it has a place.
    shared.try_prepare(guest(5), *second, *other, other_hold).unwrap();
    shared.open(guest(5), *second, *other);
    assert_eq!(translation.peek(guest(5)), Some(*second));
    drop(translation);
    strangers.end();
}

#[test]
fn events_out_of_order_change_nothing_and_block_nothing() {
    let mut strangers = Strangers::new(1);
    let translation = table();
    let shared = &translation.shared;
    let (host, tag, hold) = &mut strangers.all[0];
    // Nothing is prepared.
    shared.open(guest(5), *host, *tag);
    shared.give_up(guest(5), *tag);
    shared.end_binding(guest(5), *tag);
    assert_eq!(translation.counters().unmatched, 3);
    // A free of what has no entry is the rule.
    shared.close(guest(5), *tag);
    assert_eq!(translation.counters().unmatched, 3);
    shared.try_prepare(guest(5), *host, *tag, hold).unwrap();
    assert_eq!(translation.peek(guest(5)), None);
    shared.end_binding(guest(5), *tag);
    shared.open(guest(5), *host, *tag);
    // It is open, and cannot be opened or given up any more.
    shared.open(guest(5), *host, *tag);
    shared.give_up(guest(5), *tag);
    assert_eq!(translation.counters().unmatched, 6);
    assert_eq!(translation.peek(guest(5)), Some(*host));
    let mut vcpu = translation.vcpu().unwrap();
    assert_eq!(vcpu.translated(guest(5), |host| host), Some(*host));
    shared.end_binding(guest(5), *tag);
    shared.end_binding(guest(5), *tag);
    assert_eq!(translation.counters().unmatched, 7);
    assert_eq!(vcpu.translated(guest(5), |host| host), None);
    drop((vcpu, translation));
    strangers.end();
}

#[test]
fn what_was_prepared_is_given_up_with_the_table() {
    let mut strangers = Strangers::new(1);
    let translation = table();
    let (host, tag, hold) = &mut strangers.all[0];
    translation.shared.try_prepare(guest(5), *host, *tag, hold).unwrap();
    let shared = translation.shared.clone();
    drop(translation);
    // An event that was on its way finds the table closed.
    shared.open(guest(5), *host, *tag);
    assert_eq!(shared.table.load(guest(5)).host(), None);
    let late = shared.try_prepare(guest(6), *host, *tag, hold);
    assert_eq!(late, Err(Refusal::NotAllowed));
    drop(shared);
    strangers.end();
}
