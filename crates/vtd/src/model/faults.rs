//! Primary fault logging (7.2.1), and the one place where a fault becomes a code.

use iommu::{Fault, FaultReason, PageRequest, Stage};
use mem::Access;

use crate::spec::{FaultCode, FaultRecordHigh, FaultRecordLow, TableMode, FAULT_RECORDS};

/// The fault recording registers.
#[derive(Clone, Debug)]
pub(super) struct FaultLog {
    records: [(FaultRecordLow, FaultRecordHigh); FAULT_RECORDS],
    /// Where the next fault goes.
    next: usize,
    /// FRI.
    first: usize,
    /// PFO.
    overflow: bool,
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recorded {
    /// It is in a record.
    Recorded,
    /// No record is free, or PFO is set: it is lost.
    Lost,
}

impl FaultLog {
    pub(super) fn new() -> Self {
        let empty = (FaultRecordLow::new(), FaultRecordHigh::new());
        Self { records: [empty; FAULT_RECORDS], next: 0, first: 0, overflow: false }
    }

    /// PPF.
    pub(super) fn pending(&self) -> bool {
        self.records.iter().any(|(_, high)| high.fault())
    }

    pub(super) fn overflow(&self) -> bool {
        self.overflow
    }

    pub(super) fn clear_overflow(&mut self) {
        self.overflow = false;
    }

    /// FRI; only meaningful while [`pending`](Self::pending).
    pub(super) fn first(&self) -> u8 {
        self.first as u8
    }

    pub(super) fn low(&self, record: u8) -> u64 {
        self.records.get(usize::from(record)).map_or(0, |(low, _)| low.into_bits())
    }

    pub(super) fn high(&self, record: u8) -> u64 {
        self.records.get(usize::from(record)).map_or(0, |(_, high)| high.into_bits())
    }

    /// Software wrote a one to F.
    pub(super) fn clear(&mut self, record: u8) {
        if let Some((_, high)) = self.records.get_mut(usize::from(record)) {
            high.set_fault(false);
        }
    }

    /// Translation was disabled: the next fault goes to the first record.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
    }

    pub(super) fn record(&mut self, fault: &Fault, code: FaultCode) -> Recorded {
        self.add(encode(fault, code))
    }

    /// Records why a page request is refused.
    pub(super) fn record_page_request(
        &mut self,
        request: &PageRequest,
        code: FaultCode,
    ) -> Recorded {
        self.add(encode_page_request(request, code))
    }

    fn add(&mut self, fault: (FaultRecordLow, FaultRecordHigh)) -> Recorded {
        if self.overflow {
            return Recorded::Lost;
        }
        let pending = self.pending();
        let Some(record) = self.records.get_mut(self.next) else { return Recorded::Lost };
        if record.1.fault() {
            self.overflow = true;
            return Recorded::Lost;
        }
        *record = fault;
        if !pending {
            self.first = self.next;
        }
        self.next = (self.next + 1) % FAULT_RECORDS;
        Recorded::Recorded
    }
}

fn encode(fault: &Fault, code: FaultCode) -> (FaultRecordLow, FaultRecordHigh) {
    let low = FaultRecordLow::new().with_page(fault.address.0 >> 12);
    let high = FaultRecordHigh::new()
        .with_source(fault.requester.bits())
        .with_reason(code.code())
        .with_pasid_present(fault.pasid.is_some())
        .with_pasid(fault.pasid.map_or(0, |pasid| pasid.get()))
        .with_privileged(fault.pasid.is_some() && fault.privileged)
        .with_address_type(u8::from(fault.translation_request))
        .with_type1(fault.access == Access::Read)
        .with_fault(true);
    (low, high)
}

fn encode_page_request(
    request: &PageRequest,
    code: FaultCode,
) -> (FaultRecordLow, FaultRecordHigh) {
    let with_pasid = request.pasid.is_some();
    let low = FaultRecordLow::new().with_page(request.address.0 >> 12);
    let high = FaultRecordHigh::new()
        .with_source(request.requester.bits())
        .with_reason(code.code())
        .with_pasid_present(with_pasid)
        .with_pasid(request.pasid.map_or(0, |pasid| pasid.get()))
        .with_privileged(with_pasid && request.privileged)
        .with_execute(with_pasid && request.execute)
        .with_type1(false)
        .with_type2(true)
        .with_fault(true);
    (low, high)
}

/// The code that a fault is recorded with. `None` if it is none of this unit's: a translated
/// address at which there is no memory is answered by the memory side (unsupported request), and
/// hardware records nothing.
///
/// An entry at level 4 or 5 counts as the root of its table, one below does not: a fault does not
/// say how many levels its table has.
pub(super) fn fault_code(mode: TableMode, fault: &Fault) -> Option<FaultCode> {
    match mode {
        TableMode::Legacy => legacy_code(fault),
        _ => scalable_code(fault),
    }
}

fn legacy_code(fault: &Fault) -> Option<FaultCode> {
    use FaultCode as Code;
    use FaultReason as Reason;
    Some(match fault.reason {
        Reason::RootPointer => Code::RootPointer,
        Reason::RootAccess => Code::LegacyRootAccess,
        Reason::RootNotPresent => Code::LegacyRootNotPresent,
        Reason::RootReserved => Code::LegacyRootReserved,
        Reason::ContextAccess => Code::LegacyContextAccess,
        Reason::ContextNotPresent => Code::LegacyContextNotPresent,
        Reason::ContextReserved => Code::LegacyContextReserved,
        Reason::ContextInvalid => Code::LegacyContextInvalid,
        Reason::AtsDisabled => Code::LegacyTranslationBlocked,
        Reason::PasidDisabled | Reason::PasidRange => Code::PasidInLegacyMode,
        Reason::AddressWidth { .. } | Reason::NonCanonical => Code::LegacyAddressWidth,
        Reason::InterruptAddress => Code::LegacyInterruptAddress,
        Reason::TableAccess { level, .. } if level >= 4 => Code::LegacyContextInvalid,
        Reason::TableAccess { .. } | Reason::AccessedDirty { .. } => Code::LegacyTableAccess,
        Reason::TableReserved { .. } => Code::LegacyTableReserved,
        Reason::NotPresent { .. } | Reason::Permission { .. } => match fault.access {
            Access::Read => Code::LegacyRead,
            Access::Write => Code::LegacyWrite,
        },
        // PASID tables do not exist in legacy mode; the rest is not for this unit to report.
        _ => return None,
    })
}

fn scalable_code(fault: &Fault) -> Option<FaultCode> {
    use FaultCode as Code;
    use FaultReason as Reason;
    Some(match fault.reason {
        Reason::RootPointer => Code::RootPointer,
        Reason::RootAccess => Code::RootAccess,
        Reason::RootNotPresent => Code::RootNotPresent,
        Reason::RootReserved => Code::RootReserved,
        Reason::ContextAccess => Code::ContextAccess,
        Reason::ContextNotPresent => Code::ContextNotPresent,
        Reason::ContextReserved => Code::ContextReserved,
        Reason::ContextInvalid => Code::ContextInvalid,
        Reason::AtsDisabled => Code::TranslationDisabled,
        Reason::PasidDisabled => Code::PasidDisabled,
        Reason::PasidRange => Code::PasidRange,
        Reason::PasidDirectoryAccess => Code::DirectoryAccess,
        Reason::PasidDirectoryNotPresent => Code::DirectoryNotPresent,
        Reason::PasidDirectoryReserved => Code::DirectoryReserved,
        Reason::PasidEntryAccess => Code::PasidEntryAccess,
        Reason::PasidEntryNotPresent => Code::PasidEntryNotPresent,
        Reason::PasidEntryReserved => Code::PasidEntryReserved,
        Reason::PasidEntryInvalid => Code::PasidEntryInvalid,
        Reason::SupervisorDisabled => Code::SupervisorDisabled,
        Reason::NonCanonical => Code::NonCanonical,
        Reason::AddressWidth { stage } => match stage {
            Stage::One => Code::HostAddressWidth,
            Stage::Two => Code::AddressWidth,
            Stage::TwoForTable | Stage::TwoForDescriptor => Code::NestedAddressWidth,
        },
        Reason::InterruptAddress => Code::InterruptAddress,
        Reason::TableAccess { stage, level } => match (stage, level >= 4) {
            (Stage::One, true) => Code::FirstStageRootAccess,
            (Stage::One, false) => Code::FirstStageAccess,
            (_, true) => Code::SecondStageRootAccess,
            (_, false) => Code::SecondStageAccess,
        },
        Reason::NotPresent { stage: Stage::One, .. } => Code::FirstStageNotPresent,
        Reason::NotPresent { .. } => Code::SecondStageNotPresent,
        Reason::TableReserved { stage: Stage::One, .. } => Code::FirstStageReserved,
        Reason::TableReserved { .. } => Code::SecondStageReserved,
        Reason::Permission { stage: Stage::TwoForTable, .. } => Code::NestedTableWrite,
        Reason::Permission { user: true, .. } => Code::Privilege,
        Reason::Permission { .. } => match fault.access {
            Access::Read => Code::Read,
            Access::Write => Code::Write,
        },
        Reason::AccessedDirty { stage: Stage::One } => Code::FirstStageUpdate,
        Reason::AccessedDirty { .. } => Code::SecondStageUpdate,
        _ => return None,
    })
}
