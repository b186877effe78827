use zerocopy::IntoBytes;

use super::*;

fn config(levels: SecondStageLevels, layout: Layout) -> StageTwoConfig {
    StageTwoConfig { format: StageTwoFormat::Vtd { levels }, layout }
}

#[test]
fn every_configuration_survives() {
    assert_eq!(decode(&encode(None)), Ok(None));
    for levels in [SecondStageLevels::Three, SecondStageLevels::Four, SecondStageLevels::Five] {
        for layout in [Layout::Identity, Layout::Shuffled { seed: 0 }, Layout::Shuffled { seed: 7 }]
        {
            let config = config(levels, layout);
            assert_eq!(decode(&encode(Some(&config))), Ok(Some(config)));
        }
    }
}

#[test]
fn as_bytes() {
    let shuffled = config(SecondStageLevels::Four, Layout::Shuffled { seed: 0x0102_0304 });
    let golden = [1, 4, 0, 1, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0];
    assert_eq!(encode(Some(&shuffled)).as_bytes(), golden);
    assert_eq!(encode(None).as_bytes(), [0; 16]);
}

#[test]
fn nonsense_is_refused_by_its_field() {
    let good = encode(Some(&config(SecondStageLevels::Four, Layout::Identity)));
    let refused = |spoil: fn(&mut StageTwoArgument), field| {
        let mut argument = good;
        spoil(&mut argument);
        let offset = offset_of!(CreateVm, stage_two) + field;
        assert_eq!(decode(&argument), Err(Refusal::Value { offset }));
    };
    refused(|argument| argument.format = 0, 0);
    refused(|argument| argument.format = 2, 0);
    refused(|argument| argument.shape = 2, 1);
    refused(|argument| argument.shape = 6, 1);
    refused(|argument| argument.bits = 1, 2);
    refused(|argument| argument.layout = 2, 3);
    refused(|argument| argument.reserved = 1, 4);
    refused(|argument| argument.seed = 1, 8);
}
