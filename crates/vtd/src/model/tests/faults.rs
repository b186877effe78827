//! Fault recording registers, overflow, and the codes of all reasons.

use iommu::{Stage, StageTwoFault, StageTwoOwner};

use super::*;
use crate::model::faults::fault_code;
use crate::spec::{FaultCode, TableMode, FAULT_RECORDS};

const PFO: u32 = 1;
const PPF: u32 = 2;
const F: u32 = 1 << 31;

fn record(unit: &mut Unit, index: u64) -> (u64, u64) {
    (unit.read64(0x220 + 16 * index), unit.read64(0x228 + 16 * index))
}

#[test]
fn a_fault_is_recorded_as_the_specification_has_it() {
    let mut unit = Unit::scalable();
    unit.inject(fault(0x7_f123_4567));
    unit.inject(Fault {
        requester: RequesterId::from_bits(0xabcd),
        pasid: None,
        address: Iova(u64::MAX),
        access: Access::Write,
        privileged: true,
        translation_request: true,
        reason: FaultReason::AtsDisabled,
        stage_two: None,
    });
    unit.inject(Fault { privileged: true, ..fault(1) });
    let _ = unit.poll();
    assert_eq!(record(&mut unit, 0), (0x7f12_3456_7000, 0xc000_0559_8000_0080));
    // Without PASID, privilege means nothing.
    assert_eq!(record(&mut unit, 1), (0xffff_ffff_ffff_f000, 0x9000_0044_0000_abcd));
    assert_eq!(record(&mut unit, 2).1, 0xc000_0559_a000_0080);
    assert_eq!(unit.read32(0x34), PPF);
}

#[test]
fn records_go_round_from_the_index_that_fsts_names() {
    let mut unit = Unit::scalable();
    for page in 0..5 {
        unit.inject(fault(page));
    }
    let _ = unit.poll();
    // As Linux does: from FRI on, until F is clear.
    for index in 0..5 {
        assert_eq!(unit.read32(0x22c + 16 * index) & F, F);
        let _ = unit.write32(0x22c + 16 * index, F);
    }
    assert_eq!(unit.read32(0x34), 0);
    for page in 5..10 {
        unit.inject(fault(page));
    }
    let _ = unit.poll();
    assert_eq!(unit.read32(0x34), 5 << 8 | PPF);
    for (page, index) in [(5, 5), (6, 6), (7, 7), (8, 0), (9, 1)] {
        assert_eq!(record(&mut unit, index).0, page << 12);
    }
}

#[test]
fn overflow_loses_faults_and_says_so() {
    let mut unit = Unit::scalable();
    unit.unmask_events();
    let total = FAULT_RECORDS as u64 + 3;
    for page in 0..total {
        unit.inject(fault(page));
    }
    let _ = unit.poll();
    assert_eq!(unit.read32(0x34), PPF | PFO);
    assert_eq!(unit.model.counters().faults_recorded, FAULT_RECORDS as u64);
    assert_eq!(unit.model.counters().faults_lost, 3);
    // With all records free and the overflow not cleared, nothing is recorded.
    for index in 0..FAULT_RECORDS as u64 {
        let _ = unit.write32(0x22c + 16 * index, F);
    }
    assert_eq!(unit.read32(0x34), PFO);
    unit.inject(fault(100));
    assert_eq!(unit.poll().effects, Effects::default());
    assert_eq!(unit.model.counters().faults_lost, 4);
    let _ = unit.write32(0x34, PFO);
    assert_eq!(unit.read32(0x34), 0);
    unit.inject(fault(101));
    assert_eq!(unit.poll().effects.fault, Some(FAULT_MESSAGE));
    assert_eq!(unit.read32(0x34), PPF);
    assert_eq!(record(&mut unit, 0).0, 101 << 12);
}

#[test]
fn writing_zero_clears_nothing() {
    let mut unit = Unit::scalable();
    for page in 0..=FAULT_RECORDS as u64 {
        unit.inject(fault(page));
    }
    let _ = unit.poll();
    let _ = unit.write32(0x34, 0);
    let _ = unit.write64(0x228, !(1 << 63));
    let _ = unit.write64(0x220, u64::MAX);
    assert_eq!(unit.read32(0x34), PPF | PFO);
    assert_eq!(record(&mut unit, 0), (0, 0xc000_0559_8000_0080));
    // PPF is what the records say: no write clears it.
    let _ = unit.write32(0x34, PPF);
    assert_eq!(unit.read32(0x34), PPF | PFO);
}

#[test]
fn switching_translation_off_rewinds_the_records() {
    let mut unit = Unit::scalable();
    let _ = unit.write32(0x18, TE | QIE);
    unit.inject(fault(1));
    let _ = unit.poll();
    let _ = unit.write32(0x22c, F);
    let _ = unit.write32(0x18, QIE);
    unit.inject(fault(2));
    let _ = unit.poll();
    assert_eq!(record(&mut unit, 0).0, 2 << 12);
}

#[test]
fn a_poll_takes_a_bounded_number_of_faults() {
    let mut unit = Unit::scalable();
    for page in 0..u64::from(FAULTS_PER_POLL) + 1 {
        unit.inject(fault(page));
    }
    assert_eq!(unit.poll().progress, Progress::More);
    assert_eq!(unit.vm.state().faults.len(), 1);
    assert_eq!(unit.poll().progress, Progress::Idle);
}

/// The guest is told what hardware would tell it of a second stage, and nothing of the host's: not
/// where it stopped.
#[test]
fn a_fault_of_the_hosts_stage_two() {
    let told = |reason, owner| {
        let mut unit = Unit::scalable();
        let stop = StageTwoFault { gpa: mem::Gpa(0x5a5a_5000), table: true, level: 2, owner };
        unit.inject(Fault { reason, stage_two: Some(stop), ..fault(0x1_2345) });
        let _ = unit.poll();
        record(&mut unit, 0)
    };
    for (stage, code) in [(Stage::Two, 0x79), (Stage::TwoForTable, 0x79)] {
        let reason = FaultReason::NotPresent { stage, level: 2 };
        let (address, rest) = told(reason, StageTwoOwner::Host);
        assert_eq!(address & !0xfff, 0x1234_5000);
        assert_eq!(rest >> 32 & 0xff, code);
        assert_eq!((address, rest), told(reason, StageTwoOwner::Guest));
    }
}

#[test]
fn what_is_no_remapping_fault_is_counted() {
    let mut unit = Unit::scalable();
    unit.inject(Fault { reason: FaultReason::NoMemory, ..fault(1) });
    let _ = unit.poll();
    assert_eq!(unit.read32(0x34), 0);
    assert_eq!(unit.model.counters().faults_not_recorded, 1);
}

#[test]
fn the_mode_in_force_decides_the_code() {
    let mut unit = Unit::new();
    unit.inject(Fault { reason: FaultReason::ContextNotPresent, ..fault(1) });
    let _ = unit.poll();
    assert_eq!(record(&mut unit, 0).1 >> 32 & 0xff, 0x02);
    let mut unit = Unit::scalable();
    unit.inject(Fault { reason: FaultReason::ContextNotPresent, ..fault(1) });
    let _ = unit.poll();
    assert_eq!(record(&mut unit, 0).1 >> 32 & 0xff, 0x41);
}

const ONE: Stage = Stage::One;
const TWO: Stage = Stage::Two;
const NEST: Stage = Stage::TwoForTable;

/// Reason, code in scalable mode, code in legacy mode (table 30); 0 for none. Of a read.
const CODES: &[(FaultReason, u8, u8)] = &[
    (FaultReason::RootPointer, 0x30, 0x30),
    (FaultReason::RootAccess, 0x38, 0x08),
    (FaultReason::RootNotPresent, 0x39, 0x01),
    (FaultReason::RootReserved, 0x3a, 0x0a),
    (FaultReason::ContextAccess, 0x40, 0x09),
    (FaultReason::ContextNotPresent, 0x41, 0x02),
    (FaultReason::ContextReserved, 0x42, 0x0b),
    (FaultReason::ContextInvalid, 0x43, 0x03),
    (FaultReason::AtsDisabled, 0x44, 0x0d),
    (FaultReason::PasidDisabled, 0x45, 0x31),
    (FaultReason::PasidRange, 0x46, 0x31),
    (FaultReason::PasidDirectoryAccess, 0x50, 0),
    (FaultReason::PasidDirectoryNotPresent, 0x51, 0),
    (FaultReason::PasidDirectoryReserved, 0x52, 0),
    (FaultReason::PasidEntryAccess, 0x58, 0),
    (FaultReason::PasidEntryNotPresent, 0x59, 0),
    (FaultReason::PasidEntryReserved, 0x5a, 0),
    (FaultReason::PasidEntryInvalid, 0x5b, 0),
    (FaultReason::SupervisorDisabled, 0x5d, 0),
    (FaultReason::NonCanonical, 0x80, 0x04),
    (FaultReason::AddressWidth { stage: ONE }, 0x83, 0x04),
    (FaultReason::AddressWidth { stage: TWO }, 0x84, 0x04),
    (FaultReason::AddressWidth { stage: NEST }, 0x74, 0x04),
    (FaultReason::InterruptAddress, 0x87, 0x0e),
    (FaultReason::TableAccess { stage: ONE, level: 1 }, 0x70, 0x07),
    (FaultReason::TableAccess { stage: ONE, level: 4 }, 0x73, 0x03),
    (FaultReason::TableAccess { stage: ONE, level: 5 }, 0x73, 0x03),
    (FaultReason::TableAccess { stage: TWO, level: 3 }, 0x78, 0x07),
    (FaultReason::TableAccess { stage: TWO, level: 4 }, 0x7b, 0x03),
    (FaultReason::TableAccess { stage: NEST, level: 1 }, 0x78, 0x07),
    (FaultReason::NotPresent { stage: ONE, level: 1 }, 0x71, 0x06),
    (FaultReason::NotPresent { stage: TWO, level: 1 }, 0x79, 0x06),
    (FaultReason::NotPresent { stage: NEST, level: 1 }, 0x79, 0x06),
    (FaultReason::TableReserved { stage: ONE, level: 2 }, 0x72, 0x0c),
    (FaultReason::TableReserved { stage: TWO, level: 2 }, 0x7a, 0x0c),
    (FaultReason::TableReserved { stage: NEST, level: 2 }, 0x7a, 0x0c),
    (FaultReason::Permission { stage: ONE, user: true }, 0x81, 0x06),
    (FaultReason::Permission { stage: ONE, user: false }, 0x86, 0x06),
    (FaultReason::Permission { stage: TWO, user: false }, 0x86, 0x06),
    (FaultReason::Permission { stage: NEST, user: false }, 0x77, 0x06),
    (FaultReason::AccessedDirty { stage: ONE }, 0x91, 0x07),
    (FaultReason::AccessedDirty { stage: TWO }, 0x7d, 0x07),
    (FaultReason::AccessedDirty { stage: NEST }, 0x7d, 0x07),
    (FaultReason::NoMemory, 0, 0),
];

#[test]
fn every_reason_has_its_code() {
    for &(reason, scalable, legacy) in CODES {
        let code = |mode, access| {
            let fault = Fault { reason, access, ..fault(1) };
            fault_code(mode, &fault).map_or(0, FaultCode::code)
        };
        assert_eq!(code(TableMode::Scalable, Access::Read), scalable, "{reason:?}");
        assert_eq!(code(TableMode::Legacy, Access::Read), legacy, "{reason:?}");
        // Of a write, lack of permission has another code.
        let of_write = |code| match code {
            0x86 => 0x85,
            0x06 => 0x05,
            other => other,
        };
        assert_eq!(code(TableMode::Scalable, Access::Write), of_write(scalable), "{reason:?}");
        assert_eq!(code(TableMode::Legacy, Access::Write), of_write(legacy), "{reason:?}");
    }
}

#[test]
fn every_code_is_of_some_reason() {
    for code in FaultCode::ALL {
        // Those of a write, and of page requests alone, are for tests of their own.
        let elsewhere = [0x05, 0x85, 0x32, 0x47].contains(&code.code());
        let of_reason = |(_, scalable, legacy): &(_, u8, u8)| {
            *scalable == code.code() || *legacy == code.code()
        };
        assert!(elsewhere || CODES.iter().any(of_reason), "{code:?}");
    }
}
