//! The posted door on the host in software: what its calls say is what DMA sees.

use std::sync::Arc;

use iommu::{AddressSpace, Channel, DmaError, Hardware, Pasid, SmmuCaps, SoftwareHost, Vm};
use mem::{Access, Backing, Gpa, GuestMemory, HeapMemory, Iova, MemoryMap, Range, Segment};
use pci::RequesterId;
use vfio::{
    Container, DeviceFile, Dispatcher, File, Group, GroupDevice, Handle, Request, Revision,
};

const DEVICE: RequesterId = RequesterId::from_bits(0x80);
const MEMORY: u64 = 0x10_0000;
/// A first-stage table, and what it maps at [`VA`].
const ROOT: u64 = 0x1000;
const DATA: u64 = 0x8000;
/// Its indices are 0, 4, 0x11a, 0x56.
const VA: u64 = 0x1_2345_6000;
/// An SMMUv3's table of context descriptors.
const DESCRIPTORS: u64 = 0x2_0000;
const PASID: u32 = 5;

const SMMU: SmmuCaps = SmmuCaps {
    stage_one: true,
    stage_two: true,
    substream_bits: 16,
    two_level_descriptors: true,
    granule_4k: true,
    granule_16k: true,
    granule_64k: true,
    output_bits: 44,
    wide_addresses: false,
    hardware_updates: 2,
    asid_16: true,
    ats: true,
};

/// A client: it has files, and memory of its own.
struct Client {
    dispatcher: Dispatcher<SoftwareHost>,
    container: Container<SoftwareHost>,
    _group: Group<SoftwareHost>,
    device: Arc<dyn DeviceFile>,
    memory: MemoryMap,
    revision: Revision,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Client {
    /// As a VMM of that time begins: container, group, kind of IOMMU, device, memory.
    fn new(host: SoftwareHost, revision: Revision) -> Self {
        let dispatcher = Dispatcher::new(host, revision);
        let device = GroupDevice { name: "0000:00:10.0".into(), requester: DEVICE };
        dispatcher.add_group(7, vec![device]).unwrap();
        let container = dispatcher.open_container().unwrap();
        let group = dispatcher.open_group(7).unwrap();
        let number = |request: Request| request.number(revision).unwrap();
        let join = number(Request::GroupSetContainer);
        group.call(join, &mut [], Some(container.handle())).unwrap();
        container.call(number(Request::SetIommu), &mut 6u32.to_ne_bytes(), None).unwrap();
        let mut name = *b"0000:00:10.0\0";
        let reply = group.call(number(Request::GroupGetDeviceFd), &mut name, None).unwrap();
        let backing: Arc<dyn Backing> = Arc::new(HeapMemory::new(MEMORY as usize).unwrap());
        let mut map = words(&[32, 3, 0, 0, 0, 0, MEMORY as u32, 0]);
        let handle = Some(Handle::Memory(backing.clone()));
        container.call(number(Request::MapDma), &mut map, handle).unwrap();
        let range = Range::<Gpa>::new(Gpa(0), MEMORY).unwrap();
        let segment = Segment { range, backing, offset: 0, access: Access::Write };
        let memory = MemoryMap::new(vec![segment]).unwrap();
        let device = reply.file.unwrap();
        Self { dispatcher, container, _group: group, device, memory, revision }
    }

    /// A call that is over when this returns; gives its value.
    fn call(&self, request: Request, argument: &[u8]) -> u32 {
        let number = request.number(self.revision).unwrap();
        let reply = self.container.ioctl(number, &mut argument.to_vec(), None).unwrap();
        let vm = self.container.host_vm().unwrap();
        assert!(reply.pending.is_none_or(|ticket| vm.is_complete(ticket)));
        reply.value
    }

    fn store(&self, at: u64, word: u64) {
        self.memory.store_u64(Gpa(at), word).unwrap();
    }

    /// A table of four levels that maps [`VA`] to [`DATA`], with these bits in its entries.
    fn build(&self, table: u64, page: u64) {
        for (at, to, bits) in [
            (ROOT, 0x2000, table),
            (0x2000 + 8 * 4, 0x3000, table),
            (0x3000 + 8 * 0x11a, 0x4000, table),
            (0x4000 + 8 * 0x56, DATA, page),
        ] {
            self.store(at, to | bits);
        }
        self.store(DATA, 0x1122_3344_5566_7788);
    }

    fn channel(&self) -> Channel {
        self.device.channel().unwrap()
    }

    fn faults(&self) -> u32 {
        let mut host = [0; 4];
        self.device.read((9 << 40) + 16, &mut host).unwrap();
        u32::from_ne_bytes(host)
    }
}

fn read(channel: &Channel, pasid: Option<u32>, address: u64) -> Result<u64, DmaError> {
    let space = AddressSpace { pasid: pasid.map(Pasid::from_field), privileged: false };
    let mut bytes = [0; 8];
    channel.enter().read(space, Iova(address), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

const VALUE: Result<u64, DmaError> = Ok(0x1122_3344_5566_7788);

/// `NESTING_OP` with Linux 5.10's structure.
fn nesting_op(op: u32) -> Vec<u8> {
    let mut argument = words(&[80, op, 72, 1, 1, 48, 1, 0, ROOT as u32, 0, PASID, 0, PASID, 0]);
    argument.resize(80, 0);
    argument
}

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

/// Everything closed, the host has nothing left.
fn finish(client: Client) {
    let Client { dispatcher, container, _group: group, device, .. } = client;
    drop((device, group, container));
    assert_eq!(dispatcher.host().vms(), 0);
    dispatcher.host().check_books().unwrap();
}

/// `SET_PASID_TABLE` of versions 14 and 15: a linear table of 16 descriptors.
fn pasid_table(config: u32) -> Vec<u8> {
    words(&[40, 1, 32, 1, DESCRIPTORS as u32, 0, 1, config << 8 | 4, 1, 1 << 8])
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
