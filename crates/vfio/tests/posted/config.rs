//! `SET_PASID_TABLE`: every row of its rules, in every layout.

use iommu::{HwptFlags, StageOneTable};
use vfio::{Errno, Request, Revision};

use crate::mock::{By, Mock};
use crate::rig::*;

/// The argument of versions 14 and 15, typed by its offsets.
pub(crate) fn v15(config: u8, base: u64, pasid_bits: u8, s1fmt: u8) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[0] = 40; // argsz
    bytes[4] = 1; // SET
    bytes[8] = 32; // config.argsz
    bytes[12] = 1; // version
    bytes[16..24].copy_from_slice(&base.to_ne_bytes());
    bytes[24] = 1; // format
    bytes[28] = pasid_bits;
    bytes[29] = config;
    bytes[32] = 1; // smmuv3.version
    bytes[36] = s1fmt;
    bytes
}

/// The argument of versions 12 and 13.
fn v13(config: u8, base: u64, pasid_bits: u8, s1fmt: u8) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes[0] = 48;
    bytes[4] = 1;
    bytes[8] = 40;
    bytes[12] = 1;
    bytes[16] = 1; // format
    bytes[24..32].copy_from_slice(&base.to_ne_bytes());
    bytes[32] = pasid_bits;
    bytes[33] = config;
    bytes[36] = 1; // smmuv3.version
    bytes[40] = s1fmt;
    bytes
}

/// The argument of versions 7 to 11.
fn v11(config: u8, base: u64, pasid_bits: u8, s1fmt: u8) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[0] = 40;
    bytes[4] = 1;
    bytes[8] = 1; // version
    bytes[12] = 1; // format
    bytes[16..24].copy_from_slice(&base.to_ne_bytes());
    bytes[24] = pasid_bits;
    bytes[25] = config;
    bytes[32] = 1; // smmuv3.version
    bytes[36] = s1fmt;
    bytes
}

type Layout = fn(u8, u64, u8, u8) -> Vec<u8>;

const LAYOUTS: [(Revision, Layout); 4] = [
    (Revision::Own, v15),
    (Revision::PasidTableV11, v11),
    (Revision::PasidTableV13, v13),
    (Revision::PasidTableV15, v15),
];

const TRANSLATE: u8 = 1;
const BYPASS: u8 = 2;
const ABORT: u8 = 3;
const BASE: u64 = 0x4000_0000;

fn rig(revision: Revision) -> Rig {
    Rig::new(revision, &[&[(A, smmu()), (B, smmu())]])
}

fn set(rig: &Rig, argument: &[u8]) -> Result<u32, Errno> {
    rig.errno(Request::SetPasidTable, argument)
}

fn nested(vm: &Mock) -> Vec<[u64; 2]> {
    let words = |by: By| match by {
        By::Nested(StageOneTable::Smmuv3(words)) => Some(words),
        _ => None,
    };
    vm.attached().into_values().filter_map(words).collect()
}

#[test]
fn translate_bypass_abort_and_unset_in_every_layout() {
    for (revision, layout) in LAYOUTS {
        let rig = rig(revision);
        let vm = rig.vm();
        set(&rig, &layout(TRANSLATE, BASE, 4, 1)).unwrap();
        // S1CDMax 4, S1Fmt 1, Config S1, V; the host makes it nested.
        let first = 4 << 59 | BASE | 1 << 4 | 5 << 1 | 1;
        for [word, _] in nested(&vm) {
            assert_eq!(word, first, "{revision:?}");
        }
        assert_eq!(nested(&vm).len(), 2);
        set(&rig, &layout(BYPASS, 0, 0, 0)).unwrap();
        assert!(vm.attached().values().all(|by| *by == By::StageTwo));
        assert_eq!(vm.attached().len(), 2);
        set(&rig, &layout(ABORT, 0, 0, 0)).unwrap();
        // Config 0 of a valid entry.
        assert_eq!(nested(&vm).len(), 2);
        assert!(nested(&vm).iter().all(|words| words[0] & 0xf == 1));
        set(&rig, &words(&[8, 2])).unwrap();
        assert_eq!(vm.attached().len(), 2);
        assert!(vm.attached().values().all(|by| *by == By::StageTwo));
    }
}

#[test]
fn what_requests_without_pasid_do_is_not_left_out() {
    for s1dss in 0..3 {
        let rig = rig(Revision::PasidTableV15);
        let mut argument = v15(TRANSLATE, BASE, 4, 0);
        argument[37] = s1dss;
        set(&rig, &argument).unwrap();
        assert!(nested(&rig.vm()).iter().all(|words| words[1] & 3 == u64::from(s1dss)));
    }
}

/// Spoils a good argument and sees with which number it is refused, and that nothing changes.
fn refused(revision: Revision, argument: &[u8], errno: Errno, why: &str) {
    let rig = rig(revision);
    let before = rig.vm().snapshot();
    assert_eq!(set(&rig, argument), Err(errno), "{revision:?}: {why}");
    assert_eq!(rig.vm().snapshot(), before, "{revision:?}: {why}");
}

#[test]
fn rule_1_the_first_eight_bytes_have_to_be_there() {
    for (revision, layout) in LAYOUTS {
        for len in 0..8 {
            refused(revision, &layout(TRANSLATE, BASE, 4, 0)[..len], Errno::EFAULT, "short");
        }
    }
}

#[test]
fn rule_2_argsz_is_at_least_eight() {
    for (revision, layout) in LAYOUTS {
        for argsz in 0..8 {
            let mut argument = layout(TRANSLATE, BASE, 4, 0);
            argument[0] = argsz;
            refused(revision, &argument, Errno::EINVAL, "argsz");
        }
    }
}

#[test]
fn rule_3_flags_are_exactly_one() {
    for (revision, layout) in LAYOUTS {
        for flags in [0, 3, 4, 5, 6, 0x8000_0000u32, 0x8000_0001] {
            let mut argument = layout(TRANSLATE, BASE, 4, 0);
            argument[4..8].copy_from_slice(&flags.to_ne_bytes());
            refused(revision, &argument, Errno::EINVAL, "flags");
        }
    }
}

/// Offsets in the whole argument of what the rules are about.
struct Offsets {
    argsz: Option<usize>,
    version: usize,
    format: usize,
    config: usize,
    smmuv3: usize,
}

fn offsets(revision: Revision) -> Offsets {
    match revision {
        Revision::PasidTableV11 => {
            Offsets { argsz: None, version: 8, format: 12, config: 25, smmuv3: 32 }
        }
        Revision::PasidTableV13 => {
            Offsets { argsz: Some(8), version: 12, format: 16, config: 33, smmuv3: 36 }
        }
        _ => Offsets { argsz: Some(8), version: 12, format: 24, config: 29, smmuv3: 32 },
    }
}

#[test]
fn the_fixed_part_and_the_vendors_have_to_be_there() {
    for (revision, layout) in LAYOUTS {
        let good = layout(TRANSLATE, BASE, 4, 0);
        let Offsets { argsz, smmuv3, .. } = offsets(revision);
        let end = smmuv3 + 8;
        // Bytes that are not there at all.
        for len in 8..end {
            let mut argument = good[..len].to_vec();
            argument[0] = len as u8;
            let errno =
                if revision == Revision::Own && len < 8 { Errno::EINVAL } else { Errno::EFAULT };
            refused(revision, &argument, errno, "not there");
        }
        let Some(argsz) = argsz else { continue };
        // Bytes that the size leaves out: the fixed part, and the vendor's.
        for size in 0..end - 8 {
            let mut argument = good.clone();
            argument[argsz] = size as u8;
            refused(revision, &argument, Errno::EINVAL, "size");
        }
        let mut argument = good.clone();
        argument[argsz] = (end - 8) as u8;
        set(&rig(revision), &argument).unwrap();
    }
}

#[test]
fn versions_format_and_config() {
    for (revision, layout) in LAYOUTS {
        let good = layout(TRANSLATE, BASE, 4, 0);
        let Offsets { version, format, config, smmuv3, .. } = offsets(revision);
        let rows: [(usize, &[u8], &str); 6] = [
            (version, &[0, 2, 255], "version"),
            (format, &[0, 2, 255], "format"),
            (config, &[0, 4, 255], "config"),
            (smmuv3, &[0, 2, 255], "vendor's version"),
            (smmuv3 + 4, &[3, 255], "s1fmt"),
            (smmuv3 + 5, &[3, 255], "s1dss"),
        ];
        for (offset, values, why) in rows {
            for &value in values {
                let mut argument = good.clone();
                argument[offset] = value;
                refused(revision, &argument, Errno::EINVAL, why);
            }
        }
    }
}

#[test]
fn what_the_hardware_cannot_take() {
    for (revision, layout) in LAYOUTS {
        let rows = [
            (BASE, 17, 0, "more PASIDs than the SMMU has"),
            (BASE, 255, 0, "more than any"),
            (BASE + 1, 4, 0, "misaligned"),
            (1 << 44, 4, 0, "beyond stage 2"),
            (!63, 16, 0, "past the last address"),
        ];
        for (base, bits, s1fmt, why) in rows {
            refused(revision, &layout(TRANSLATE, base, bits, s1fmt), Errno::EINVAL, why);
            // Without a table that means nothing.
            set(&rig(revision), &layout(BYPASS, base, bits, s1fmt)).unwrap();
        }
    }
}

#[test]
fn translate_after_translate_is_refused_and_the_table_stays() {
    for (revision, layout) in LAYOUTS {
        let rig = rig(revision);
        set(&rig, &layout(TRANSLATE, BASE, 4, 0)).unwrap();
        let before = rig.vm().snapshot();
        let second = layout(TRANSLATE, BASE + 0x1000, 4, 0);
        assert_eq!(set(&rig, &second), Err(Errno::EINVAL));
        assert_eq!(rig.vm().snapshot(), before);
        // Through any of the others it goes.
        for between in [layout(BYPASS, 0, 0, 0), layout(ABORT, 0, 0, 0), words(&[8, 2])] {
            set(&rig, &between).unwrap();
            set(&rig, &second).unwrap();
        }
    }
}

#[test]
fn a_vtd_has_no_table_of_context_descriptors() {
    for (revision, layout) in LAYOUTS {
        let rig = Rig::new(revision, &[&[(A, vtd())]]);
        assert_eq!(set(&rig, &layout(TRANSLATE, BASE, 4, 0)), Err(Errno::EINVAL));
    }
}

#[test]
fn what_is_not_known_is_passed_over_as_posted_and_not_by_ours() {
    for (revision, layout) in LAYOUTS {
        let strict = revision == Revision::Own;
        let good = layout(TRANSLATE, BASE, 4, 0);
        // Beyond the configuration.
        let mut longer = good.clone();
        longer.extend([0; 8]);
        longer[0] += 8;
        if let Some(argsz) = offsets(revision).argsz {
            longer[argsz] += 8;
        }
        set(&rig(revision), &longer).unwrap();
        longer[good.len() + 3] = 1;
        let expected = if strict { Err(Errno::E2BIG) } else { Ok(0) };
        assert_eq!(set(&rig(revision), &longer), expected, "{revision:?}");
    }
    for padding in [30, 31, 38, 39] {
        let mut argument = v15(TRANSLATE, BASE, 4, 0);
        argument[padding] = 1;
        assert_eq!(set(&rig(Revision::PasidTableV15), &argument), Ok(0));
        refused(Revision::Own, &argument, Errno::EINVAL, "padding");
    }
    // A size of the whole that leaves out the configuration matters to us alone.
    let mut argument = v15(TRANSLATE, BASE, 4, 0);
    argument[0] = 8;
    assert_eq!(set(&rig(Revision::PasidTableV15), &argument), Ok(0));
    refused(Revision::Own, &argument, Errno::EFAULT, "left out");
}

#[test]
fn a_failure_at_any_step_restores_what_each_had() {
    for before in [None, Some(BYPASS), Some(ABORT)] {
        for after in [TRANSLATE, BYPASS, ABORT] {
            let mut failures = 0;
            for step in 0..8 {
                let groups: [&[_]; 2] = [&[(A, smmu()), (B, smmu())], &[(C, smmu())]];
                let rig = Rig::new(Revision::PasidTableV15, &groups);
                if let Some(before) = before {
                    set(&rig, &v15(before, 0, 0, 0)).unwrap();
                }
                let snapshot = rig.vm().snapshot();
                rig.vm().fail([step]);
                if set(&rig, &v15(after, BASE, 4, 0)).is_err() {
                    failures += 1;
                    rig.vm().fail([]);
                    assert_eq!(rig.vm().snapshot(), snapshot, "{before:?} {after} {step}");
                    set(&rig, &v15(after, BASE, 4, 0)).unwrap();
                }
            }
            let _ = failures;
        }
    }
    // At least where every step changes something.
    let rig = rig(Revision::PasidTableV15);
    rig.vm().fail([1]);
    assert!(set(&rig, &v15(TRANSLATE, BASE, 4, 0)).is_err());
}

#[test]
fn a_device_that_joins_later_has_the_table() {
    let rig = Rig::apart(Revision::PasidTableV15, &[&[(A, smmu())], &[(B, smmu())]]);
    rig.join(&rig.groups[0]).unwrap();
    rig.set_iommu(6).unwrap();
    set(&rig, &v15(TRANSLATE, BASE, 4, 0)).unwrap();
    rig.join(&rig.groups[1]).unwrap();
    assert_eq!(nested(&rig.vm()).len(), 2);
}

#[test]
fn without_domains_it_is_done_as_posted() {
    let rig = Rig::apart(Revision::PasidTableV15, &[]);
    let mut create = words(&[128, 0, 5]);
    create.resize(128, 0);
    rig.call(Request::CreateVm, &mut create).unwrap();
    assert_eq!(set(&rig, &v15(TRANSLATE, BASE, 4, 0)), Ok(0));
    assert_eq!(set(&rig, &words(&[8, 2])), Ok(0));
}

#[test]
fn the_parent_is_a_nesting_one() {
    let rig = rig(Revision::PasidTableV15);
    let calls = rig.vm().calls();
    let parents = calls.iter().filter(|call| match call {
        crate::mock::Call::AllocHwpt(request) => request.flags.contains(HwptFlags::NEST_PARENT),
        _ => false,
    });
    assert_eq!(parents.count(), 1);
}
