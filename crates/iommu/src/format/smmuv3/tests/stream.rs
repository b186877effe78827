use mem::Gpa;
use pgtable::{ArmFlags, Format, Granule};

use super::super::*;
use super::{words, CAPS};
use crate::{
    DefaultSubstream, DescriptorForm, DescriptorTable, SmmuCaps, StreamContext, StreamTranslation,
    Vmid,
};

fn decode(bits: &[(usize, u64)]) -> Result<StreamContext, StreamEntryError> {
    StreamEntry::from_words(words(bits)).decode(&CAPS)
}

/// V and Config.
const fn config(config: u64) -> (usize, u64) {
    (0, 1 | config << 1)
}

/// S2T0SZ 24 (40 bits), S2SL0 1, 4 KiB, S2PS 5 (48 bits), S2AA64, S2R.
const STAGE_TWO: (usize, u64) = (2, 24 << 32 | 1 << 38 | 5 << 48 | 1 << 51 | 1 << 58);

/// Each field set alone, typed from the specification's table (5.2).
#[test]
fn bits() {
    let word = StreamWord0::new;
    assert_eq!(word().with_valid(true).into_bits(), 1);
    assert_eq!(word().with_config(7).into_bits(), 7 << 1);
    assert_eq!(word().with_descriptor_format(3).into_bits(), 3 << 4);
    assert_eq!(word().with_descriptor_frame((1 << 46) - 1).into_bits(), 0xf_ffff_ffff_ffc0);
    assert_eq!(word().with_descriptor_bits(31).into_bits(), 31 << 59);
    let word = StreamWord1::new;
    assert_eq!(word().with_default_substream(3).into_bits(), 3);
    assert_eq!(word().with_inner_cacheability(3).into_bits(), 3 << 2);
    assert_eq!(word().with_outer_cacheability(3).into_bits(), 3 << 4);
    assert_eq!(word().with_shareability(3).into_bits(), 3 << 6);
    assert_eq!(word().with_merge_events(true).into_bits(), 1 << 19);
    assert_eq!(word().with_force_write_back(true).into_bits(), 1 << 25);
    assert_eq!(word().with_stall_disable(true).into_bits(), 1 << 27);
    assert_eq!(word().with_ats(3).into_bits(), 3 << 28);
    assert_eq!(word().with_world(3).into_bits(), 3 << 30);
    assert_eq!(word().with_incoming_shareability(3).into_bits(), 3 << 44);
    assert_eq!(word().with_privilege(3).into_bits(), 3 << 48);
    let word = StreamWord2::new;
    assert_eq!(word().with_vmid(0xffff).into_bits(), 0xffff);
    assert_eq!(word().with_input_size(63).into_bits(), 63 << 32);
    assert_eq!(word().with_start_level(3).into_bits(), 3 << 38);
    assert_eq!(word().with_walk_attributes(63).into_bits(), 63 << 40);
    assert_eq!(word().with_granule(3).into_bits(), 3 << 46);
    assert_eq!(word().with_output_size(7).into_bits(), 7 << 48);
    assert_eq!(word().with_aarch64(true).into_bits(), 1 << 51);
    assert_eq!(word().with_big_endian(true).into_bits(), 1 << 52);
    assert_eq!(word().with_access_flag_fault_disable(true).into_bits(), 1 << 53);
    assert_eq!(word().with_protected_walk(true).into_bits(), 1 << 54);
    assert_eq!(word().with_dirty_update(true).into_bits(), 1 << 55);
    assert_eq!(word().with_access_flag_update(true).into_bits(), 1 << 56);
    assert_eq!(word().with_stall(true).into_bits(), 1 << 57);
    assert_eq!(word().with_record(true).into_bits(), 1 << 58);
    let root = StreamWord3::new().with_root_frame((1 << 48) - 1);
    assert_eq!(root.into_bits(), 0xf_ffff_ffff_fff0);
    let words = [1, 2, 3, 4 << 4, 5, 6, 7, 8];
    assert_eq!(StreamEntry::from_words(words).words(), words);
}

/// What Linux writes for a device with 2^10 substreams in a two-level table: stage 1, S1Fmt 2, S1DSS
/// 2, write-back and inner shareable, S1STALLD, EATS 1, SHCFG 1.
#[test]
fn stage_one_as_linux_has_it() {
    let entry = [0x5000_0001_2345_6000 | 1 | 5 << 1 | 2 << 4, 0x1000_1800_00d6, 0, 0, 0, 0, 0, 0];
    let context = StreamEntry::from_words(entry).decode(&CAPS).unwrap();
    let table = DescriptorTable {
        root: Gpa(0x1_2345_6000),
        bits: 10,
        form: DescriptorForm::Leaves64K,
        default: DefaultSubstream::Zero,
    };
    assert_eq!(context.translation, StreamTranslation::StageOne(table));
    assert_eq!((context.vmid, context.privilege, context.ats), (Vmid(0), None, true));
}

#[test]
fn configurations() {
    for abort in 0..4 {
        let context = decode(&[config(abort), (1, 2 << 28)]).unwrap();
        assert_eq!((context.translation, context.ats), (StreamTranslation::Abort, false));
    }
    let bypass = decode(&[config(4), (2, 9), (1, 2 << 48)]).unwrap();
    assert_eq!(bypass.translation, StreamTranslation::Bypass);
    assert_eq!((bypass.vmid, bypass.privilege), (Vmid(9), Some(false)));
    assert_eq!(decode(&[config(4), (1, 3 << 48)]).unwrap().privilege, Some(true));

    let Ok(context) = decode(&[config(6), STAGE_TWO, (2, 0xabcd), (3, 0x8000)]) else { panic!() };
    let StreamTranslation::StageTwo(two) = context.translation else { panic!("{context:?}") };
    assert_eq!((two.root, two.record, context.vmid), (Gpa(0x8000), true, Vmid(0xabcd)));
    let sizes = two.format.sizes();
    assert_eq!((sizes.granule, sizes.input_bits, sizes.output_bits), (Granule::Kib4, 40, 48));
    assert_eq!((two.format.levels(), two.format.flags()), (3, ArmFlags::Fault));

    let nested = [config(7), (0, 0x4000), STAGE_TWO, (3, 0x8000)];
    let Ok(context) = decode(&nested) else { panic!() };
    let StreamTranslation::Nested(table, over) = context.translation else { panic!() };
    assert_eq!((table.root, table.bits, over.root), (Gpa(0x4000), 0, Gpa(0x8000)));

    // Over the host's stage 2, only stage 1 is left.
    let over_host = |bits: &[(usize, u64)]| {
        StreamEntry::from_words(words(bits)).decode_over_host(&CAPS).unwrap().translation
    };
    assert_eq!(over_host(&nested), StreamTranslation::StageOne(table));
    assert_eq!(over_host(&[config(6)]), StreamTranslation::Bypass);
    assert_eq!(over_host(&[config(0)]), StreamTranslation::Abort);
}

#[test]
fn what_is_not_supported() {
    assert_eq!(decode(&[(0, 5 << 1)]), Err(StreamEntryError::NotValid));
    let without = |entry: &[(usize, u64)], caps: SmmuCaps| {
        StreamEntry::from_words(words(entry)).decode(&caps).unwrap_err()
    };
    let no_one = SmmuCaps { stage_one: false, ..CAPS };
    let no_two = SmmuCaps { stage_two: false, ..CAPS };
    for one in [5, 7] {
        let error = without(&[config(one), STAGE_TWO], no_one);
        assert_eq!(error, StreamEntryError::NoStageOne);
    }
    for two in [6, 7] {
        let error = without(&[config(two), STAGE_TWO], no_two);
        assert_eq!(error, StreamEntryError::NoStageTwo);
    }
    assert!(decode(&[config(5), (1, 1 << 30)]).is_err(), "STRW");
    assert_eq!(decode(&[config(5), (1, 2 << 30)]), Err(StreamEntryError::World { got: 2 }));
    for got in [2, 3] {
        let entry = [config(5), (1, u64::from(got) << 28)];
        assert_eq!(decode(&entry), Err(StreamEntryError::Ats { got }));
    }
    let no_ats = SmmuCaps { ats: false, ..CAPS };
    let entry = StreamEntry::from_words(words(&[config(5), (1, 1 << 28)]));
    assert!(!entry.decode(&no_ats).unwrap().ats);
}

#[test]
fn tables_of_descriptors() {
    let table = |fmt: u64, dss: u64, max: u64| {
        decode(&[config(5), (0, fmt << 4 | max << 59), (1, dss)]).map(|context| {
            match context.translation {
                StreamTranslation::StageOne(table) => (table.form, table.default, table.bits),
                other => panic!("{other:?}"),
            }
        })
    };
    let forms = [DescriptorForm::Linear, DescriptorForm::Leaves4K, DescriptorForm::Leaves64K];
    let defaults = [DefaultSubstream::Terminate, DefaultSubstream::Bypass, DefaultSubstream::Zero];
    for (fmt, form) in (0..).zip(forms) {
        for (dss, default) in (0..).zip(defaults) {
            assert_eq!(table(fmt, dss, 16), Ok((form, default, 16)));
        }
    }
    assert_eq!(table(3, 0, 1), Err(StreamEntryError::DescriptorFormat { got: 3 }));
    assert_eq!(table(0, 3, 1), Err(StreamEntryError::DefaultSubstream { got: 3 }));
    let beyond = StreamEntryError::DescriptorBits { got: 17, allowed: 16 };
    assert_eq!(table(0, 0, 17), Err(beyond));
    // With one descriptor, neither field means anything.
    assert_eq!(table(3, 3, 0), Ok((DescriptorForm::Linear, DefaultSubstream::Zero, 0)));

    let linear_only = SmmuCaps { two_level_descriptors: false, ..CAPS };
    for (fmt, supported) in [(0, true), (1, false), (2, false)] {
        let entry = StreamEntry::from_words(words(&[config(5), (0, fmt << 4 | 1 << 59)]));
        assert_eq!(entry.decode(&linear_only).is_ok(), supported, "S1Fmt {fmt}");
    }
}

#[test]
fn stage_two_fields() {
    let with = |bits: u64, caps: &SmmuCaps| {
        let entry = [config(6), (2, STAGE_TWO.1 | bits)];
        StreamEntry::from_words(words(&entry)).decode(caps).map(|context| {
            match context.translation {
                StreamTranslation::StageTwo(two) => two,
                other => panic!("{other:?}"),
            }
        })
    };
    assert_eq!(with(1 << 52, &CAPS), Err(StreamEntryError::BigEndian));
    assert_eq!(with(1 << 57, &CAPS), Err(StreamEntryError::Stall));
    let aarch32 = decode(&[config(6), (2, STAGE_TWO.1 & !(1 << 51))]);
    assert_eq!(aarch32, Err(StreamEntryError::AArch32));
    assert_eq!(with(3 << 46, &CAPS), Err(StreamEntryError::Granule { got: 3 }));
    for (tg, caps) in [
        (0, SmmuCaps { granule_4k: false, ..CAPS }),
        (1, SmmuCaps { granule_64k: false, ..CAPS }),
        (2, SmmuCaps { granule_16k: false, ..CAPS }),
    ] {
        let error = StreamEntryError::Granule { got: tg };
        assert_eq!(with(u64::from(tg) << 46, &caps), Err(error));
    }
    // S2HA, S2HD and S2AFFD.
    let flags = |bits| with(bits, &CAPS).unwrap().format.flags();
    assert_eq!(flags(1 << 56), ArmFlags::Access);
    assert_eq!(flags(1 << 56 | 1 << 55), ArmFlags::AccessDirty);
    assert_eq!(flags(1 << 53), ArmFlags::Ignore);
    let [none, access] = [0, 1].map(|hardware_updates| SmmuCaps { hardware_updates, ..CAPS });
    assert_eq!(with(1 << 56, &none), Err(StreamEntryError::HardwareUpdate));
    assert!(with(1 << 56, &access).is_ok());
    assert_eq!(with(1 << 56 | 1 << 55, &access), Err(StreamEntryError::HardwareUpdate));
    // Start levels that do not go with the input size, and an input larger than the output.
    let geometry = |size: u8, level: u8, caps: &SmmuCaps| {
        let word = u64::from(size) << 32 | u64::from(level) << 38 | 5 << 48 | 1 << 51;
        StreamEntry::from_words(words(&[config(6), (2, word)])).decode(caps).err()
    };
    let wrong =
        |input_size, start_level| Some(StreamEntryError::Geometry { input_size, start_level });
    assert_eq!(geometry(24, 1, &CAPS), None);
    assert_eq!(geometry(16, 2, &CAPS), None);
    assert_eq!(geometry(16, 1, &CAPS), wrong(16, 1));
    assert_eq!(geometry(30, 2, &CAPS), wrong(30, 2));
    assert_eq!(geometry(24, 3, &CAPS), wrong(24, 3));
    let narrow = SmmuCaps { output_bits: 40, ..CAPS };
    assert_eq!(geometry(24, 1, &narrow), None);
    assert_eq!(geometry(23, 1, &narrow), wrong(23, 1));
    // S2PS beyond the unit's own is that, and S2TTB is within.
    let root = |root: u64, caps: &SmmuCaps| {
        let entry = [config(6), STAGE_TWO, (3, root)];
        StreamEntry::from_words(words(&entry)).decode(caps).err()
    };
    assert_eq!(root(1 << 39, &narrow), None);
    assert_eq!(root(1 << 40, &narrow), Some(StreamEntryError::Root { got: 1 << 40 }));
    assert_eq!(root(1 << 40, &CAPS), None);
}
