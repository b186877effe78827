use super::*;

const CAPABILITY: MsiXCapability = MsiXCapability {
    vectors: 70,
    table: BarOffset { bar: 0, offset: 0x2000 },
    pending: BarOffset { bar: 2, offset: 0x40 },
};

fn enabled() -> MsiX {
    let mut msix = MsiX::new(CAPABILITY);
    msix.set_control(MsiXControl::new().with_enable(true));
    msix
}

fn program(msix: &mut MsiX, vector: u64, address: u64, data: u32, masked: bool) {
    let at = 0x2000 + 16 * vector;
    assert!(msix.write(0, at, &address.to_le_bytes()));
    let rest = u64::from(masked) << 32 | u64::from(data);
    assert!(msix.write(0, at + 8, &rest.to_le_bytes()));
}

fn pending_word(msix: &MsiX, index: u64) -> u64 {
    let mut bytes = [0; 8];
    assert!(msix.read(2, 0x40 + 8 * index, &mut bytes));
    u64::from_le_bytes(bytes)
}

#[test]
fn vectors_begin_masked() {
    let msix = MsiX::new(CAPABILITY);
    let mut entry = [0xaa; 16];
    assert!(msix.read(0, 0x2000 + 16 * 69, &mut entry));
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
}

#[test]
fn an_unmasked_vector_gives_its_message() {
    let mut msix = enabled();
    program(&mut msix, 3, 0xfee0_1003, 0x4321, false);
    // The two lowest address bits are not stored.
    let message = Message { address: 0xfee0_1000, data: 0x4321 };
    assert_eq!(msix.fire(3), Some(message));
    assert!(!msix.is_pending(3));
    assert_eq!(msix.fire(70), None, "there is no vector 70");
}

#[test]
fn a_masked_vector_waits_until_it_is_unmasked() {
    let mut msix = enabled();
    program(&mut msix, 68, 0x1_fee0_0000, 7, true);
    assert_eq!(msix.fire(68), None);
    assert_eq!((pending_word(&msix, 0), pending_word(&msix, 1)), (0, 1 << 4));
    assert_eq!(msix.next_ready(), None);

    assert!(msix.write(0, 0x2000 + 16 * 68 + 12, &0u32.to_le_bytes()));
    assert_eq!(msix.next_ready(), Some((68, Message { address: 0x1_fee0_0000, data: 7 })));
    assert_eq!(msix.next_ready(), None);
    assert_eq!(pending_word(&msix, 1), 0);
}

#[test]
fn the_function_mask_holds_all_vectors_back() {
    let mut msix = enabled();
    program(&mut msix, 0, 0xfee0_0000, 1, false);
    program(&mut msix, 1, 0xfee0_0000, 2, false);
    msix.set_control(MsiXControl::new().with_enable(true).with_function_mask(true));
    assert_eq!((msix.fire(1), msix.fire(0)), (None, None));
    assert_eq!(msix.next_ready(), None);

    msix.set_control(MsiXControl::new().with_enable(true));
    let data =
        |ready: Option<(u16, Message)>| ready.map(|(vector, message)| (vector, message.data));
    assert_eq!(data(msix.next_ready()), Some((0, 1)));
    assert_eq!(data(msix.next_ready()), Some((1, 2)));
    assert_eq!(data(msix.next_ready()), None);
}

#[test]
fn a_disabled_function_forgets() {
    let mut msix = MsiX::new(CAPABILITY);
    program(&mut msix, 0, 0xfee0_0000, 1, false);
    assert_eq!(msix.fire(0), None);
    msix.set_control(MsiXControl::new().with_enable(true));
    assert_eq!(msix.next_ready(), None);
}

#[test]
fn only_aligned_words_are_written() {
    let mut msix = enabled();
    for (offset, len) in [(0x2000, 1), (0x2000, 2), (0x2000, 16), (0x2002, 4), (0x2004, 8)] {
        assert!(msix.write(0, offset, &[0xff; 16][..len]));
    }
    let mut entry = [0; 12];
    assert!(msix.read(0, 0x2000, &mut entry));
    assert_eq!(entry, [0; 12]);
}

#[test]
fn nothing_writes_the_pending_bits_or_the_reserved_ones() {
    let mut msix = enabled();
    assert!(msix.write(2, 0x40, &u64::MAX.to_le_bytes()));
    assert_eq!(pending_word(&msix, 0), 0);
    assert!(msix.write(0, 0x200c, &u32::MAX.to_le_bytes()));
    let mut control = [0; 4];
    assert!(msix.read(0, 0x200c, &mut control));
    assert_eq!(control, [1, 0, 0, 0]);
}

#[test]
fn other_places_are_not_taken() {
    let mut msix = enabled();
    let table_end = 0x2000 + 70 * 16;
    for (bar, offset) in
        [(0, 0x1fff), (0, table_end), (1, 0x2000), (2, 0x3f), (2, 0x50), (0, u64::MAX)]
    {
        let mut data = [0x5a; 4];
        assert!(!msix.read(bar, offset, &mut data), "BAR {bar} at {offset:#x}");
        assert_eq!(data, [0x5a; 4]);
        assert!(!msix.write(bar, offset, &data));
    }
    // A read that runs over the end gets zeroes there.
    let mut data = [0x5a; 8];
    assert!(msix.read(0, table_end - 4, &mut data));
    assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn reset_masks_and_forgets() {
    let mut msix = enabled();
    program(&mut msix, 0, 0xfee0_0000, 1, true);
    assert_eq!(msix.fire(0), None);
    msix.reset();
    assert!(!msix.is_pending(0));
    let mut entry = [0; 16];
    assert!(msix.read(0, 0x2000, &mut entry));
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(msix.fire(0), None);
}
