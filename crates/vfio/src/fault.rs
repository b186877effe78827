//! Faults as bytes, and back.

use iommu::{Fault, FaultReason, Pasid, Stage, StageTwoFault, StageTwoOwner};
use mem::{Access, Gpa, Iova};
use pci::RequesterId;
use zerocopy::FromZeros;

use crate::spec::flags::*;
use crate::spec::{DmaFault, ReadFault};

/// What a reason is made of, on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Code {
    code: u16,
    stage: u8,
    level: u8,
    user: bool,
}

impl Code {
    const fn new(code: u16) -> Self {
        Self { code, stage: 0, level: 0, user: false }
    }

    const fn at(code: u16, stage: Stage) -> Self {
        let stage = match stage {
            Stage::One => 1,
            Stage::Two => 2,
            Stage::TwoForTable => 3,
            Stage::TwoForDescriptor => 4,
        };
        Self { stage, ..Self::new(code) }
    }

    /// Its number here, and the posted reason that comes nearest.
    fn of(reason: FaultReason) -> (Self, u32) {
        use FaultReason as R;
        match reason {
            R::RootPointer => (Self::new(1), REASON_UNKNOWN),
            R::RootAccess => (Self::new(2), REASON_UNKNOWN),
            R::RootNotPresent => (Self::new(3), REASON_UNKNOWN),
            R::RootReserved => (Self::new(4), REASON_UNKNOWN),
            R::ContextAccess => (Self::new(5), REASON_UNKNOWN),
            R::ContextNotPresent => (Self::new(6), REASON_UNKNOWN),
            R::ContextReserved => (Self::new(7), REASON_UNKNOWN),
            R::ContextInvalid => (Self::new(8), REASON_UNKNOWN),
            R::AtsDisabled => (Self::new(9), REASON_UNKNOWN),
            R::PasidDisabled => (Self::new(10), REASON_PASID_INVALID),
            R::PasidRange => (Self::new(11), REASON_PASID_INVALID),
            R::PasidDirectoryAccess => (Self::new(12), REASON_PASID_FETCH),
            R::PasidDirectoryNotPresent => (Self::new(13), REASON_PASID_INVALID),
            R::PasidDirectoryReserved => (Self::new(14), REASON_BAD_PASID_ENTRY),
            R::PasidEntryAccess => (Self::new(15), REASON_PASID_FETCH),
            R::PasidEntryNotPresent => (Self::new(16), REASON_PASID_INVALID),
            R::PasidEntryReserved => (Self::new(17), REASON_BAD_PASID_ENTRY),
            R::PasidEntryInvalid => (Self::new(18), REASON_BAD_PASID_ENTRY),
            R::SupervisorDisabled => (Self::new(19), REASON_PERMISSION),
            R::NonCanonical => (Self::new(20), REASON_OUT_OF_RANGE),
            R::AddressWidth { stage } => (Self::at(21, stage), REASON_OUT_OF_RANGE),
            R::InterruptAddress => (Self::new(22), REASON_UNKNOWN),
            R::TableAccess { stage, level } => {
                (Self { level, ..Self::at(23, stage) }, REASON_WALK_ABORT)
            }
            R::NotPresent { stage, level } => {
                (Self { level, ..Self::at(24, stage) }, REASON_PTE_FETCH)
            }
            R::TableReserved { stage, level } => {
                (Self { level, ..Self::at(25, stage) }, REASON_PTE_FETCH)
            }
            R::Permission { stage, user } => {
                (Self { user, ..Self::at(26, stage) }, REASON_PERMISSION)
            }
            R::AccessedDirty { stage } => (Self::at(27, stage), REASON_ACCESS),
            R::NoMemory => (Self::new(28), REASON_UNKNOWN),
            R::PasidRequired => (Self::new(29), REASON_PASID_INVALID),
            R::AccessFlag { stage, level } => {
                (Self { level, ..Self::at(30, stage) }, REASON_ACCESS)
            }
        }
    }

    fn reason(self) -> Option<FaultReason> {
        use FaultReason as R;
        let level = self.level;
        let stage = match self.stage {
            1 => Some(Stage::One),
            2 => Some(Stage::Two),
            3 => Some(Stage::TwoForTable),
            4 => Some(Stage::TwoForDescriptor),
            _ => None,
        };
        Some(match self.code {
            1 => R::RootPointer,
            2 => R::RootAccess,
            3 => R::RootNotPresent,
            4 => R::RootReserved,
            5 => R::ContextAccess,
            6 => R::ContextNotPresent,
            7 => R::ContextReserved,
            8 => R::ContextInvalid,
            9 => R::AtsDisabled,
            10 => R::PasidDisabled,
            11 => R::PasidRange,
            12 => R::PasidDirectoryAccess,
            13 => R::PasidDirectoryNotPresent,
            14 => R::PasidDirectoryReserved,
            15 => R::PasidEntryAccess,
            16 => R::PasidEntryNotPresent,
            17 => R::PasidEntryReserved,
            18 => R::PasidEntryInvalid,
            19 => R::SupervisorDisabled,
            20 => R::NonCanonical,
            21 => R::AddressWidth { stage: stage? },
            22 => R::InterruptAddress,
            23 => R::TableAccess { stage: stage?, level },
            24 => R::NotPresent { stage: stage?, level },
            25 => R::TableReserved { stage: stage?, level },
            26 => R::Permission { stage: stage?, user: self.user },
            27 => R::AccessedDirty { stage: stage? },
            28 => R::NoMemory,
            29 => R::PasidRequired,
            30 => R::AccessFlag { stage: stage?, level },
            _ => return None,
        })
    }
}

/// Writes a fault, or that there is none, into the argument of a call.
pub(crate) fn encode(fault: Option<Fault>, argument: &mut ReadFault) {
    let (argsz, flags) = (argument.argsz, argument.flags);
    *argument = ReadFault { argsz, flags, ..ReadFault::new_zeroed() };
    let Some(fault) = fault else { return };
    let (code, posted_reason) = Code::of(fault.reason);
    let permission = match fault.access {
        Access::Read => PERMISSION_READ,
        Access::Write => PERMISSION_WRITE,
    };
    let fetched = fault.stage_two.filter(|stop| stop.table);
    argument.fault = DmaFault {
        kind: FAULT_UNRECOVERABLE,
        reason: posted_reason,
        flags: FAULT_ADDRESS_VALID
            | bit_if(fault.pasid.is_some(), FAULT_PASID_VALID)
            | bit_if(fetched.is_some(), FAULT_FETCH_ADDRESS_VALID),
        pasid: fault.pasid.map_or(0, Pasid::get),
        permission: permission | bit_if(fault.privileged, PERMISSION_PRIVILEGED),
        address: fault.address.0,
        fetch_address: fetched.map_or(0, |stop| stop.gpa.0),
        ..DmaFault::new_zeroed()
    };
    argument.requester = fault.requester.bits();
    argument.code = code.code;
    argument.stage = code.stage;
    argument.level = code.level;
    argument.attributes = bit_if(fault.translation_request, FAULT_TRANSLATION_REQUEST)
        | bit_if(code.user, FAULT_USER);
    if let Some(StageTwoFault { gpa, table, level, owner }) = fault.stage_two {
        argument.attributes |= FAULT_STAGE_TWO
            | bit_if(table, FAULT_STAGE_TWO_TABLE)
            | bit_if(owner == StageTwoOwner::Host, FAULT_STAGE_TWO_HOST);
        (argument.gpa, argument.stage_two_level) = (gpa.0, level);
    }
}

/// `bit` if `condition` holds.
fn bit_if<B: Default>(condition: bool, bit: B) -> B {
    if condition {
        bit
    } else {
        B::default()
    }
}

/// The bytes are no fault that this crate knows: the host end is not ours, or newer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnknownFault;

/// What a host end said: a fault, or that there is none.
pub(crate) fn decode(argument: &ReadFault) -> Result<Option<Fault>, UnknownFault> {
    let fault = &argument.fault;
    if fault.kind == 0 {
        return Ok(None);
    }
    if fault.kind != FAULT_UNRECOVERABLE {
        return Err(UnknownFault);
    }
    let pasid = match fault.flags & FAULT_PASID_VALID {
        0 => None,
        _ => Some(Pasid::new(fault.pasid).ok_or(UnknownFault)?),
    };
    let writes = fault.permission & PERMISSION_WRITE != 0;
    let code = Code {
        code: argument.code,
        stage: argument.stage,
        level: argument.level,
        user: argument.attributes & FAULT_USER != 0,
    };
    Ok(Some(Fault {
        requester: RequesterId::from_bits(argument.requester),
        pasid,
        address: Iova(fault.address),
        access: if writes { Access::Write } else { Access::Read },
        privileged: fault.permission & PERMISSION_PRIVILEGED != 0,
        translation_request: argument.attributes & FAULT_TRANSLATION_REQUEST != 0,
        reason: code.reason().ok_or(UnknownFault)?,
        stage_two: stage_two(argument),
    }))
}

/// Where stage 2 stopped the request, if a host end said so.
fn stage_two(argument: &ReadFault) -> Option<StageTwoFault> {
    let set = |bit| argument.attributes & bit != 0;
    set(FAULT_STAGE_TWO).then(|| StageTwoFault {
        gpa: Gpa(argument.gpa),
        table: set(FAULT_STAGE_TWO_TABLE),
        level: argument.stage_two_level,
        owner: if set(FAULT_STAGE_TWO_HOST) { StageTwoOwner::Host } else { StageTwoOwner::Guest },
    })
}

#[cfg(test)]
mod tests;
