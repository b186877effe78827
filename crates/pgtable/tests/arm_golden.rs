//! Arm's entries and fields, typed by hand from the architecture's tables.

mod common;

use common::{Arena, READ, WRITE};
use pgtable::{
    arm_output_bits, arm_output_field, walk, ArmFlags, ArmFormatError, ArmSizes, ArmStageOne,
    ArmStageTwo, Denied, Entry, Format, Granule, LeafEntry, ReservedBits, Rights, TableEntry, Vtcr,
    WalkFault,
};

const ALL: Rights = Rights::all();

fn stage_one(granule: Granule) -> ArmStageOne {
    ArmStageOne::new(granule, 48, 48).unwrap()
}

fn stage_two(granule: Granule) -> ArmStageTwo {
    ArmStageTwo::new(granule, 48, 48).unwrap()
}

fn leaf(address: u64, rights: Rights) -> Entry {
    Entry::Leaf(LeafEntry { address, rights, accessed: true, dirty: true, global: true })
}

fn table(address: u64, rights: Rights) -> Entry {
    Entry::Table(TableEntry { address, rights, accessed: true })
}

#[test]
fn stage_one_entries() {
    let format = stage_one(Granule::Kib4);
    for level in 1..=4 {
        for invalid in [0, !1, 0x1234_5002] {
            assert_eq!(format.decode(level, invalid), Entry::NotPresent);
        }
    }
    // At level 1 the type 0b01 is reserved, which is invalid; so are blocks at level 4.
    assert_eq!(format.decode(1, 0x1234_5401), Entry::NotPresent);
    assert_eq!(format.decode(4, 0x1234_5401), Entry::NotPresent);

    let kernel = ALL.difference(Rights::USER);
    let read_only = ALL.difference(Rights::WRITE);
    // AP[2:1] = 00, 01, 10, 11, with AF.
    assert_eq!(format.decode(1, 0x1234_5403), leaf(0x1234_5000, kernel));
    assert_eq!(format.decode(1, 0x1234_5443), leaf(0x1234_5000, ALL));
    assert_eq!(format.decode(1, 0x1234_5483), leaf(0x1234_5000, kernel & read_only));
    assert_eq!(format.decode(1, 0x1234_54c3), leaf(0x1234_5000, read_only));
    // UXN, PXN.
    let data = ALL.difference(Rights::EXECUTE_USER);
    assert_eq!(format.decode(1, 1 << 54 | 0x5443), leaf(0x5000, data));
    let user_code = ALL.difference(Rights::EXECUTE_PRIVILEGED);
    assert_eq!(format.decode(1, 1 << 53 | 0x5443), leaf(0x5000, user_code));
    // AttrIndx, NS, SH, GP, DBM, contiguous, software bits, bits 63:59: nothing that matters.
    assert_eq!(format.decode(1, 0xff9c_0000_0000_577f), leaf(0x5000, ALL));
    // Bits 49:48, outside the wide layout.
    assert_eq!(format.decode(1, 3 << 48 | 0x5443), leaf(0x5000, ALL));
    // Blocks; what lies below their size is ignored, nT (bit 16) with it.
    assert_eq!(format.decode(2, 0x8000_0020_0441), leaf(0x8000_0020_0000, ALL));
    assert_eq!(format.decode(2, 0x8000_003f_f441), leaf(0x8000_0020_0000, ALL));
    assert_eq!(format.decode(3, 0x4000_0441), leaf(0x4000_0000, ALL));
    // Tables: bits 11:2 and 58:51 are ignored.
    for level in 2..=4 {
        assert_eq!(format.decode(level, 0x1234_5003), table(0x1234_5000, ALL));
        assert_eq!(format.decode(level, 0x07f8_0000_1234_5fff), table(0x1234_5000, ALL));
    }
}

#[test]
fn stage_one_flags() {
    let fault = stage_one(Granule::Kib4);
    let with = |flags| fault.with_flags(flags);
    let of = |flags, entry| match with(flags).decode(1, entry) {
        Entry::Leaf(leaf) => {
            (leaf.accessed, leaf.dirty, leaf.global, leaf.rights.contains(Rights::WRITE))
        }
        other => panic!("{other:?}"),
    };
    let (untouched, read_only) = (0x5043u64, 0x5443u64 | 1 << 7);
    let dbm = 1u64 << 51;
    assert_eq!(of(ArmFlags::Fault, untouched), (false, true, true, true));
    assert!(!fault.sets_accessed() && !with(ArmFlags::Ignore).sets_accessed());
    assert_eq!(of(ArmFlags::Ignore, untouched), (true, true, true, true));
    assert_eq!(of(ArmFlags::Access, untouched), (false, true, true, true));
    assert!(with(ArmFlags::Access).sets_accessed() && with(ArmFlags::AccessDirty).sets_accessed());
    // nG.
    assert_eq!(of(ArmFlags::Fault, untouched | 1 << 11), (false, true, false, true));
    // DBM makes a read-only page one that is clean, if HD says so.
    assert_eq!(of(ArmFlags::Access, read_only | dbm), (true, true, true, false));
    assert_eq!(of(ArmFlags::AccessDirty, read_only), (true, true, true, false));
    assert_eq!(of(ArmFlags::AccessDirty, read_only | dbm), (true, false, true, true));
    assert_eq!(of(ArmFlags::AccessDirty, 0x5443 | dbm), (true, true, true, true));

    assert_eq!(with(ArmFlags::Access).mark(untouched, false), 0x5443);
    assert_eq!(with(ArmFlags::AccessDirty).mark(0x50c3 | dbm, false), 0x54c3 | dbm);
    assert_eq!(with(ArmFlags::AccessDirty).mark(0x50c3 | dbm, true), 0x5443 | dbm);
    assert_eq!(with(ArmFlags::AccessDirty).mark(0x50c3, true), 0x54c3);
    // HA, HD, AFFD.
    let cases = [
        ((false, false, false), ArmFlags::Fault),
        ((false, true, false), ArmFlags::Fault),
        ((false, false, true), ArmFlags::Ignore),
        ((true, false, true), ArmFlags::Access),
        ((true, true, false), ArmFlags::AccessDirty),
    ];
    for ((ha, hd, affd), flags) in cases {
        assert_eq!(ArmFlags::from_fields(ha, hd, affd), flags);
    }
}

/// The order that the architecture gives faults at one entry: address size, access flag, permission.
#[test]
fn the_weightiest_fault_is_reported() {
    let format = ArmStageOne::new(Granule::Kib4, 30, 40).unwrap();
    let mut arena = Arena::default();
    arena.add(0x1000, 12);
    arena.add(0x2000, 12);
    arena.set(0x1000, 0x2003);
    let fault = |format: ArmStageOne, entry, request| {
        arena.set(0x2008, entry);
        walk(&format, 0x1000, 0x1000, &request, &arena).map(|leaf| leaf.base)
    };
    // Nothing set for AF and AP, and an address of 41 bits.
    let size = WalkFault::Reserved { level: 1, which: ReservedBits::Address };
    assert_eq!(fault(format, 0x0100_0000_9003, READ), Err(size));
    let flag = WalkFault::AccessFlag { level: 1 };
    assert_eq!(fault(format, 0x9003, READ), Err(flag));
    let user = WalkFault::Permission { level: 1, kind: Denied::User };
    assert_eq!(fault(format, 0x9403, READ), Err(user));
    assert_eq!(fault(format.with_flags(ArmFlags::Ignore), 0x9003, READ), Err(user));
    assert_eq!(fault(format, 0x9443, READ), Ok(0x9000));
    // A walk that faults sets no access flag.
    let access = format.with_flags(ArmFlags::Access);
    let write = WalkFault::Permission { level: 1, kind: Denied::Write };
    assert_eq!(fault(access, 0x90c3, WRITE), Err(write));
    assert_eq!(arena.get(0x2008), Some(0x90c3));
    assert_eq!(fault(access, 0x90c3, READ), Ok(0x9000));
    assert_eq!(arena.get(0x2008), Some(0x94c3));
}

#[test]
fn stage_one_tables_take_rights_from_everything_below() {
    let format = stage_one(Granule::Kib16);
    let cases = [
        (59, Rights::EXECUTE_PRIVILEGED),
        (60, Rights::EXECUTE_USER),
        (61, Rights::USER),
        (62, Rights::WRITE),
        (63, Rights::empty()),
    ];
    for (bit, taken) in cases {
        let entry = 1 << bit | 0x1234_4003;
        assert_eq!(format.decode(3, entry), table(0x1234_4000, ALL.difference(taken)));
        let flat = format.with_hierarchical(false);
        assert_eq!(flat.decode(3, entry), table(0x1234_4000, ALL));
    }
}

#[test]
fn stage_two_entries() {
    let format = stage_two(Granule::Kib4);
    assert_eq!(format.decode(1, 0x1234_57fd), Entry::NotPresent);
    let data = Rights::USER;
    let (read, write) = (Rights::READ, Rights::WRITE);
    let stage_two_leaf = |address, rights| match leaf(address, rights) {
        Entry::Leaf(leaf) => Entry::Leaf(LeafEntry { global: false, ..leaf }),
        other => other,
    };
    // S2AP = 00, 01, 10, 11, with AF.
    let executable = data | Rights::EXECUTE;
    assert_eq!(format.decode(1, 0x5403), stage_two_leaf(0x5000, executable));
    assert_eq!(format.decode(1, 0x5443), stage_two_leaf(0x5000, executable | read));
    assert_eq!(format.decode(1, 0x5483), stage_two_leaf(0x5000, executable | write));
    assert_eq!(format.decode(1, 0x54c3), stage_two_leaf(0x5000, ALL));
    // XN, alone and with FEAT_XNX.
    let xnx = format.with_execute_by_privilege(true);
    let cases = [
        (0u64, Rights::EXECUTE, Rights::EXECUTE),
        (1, Rights::EXECUTE, Rights::EXECUTE_USER),
        (2, Rights::empty(), Rights::empty()),
        (3, Rights::empty(), Rights::EXECUTE_PRIVILEGED),
    ];
    for (xn, alone, by_privilege) in cases {
        let entry = xn << 53 | 0x54c3;
        let data = data | read | write;
        assert_eq!(format.decode(1, entry), stage_two_leaf(0x5000, data | alone));
        assert_eq!(xnx.decode(1, entry), stage_two_leaf(0x5000, data | by_privilege));
    }
    // Nothing in a table entry takes rights.
    assert_eq!(format.decode(2, 0xff80_0000_1234_5fff), table(0x1234_5000, ALL));
    // Dirty state is S2AP[1].
    let hd = format.with_flags(ArmFlags::AccessDirty);
    let clean = 1 << 51 | 0x5443;
    let Entry::Leaf(found) = hd.decode(1, clean) else { panic!() };
    assert!(found.rights.contains(write) && !found.dirty);
    assert_eq!(hd.mark(clean, true), 1 << 51 | 0x54c3);
    assert_eq!(hd.mark(0x5043, true), 0x5443);
    assert_eq!(format.decode(1, clean), stage_two_leaf(0x5000, executable | read));
}

#[test]
fn entries_as_they_are_written() {
    let one = stage_one(Granule::Kib4);
    // Type 3, AP[1], SH = 3, AF, nG.
    assert_eq!(one.leaf_entry(1, 0x1234_5000, ALL), 0x1234_5f43);
    assert_eq!(one.leaf_entry(2, 0x20_0000, ALL), 0x20_0f41);
    // AP = 10, PXN, UXN.
    assert_eq!(one.leaf_entry(1, 0x5000, Rights::READ), 0x0060_0000_0000_5f83);
    assert_eq!(one.table_entry(0x1234_5000), 0x1234_5003);
    let dirty = one.with_flags(ArmFlags::AccessDirty);
    assert_eq!(dirty.leaf_entry(1, 0x5000, ALL), 0x0008_0000_0000_5bc3);
    let two = stage_two(Granule::Kib64);
    // Type 3, MemAttr = 15, S2AP = 3, SH = 3, AF.
    assert_eq!(two.leaf_entry(1, 0x1_0000, ALL), 0x1_07ff);
    assert_eq!(two.leaf_entry(2, 0x2000_0000, Rights::READ | Rights::USER), 1 << 54 | 0x2000_077d);
    assert_eq!(two.table_entry(0x1_0000), 0x1_0003);
    let dirty = two.with_flags(ArmFlags::AccessDirty);
    assert_eq!(dirty.leaf_entry(1, 0x1_0000, ALL), 1 << 51 | 0x1_037f);
}

#[test]
fn addresses_of_52_bits() {
    let address = 0x000a_5678_9abc_0000;
    // 64 KiB: bits 51:48 in 15:12.
    let large = ArmStageOne::new(Granule::Kib64, 52, 52).unwrap();
    let entry = 0x0000_5678_9abc_a443;
    assert_eq!(large.decode(1, entry), leaf(address, ALL));
    assert_eq!(large.decode(2, 0x0000_5678_9abc_a003), table(address, ALL));
    assert_eq!(large.table_entry(address), 0x0000_5678_9abc_a003);
    assert_eq!(large.decode(3, 0x0000_0400_0000_f441), leaf(0x000f_0400_0000_0000, ALL));
    // 4 KiB with DS: bits 49:48 in place, 51:50 in 9:8.
    let small = ArmStageOne::new(Granule::Kib4, 52, 52).unwrap();
    let entry = 0x0002_5678_9abc_0643;
    assert_eq!(small.decode(1, entry), leaf(address, ALL));
    assert_eq!(small.decode(5, 0x0002_5678_9abc_0203), table(address, ALL));
    assert_eq!(small.table_entry(address), 0x0002_5678_9abc_0203);
    assert_eq!(small.leaf_entry(1, address, ALL), 0x0002_5678_9abc_0e43);
    assert_eq!(small.decode(4, 0x0001_0080_0000_0741), leaf(0x000d_0080_0000_0000, ALL));
    // 16 KiB with DS.
    let middle = ArmStageTwo::new(Granule::Kib16, 52, 52).unwrap();
    assert_eq!(middle.decode(2, 0x0002_5678_9abc_0203), table(address, ALL));
    assert!(matches!(middle.decode(3, 0x1000_0000_07fd), Entry::Leaf(leaf)
        if leaf.address == 0x000c_1000_0000_0000));
    // Blocks that only wide layouts have.
    assert_eq!(stage_one(Granule::Kib4).decode(4, 0x0080_0000_0441), Entry::NotPresent);
    assert_eq!(stage_one(Granule::Kib16).decode(3, 0x0010_0000_0441), Entry::NotPresent);
    assert_eq!(stage_one(Granule::Kib64).decode(3, 0x0400_0000_0441), Entry::NotPresent);
}

#[test]
fn addresses_beyond_the_output_size() {
    let too_large = Entry::Reserved(ReservedBits::Address);
    for (bits, lowest) in [(32, 32), (36, 36), (40, 40), (42, 42), (44, 44)] {
        let format = ArmStageOne::new(Granule::Kib4, 39, bits).unwrap();
        for bit in lowest..48 {
            assert_eq!(format.decode(1, 1 << bit | 0x5443), too_large);
            assert_eq!(format.decode(2, 1 << bit | 0x5003), too_large);
        }
        assert!(matches!(format.decode(1, 1 << (lowest - 1) | 0x5443), Entry::Leaf(_)));
    }
    // Wide layouts with less than 52 bits find their upper bits, too.
    let wide = |granule| {
        let sizes = ArmSizes { granule, input_bits: 48, output_bits: 48, wide: true };
        ArmStageOne::with_sizes(&sizes).unwrap()
    };
    for bit in [8, 9, 48, 49] {
        assert_eq!(wide(Granule::Kib4).decode(1, 1 << bit | 0x5443), too_large);
        assert_eq!(wide(Granule::Kib16).decode(2, 1 << bit | 0x4003), too_large);
    }
    for bit in 12..16 {
        assert_eq!(wide(Granule::Kib64).decode(1, 1 << bit | 0x1_0443), too_large);
        // Reserved and ignored where the unit does not know 52 bits.
        let narrow = stage_one(Granule::Kib64);
        assert_eq!(narrow.decode(1, 1 << bit | 0x1_0443), leaf(0x1_0000, ALL));
    }
}

/// Levels, and log2 of the entries of the root.
fn shape(format: &impl Format) -> (u8, u32) {
    (format.levels(), format.index_bits(format.levels()))
}

#[test]
fn stage_one_shapes() {
    let cases = [
        (Granule::Kib4, 25, (2, 4)),
        (Granule::Kib4, 30, (2, 9)),
        (Granule::Kib4, 31, (3, 1)),
        (Granule::Kib4, 39, (3, 9)),
        (Granule::Kib4, 48, (4, 9)),
        (Granule::Kib4, 52, (5, 4)),
        (Granule::Kib16, 25, (1, 11)),
        (Granule::Kib16, 36, (2, 11)),
        (Granule::Kib16, 47, (3, 11)),
        (Granule::Kib16, 48, (4, 1)),
        (Granule::Kib16, 52, (4, 5)),
        (Granule::Kib64, 25, (1, 9)),
        (Granule::Kib64, 42, (2, 13)),
        (Granule::Kib64, 48, (3, 6)),
        (Granule::Kib64, 52, (3, 10)),
    ];
    for (granule, bits, expected) in cases {
        let format = ArmStageOne::new(granule, bits, 40).unwrap();
        assert_eq!(shape(&format), expected, "{granule:?} {bits}");
        assert_eq!(format.input_bits(), u32::from(bits));
    }
}

#[test]
fn stage_two_shapes_and_their_names() {
    // Granule, T0SZ, SL0 and the shape: as few levels as 16 tables in a row allow.
    let cases = [
        (Granule::Kib4, 25, 0, (2, 4)),
        (Granule::Kib4, 34, 0, (2, 13)),
        (Granule::Kib4, 35, 1, (3, 5)),
        (Granule::Kib4, 40, 1, (3, 10)),
        (Granule::Kib4, 43, 1, (3, 13)),
        (Granule::Kib4, 44, 2, (4, 5)),
        (Granule::Kib4, 48, 2, (4, 9)),
        (Granule::Kib4, 52, 2, (4, 13)),
        (Granule::Kib16, 40, 1, (2, 15)),
        (Granule::Kib16, 48, 2, (3, 12)),
        (Granule::Kib16, 52, 3, (4, 5)),
        (Granule::Kib64, 40, 1, (2, 11)),
        (Granule::Kib64, 46, 1, (2, 17)),
        (Granule::Kib64, 48, 2, (3, 6)),
        (Granule::Kib64, 52, 2, (3, 10)),
    ];
    for (granule, bits, sl0, expected) in cases {
        let format = ArmStageTwo::new(granule, bits, 44).unwrap();
        assert_eq!(shape(&format), expected, "{granule:?} {bits}");
        let wide = bits > 48;
        let vtcr = Vtcr { t0sz: 64 - bits, sl0, tg0: granule.tg0(), ps: 4, wide };
        assert_eq!(format.vtcr(), vtcr);
        assert_eq!(ArmStageTwo::from_vtcr(&vtcr), Ok(format));
    }
    // Software may start higher than need be.
    let vtcr = Vtcr { t0sz: 24, sl0: 2, tg0: 0, ps: 5, wide: false };
    assert_eq!(shape(&ArmStageTwo::from_vtcr(&vtcr).unwrap()), (4, 1));
}

#[test]
fn fields_that_do_not_fit_together() {
    let good = Vtcr { t0sz: 24, sl0: 1, tg0: 0, ps: 5, wide: false };
    assert!(ArmStageTwo::from_vtcr(&good).is_ok());
    let refused = |vtcr| ArmStageTwo::from_vtcr(&vtcr).unwrap_err();
    let input = |got, max| ArmFormatError::InputBits { got, min: 25, max };
    let inconsistent = |levels, input_bits| ArmFormatError::Inconsistent { levels, input_bits };
    let start = |got| ArmFormatError::StartLevel { got };
    assert_eq!(refused(Vtcr { tg0: 3, ..good }), ArmFormatError::Granule { got: 3 });
    assert_eq!(refused(Vtcr { ps: 7, ..good }), ArmFormatError::OutputSize { got: 7 });
    assert_eq!(refused(Vtcr { sl0: 3, ..good }), start(3));
    assert_eq!(refused(Vtcr { tg0: 2, sl0: 3, ..good }), start(3));
    assert_eq!(refused(Vtcr { tg0: 1, sl0: 3, wide: true, ..good }), start(3));
    assert_eq!(refused(Vtcr { t0sz: 40, ..good }), input(24, 48));
    assert_eq!(refused(Vtcr { t0sz: 255, ..good }), input(0, 48));
    assert_eq!(refused(Vtcr { t0sz: 0, ..good }), input(64, 48));
    assert_eq!(refused(Vtcr { t0sz: 15, ..good }), input(49, 48));
    assert_eq!(refused(Vtcr { t0sz: 11, wide: true, ..good }), input(53, 52));
    // 17 tables would be needed; and the start table would have a single entry.
    assert_eq!(refused(Vtcr { t0sz: 20, ..good }), inconsistent(3, 44));
    assert!(ArmStageTwo::from_vtcr(&Vtcr { t0sz: 21, ..good }).is_ok());
    assert_eq!(refused(Vtcr { t0sz: 34, ..good }), inconsistent(3, 30));
    assert!(ArmStageTwo::from_vtcr(&Vtcr { t0sz: 33, ..good }).is_ok());

    let one = |granule, input, output| ArmStageOne::new(granule, input, output).unwrap_err();
    assert_eq!(one(Granule::Kib4, 24, 48), input(24, 48));
    assert_eq!(one(Granule::Kib4, 53, 48), input(53, 52));
    assert_eq!(one(Granule::Kib64, 53, 48), input(53, 52));
    assert_eq!(one(Granule::Kib4, 48, 46), ArmFormatError::OutputBits { got: 46 });
    // An output size of 52 takes effect in wide layouts only.
    let narrow = ArmSizes { granule: Granule::Kib4, input_bits: 48, output_bits: 52, wide: false };
    assert_eq!(ArmStageOne::with_sizes(&narrow).unwrap().sizes().output_bits, 48);
    let long = ArmSizes { granule: Granule::Kib4, input_bits: 49, output_bits: 48, wide: false };
    assert_eq!(ArmStageOne::with_sizes(&long), Err(input(49, 48)));
}

#[test]
fn names_of_granules_and_sizes() {
    let granules = [Granule::Kib4, Granule::Kib16, Granule::Kib64];
    assert_eq!(granules.map(Granule::tg0), [0, 2, 1]);
    assert_eq!(granules.map(Granule::tg1), [2, 1, 3]);
    for granule in granules {
        assert_eq!(Granule::from_tg0(granule.tg0()), Some(granule));
        assert_eq!(Granule::from_tg1(granule.tg1()), Some(granule));
    }
    assert_eq!((Granule::from_tg0(3), Granule::from_tg1(0)), (None, None));
    for (field, bits) in [(0, 32), (1, 36), (2, 40), (3, 42), (4, 44), (5, 48), (6, 52)] {
        assert_eq!(arm_output_bits(field), Some(bits));
        assert_eq!(arm_output_field(bits), Some(field));
    }
    assert_eq!((arm_output_bits(7), arm_output_field(46)), (None, None));
}
