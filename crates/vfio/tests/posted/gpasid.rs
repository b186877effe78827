//! `NESTING_OP`: guest PASIDs bound one by one, in both layouts, and its other operations.

use iommu::{StageOneTable, VtdStageOne, VtdStageOneFlags};
use mem::Gpa;
use vfio::{Errno, Request, Revision};

use crate::mock::By;
use crate::rig::*;

const ROOT: u64 = 0x1234_5000;

/// `NESTING_OP` with the structure of Linux 5.10, typed by its offsets.
fn v510(op: u32, pasid: u64) -> Vec<u8> {
    let mut bytes = vec![0; 80];
    bytes[0] = 80; // argsz
    bytes[4..8].copy_from_slice(&op.to_ne_bytes());
    bytes[8] = 72; // data.argsz
    bytes[12] = 1; // version
    bytes[16] = 1; // format
    bytes[20] = 48; // addr_width
    bytes[24] = 1; // GPASID_VAL
    bytes[32..40].copy_from_slice(&ROOT.to_ne_bytes());
    bytes[40..48].copy_from_slice(&pasid.to_ne_bytes());
    bytes[48..56].copy_from_slice(&pasid.to_ne_bytes());
    bytes
}

/// The same with the structure of Linux 5.3.
fn v53(op: u32, pasid: u64) -> Vec<u8> {
    let mut bytes = vec![0; 80];
    bytes[0] = 80;
    bytes[4..8].copy_from_slice(&op.to_ne_bytes());
    bytes[8] = 1; // version
    bytes[12] = 1; // format
    bytes[16] = 1; // GPASID_VAL
    bytes[24..32].copy_from_slice(&ROOT.to_ne_bytes());
    bytes[32..40].copy_from_slice(&pasid.to_ne_bytes());
    bytes[40..48].copy_from_slice(&pasid.to_ne_bytes());
    bytes[48] = 48; // addr_width
    bytes
}

type Layout = fn(u32, u64) -> Vec<u8>;

const LAYOUTS: [(Revision, Layout); 4] = [
    (Revision::Own, v510),
    (Revision::PasidRequest53, v53),
    (Revision::PasidRequestV7, v510),
    (Revision::PasidRequestTree, v510),
];

const BIND: u32 = 0;
const UNBIND: u32 = 1;
const INVALIDATE: u32 = 2;

fn rig(revision: Revision) -> Rig {
    let rig = Rig::new(revision, &[&[(A, vtd()), (B, vtd())]]);
    rig.grant(5);
    rig
}

fn op(rig: &Rig, argument: &[u8]) -> Result<u32, Errno> {
    rig.errno(Request::NestingOp, argument)
}

/// What PASIDs of the devices are translated by.
fn bound(rig: &Rig) -> Vec<StageOneTable> {
    let nested = |(place, by): (_, By)| match (place, by) {
        ((_, Some(_)), By::Nested(table)) => Some(table),
        _ => None,
    };
    rig.vm().attached().into_iter().filter_map(nested).collect()
}

#[test]
fn bind_and_unbind_in_every_layout() {
    for (revision, layout) in LAYOUTS {
        let rig = rig(revision);
        op(&rig, &layout(BIND, 5)).unwrap();
        let table =
            VtdStageOne { flags: VtdStageOneFlags::empty(), root: Gpa(ROOT), address_width: 48 };
        assert_eq!(bound(&rig), [StageOneTable::Vtd(table); 2], "{revision:?}");
        assert_eq!(op(&rig, &layout(BIND, 5)), Err(Errno::EBUSY));
        assert_eq!(bound(&rig).len(), 2);
        op(&rig, &layout(UNBIND, 5)).unwrap();
        assert_eq!(bound(&rig), []);
        // As posted, unbinding never fails; ours says that there was nothing.
        let again = if revision == Revision::Own { Err(Errno::EINVAL) } else { Ok(0) };
        assert_eq!(op(&rig, &layout(UNBIND, 5)), again);
        // The PASID is the VM's as before.
        op(&rig, &layout(BIND, 5)).unwrap();
    }
}

fn refused(revision: Revision, argument: &[u8], errno: Errno, why: &str) {
    let rig = rig(revision);
    let before = rig.vm().snapshot();
    assert_eq!(op(&rig, argument), Err(errno), "{revision:?}: {why}");
    assert_eq!(rig.vm().snapshot(), before, "{revision:?}: {why}");
}

#[test]
fn every_field_that_can_be_wrong() {
    // Offsets in Linux 5.10's, and in 5.3's.
    let rows: [(usize, usize, u8, Errno, &str); 9] = [
        (12, 8, 2, Errno::EINVAL, "version"),
        (16, 12, 0, Errno::EINVAL, "no format"),
        (16, 12, 2, Errno::EINVAL, "another format"),
        (20, 48, 39, Errno::EINVAL, "width"),
        (21, 49, 1, Errno::EINVAL, "width past a byte"),
        (24, 16, 3, Errno::EINVAL, "flags"),
        (32, 24, 1, Errno::EINVAL, "misaligned root"),
        (39, 31, 1, Errno::EINVAL, "root beyond stage 2"),
        (48, 40, 6, Errno::EOPNOTSUPP, "a number of the guest's that is another"),
    ];
    for (revision, layout) in LAYOUTS {
        for (new, old, value, errno, why) in rows {
            let mut argument = layout(BIND, 5);
            let offset = if revision == Revision::PasidRequest53 { old } else { new };
            argument[offset] = value;
            refused(revision, &argument, errno, why);
        }
        for pasid in [0, 1 << 20, u64::MAX, 1 << 32 | 5] {
            refused(revision, &layout(BIND, pasid), Errno::EINVAL, "no PASID");
        }
        refused(revision, &layout(BIND, 6), Errno::EACCES, "not granted");
    }
}

#[test]
fn flags_of_a_first_stage() {
    for (revision, layout) in LAYOUTS {
        // In both layouts the vendor's part is the last 16 bytes.
        let with = |flags: u64| {
            let mut argument = layout(BIND, 5);
            argument[64..72].copy_from_slice(&flags.to_ne_bytes());
            argument
        };
        for (flags, known) in [
            (1, VtdStageOneFlags::SRE),
            (2, VtdStageOneFlags::EAFE),
            (65, VtdStageOneFlags::SRE | VtdStageOneFlags::WPE),
        ] {
            let rig = rig(revision);
            op(&rig, &with(flags)).unwrap();
            let is_so =
                |table: &StageOneTable| matches!(table, StageOneTable::Vtd(t) if t.flags == known);
            assert!(bound(&rig).iter().all(is_so));
            assert_eq!(bound(&rig).len(), 2);
        }
        for flags in [4, 8, 16, 32, 128, 1 << 63] {
            refused(revision, &with(flags), Errno::EINVAL, "flags of the vendor's");
        }
    }
}

#[test]
fn sizes() {
    for (revision, layout) in LAYOUTS {
        let good = layout(BIND, 5);
        for len in 0..8 {
            refused(revision, &good[..len], Errno::EFAULT, "header not there");
            let mut argument = good.clone();
            argument[0] = len as u8;
            refused(revision, &argument, Errno::EINVAL, "argsz");
        }
        for len in 8..80 {
            let mut argument = good[..len].to_vec();
            argument[0] = len as u8;
            refused(revision, &argument, Errno::EFAULT, "data not there");
        }
        if revision == Revision::PasidRequest53 {
            continue;
        }
        for size in 0..72 {
            let mut argument = good.clone();
            argument[8] = size;
            refused(revision, &argument, Errno::EINVAL, "data's size");
        }
        for padding in 56..64 {
            let mut argument = good.clone();
            argument[padding] = 1;
            refused(revision, &argument, Errno::EINVAL, "padding");
        }
    }
}

#[test]
fn operations_and_flags() {
    for (revision, layout) in LAYOUTS {
        for flags in [4, 0xffff, 0x1_0000, 0x8000_0000] {
            refused(revision, &layout(flags, 5), Errno::EINVAL, "operation");
        }
        if revision != Revision::Own {
            refused(revision, &layout(3, 5), Errno::EINVAL, "ours alone");
        }
    }
}

#[test]
fn it_is_for_a_container_with_one_group() {
    for (revision, layout) in LAYOUTS {
        let rig = Rig::new(revision, &[&[(A, vtd())], &[(B, vtd())]]);
        rig.grant(5);
        assert_eq!(op(&rig, &layout(BIND, 5)), Err(Errno::EINVAL));
        assert_eq!(bound(&rig), []);
    }
}

#[test]
fn an_smmu_binds_no_pasids_one_by_one() {
    for (revision, layout) in LAYOUTS {
        let rig = Rig::new(revision, &[&[(A, smmu())]]);
        for operation in [BIND, UNBIND, INVALIDATE] {
            assert_eq!(op(&rig, &layout(operation, 5)), Err(Errno::EOPNOTSUPP));
        }
    }
}

#[test]
fn it_is_for_nested_translation() {
    for (revision, layout) in LAYOUTS {
        let rig = Rig::apart(revision, &[&[(A, vtd())]]);
        rig.join(&rig.groups[0]).unwrap();
        rig.set_iommu(3).unwrap();
        assert_eq!(op(&rig, &layout(BIND, 5)), Err(Errno::EINVAL));
    }
}

#[test]
fn a_bind_that_fails_at_the_second_device_leaves_nothing_behind() {
    for (revision, layout) in LAYOUTS {
        let mut failures = 0;
        for step in 0..6 {
            let rig = rig(revision);
            let before = rig.vm().snapshot();
            rig.vm().fail([step]);
            if op(&rig, &layout(BIND, 5)).is_err() {
                failures += 1;
                assert_eq!(rig.vm().snapshot(), before, "{revision:?} {step}");
                rig.vm().fail([]);
                op(&rig, &layout(BIND, 5)).unwrap();
            }
        }
        assert!(failures >= 2, "{revision:?}");
    }
}

/// An invalidation of one PASID in 5.10's and in 5.3's layout.
fn invalidation(revision: Revision, pasid: u64) -> Vec<u8> {
    let mut bytes = words(&[0, INVALIDATE]);
    if revision == Revision::PasidRequest53 {
        bytes.extend([1, 0, 0, 0, 1, 1, 0, 0]);
    } else {
        bytes.extend([32, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]);
    }
    bytes.extend(words(&[1, 0]));
    bytes.extend(pasid.to_ne_bytes());
    // 5.3's structure has no size, so all of it has to be there.
    bytes.resize(bytes.len().max(56), 0);
    if revision != Revision::PasidRequest53 {
        bytes.truncate(40);
    }
    bytes[0] = bytes.len() as u8;
    bytes
}

#[test]
fn invalidation_of_what_is_bound() {
    for (revision, layout) in LAYOUTS {
        let rig = rig(revision);
        op(&rig, &layout(BIND, 5)).unwrap();
        rig.vm().calls();
        op(&rig, &invalidation(revision, 5)).unwrap();
        let calls = rig.vm().calls();
        assert_eq!(calls.len(), 2, "{revision:?} {calls:?}");
        // What is not bound: an error of ours, and none as posted.
        let result = op(&rig, &invalidation(revision, 6));
        let expected = if revision == Revision::Own { Err(Errno::ENOENT) } else { Ok(0) };
        assert_eq!(result, expected, "{revision:?}");
        // What cannot be read is one in any case.
        let mut argument = invalidation(revision, 5);
        let version = if revision == Revision::PasidRequest53 { 8 } else { 12 };
        argument[version] = 2;
        assert_eq!(op(&rig, &argument), Err(Errno::EINVAL));
    }
}

#[test]
fn page_responses_answer_nothing_yet() {
    let rig = rig(Revision::Own);
    let response =
        |version, flags, pasid, code| words(&[32, 3, 24, version, flags, pasid, 1, code]);
    assert_eq!(op(&rig, &response(1, 1, 5, 0)), Err(Errno::EINVAL));
    let refusal = rig.call(Request::NestingOp, &mut response(1, 1, 5, 0)).unwrap_err();
    assert_eq!(refusal, vfio::Refusal::NoPageRequest);
    for argument in [
        response(2, 1, 5, 0),
        response(1, 2, 5, 0),
        response(1, 1, 1 << 20, 0),
        response(1, 0, 0, 3),
    ] {
        let refusal = rig.call(Request::NestingOp, &mut argument.clone()).unwrap_err();
        assert_ne!(refusal, vfio::Refusal::NoPageRequest);
        assert_eq!(refusal.errno(), Errno::EINVAL);
    }
}
