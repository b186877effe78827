//! A guest that knows the unit's registers, on the software host, with memory of its own.

use iommu::{AddressSpace, Endpoint, Host, Pasid, SoftwareHost, SoftwareVm, Vm, VmConfig};
use mem::{Gpa, GuestMemory, Iova, MemoryMap};
use pci::RequesterId;
use vtd::model::{Caps, Effects, Message, Model, Options, Progress, DESCRIPTORS_PER_POLL};

/// 00:10.0.
pub(crate) const DEVICE: RequesterId = RequesterId::from_bits(0x80);
pub(crate) const NO_PASID: AddressSpace = AddressSpace { pasid: None, privileged: false };
pub(crate) const PASID: AddressSpace = with_pasid(1);
/// Where [`PAGE_A`] is mapped in the address space of [`PASID`].
pub(crate) const VIRTUAL: Iova = Iova(0x40_0000);
/// The leaf entry of [`VIRTUAL`].
pub(crate) const PAGE_TABLE: Gpa = Gpa(0x8000);
pub(crate) const PAGE_A: Gpa = Gpa(0x2_0000);
pub(crate) const PAGE_B: Gpa = Gpa(0x2_1000);
pub(crate) const STATUS: Gpa = Gpa(0x9000);
pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const QIE: u32 = 1 << 26;
const QUEUE: u64 = 0xa000;

pub(crate) const fn with_pasid(number: u32) -> AddressSpace {
    AddressSpace { pasid: Pasid::new(number), privileged: false }
}

pub(crate) struct Guest {
    pub(crate) vm: SoftwareVm,
    pub(crate) model: Model<SoftwareVm>,
    pub(crate) messages: Vec<Message>,
    /// Whether the unit asked to be polled since the last poll.
    pub(crate) scheduled: bool,
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self::on(&SoftwareHost::new())
    }

    /// A guest with 1 MiB of memory.
    pub(crate) fn on(host: &SoftwareHost) -> Self {
        let vm = host.create_vm(VmConfig::named("guest")).unwrap();
        let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 1 << 20)]).unwrap());
        let model = Model::new(Caps::new(Options::default()).unwrap(), vm.clone());
        Self { vm, model, messages: Vec::new(), scheduled: false }
    }

    pub(crate) fn attach(&self) -> Endpoint {
        self.vm.attach(DEVICE).unwrap()
    }

    pub(crate) fn read32(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.model.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn read64(&mut self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.model.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn write32(&mut self, offset: u64, value: u32) {
        let effects = self.model.write(offset, &value.to_le_bytes());
        self.perform(effects);
    }

    pub(crate) fn write64(&mut self, offset: u64, value: u64) {
        let effects = self.model.write(offset, &value.to_le_bytes());
        self.perform(effects);
    }

    fn perform(&mut self, effects: Effects) {
        self.messages.extend(effects.messages());
        self.scheduled |= effects.schedule;
    }

    pub(crate) fn poll(&mut self) -> Progress {
        self.scheduled = false;
        let polled = self.model.poll(DESCRIPTORS_PER_POLL);
        self.perform(polled.effects);
        polled.progress
    }

    pub(crate) fn store(&self, at: Gpa, words: &[u64]) {
        let memory = self.vm.memory();
        for (at, word) in (at.0..).step_by(8).zip(words) {
            memory.store_u64(Gpa(at), *word).unwrap();
        }
    }

    pub(crate) fn load(&self, at: Gpa) -> u64 {
        self.vm.memory().load_u64(at).unwrap()
    }

    pub(crate) fn store_bytes(&self, at: Gpa, bytes: &[u8]) {
        self.vm.memory().write(at, bytes).unwrap();
    }

    pub(crate) fn load_bytes<const N: usize>(&self, at: Gpa) -> [u8; N] {
        let mut bytes = [0; N];
        self.vm.memory().read(at, &mut bytes).unwrap();
        bytes
    }

    /// Four levels that map [`VIRTUAL`] to [`PAGE_A`], with `bits` in each entry (7 for a user's
    /// first-stage table, 3 for a second-stage one).
    pub(crate) fn store_page_tables(&self, bits: u64) {
        self.store(Gpa(0x5000), &[0x6000 | bits]);
        self.store(Gpa(0x6000), &[0x7000 | bits]);
        self.store(Gpa(0x7000 + 2 * 8), &[PAGE_TABLE.0 | bits]);
        self.store(PAGE_TABLE, &[PAGE_A.0 | bits]);
    }

    /// As Linux does: tables, queue, root pointer, translation.
    pub(crate) fn enable_scalable_mode(&mut self) {
        self.store_scalable_tables();
        self.write64(0x88, 0);
        self.write64(0x90, QUEUE | 0x800);
        self.write32(0x18, QIE);
        self.write64(0x20, 0x1400);
        self.write32(0x18, SRTP | QIE);
        self.write32(0x18, TE | QIE);
    }

    /// PASID 0 passes through, PASID 1 has a first-stage table, both of domain 1.
    pub(crate) fn store_scalable_tables(&self) {
        self.store(Gpa(0x1000), &[0, 0x2001]);
        self.store(Gpa(0x2000), &[0x3000 | 7 << 9 | 0b1101, 0, 0, 0]);
        self.store(Gpa(0x3000), &[0x4001]);
        let pass_through = [4 << 6 | 2 << 2 | 1, 1 << 23 | 1, 0, 0, 0, 0, 0, 0];
        let first_stage = [1 << 6 | 2 << 2 | 1, 1 << 23 | 1, 0x5000, 0, 0, 0, 0, 0];
        self.store(Gpa(0x4000), &pass_through);
        self.store(Gpa(0x4040), &first_stage);
        self.store_page_tables(7);
    }

    /// Puts descriptors into the queue and moves its tail.
    pub(crate) fn submit(&mut self, descriptors: &[[u64; 2]]) {
        let mut tail = self.read64(0x88);
        for [low, high] in descriptors {
            self.store(Gpa(QUEUE + tail), &[*low, *high, 0, 0]);
            tail = (tail + 32) % 4096;
        }
        self.write64(0x88, tail);
    }

    /// Invalidates [`VIRTUAL`] of [`PASID`], and a wait that stores `data` to [`STATUS`].
    pub(crate) fn invalidate(&mut self, data: u32) {
        let wait = [0x25 | u64::from(data) << 32, STATUS.0];
        self.submit(&[[0x0000_0001_0001_0036, VIRTUAL.0], wait]);
    }
}
