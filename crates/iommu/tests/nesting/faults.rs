//! The older generation's fault reports, row by row, over the software host.

use std::sync::{Arc, Mutex};

use iommu::nesting::{
    DeviceFault, DeviceFaultError, DeviceFaults, Domain, FaultHandler, GpasidBind, GroupResponse,
    NotHandled,
};
use iommu::ResponseCode::{Failure, Invalid, Success};
use iommu::{
    Endpoint, Fault, FaultReason, Host, ObjectError, PageRequest, PageRequestPolicy, SoftwareHost,
    SoftwareVm, TakenGroups, Vm, VmConfig, VtdStageOneFlags,
};
use mem::{Access, Iova, MemoryMap};

use super::common::requests::{group, part, request, Ear};
use super::*;

type Seen = Arc<Mutex<Vec<DeviceFault>>>;

struct Reporting {
    vm: SoftwareVm,
    endpoint: Endpoint,
    ear: Arc<Ear>,
    domain: Domain<SoftwareVm>,
    faults: DeviceFaults<SoftwareVm>,
    seen: Seen,
}

impl Reporting {
    /// PASID 5 is bound.
    fn new() -> Self {
        Self::with(TakenGroups::Stay)
    }

    fn with(taken: TakenGroups) -> Self {
        let page_requests = PageRequestPolicy { taken, ..PageRequestPolicy::default() };
        let config = VmConfig { page_requests, ..VmConfig::named("reporting") };
        let vm = SoftwareHost::new().create_vm(config).unwrap();
        let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x10_0000)]).unwrap());
        let endpoint = vm.attach(ONE).unwrap();
        let ear = Ear::of(&endpoint);
        let faults = DeviceFaults::new(vm.clone()).unwrap();
        let mut domain = Domain::new(vm.clone()).with_fault_queue(faults.queue());
        domain.add_device(ONE).unwrap();
        vm.alloc_pasid(only(5)).unwrap();
        let flags = VtdStageOneFlags::empty();
        let table = GpasidBind { root: Gpa(0x1000), address_width: 48, flags, guest: guest(5) };
        domain.bind_gpasid(ONE, &table).unwrap();
        Self { vm, endpoint, ear, domain, faults, seen: Seen::default() }
    }

    fn handler(&self, answer: Result<(), NotHandled>) -> FaultHandler {
        let seen = self.seen.clone();
        Box::new(move |fault| {
            seen.lock().unwrap().push(*fault);
            answer
        })
    }

    fn register(&mut self) {
        let handler = self.handler(Ok(()));
        self.faults.register_device_fault_handler(ONE, handler).unwrap();
    }

    fn ask(&mut self, request: PageRequest) {
        self.endpoint.send_page_request(request);
        assert_eq!(self.faults.poll(8), Ok(1));
    }

    fn respond(&mut self, of: Option<u32>, index: u16) -> Result<(), DeviceFaultError> {
        let response = GroupResponse { pasid: of.map(pasid), group: group(index), code: Success };
        self.faults.page_response(ONE, &response)
    }
}

const fn not_pending(index: u16) -> DeviceFaultError {
    let Some(group) = iommu::PrgIndex::new(index) else { panic!("nine bits") };
    DeviceFaultError::NotPending { device: ONE, group }
}

#[test]
fn a_device_has_one_handler() {
    let mut reporting = Reporting::new();
    let handler = || -> FaultHandler { Box::new(|_| Ok(())) };
    let faults = &mut reporting.faults;
    let register = |faults: &mut DeviceFaults<_>, device| {
        faults.register_device_fault_handler(device, handler())
    };
    assert_eq!(register(faults, STRANGER), Err(DeviceFaultError::NoDevice(STRANGER)));
    assert_eq!(faults.unregister_device_fault_handler(ONE), Ok(()), "none is no error");
    assert_eq!(register(faults, ONE), Ok(()));
    assert_eq!(register(faults, ONE), Err(DeviceFaultError::Registered(ONE)));
    assert_eq!(faults.unregister_device_fault_handler(ONE), Ok(()));
    assert_eq!(register(faults, ONE), Ok(()));
}

#[test]
fn unrecoverable_faults_are_reported_and_not_pending() {
    let mut reporting = Reporting::new();
    let fault = Fault {
        requester: ONE,
        pasid: None,
        address: Iova(0x3000),
        access: Access::Read,
        privileged: false,
        translation_request: false,
        reason: FaultReason::NoMemory,
        stage_two: None,
    };
    let report = reporting.faults.report_device_fault(&fault);
    assert_eq!(report, Err(DeviceFaultError::NoHandler(ONE)));
    reporting.register();
    assert_eq!(reporting.faults.report_device_fault(&fault), Ok(()));
    assert_eq!(reporting.seen.lock().unwrap()[..], [DeviceFault::Unrecoverable(fault)]);
    assert_eq!(reporting.faults.pending(ONE), 0);
    reporting.faults.unregister_device_fault_handler(ONE).unwrap();
    let refusing = reporting.handler(Err(NotHandled));
    reporting.faults.register_device_fault_handler(ONE, refusing).unwrap();
    let refused = Err(DeviceFaultError::NotHandled(NotHandled));
    assert_eq!(reporting.faults.report_device_fault(&fault), refused);
}

#[test]
fn the_last_of_a_group_is_pending_until_it_is_answered() {
    let mut reporting = Reporting::new();
    reporting.register();
    reporting.endpoint.send_page_request(part(Some(5), 1));
    assert_eq!(reporting.faults.poll(8), Ok(0), "not whole");
    reporting.endpoint.send_page_request(request(Some(5), 1));
    assert_eq!(reporting.faults.poll(1), Ok(1), "within the budget");
    assert_eq!(reporting.faults.pending(ONE), 0);
    assert_eq!(reporting.faults.poll(8), Ok(1));
    let last: Vec<_> = reporting
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|fault| match fault {
            DeviceFault::PageRequest(request) => request.last,
            DeviceFault::Unrecoverable(_) => unreachable!(),
        })
        .collect();
    assert_eq!(last, [false, true]);
    assert_eq!(reporting.faults.pending(ONE), 1);
    let pending = DeviceFaultError::Pending { device: ONE, groups: 1 };
    assert_eq!(reporting.faults.unregister_device_fault_handler(ONE), Err(pending));

    for (of, index) in [(Some(5), 2), (Some(6), 1), (None, 1)] {
        assert_eq!(reporting.respond(of, index), Err(not_pending(index)));
    }
    assert_eq!(reporting.ear.codes(), []);
    assert_eq!(reporting.respond(Some(5), 1), Ok(()));
    assert_eq!(reporting.ear.codes(), [(1, Success)]);
    assert_eq!(reporting.respond(Some(5), 1), Err(not_pending(1)));
    assert_eq!(reporting.faults.unregister_device_fault_handler(ONE), Ok(()));
    assert_eq!(reporting.respond(Some(5), 1), Err(DeviceFaultError::NoHandler(ONE)));
}

#[test]
fn each_code_reaches_the_device() {
    let mut reporting = Reporting::new();
    reporting.register();
    for (index, code) in [(1, Success), (2, Invalid), (3, Failure)] {
        reporting.ask(request(Some(5), index));
        let response = GroupResponse { pasid: Some(pasid(5)), group: group(index), code };
        reporting.faults.page_response(ONE, &response).unwrap();
        assert_eq!(reporting.ear.codes(), [(index, code)]);
    }
}

#[test]
fn what_nobody_handles_is_answered() {
    let mut reporting = Reporting::new();
    reporting.ask(request(Some(5), 1));
    assert_eq!(reporting.ear.codes(), [(1, Invalid)], "no handler");
    let refusing = reporting.handler(Err(NotHandled));
    reporting.faults.register_device_fault_handler(ONE, refusing).unwrap();
    reporting.ask(request(Some(5), 2));
    assert_eq!(reporting.ear.codes(), [(2, Invalid)], "refused");
    assert_eq!(reporting.faults.pending(ONE), 0);
}

#[test]
fn an_unbind_leaves_what_is_pending_to_its_handler() {
    let mut reporting = Reporting::new();
    reporting.register();
    reporting.ask(request(Some(5), 1));
    reporting.domain.unbind_gpasid(ONE, guest(5)).unwrap();
    assert_eq!(reporting.ear.codes(), []);
    assert_eq!(reporting.respond(Some(5), 1), Ok(()));
    assert_eq!(reporting.ear.codes(), [(1, Success)]);
}

#[test]
fn with_that_policy_an_unbind_answers_and_a_late_answer_says_so() {
    let mut reporting = Reporting::with(TakenGroups::Withdrawn);
    reporting.register();
    reporting.ask(request(Some(5), 1));
    reporting.domain.unbind_gpasid(ONE, guest(5)).unwrap();
    assert_eq!(reporting.ear.codes(), [(1, Invalid)]);
    assert_eq!(reporting.respond(Some(5), 1), Err(not_pending(1)));
    assert_eq!(reporting.faults.pending(ONE), 0);
    assert_eq!(reporting.ear.codes(), []);
}

#[test]
fn the_end_answers_what_is_pending() {
    let mut reporting = Reporting::new();
    reporting.register();
    reporting.ask(request(Some(5), 1));
    reporting.faults.release_device(ONE);
    assert_eq!(reporting.ear.codes(), [(1, Invalid)]);
    reporting.register();
    reporting.ask(request(Some(5), 2));
    let busy = Err(DeviceFaultError::Object(ObjectError::Busy));
    assert_eq!(reporting.faults.close(), busy, "a table names the queue");
    assert_eq!(reporting.ear.codes(), [(2, Invalid)]);
    reporting.domain.unbind_gpasid(ONE, guest(5)).unwrap();
    assert_eq!(reporting.faults.close(), Ok(()));
    let gone = ObjectError::NoObject(reporting.faults.queue().into());
    assert_eq!(reporting.faults.poll(8), Err(DeviceFaultError::Object(gone)));
    assert_eq!(reporting.vm.page_request_counters().outstanding, 0);
}
