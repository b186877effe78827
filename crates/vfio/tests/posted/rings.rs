//! The regions of faults and responses, and the interrupt of faults.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use iommu::{AddressSpace, ContextFault, ContextSource, DeviceContext, FaultReason, Pasid, Vm};
use mem::{Access, Gpa, GuestMemory, Iova, MemoryMap, Segment};
use pci::RequesterId;
use vfio::{DeviceFile, Errno, Handle, Request, Revision, RingCounts};

use crate::rig::*;

const FAULTS: u64 = 9 << 40;
const RESPONSES: u64 = 10 << 40;

/// Tables in which no device has a context.
struct NoContext;

impl ContextSource for NoContext {
    fn lookup(&self, _: &dyn GuestMemory, _: RequesterId) -> Result<DeviceContext, ContextFault> {
        Err(ContextFault { reason: FaultReason::ContextNotPresent, fault_disable: false })
    }
}

/// Two devices of which every access is a fault.
fn rig() -> Rig {
    let rig = Rig::new(Revision::PasidTableV15, &[&[(A, smmu()), (B, smmu())]]);
    rig.vm().set_contexts(Some(Arc::new(NoContext)));
    rig
}

/// The numbers of a ring: client's index, entry size, entries, offset, host's index.
fn header(device: &Arc<dyn DeviceFile>, region: u64) -> [u32; 5] {
    let mut bytes = [0; 20];
    device.read(region, &mut bytes).unwrap();
    let mut words = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
    std::array::from_fn(|_| words.next().unwrap())
}

/// Has a device fault at an address.
fn fault(device: &Arc<dyn DeviceFile>, address: u64) {
    let space = AddressSpace { pasid: Some(Pasid::from_field(5)), privileged: false };
    let channel = device.channel().unwrap();
    let _ = channel.enter().write(space, Iova(address), &[1]).unwrap_err();
}

fn set_event(rig: &Rig, device: &Arc<dyn DeviceFile>) -> Arc<AtomicUsize> {
    let rung = Arc::new(AtomicUsize::new(0));
    let ring = rung.clone();
    let bell = move || {
        ring.fetch_add(1, Ordering::Relaxed);
    };
    let mut argument = words(&[24, 36, 5, 0, 1, 7]);
    let handle = Some(Handle::Event(Arc::new(bell)));
    rig.ask(device, Request::DeviceSetIrqs, &mut argument, handle).unwrap();
    rung
}

/// The entries of a ring, as a client that maps them has them.
fn mapped(device: &Arc<dyn DeviceFile>, region: u64, len: usize) -> MemoryMap {
    let (backing, range) = device.map(region + 4096, len).unwrap();
    assert_eq!(range, 0..len);
    let range = mem::Range::<Gpa>::new(Gpa(0), len as u64).unwrap();
    MemoryMap::new(vec![Segment { range, backing, offset: 0, access: Access::Write }]).unwrap()
}

#[test]
fn a_fault_arrives_in_the_ring_of_its_device() {
    let rig = rig();
    let (a, b) = (rig.open(0, A), rig.open(0, B));
    assert_eq!(header(&a, FAULTS), [0, 64, 512, 4096, 0]);
    let rung = set_event(&rig, &a);
    fault(&a, 0x7000);
    assert!(rung.load(Ordering::Relaxed) > 0);
    assert_eq!(header(&a, FAULTS), [0, 64, 512, 4096, 1]);
    assert_eq!(header(&b, FAULTS), [0, 64, 512, 4096, 0]);
    let mut entry = [0; 64];
    mapped(&a, FAULTS, 512 * 64).read(Gpa(0), &mut entry).unwrap();
    // Unrecoverable; flags PASID and address; PASID 5; write; the address.
    assert_eq!(entry[..8], words(&[1, 0]));
    assert_eq!(entry[12..24], words(&[3, 5, 2]));
    assert_eq!(entry[24..32], 0x7000u64.to_ne_bytes());
    // What is read from the file is the same.
    let mut read = [0; 64];
    a.read(FAULTS + 4096, &mut read).unwrap();
    assert_eq!(read, entry);
    // Across the end of the page of numbers.
    let mut across = [0xee; 68];
    a.read(FAULTS + 4092, &mut across).unwrap();
    assert_eq!((&across[..4], &across[4..]), (&[0; 4][..], &entry[..]));
    a.write(FAULTS, &1u32.to_ne_bytes()).unwrap();
    assert_eq!(header(&a, FAULTS), [1, 64, 512, 4096, 1]);
}

#[test]
fn a_full_ring_drops_and_counts() {
    let rig = rig();
    let a = rig.open(0, A);
    for address in 0..600 {
        fault(&a, 0x1_0000 + address * 0x1000);
        header(&a, FAULTS);
    }
    // One place stays free, or full would look like empty.
    assert_eq!(header(&a, FAULTS)[4], 511);
    let dropped = 600 - 511;
    assert_eq!(a.ring_counts(), RingCounts { faults_dropped: dropped, responses_refused: 0 });
    // The first are there, and after them there is room again.
    a.write(FAULTS, &511u32.to_ne_bytes()).unwrap();
    fault(&a, 0x9000);
    assert_eq!(header(&a, FAULTS), [511, 64, 512, 4096, 0]);
    let mut address = [0; 8];
    a.read(FAULTS + 4096 + 510 * 64 + 24, &mut address).unwrap();
    assert_eq!(u64::from_ne_bytes(address), 0x1_0000 + 510 * 0x1000);
    a.read(FAULTS + 4096 + 511 * 64 + 24, &mut address).unwrap();
    assert_eq!(u64::from_ne_bytes(address), 0x9000);
}

#[test]
fn what_may_be_written() {
    let rig = rig();
    let a = rig.open(0, A);
    for region in [FAULTS, RESPONSES] {
        for (offset, bytes) in [
            (0, &[1, 0, 0][..]),
            (0, &[1, 0, 0, 0, 0]),
            (0, &[0, 2, 0, 0]),
            (0, &[0xff; 4]),
            (4, &[1, 0, 0, 0]),
            (16, &[1, 0, 0, 0]),
            (4096, &[1, 0, 0, 0]),
            ((1 << 40) - 4, &[1, 0, 0, 0]),
        ] {
            assert_eq!(a.write(region + offset, bytes), Err(Errno::EINVAL), "{offset} {bytes:?}");
        }
        assert_eq!(header(&a, region)[0], 0);
        a.write(region, &511u32.to_ne_bytes()).unwrap();
        assert_eq!(header(&a, region)[0], 511);
    }
    for offset in [0, 8 << 40, 11 << 40, u64::MAX] {
        assert_eq!(a.write(offset, &[0; 4]), Err(Errno::EINVAL));
        assert_eq!(a.read(offset, &mut [0; 4]), Err(Errno::EINVAL));
        assert_eq!(a.map(offset, 4096).err(), Some(Errno::EINVAL));
    }
    assert_eq!(a.read(FAULTS + 4096 + 512 * 64 - 3, &mut [0; 4]), Err(Errno::EINVAL));
    assert_eq!(a.read(FAULTS + 4096 + 512 * 64 - 4, &mut [0; 4]), Ok(()));
}

#[test]
fn what_may_be_mapped() {
    let rig = rig();
    let a = rig.open(0, A);
    let end = 512 * 64;
    for (offset, len) in [
        (0, 4096),
        (0, 4096 + end),
        (2048, 4096),
        (4097, 16),
        (4096, end + 1),
        (4096, 0),
        (4096 + end as u64, 1),
        (4096, usize::MAX),
    ] {
        assert_eq!(a.map(FAULTS + offset, len).err(), Some(Errno::EINVAL), "{offset} {len}");
    }
    let (_, range) = a.map(FAULTS + 8192, 4096).unwrap();
    assert_eq!(range, 4096..8192);
}

#[test]
fn responses_are_looked_at_and_answer_nothing() {
    let rig = rig();
    let a = rig.open(0, A);
    let ring = mapped(&a, RESPONSES, 512 * 24);
    assert_eq!(header(&a, RESPONSES), [0, 24, 512, 4096, 0]);
    // One that is in order, and nonsense.
    ring.write(Gpa(0), &words(&[24, 1, 1, 5, 1, 0])).unwrap();
    ring.write(Gpa(24), &[0xff; 24]).unwrap();
    a.write(RESPONSES, &2u32.to_ne_bytes()).unwrap();
    assert_eq!(header(&a, RESPONSES), [2, 24, 512, 4096, 2]);
    assert_eq!(a.ring_counts().responses_refused, 2);
    // As many as the ring holds, at most.
    a.write(RESPONSES, &1u32.to_ne_bytes()).unwrap();
    assert_eq!(a.ring_counts().responses_refused, 2 + 511);
}

#[test]
fn the_interrupt_takes_an_event_and_nothing_else() {
    let rig = rig();
    let a = rig.open(0, A);
    let rung = set_event(&rig, &a);
    let bell = || Some(Handle::Event(Arc::new(|| ())));
    let set = |words_: &[u32], handle| {
        rig.ask(&a, Request::DeviceSetIrqs, &mut words(words_), handle).map(drop)
    };
    let rows: [(&[u32], Option<Handle>, Errno); 13] = [
        (&[24, 36, 4, 0, 1, 7], bell(), Errno::EINVAL),
        (&[24, 36, 6, 0, 1, 7], bell(), Errno::EINVAL),
        (&[24, 36, 5, 1, 1, 7], bell(), Errno::EINVAL),
        (&[24, 36, 5, 0, 2, 7], bell(), Errno::EINVAL),
        (&[24, 36, 5, 0, 0, 7], bell(), Errno::EINVAL),
        (&[24, 36, 5, 0, 1, 7], None, Errno::EBADF),
        (&[24, 36, 5, 0, 1, u32::MAX], bell(), Errno::EINVAL),
        (&[20, 36, 5, 0, 1], bell(), Errno::EINVAL),
        (&[24, 34, 5, 0, 1, 1], None, Errno::EINVAL),
        (&[24, 12, 5, 0, 1, 7], bell(), Errno::EINVAL),
        (&[24, 33, 5, 0, 1, 0], None, Errno::EINVAL),
        (&[24, 0x64, 5, 0, 1, 7], bell(), Errno::EINVAL),
        (&[12, 36, 5], bell(), Errno::EINVAL),
    ];
    for (argument, handle, errno) in rows {
        assert_eq!(set(argument, handle), Err(errno), "{argument:?}");
    }
    // None of which took the event away.
    fault(&a, 0x7000);
    let count = rung.load(Ordering::Relaxed);
    assert!(count > 0);
    header(&a, FAULTS);
    for off in [&[24, 36, 5, 0, 1, u32::MAX][..], &[20, 33, 5, 0, 0]] {
        set_event(&rig, &a);
        set(off, None).unwrap();
    }
    let count = rung.load(Ordering::Relaxed);
    fault(&a, 0x8000);
    header(&a, FAULTS);
    assert_eq!(rung.load(Ordering::Relaxed), count);
}

#[test]
fn faults_that_nobody_looks_at() {
    let rig = rig();
    let (a, b) = (rig.open(0, A), rig.open(0, B));
    let channel = b.channel().unwrap();
    drop(b);
    let space = AddressSpace { pasid: Some(Pasid::from_field(5)), privileged: false };
    let _ = channel.enter().write(space, Iova(0x7000), &[1]).unwrap_err();
    assert_eq!(header(&a, FAULTS)[4], 0);
    assert_eq!(rig.container.undeliverable_faults(), 1);
}
