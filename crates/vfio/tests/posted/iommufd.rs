//! iommufd's structures as iommufd has them, without anything of ours after them.

use iommu::{
    HwptFlags, HwptParent, HwptRequest, StageOneInvalidation, StageOneTable, Ticket, Vm,
    VtdStageOne, VtdStageOneFlags,
};
use mem::Gpa;
use vfio::{Errno, Reply, Request, Revision};

use crate::mock::{By, Call};
use crate::rig::*;

/// A container of devices whose translation is iommufd's business.
fn rig(hardware: iommu::Hardware) -> Rig {
    let rig = Rig::apart(Revision::Iommufd, &[&[(A, hardware), (B, hardware)]]);
    rig.join(&rig.groups[0]).unwrap();
    rig.set_iommu(3).unwrap();
    rig
}

/// Makes a call; gives its answer's words.
fn call(rig: &Rig, request: Request, argument: &[u8]) -> Result<(Vec<u32>, Reply), Errno> {
    let mut argument = argument.to_vec();
    let reply = rig.call(request, &mut argument).map_err(|refusal| refusal.errno())?;
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    Ok((argument.chunks_exact(4).map(word).collect(), reply))
}

fn ioas(rig: &Rig) -> u32 {
    call(rig, Request::IoasAlloc, &words(&[12, 0, 0])).unwrap().0[2]
}

/// `IOMMU_HWPT_ALLOC` with these fields.
fn hwpt(flags: u32, pt: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let address = if data.is_empty() { 0 } else { 48 };
    let dev = A.bits().into();
    let len = data.len() as u32;
    [words(&[48, flags, dev, pt, 0, 0, kind, len, address, 0, 0, 0]), data.to_vec()].concat()
}

fn alloc(rig: &Rig, argument: &[u8]) -> Result<u32, Errno> {
    call(rig, Request::HwptAlloc, argument).map(|(words, _)| words[4])
}

fn stage_one(root: u64) -> Vec<u8> {
    [root.to_ne_bytes().to_vec(), words(&[48, 0])].concat()
}

/// A VT-d first stage.
fn vtd_data(flags: u64, root: u64) -> Vec<u8> {
    [flags.to_ne_bytes().to_vec(), stage_one(root)].concat()
}

const NEST_PARENT: u32 = 1;
const PASID: u32 = 8;

#[test]
fn page_tables_stand_on_what_their_number_names() {
    let rig = rig(vtd());
    let ioas = ioas(&rig);
    let parent = alloc(&rig, &hwpt(NEST_PARENT | PASID, ioas, 0, &[])).unwrap();
    let nested = alloc(&rig, &hwpt(PASID, parent, 1, &vtd_data(1, 0x5000))).unwrap();
    assert!(nested != parent);
    let table = VtdStageOne { flags: VtdStageOneFlags::SRE, root: Gpa(0x5000), address_width: 48 };
    let requests: Vec<HwptRequest> = rig
        .vm()
        .calls()
        .into_iter()
        .filter_map(|call| match call {
            Call::AllocHwpt(request) => Some(request),
            _ => None,
        })
        .collect();
    assert_eq!(requests[0].parent, HwptParent::Ioas(iommu::IoasId(ioas)));
    assert_eq!(requests[0].flags, HwptFlags::NEST_PARENT | HwptFlags::PASID);
    assert_eq!(requests[1].parent, HwptParent::Hwpt(iommu::HwptId(parent)));
    assert_eq!(requests[1].data, Some(StageOneTable::Vtd(table)));
    // An id that is gone, or never was, names nothing.
    call(&rig, Request::Destroy, &words(&[8, nested])).unwrap();
    assert_eq!(alloc(&rig, &hwpt(PASID, nested, 1, &vtd_data(0, 0x5000))), Err(Errno::ENOENT));
    assert_eq!(alloc(&rig, &hwpt(0, 0x7777, 0, &[])), Err(Errno::ENOENT));
    let again = call(&rig, Request::Destroy, &words(&[8, nested]));
    assert_eq!(again.err(), Some(Errno::ENOENT));
}

#[test]
fn on_an_smmu_they_stand_on_a_viommu() {
    let rig = rig(smmu());
    let ioas = ioas(&rig);
    let parent = alloc(&rig, &hwpt(NEST_PARENT, ioas, 0, &[])).unwrap();
    let dev = A.bits().into();
    let viommu = |kind: u32| {
        let argument = words(&[40, 0, kind, dev, parent, 0, 0, 0, 0, 0]);
        call(&rig, Request::ViommuAlloc, &argument).map(|(words, _)| words[5])
    };
    for kind in [0, 2, 0x8000_0001] {
        assert_eq!(viommu(kind), Err(Errno::EOPNOTSUPP));
    }
    let viommu = viommu(1).unwrap();
    let vdevice = words(&[24, viommu, dev, 0, 0x80, 0]);
    call(&rig, Request::VdeviceAlloc, &vdevice).unwrap();
    let entry = [5u64 << 1 | 1 | 0x1000, 0].map(u64::to_le_bytes).concat();
    let nested = alloc(&rig, &hwpt(0, viommu, 2, &entry)).unwrap();
    // Its commands go by the vIOMMU.
    let command = [0x11u64 | 7 << 48, 0].map(u64::to_le_bytes).concat();
    let argument = [words(&[32, viommu, 32, 0, 1, 16, 1, 0]), command].concat();
    let (answer, reply) = call(&rig, Request::HwptInvalidate, &argument).unwrap();
    assert_eq!(answer[6], 1);
    assert!(reply.pending.is_some());
    assert_ne!(nested, viommu);
}

#[test]
fn rules_of_hwpt_alloc() {
    let rig = rig(vtd());
    let ioas = ioas(&rig);
    let parent = alloc(&rig, &hwpt(NEST_PARENT, ioas, 0, &[])).unwrap();
    let before = rig.vm().snapshot();
    let good = hwpt(0, parent, 1, &vtd_data(0, 0x5000));
    let spoilt = |offset: usize, value: u8| {
        let mut argument = good.clone();
        argument[offset] = value;
        alloc(&rig, &argument)
    };
    for size in 0..48 {
        assert_eq!(spoilt(0, size), Err(Errno::EINVAL), "{size}");
    }
    for offset in [20, 23, 44, 47] {
        assert_eq!(spoilt(offset, 1), Err(Errno::EOPNOTSUPP), "reserved {offset}");
    }
    assert_eq!(spoilt(4, 16), Err(Errno::EOPNOTSUPP), "a flag that is not known");
    assert_eq!(spoilt(24, 3), Err(Errno::EOPNOTSUPP), "a table that is not known");
    assert_eq!(spoilt(24, 2), Err(Errno::E2BIG), "another table's length, and not zero after it");
    assert_eq!(spoilt(24, 0), Err(Errno::EINVAL), "a length without a type");
    assert_eq!(spoilt(28, 0), Err(Errno::EINVAL), "a type without a length");
    assert_eq!(spoilt(28, 23), Err(Errno::EINVAL), "less than the table has");
    assert_eq!(spoilt(28, 25), Err(Errno::EFAULT), "more than there is");
    assert_eq!(spoilt(32, 47), Err(Errno::EFAULT), "in the structure itself");
    assert_eq!(spoilt(39, 1), Err(Errno::EFAULT), "out of the argument");
    assert_eq!(spoilt(10, 1), Err(Errno::ENOENT), "no device has such a number");
    assert_eq!(spoilt(8, 0xff), Err(Errno::ENOENT), "the VM has no such device");
    assert_eq!(spoilt(48, 8), Err(Errno::EOPNOTSUPP), "flags of the table");
    assert_eq!(spoilt(68, 1), Err(Errno::EOPNOTSUPP), "reserved of the table");
    // A longer structure, as long as what is not known is zero.
    let mut longer = good[..48].to_vec();
    longer.resize(80, 0);
    longer[0] = 80;
    longer[32] = 80;
    longer.extend(&good[48..]);
    longer[79] = 1;
    assert_eq!(alloc(&rig, &longer), Err(Errno::E2BIG));
    // What is ours is not known where today's numbers are spoken.
    longer[79] = 0;
    longer[48] = 2;
    assert_eq!(alloc(&rig, &longer), Err(Errno::EOPNOTSUPP));
    assert_eq!(rig.vm().snapshot(), before);
    longer[48] = 0;
    alloc(&rig, &longer).unwrap();
}

#[test]
fn hardware_in_as_much_room_as_there_is() {
    let rig = rig(vtd());
    let ask = |len: u32, room: usize| {
        let mut argument = words(&[40, 0, A.bits().into(), len, 40, 0, 0, 0, 0, 0]);
        argument.resize(40 + room, 0xee);
        rig.call(Request::GetHwInfo, &mut argument).map(|_| argument).map_err(|e| e.errno())
    };
    let all = ask(24, 24).unwrap();
    // data_len, type, PASID bits, capabilities.
    assert_eq!(all[12..16], 24u32.to_ne_bytes());
    assert_eq!(all[24..40], words(&[1, 20, 4, 0]));
    assert_eq!(ask(0, 0).unwrap()[12..16], 24u32.to_ne_bytes());
    let some = ask(8, 12).unwrap();
    assert_eq!((&some[40..48], &some[48..]), (&[0; 8][..], &[0xee; 4][..]));
    let more = ask(32, 32).unwrap();
    assert_eq!((&more[40..64], &more[64..]), (&all[40..], &[0; 8][..]));
    assert_eq!(ask(25, 24), Err(Errno::EFAULT));
}

#[test]
fn invalidation_stops_at_the_first_bad_entry_and_says_so() {
    let rig = rig(vtd());
    let ioas = ioas(&rig);
    let parent = alloc(&rig, &hwpt(NEST_PARENT | PASID, ioas, 0, &[])).unwrap();
    let nested = alloc(&rig, &hwpt(PASID, parent, 1, &vtd_data(0, 0x5000))).unwrap();
    let entry = |addr: u32, pages: u32, flags: u32| words(&[addr, 0, pages, 0, flags, 0]);
    let request = |kind: u32, len: u32, count: u32, entries: &[Vec<u8>]| {
        let head = words(&[32, nested, 32, 0, kind, len, count, 0]);
        let mut argument = [head, entries.concat()].concat();
        let result = rig.call(Request::HwptInvalidate, &mut argument);
        let done = u32::from_ne_bytes(argument[24..28].try_into().unwrap());
        (done, result.map(|reply| reply.pending.is_some()).map_err(|refusal| refusal.errno()))
    };
    let good = entry(0x1000, 1, 1);
    assert_eq!(request(0, 24, 2, &[good.clone(), good.clone()]), (2, Ok(true)));
    assert_eq!(request(0, 24, 0, &[]), (0, Ok(true)), "only asks");
    rig.vm().calls();
    for (bad, errno) in [
        (entry(0x1001, 1, 0), Errno::EINVAL),
        (entry(0x1000, 1, 2), Errno::EOPNOTSUPP),
        (entry(0, 0, 0x8000_0000), Errno::EOPNOTSUPP),
    ] {
        let entries = [good.clone(), bad, good.clone()];
        assert_eq!(request(0, 24, 3, &entries), (1, Err(errno)));
        let calls = rig.vm().calls();
        let [Call::InvalidateHwpt(_, what)] = calls.as_slice() else { panic!("{calls:?}") };
        assert!(matches!(what.as_slice(), [StageOneInvalidation::Pages { leaf_only: true, .. }]));
    }
    assert_eq!(request(0, 23, 1, std::slice::from_ref(&good)).1, Err(Errno::EINVAL));
    assert_eq!(request(0, 0, 1, std::slice::from_ref(&good)).1, Err(Errno::EINVAL));
    assert_eq!(request(0, 4097, 1, std::slice::from_ref(&good)).1, Err(Errno::EINVAL));
    assert_eq!(request(0, 24, (1 << 19) + 1, std::slice::from_ref(&good)).1, Err(Errno::EINVAL));
    assert_eq!(request(0, 24, 2, std::slice::from_ref(&good)).1, Err(Errno::EFAULT));
    assert_eq!(request(2, 24, 1, std::slice::from_ref(&good)).1, Err(Errno::EOPNOTSUPP));
    assert_eq!(request(1, 16, 1, &[good]).1, Err(Errno::ENOENT), "it is no vIOMMU");
}

#[test]
fn kinds_of_queues() {
    let rig = rig(smmu());
    let (answer, _) =
        call(&rig, Request::FaultQueueAlloc, &words(&[16, 0, 0, 0])).unwrap_or_else(|errno| {
            assert_eq!(errno, Errno::EOPNOTSUPP);
            (vec![16, 0, 1, u32::MAX], Reply::default())
        });
    assert_eq!(answer[3], u32::MAX);
    let queue = |kind: u32| {
        let argument = words(&[32, 0, 0x7777, kind, 16, 0, 0, 0]);
        call(&rig, Request::VeventqAlloc, &argument).map(drop)
    };
    for kind in [0, 2, 0x8000_0001] {
        assert_eq!(queue(kind), Err(Errno::EOPNOTSUPP));
    }
}

#[test]
fn a_device_attaches_by_its_own_file() {
    let rig = rig(vtd());
    rig.grant(5);
    let ioas = ioas(&rig);
    let parent = alloc(&rig, &hwpt(NEST_PARENT | PASID, ioas, 0, &[])).unwrap();
    let first = alloc(&rig, &hwpt(PASID, parent, 1, &vtd_data(0, 0x5000))).unwrap();
    let second = alloc(&rig, &hwpt(PASID, parent, 1, &vtd_data(0, 0x6000))).unwrap();
    let device = rig.open(0, A);
    let attach = |argument: &[u32]| {
        let mut argument = words(argument);
        let reply = rig.ask(&device, Request::AttachIommufdPt, &mut argument, None);
        reply.map(|reply| reply.pending)
    };
    let complete = |ticket: Option<Ticket>| rig.vm().is_complete(ticket.unwrap());
    let root = |place| match rig.vm().attached().get(&place) {
        Some(By::Nested(StageOneTable::Vtd(table))) => Some(table.root.0),
        _ => None,
    };
    let pasid = Some(iommu::GuestPasid(iommu::Pasid::new(5).unwrap()));
    // For requests without PASID, in the shorter structure; and for one PASID.
    assert_eq!(attach(&[12, 0, parent]), Ok(None));
    assert_eq!(attach(&[16, 1, first, 5]), Ok(None));
    assert_eq!(root((A, pasid)), Some(0x5000));
    // Twice is to replace.
    assert!(complete(attach(&[16, 1, second, 5]).unwrap()));
    assert_eq!(root((A, pasid)), Some(0x6000));
    assert_eq!(rig.vm().attached().len(), 2);
    let before = rig.vm().snapshot();
    for (argument, errno) in [
        (&[8, 0][..], Errno::EINVAL),
        (&[16, 2, first, 5], Errno::EINVAL),
        (&[16, 1, first, 1 << 20], Errno::EINVAL),
        (&[16, 1, first, 6], Errno::EACCES),
        (&[16, 1, 0x7777, 5], Errno::ENOENT),
    ] {
        assert_eq!(attach(argument).err(), Some(errno), "{argument:?}");
    }
    assert_eq!(rig.vm().snapshot(), before);
    let detach = |argument: &[u32]| {
        let mut argument = words(argument);
        let reply = rig.ask(&device, Request::DetachIommufdPt, &mut argument, None);
        reply.map(|reply| reply.pending)
    };
    assert_eq!(detach(&[12, 1, 1 << 20]).err(), Some(Errno::EINVAL));
    assert!(complete(detach(&[12, 1, 5]).unwrap()));
    assert_eq!(detach(&[12, 1, 5]).err(), Some(Errno::EINVAL));
    assert!(complete(detach(&[8, 0]).unwrap()));
    assert!(rig.vm().attached().is_empty());
}
