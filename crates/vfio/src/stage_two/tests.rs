use iommu::Granule;
use zerocopy::IntoBytes;

use super::*;

fn config(levels: SecondStageLevels, layout: Layout) -> StageTwoConfig {
    StageTwoConfig { format: StageTwoFormat::Vtd { levels }, layout }
}

fn arm(granule: Granule, input_bits: u8, output_bits: u8) -> ArmStageTwo {
    ArmStageTwo::new(granule, input_bits, output_bits).unwrap()
}

#[test]
fn every_configuration_survives() {
    assert_eq!(decode(&encode(None)), Ok(None));
    let levels = [SecondStageLevels::Three, SecondStageLevels::Four, SecondStageLevels::Five];
    let vtd = levels.map(|levels| StageTwoFormat::Vtd { levels });
    let arm = [
        arm(Granule::Kib4, 40, 48),
        arm(Granule::Kib4, 52, 52).with_flags(ArmFlags::Ignore),
        arm(Granule::Kib16, 44, 48).with_flags(ArmFlags::Access),
        arm(Granule::Kib64, 48, 52).with_flags(ArmFlags::AccessDirty),
        arm(Granule::Kib64, 42, 48).with_execute_by_privilege(true),
    ];
    for format in vtd.into_iter().chain(arm.map(StageTwoFormat::Arm)) {
        for layout in [Layout::Identity, Layout::Shuffled { seed: 0 }, Layout::Shuffled { seed: 7 }]
        {
            let config = StageTwoConfig { format, layout };
            assert_eq!(decode(&encode(Some(&config))), Ok(Some(config)));
        }
    }
}

#[test]
fn as_bytes() {
    let shuffled = config(SecondStageLevels::Four, Layout::Shuffled { seed: 0x0102_0304 });
    let golden = [1, 1, 4, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0];
    assert_eq!(encode(Some(&shuffled)).as_bytes(), golden);
    assert_eq!(encode(None).as_bytes(), [0; 16]);
    // T0SZ 24, SL0 1, TG0 0, PS 5: 40 bits from level 1 with 4 KiB, to 48 bits.
    let format = StageTwoFormat::Arm(arm(Granule::Kib4, 40, 48).with_flags(ArmFlags::AccessDirty));
    let arm = StageTwoConfig { format, layout: Layout::Identity };
    let golden = [2, 0, 0, 3, 0x58, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(encode(Some(&arm)).as_bytes(), golden);
}

#[test]
fn nonsense_is_refused_by_its_field() {
    let refused = |good: StageTwoArgument, spoil: fn(&mut StageTwoArgument), field| {
        let mut argument = good;
        spoil(&mut argument);
        let offset = offset_of!(CreateVm, stage_two) + field;
        assert_eq!(decode(&argument), Err(Refusal::Value { offset }));
    };
    let vtd = encode(Some(&config(SecondStageLevels::Four, Layout::Identity)));
    refused(vtd, |argument| argument.format = 3, 2);
    refused(StageTwoArgument { levels: 0, ..vtd }, |argument| argument.format = 3, 0);
    refused(vtd, |argument| argument.format = 0, 2);
    refused(vtd, |argument| argument.layout = 2, 1);
    refused(vtd, |argument| argument.levels = 2, 2);
    refused(vtd, |argument| argument.levels = 6, 2);
    refused(vtd, |argument| argument.arm = 1, 3);
    refused(vtd, |argument| argument.vtcr = 1, 4);
    refused(vtd, |argument| argument.seed = 1, 8);
    let format = StageTwoFormat::Arm(arm(Granule::Kib4, 40, 48));
    let arm = encode(Some(&StageTwoConfig { format, layout: Layout::Identity }));
    refused(arm, |argument| argument.levels = 4, 2);
    refused(arm, |argument| argument.arm = 0x10, 3);
    refused(arm, |argument| argument.vtcr |= 1 << 8, 4);
    refused(arm, |argument| argument.vtcr |= 1 << 19, 4);
    refused(arm, |argument| argument.vtcr |= 3 << 14, 4);
    refused(arm, |argument| argument.vtcr |= 7 << 16, 4);
    refused(encode(None), |argument| argument.layout = 1, 1);
    refused(encode(None), |argument| argument.seed = 1, 8);
}
