//! `SET_MSI_BINDING`.

use vfio::{Errno, Refusal, Request, Revision};

use crate::rig::*;

const REVISIONS: [Revision; 4] =
    [Revision::Own, Revision::PasidTableV11, Revision::PasidTableV13, Revision::PasidTableV15];

fn binding(flags: u32, iova: u64, gpa: u64, size: u64) -> Vec<u8> {
    [words(&[32, flags]), [iova, gpa, size].map(u64::to_ne_bytes).concat()].concat()
}

fn call(rig: &Rig, argument: &[u8]) -> Result<u32, Errno> {
    rig.errno(Request::SetMsiBinding, argument)
}

#[test]
fn bind_and_unbind() {
    for revision in REVISIONS {
        let rig = Rig::new(revision, &[&[(A, smmu())]]);
        assert_eq!(call(&rig, &binding(1, 0x8000_0000, 0x8090_0000, 0x1000)), Ok(0));
        // The same once more is no change.
        assert_eq!(call(&rig, &binding(1, 0x8000_0000, 0x8090_0000, 0x1000)), Ok(0));
        assert_eq!(call(&rig, &binding(2, 0x8000_0000, 0, 0)), Ok(0));
        // One that is not known is passed over.
        assert_eq!(call(&rig, &binding(2, 0x8000_0000, 0, 0)), Ok(0));
    }
}

#[test]
fn rules() {
    for revision in REVISIONS {
        let rig = Rig::new(revision, &[&[(A, smmu())]]);
        for flags in [0, 3, 4, 5] {
            assert_eq!(call(&rig, &binding(flags, 0x1000, 0x1000, 0x1000)), Err(Errno::EINVAL));
        }
        for size in [0, 3, 0x2000, 0x1_0000] {
            assert_eq!(call(&rig, &binding(1, 0, 0, size)), Err(Errno::EINVAL), "{size:#x}");
        }
        for argsz in 0..8 {
            let mut argument = binding(1, 0x1000, 0x1000, 0x1000);
            argument[0] = argsz;
            assert_eq!(call(&rig, &argument), Err(Errno::EINVAL));
        }
        for len in 0..32 {
            let argument = &binding(1, 0x1000, 0x1000, 0x1000)[..len];
            assert_eq!(call(&rig, argument), Err(Errno::EFAULT));
        }
        for doorbell in 0..256 {
            assert_eq!(call(&rig, &binding(1, doorbell << 12, 0x1000, 0x1000)), Ok(0));
        }
        assert_eq!(call(&rig, &binding(1, 256 << 12, 0x1000, 0x1000)), Err(Errno::ENOMEM));
    }
}

#[test]
fn where_messages_are_not_translated() {
    for revision in REVISIONS {
        let rig = Rig::new(revision, &[&[(A, vtd())]]);
        let refusal =
            rig.call(Request::SetMsiBinding, &mut binding(1, 0x1000, 0x1000, 0x1000)).unwrap_err();
        assert_eq!((refusal, refusal.errno()), (Refusal::NotNesting, Errno::EINVAL));
        let rig = Rig::apart(revision, &[&[(A, smmu())]]);
        rig.join(&rig.groups[0]).unwrap();
        rig.set_iommu(3).unwrap();
        assert_eq!(call(&rig, &binding(1, 0x1000, 0x1000, 0x1000)), Err(Errno::EINVAL));
    }
}
