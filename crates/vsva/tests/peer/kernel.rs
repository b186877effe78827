//! A guest's kernel with one process, whose memory comes when it is touched: by the accelerator, too.
//!
//! ```text
//!   Kernel ── vtd::driver: invalidation queue, page requests ──► the unit's socket
//!     │ ───── queue with the process's PASID, descriptors ─────► the accelerator's socket
//!     └────── tables, the process's pages ──► the memory file
//! ```

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dsa::spec::{Flags, Operation, WqMode};
use iommu::format::vtd::{DirectoryEntry, PasidWord0, PasidWord1, PasidWord2};
use iommu::{DomainId, Pasid, ResponseCode};
use mem::{Gpa, Iova, MemoryMap};
use pci::RequesterId;
use vsva::server::GuestPlace;
use vtd::driver::{Clock, InvalidationQueue, PageRequestQueue, Registers};
use vtd::spec::{
    ContextScope, Descriptor, DeviceTlbScope, GlobalCommand, IotlbScope, PasidCacheScope,
    PasidIotlbScope, RootTableAddress, ScalableContextEntry, ScalableRootHalf,
};

use super::memory::{give_back, Memory, Space, GIVEN_OUT, PAGE};
use super::{eventually, Accelerator, Client, CONFIG, QUEUE};

/// The accelerator, 00:10.0.
const DEVICE: RequesterId = RequesterId::from_bits(0x80);
/// The domain of first-stage translations.
const DOMAIN: DomainId = DomainId(1);
/// The process's PASID, the same in every guest.
const PASID: u32 = 0x10;
/// Page requests that the device may have out: more than there are descriptors.
const CREDITS: u32 = 2 * QUEUE as u32;

/// Pages that each descriptor writes.
pub(crate) const PAGES: u64 = 2;
/// Bytes of them.
const PART: u64 = PAGES * PAGE;
/// Where the process's memory and its completion records are. The same addresses are guest physical ones that no kernel gives out.
const DATA: u64 = GIVEN_OUT;
const RECORDS: u64 = GIVEN_OUT + QUEUE as u64 * PART;

/// All of these addresses.
pub(crate) const REACHED: Range<u64> = DATA..RECORDS + QUEUE as u64 * PAGE;

/// Registers of the unit (11.4).
const GCMD: u16 = 0x18;
const RTADDR: u16 = 0x20;

/// The unit's registers, over its socket.
struct Unit(RefCell<Client>);

impl Registers for Unit {
    fn read32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.0.borrow_mut().read(0, offset.into()))
    }

    fn write32(&self, offset: u16, value: u32) {
        self.0.borrow_mut().write(0, offset.into(), &value.to_le_bytes());
    }

    fn read64(&self, offset: u16) -> u64 {
        u64::from_le_bytes(self.0.borrow_mut().read(0, offset.into()))
    }

    fn write64(&self, offset: u16, value: u64) {
        self.0.borrow_mut().write(0, offset.into(), &value.to_le_bytes());
    }
}

/// Time since the boot.
struct Uptime(Instant);

impl Clock for Uptime {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }

    fn pause(&self) {
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// A kernel that has booted.
pub(crate) struct Kernel {
    unit: Rc<Unit>,
    accelerator: Accelerator,
    memory: Memory,
    invalidations: InvalidationQueue<Rc<Unit>, Uptime, MemoryMap>,
    requests: PageRequestQueue<Rc<Unit>, MemoryMap>,
    process: Space,
}

impl Kernel {
    /// Connects to both functions, reports `ram`, and boots.
    pub(crate) fn boot(place: &GuestPlace, ram: &File) -> Self {
        let [accelerator, unit] = [0, 1].map(|function: usize| {
            let mut client = Client::new(&place.devices().functions[function].path);
            client.map(ram, 0).unwrap();
            client
        });
        Self::boot_on(unit, accelerator, Memory::new(ram))
    }

    /// Boots again over the same connections, after both functions have been reset.
    pub(crate) fn reboot(unit: Client, accelerator: Client, ram: &File) -> Self {
        Self::boot_on(unit, accelerator, Memory::new(ram))
    }

    /// Boots on functions that are as after power-on.
    fn boot_on(unit: Client, mut accelerator: Client, mut memory: Memory) -> Self {
        let unit = Rc::new(Unit(RefCell::new(unit)));
        let (ring, status) = (memory.page(), memory.page());
        let requests =
            PageRequestQueue::enable(unit.clone(), memory.map(), memory.page(), 0).unwrap();
        let uptime = Uptime(Instant::now());
        let mut invalidations =
            InvalidationQueue::enable(unit.clone(), uptime, memory.map(), ring, status).unwrap();
        let process = Space::new(&mut memory);
        let directory = directory(&mut memory, &process);
        let root = RootTableAddress::new()
            .with_mode(SCALABLE)
            .with_page(root(&mut memory, directory).0 >> 12);
        unit.write64(RTADDR, root.into_bits());
        let on = GlobalCommand::new().with_queued_invalidation(true);
        unit.write32(GCMD, on.with_set_root_pointer(true).into_bits());
        let all = [
            Descriptor::ContextCache(ContextScope::Global),
            Descriptor::PasidCache(PasidCacheScope::Global),
            Descriptor::Iotlb { scope: IotlbScope::Global, drain_reads: true, drain_writes: true },
        ];
        invalidations.submit(&all, false).unwrap();
        unit.write32(GCMD, on.with_translation(true).into_bits());
        // Caching mode: an entry that becomes present is told.
        let bound = [Descriptor::PasidCache(PasidCacheScope::Pasid(DOMAIN, pasid()))];
        invalidations.submit(&bound, false).unwrap();
        open(&mut accelerator);
        let accelerator = Accelerator(accelerator);
        Self { unit, accelerator, memory, invalidations, requests, process }
    }

    /// Has the accelerator fill the `index`-th piece of the process's memory, and wait for what is missing of it.
    pub(crate) fn fill(&mut self, index: u64, pattern: u64) {
        let destination = Iova(DATA + index * PART);
        let fill = Operation::Fill { pattern, destination, size: PART as u32 };
        let flags = Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT;
        self.accelerator.submit(fill, RECORDS + index * PAGE, flags);
    }

    /// Gives the process the pages that the accelerator has asked for, and answers.
    pub(crate) fn serve(&mut self) {
        let Self { requests, invalidations, process, memory, .. } = self;
        let mut populate = |group: &[iommu::PageRequest]| {
            group.iter().for_each(|request| process.populate(memory, request.address.0));
            Some(ResponseCode::Success)
        };
        requests.handle(invalidations, &mut populate).unwrap();
    }

    /// The status of the `index`-th fill, zero as long as there is none.
    fn status(&self, index: u64) -> u8 {
        let record = self.process.physical(RECORDS + index * PAGE);
        record.map_or(0, |at| self.memory.read::<1>(at)[0])
    }

    /// Fills `count` pieces of memory that nobody has touched, compares, and takes the memory away again.
    pub(crate) fn round(&mut self, count: u64, pattern: u64) {
        (0..count).for_each(|index| self.fill(index, pattern ^ index));
        eventually("the fills", || {
            self.serve();
            (0..count).all(|index| self.status(index) != 0)
        });
        for index in 0..count {
            assert_eq!(self.status(index), SUCCESS, "fill {index}");
            for at in (DATA + index * PART..).step_by(8).take((PART / 8) as usize) {
                let word = self.memory.load(self.process.physical(at).unwrap());
                assert_eq!(word, pattern ^ index, "fill {index}, at {at:#x}");
            }
        }
        let pages = self.process.unmap_all(&mut self.memory);
        let everything = DeviceTlbScope { address: Iova(0x7fff_ffff_ffff_f000), large: true };
        let (pasid, scope) = (pasid(), PasidIotlbScope::All);
        let gone = [
            Descriptor::PasidIotlb { domain: DOMAIN, pasid, scope },
            Descriptor::PasidDeviceTlb { source: DEVICE, pasid: Some(pasid), scope: everything },
        ];
        self.invalidations.submit(&gone, false).unwrap();
        give_back(&mut self.memory, pages);
    }

    /// The accelerator's function-level reset.
    pub(crate) fn reset_accelerator(&mut self) {
        // Device control: initiate function-level reset.
        self.accelerator.0.write(CONFIG, 0x48, &0x8000u16.to_le_bytes());
    }

    /// Opens the process's queue anew, after the accelerator has been reset.
    pub(crate) fn open(&mut self) {
        open(&mut self.accelerator.0);
    }

    /// Its two connections: the accelerator's and the unit's.
    pub(crate) fn into_clients(self) -> [Client; 2] {
        let Self { unit, accelerator, invalidations, requests, .. } = self;
        drop((invalidations, requests));
        let unit = Rc::into_inner(unit).expect("nobody else has it");
        [accelerator.0, unit.0.into_inner()]
    }

    /// The same, as what a process can inherit.
    pub(crate) fn into_sockets(self) -> [OwnedFd; 2] {
        self.into_clients().map(|client| client.socket.into())
    }
}

/// RTADDR.TTM: scalable mode.
const SCALABLE: u8 = 0b01;
/// A completion record's status.
const SUCCESS: u8 = 0x01;

fn pasid() -> Pasid {
    Pasid::new(PASID).unwrap()
}

/// The root table with the accelerator's context entry. It may ask for pages.
fn root(memory: &mut Memory, directory: Gpa) -> Gpa {
    let (root, context) = (memory.page(), memory.page());
    let entry = ScalableContextEntry::new()
        .with_present(true)
        .with_device_tlb(true)
        .with_pasid(true)
        .with_page_requests(true)
        .with_directory(directory.0 >> 12)
        .into_bits();
    // Function 0x80 is the first of the upper table.
    memory.store(Gpa(context.0 + 8), (entry >> 64) as u64);
    memory.store(context, entry as u64);
    let half = ScalableRootHalf::new().with_present(true).with_table(context.0 >> 12);
    memory.store(Gpa(root.0 + 8), half.into_bits());
    root
}

/// A PASID directory with the process's entry.
fn directory(memory: &mut Memory, process: &Space) -> Gpa {
    let (directory, table) = (memory.page(), memory.page());
    let slot = DirectoryEntry::address(directory, pasid()).unwrap();
    memory.store(slot, DirectoryEntry::to_table(table).into_bits());
    let entry = table.0 + 64 * u64::from(PASID % 64);
    let words = [
        // PGTT: first stage.
        PasidWord0::new()
            .with_present(true)
            .with_translation_type(1)
            .with_address_width(2)
            .into_bits(),
        PasidWord1::new().with_domain(DOMAIN.0).into_bits(),
        PasidWord2::new().with_first_stage_page(process.root.0 >> 12).into_bits(),
    ];
    for (at, word) in (entry..).step_by(8).zip(words) {
        memory.store(Gpa(at), word);
    }
    directory
}

/// Turns PASIDs, page requests and translation requests on, and opens a queue for the process.
fn open(accelerator: &mut Client) {
    accelerator.write(CONFIG, 0x236, &1u16.to_le_bytes());
    accelerator.write(CONFIG, 0x24c, &CREDITS.to_le_bytes());
    accelerator.write(CONFIG, 0x244, &1u16.to_le_bytes());
    accelerator.write(CONFIG, 0x226, &0x8000u16.to_le_bytes());
    let mode = WqMode::new().with_block_on_fault(true).with_pasid_enable(true).with_pasid(PASID);
    Accelerator::enable(accelerator, mode)
}
