//! Descriptors that wait for pages, and everything else: other queues, credits, commands, resets.

mod rig;

use dsa::model::{Ran, SET_ASIDE};
use dsa::spec::*;
use iommu::{PageRequest, PageResponse, PageResponseError, Pasid, ResponseCode, Vm};
use mem::{Gpa, GuestMemory};
use pci::Function;
use rig::paged::*;
use rig::*;

use CommandCode as Code;

/// Queues 0 and 1 with PASIDs 1 and 2, both of engine 0.
fn two_queues(credits: u32) -> Paged {
    let mut paged = Paged::new(2);
    paged.enable_function(credits);
    for wq in 0..2 {
        paged.rig.configure(wq, 0, 32, blocking(true).with_pasid(wq as u32 + 1));
        paged.map(wq as u32 + 1, FLAT + 0x40_0000, 0x2000);
    }
    paged.rig.set_engines(0, 1);
    paged.rig.enable(&[0, 1]);
    paged
}

/// A copy within what both PASIDs of [`two_queues`] have.
fn present(index: u64) -> Descriptor {
    recorded(memory_move(FLAT + 0x40_0000, FLAT + 0x40_1000, 4096), index)
}

#[test]
fn a_blocked_descriptor_blocks_nobody_else() {
    let mut paged = two_queues(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    paged.rig.post(0, &present(1));
    paged.rig.post(1, &present(2));
    paged.rig.settle();
    assert_eq!([0, 1, 2].map(|index| status(&paged, index)), [0, 1, 1]);
    // A queue sets aside so many and no more; another goes on.
    for index in 0..SET_ASIDE as u64 + 3 {
        let far = memory_move(SOURCE + (index + 1) * 0x1000, DESTINATION, 16);
        paged.rig.post(0, &recorded(far, 10 + index));
    }
    paged.rig.settle();
    assert_eq!(paged.rig.device.counters().blocked, SET_ASIDE as u64);
    assert_eq!(paged.rig.wq(0).occupancy.occupancy(), 4);
    paged.rig.post(0, &present(3));
    paged.rig.post(1, &present(4));
    paged.rig.settle();
    assert_eq!([3, 4].map(|index| status(&paged, index)), [0, 1]);
    paged.settle();
    assert_eq!(status(&paged, 3), 1);
    assert!((0..SET_ASIDE as u64 + 3).all(|index| status(&paged, 10 + index) == 1));
}

/// Commands about another queue, or none, do not wait for a blocked descriptor.
#[test]
fn commands_wait_only_for_their_own() {
    let mut paged = two_queues(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    assert_eq!(paged.rig.command(Code::DrainWq, 2), 0);
    assert_eq!(paged.rig.command(Code::DrainPasid, 2), 0);
    assert_eq!(paged.rig.command(Code::AbortPasid, 2), 0);
    assert_eq!(paged.rig.command(Code::DisableWq, 2), 0);
    paged.rig.start(Code::DrainWq, 1);
    assert!(paged.rig.command_status().active(), "for the answer");
    paged.rig.settle();
    assert!(paged.rig.command_status().active());
    assert_eq!(paged.settle(), 2);
    assert_eq!(paged.rig.command_status(), CmdStatus::new());
    assert_eq!(status(&paged, 0), 1, "drained, not abandoned");
}

#[test]
fn an_abort_does_not_wait_for_answers() {
    for (code, operand) in [
        (Code::AbortAll, 0),
        (Code::AbortWq, 1),
        (Code::ResetWq, 1),
        (Code::AbortPasid, 1),
        (Code::ResetDevice, 0),
    ] {
        let mut paged = two_queues(32);
        paged.rig.post(0, &recorded(copy(64), 0));
        paged.rig.settle();
        let request = paged.request();
        assert_eq!(paged.rig.command(code, operand), 0, "{code:?}");
        let counters = paged.rig.device.counters();
        assert_eq!((counters.abandoned, counters.blocked), (1, 0));
        // A stop marker is sent where a PASID is given up.
        let marker = PageRequest::stop_marker(DEVICE, Pasid::new(1).unwrap());
        let markers = if code == Code::AbortPasid { vec![marker] } else { vec![] };
        assert_eq!(paged.requests(), markers);
        // The answer comes late, and to nobody.
        paged.bring(&request);
        paged.settle();
        assert_eq!(status(&paged, 0), 0, "{code:?}");
        assert_eq!(paged.pri_status() & 3, 0, "it was expected");
        assert!(paged.rig.bytes(DESTINATION, 64).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn credits_go_to_who_waits_longest() {
    let mut paged = two_queues(1);
    for index in 0..3 {
        let far = memory_move(SOURCE + index * 0x1000, FLAT + 0x40_0000, 16);
        paged.rig.post(0, &recorded(far, index));
    }
    paged.rig.settle();
    let counters = paged.rig.device.counters();
    assert_eq!((counters.blocked, counters.credits_exhausted), (3, 2));
    paged.rig.post(1, &present(9));
    paged.rig.settle();
    assert_eq!(status(&paged, 9), 1, "who needs no page needs no credit");
    for index in 0..3 {
        let request = paged.request();
        assert_eq!(request.address, Iova(SOURCE + index * 0x1000));
        paged.bring(&request);
    }
    paged.rig.settle();
    assert_eq!([0, 1, 2].map(|index| status(&paged, index)), [1; 3]);
    // One that is abandoned while it waits for a credit has asked nothing.
    for index in 0..2 {
        let far = memory_move(SOURCE + (index + 5) * 0x1000, FLAT + 0x40_0000, 16);
        paged.rig.post(index as u8, &recorded(far, index));
        paged.rig.settle();
    }
    let request = paged.request();
    assert_eq!(paged.rig.command(Code::AbortPasid, 2), 0);
    paged.bring(&request);
    paged.rig.settle();
    assert_eq!(paged.requests(), []);
}

/// More credits, given while somebody waits for one.
#[test]
fn credits_can_be_added() {
    let mut paged = two_queues(1);
    for index in 0..3 {
        let far = memory_move(SOURCE + index * 0x1000, FLAT + 0x40_0000, 16);
        paged.rig.post(0, &recorded(far, index));
    }
    paged.rig.settle();
    assert_eq!(paged.requests().len(), 1);
    paged.rig.device.config_write(0x24c, &6u32.to_le_bytes());
    assert_eq!(paged.requests().len(), 2);
}

/// A queue whose pages never come has its share of the credits, and no more.
#[test]
fn a_queue_cannot_take_every_credit() {
    let mut paged = two_queues(8);
    for index in 0..SET_ASIDE as u64 {
        let far = memory_move(SOURCE + index * 0x1000, FLAT + 0x40_0000, 16);
        paged.rig.post(0, &recorded(far, index));
    }
    paged.rig.settle();
    let stuck = paged.requests();
    assert_eq!(stuck.len(), 4);
    paged.rig.post(1, &recorded(copy(0x3000), 20));
    for _ in 0..6 {
        paged.rig.settle();
        let request = paged.request();
        assert_eq!(request.pasid, Pasid::new(2));
        paged.bring(&request);
    }
    paged.rig.settle();
    assert_eq!(status(&paged, 20), 1);
    // Its share is its own again as it is answered, or when it is all there is.
    paged.bring(&stuck[0]);
    assert_eq!(paged.request().address, Iova(SOURCE + 4 * 0x1000));
    assert_eq!(paged.rig.command(Code::DisableWq, 2), 0);
    paged.bring(&stuck[1]);
    assert_eq!(paged.requests().len(), 3, "the rest");
}

/// A drain descriptor waits for what is set aside before it, and what is behind the drain for it.
#[test]
fn a_drain_descriptor_waits() {
    let mut paged = two_queues(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    let drain = Descriptor::new(Operation::Drain { readback1: Iova(0), readback2: Iova(0) })
        .with_record(Rig::record_at(1))
        .with_flags(Flags::REQUEST_RECORD);
    paged.rig.post(0, &drain);
    paged.rig.post(0, &present(2));
    paged.rig.post(1, &present(3));
    paged.rig.settle();
    assert_eq!([0, 1, 2, 3].map(|index| status(&paged, index)), [0, 0, 0, 1]);
    paged.settle();
    assert_eq!([0, 1, 2].map(|index| status(&paged, index)), [1; 3]);
}

#[test]
fn a_function_reset_forgets_what_was_asked() {
    let mut paged = Paged::dedicated(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    let request = paged.request();
    paged.rig.device.reset();
    assert_eq!(paged.rig.device.counters().blocked, 0);
    assert_eq!(paged.pri_status(), 0x8100, "stopped");
    let PageRequest { requester, pasid, group, .. } = request;
    let code = ResponseCode::Success;
    let answer = paged.vm.respond_page_request(PageResponse { requester, pasid, group, code });
    assert_eq!(answer, Err(PageResponseError::NotOutstanding { requester, group }));
    paged.rig.settle();
    assert_eq!(status(&paged, 0), 0);
    // As new.
    paged.enable_function(32);
    paged.rig.configure(0, 0, 16, blocking(true).with_pasid(PASID));
    paged.rig.set_engines(0, 1);
    paged.rig.enable(&[0]);
    paged.rig.post(0, &recorded(copy(64), 0));
    assert_eq!(paged.settle(), 2);
    assert_eq!(status(&paged, 0), 1);
}

/// Page requests that are switched off are stopped when the last is answered.
#[test]
fn stopped_is_when_nothing_is_out() {
    let mut paged = Paged::dedicated(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    let request = paged.request();
    assert_eq!(paged.rig.command(Code::ResetDevice, 0), 0);
    paged.rig.device.config_write(0x244, &0u16.to_le_bytes());
    assert_eq!(paged.pri_status(), 0x8000);
    paged.answer(&request, ResponseCode::Success);
    assert_eq!(paged.pri_status(), 0x8100);
    assert_eq!(paged.rig.state().state(), DeviceState::Disabled);
}

/// The reset bit forgets what is out, at the host too.
#[test]
fn the_reset_bit_stops_at_once() {
    let mut paged = Paged::dedicated(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    let request = paged.request();
    assert_eq!(paged.rig.command(Code::ResetDevice, 0), 0);
    paged.rig.device.config_write(0x244, &2u16.to_le_bytes());
    assert_eq!(paged.pri_status(), 0x8100);
    let PageRequest { requester, pasid, group, .. } = request;
    let code = ResponseCode::Success;
    let answer = paged.vm.respond_page_request(PageResponse { requester, pasid, group, code });
    assert_eq!(answer, Err(PageResponseError::NotOutstanding { requester, group }));
}

/// Page requests switched off under a running device: it halts, and nothing is left behind.
#[test]
fn switching_page_requests_off_halts() {
    let mut paged = Paged::dedicated(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    paged.rig.device.config_write(0x244, &0u16.to_le_bytes());
    assert_eq!(paged.rig.state().state(), DeviceState::Halted);
    assert_eq!(paged.rig.swerror().head.code(), SwError::CONFIG_CHANGE);
    assert_eq!(paged.rig.device.counters().blocked, 0);
    paged.settle();
    assert_eq!(status(&paged, 0), 0);
}

/// Descriptors whose answers are lies keep neither the queue nor another one from going on.
#[test]
fn retries_starve_nobody() {
    let mut paged = two_queues(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    paged.rig.post(0, &present(1));
    paged.rig.post(1, &present(2));
    for _ in 0..16 {
        for request in paged.requests() {
            paged.answer(&request, ResponseCode::Success);
        }
        assert_eq!(paged.rig.step(2), Ran::More);
    }
    assert_eq!([0, 1, 2].map(|index| status(&paged, index)), [0, 1, 1]);
}

/// An engine that is dropped gives up what it had set aside.
#[test]
fn an_engine_that_goes() {
    let mut paged = Paged::dedicated(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    let request = paged.request();
    paged.rig.start(Code::DrainAll, 0);
    assert!(paged.rig.command_status().active());
    paged.rig.engines.remove(0);
    assert!(!paged.rig.command_status().active());
    assert_eq!(paged.rig.device.counters().abandoned, 1);
    let engine = paged.rig.device.engine(0).unwrap();
    paged.rig.engines.insert(0, engine);
    paged.bring(&request);
    paged.settle();
    assert_eq!(status(&paged, 0), 0);
}

/// The VM ends while a descriptor waits: it is abandoned when it is told so.
#[test]
fn a_vm_that_ends() {
    let mut paged = Paged::dedicated(32);
    paged.rig.post(0, &recorded(copy(64), 0));
    paged.rig.settle();
    let request = paged.request();
    let ticket = paged.vm.close();
    assert!(paged.vm.is_complete(ticket));
    let PageRequest { requester, pasid, group, .. } = request;
    // Whether the host answers in the guest's place or leaves that to the guest.
    let code = ResponseCode::Invalid;
    let _ = paged.vm.respond_page_request(PageResponse { requester, pasid, group, code });
    paged.rig.settle();
    assert_eq!(paged.rig.memory.load_u64(Gpa(RECORDS)), Ok(0));
    assert_eq!(paged.rig.command(Code::DrainAll, 0), 0);
}
