use mem::{Access, Gpa, Iova};
use pci::RequesterId;

use super::super::*;
use crate::{Fault, FaultReason, Pasid, Stage, StageTwoFault, StageTwoOwner};

fn fault(reason: FaultReason) -> Fault {
    Fault {
        requester: RequesterId::from_bits(0x1234),
        pasid: Pasid::new(0xabcde),
        address: Iova(0x7fff_1234_5678),
        access: Access::Read,
        privileged: true,
        translation_request: false,
        reason,
        stage_two: None,
    }
}

/// SID 0x1234, SSV, SSID 0xabcde.
const WHO: u64 = 0x1234_abcd_e800;

#[test]
fn bits() {
    let word = EventWord0::new;
    assert_eq!(word().with_id(0xff).into_bits(), 0xff);
    assert_eq!(word().with_has_substream(true).into_bits(), 1 << 11);
    assert_eq!(word().with_substream(0xfffff).into_bits(), 0xfffff << 12);
    assert_eq!(word().with_stream(u32::MAX).into_bits(), 0xffff_ffff << 32);
    let word = EventWord1::new;
    assert_eq!(word().with_stall_tag(0xffff).into_bits(), 0xffff);
    assert_eq!(word().with_stall(true).into_bits(), 1 << 31);
    assert_eq!(word().with_privileged(true).into_bits(), 1 << 33);
    assert_eq!(word().with_instruction(true).into_bits(), 1 << 34);
    assert_eq!(word().with_read(true).into_bits(), 1 << 35);
    assert_eq!(word().with_stage_two(true).into_bits(), 1 << 39);
    assert_eq!(word().with_class(3).into_bits(), 3 << 40);
    let words = [1, 2, 3, 4];
    assert_eq!(Event::from_words(words).words(), words);
}

/// Every reason, by number; typed from the specification's list (7.3).
#[test]
fn every_reason_has_its_event() {
    use FaultReason as R;
    let (stage, level) = (Stage::One, 1);
    let table = [
        (R::RootNotPresent, 0x02),
        (R::RootReserved, 0x02),
        (R::RootPointer, 0x03),
        (R::RootAccess, 0x03),
        (R::ContextAccess, 0x03),
        (R::ContextNotPresent, 0x04),
        (R::ContextReserved, 0x04),
        (R::ContextInvalid, 0x04),
        (R::AtsDisabled, 0x05),
        (R::PasidRequired, 0x06),
        (R::PasidDisabled, 0x08),
        (R::PasidRange, 0x08),
        (R::PasidDirectoryNotPresent, 0x08),
        (R::PasidDirectoryAccess, 0x09),
        (R::PasidEntryAccess, 0x09),
        (R::PasidDirectoryReserved, 0x0a),
        (R::PasidEntryNotPresent, 0x0a),
        (R::PasidEntryReserved, 0x0a),
        (R::PasidEntryInvalid, 0x0a),
        (R::TableAccess { stage, level }, 0x0b),
        (R::AccessedDirty { stage }, 0x0b),
        (R::NonCanonical, 0x10),
        (R::NotPresent { stage, level }, 0x10),
        (R::TableReserved { stage, level }, 0x10),
        (R::AddressWidth { stage }, 0x11),
        (R::AccessFlag { stage, level }, 0x12),
        (R::Permission { stage, user: false }, 0x13),
    ];
    for (reason, id) in table {
        let event = event(&fault(reason)).unwrap();
        assert_eq!(event.word0.into_bits(), WHO | id, "{reason:?}");
        let tells_of_request = id == 0x05 || id >= 0x0b;
        assert_eq!(event.address == 0x7fff_1234_5678, tells_of_request, "{reason:?}");
    }
    for reason in [R::NoMemory, R::InterruptAddress, R::SupervisorDisabled] {
        assert_eq!(event(&fault(reason)), None);
    }
}

#[test]
fn translation_faults() {
    let stopped = |table| {
        let owner = StageTwoOwner::Guest;
        Some(StageTwoFault { gpa: Gpa(0x4000_1abc), table, level: 1, owner })
    };
    let at = |stage, stage_two| {
        let reason = FaultReason::NotPresent { stage, level: 1 };
        event(&Fault { stage_two, ..fault(reason) }).unwrap().words()
    };
    // RnW and PnU; CLASS 2.
    let input = 1 << 35 | 1 << 33 | 2 << 40;
    assert_eq!(at(Stage::One, None), [WHO | 0x10, input, 0x7fff_1234_5678, 0]);
    // S2, and the intermediate address.
    let words = at(Stage::Two, stopped(false));
    assert_eq!(words, [WHO | 0x10, input | 1 << 39, 0x7fff_1234_5678, 0x4000_1000]);
    // CLASS 1: the table of stage 1. CLASS 0: the context descriptor.
    let word1 = |stage| at(stage, stopped(true))[1];
    assert_eq!(word1(Stage::TwoForTable), 1 << 35 | 1 << 33 | 1 << 39 | 1 << 40);
    assert_eq!(word1(Stage::TwoForDescriptor), 1 << 35 | 1 << 33 | 1 << 39);

    let reason = FaultReason::Permission { stage: Stage::One, user: false };
    let write = Fault { access: Access::Write, privileged: false, pasid: None, ..fault(reason) };
    assert_eq!(event(&write).unwrap().words(), [0x1234_0000_0013, 2 << 40, 0x7fff_1234_5678, 0]);
}
