//! The host's stage 2 that a VM is created with, as bytes, and back.

use core::mem::offset_of;

use iommu::{Layout, SecondStageLevels, StageTwoConfig, StageTwoFormat};
use zerocopy::FromZeros;

use crate::spec::flags::*;
use crate::spec::{CreateVm, StageTwoArgument};
use crate::Refusal;

/// The field of a request for a VM.
pub(crate) fn encode(config: Option<&StageTwoConfig>) -> StageTwoArgument {
    let mut argument = StageTwoArgument::new_zeroed();
    let Some(StageTwoConfig { format, layout }) = config else { return argument };
    match format {
        StageTwoFormat::Vtd { levels } => {
            (argument.format, argument.shape) = (STAGE_TWO_VTD, *levels as u8);
        }
    }
    match layout {
        Layout::Identity => argument.layout = LAYOUT_IDENTITY,
        Layout::Shuffled { seed } => (argument.layout, argument.seed) = (LAYOUT_SHUFFLED, *seed),
    }
    argument
}

/// What a request for a VM says.
pub(crate) fn decode(argument: &StageTwoArgument) -> Result<Option<StageTwoConfig>, Refusal> {
    let refused = |field| Refusal::Value { offset: offset_of!(CreateVm, stage_two) + field };
    let StageTwoArgument { format, shape, bits, layout, reserved, seed } = *argument;
    if format == STAGE_TWO_NONE {
        let none = *argument == StageTwoArgument::new_zeroed();
        return if none { Ok(None) } else { Err(refused(offset_of!(StageTwoArgument, format))) };
    }
    if bits != 0 {
        return Err(refused(offset_of!(StageTwoArgument, bits)));
    }
    if reserved != 0 {
        return Err(refused(offset_of!(StageTwoArgument, reserved)));
    }
    let format = match (format, shape) {
        (STAGE_TWO_VTD, 3) => StageTwoFormat::Vtd { levels: SecondStageLevels::Three },
        (STAGE_TWO_VTD, 4) => StageTwoFormat::Vtd { levels: SecondStageLevels::Four },
        (STAGE_TWO_VTD, 5) => StageTwoFormat::Vtd { levels: SecondStageLevels::Five },
        (STAGE_TWO_VTD, _) => return Err(refused(offset_of!(StageTwoArgument, shape))),
        _ => return Err(refused(offset_of!(StageTwoArgument, format))),
    };
    let layout = match (layout, seed) {
        (LAYOUT_IDENTITY, 0) => Layout::Identity,
        (LAYOUT_IDENTITY, _) => return Err(refused(offset_of!(StageTwoArgument, seed))),
        (LAYOUT_SHUFFLED, seed) => Layout::Shuffled { seed },
        _ => return Err(refused(offset_of!(StageTwoArgument, layout))),
    };
    Ok(Some(StageTwoConfig { format, layout }))
}

#[cfg(test)]
mod tests;
