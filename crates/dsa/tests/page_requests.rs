//! Pages that are not there yet: a real IOMMU in front, a guest that pages behind.

mod rig;

use std::time::Duration;

use dsa::model::{Ran, RETRY_LIMIT};
use dsa::spec::*;
use iommu::{
    PageRequest, PageRequestPolicy, Pasid, ResponseCode, ResponseInjection, Vm, VmConfig,
    PAGE_REQUEST_TIMEOUT,
};
use pci::Function;
use rig::paged::*;
use rig::*;

use CommandCode as Code;

#[test]
fn a_copy_between_pages_that_were_never_touched() {
    let mut paged = Paged::dedicated(32);
    let data = noise(3, 3 * 4096);
    paged.rig.fill(SOURCE, &data);
    paged.rig.post(0, &recorded(copy(3 * 4096), 0));
    paged.rig.settle();
    let first = paged.request();
    let expected = PageRequest {
        requester: DEVICE,
        pasid: Pasid::new(PASID),
        privileged: false,
        execute: false,
        read: true,
        write: false,
        address: Iova(SOURCE),
        group: first.group,
        last: true,
        private_data: None,
    };
    assert_eq!(first, expected);
    let counters = paged.rig.device.counters();
    assert_eq!((counters.page_requests, counters.blocked), (1, 1));
    paged.bring(&first);
    paged.rig.settle();
    let second = paged.request();
    assert_eq!((second.address, second.read, second.write), (Iova(DESTINATION), false, true));
    assert_ne!(second.group, first.group);
    assert_eq!(status(&paged, 0), 0);
    paged.bring(&second);
    assert_eq!(paged.settle(), 4, "the other pages of both");
    assert_eq!(
        paged.rig.record(0),
        CompletionRecord {
            status: StatusByte::of(Status::Success, false),
            ..CompletionRecord::default()
        }
    );
    assert!(paged.rig.bytes(DESTINATION, data.len()) == data);
    let counters = paged.rig.device.counters();
    assert_eq!((counters.page_responses_success, counters.blocked), (6, 0));
    assert_eq!(paged.vm.take_fault(), None, "page requests are the device's own business");
}

/// A page that may be read only: copy-on-write.
#[test]
fn a_page_that_may_not_be_written_is_asked_for() {
    let mut paged = Paged::dedicated(32);
    paged.map(PASID, SOURCE, 4096);
    paged.set(PASID, DESTINATION, Mapped::ReadOnly);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    let request = paged.request();
    assert_eq!((request.address, request.read, request.write), (Iova(DESTINATION), false, true));
    paged.bring(&request);
    paged.rig.settle();
    assert_eq!(status(&paged, 0), 1);
}

#[test]
fn pages_that_do_not_exist() {
    for (missing, write) in [(SOURCE + 0x1000, false), (DESTINATION + 0x1000, true)] {
        let mut paged = Paged::dedicated(32);
        paged.rig.post(0, &recorded(copy(3 * 4096), 0));
        paged.settle_but(|request| request.address.0 != missing);
        let record = paged.rig.record(0);
        assert_eq!(record.status, StatusByte::of(Status::PageRequestInvalid, write));
        assert_eq!(record.fault_address.0 & !0xfff, missing);
        assert_eq!(record.bytes_completed, 4096, "what is counted is done");
        assert_eq!(paged.rig.swerror(), SwError::default());
        assert_eq!(paged.rig.device.counters().page_responses_invalid, 1);
    }
}

/// Without the flag a fault ends the descriptor, as without page requests.
#[test]
fn without_the_flag_completions_are_partial() {
    let mut paged = Paged::dedicated(32);
    paged.map(PASID, SOURCE, 8192);
    paged.map(PASID, DESTINATION, 4096);
    let descriptor = Descriptor::new(copy(8192)).with_record(Rig::record_at(0));
    paged.rig.post(0, &descriptor.with_flags(Flags::REQUEST_RECORD));
    paged.rig.settle();
    let record = paged.rig.record(0);
    assert_eq!(record.status, StatusByte::of(Status::PageFault, true));
    assert_eq!((record.bytes_completed, record.fault_address.0), (4096, DESTINATION + 4096));
    assert_eq!(paged.requests(), []);
}

/// The flag is reserved where the queue does not block.
#[test]
fn the_flag_needs_a_queue_that_blocks() {
    let paged = Paged::new(0);
    paged.enable_function(32);
    let mut rig = paged.rig;
    rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
    rig.set_engines(0, 1);
    rig.enable(&[0]);
    rig.post(0, &recorded(copy(64), 0));
    rig.settle();
    let record = rig.record(0);
    assert_eq!(record.status.status(), Ok(Status::BadFlags));
    assert_eq!(record.tail[..3], [2, 0, 0]);
}

#[test]
fn records_are_asked_for_whatever_the_flag() {
    let record = Iova(FLAT + 0x20_0020);
    let noop = Descriptor::new(Operation::Noop)
        .with_record(record)
        .with_flags(Flags::REQUEST_RECORD | Flags::REQUEST_INTERRUPT)
        .with_interrupt(1);
    for code in [ResponseCode::Success, ResponseCode::Invalid] {
        let mut paged = Paged::new(0);
        paged.enable_function(32);
        paged.rig.write32(0x80, paged.rig.read32(0x80) | 0x1000);
        let permission = MsixPerm::new().with_pasid_enable(true).with_pasid(PASID);
        paged.rig.write32(MSIXPERM + 8, permission.into_bits());
        paged.rig.configure(0, 0, 16, blocking(true).with_pasid(PASID));
        paged.rig.set_engines(0, 1);
        paged.rig.enable(&[0]);
        paged.rig.post(0, &noop);
        paged.rig.settle();
        let request = paged.request();
        assert_eq!((request.address, request.write), (Iova(record.0 & !0xfff), true));
        assert!(paged.rig.interrupts.take().is_empty());
        assert_eq!(paged.rig.device.counters().ended(Status::Success), 0, "it has not ended");
        let found = match code {
            ResponseCode::Success => {
                paged.bring(&request);
                (1, vec![1], 0)
            }
            _ => {
                paged.answer(&request, code);
                (0, vec![], 1)
            }
        };
        paged.rig.settle();
        let written = paged.rig.bytes(record.0, 1)[0];
        let counters = paged.rig.device.counters();
        assert_eq!((written, paged.rig.interrupts.take(), counters.records_lost), found);
        let error = paged.rig.swerror();
        assert_eq!(error.head.valid(), code == ResponseCode::Invalid);
        if error.head.valid() {
            assert_eq!(error.head.code(), Status::RecordFault as u8);
            assert!(error.head.write() && error.address == record);
        }
        assert_eq!(counters.ended(Status::Success), 1);
    }
}

/// Where batches keep their list in these tests: it crosses a page after two descriptors.
const LIST: u64 = FLAT + 0x30_1000 - 128;

/// Writes a list of copies with records 1 and up, and gives the batch with record 0.
fn batch(paged: &Paged, members: &[Descriptor]) -> Descriptor {
    for (index, member) in members.iter().enumerate() {
        paged.rig.fill(LIST + index as u64 * 64, &member.to_bytes());
    }
    Descriptor::new(Operation::Batch { list: Iova(LIST), count: members.len() as u32 })
        .with_record(Rig::record_at(0))
        .with_flags(Flags::REQUEST_RECORD)
}

/// Copies of a page each, from far apart.
fn members(count: u64) -> Vec<Descriptor> {
    let copy = |i| memory_move(SOURCE + i * 0x1000, DESTINATION + i * 0x1000, 4096);
    (0..count).map(|i| recorded(copy(i), i + 1)).collect()
}

#[test]
fn a_batch_goes_on_where_it_stopped() {
    let mut paged = Paged::dedicated(32);
    let data = noise(5, 4 * 4096);
    paged.rig.fill(SOURCE, &data);
    let batch = batch(&paged, &members(4));
    paged.rig.post(0, &batch);
    paged.rig.settle();
    let list = paged.request();
    assert_eq!((list.address, list.read, list.write), (Iova(LIST & !0xfff), true, false));
    paged.bring(&list);
    assert_eq!(paged.settle(), 9, "eight of data, and the second of the list");
    assert_eq!([0, 1, 2, 3, 4].map(|record| status(&paged, record)), [1; 5]);
    assert_eq!(paged.rig.record(0).bytes_completed, 4);
    assert!(paged.rig.bytes(DESTINATION, data.len()) == data);
    assert_eq!(paged.rig.device.counters().descriptors, 5, "each is taken up once");
}

#[test]
fn a_batch_whose_list_ends_too_early() {
    let mut paged = Paged::dedicated(32);
    let batch = batch(&paged, &members(4));
    paged.rig.post(0, &batch);
    paged.settle_but(|request| request.address.0 != LIST + 128);
    let record = paged.rig.record(0);
    assert_eq!(record.status, StatusByte::of(Status::BatchListFault, false));
    assert_eq!((record.bytes_completed, record.fault_address), (2, Iova(LIST + 128)));
    assert_eq!([1, 2, 3, 4].map(|record| status(&paged, record)), [1, 1, 0, 0]);
}

/// A member that fails for want of a page; a fence behind it keeps the rest from running.
#[test]
fn a_fence_behind_a_member_that_fails() {
    let mut paged = Paged::dedicated(32);
    let mut members = members(4);
    members[2] = members[2].with_flags(Flags::FENCE);
    let batch = batch(&paged, &members);
    paged.rig.post(0, &batch);
    paged.settle_but(|request| request.address.0 != DESTINATION + 0x1000);
    assert_eq!([1, 2, 3, 4].map(|record| status(&paged, record)), [1, 0x84, 0, 0]);
    let record = paged.rig.record(0);
    assert_eq!(record.status.status(), Ok(Status::BatchError));
    assert_eq!(record.bytes_completed, 2);
}

/// A failure of the interface: the descriptor says so, SWERROR says so, the status of the capability
/// says so, and whatever else waits ends likewise.
#[test]
fn a_failure_ends_everything_that_waits() {
    let mut paged = Paged::dedicated(2);
    for index in 0..3 {
        let copy = memory_move(SOURCE + index * 0x1000, DESTINATION, 16);
        paged.rig.post(0, &recorded(copy, index));
    }
    paged.rig.settle();
    let requests = paged.requests();
    assert_eq!(requests.len(), 2, "one waits for a credit");
    paged.answer(&requests[1], ResponseCode::Failure);
    paged.rig.settle();
    assert_eq!([0, 1, 2].map(|index| status(&paged, index)), [0x22; 3]);
    assert_eq!(paged.rig.swerror().head.code(), Status::TranslationError as u8);
    assert!(paged.rig.swerror().head.overflow());
    assert_eq!(paged.pri_status() & 3, 1);
    // Nothing more is asked.
    paged.rig.clear_records();
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    assert_eq!((status(&paged, 0), paged.requests()), (0x22, vec![]));
    // What was out is answered to nobody, and not as unexpected.
    paged.answer(&requests[0], ResponseCode::Success);
    assert_eq!(paged.pri_status() & 3, 1);
    // It is written as one to clear, and page requests work when they are enabled again.
    let device = &paged.rig.device;
    device.config_write(0x246, &1u16.to_le_bytes());
    assert_eq!(paged.pri_status() & 3, 0);
    assert_eq!(paged.rig.command(Code::ResetDevice, 0), 0);
    device.config_write(0x244, &0u16.to_le_bytes());
    device.config_write(0x244, &1u16.to_le_bytes());
    paged.rig.configure(0, 0, 16, blocking(true).with_pasid(PASID));
    paged.rig.set_engines(0, 1);
    paged.rig.enable(&[0]);
    paged.rig.clear_records();
    paged.rig.post(0, &recorded(copy(64), 0));
    assert_eq!(paged.settle(), 2);
    assert_eq!(status(&paged, 0), 1);
}

/// Answers that a page is there, and it never is: a named number of times.
#[test]
fn a_lie_is_believed_so_often() {
    let mut paged = Paged::dedicated(1);
    paged.rig.post(0, &recorded(copy(64), 0));
    let mut count = 0;
    loop {
        paged.rig.settle();
        let Some(request) = paged.vm.take_page_request() else { break };
        paged.answer(&request, ResponseCode::Success);
        count += 1;
    }
    assert_eq!(count, RETRY_LIMIT);
    assert_eq!(paged.rig.record(0).status, StatusByte::of(Status::PageRequestInvalid, false));
}

#[test]
fn what_enabling_wants() {
    let mode = blocking(true).with_pasid(PASID);
    let configured = |credits: u32, requests: bool| {
        let paged = Paged::new(0);
        paged.enable_function(credits);
        let control = u16::from(requests);
        paged.rig.device.config_write(0x244, &control.to_le_bytes());
        paged.rig.configure(0, 0, 16, mode);
        paged.rig.set_engines(0, 1);
        paged.rig
    };
    for (credits, result) in [(0, 0x13), (1, 0), (0x200, 0), (0x201, 0x13)] {
        assert_eq!(configured(credits, true).command(Code::EnableDevice, 0), result);
    }
    let rig = configured(0, false);
    assert_eq!(rig.command(Code::EnableDevice, 0), 0, "no credits are needed then");
    assert_eq!(rig.command(Code::EnableWq, 0), 0x25);
    let rig = configured(32, true);
    rig.enable(&[0]);
    assert!(GenCap::from_bits(rig.read64(0x10)).block_on_fault());
}

/// An answer that comes twice: the second is of no group, and the status of the capability says so.
#[test]
fn an_answer_that_was_not_asked_for() {
    let mut paged = Paged::dedicated(32);
    paged.vm.inject_responses(Some(ResponseInjection::Twice));
    paged.rig.post(0, &recorded(copy(64), 0));
    assert_eq!(paged.settle(), 2);
    assert_eq!(status(&paged, 0), 1);
    assert_eq!(paged.pri_status() & 3, 2);
    let counters = paged.rig.device.counters();
    assert_eq!((counters.page_responses_success, counters.page_responses_unexpected), (2, 2));
    paged.rig.device.config_write(0x246, &2u16.to_le_bytes());
    assert_eq!(paged.pri_status() & 3, 0);
}

/// A host that answers at once, from inside the call that asks: its limit is one request.
#[test]
fn answers_from_inside_the_call() {
    let page_requests = PageRequestPolicy { per_device: 1, ..PageRequestPolicy::default() };
    let mut paged = Paged::with(VmConfig { page_requests, ..VmConfig::named("one") }, 0);
    paged.bring_up(32);
    for index in 0..3 {
        let copy = memory_move(SOURCE + index * 0x1000, DESTINATION, 64);
        paged.rig.post(0, &recorded(copy, index));
    }
    // Two of them are told to try again, and again.
    assert_eq!(paged.rig.step(5000), Ran::More);
    assert_eq!([0, 1, 2].map(|index| status(&paged, index)), [0; 3]);
    assert_eq!(paged.vm.page_request_counters().outstanding, 1);
    for _ in 0..4 {
        let request = paged.request();
        paged.bring(&request);
        let _ = paged.rig.step(5000);
    }
    assert_eq!([0, 1, 2].map(|index| status(&paged, index)), [1; 3]);
    let counters = paged.rig.device.counters();
    assert!(counters.page_requests > 1000 && counters.blocked == 0);
}

/// Nobody answers: the host does, when the time is up.
#[test]
fn an_answer_that_never_comes() {
    let mut paged = Paged::dedicated(32);
    let second = Duration::from_secs(1);
    let _ = paged.vm.tick(second);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    paged.rig.start(Code::DrainAll, 0);
    // The request is as old as the first time that was told after it.
    for now in [second, second + PAGE_REQUEST_TIMEOUT / 2] {
        let _ = paged.vm.tick(now);
        paged.rig.settle();
        assert!(paged.rig.command_status().active());
    }
    let _ = paged.vm.tick(2 * second + PAGE_REQUEST_TIMEOUT);
    paged.rig.settle();
    assert_eq!((status(&paged, 0), paged.rig.command_status()), (4, CmdStatus::new()));
}
