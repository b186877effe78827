//! The halves of an address space.

use pgtable::{ArmRegime, ArmStageOne, ArmTable, Granule, SelectError};

fn table(root: u64, input_bits: u8) -> ArmTable {
    ArmTable { root, format: ArmStageOne::new(Granule::Kib4, input_bits, 48).unwrap() }
}

fn regime() -> ArmRegime {
    let (low, high) = (Some(table(0x1000, 48)), Some(table(0x2000, 39)));
    ArmRegime { low, high, top_byte_ignore: [false; 2] }
}

/// The root that is selected, and the address within its half.
fn select(regime: &ArmRegime, address: u64) -> Result<(u64, u64), SelectError> {
    regime.select(address).map(|(table, address)| (table.root, address))
}

#[test]
fn each_half_has_its_addresses() {
    let cases = [
        (0, Ok((0x1000, 0))),
        (0x0000_ffff_ffff_ffff, Ok((0x1000, 0xffff_ffff_ffff))),
        (0x0001_0000_0000_0000, Err(SelectError::NonCanonical)),
        (0x007f_ffff_ffff_ffff, Err(SelectError::NonCanonical)),
        (0x0080_0000_0000_0000, Err(SelectError::NonCanonical)),
        (0xffff_ff7f_ffff_ffff, Err(SelectError::NonCanonical)),
        (0xffff_ff80_0000_0000, Ok((0x2000, 0))),
        (u64::MAX, Ok((0x2000, 0x7f_ffff_ffff))),
        // The topmost byte counts.
        (0x0100_0000_0000_1000, Err(SelectError::NonCanonical)),
        (0x7fff_ffff_ffff_f000, Err(SelectError::NonCanonical)),
        (1 << 63, Err(SelectError::NonCanonical)),
    ];
    for (address, expected) in cases {
        assert_eq!(select(&regime(), address), expected, "{address:#x}");
    }
}

#[test]
fn the_topmost_byte_is_ignored_by_half() {
    let low = ArmRegime { top_byte_ignore: [true, false], ..regime() };
    assert_eq!(select(&low, 0xff00_0000_0000_1000), Ok((0x1000, 0x1000)));
    assert_eq!(select(&low, 0xff01_0000_0000_1000), Err(SelectError::NonCanonical));
    assert_eq!(select(&low, 0x00ff_ff80_0000_1000), Err(SelectError::NonCanonical));
    let high = ArmRegime { top_byte_ignore: [false, true], ..regime() };
    assert_eq!(select(&high, 0x00ff_ff80_0000_1000), Ok((0x2000, 0x1000)));
    assert_eq!(select(&high, 0x007f_ff80_0000_1000), Err(SelectError::NonCanonical));
    assert_eq!(select(&high, 0xff00_0000_0000_1000), Err(SelectError::NonCanonical));
}

#[test]
fn a_half_can_be_turned_off() {
    let low_only = ArmRegime { high: None, ..regime() };
    assert_eq!(select(&low_only, 0x1000), Ok((0x1000, 0x1000)));
    assert_eq!(select(&low_only, u64::MAX), Err(SelectError::Disabled));
    let high_only = ArmRegime { low: None, ..regime() };
    assert_eq!(select(&high_only, 0x1000), Err(SelectError::Disabled));
    assert_eq!(select(&ArmRegime::default(), 0), Err(SelectError::Disabled));
}
