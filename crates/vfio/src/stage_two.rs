//! The host's stage 2 that a VM is created with, as bytes, and back.

use core::mem::offset_of;

use bitfield_struct::bitfield;
use iommu::{
    ArmFlags, ArmStageTwo, Layout, SecondStageLevels, StageTwoConfig, StageTwoFormat, Vtcr,
};
use zerocopy::FromZeros;

use crate::spec::flags::*;
use crate::spec::{CreateVm, StageTwoArgument};
use crate::Refusal;

/// VTCR_EL2, as far as it says what a table looks like (Arm ARM D24, "VTCR_EL2").
#[bitfield(u32)]
struct VtcrFields {
    #[bits(6)]
    t0sz: u8,
    #[bits(2)]
    sl0: u8,
    #[bits(6)]
    reserved_8: u8,
    #[bits(2)]
    tg0: u8,
    #[bits(3)]
    ps: u8,
    #[bits(13)]
    reserved_19: u16,
}

/// The field of a request for a VM.
pub(crate) fn encode(config: Option<&StageTwoConfig>) -> StageTwoArgument {
    let mut argument = StageTwoArgument::new_zeroed();
    let Some(StageTwoConfig { format, layout }) = config else { return argument };
    match format {
        StageTwoFormat::Vtd { levels } => {
            (argument.format, argument.levels) = (STAGE_TWO_VTD, *levels as u8);
        }
        StageTwoFormat::Arm(format) => {
            argument.format = STAGE_TWO_ARM;
            (argument.vtcr, argument.arm) = encode_arm(format);
        }
    }
    match layout {
        Layout::Identity => argument.layout = LAYOUT_IDENTITY,
        Layout::Shuffled { seed } => (argument.layout, argument.seed) = (LAYOUT_SHUFFLED, *seed),
    }
    argument
}

fn encode_arm(format: &ArmStageTwo) -> (u32, u8) {
    let Vtcr { t0sz, sl0, tg0, ps, wide } = format.vtcr();
    let fields =
        VtcrFields::new().with_t0sz(t0sz).with_sl0(sl0).with_tg0(tg0).with_ps(ps).into_bits();
    let flags = match format.flags() {
        ArmFlags::Fault => 0,
        ArmFlags::Ignore => 1,
        ArmFlags::Access => 2,
        ArmFlags::AccessDirty => 3,
    };
    let wide = if wide { ARM_WIDE } else { 0 };
    let by_privilege = if format.execute_by_privilege() { ARM_EXECUTE_BY_PRIVILEGE } else { 0 };
    (fields, flags | wide | by_privilege)
}

/// What a request for a VM says.
pub(crate) fn decode(argument: &StageTwoArgument) -> Result<Option<StageTwoConfig>, Refusal> {
    let refused = |field| Refusal::Value { offset: offset_of!(CreateVm, stage_two) + field };
    // What one format does not use is zero.
    let unused = |value: u32, field| if value == 0 { Ok(()) } else { Err(refused(field)) };
    let StageTwoArgument { format, layout, levels, arm, vtcr, seed } = *argument;
    let (of_levels, of_arm, of_vtcr, of_layout, of_seed) = (
        offset_of!(StageTwoArgument, levels),
        offset_of!(StageTwoArgument, arm),
        offset_of!(StageTwoArgument, vtcr),
        offset_of!(StageTwoArgument, layout),
        offset_of!(StageTwoArgument, seed),
    );
    if format != STAGE_TWO_ARM {
        unused(arm.into(), of_arm)?;
        unused(vtcr, of_vtcr)?;
    }
    if format != STAGE_TWO_VTD {
        unused(levels.into(), of_levels)?;
    }
    let layout = match layout {
        LAYOUT_IDENTITY if seed == 0 => Layout::Identity,
        LAYOUT_IDENTITY => return Err(refused(of_seed)),
        LAYOUT_SHUFFLED => Layout::Shuffled { seed },
        _ => return Err(refused(of_layout)),
    };
    let format = match (format, levels) {
        (STAGE_TWO_NONE, _) if layout == Layout::Identity => return Ok(None),
        (STAGE_TWO_NONE, _) => return Err(refused(of_layout)),
        (STAGE_TWO_VTD, 3) => StageTwoFormat::Vtd { levels: SecondStageLevels::Three },
        (STAGE_TWO_VTD, 4) => StageTwoFormat::Vtd { levels: SecondStageLevels::Four },
        (STAGE_TWO_VTD, 5) => StageTwoFormat::Vtd { levels: SecondStageLevels::Five },
        (STAGE_TWO_VTD, _) => return Err(refused(of_levels)),
        (STAGE_TWO_ARM, _) => StageTwoFormat::Arm(
            decode_arm(vtcr, arm)
                .map_err(|InArm { of_flags }| refused(if of_flags { of_arm } else { of_vtcr }))?,
        ),
        _ => return Err(refused(offset_of!(StageTwoArgument, format))),
    };
    Ok(Some(StageTwoConfig { format, layout }))
}

/// An Arm format that is none: by its flags, or by its VTCR.
struct InArm {
    of_flags: bool,
}

fn decode_arm(vtcr: u32, arm: u8) -> Result<ArmStageTwo, InArm> {
    if arm & !(ARM_FLAGS | ARM_WIDE | ARM_EXECUTE_BY_PRIVILEGE) != 0 {
        return Err(InArm { of_flags: true });
    }
    let fields = VtcrFields::from_bits(vtcr);
    if fields.reserved_8() != 0 || fields.reserved_19() != 0 {
        return Err(InArm { of_flags: false });
    }
    let flags = match arm & ARM_FLAGS {
        0 => ArmFlags::Fault,
        1 => ArmFlags::Ignore,
        2 => ArmFlags::Access,
        _ => ArmFlags::AccessDirty,
    };
    let vtcr = Vtcr {
        t0sz: fields.t0sz(),
        sl0: fields.sl0(),
        tg0: fields.tg0(),
        ps: fields.ps(),
        wide: arm & ARM_WIDE != 0,
    };
    let format = ArmStageTwo::from_vtcr(&vtcr).map_err(|_| InArm { of_flags: false })?;
    let by_privilege = arm & ARM_EXECUTE_BY_PRIVILEGE != 0;
    Ok(format.with_flags(flags).with_execute_by_privilege(by_privilege))
}

#[cfg(test)]
mod tests;
