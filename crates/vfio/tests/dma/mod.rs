//! A client of the posted door with memory of its own, a guest's tables in it, and a device.

use std::sync::Arc;

use iommu::{AddressSpace, Channel, DmaError, Pasid, SmmuCaps, SoftwareHost, Vm};
use mem::{Access, Backing, Gpa, GuestMemory, HeapMemory, Iova, MemoryMap, Range, Segment};
use pci::RequesterId;
use vfio::{
    Container, DeviceFile, Dispatcher, File, Group, GroupDevice, Handle, Request, Revision,
};

use crate::rings::words;

pub(crate) const DEVICE: RequesterId = RequesterId::from_bits(0x80);
pub(crate) const MEMORY: u64 = 0x10_0000;
/// A first-stage table, and what it maps at [`VA`].
pub(crate) const ROOT: u64 = 0x1000;
pub(crate) const DATA: u64 = 0x8000;
/// Its indices are 0, 4, 0x11a, 0x56.
pub(crate) const VA: u64 = 0x1_2345_6000;
/// An SMMUv3's table of context descriptors.
pub(crate) const DESCRIPTORS: u64 = 0x2_0000;
pub(crate) const PASID: u32 = 5;

pub(crate) const SMMU: SmmuCaps =
    SmmuCaps { substream_bits: 16, output_bits: 44, wide_addresses: false, ..SmmuCaps::FULL };

/// A client: it has files, and memory of its own.
pub(crate) struct Client {
    pub(crate) dispatcher: Dispatcher<SoftwareHost>,
    pub(crate) container: Arc<Container<SoftwareHost>>,
    pub(crate) _group: Group<SoftwareHost>,
    pub(crate) device: Arc<dyn DeviceFile>,
    pub(crate) memory: MemoryMap,
    pub(crate) revision: Revision,
}

impl Client {
    /// As a VMM of that time begins: container, group, kind of IOMMU, device, memory.
    pub(crate) fn new(host: SoftwareHost, revision: Revision) -> Self {
        Self::with_kind(host, revision, 6)
    }

    /// The same without nested translation: that is iommufd's business.
    pub(crate) fn plain(host: SoftwareHost, revision: Revision) -> Self {
        Self::with_kind(host, revision, 3)
    }

    fn with_kind(host: SoftwareHost, revision: Revision, kind: u32) -> Self {
        let dispatcher = Dispatcher::new(host, revision);
        let device = GroupDevice { name: "0000:00:10.0".into(), requester: DEVICE };
        dispatcher.add_group(7, vec![device]).unwrap();
        let container = Arc::new(dispatcher.open_container().unwrap());
        let group = dispatcher.open_group(7).unwrap();
        let number = |request: Request| request.number(revision).unwrap();
        let join = number(Request::GroupSetContainer);
        group.call(join, &mut [], Some(container.handle())).unwrap();
        container.call(number(Request::SetIommu), &mut kind.to_ne_bytes(), None).unwrap();
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
    pub(crate) fn call(&self, request: Request, argument: &[u8]) -> u32 {
        let number = request.number(self.revision).unwrap();
        let reply = self.container.ioctl(number, &mut argument.to_vec(), None).unwrap();
        let vm = self.container.host_vm().unwrap();
        assert!(reply.pending.is_none_or(|ticket| vm.is_complete(ticket)));
        reply.value
    }

    pub(crate) fn store(&self, at: u64, word: u64) {
        self.memory.store_u64(Gpa(at), word).unwrap();
    }

    /// A table of four levels that maps [`VA`] to [`DATA`], with these bits in its entries.
    pub(crate) fn build(&self, table: u64, page: u64) {
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

    pub(crate) fn channel(&self) -> Channel {
        self.device.channel().unwrap()
    }

    pub(crate) fn faults(&self) -> u32 {
        let mut host = [0; 4];
        self.device.read((9 << 40) + 16, &mut host).unwrap();
        u32::from_ne_bytes(host)
    }
}

pub(crate) fn read(channel: &Channel, pasid: Option<u32>, address: u64) -> Result<u64, DmaError> {
    let space = AddressSpace { pasid: pasid.map(Pasid::from_field), privileged: false };
    let mut bytes = [0; 8];
    channel.enter().read(space, Iova(address), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(crate) const VALUE: Result<u64, DmaError> = Ok(0x1122_3344_5566_7788);

/// `NESTING_OP` with Linux 5.10's structure.
pub(crate) fn nesting_op(op: u32) -> Vec<u8> {
    let mut argument = words(&[80, op, 72, 1, 1, 48, 1, 0, ROOT as u32, 0, PASID, 0, PASID, 0]);
    argument.resize(80, 0);
    argument
}

/// Everything closed, the host has nothing left.
pub(crate) fn finish(client: Client) {
    let Client { dispatcher, container, _group: group, device, .. } = client;
    drop((device, group, container));
    assert_eq!(dispatcher.host().vms(), 0);
    dispatcher.host().check_books().unwrap();
}

/// `SET_PASID_TABLE` of versions 14 and 15: a linear table of 16 descriptors.
pub(crate) fn pasid_table(config: u32) -> Vec<u8> {
    words(&[40, 1, 32, 1, DESCRIPTORS as u32, 0, 1, config << 8 | 4, 1, 1 << 8])
}
