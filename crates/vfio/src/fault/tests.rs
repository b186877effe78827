use std::vec::Vec;

use super::*;

/// Every reason, at every stage and with every level that an entry can have.
pub(crate) fn reasons() -> Vec<FaultReason> {
    use FaultReason as R;
    let mut reasons = std::vec![
        R::RootPointer,
        R::RootAccess,
        R::RootNotPresent,
        R::RootReserved,
        R::ContextAccess,
        R::ContextNotPresent,
        R::ContextReserved,
        R::ContextInvalid,
        R::AtsDisabled,
        R::PasidDisabled,
        R::PasidRange,
        R::PasidDirectoryAccess,
        R::PasidDirectoryNotPresent,
        R::PasidDirectoryReserved,
        R::PasidEntryAccess,
        R::PasidEntryNotPresent,
        R::PasidEntryReserved,
        R::PasidEntryInvalid,
        R::SupervisorDisabled,
        R::NonCanonical,
        R::InterruptAddress,
        R::NoMemory,
        R::PasidRequired,
    ];
    for stage in [Stage::One, Stage::Two, Stage::TwoForTable, Stage::TwoForDescriptor] {
        reasons.push(R::AddressWidth { stage });
        reasons.push(R::AccessedDirty { stage });
        reasons.extend([true, false].map(|user| R::Permission { stage, user }));
        for level in 1..=5 {
            reasons.push(R::TableAccess { stage, level });
            reasons.push(R::NotPresent { stage, level });
            reasons.push(R::TableReserved { stage, level });
            reasons.push(R::AccessFlag { stage, level });
        }
    }
    reasons
}

fn fault(reason: FaultReason) -> Fault {
    Fault {
        requester: RequesterId::from_bits(0x1234),
        pasid: Some(Pasid::MAX),
        address: Iova(0xffff_ffff_ffff_f123),
        access: Access::Write,
        privileged: true,
        translation_request: true,
        reason,
        stage_two: None,
    }
}

fn through(fault: Option<Fault>) -> Result<Option<Fault>, UnknownFault> {
    // What a caller has there does not shine through.
    let mut argument = ReadFault { code: 7, ..ReadFault::new_zeroed() };
    argument.fault.padding_to_64 = [0xff; 24];
    (argument.argsz, argument.flags) = (96, 0);
    encode(fault, &mut argument);
    assert_eq!((argument.argsz, argument.flags), (96, 0));
    assert_eq!(argument.fault.padding_to_64, [0; 24]);
    decode(&argument)
}

#[test]
fn every_fault_survives() {
    assert_eq!(through(None), Ok(None));
    for reason in reasons() {
        let whole = fault(reason);
        let poor = Fault {
            pasid: None,
            access: Access::Read,
            privileged: false,
            translation_request: false,
            ..whole
        };
        for fault in [whole, poor, Fault { pasid: Some(Pasid::from_field(0)), ..poor }] {
            assert_eq!(through(Some(fault)), Ok(Some(fault)));
        }
    }
}

#[test]
fn where_stage_two_stopped() {
    let reason = FaultReason::NotPresent { stage: Stage::TwoForTable, level: 2 };
    for owner in [StageTwoOwner::Guest, StageTwoOwner::Host] {
        for table in [true, false] {
            let stop = StageTwoFault { gpa: Gpa(0x1234_5678), table, level: 2, owner };
            let fault = Fault { stage_two: Some(stop), ..fault(reason) };
            assert_eq!(through(Some(fault)), Ok(Some(fault)));
            let mut argument = ReadFault::new_zeroed();
            encode(Some(fault), &mut argument);
            let fetch = argument.fault.flags & FAULT_FETCH_ADDRESS_VALID != 0;
            let expected = if table { (true, 0x1234_5678) } else { (false, 0) };
            assert_eq!((fetch, argument.fault.fetch_address), expected);
        }
    }
}

#[test]
fn posted_reasons() {
    let of = |reason| Code::of(reason).1;
    assert_eq!(of(FaultReason::PasidEntryAccess), 1);
    assert_eq!(of(FaultReason::PasidEntryInvalid), 2);
    assert_eq!(of(FaultReason::PasidRange), 3);
    assert_eq!(of(FaultReason::TableAccess { stage: Stage::One, level: 1 }), 4);
    assert_eq!(of(FaultReason::NotPresent { stage: Stage::Two, level: 1 }), 5);
    assert_eq!(of(FaultReason::Permission { stage: Stage::One, user: true }), 6);
    assert_eq!(of(FaultReason::AccessedDirty { stage: Stage::One }), 7);
    assert_eq!(of(FaultReason::NonCanonical), 8);
    assert_eq!(of(FaultReason::RootAccess), 0);
}

#[test]
fn a_host_end_that_says_nonsense_is_not_believed() {
    let good = {
        let mut argument = ReadFault::new_zeroed();
        encode(Some(fault(FaultReason::NotPresent { stage: Stage::One, level: 1 })), &mut argument);
        argument
    };
    let bad = |spoil: fn(&mut ReadFault)| {
        let mut argument = good;
        spoil(&mut argument);
        assert_eq!(decode(&argument), Err(UnknownFault));
    };
    bad(|argument| argument.fault.kind = 2);
    bad(|argument| argument.fault.pasid = 1 << 20);
    bad(|argument| argument.code = 0);
    bad(|argument| argument.code = 31);
    bad(|argument| argument.stage = 0);
    bad(|argument| argument.stage = 5);
}
