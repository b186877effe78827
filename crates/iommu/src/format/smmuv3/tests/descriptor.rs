use mem::Gpa;
use pgtable::{ArmFlags, Granule};

use super::super::*;
use super::{words, CAPS};
use crate::{Asid, DescriptorForm, Pasid, SmmuCaps};

/// What Linux writes for a process: T0SZ 16, write-back and inner shareable, EPD1, V, IPS 5, AA64, R, A.
const PROCESS: u64 = 0x6205_c000_3510;

fn decode(word0: u64, caps: &SmmuCaps) -> Result<Regime, DescriptorError> {
    Descriptor::from_words(words(&[(0, word0), (1, 0x1_2345_6000)])).decode(caps)
}

/// Each field set alone, typed from the specification's table (5.4).
#[test]
fn bits() {
    let word = DescriptorWord0::new;
    assert_eq!(word().with_low_size(63).into_bits(), 63);
    assert_eq!(word().with_low_granule(3).into_bits(), 3 << 6);
    assert_eq!(word().with_low_attributes(63).into_bits(), 63 << 8);
    assert_eq!(word().with_low_disable(true).into_bits(), 1 << 14);
    assert_eq!(word().with_big_endian(true).into_bits(), 1 << 15);
    assert_eq!(word().with_high_size(63).into_bits(), 63 << 16);
    assert_eq!(word().with_high_granule(3).into_bits(), 3 << 22);
    assert_eq!(word().with_high_attributes(63).into_bits(), 63 << 24);
    assert_eq!(word().with_high_disable(true).into_bits(), 1 << 30);
    assert_eq!(word().with_valid(true).into_bits(), 1 << 31);
    assert_eq!(word().with_output_size(7).into_bits(), 7 << 32);
    assert_eq!(word().with_access_flag_fault_disable(true).into_bits(), 1 << 35);
    assert_eq!(word().with_write_execute_never(true).into_bits(), 1 << 36);
    assert_eq!(word().with_user_write_execute_never(true).into_bits(), 1 << 37);
    assert_eq!(word().with_low_top_byte_ignore(true).into_bits(), 1 << 38);
    assert_eq!(word().with_high_top_byte_ignore(true).into_bits(), 1 << 39);
    assert_eq!(word().with_privileged_access_never(true).into_bits(), 1 << 40);
    assert_eq!(word().with_aarch64(true).into_bits(), 1 << 41);
    assert_eq!(word().with_dirty_update(true).into_bits(), 1 << 42);
    assert_eq!(word().with_access_flag_update(true).into_bits(), 1 << 43);
    assert_eq!(word().with_stall(true).into_bits(), 1 << 44);
    assert_eq!(word().with_record(true).into_bits(), 1 << 45);
    assert_eq!(word().with_abort(true).into_bits(), 1 << 46);
    assert_eq!(word().with_private_asid(true).into_bits(), 1 << 47);
    assert_eq!(word().with_asid(0xffff).into_bits(), 0xffff << 48);
    let word = DescriptorWord1::new;
    assert_eq!(word().with_non_secure(true).into_bits(), 1);
    assert_eq!(word().with_hierarchical_disable(true).into_bits(), 1 << 1);
    assert_eq!(word().with_table_access_flag(true).into_bits(), 1 << 3);
    assert_eq!(word().with_root_frame((1 << 48) - 1).into_bits(), 0xf_ffff_ffff_fff0);
    let word = DescriptorWord2::new;
    assert_eq!(word().with_non_secure(true).into_bits(), 1);
    assert_eq!(word().with_hierarchical_disable(true).into_bits(), 1 << 1);
    assert_eq!(word().with_root_frame((1 << 48) - 1).into_bits(), 0xf_ffff_ffff_fff0);
    let words = [1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(Descriptor::from_words(words).words(), words);
}

#[test]
fn pointer_bits() {
    assert_eq!(DescriptorPointer::to_leaf(Gpa(0x1_2345_6000)).into_bits(), 0x1_2345_6001);
    let all = DescriptorPointer::from_bits(u64::MAX);
    assert!(all.valid());
    assert_eq!(all.leaf(DescriptorForm::Leaves4K), Gpa(0xf_ffff_ffff_f000));
    assert_eq!(all.leaf(DescriptorForm::Leaves64K), Gpa(0xf_ffff_ffff_0000));
    assert!(!DescriptorPointer::from_bits(!1).valid());
}

#[test]
fn addresses() {
    let substream = Pasid::new(0x1_2345).unwrap();
    let pointer = |form| DescriptorPointer::address(Gpa(0x1000), form, substream);
    // 0x12345 is 0x48d * 64 + 5, and 0x48 * 1024 + 0x345.
    assert_eq!(pointer(DescriptorForm::Leaves4K), Some(Gpa(0x1000 + 0x48d * 8)));
    assert_eq!(pointer(DescriptorForm::Leaves64K), Some(Gpa(0x1000 + 0x48 * 8)));
    let descriptor = |form| Descriptor::address(Gpa(0x7_0000), form, substream);
    assert_eq!(descriptor(DescriptorForm::Leaves4K), Some(Gpa(0x7_0000 + 5 * 64)));
    assert_eq!(descriptor(DescriptorForm::Leaves64K), Some(Gpa(0x7_0000 + 0x345 * 64)));
    assert_eq!(descriptor(DescriptorForm::Linear), Some(Gpa(0x7_0000 + 0x1_2345 * 64)));
    let top = Gpa(u64::MAX - 0x3f);
    assert_eq!(Descriptor::address(top, DescriptorForm::Linear, substream), None);
    assert_eq!(DescriptorPointer::address(top, DescriptorForm::Leaves4K, Pasid::MAX), None);
}

#[test]
fn a_process_as_linux_binds_it() {
    let regime = decode(0x0042_0000_0000_0000 | PROCESS, &CAPS).unwrap();
    assert_eq!(regime.asid, Asid(0x42));
    assert!(regime.record);
    let low = regime.tables.low.unwrap();
    assert_eq!(low.root, 0x1_2345_6000);
    let sizes = low.format.sizes();
    assert_eq!((sizes.granule, sizes.input_bits, sizes.output_bits), (Granule::Kib4, 48, 48));
    assert_eq!(low.format.flags(), ArmFlags::Fault);
    assert_eq!(regime.tables.high, None);
    assert_eq!(regime.tables.top_byte_ignore, [false; 2]);
}

#[test]
fn both_halves() {
    // Low off; T1SZ 25, TG1 3 (64 KiB), TBI1, HA and HD.
    let word0 = (PROCESS & !(1 << 30)) | 1 << 14 | 25 << 16 | 3 << 22 | 1 << 39 | 3 << 42;
    let high = Descriptor::from_words(words(&[(0, word0), (2, 0x9_0000 | 2)]));
    let regime = high.decode(&CAPS).unwrap();
    assert_eq!(regime.tables.low, None);
    let table = regime.tables.high.unwrap();
    assert_eq!(table.root, 0x9_0000);
    assert_eq!(
        (table.format.sizes().granule, table.format.sizes().input_bits),
        (Granule::Kib64, 39)
    );
    assert_eq!(table.format.flags(), ArmFlags::AccessDirty);
    assert_eq!(regime.tables.top_byte_ignore, [false, true]);
    // HAD1.
    let hierarchical = Descriptor::from_words(words(&[(0, word0), (2, 0x9_0000)]));
    assert_ne!(hierarchical.decode(&CAPS).unwrap(), regime);
}

#[test]
fn what_is_not_supported() {
    let refused = |set: u64, clear: u64| decode((PROCESS & !clear) | set, &CAPS).unwrap_err();
    assert_eq!(refused(0, 1 << 31), DescriptorError::NotValid);
    assert_eq!(refused(0, 1 << 41), DescriptorError::AArch32);
    assert_eq!(refused(1 << 15, 0), DescriptorError::BigEndian);
    assert_eq!(refused(1 << 44, 0), DescriptorError::Stall);
    assert_eq!(refused(0, 1 << 46), DescriptorError::NoAbort);
    assert_eq!(refused(3 << 6, 0), DescriptorError::Granule { half: 0, got: 3 });
    // TG1 0 is reserved, and the high half matters once it is on.
    assert_eq!(refused(16 << 16, 1 << 30), DescriptorError::Granule { half: 1, got: 0 });

    let with = |set: u64, caps: SmmuCaps| decode(PROCESS | set, &caps).err();
    let no_4k = SmmuCaps { granule_4k: false, ..CAPS };
    assert_eq!(with(0, no_4k), Some(DescriptorError::Granule { half: 0, got: 0 }));
    let short = SmmuCaps { asid_16: false, ..CAPS };
    assert_eq!(with(0x100 << 48, short), Some(DescriptorError::Asid { got: 0x100 }));
    assert_eq!(with(0xff << 48, short), None);
    for (updates, ha, both) in [(0, false, false), (1, true, false), (2, true, true)] {
        let caps = SmmuCaps { hardware_updates: updates, ..CAPS };
        assert_eq!(with(1 << 43, caps).is_none(), ha);
        assert_eq!(with(3 << 42, caps).is_none(), both);
    }
}

#[test]
fn sizes() {
    let low = |size: u64, granule: u64, caps: &SmmuCaps| {
        decode((PROCESS & !0xff) | size | granule << 6, caps)
    };
    let wrong = |got| Err(DescriptorError::Size { half: 0, got });
    let wide = SmmuCaps { wide_addresses: true, output_bits: 52, ..CAPS };
    for granule in 0..3 {
        for size in 16..=39 {
            assert!(low(size, granule, &CAPS).is_ok(), "T0SZ {size}, TG0 {granule}");
        }
        assert_eq!(low(15, granule, &CAPS), wrong(15));
        assert_eq!(low(40, granule, &CAPS), wrong(40));
        // 52 bits with 64 KiB only.
        assert_eq!(low(12, granule, &wide).is_ok(), granule == 1);
        assert_eq!(low(11, granule, &wide), wrong(11));
    }
}

#[test]
fn output_sizes() {
    let output = |ips: u64, granule: u64, caps: &SmmuCaps| {
        let word = (PROCESS & !(7 << 32)) | ips << 32 | granule << 6;
        decode(word, caps).unwrap().tables.low.unwrap().format.sizes().output_bits
    };
    for (ips, bits) in (0..).zip([32, 36, 40, 42, 44, 48]) {
        if bits >= 36 {
            assert_eq!(output(ips, 0, &CAPS), bits);
        }
    }
    let wide = SmmuCaps { output_bits: 52, ..CAPS };
    assert_eq!([0, 1].map(|granule| output(6, granule, &wide)), [48, 52]);
    assert_eq!([6, 7].map(|ips| output(ips, 1, &CAPS)), [48, 48], "no more than the unit has");
    let narrow = SmmuCaps { output_bits: 40, ..CAPS };
    assert_eq!(output(5, 0, &narrow), 40);
    // The root is an output, too.
    let root = |root: u64, caps: &SmmuCaps| {
        Descriptor::from_words(words(&[(0, PROCESS), (1, root)])).decode(caps).err()
    };
    assert_eq!(root(1 << 39, &narrow), None);
    assert_eq!(root(1 << 40, &narrow), Some(DescriptorError::Root { half: 0 }));
}
