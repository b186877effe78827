//! A guest made by hand: memory, tables written bit by bit (not by the code under test), and a
//! device in front of it.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod device_tlb_scenarios;
pub mod hosted;
pub mod hosted_model;
pub mod request_model;
pub mod requests;
pub mod scenarios;
pub mod smmu;
pub mod smmu_hosted;
pub mod smmu_scenarios;

use std::sync::{Arc, Mutex};

use iommu::format::vtd::{DirectoryEntry, PasidEntry};
use iommu::{
    AddressSpace, Channel, ContextFault, ContextSource, DeviceContext, DmaError, DomainId,
    Endpoint, FaultReason, Host, Invalidation, Layout, Pasid, PasidRange, PasidTable,
    SecondStageLevels, SoftwareHost, SoftwareVm, StageTwoConfig, StageTwoFormat, TableCaps, Ticket,
    Vm, VmConfig,
};
use mem::{Access, Gpa, GuestMemory, Iova, MemoryMap};
use pci::RequesterId;

/// Bytes of the guest's memory.
pub const MEMORY: u64 = 16 << 20;
/// Tables are allocated from here on; below is data.
pub const TABLES: u64 = 8 << 20;
/// A guest physical address that is no memory.
pub const NOWHERE: u64 = 0x4000_0000;

pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 2;
pub const USER: u64 = 4;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
pub const LARGE: u64 = 1 << 7;
pub const NO_EXECUTE: u64 = 1 << 63;

pub const SS_READ: u64 = 1;
pub const SS_WRITE: u64 = 2;
pub const SS_ACCESSED: u64 = 1 << 8;
pub const SS_DIRTY: u64 = 1 << 9;

pub const DOMAIN: DomainId = DomainId(7);
pub const DEVICE: RequesterId = RequesterId::from_bits(0x0080);

pub fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

pub fn with(number: u32) -> AddressSpace {
    AddressSpace { pasid: Some(pasid(number)), privileged: false }
}

pub fn without() -> AddressSpace {
    AddressSpace { pasid: None, privileged: false }
}

pub const CAPS: TableCaps = TableCaps { address_bits: 46, ..TableCaps::FULL };

/// A source of one context for every device.
pub struct Context(pub Mutex<Result<DeviceContext, ContextFault>>);

impl ContextSource for Context {
    fn lookup(
        &self,
        _memory: &dyn GuestMemory,
        _requester: RequesterId,
    ) -> Result<DeviceContext, ContextFault> {
        *self.0.lock().unwrap()
    }
}

/// What guests have below them: nothing, or a shuffled stage 2 where the tests are run over one.
pub const STAGE_TWO: Option<StageTwoConfig> = match env!("CARGO_CRATE_NAME").as_bytes() {
    b"over_stage_two" => Some(SHUFFLED),
    _ => None,
};

/// A stage 2 of VT-d with frames in disorder.
pub const SHUFFLED: StageTwoConfig = StageTwoConfig {
    format: StageTwoFormat::Vtd { levels: SecondStageLevels::Four },
    layout: Layout::Shuffled { seed: 1 },
};

/// `direct`, or over a stage 2 `over`: what is said of an address where no memory is.
pub fn of_no_memory<T>(direct: T, over: T) -> T {
    match STAGE_TWO {
        None => direct,
        Some(_) => over,
    }
}

pub struct Guest {
    pub host: SoftwareHost,
    pub vm: SoftwareVm,
    pub memory: Arc<MemoryMap>,
    pub context: Arc<Context>,
    pub directory: Gpa,
    next_table: u64,
}

impl Guest {
    /// A guest with a PASID directory of 10 PASID bits and nothing in it.
    pub fn new() -> Self {
        Self::on(&SoftwareHost::new())
    }

    pub fn on(host: &SoftwareHost) -> Self {
        Self::with(host, VmConfig::named("guest"))
    }

    pub fn with(host: &SoftwareHost, config: VmConfig) -> Self {
        let config = VmConfig { stage_two: config.stage_two.or(STAGE_TWO), ..config };
        let vm = host.create_vm(config).unwrap();
        let memory = Arc::new(MemoryMap::anonymous(&[(Gpa(0), MEMORY)]).unwrap());
        let _ = vm.set_memory(MemoryMap::clone(&memory));
        let absent = ContextFault { reason: FaultReason::ContextNotPresent, fault_disable: false };
        let mut guest = Self {
            host: host.clone(),
            vm,
            memory,
            context: Arc::new(Context(Mutex::new(Err(absent)))),
            directory: Gpa(0),
            next_table: TABLES,
        };
        guest.directory = guest.table();
        guest.set_context(DeviceContext::PasidTable(guest.pasid_table()));
        guest.vm.set_contexts(Some(guest.context.clone()));
        guest
    }

    pub fn pasid_table(&self) -> PasidTable {
        PasidTable {
            directory: self.directory,
            pasid_bits: 10,
            rid_pasid: pasid(0),
            rid_privileged: false,
            pasid_enable: true,
            ats: true,
            page_requests: false,
            fault_disable: false,
            caps: CAPS,
        }
    }

    pub fn set_context(&self, context: DeviceContext) {
        *self.context.0.lock().unwrap() = Ok(context);
        self.settle(Invalidation::ContextAll);
    }

    pub fn attach(&self) -> (Endpoint, Channel) {
        let endpoint = self.vm.attach(DEVICE).unwrap();
        let channel = endpoint.channel();
        (endpoint, channel)
    }

    /// A zeroed page for a table.
    pub fn table(&mut self) -> Gpa {
        let table = Gpa(self.next_table);
        self.next_table += 0x1000;
        assert!(self.next_table <= MEMORY, "out of table pages");
        self.memory.write(table, &[0; 4096]).unwrap();
        table
    }

    /// The entry for `address` in a table of `levels` levels, at `level`; tables on the way are
    /// made with the flags `link`.
    pub fn entry(&mut self, root: Gpa, levels: u32, address: u64, level: u32, link: u64) -> Gpa {
        let mut table = root;
        for at in (level..=levels).rev() {
            let index = address >> (12 + 9 * (at - 1)) & 0x1ff;
            let entry = Gpa(table.0 + index * 8);
            if at == level {
                return entry;
            }
            let held = self.memory.load_u64(entry).unwrap();
            table = Gpa(held & 0x000f_ffff_ffff_f000);
            if held == 0 {
                table = self.table();
                self.memory.store_u64(entry, table.0 | link).unwrap();
            }
        }
        unreachable!()
    }

    /// Writes the first-stage entry for `address` in a 4-level table.
    pub fn set_first(&mut self, root: Gpa, address: u64, level: u32, entry: u64) -> Gpa {
        let at = self.entry(root, 4, address, level, PRESENT | WRITABLE | USER);
        self.memory.store_u64(at, entry).unwrap();
        at
    }

    /// Writes the second-stage entry for `address` in a 4-level table.
    pub fn set_second(&mut self, root: Gpa, address: u64, level: u32, entry: u64) -> Gpa {
        let at = self.entry(root, 4, address, level, SS_READ | SS_WRITE);
        self.memory.store_u64(at, entry).unwrap();
        at
    }

    /// A second-stage table that maps all memory to itself, by pages of 4 KiB or 2 MiB.
    pub fn identity_second(&mut self, large: bool) -> Gpa {
        let root = self.table();
        let (level, step) = if large { (2, 2 << 20) } else { (1, 4096) };
        for address in (0..MEMORY).step_by(step) {
            let large = if large { LARGE } else { 0 };
            self.set_second(root, address, level, address | SS_READ | SS_WRITE | large);
        }
        root
    }

    /// Where the entry of a PASID is; its table is made.
    pub fn pasid_entry(&mut self, of: u32) -> Gpa {
        let at = DirectoryEntry::address(self.directory, pasid(of)).unwrap();
        if self.memory.load_u64(at).unwrap() == 0 {
            let table = self.table();
            let entry = DirectoryEntry::to_table(table);
            self.memory.store_u64(at, entry.into_bits()).unwrap();
        }
        let entry = DirectoryEntry::from_bits(self.memory.load_u64(at).unwrap());
        PasidEntry::address(entry.table(), pasid(of)).unwrap()
    }

    /// Writes the entry of a PASID, the word with P last.
    pub fn set_pasid(&mut self, of: u32, words: [u64; 8]) {
        let at = self.pasid_entry(of);
        for index in (0..8).rev() {
            self.memory.store_u64(Gpa(at.0 + 8 * index), words[index as usize]).unwrap();
        }
    }

    /// Invalidates, and asserts that nothing was in flight.
    pub fn settle(&self, what: Invalidation) {
        let ticket = self.vm.invalidate(what);
        assert!(self.vm.is_complete(ticket));
    }

    /// Forgets everything that is cached.
    pub fn settle_all(&self) {
        self.settle(Invalidation::ContextAll);
        self.settle(Invalidation::PasidCacheAll);
        self.settle(Invalidation::IotlbAll);
    }
}

/// The words of a first-stage entry with 4 levels.
pub fn first_stage(root: Gpa, domain: DomainId) -> [u64; 8] {
    [1 | 1 << 6, u64::from(domain.0), root.0, 0, 0, 0, 0, 0]
}

/// The words of a second-stage entry with 4 levels.
pub fn second_stage(root: Gpa, domain: DomainId) -> [u64; 8] {
    [1 | 2 << 2 | 2 << 6 | root.0, u64::from(domain.0), 0, 0, 0, 0, 0, 0]
}

/// The words of a nested entry with 4 levels in both stages.
pub fn nested(first: Gpa, second: Gpa, domain: DomainId) -> [u64; 8] {
    [1 | 2 << 2 | 3 << 6 | second.0, u64::from(domain.0), first.0, 0, 0, 0, 0, 0]
}

/// The words of a pass-through entry.
pub fn pass_through(domain: DomainId) -> [u64; 8] {
    [1 | 4 << 6, u64::from(domain.0), 0, 0, 0, 0, 0, 0]
}

/// What a device does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Read,
    Write,
    Atomic,
}

impl Op {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Atomic];

    pub fn access(self) -> Access {
        match self {
            Self::Read => Access::Read,
            _ => Access::Write,
        }
    }
}

/// One DMA of 8 bytes; the word that was read, or held before.
pub fn dma(channel: &Channel, space: AddressSpace, at: u64, op: Op) -> Result<u64, DmaError> {
    let dma = channel.enter();
    match op {
        Op::Read => {
            let mut bytes = [0; 8];
            dma.read(space, Iova(at), &mut bytes).map(|()| u64::from_le_bytes(bytes))
        }
        Op::Write => dma.write(space, Iova(at), &1u64.to_le_bytes()).map(|()| 0),
        Op::Atomic => dma.fetch_update_u64(space, Iova(at), |word| word.wrapping_add(1)),
    }
}

/// Polls until `ticket` is complete.
pub fn wait(vm: &SoftwareVm, ticket: Ticket) {
    while !vm.is_complete(ticket) {
        std::thread::yield_now();
    }
}
