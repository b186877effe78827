//! The table byte for byte.

use super::*;

fn device(bus: u8, device: u8, function: u8) -> RequesterId {
    RequesterId::new(bus, device, function).unwrap()
}

fn dmar(devices: Vec<RequesterId>) -> Dmar {
    Dmar { host_address_bits: 48, register_base: Gpa(0xe000_0000), devices }
}

#[test]
fn the_table_is_as_the_specification_has_it() {
    #[rustfmt::skip]
    let expected = [
        b'D', b'M', b'A', b'R', 80, 0, 0, 0, 1, 0,
        b'V', b'S', b'V', b'A', b' ', b' ',
        b'V', b'S', b'V', b'A', b'D', b'M', b'A', b'R', 1, 0, 0, 0,
        b'V', b'S', b'V', b'A', 1, 0, 0, 0,
        47, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        // DRHD.
        0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0, 0, 0, 0,
        // 00:10.0 and 00:11.3.
        1, 8, 0, 0, 0, 0, 0x10, 0,
        1, 8, 0, 0, 0, 0, 0x11, 3,
    ];
    let mut table = dmar(vec![device(0, 0x10, 0), device(0, 0x11, 3)]).to_bytes().unwrap();
    assert_eq!(table.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 256, 0);
    table[CHECKSUM] = 0;
    assert_eq!(table, expected);
}

#[test]
fn what_the_table_cannot_say_is_refused() {
    let on_bus_1 = device(1, 0, 0);
    let wrong = dmar(vec![on_bus_1]).to_bytes();
    assert_eq!(wrong, Err(DmarError::NotOnRootBus(on_bus_1)));
    let base = Gpa(0xe000_0800);
    let wrong = Dmar { register_base: base, ..dmar(vec![]) }.to_bytes();
    assert_eq!(wrong, Err(DmarError::Misaligned(base)));
    let wrong = Dmar { host_address_bits: 0, ..dmar(vec![]) }.to_bytes();
    assert_eq!(wrong, Err(DmarError::AddressWidth));
    let wrong = dmar(vec![device(0, 1, 0); 9000]).to_bytes();
    assert_eq!(wrong, Err(DmarError::TooManyDevices(9000)));
}
