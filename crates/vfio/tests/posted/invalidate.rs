//! `CACHE_INVALIDATE` to the domains of a container, in both layouts.

use iommu::Vm;
use vfio::{Errno, Request, Revision};

use crate::mock::Call;
use crate::rig::*;

const REVISIONS: [Revision; 3] =
    [Revision::PasidTableV11, Revision::PasidTableV13, Revision::PasidTableV15];

/// An argument with this cache and granularity, and a scope.
fn argument(revision: Revision, cache: u8, granularity: u8, scope: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[0, 0]);
    if revision == Revision::PasidTableV11 {
        bytes.extend([1, 0, 0, 0, cache, granularity, 0, 0]);
        bytes.extend(scope);
        bytes.resize(56, 0);
    } else {
        bytes.extend([16 + scope.len() as u8, 0, 0, 0, 1, 0, 0, 0]);
        bytes.extend([cache, granularity, 0, 0, 0, 0, 0, 0]);
        bytes.extend(scope);
    }
    bytes[0] = bytes.len() as u8;
    bytes
}

fn asid(flags: u32, archid: u32) -> Vec<u8> {
    [words(&[flags, archid]), 5u64.to_ne_bytes().to_vec()].concat()
}

fn pages(flags: u32, archid: u32, address: u64, granule: u64, count: u64) -> Vec<u8> {
    let numbers = [5, address, granule, count].map(u64::to_ne_bytes).concat();
    [words(&[flags, archid]), numbers].concat()
}

fn rig(revision: Revision) -> Rig {
    let rig = Rig::new(revision, &[&[(A, smmu())], &[(B, smmu())]]);
    let config = match revision {
        Revision::PasidTableV15 => crate::config::v15(1, 0x1000, 4, 0),
        _ => return rig,
    };
    rig.call(Request::SetPasidTable, &mut { config }).unwrap();
    rig
}

fn call(rig: &Rig, argument: &[u8]) -> Result<u32, Errno> {
    rig.errno(Request::CacheInvalidate, argument)
}

#[test]
fn all_of_an_address_space_and_pages_of_it() {
    for revision in REVISIONS {
        let rig = rig(revision);
        rig.vm().calls();
        let commands = |argument: &[u8]| -> Vec<[u64; 2]> {
            call(&rig, argument).unwrap();
            let of = |call| match call {
                Call::InvalidateViommu(commands) => commands,
                other => panic!("{other:?}"),
            };
            rig.vm().calls().into_iter().flat_map(of).collect()
        };
        // TLBI_NH_ALL, once for each device.
        let all = commands(&argument(revision, 1, 0, &[]));
        assert_eq!(all, [[0x10, 0]; 2], "{revision:?}");
        // TLBI_NH_ASID.
        let space = commands(&argument(revision, 1, 1, &asid(2, 0x1234)));
        assert_eq!(space, [[0x1234 << 48 | 0x11, 0]; 2]);
        // TLBI_NH_VA with its leaf flag, and TLBI_NH_VAA.
        let page = commands(&argument(revision, 1, 2, &pages(6, 0x1234, 0x7000, 0x1000, 1)));
        assert!(page.iter().all(|command| command[0] & 0xff == 0x12));
        assert!(page.iter().all(|command| command[1] & 1 == 1));
        let page = commands(&argument(revision, 1, 2, &pages(0, 0, 0x7000, 0x1000, 1)));
        assert!(page.iter().all(|command| command[0] & 0xff == 0x13));
    }
}

#[test]
fn what_an_smmu_has_no_command_for() {
    for revision in REVISIONS {
        let rig = rig(revision);
        let rows: [(u8, u8, Vec<u8>, Errno); 9] = [
            (4, 0, vec![], Errno::ENOENT),
            (2, 1, asid(2, 1), Errno::ENOENT),
            (5, 0, vec![], Errno::ENOENT),
            (1, 1, asid(1, 0), Errno::ENOENT),
            (1, 2, pages(1, 0, 0x7000, 0x1000, 1), Errno::ENOENT),
            // What no IOMMU has: a combination, an address space without a name, no cache.
            (2, 0, vec![], Errno::EINVAL),
            (4, 2, pages(2, 1, 0x7000, 0x1000, 1), Errno::EINVAL),
            (1, 1, asid(0, 1), Errno::EINVAL),
            (0, 0, vec![], Errno::EINVAL),
        ];
        rig.vm().calls();
        for (cache, granularity, scope, errno) in rows {
            let argument = argument(revision, cache, granularity, &scope);
            assert_eq!(call(&rig, &argument), Err(errno), "{revision:?} {cache} {granularity}");
        }
        assert_eq!(rig.vm().calls(), []);
    }
}

#[test]
fn what_cannot_be_read() {
    for revision in REVISIONS {
        let rig = rig(revision);
        rig.vm().calls();
        let good = argument(revision, 1, 2, &pages(2, 1, 0x7000, 0x1000, 1));
        let v11 = revision == Revision::PasidTableV11;
        let refused = |argument: &[u8], errno, why: &str| {
            assert_eq!(call(&rig, argument), Err(errno), "{revision:?} {why}");
        };
        for len in 0..good.len() {
            refused(&good[..len], Errno::EFAULT, "not there");
        }
        for argsz in 0..8 {
            let mut argument = good.clone();
            argument[0] = argsz;
            refused(&argument, Errno::EINVAL, "argsz");
        }
        let (version, cache, granularity) = if v11 { (8, 12, 13) } else { (12, 16, 17) };
        let padding = if v11 { 14..16 } else { 18..24 };
        let rows = [(4, 1, "flags"), (version, 2, "version"), (cache, 9, "cache")];
        for (offset, value, why) in rows.into_iter().chain([(granularity, 3, "granularity")]) {
            let mut argument = good.clone();
            argument[offset] = value;
            refused(&argument, Errno::EINVAL, why);
        }
        for offset in padding {
            let mut argument = good.clone();
            argument[offset] = 1;
            refused(&argument, Errno::EINVAL, "padding");
        }
        if !v11 {
            // The size leaves out the granularity's part.
            for (granularity, needed) in [(0, 16), (1, 32), (2, 56)] {
                for size in 0..needed {
                    let mut argument = argument(revision, 1, granularity, &[0; 40]);
                    argument[8] = size;
                    refused(&argument, Errno::EINVAL, "size");
                }
            }
        }
        for (flags, granule, address, count) in [
            (10, 0x1000, 0x7000, 1),
            (2, 0x1001, 0x7000, 1),
            (2, 0, 0, 1),
            (2, 0x1000, 0x7001, 1),
            (2, 0x1000, 0x7000, 0),
            (2, 0x1000, 0x7000, u64::MAX),
        ] {
            let argument = argument(revision, 1, 2, &pages(flags, 1, address, granule, count));
            refused(&argument, Errno::EINVAL, "range");
        }
        assert_eq!(rig.vm().calls(), [], "{revision:?}");
    }
}

#[test]
fn it_is_over_when_it_returns() {
    let rig = rig(Revision::PasidTableV15);
    let mut all = argument(Revision::PasidTableV15, 1, 0, &[]);
    let reply = rig.call(Request::CacheInvalidate, &mut all).unwrap();
    assert!(rig.vm().is_complete(reply.pending.unwrap()));
}
