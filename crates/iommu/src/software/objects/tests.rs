//! Every step of attaching fails once: what was before is left as it was, and the next try works.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use ioasid::{Priority, Refusal};
use mem::{Gpa, MemoryMap};
use pci::RequesterId;

use super::*;
use crate::software::platform::Domain;
use crate::{
    Endpoint, GuestPasid, Host, HwptRequest, Pasid, PasidEvent, PasidRange, PasidSubscriber,
    SoftwareHost, SoftwareVm, Vm, VmConfig, VtdStageOne, VtdStageOneFlags, MAX_DOMAINS,
};

const DEVICE: RequesterId = RequesterId::from_bits(0x80);
const PASID: GuestPasid = GuestPasid(Pasid::from_field(5));

/// What is out, and what uses what.
#[derive(PartialEq, Eq, Debug)]
struct Books {
    holders: Vec<alloc::string::String>,
    table_bytes: u64,
    uses: Vec<u32>,
    is_attached: bool,
    is_adopted: bool,
}

struct Failing {
    host: SoftwareHost,
    vm: SoftwareVm,
    _endpoint: Endpoint,
    hwpt: HwptId,
}

impl Failing {
    fn new() -> Self {
        let host = SoftwareHost::new();
        let vm = host.create_vm(VmConfig::named("failing")).unwrap();
        let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x10_0000)]).unwrap());
        let _endpoint = vm.attach(DEVICE).unwrap();
        vm.alloc_pasid(PasidRange { first: PASID.0, last: PASID.0 }).unwrap();
        let flags = HwptFlags::NEST_PARENT | HwptFlags::PASID;
        let parent = HwptParent::Ioas(vm.ioas().unwrap());
        let request = HwptRequest { device: DEVICE, parent, flags, data: None, fault: None };
        let parent = HwptParent::Hwpt(vm.alloc_hwpt(&request).unwrap());
        let flags = VtdStageOneFlags::empty();
        let table = VtdStageOne { flags, root: Gpa(0x1000), address_width: 48 };
        let (flags, data) = (HwptFlags::PASID, Some(StageOneTable::Vtd(table)));
        let request = HwptRequest { parent, flags, data, ..request };
        let hwpt = vm.alloc_hwpt(&request).unwrap();
        Self { host, vm, _endpoint, hwpt }
    }

    fn attach(&self, pasid: Option<GuestPasid>) -> Result<(), ObjectError> {
        self.vm.attach_hwpt(DEVICE, pasid, self.hwpt)
    }

    fn books(&self) -> Books {
        let holders = self.host.pasid_report().vms[0].entries[0].holders.clone();
        let control = self.vm.0.control.lock();
        Books {
            holders,
            table_bytes: self.host.table_bytes(),
            uses: control.objects.all.values().map(|object| object.uses).collect(),
            is_attached: control.attached.get(DEVICE).is_some(),
            is_adopted: control.attached.adopted(DEVICE).is_some(),
        }
    }

    /// Attaching fails with `error`, and leaves nothing behind.
    fn fails(&self, pasid: Option<GuestPasid>, error: ObjectError) {
        let before = self.books();
        assert_eq!(self.attach(pasid), Err(error));
        assert_eq!(self.books(), before, "{pasid:?} {error:?}");
    }

    /// Attaching and detaching work, and leave nothing behind but the device's table.
    fn works(&self, pasid: Option<GuestPasid>) {
        let before = self.books();
        assert_eq!(self.attach(pasid), Ok(()));
        let ticket = self.vm.detach_hwpt(DEVICE, pasid).unwrap();
        assert!(self.vm.is_complete(ticket));
        let after = self.books();
        assert_eq!((after.holders, after.uses), (before.holders, before.uses));
    }
}

#[test]
fn memory_for_tables_runs_out_at_each_of_them() {
    for pasid in [None, Some(PASID)] {
        let failing = Failing::new();
        let tables = &failing.vm.0.platform.tables;
        // A directory, and a table.
        for left in 0..2 {
            tables.left.store(left, Ordering::Relaxed);
            failing.fails(pasid, ObjectError::NoMemory);
        }
        tables.left.store(2, Ordering::Relaxed);
        failing.works(pasid);
    }
}

#[test]
fn all_domains_are_out() {
    let failing = Failing::new();
    let platform = failing.vm.0.platform.clone();
    let mut all: Vec<Domain> = core::iter::from_fn(|| platform.domain()).collect();
    for pasid in [None, Some(PASID)] {
        failing.fails(pasid, ObjectError::TooMany { limit: MAX_DOMAINS });
    }
    all.pop();
    failing.works(None);
    failing.works(Some(PASID));
    drop(failing);
    assert!(platform.domain().is_some(), "it came back");
}

/// Refuses as long as it is told to.
struct Refusing(AtomicBool);

impl PasidSubscriber for Refusing {
    fn prepare(&self, _: &PasidEvent<'_>) -> Result<(), Refusal> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Refusal::NotAllowed),
            false => Ok(()),
        }
    }
}

#[test]
fn somebody_refuses() {
    let failing = Failing::new();
    let refusing = Arc::new(Refusing(AtomicBool::new(true)));
    let told = failing.host.subscribe("refusing", Priority::Cpu, refusing.clone()).unwrap();
    failing.fails(Some(PASID), ObjectError::Refused);
    // The device is translated as before: nothing has ever been attached to it.
    assert!(!failing.books().is_attached);
    failing.works(None);
    failing.fails(Some(PASID), ObjectError::Refused);
    refusing.0.store(false, Ordering::Relaxed);
    failing.works(Some(PASID));
    drop(told);
}

#[test]
fn what_cannot_be_attached_leaves_nothing() {
    let failing = Failing::new();
    let none = GuestPasid(Pasid::from_field(6));
    failing.fails(Some(none), ObjectError::NotGranted(none));
    let before = failing.books();
    let gone = HwptId(77);
    let unknown = failing.vm.attach_hwpt(DEVICE, Some(PASID), gone);
    assert_eq!(unknown, Err(ObjectError::NoObject(gone.into())));
    assert_eq!(failing.books(), before);
    failing.works(Some(PASID));
}

#[test]
fn objects_have_a_limit_and_ids_are_not_given_twice() {
    let mut objects = Objects::default();
    let first = objects.alloc_fault_queue().unwrap();
    for _ in 1..MAX_OBJECTS {
        objects.alloc_fault_queue().unwrap();
    }
    let too_many = Err(ObjectError::TooMany { limit: MAX_OBJECTS });
    assert_eq!(objects.alloc_fault_queue(), too_many);
    objects.destroy(first.into()).unwrap();
    let next = objects.alloc_fault_queue().unwrap();
    assert_eq!(next.0, first.0 + MAX_OBJECTS as u32);
    // There are no more ids than numbers.
    objects.destroy(next.into()).unwrap();
    objects.last = u32::MAX;
    assert_eq!(objects.alloc_fault_queue(), too_many);
}

#[test]
fn a_fault_queue_stays_while_a_table_names_it() {
    let failing = Failing::new();
    let queue = failing.vm.alloc_fault_queue().unwrap();
    let parent = HwptParent::Ioas(failing.vm.ioas().unwrap());
    let (flags, fault) = (HwptFlags::FAULT_ID_VALID, Some(queue));
    let request = HwptRequest { device: DEVICE, parent, flags, data: None, fault };
    let hwpt = failing.vm.alloc_hwpt(&request).unwrap();
    assert_eq!(failing.vm.destroy(queue.into()), Err(ObjectError::Busy));
    // Requests are answered by tables that stand on nothing else.
    let parent_too = HwptRequest { flags: flags | HwptFlags::NEST_PARENT, ..request };
    assert_eq!(failing.vm.alloc_hwpt(&parent_too), Err(ObjectError::NotSupported));
    let invalid = Err(ObjectError::Invalid(InvalidField::FaultQueue));
    assert_eq!(failing.vm.alloc_hwpt(&HwptRequest { fault: None, ..request }), invalid);
    failing.vm.destroy(hwpt.into()).unwrap();
    failing.vm.destroy(queue.into()).unwrap();
    assert_eq!(failing.vm.alloc_hwpt(&request), Err(ObjectError::NoObject(queue.into())));
}
