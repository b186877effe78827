//! A device behind a real IOMMU, and a guest that pages: every address is mapped to itself, or not
//! yet, or for reading only, by PASID and page.

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu::format::vtd::{DirectoryEntry, PasidEntry};
use iommu::{
    ContextFault, ContextSource, DeviceContext, Host, Invalidation, PageRequest, PageResponse,
    Pasid, PasidTable, ResponseCode, SoftwareHost, SoftwareVm, TableCaps, Vm, VmConfig,
};
use mem::{Gpa, GuestMemory, MemoryMap};

use super::*;

/// Tables are allocated from here on.
const TABLES: u64 = 0x2000_0000;
const TABLES_LEN: u64 = 0x20_0000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;

const CAPS: TableCaps = TableCaps {
    address_bits: 46,
    first_stage_5_level: false,
    second_stage_levels: 0b0110,
    ..TableCaps::FULL
};

/// One context for every device.
struct Context(DeviceContext);

impl ContextSource for Context {
    fn lookup(&self, _: &dyn GuestMemory, _: RequesterId) -> Result<DeviceContext, ContextFault> {
        Ok(self.0)
    }
}

/// What a page is mapped for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapped {
    No,
    ReadOnly,
    Yes,
}

pub struct Paged {
    pub rig: Rig,
    pub vm: SoftwareVm,
    directory: Gpa,
    roots: BTreeMap<u32, Gpa>,
    next_table: u64,
}

impl Paged {
    /// A device as after power-on; PASIDs 1 and up to `pasids`, and [`PASID`], have an address space
    /// in which only the records are mapped.
    pub fn new(pasids: u32) -> Self {
        Self::with(VmConfig::named("paged"), pasids)
    }

    pub fn with(config: VmConfig, pasids: u32) -> Self {
        let vm = SoftwareHost::new().create_vm(config).unwrap();
        let ranges = [(Gpa(FLAT), FLAT_LEN), (Gpa(RECORDS), 0x1000), (Gpa(TABLES), TABLES_LEN)];
        let memory = Arc::new(MemoryMap::anonymous(&ranges).unwrap());
        let _ = vm.set_memory(MemoryMap::clone(&memory));
        let endpoint = vm.attach(DEVICE).unwrap();
        let rig = Rig::on(Config::default(), memory, endpoint);
        let mut paged =
            Self { rig, vm, directory: Gpa(0), roots: BTreeMap::new(), next_table: TABLES };
        paged.directory = paged.table();
        paged.vm.set_contexts(Some(Arc::new(Context(DeviceContext::PasidTable(PasidTable {
            directory: paged.directory,
            pasid_bits: 10,
            rid_pasid: Pasid::new(0).unwrap(),
            rid_privileged: false,
            pasid_enable: true,
            ats: true,
            page_requests: true,
            fault_disable: false,
            caps: CAPS,
        })))));
        for pasid in (1..=pasids).chain([PASID]) {
            paged.add_space(pasid);
        }
        paged
    }

    /// With queue 0 (16 entries, group 0, engine 0) enabled as a dedicated queue with [`PASID`],
    /// `credits` page requests, and block on fault.
    pub fn dedicated(credits: u32) -> Self {
        let paged = Self::new(0);
        paged.bring_up(credits);
        paged
    }

    /// Enables everything as [`dedicated`](Self::dedicated) has it.
    pub fn bring_up(&self, credits: u32) {
        self.enable_function(credits);
        self.rig.configure(0, 0, 16, blocking(true).with_pasid(PASID));
        self.rig.set_engines(0, 1);
        self.rig.enable(&[0]);
    }

    /// Everything on as a driver leaves it, page requests too.
    pub fn enable_function(&self, credits: u32) {
        let device = &self.rig.device;
        device.config_write(0x04, &6u16.to_le_bytes());
        device.config_write(0x236, &1u16.to_le_bytes());
        device.config_write(0x24c, &credits.to_le_bytes());
        device.config_write(0x244, &1u16.to_le_bytes());
        device.config_write(0x226, &0x8000u16.to_le_bytes());
    }

    /// The status of the page request interface.
    pub fn pri_status(&self) -> u16 {
        let mut status = [0; 2];
        self.rig.device.config_read(0x246, &mut status);
        u16::from_le_bytes(status)
    }

    fn table(&mut self) -> Gpa {
        let table = Gpa(self.next_table);
        self.next_table += 0x1000;
        assert!(self.next_table <= TABLES + TABLES_LEN, "out of table pages");
        table
    }

    fn load(&self, at: Gpa) -> u64 {
        self.rig.memory.load_u64(at).unwrap()
    }

    fn store(&self, at: Gpa, value: u64) {
        self.rig.memory.store_u64(at, value).unwrap();
    }

    fn add_space(&mut self, number: u32) {
        let pasid = Pasid::new(number).unwrap();
        let at = DirectoryEntry::address(self.directory, pasid).unwrap();
        if self.load(at) == 0 {
            let table = self.table();
            self.store(at, DirectoryEntry::to_table(table).into_bits());
        }
        let entries = DirectoryEntry::from_bits(self.load(at)).table();
        let at = PasidEntry::address(entries, pasid).unwrap();
        let root = self.table();
        // First stage, 4 levels, domain 7; the word with "present" last.
        self.store(Gpa(at.0 + 16), root.0);
        self.store(Gpa(at.0 + 8), 7);
        self.store(at, 1 | 1 << 6);
        self.roots.insert(number, root);
        self.set(number, RECORDS, Mapped::Yes);
    }

    /// Maps the page of `address` to itself. What was allowed before and is no more is forgotten.
    pub fn set(&mut self, pasid: u32, address: u64, mapped: Mapped) {
        let mut table = self.roots[&pasid];
        for level in (1..4).rev() {
            let at = Gpa(table.0 + (address >> (12 + 9 * level) & 0x1ff) * 8);
            if self.load(at) == 0 {
                let next = self.table();
                self.store(at, next.0 | PRESENT | WRITABLE | USER);
            }
            table = Gpa(self.load(at) & !0xfff);
        }
        let page = address & !0xfff;
        let entry = match mapped {
            Mapped::No => 0,
            Mapped::ReadOnly => page | PRESENT | USER,
            Mapped::Yes => page | PRESENT | WRITABLE | USER,
        };
        let at = Gpa(table.0 + (address >> 12 & 0x1ff) * 8);
        let before = self.load(at);
        self.store(at, entry);
        if before & !entry & (PRESENT | WRITABLE) != 0 {
            let (requester, pasid) = (DEVICE, Pasid::new(pasid));
            let range = mem::Range::<Iova>::new(Iova(page), 4096).unwrap();
            let device_tlb = Invalidation::DeviceTlbPasid { requester, pasid, range };
            for what in [Invalidation::IotlbAll, device_tlb] {
                let ticket = self.vm.invalidate(what);
                assert!(self.vm.is_complete(ticket));
            }
        }
    }

    /// Maps all pages of these bytes.
    pub fn map(&mut self, pasid: u32, address: u64, len: u64) {
        for page in (address >> 12)..=((address + len - 1) >> 12) {
            self.set(pasid, page << 12, Mapped::Yes);
        }
    }

    /// The requests that nobody took yet.
    pub fn requests(&self) -> Vec<PageRequest> {
        core::iter::from_fn(|| self.vm.take_page_request()).collect()
    }

    /// The one request that nobody took yet.
    pub fn request(&self) -> PageRequest {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests[0]
    }

    pub fn answer(&self, request: &PageRequest, code: ResponseCode) {
        let PageRequest { requester, pasid, group, .. } = *request;
        let response = PageResponse { requester, pasid, group, code };
        self.vm.respond_page_request(response).unwrap();
    }

    /// Maps what is asked for, and says so.
    pub fn bring(&mut self, request: &PageRequest) {
        let pasid = request.pasid.unwrap().get();
        let mapped = if request.write { Mapped::Yes } else { Mapped::ReadOnly };
        self.set(pasid, request.address.0, mapped);
        self.answer(request, ResponseCode::Success);
    }

    /// Runs the engines and pages until nothing is left to do; how many pages were asked for.
    pub fn settle(&mut self) -> usize {
        self.settle_but(|_| true)
    }

    /// The same, where only what `exists` says can be had.
    pub fn settle_but(&mut self, exists: impl Fn(&PageRequest) -> bool) -> usize {
        let mut count = 0;
        loop {
            self.rig.settle();
            let requests = self.requests();
            if requests.is_empty() {
                return count;
            }
            count += requests.len();
            for request in requests.iter().filter(|request| request.wants_response()) {
                match exists(request) {
                    true => self.bring(request),
                    false => self.answer(request, ResponseCode::Invalid),
                }
            }
        }
    }
}

/// A queue as accel-config's stock configuration sets it up.
pub fn blocking(dedicated: bool) -> WqMode {
    user_mode(dedicated).with_block_on_fault(true)
}

/// A descriptor that blocks on faults, and writes record `index`.
pub fn recorded(operation: Operation, index: u64) -> Descriptor {
    Descriptor::new(operation)
        .with_record(Rig::record_at(index))
        .with_flags(Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT)
}

/// Where the copies of these tests begin.
pub const SOURCE: u64 = FLAT;
/// … and where they go.
pub const DESTINATION: u64 = FLAT + 0x10_0000;

pub fn copy(len: u32) -> Operation {
    memory_move(SOURCE, DESTINATION, len)
}

/// The status of record `index`, 0 if it is not written.
pub fn status(paged: &Paged, index: u64) -> u8 {
    paged.rig.record(index).status.into_bits()
}
