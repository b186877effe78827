//! The posted door on the host in software: what its calls say is what DMA sees.

use iommu::{Hardware, SoftwareHost};
use vfio::{Request, Revision};

#[allow(dead_code)]
mod dma;
#[allow(dead_code)]
mod rings;
use dma::{
    finish, nesting_op, pasid_table, read, Client, DATA, DESCRIPTORS, DEVICE, PASID, ROOT, SMMU,
    VA, VALUE,
};
use rings::words;

#[test]
fn a_first_stage_is_bound_invalidated_and_unbound() {
    let client = Client::new(SoftwareHost::new(), Revision::PasidRequestV7);
    // Present, writable, a user's, accessed.
    client.build(0x27, 0x27);
    let channel = client.channel();
    // Without PASID there is stage 2 alone; with one, nothing yet.
    assert_eq!(read(&channel, None, DATA), VALUE);
    assert!(read(&channel, Some(PASID), VA).is_err());
    assert_eq!(client.faults(), 1);

    assert_eq!(client.call(Request::PasidRequest, &words(&[16, 1, PASID, 9])), PASID);
    client.call(Request::NestingOp, &nesting_op(0));
    assert_eq!(read(&channel, Some(PASID), VA), VALUE);
    assert!(read(&channel, Some(PASID + 1), VA).is_err());
    assert_eq!(client.faults(), 2);

    // The guest takes its page away, and says so.
    client.store(0x4000 + 8 * 0x56, 0);
    let pages = [
        words(&[64, 2, 56, 1, 0x0201, 0, 1, 0, PASID, 0]),
        [VA, 0x1000, 1].map(u64::to_ne_bytes).concat(),
    ];
    client.call(Request::NestingOp, &pages.concat());
    assert!(read(&channel, Some(PASID), VA).is_err());
    assert_eq!(client.faults(), 3);
    let mut entry = [0; 64];
    client.device.read((9 << 40) + 4096 + 2 * 64, &mut entry).unwrap();
    assert_eq!(entry[16..20], PASID.to_ne_bytes());
    assert_eq!(entry[24..32], VA.to_ne_bytes());

    client.build(0x27, 0x27);
    assert_eq!(read(&channel, Some(PASID), VA), VALUE);
    client.call(Request::NestingOp, &nesting_op(1));
    assert!(read(&channel, Some(PASID), VA).is_err());
    assert_eq!(read(&channel, None, DATA), VALUE);
    client.call(Request::PasidRequest, &words(&[16, 2, PASID, PASID]));
    drop(channel);
    finish(client);
}

#[test]
fn a_table_of_context_descriptors_is_translated_bypassed_and_aborted() {
    let host = SoftwareHost::with_hardware(Hardware::Smmuv3(SMMU));
    let client = Client::new(host, Revision::PasidTableV15);
    // A table; a page open to all, with its access flag, of one address space.
    client.build(3, 3 | 1 << 6 | 1 << 10 | 1 << 11);
    // T0SZ 16, EPD1, V, IPS 44 bits, AA64, R, A, ASID 1.
    let descriptor = 16 | 3 << 30 | 4 << 32 | 1 << 41 | 3 << 45 | 1 << 48;
    client.store(DESCRIPTORS + 64 * u64::from(PASID), descriptor);
    client.store(DESCRIPTORS + 64 * u64::from(PASID) + 8, ROOT);
    let channel = client.channel();
    assert_eq!(read(&channel, None, DATA), VALUE);
    assert!(read(&channel, Some(PASID), VA).is_err());

    client.call(Request::SetPasidTable, &pasid_table(1));
    assert_eq!(read(&channel, Some(PASID), VA), VALUE);
    assert!(read(&channel, Some(PASID), VA + 0x1000).is_err());
    assert!(read(&channel, Some(PASID + 1), VA).is_err());
    // Without a substream stage 1 is bypassed (S1DSS).
    assert_eq!(read(&channel, None, DATA), VALUE);

    client.call(Request::SetPasidTable, &pasid_table(3));
    assert!(read(&channel, Some(PASID), VA).is_err());
    assert!(read(&channel, None, DATA).is_err());
    client.call(Request::SetPasidTable, &pasid_table(2));
    assert!(read(&channel, Some(PASID), VA).is_err());
    assert_eq!(read(&channel, None, DATA), VALUE);

    client.call(Request::SetPasidTable, &pasid_table(1));
    assert_eq!(read(&channel, Some(PASID), VA), VALUE);
    // The guest's page goes, and all of the address space is forgotten: TLBI by ASID.
    client.store(0x4000 + 8 * 0x56, 0);
    let space = [words(&[40, 0, 32, 1, 0x0101, 0, 2, 1]), vec![0; 8]].concat();
    client.call(Request::CacheInvalidate, &space);
    assert!(read(&channel, Some(PASID), VA).is_err());

    client.call(Request::SetPasidTable, &words(&[8, 2]));
    assert_eq!(read(&channel, None, DATA), VALUE);
    drop(channel);
    finish(client);
}

#[test]
fn queues_have_numbers_and_no_descriptors() {
    let host = SoftwareHost::with_hardware(Hardware::Smmuv3(SMMU));
    let client = Client::new(host, Revision::Iommufd);
    let answer = |request: Request, argument: &[u32]| {
        let mut argument = words(argument);
        let number = request.number(Revision::Iommufd).unwrap();
        client.container.call(number, &mut argument, None).unwrap();
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        argument.chunks(4).map(word).collect::<Vec<_>>()
    };
    let ioas = answer(Request::IoasAlloc, &[12, 0, 0])[2];
    let device = DEVICE.bits().into();
    let parent = [48, 1, device, ioas, 0, 0, 0, 0, 0, 0, 0, 0];
    let parent = answer(Request::HwptAlloc, &parent)[4];
    let viommu = answer(Request::ViommuAlloc, &[40, 0, 1, device, parent, 0, 0, 0, 0, 0])[5];
    let faults = answer(Request::FaultQueueAlloc, &[16, 0, 0, 0]);
    let events = answer(Request::VeventqAlloc, &[32, 0, viommu, 1, 16, 0, 0, 0]);
    assert_eq!((faults[3], events[6]), (u32::MAX, u32::MAX));
    let ids = [ioas, parent, viommu, faults[2], events[5]];
    assert!(ids.iter().enumerate().all(|(at, id)| *id != 0 && !ids[..at].contains(id)), "{ids:?}");
}
