//! A device of the host's that two VMs share: it names the host's PASIDs, and each request is of
//! the VM that has it.

use std::sync::{Arc, Mutex};

use iommu::{
    AddressSpace, DmaError, FaultReason, GuestPasid, Host, Numbering, PageRequest, PageResponse,
    PageResponses, PasidRange, PrgIndex, ResponseCode, ShareError, SoftwareHost, SoftwareVm, Vm,
    VmConfig, SHARED_VMS,
};
use mem::{Access, Gpa, GuestMemory, Iova};
use pci::RequesterId;

use super::scenarios::{submitted, CONFIG};
use super::sharing::{self, Shared, OWN, WORDS};
use crate::common::hosted::{guest, VA};
use crate::common::{dma, pasid, wait, with, without, Op, DEVICE};

#[test]
fn a_number_of_the_hosts_never_leads_to_what_its_guest_has_there_now() {
    sharing::reused().unwrap();
}

#[test]
fn each_request_is_the_vms_that_has_its_pasid() {
    for numbering in [Numbering::Private, Numbering::Identity] {
        let shared = Shared::new(numbering);
        let channel = shared.endpoint.channel();
        assert_ne!(shared.sharers[0].host, shared.sharers[1].host);
        // In turn, so that nothing depends on who was the last.
        for vm in [0, 1, 1, 0, 1] {
            assert_eq!(shared.read(&channel, vm), Ok(WORDS[vm]), "{numbering:?}");
        }
        // Without PASID it is the host's own.
        shared.own_memory.store_u64(Gpa(0x2000), 33).unwrap();
        assert_eq!(dma(&channel, without(), 0x2000, Op::Read), Ok(33));
        drop(channel);
        shared.end();
    }
}

#[test]
fn an_access_in_flight_is_of_one_guest_and_keeps_only_its_tickets() {
    let shared = Shared::new(Numbering::Private);
    let channel = shared.endpoint.channel();
    let access = channel.enter();
    let spaces =
        [0, 1].map(|vm| AddressSpace { pasid: Some(shared.sharers[vm].host.0), privileged: false });
    let _window = access.window(spaces[0], Iova(VA), 8, Access::Read).unwrap();
    let other = access.window(spaces[1], Iova(VA), 8, Access::Read);
    assert!(matches!(other, Err(DmaError::Refused { .. })));
    let tickets = [0, 1].map(|vm| {
        let vm = &shared.sharers[vm].guest.vm;
        (vm, vm.detach_hwpt(DEVICE, Some(guest(5))).unwrap())
    });
    assert_eq!(tickets.map(|(vm, ticket)| vm.is_complete(ticket)), [false, true]);
    drop(access);
    assert_eq!(tickets.map(|(vm, ticket)| vm.is_complete(ticket)), [true, true]);
    assert!(shared.read(&channel, 0).is_err());
    drop(channel);
    shared.end();
}

#[test]
fn a_guest_sees_its_faults_under_its_own_number_and_the_host_those_of_nobody() {
    let shared = Shared::new(Numbering::Private);
    let channel = shared.endpoint.channel();
    let host = shared.sharers[1].host.0.get();
    let fault = |vm: &SoftwareVm| {
        let fault = vm.take_fault()?;
        assert_eq!(vm.take_fault(), None);
        Some((fault.requester, fault.pasid.map(|pasid| pasid.get()), fault.reason))
    };
    assert!(dma(&channel, with(host), VA + 0x1000, Op::Read).is_err());
    let seen = fault(&shared.sharers[1].guest.vm).unwrap();
    assert_eq!((seen.0, seen.1), (DEVICE, Some(5)));
    assert_eq!(fault(&shared.sharers[0].guest.vm), None);
    // The number that the guest has for it is nobody's.
    let refused = dma(&channel, with(0x5_0000), VA, Op::Read);
    assert!(matches!(refused, Err(DmaError::Refused { .. })));
    let expected = (OWN, Some(0x5_0000), FaultReason::PasidEntryNotPresent);
    assert_eq!(fault(&shared.own), Some(expected));
    assert_eq!(shared.own.counters().ungranted, 1);
    for sharer in &shared.sharers {
        assert_eq!(fault(&sharer.guest.vm), None);
    }
    drop(channel);
    shared.end();
}

#[test]
fn what_ends_for_one_guest_goes_on_for_the_other() {
    let shared = Shared::new(Numbering::Private);
    let channel = shared.endpoint.channel();
    let [first, second] = &shared.sharers[..] else { panic!("there are two") };
    assert_eq!(shared.read(&channel, 0), Ok(WORDS[0]));
    first.guest.vm.free_pasid(guest(5)).unwrap();
    assert!(shared.read(&channel, 0).is_err());
    assert_eq!(shared.read(&channel, 1), Ok(WORDS[1]));
    wait(&second.guest.vm, second.guest.vm.close());
    assert!(shared.read(&channel, 1).is_err());
    // The first guest's number comes back, with another of the host's or the same.
    while first.guest.vm.alloc_pasid(PasidRange::new(pasid(5), pasid(5)).unwrap()).is_err() {}
    let table = first.guest.vm.translate_pasids(CONFIG).unwrap();
    first.guest.vm.attach_hwpt(DEVICE, Some(guest(5)), first.space).unwrap();
    let host = submitted(&mut table.vcpu().unwrap(), 5).unwrap();
    assert_eq!(dma(&channel, with(host), VA, Op::Read), Ok(WORDS[0]));
    drop((channel, table));
    shared.end();
}

#[test]
fn what_is_taken_back_while_an_access_is_in_flight_is_refused_from_then_on() {
    let shared = Shared::new(Numbering::Private);
    let channel = shared.endpoint.channel();
    let (access, first) = (channel.enter(), &shared.sharers[0]);
    let space = AddressSpace { pasid: Some(first.host.0), privileged: false };
    assert!(access.window(space, Iova(VA), 8, Access::Read).is_ok());
    first.guest.vm.free_pasid(guest(5)).unwrap();
    let again = access.window(space, Iova(VA), 8, Access::Read);
    assert!(matches!(again, Err(DmaError::Refused { .. })));
    drop(access);
    drop(channel);
    shared.end();
}

#[derive(Default)]
struct Answers(Mutex<Vec<PageResponse>>);

impl PageResponses for Answers {
    fn respond(&self, response: PageResponse) {
        self.0.lock().unwrap().push(response);
    }
}

fn request(number: u32, group: u16) -> PageRequest {
    PageRequest {
        requester: OWN,
        pasid: Some(pasid(number)),
        privileged: false,
        execute: false,
        read: true,
        write: false,
        address: Iova(VA & !0xfff),
        group: PrgIndex::new(group).unwrap(),
        last: true,
        private_data: None,
    }
}

#[test]
fn page_requests_are_the_guests_and_answers_the_devices() {
    let shared = Shared::new(Numbering::Private);
    let answers = Arc::new(Answers::default());
    shared.endpoint.set_page_responses(Some(answers.clone()));
    let taken = || std::mem::take(&mut *answers.0.lock().unwrap());
    // The attached tables have no queue, so there is an answer at once: under the host's number.
    let host = shared.sharers[1].host.0.get();
    shared.endpoint.send_page_request(request(host, 7));
    let group = PrgIndex::new(7).unwrap();
    let invalid = PageResponse {
        requester: OWN,
        pasid: Some(pasid(host)),
        group,
        code: ResponseCode::Invalid,
    };
    assert_eq!(taken(), [invalid]);
    // Of nobody's number, too, and a stop marker is answered by nobody.
    shared.endpoint.send_page_request(request(0x5_0000, 7));
    assert_eq!(taken(), [PageResponse { pasid: Some(pasid(0x5_0000)), ..invalid }]);
    shared.endpoint.send_page_request(PageRequest::stop_marker(OWN, pasid(host)));
    shared.endpoint.send_page_request(PageRequest::stop_marker(OWN, pasid(0x5_0000)));
    assert_eq!(taken(), []);
    shared.endpoint.forget_page_requests();
    shared.endpoint.set_page_responses(None);
    shared.endpoint.send_page_request(request(host, 8));
    assert_eq!(taken(), []);
    shared.end();
}

/// Guests whose devices are translated by their own tables: the request waits for the guest.
#[test]
fn a_guest_answers_under_its_own_number_and_for_itself_alone() {
    let host = SoftwareHost::new();
    let own = host.create_vm(VmConfig::named("host")).unwrap();
    let vms = ["one", "other"].map(|name| {
        let config = VmConfig { numbering: Numbering::Private, ..VmConfig::named(name) };
        host.create_vm(config).unwrap()
    });
    let numbers = vms.each_ref().map(|vm| vm.alloc_pasid(PasidRange::ALL).unwrap());
    assert_eq!(numbers[0], numbers[1]);
    let endpoints = vms.iter().map(|vm| vm.attach(DEVICE).unwrap()).collect();
    let endpoint = own.attach(OWN).unwrap().shared_by(endpoints).unwrap();
    let answers = Arc::new(Answers::default());
    endpoint.set_page_responses(Some(answers.clone()));
    let report = host.pasid_report();
    let of = |vm: usize| report.vms.iter().filter(|one| one.name != "host").nth(vm).unwrap();
    let hosts = [0, 1].map(|vm| of(vm).entries[0].host.0.get());
    endpoint.send_page_request(request(hosts[1], 9));
    assert_eq!(vms[0].take_page_request(), None);
    let taken = vms[1].take_page_request().unwrap();
    assert_eq!((taken.requester, taken.pasid), (DEVICE, Some(numbers[1].0)));
    let group = PrgIndex::new(9).unwrap();
    let code = ResponseCode::Success;
    let GuestPasid(number) = numbers[1];
    let response = PageResponse { requester: DEVICE, pasid: Some(number), group, code };
    // The other VM has nothing to answer, whatever it says.
    assert!(vms[0].respond_page_request(response).is_err());
    vms[1].respond_page_request(response).unwrap();
    assert!(vms[1].respond_page_request(response).is_err());
    let heard = PageResponse { requester: OWN, pasid: Some(pasid(hosts[1])), group, code };
    assert_eq!(*answers.0.lock().unwrap(), [heard]);
    drop(endpoint);
    vms.iter().for_each(|vm| wait(vm, vm.close()));
    wait(&own, own.close());
}

#[test]
fn sharing_has_bounds() {
    let host = SoftwareHost::new();
    let vm = host.create_vm(VmConfig::named("guest")).unwrap();
    let endpoint = |number: usize| vm.attach(RequesterId::from_bits(number as u16)).unwrap();
    let many = (1..=SHARED_VMS + 1).map(endpoint).collect();
    let error = endpoint(0).shared_by(many).err();
    assert_eq!(error, Some(ShareError::TooMany { vms: SHARED_VMS + 1 }));
    // Everything is detached.
    assert_eq!(vm.counters().devices, 0);
    let inner = endpoint(0).shared_by(vec![endpoint(1)]).unwrap();
    assert_eq!(endpoint(2).shared_by(vec![inner]).err(), Some(ShareError::Nested));
    assert_eq!(vm.counters().devices, 0);
    wait(&vm, vm.close());
}
