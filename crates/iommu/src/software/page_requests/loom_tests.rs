//! Every interleaving of an answer with whatever else ends a group: the device hears one.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use loom::thread;
use mem::Iova;
use pci::RequesterId;

use crate::{
    Endpoint, FaultQueueId, GuestPasid, Host, HwptFlags, HwptParent, HwptRequest, PageRequest,
    PageRequestPolicy, PageResponse, PageResponseError, PageResponses, Pasid, PasidRange, PrgIndex,
    ResponseCode, SoftwareHost, SoftwareVm, TakenGroups, Vm, VmConfig,
};

const DEVICE: RequesterId = RequesterId::from_bits(8);
const ONE: Pasid = Pasid::from_field(1);

/// What a device heard, of each kind.
#[derive(Default)]
struct Heard {
    success: AtomicU32,
    invalid: AtomicU32,
}

impl PageResponses for Heard {
    fn respond(&self, response: PageResponse) {
        match response.code {
            ResponseCode::Success => self.success.fetch_add(1, Ordering::Relaxed),
            _ => self.invalid.fetch_add(1, Ordering::Relaxed),
        };
    }
}

impl Heard {
    fn success(&self) -> u32 {
        self.success.load(Ordering::Relaxed)
    }

    fn invalid(&self) -> u32 {
        self.invalid.load(Ordering::Relaxed)
    }
}

struct Asking {
    vm: SoftwareVm,
    endpoint: Endpoint,
    heard: Arc<Heard>,
}

fn explore(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

fn asking() -> Asking {
    let (timeout, taken) = (Some(Duration::ZERO), TakenGroups::Stay);
    let page_requests = PageRequestPolicy { timeout, per_device: 4, taken };
    let config = ioasid::Config { width: 2, spid_width: Some(2), shards: 1, ..Default::default() };
    let host = SoftwareHost::with_pasids(config, None).unwrap();
    let config = VmConfig { page_requests, quota: 1, ..VmConfig::named("asking") };
    let vm = host.create_vm(config).unwrap();
    let endpoint = vm.attach(DEVICE).unwrap();
    let heard = Arc::<Heard>::default();
    endpoint.set_page_responses(Some(heard.clone()));
    Asking { vm, endpoint, heard }
}

impl Asking {
    fn send(&self) {
        self.endpoint.send_page_request(PageRequest {
            requester: DEVICE,
            pasid: Some(ONE),
            privileged: false,
            execute: false,
            read: true,
            write: false,
            address: Iova(0x1000),
            group: PrgIndex::from_field(3),
            last: true,
            private_data: None,
        });
    }
}

fn respond(vm: &SoftwareVm) -> Result<(), PageResponseError> {
    vm.respond_page_request(PageResponse {
        requester: DEVICE,
        pasid: Some(ONE),
        group: PrgIndex::from_field(3),
        code: ResponseCode::Success,
    })
}

/// An answer, while `end` ends the group some other way: the guest's counts or the other, not both.
fn an_answer_and(end: impl Fn(&SoftwareVm) + Send + Sync + 'static) {
    let end = Arc::new(end);
    explore(move || {
        let asking = asking();
        asking.vm.alloc_pasid(PasidRange { first: ONE, last: ONE }).unwrap();
        asking.send();
        let answering = {
            let vm = asking.vm.clone();
            thread::spawn(move || respond(&vm).is_ok())
        };
        end(&asking.vm);
        let answered = answering.join().unwrap();
        let Heard { success, invalid } = &*asking.heard;
        let heard = (success.load(Ordering::Relaxed), invalid.load(Ordering::Relaxed));
        assert_eq!(heard, (u32::from(answered), u32::from(!answered)));
        assert_eq!(asking.vm.page_request_counters().outstanding, 0);
    });
}

#[test]
fn loom_an_answer_while_the_pasid_is_given_back() {
    an_answer_and(|vm| vm.free_pasid(GuestPasid(ONE)).unwrap());
}

#[test]
fn loom_an_answer_while_the_vm_ends() {
    an_answer_and(|vm| {
        let _ = vm.close();
    });
}

#[test]
fn loom_an_answer_while_its_time_is_over() {
    an_answer_and(|vm| {
        vm.tick(Duration::ZERO);
    });
}

#[test]
fn loom_two_answers() {
    explore(|| {
        let asking = asking();
        asking.send();
        let other = {
            let vm = asking.vm.clone();
            thread::spawn(move || respond(&vm).is_ok())
        };
        let first = respond(&asking.vm).is_ok();
        assert!(first ^ other.join().unwrap(), "one of them is the one");
        assert_eq!((asking.heard.success(), asking.heard.invalid()), (1, 0));
    });
}

#[test]
fn loom_a_request_while_the_vm_ends() {
    explore(|| {
        let asking = asking();
        let ending = {
            let vm = asking.vm.clone();
            thread::spawn(move || vm.close())
        };
        asking.send();
        let _ = ending.join().unwrap();
        assert_eq!((asking.heard.success(), asking.heard.invalid()), (0, 1));
        assert!(asking.vm.take_page_request().is_none());
    });
}

/// PASID 1 with a table that has the queue.
fn attach(vm: &SoftwareVm) -> FaultQueueId {
    let queue = vm.alloc_fault_queue().unwrap();
    let hwpt = vm.alloc_hwpt(&HwptRequest {
        device: DEVICE,
        parent: HwptParent::Ioas(vm.ioas().unwrap()),
        flags: HwptFlags::PASID | HwptFlags::FAULT_ID_VALID,
        data: None,
        fault: Some(queue),
    });
    vm.alloc_pasid(PasidRange { first: ONE, last: ONE }).unwrap();
    vm.attach_hwpt(DEVICE, Some(GuestPasid(ONE)), hwpt.unwrap()).unwrap();
    queue
}

/// Whoever is faster: the host answers, or whoever took it does.
#[test]
fn loom_a_request_is_taken_while_what_it_came_through_is_detached() {
    explore(|| {
        let asking = asking();
        let queue = attach(&asking.vm);
        asking.send();
        let detaching = {
            let vm = asking.vm.clone();
            thread::spawn(move || vm.detach_hwpt(DEVICE, Some(GuestPasid(ONE))).unwrap())
        };
        let taken = asking.vm.take_page_fault(queue).unwrap();
        let _ = detaching.join().unwrap();
        if let Some(taken) = taken {
            assert_eq!((asking.heard.success(), asking.heard.invalid()), (0, 0));
            asking.vm.respond_page_fault(queue, taken.cookie, ResponseCode::Success).unwrap();
            assert_eq!((asking.heard.success(), asking.heard.invalid()), (1, 0));
        } else {
            assert_eq!((asking.heard.success(), asking.heard.invalid()), (0, 1));
        }
    });
}

#[test]
fn loom_a_request_while_what_it_came_through_is_detached() {
    explore(|| {
        let asking = asking();
        let queue = attach(&asking.vm);
        let detaching = {
            let vm = asking.vm.clone();
            thread::spawn(move || vm.detach_hwpt(DEVICE, Some(GuestPasid(ONE))).unwrap())
        };
        asking.send();
        let _ = detaching.join().unwrap();
        assert_eq!((asking.heard.success(), asking.heard.invalid()), (0, 1));
        assert_eq!(asking.vm.take_page_fault(queue), Ok(None));
    });
}

/// A device that gives up its request hears nothing of it afterwards but what was being told.
#[test]
fn loom_an_answer_while_the_device_gives_up() {
    explore(|| {
        let asking = asking();
        asking.send();
        let answering = {
            let vm = asking.vm.clone();
            thread::spawn(move || respond(&vm).is_ok())
        };
        asking.endpoint.forget_page_requests();
        let answered = answering.join().unwrap();
        assert!(asking.heard.success() <= u32::from(answered));
        assert_eq!(asking.heard.invalid(), 0);
        asking.send();
        respond(&asking.vm).unwrap();
        assert!(asking.heard.success() <= 1 + u32::from(answered), "one more");
    });
}
