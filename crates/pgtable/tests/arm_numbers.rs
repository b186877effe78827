//! Every number that a guest can put into a field makes a format that works, or an error.

use pgtable::{
    arm_output_bits, ArmFormatError, ArmRegime, ArmSizes, ArmStageOne, ArmStageTwo, ArmTable,
    Format, Granule, Vtcr, MAX_CONCATENATED, MAX_LEVELS,
};
use proptest::prelude::*;

const GRANULES: [Granule; 3] = [Granule::Kib4, Granule::Kib16, Granule::Kib64];

/// Checks that the levels cover the input, and that no root is larger than `tables` tables.
fn check_shape(format: &impl Format, sizes: &ArmSizes, tables: u32) {
    let levels = format.levels();
    assert!((1..=MAX_LEVELS).contains(&usize::from(levels)));
    assert_eq!(format.input_bits(), u32::from(sizes.input_bits));
    let stride = sizes.granule.bits() - 3;
    assert!((1..=stride + tables.ilog2()).contains(&format.index_bits(levels)), "{sizes:?}");
    let covered: u32 = (1..=levels).map(|level| format.index_bits(level)).sum();
    assert_eq!(covered + sizes.granule.bits(), u32::from(sizes.input_bits));
    let end = 1 << sizes.input_bits;
    assert!(format.check_address(end - 1).is_ok() && format.check_address(end).is_err());
    assert!(sizes.wide || sizes.output_bits <= 48);
}

#[test]
fn every_vtcr() {
    let mut formats = 0;
    for (t0sz, sl0) in (0..=u8::MAX).flat_map(|t0sz| (0..=4).map(move |sl0| (t0sz, sl0))) {
        for (tg0, ps) in (0..=4).flat_map(|tg0| (0..=8).map(move |ps| (tg0, ps))) {
            for wide in [false, true] {
                let vtcr = Vtcr { t0sz, sl0, tg0, ps, wide };
                let Ok(format) = ArmStageTwo::from_vtcr(&vtcr) else { continue };
                check_shape(&format, format.sizes(), MAX_CONCATENATED);
                // Only an output size that cannot take effect has another name afterwards.
                let ps = if ps == 6 && !wide { 5 } else { ps };
                assert_eq!(format.vtcr(), Vtcr { ps, ..vtcr });
                formats += 1;
            }
        }
    }
    assert!(formats > 1000, "{formats}");
}

#[test]
fn every_size() {
    for granule in GRANULES {
        for (input_bits, field) in (0..=u8::MAX).flat_map(|bits| (0..7).map(move |f| (bits, f))) {
            let output_bits = arm_output_bits(field).unwrap();
            for wide in [false, true] {
                let sizes = ArmSizes { granule, input_bits, output_bits, wide };
                let max = if wide || granule == Granule::Kib64 { 52 } else { 48 };
                match ArmStageOne::with_sizes(&sizes) {
                    Ok(format) => check_shape(&format, format.sizes(), 1),
                    Err(error) => {
                        let got = input_bits;
                        assert_eq!(error, ArmFormatError::InputBits { got, min: 25, max });
                        assert!(!(25..=max).contains(&input_bits));
                    }
                }
            }
            if let Ok(format) = ArmStageTwo::new(granule, input_bits, output_bits) {
                check_shape(&format, format.sizes(), MAX_CONCATENATED);
                assert_eq!(ArmStageTwo::from_vtcr(&format.vtcr()), Ok(format));
            } else {
                assert!(!(25..=52).contains(&input_bits));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// What is selected is in reach of its table, and made of the address's own bits.
    #[test]
    fn every_address(
        bits in any::<u64>(),
        shift in 0u32..64,
        negative: bool,
        widths in (25u8..=48, 25u8..=48),
        top_byte_ignore: [bool; 2],
    ) {
        let address = if negative { !(bits >> shift) } else { bits >> shift };
        let half = |root, width| {
            let format = ArmStageOne::new(Granule::Kib4, width, 48).unwrap();
            Some(ArmTable { root, format })
        };
        let regime = ArmRegime {
            low: half(0, widths.0),
            high: half(1, widths.1),
            top_byte_ignore,
        };
        let is_high = address & 1 << 55 != 0;
        let width = if is_high { widths.1 } else { widths.0 };
        // The bits that count, one by one.
        let top = if top_byte_ignore[usize::from(is_high)] { 56 } else { 64 };
        let copies = (u32::from(width)..top).all(|bit| (address >> bit & 1 == 1) == is_high);
        match regime.select(address) {
            Ok((table, offset)) => {
                prop_assert!(copies);
                prop_assert_eq!(table.root, u64::from(is_high));
                prop_assert_eq!(offset, address % (1 << width));
                prop_assert!(table.format.check_address(offset).is_ok());
            }
            Err(_) => prop_assert!(!copies),
        }
    }
}
