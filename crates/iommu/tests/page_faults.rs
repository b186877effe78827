//! Page requests of devices that are translated by what is attached: they go to the fault queue of
//! that, group by group.
#![cfg(not(loom))]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::hosted::*;
use common::requests::*;
use common::*;
use iommu::ResponseCode::{Invalid, Success};
use iommu::{
    FaultQueueId, Hardware, HwptFlags, HwptId, HwptParent, HwptRequest, InvalidField, ObjectError,
    PageFault, PageRequest, PageRequestPolicy, PasidRange, SoftwareHost, StageOneTable,
    TakenGroups, ViommuKind, Vm, VmConfig, VtdPasidTable, VtdStageOne, VtdStageOneFlags,
};
use mem::Gpa;
use pci::RequesterId;

const COOKIE: Result<(), ObjectError> = Err(ObjectError::Invalid(InvalidField::Cookie));

struct Queued {
    hosted: Hosted,
    queue: FaultQueueId,
    ear: Arc<Ear>,
}

impl Queued {
    fn new() -> Self {
        Self::with(TakenGroups::Stay)
    }

    fn with(taken: TakenGroups) -> Self {
        let page_requests = PageRequestPolicy { taken, ..PageRequestPolicy::default() };
        let config = VmConfig { page_requests, ..VmConfig::named("queued") };
        let hosted = Hosted::with(&SoftwareHost::new(), config);
        let queue = hosted.guest.vm.alloc_fault_queue().unwrap();
        let ear = Ear::of(&hosted.endpoint);
        Self { hosted, queue, ear }
    }

    /// A table with the queue.
    fn space(&mut self) -> HwptId {
        let root = self.hosted.root(0x10_0000, 11);
        let table = VtdStageOne { flags: VtdStageOneFlags::empty(), root, address_width: 48 };
        let request = self.hosted.request(table);
        let flags = request.flags | HwptFlags::FAULT_ID_VALID;
        let fault = Some(self.queue);
        self.hosted.guest.vm.alloc_hwpt(&HwptRequest { flags, fault, ..request }).unwrap()
    }

    fn send(&self, request: PageRequest) -> PageRequest {
        self.hosted.endpoint.send_page_request(request);
        PageRequest { requester: DEVICE, ..request }
    }

    fn take(&self) -> Option<PageFault> {
        self.hosted.guest.vm.take_page_fault(self.queue).unwrap()
    }

    fn respond(&self, cookie: u32, code: iommu::ResponseCode) -> Result<(), ObjectError> {
        self.hosted.guest.vm.respond_page_fault(self.queue, cookie, code)
    }
}

#[test]
fn whole_groups_come_in_order_and_are_answered_by_cookie() {
    let mut queued = Queued::new();
    let space = queued.space();
    queued.hosted.grant(5);
    queued.hosted.attach(5, space);
    let first = queued.send(part(Some(5), 1));
    let two = queued.send(request(Some(5), 2));
    let taken = queued.take().unwrap();
    assert_eq!(taken.request, two, "the first to be whole");
    assert_eq!(queued.take(), None);
    let second = queued.send(request(Some(5), 1));
    let one = [queued.take().unwrap(), queued.take().unwrap()];
    assert_eq!(one.map(|fault| fault.request), [first, second]);
    assert_eq!(one[0].cookie, one[1].cookie);
    assert_ne!(one[0].cookie, taken.cookie);
    assert_eq!(queued.hosted.guest.vm.take_page_request(), None, "none of the model's business");
    // Nor can it be answered there.
    queued.hosted.guest.vm.respond_page_request(answer(&two, Success)).unwrap_err();

    queued.respond(one[0].cookie, Success).unwrap();
    assert_eq!(queued.respond(one[0].cookie, Success), COOKIE);
    assert_eq!(queued.ear.heard(), [answer(&second, Success)]);
    queued.respond(taken.cookie, Invalid).unwrap();
    assert_eq!(queued.ear.heard(), [answer(&two, Invalid)]);
    assert_eq!(queued.respond(99, Success), COOKIE);
    // A group that nobody has taken has no cookie to be guessed.
    queued.send(request(Some(5), 3));
    for guess in 0..8 {
        assert_eq!(queued.respond(guess, Success), COOKIE);
    }
    assert_eq!(queued.take().unwrap().request.group, group(3));
}

#[test]
fn without_a_queue_the_host_answers() {
    let mut queued = Queued::new();
    let (with, without) = (queued.space(), queued.hosted.space(0x11_0000, 22));
    queued.hosted.grant(5);
    queued.hosted.grant(6);
    // Nothing is attached yet: the guest's own tables translate.
    let model = queued.send(request(Some(5), 0));
    assert_eq!(taken(&queued.hosted.guest.vm), [model]);
    queued.hosted.attach(5, with);
    queued.hosted.attach(6, without);
    queued.send(request(Some(6), 1));
    queued.send(request(Some(7), 2));
    queued.send(request(None, 3));
    queued.send(part(Some(7), 4));
    queued.send(request(Some(7), 4));
    let invalid = [1, 2, 3, 4].map(|index| (index, Invalid));
    assert_eq!(queued.ear.codes(), invalid);
    queued.send(PageRequest::stop_marker(DEVICE, pasid(5)));
    assert_eq!(queued.take(), None);
    assert_eq!(queued.ear.codes(), []);
    // What was asked before is the model's still.
    queued.hosted.guest.vm.respond_page_request(answer(&model, Success)).unwrap();
    assert_eq!(queued.ear.codes(), [(0, Success)]);
    assert_eq!(queued.hosted.guest.vm.page_request_counters().no_queue, 4);
}

#[test]
fn what_was_taken_is_its_takers_to_answer() {
    let mut queued = Queued::new();
    let (one, two) = (queued.space(), queued.space());
    let vm = queued.hosted.guest.vm.clone();
    for number in [5, 6, 7] {
        queued.hosted.grant(number);
        queued.hosted.attach(number, one);
    }
    let mut taken = Vec::new();
    for (number, index) in [(5, 1), (6, 2), (7, 3)] {
        queued.send(request(Some(number), index));
        taken.push(queued.take().unwrap().cookie);
    }
    queued.send(request(Some(5), 4));
    wait(&vm, vm.detach_hwpt(DEVICE, Some(guest(5))).unwrap());
    wait(&vm, vm.replace_hwpt(DEVICE, Some(guest(6)), two).unwrap());
    vm.free_pasid(guest(7)).unwrap();
    assert_eq!(queued.ear.codes(), [(4, Invalid)], "nobody had taken that one");
    // Freed as well, and nothing is in flight: but the device has not heard of 5 and 7 yet.
    vm.free_pasid(guest(5)).unwrap();
    let only = |number| vm.alloc_pasid(PasidRange::new(pasid(number), pasid(number)).unwrap());
    for number in [5, 7] {
        only(number).unwrap_err();
    }
    for cookie in &taken {
        queued.respond(*cookie, Success).unwrap();
        assert_eq!(queued.respond(*cookie, Success), COOKIE);
    }
    assert_eq!(queued.ear.codes(), [(1, Success), (2, Success), (3, Success)]);
    for number in [5, 7] {
        only(number).unwrap();
    }
    // Nobody answers for ever.
    queued.send(request(Some(6), 5));
    let late = queued.take().unwrap().cookie;
    let _ = vm.detach_hwpt(DEVICE, Some(guest(6))).unwrap();
    let _ = vm.tick(Duration::from_secs(1));
    let _ = vm.tick(Duration::from_secs(31));
    assert_eq!(queued.ear.codes(), [(5, Invalid)]);
    assert_eq!(queued.respond(late, Success), COOKIE);
    assert_eq!(vm.page_request_counters().timed_out, 1);
    queued.hosted.end();
}

#[test]
fn as_iommufd_what_ends_leaves_no_request_unanswered() {
    let mut queued = Queued::with(TakenGroups::Withdrawn);
    let (one, two) = (queued.space(), queued.space());
    let vm = queued.hosted.guest.vm.clone();
    for number in [5, 6] {
        queued.hosted.grant(number);
        queued.hosted.attach(number, one);
    }
    // Taken, and not.
    queued.send(request(Some(5), 1));
    let taken = queued.take().unwrap();
    queued.send(request(Some(5), 2));
    let other = queued.send(request(Some(6), 3));
    wait(&vm, vm.detach_hwpt(DEVICE, Some(guest(5))).unwrap());
    assert_eq!(queued.ear.codes(), [(1, Invalid), (2, Invalid)]);
    assert_eq!(queued.respond(taken.cookie, Success), COOKIE);
    queued.send(request(Some(5), 4));
    assert_eq!(queued.ear.codes(), [(4, Invalid)], "nothing is there any more");
    // Another table in its place: what came through the old one is answered, though the queue is
    // the same.
    wait(&vm, vm.replace_hwpt(DEVICE, Some(guest(6)), two).unwrap());
    assert_eq!(queued.ear.heard(), [answer(&other, Invalid)]);
    assert_eq!(queued.take(), None, "nothing of that is handed out");
    queued.send(request(Some(6), 5));
    queued.hosted.guest.vm.free_pasid(guest(6)).unwrap();
    assert_eq!(queued.ear.codes(), [(5, Invalid)]);
    queued.send(request(Some(6), 6));
    assert_eq!(queued.ear.codes(), [(6, Invalid)]);
    queued.hosted.grant(7);
    queued.hosted.attach(7, one);
    queued.send(request(Some(7), 7));
    let _ = vm.release_pasids();
    assert_eq!(queued.ear.codes(), [(7, Invalid)]);
    queued.hosted.grant(8);
    queued.hosted.attach(8, one);
    queued.send(request(Some(8), 8));
    let _ = vm.close();
    assert_eq!(queued.ear.codes(), [(8, Invalid)]);
    assert_eq!(vm.take_page_fault(queued.queue), Err(ObjectError::Closed));
    assert_eq!(vm.page_request_counters().outstanding, 0);
    queued.hosted.end();
}

#[test]
fn a_group_that_is_being_taken_is_given_whole() {
    let mut queued = Queued::new();
    let space = queued.space();
    queued.hosted.grant(5);
    queued.hosted.attach(5, space);
    let parts = [queued.send(part(Some(5), 1)), queued.send(request(Some(5), 1))];
    queued.send(request(Some(5), 2));
    assert_eq!(queued.take().unwrap().request, parts[0]);
    let _ = queued.hosted.guest.vm.detach_hwpt(DEVICE, Some(guest(5))).unwrap();
    assert_eq!(queued.take().map(|fault| fault.request), Some(parts[1]));
    assert_eq!(queued.take(), None, "the other one is withdrawn");
}

#[test]
fn a_table_for_all_pasids_has_the_queue_for_all_of_them() {
    let queued = Queued::new();
    let vm = &queued.hosted.guest.vm;
    let table = VtdPasidTable { directory: Gpa(0x80_0000), pasid_bits: 10 };
    let request_for = |fault: Option<FaultQueueId>| HwptRequest {
        device: DEVICE,
        parent: HwptParent::Hwpt(queued.hosted.parent),
        flags: HwptFlags::FAULT_ID_VALID,
        data: Some(StageOneTable::VtdPasidTable(table)),
        fault,
    };
    let whole = vm.alloc_hwpt(&request_for(Some(queued.queue))).unwrap();
    vm.attach_hwpt(DEVICE, None, whole).unwrap();
    let asked = [queued.send(request(Some(77), 1)), queued.send(request(None, 2))];
    let taken = [queued.take().unwrap(), queued.take().unwrap()];
    assert_eq!(taken.map(|fault| fault.request), asked);
    queued.respond(taken[1].cookie, Success).unwrap();
    assert_eq!(queued.ear.codes(), [(2, Success)]);
    queued.send(request(Some(78), 3));
    let _ = vm.detach_hwpt(DEVICE, None).unwrap();
    assert_eq!(queued.ear.codes(), [(3, Invalid)], "the one that nobody has taken");
    queued.respond(taken[0].cookie, Success).unwrap();
    assert_eq!(queued.ear.codes(), [(1, Success)]);
}

#[test]
fn a_queue_is_the_vms_and_ends_with_its_tables() {
    let mut queued = Queued::new();
    let space = queued.space();
    let vm = queued.hosted.guest.vm.clone();
    assert_eq!(vm.destroy(queued.queue.into()), Err(ObjectError::Busy));
    vm.destroy(space.into()).unwrap();
    vm.destroy(queued.queue.into()).unwrap();
    let gone = ObjectError::NoObject(queued.queue.into());
    assert_eq!(vm.take_page_fault(queued.queue), Err(gone));
    assert_eq!(queued.respond(0, Success), Err(gone));
    // Nor is any other object a queue.
    let parent = FaultQueueId(queued.hosted.parent.0);
    assert_eq!(vm.take_page_fault(parent), Err(ObjectError::NoObject(parent.into())));
}

#[test]
fn a_device_that_leaves_takes_its_requests_along() {
    let mut queued = Queued::new();
    let space = queued.space();
    let vm = queued.hosted.guest.vm.clone();
    let other = RequesterId::from_bits(0x90);
    let second = vm.attach(other).unwrap();
    let ear = Ear::of(&second);
    queued.hosted.grant(5);
    queued.hosted.attach(5, space);
    vm.attach_hwpt(other, Some(guest(5)), space).unwrap();
    queued.send(request(Some(5), 1));
    let taken = queued.take().unwrap();
    queued.send(request(Some(5), 2));
    second.send_page_request(request(Some(5), 1));
    drop(queued.hosted.endpoint);
    assert_eq!(queued.ear.codes(), []);
    let respond = |cookie| vm.respond_page_fault(queued.queue, cookie, Success);
    assert_eq!(respond(taken.cookie), COOKIE);
    let theirs = vm.take_page_fault(queued.queue).unwrap().unwrap();
    assert_eq!(theirs.request.requester, other);
    respond(theirs.cookie).unwrap();
    assert_eq!(ear.codes(), [(1, Success)]);
    assert_eq!(vm.take_page_fault(queued.queue), Ok(None));
    assert_eq!(vm.page_request_counters().forgotten, 2);
}

#[test]
fn behind_an_smmu_a_device_has_one_queue() {
    let guest = Guest::on(&SoftwareHost::with_hardware(Hardware::Smmuv3(smmu::SMMU)));
    let vm = &guest.vm;
    let (endpoint, _channel) = guest.attach();
    let ear = Ear::of(&endpoint);
    let queue = vm.alloc_fault_queue().unwrap();
    let parent = HwptParent::Ioas(vm.ioas().unwrap());
    let flags = HwptFlags::NEST_PARENT;
    let request_for = HwptRequest { device: DEVICE, parent, flags, data: None, fault: None };
    let parent = vm.alloc_hwpt(&request_for).unwrap();
    let viommu = vm.alloc_viommu(DEVICE, parent, ViommuKind::Smmuv3).unwrap();
    vm.alloc_vdevice(viommu, DEVICE, 7).unwrap();
    // V, Config: stage 1; a table of 2^4 context descriptors.
    let entry = StageOneTable::Smmuv3([1 | 5 << 1 | 0x80_0000 | 4 << 59, 0]);
    let nested = |fault: Option<FaultQueueId>| {
        let flags = match fault {
            Some(_) => HwptFlags::FAULT_ID_VALID,
            None => HwptFlags::empty(),
        };
        let (parent, data) = (HwptParent::Viommu(viommu), Some(entry));
        vm.alloc_hwpt(&HwptRequest { device: DEVICE, parent, flags, data, fault }).unwrap()
    };
    let (with, without) = (nested(Some(queue)), nested(None));
    vm.attach_hwpt(DEVICE, None, with).unwrap();
    endpoint.send_page_request(request(Some(3), 1));
    endpoint.send_page_request(request(None, 2));
    let taken = vm.take_page_fault(queue).unwrap().unwrap();
    assert_eq!(taken.request, PageRequest { requester: DEVICE, ..request(Some(3), 1) });
    vm.respond_page_fault(queue, taken.cookie, Success).unwrap();
    assert_eq!(ear.codes(), [(1, Success)]);
    wait(vm, vm.replace_hwpt(DEVICE, None, without).unwrap());
    assert_eq!(ear.codes(), [(2, Invalid)]);
    endpoint.send_page_request(request(Some(3), 3));
    assert_eq!(ear.codes(), [(3, Invalid)]);
}
