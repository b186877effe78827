//! The same behind an SMMUv3.

use pgtable::{ArmStageTwo, Granule};

use super::*;
use crate::format::smmuv3::StreamEntry;
use crate::{
    DefaultSubstream, DescriptorForm, DescriptorTable, Hardware, SmmuCaps, SmmuStageTwo,
    StreamContext, StreamTranslation, Vmid,
};

const SMMU: SmmuCaps = match Hardware::SMMUV3 {
    Hardware::Smmuv3(caps) => caps,
    Hardware::Vtd(_) => panic!("an SMMUv3"),
};

fn stream(translation: StreamTranslation) -> DeviceContext {
    DeviceContext::Smmuv3(StreamContext {
        vmid: Vmid(1),
        translation,
        privilege: None,
        ats: false,
        caps: SMMU,
    })
}

/// An entry that points into memory: a table, a page or a block, mostly usable.
fn arm_entry() -> impl Strategy<Value = u64> {
    let page = || (0..MEMORY >> 12).prop_map(|page| page << 12);
    prop_oneof![
        6 => (page(), 0..0x1000u64).prop_map(|(page, flags)| page | flags | 0x403),
        2 => (page(), any::<u64>()).prop_map(|(page, high)| page | high << 51 | 0x4c3),
        1 => (page(), 0..0x1000u64).prop_map(|(page, flags)| page | flags & !2 | 1),
        1 => any::<u64>(),
    ]
}

/// A context descriptor with tables in memory; each field is sometimes wrong.
fn descriptor() -> impl Strategy<Value = [u64; 8]> {
    let root = || (0..MEMORY >> 12).prop_map(|page| page << 12);
    let fields = (12..41u64, 0..4u64, 12..41u64, 0..4u64, 0..8u64);
    (fields, root(), root(), any::<u64>(), prop::bool::weighted(0.1)).prop_map(
        |((low, tg0, high, tg1, ips), ttb0, ttb1, noise, bad)| {
            let sizes = low | tg0 << 6 | high << 16 | tg1 << 22 | ips << 32;
            // EPD0 and EPD1, AFFD, TBI, HA and HD, ASID.
            let free = 1 << 14 | 1 << 30 | 1 << 35 | 3 << 38 | 3 << 42 | 0xffff << 48;
            let word0 = sizes | noise & free | 1 << 31 | 1 << 41 | 1 << 45 | 1 << 46;
            let word0 = if bad { word0 ^ noise } else { word0 };
            [word0, ttb0 | noise & 0xa, ttb1 | noise & 2, 0, 0, 0, 0, 0]
        },
    )
}

fn stage_two() -> impl Strategy<Value = SmmuStageTwo> {
    let granule = prop_oneof![Just(Granule::Kib4), Just(Granule::Kib16), Just(Granule::Kib64)];
    (granule, 25..49u8, 0..MEMORY >> 12).prop_map(|(granule, bits, page)| SmmuStageTwo {
        root: Gpa(page << 12),
        format: ArmStageTwo::new(granule, bits, 48).unwrap(),
        record: true,
    })
}

fn table() -> impl Strategy<Value = DescriptorTable> {
    let form = prop_oneof![
        Just(DescriptorForm::Linear),
        Just(DescriptorForm::Leaves4K),
        Just(DescriptorForm::Leaves64K),
    ];
    let default = prop_oneof![Just(DefaultSubstream::Bypass), Just(DefaultSubstream::Zero)];
    let root = prop_oneof![4 => Just(0x1000), 1 => any::<u64>().prop_map(|root| root & !0x3f)];
    (root, 0..=20u8, form, default).prop_map(|(root, bits, form, default)| DescriptorTable {
        root: Gpa(root),
        bits,
        form,
        default,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_refused_within_the_step_bound(
        words in prop::collection::vec(arm_entry(), 0x2000),
        descriptors in prop::collection::vec(descriptor(), 64),
        table in table(),
        two in prop::option::of(stage_two()),
        requests in prop::collection::vec(
            (prop::option::of(0..1u32 << 20), any::<bool>(), any::<u64>(), 0..65u32, any::<bool>()),
            64,
        ),
    ) {
        let memory = Counting::new(words);
        for (at, word) in (0x1000..).step_by(8).zip(descriptors.iter().flatten()) {
            memory.map.store_u64(Gpa(at), *word).unwrap();
        }
        let context = stream(match two {
            None => StreamTranslation::StageOne(table),
            Some(two) => StreamTranslation::Nested(table, two),
        });
        for (pasid, privileged, address, shift, write) in requests {
            let access = if write { Access::Write } else { Access::Read };
            // Addresses of every width, in both halves.
            let address = address.checked_shr(shift).unwrap_or(0);
            let address = if privileged { !address } else { address };
            let pasid = pasid.map(|pasid| if write { pasid } else { pasid & 0x3f });
            let (answer, accesses) =
                translate(&memory, context, space(pasid, privileged), address, access);
            prop_assert!(accesses <= MAX_TABLE_ACCESSES, "{accesses}");
            if let Ok(target) = answer {
                prop_assert!(target.output.0.checked_add(target.len_minus_one).is_some());
            }
        }
    }

    /// A stream-table entry of any content is decoded or refused.
    #[test]
    fn any_entry_is_decoded_or_refused(words in any::<[u64; 8]>(), address in any::<u64>()) {
        let memory = Counting::new(Vec::new());
        let mut entry = StreamEntry::from_words(words);
        entry.word0.set_valid(true);
        for decoded in [entry.decode(&SMMU), entry.decode_over_host(&SMMU)] {
            let Ok(context) = decoded else { continue };
            let context = DeviceContext::Smmuv3(context);
            let (_, accesses) =
                translate(&memory, context, space(Some(1), false), address, Access::Read);
            prop_assert!(accesses <= MAX_TABLE_ACCESSES);
        }
    }
}

/// Descriptors and tables right at the end of the address space do not wrap around.
#[test]
fn pointers_at_the_end_of_the_address_space() {
    let memory = Counting::new([u64::MAX]);
    for form in [DescriptorForm::Linear, DescriptorForm::Leaves4K, DescriptorForm::Leaves64K] {
        for root in [u64::MAX, !0x3f, !0xfff] {
            let default = DefaultSubstream::Terminate;
            let table = DescriptorTable { root: Gpa(root), bits: 20, form, default };
            let context = stream(StreamTranslation::StageOne(table));
            let (answer, _) =
                translate(&memory, context, space(Some(0xf_ffff), false), 0, Access::Read);
            let expected = match form {
                DescriptorForm::Linear => FaultReason::PasidEntryAccess,
                _ => FaultReason::PasidDirectoryAccess,
            };
            assert_eq!(answer.unwrap_err().reason, expected);
        }
    }
    // A leaf at the last page that a pointer can name is no memory here.
    let (form, default) = (DescriptorForm::Leaves4K, DefaultSubstream::Terminate);
    let table = DescriptorTable { root: Gpa(0), bits: 6, form, default };
    let context = stream(StreamTranslation::StageOne(table));
    let (answer, _) = translate(&memory, context, space(Some(0x3f), false), 0, Access::Read);
    assert_eq!(answer.unwrap_err().reason, FaultReason::PasidEntryAccess);
}

/// A model that gives a nonsensical context is the guest's misfortune, not ours.
#[test]
fn contexts_out_of_range() {
    let memory = Counting::new([0]);
    for bits in [21, 32, 63, 64, 255] {
        let (form, default) = (DescriptorForm::Linear, DefaultSubstream::Terminate);
        let table = DescriptorTable { root: Gpa(0), bits, form, default };
        let context = stream(StreamTranslation::StageOne(table));
        for pasid in [0, 0xf_ffff] {
            let (answer, _) =
                translate(&memory, context, space(Some(pasid), false), 0, Access::Read);
            assert!(answer.is_err(), "{bits} {pasid}");
        }
    }
    for output_bits in [0, 31, 64, 255] {
        let context = StreamContext {
            vmid: Vmid(0),
            translation: StreamTranslation::Bypass,
            privilege: None,
            ats: false,
            caps: SmmuCaps { output_bits, ..SMMU },
        };
        let context = DeviceContext::Smmuv3(context);
        let (answer, _) = translate(&memory, context, space(None, false), 1 << 62, Access::Read);
        assert_eq!(answer.is_ok(), output_bits >= 64);
    }
}
