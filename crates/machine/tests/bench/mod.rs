//! A machine with some memory, and a guest that knows the registers.
#![allow(dead_code)] // each test file uses a part

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iommu::{AddressSpace, Endpoint, Host, Pasid, SoftwareHost, SoftwareVm, Vm, VmConfig};
use machine::{BaseMismatch, Machine, MachineConfig, Member, MessageSink};
use mem::{Access, Backing, BackingId, Claim, Gpa, GuestMemory, HeapMemory, Iova, Range};
use pci::{Function, RequesterId};
use vtd::model::{Caps, Options};

/// 00:10.0.
pub(crate) const DEVICE: RequesterId = RequesterId::from_bits(0x80);
pub(crate) const BASE: Gpa = Gpa(0xe000_0000);
pub(crate) const NO_PASID: AddressSpace = AddressSpace { pasid: None, privileged: false };
pub(crate) const PASID: AddressSpace =
    AddressSpace { pasid: Some(Pasid::from_field(1)), privileged: false };
/// Where [`PAGE_A`] is mapped in the address space of [`PASID`].
pub(crate) const VIRTUAL: Iova = Iova(0x40_0000);
/// The leaf entry of [`VIRTUAL`].
pub(crate) const PAGE_TABLE: Gpa = Gpa(0x8000);
pub(crate) const PAGE_A: Gpa = Gpa(0x2_0000);
pub(crate) const PAGE_B: Gpa = Gpa(0x2_1000);
pub(crate) const STATUS: Gpa = Gpa(0x9000);
const QUEUE: u64 = 0xa000;
const MEMORY: u64 = 1 << 20;
pub(crate) const ALL_MEMORY: Range<Gpa> = Range { start: Gpa(0), last: Gpa(MEMORY - 1) };

pub(crate) type Sent = (Option<RequesterId>, Gpa, u32);

#[derive(Default)]
struct Messages(Mutex<Vec<Sent>>);

impl MessageSink for Messages {
    fn send(&self, requester: Option<RequesterId>, address: Gpa, data: u32) {
        self.0.lock().unwrap().push((requester, address, data));
    }
}

pub(crate) struct Bench {
    pub(crate) machine: Machine<SoftwareVm>,
    /// What reports the memory.
    pub(crate) member: Member<SoftwareVm>,
    backing: Mutex<Option<Arc<HeapMemory>>>,
    messages: Arc<Messages>,
    wakes: Arc<AtomicUsize>,
    pub(crate) mismatches: Arc<Mutex<Vec<BaseMismatch>>>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::on(&SoftwareHost::new())
    }

    pub(crate) fn on(host: &SoftwareHost) -> Self {
        let vm = host.create_vm(VmConfig { name: "guest".into() }).unwrap();
        let caps = Caps::new(Options::default()).unwrap();
        let config = MachineConfig { caps, register_base: BASE, devices: vec![DEVICE] };
        let messages = Arc::new(Messages::default());
        let wakes = Arc::new(AtomicUsize::new(0));
        let mismatches = Arc::new(Mutex::new(Vec::new()));
        let waker = {
            let wakes = wakes.clone();
            Arc::new(move || drop(wakes.fetch_add(1, Ordering::Relaxed)))
        };
        let report = {
            let mismatches = mismatches.clone();
            move |mismatch| mismatches.lock().unwrap().push(mismatch)
        };
        let machine = Machine::new(vm, config, messages.clone(), waker, report).unwrap();
        let backing = Mutex::new(Some(Arc::new(HeapMemory::new(MEMORY as usize).unwrap())));
        let member = machine.join();
        let bench = Self { machine, member, backing, messages, wakes, mismatches };
        bench.member.map(bench.claim()).unwrap();
        bench
    }

    pub(crate) fn backing(&self) -> Arc<HeapMemory> {
        self.backing.lock().unwrap().clone().unwrap()
    }

    pub(crate) fn forget_backing(&self) {
        *self.backing.lock().unwrap() = None;
    }

    /// The whole memory, as each function reports it.
    pub(crate) fn claim(&self) -> Claim {
        let id = BackingId { dev: 1, ino: 2, offset: 0 };
        let backing: Arc<dyn Backing> = self.backing();
        Claim { range: ALL_MEMORY, id, backing, offset: 0, access: Access::Write }
    }

    pub(crate) fn attach(&self) -> Endpoint {
        self.machine.vm().attach(DEVICE).unwrap()
    }

    pub(crate) fn messages(&self) -> Vec<Sent> {
        self.messages.0.lock().unwrap().clone()
    }

    pub(crate) fn wakes(&self) -> usize {
        self.wakes.load(Ordering::Relaxed)
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.machine.iommu_function().bar_read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.machine.iommu_function().bar_read(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        self.machine.iommu_function().bar_write(0, offset, &value.to_le_bytes());
    }

    pub(crate) fn write64(&self, offset: u64, value: u64) {
        self.machine.iommu_function().bar_write(0, offset, &value.to_le_bytes());
    }

    pub(crate) fn store(&self, at: Gpa, words: &[u64]) {
        let memory = self.machine.vm().memory();
        for (at, word) in (at.0..).step_by(8).zip(words) {
            memory.store_u64(Gpa(at), *word).unwrap();
        }
    }

    pub(crate) fn load(&self, at: Gpa) -> u64 {
        self.machine.vm().memory().load_u64(at).unwrap()
    }

    pub(crate) fn store_bytes(&self, at: Gpa, bytes: &[u8]) {
        self.machine.vm().memory().write(at, bytes).unwrap();
    }

    pub(crate) fn load_bytes<const N: usize>(&self, at: Gpa) -> [u8; N] {
        let mut bytes = [0; N];
        self.machine.vm().memory().read(at, &mut bytes).unwrap();
        bytes
    }

    /// Four levels that map [`VIRTUAL`] to [`PAGE_A`] and the next page to [`PAGE_B`], with
    /// `bits` in each entry (7 for a user's first-stage table, 3 for a second-stage one).
    pub(crate) fn store_page_tables(&self, bits: u64) {
        self.store(Gpa(0x5000), &[0x6000 | bits]);
        self.store(Gpa(0x6000), &[0x7000 | bits]);
        self.store(Gpa(0x7000 + 2 * 8), &[PAGE_TABLE.0 | bits]);
        self.store(PAGE_TABLE, &[PAGE_A.0 | bits, PAGE_B.0 | bits]);
    }

    /// As Linux does: tables, queue, root pointer, translation. PASID 0 passes through, PASID 1
    /// has a first-stage table, both of domain 1.
    pub(crate) fn enable_scalable_mode(&self) {
        self.store(Gpa(0x1000), &[0, 0x2001]);
        self.store(Gpa(0x2000), &[0x3000 | 7 << 9 | 0b1101, 0, 0, 0]);
        self.store(Gpa(0x3000), &[0x4001]);
        let pass_through = [4 << 6 | 2 << 2 | 1, 1 << 23 | 1, 0, 0, 0, 0, 0, 0];
        let first_stage = [1 << 6 | 2 << 2 | 1, 1 << 23 | 1, 0x5000, 0, 0, 0, 0, 0];
        self.store(Gpa(0x4000), &pass_through);
        self.store(Gpa(0x4040), &first_stage);
        self.store_page_tables(7);

        self.write64(0x88, 0);
        self.write64(0x90, QUEUE | 0x800);
        self.write32(0x18, 1 << 26);
        self.write64(0x20, 0x1400);
        self.write32(0x18, 1 << 30 | 1 << 26);
        self.write32(0x18, 1 << 31 | 1 << 26);
    }

    pub(crate) fn unmask_faults(&self) {
        self.write32(0x3c, 0x41);
        self.write32(0x40, 0xfee0_1000);
        self.write32(0x38, 0);
    }

    /// Puts descriptors into the queue and moves its tail.
    pub(crate) fn submit(&self, descriptors: &[[u64; 2]]) {
        let mut tail = self.read64(0x88);
        for [low, high] in descriptors {
            self.store(Gpa(QUEUE + tail), &[*low, *high, 0, 0]);
            tail = (tail + 32) % 4096;
        }
        self.write64(0x88, tail);
    }

    /// Moves the tail of a queue that may not be there any more.
    pub(crate) fn submit_blind(&self) {
        self.write64(0x88, 32);
    }
}
