//! The formats under test: one line each, and every test runs over it.

use pgtable::{
    ArmFlags, ArmSizes, ArmStageOne, ArmStageTwo, FirstStage, Format, Granule, SecondStage, Vtcr,
};

use super::twin::arm::ArmTwin;
use super::twin::vtd::VtdTwin;
use super::twin::Twin;

/// A format together with its second opinion.
pub(crate) trait UnderTest: Format + Copy {
    type Twin: Twin + 'static;

    fn twin(&self) -> Self::Twin;
}

impl UnderTest for FirstStage {
    type Twin = VtdTwin;

    fn twin(&self) -> VtdTwin {
        VtdTwin::from(*self)
    }
}

impl UnderTest for SecondStage {
    type Twin = VtdTwin;

    fn twin(&self) -> VtdTwin {
        VtdTwin::from(*self)
    }
}

impl UnderTest for ArmStageOne {
    type Twin = ArmTwin;

    fn twin(&self) -> ArmTwin {
        ArmTwin::from(*self)
    }
}

impl UnderTest for ArmStageTwo {
    type Twin = ArmTwin;

    fn twin(&self) -> ArmTwin {
        ArmTwin::from(*self)
    }
}

/// Arm's stage 1, of a granule and numbers of address bits.
pub(crate) fn one(granule: Granule, input: u8, output: u8, flags: ArmFlags) -> ArmStageOne {
    ArmStageOne::new(granule, input, output).unwrap().with_flags(flags)
}

/// Arm's stage 2, of a granule and numbers of address bits.
pub(crate) fn two(granule: Granule, input: u8, output: u8, flags: ArmFlags) -> ArmStageTwo {
    ArmStageTwo::new(granule, input, output).unwrap().with_flags(flags)
}

/// A wide layout for addresses that do not need it.
pub(crate) fn wide(granule: Granule, input_bits: u8, output_bits: u8) -> ArmStageOne {
    let sizes = ArmSizes { granule, input_bits, output_bits, wide: true };
    ArmStageOne::with_sizes(&sizes).unwrap().with_flags(ArmFlags::AccessDirty)
}

/// Four levels where three would do, and a root of two entries.
pub(crate) fn deep() -> ArmStageTwo {
    let vtcr = Vtcr { t0sz: 24, sl0: 2, tg0: 0, ps: 2, wide: false };
    ArmStageTwo::from_vtcr(&vtcr).unwrap().with_flags(ArmFlags::AccessDirty)
}

/// Makes one test per format out of each function `fn name(format: impl UnderTest)`.
#[macro_export]
macro_rules! for_every_format {
    ($($test:ident),* $(,)?) => {
        $crate::for_every_format! { @each ($($test)*)
            x86_4_levels: FirstStage::FOUR_LEVEL;
            x86_5_levels: FirstStage::FIVE_LEVEL;
            x86_no_gib: FirstStage { output_bits: 39, one_gib_pages: false, ..FirstStage::FOUR_LEVEL };
            vtd_3_levels: SecondStage::new(SecondStageLevels::Three);
            vtd_4_levels: SecondStage::new(SecondStageLevels::Four);
            vtd_5_levels: SecondStage::new(SecondStageLevels::Five);
            vtd_no_flags: SecondStage {
                accessed_dirty: false, ..SecondStage::new(SecondStageLevels::Four)
            };

            arm_one_4k_25: one(Kib4, 25, 32, Fault);
            arm_one_4k_31: one(Kib4, 31, 36, Access);
            arm_one_4k_39: one(Kib4, 39, 40, AccessDirty);
            arm_one_4k_48: one(Kib4, 48, 48, AccessDirty);
            arm_one_4k_48_flat: one(Kib4, 48, 48, Fault).with_hierarchical(false);
            arm_one_4k_48_wide: wide(Kib4, 48, 44);
            arm_one_4k_52: one(Kib4, 52, 52, AccessDirty);
            arm_one_16k_25: one(Kib16, 25, 36, AccessDirty);
            arm_one_16k_36: one(Kib16, 36, 42, Ignore);
            arm_one_16k_47: one(Kib16, 47, 44, AccessDirty);
            arm_one_16k_48: one(Kib16, 48, 48, Access);
            arm_one_16k_52: one(Kib16, 52, 52, AccessDirty);
            arm_one_64k_25: one(Kib64, 25, 32, Access);
            arm_one_64k_42: one(Kib64, 42, 42, AccessDirty);
            arm_one_64k_48: one(Kib64, 48, 48, Fault);
            arm_one_64k_48_wide: wide(Kib64, 48, 48);
            arm_one_64k_52: one(Kib64, 52, 52, AccessDirty);

            arm_two_4k_32: two(Kib4, 32, 40, AccessDirty);
            arm_two_4k_34_by_16: two(Kib4, 34, 36, Fault);
            arm_two_4k_40_by_2: two(Kib4, 40, 40, AccessDirty);
            arm_two_4k_40_deep: deep();
            arm_two_4k_43_by_16: two(Kib4, 43, 48, Access);
            arm_two_4k_48: two(Kib4, 48, 48, AccessDirty).with_execute_by_privilege(true);
            arm_two_4k_52_by_16: two(Kib4, 52, 52, AccessDirty);
            arm_two_16k_40_by_16: two(Kib16, 40, 44, AccessDirty);
            arm_two_16k_48_by_2: two(Kib16, 48, 48, Fault);
            arm_two_16k_52: two(Kib16, 52, 52, AccessDirty);
            arm_two_64k_33_by_16: two(Kib64, 33, 40, Ignore);
            arm_two_64k_46_by_16: two(Kib64, 46, 48, AccessDirty);
            arm_two_64k_48: two(Kib64, 48, 44, Access);
            arm_two_64k_52: two(Kib64, 52, 52, AccessDirty).with_execute_by_privilege(true);
        }
    };
    (@each $tests:tt $($name:ident: $format:expr;)*) => {
        $($crate::for_every_format! { @tests $name, $format, $tests })*
    };
    (@tests $name:ident, $format:expr, ($($test:ident)*)) => {
        mod $name {
            #[allow(unused_imports)]
            use {
                $crate::common::formats::{deep, one, two, wide},
                pgtable::ArmFlags::*,
                pgtable::Granule::*,
                pgtable::{FirstStage, SecondStage, SecondStageLevels},
            };

            $(#[test]
            fn $test() {
                super::$test($format);
            })*
        }
    };
}
