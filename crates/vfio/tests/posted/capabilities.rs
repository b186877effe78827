//! What is said of containers, devices, regions and interrupts: chains of capabilities.

use vfio::{Errno, Request, Revision};

use crate::rig::*;

/// Asks with room for `len` bytes; gives the answer.
fn ask(rig: &Rig, len: u32) -> Vec<u8> {
    let mut argument = vec![0xee; len as usize];
    argument[..4].copy_from_slice(&len.to_ne_bytes());
    rig.call(Request::IommuGetInfo, &mut argument).unwrap();
    argument
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

/// The capabilities of an answer, by their id: where they begin, and their bytes.
fn chain(answer: &[u8], first: u32) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    let mut at = first as usize;
    while at != 0 {
        let id = u16::from_ne_bytes([answer[at], answer[at + 1]]);
        assert_eq!(answer[at + 2..at + 4], [1, 0], "the version");
        let next = word(answer, at + 4) as usize;
        let end = if next == 0 { answer.len() } else { next };
        found.push((id, answer[at + 8..end].to_vec()));
        assert!(next == 0 || next > at);
        at = next;
    }
    found
}

#[test]
fn an_answer_without_room_says_how_much_it_takes() {
    let rig = Rig::new(Revision::Own, &[&[(A, vtd())]]);
    for len in 0..16u32 {
        let mut argument = vec![0; len as usize];
        argument.get_mut(0).into_iter().for_each(|byte| *byte = len as u8);
        let errno = rig.errno(Request::IommuGetInfo, &argument);
        assert!(matches!(errno, Err(Errno::EINVAL | Errno::EFAULT)));
    }
    let answer = ask(&rig, 24);
    let needed = word(&answer, 0);
    assert!(needed > 24);
    // Flags, page sizes of 4 KiB and more, no capabilities.
    assert_eq!(word(&answer, 4), 3);
    assert_eq!(answer[8..16], [0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(word(&answer, 16), 0);
    let almost = ask(&rig, needed - 1);
    assert_eq!((word(&almost, 0), word(&almost, 16)), (needed, 0));
    assert!(almost[24..].iter().all(|&byte| byte == 0xee));
    let all = ask(&rig, needed);
    assert_eq!((word(&all, 0), word(&all, 16)), (needed, 24));
    // As short as may be: what does not fit is left out.
    let short = ask(&rig, 16);
    assert_eq!(word(&short, 0), needed);
}

#[test]
fn nesting_information_in_each_revision() {
    // FL5LP, FL1GP, SLLPS, MGAW, SAGAW; SMPWC, FLTS, SLTS, SLADS, SMTS, PASID, PSS, SRS, NEST, PT.
    let cap = 1u64 << 60 | 1 << 56 | 3 << 34 | 45 << 16 | 6 << 8;
    let ecap: u64 = 1 << 48 | 7 << 45 | 1 << 43 | 1 << 40 | 19 << 35 | 1 << 31 | 1 << 26 | 1 << 6;
    let registers = [cap.to_ne_bytes(), ecap.to_ne_bytes()].concat();
    let v7 = [words(&[48, 1, 7, 0, 46 | 20 << 16, 0, 0, 0]), registers.clone()].concat();
    let tree = [words(&[64, 0, 1, 3, 46 | 20 << 16, 0, 0, 0, 0, 0, 0, 0]), registers].concat();
    for (revision, id, golden) in [
        (Revision::PasidRequest53, 3, &v7),
        (Revision::PasidRequestV7, 3, &v7),
        (Revision::PasidRequestTree, 4, &tree),
        (Revision::Own, 4, &tree),
    ] {
        let rig = Rig::new(revision, &[&[(A, vtd())]]);
        let needed = word(&ask(&rig, 24), 0);
        let answer = ask(&rig, needed);
        let found = chain(&answer, word(&answer, 16));
        let nesting = found.iter().find(|(found, _)| *found == id).unwrap();
        assert_eq!(&nesting.1, golden, "{revision:?}");
        // DMA_AVAIL has its number where it is not taken.
        let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, if id == 3 { vec![1, 3] } else { vec![1, 3, 4] });
    }
    // An SMMUv3 has nothing to say.
    for (revision, size) in [(Revision::PasidRequestV7, 24), (Revision::Own, 64)] {
        let rig = Rig::new(revision, &[&[(A, smmu())]]);
        let needed = word(&ask(&rig, 24), 0);
        let answer = ask(&rig, needed);
        let (_, nesting) = chain(&answer, word(&answer, 16)).pop().unwrap();
        assert_eq!(word(&nesting, 0), size);
        assert!(nesting[4..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn addresses_and_mappings() {
    let rig = Rig::new(Revision::PasidTableV15, &[&[(A, smmu())]]);
    let answer = ask(&rig, 200);
    let mut found = chain(&answer, word(&answer, 16));
    // What follows the last is not the chain's.
    found.iter_mut().for_each(|(_, body)| body.retain(|&byte| byte != 0xee));
    let ranges = [words(&[1, 0]), vec![0; 8], vec![0xff; 8]].concat();
    let available = [words(&[65535, 0])].concat();
    assert_eq!(found, [(1, ranges), (3, available)]);
}

#[test]
fn a_device_says_what_it_has() {
    let rig = Rig::new(Revision::PasidTableV15, &[&[(A, smmu())]]);
    let device = rig.open(0, A);
    let mut argument = words(&[24, 0, 0, 0, 9, 9]);
    rig.ask(&device, Request::DeviceGetInfo, &mut argument, None).unwrap();
    assert_eq!(argument, words(&[24, 2, 11, 6, 0, 0]));
    let mut short = words(&[12, 0, 0]);
    assert!(rig.ask(&device, Request::DeviceGetInfo, &mut short, None).is_err());
}

#[test]
fn regions() {
    let rig = Rig::new(Revision::PasidTableV15, &[&[(A, smmu())]]);
    let device = rig.open(0, A);
    let region = |index: u32, len: usize| {
        let mut argument = words(&[len as u32, 0, index, 0]);
        argument.resize(len, 0xee);
        rig.ask(&device, Request::DeviceGetRegionInfo, &mut argument, None).map(|_| argument)
    };
    // Those of the function itself are elsewhere.
    for index in 0..9 {
        let answer = region(index, 32).unwrap();
        assert_eq!(answer[4..8], [0; 4]);
        assert_eq!(answer[12..24], [0; 12]);
        assert_eq!(u64::from_ne_bytes(answer[24..].try_into().unwrap()), u64::from(index) << 40);
    }
    for index in [11, u32::MAX] {
        assert_eq!(region(index, 32), Err(Errno::EINVAL));
    }
    for (index, entry, capability) in [(9, 64, 6), (10, 24, 7)] {
        let size = 4096 + 512 * entry;
        // Type, one area that can be mapped, version.
        let needed = 32 + 16 + 32 + 16;
        let answer = region(index, 32).unwrap();
        assert_eq!(answer[..16], words(&[needed, 15, index, 0]));
        let answer = region(index, needed as usize).unwrap();
        assert_eq!(answer[..16], words(&[needed, 15, index, 32]));
        assert_eq!(answer[16..24], u64::from(size).to_ne_bytes());
        assert_eq!(answer[24..32], (u64::from(index) << 40).to_ne_bytes());
        let golden = [
            words(&[1 << 16 | 2, 48, 2, index - 8]),
            words(&[1 << 16 | 1, 80, 1, 0, 4096, 0, 512 * entry, 0]),
            words(&[1 << 16 | capability, 0, 1, 0]),
        ];
        assert_eq!(answer[32..], golden.concat());
    }
}

#[test]
fn interrupts() {
    let rig = Rig::new(Revision::PasidTableV15, &[&[(A, smmu())]]);
    let device = rig.open(0, A);
    let interrupt = |index: u32, len: usize| {
        let mut argument = words(&[len as u32, 0, index, 9]);
        argument.resize(len, 0xee);
        rig.ask(&device, Request::DeviceGetIrqInfo, &mut argument, None).map(|_| argument)
    };
    for index in 0..5 {
        assert_eq!(interrupt(index, 16).unwrap(), words(&[16, 0, index, 0]));
    }
    for index in [6, u32::MAX] {
        assert_eq!(interrupt(index, 16), Err(Errno::EINVAL));
    }
    assert_eq!(interrupt(5, 20).unwrap(), words(&[36, 17, 5, 1, 0]));
    let answer = interrupt(5, 36).unwrap();
    assert_eq!(answer, words(&[36, 17, 5, 1, 20, 1 << 16 | 3, 0, 1, 1]));
}
