//! What Linux's intel-iommu driver does, in scalable mode: registers, tables, queue.

use std::cell::Cell;

use iommu::Pasid;
use mem::Gpa;
use pci::{Function, RequesterId};

use super::memory::{Ram, Space, PAGE};
use super::rig::{Rig, DEVICE};
use super::{check, equal, Verdict};

pub const CAP: u64 = 0x08;
pub const ECAP: u64 = 0x10;
pub const GCMD: u64 = 0x18;
pub const GSTS: u64 = 0x1c;
pub const RTADDR: u64 = 0x20;
pub const FSTS: u64 = 0x34;
pub const FECTL: u64 = 0x38;
pub const FEDATA: u64 = 0x3c;
pub const FEADDR: u64 = 0x40;
pub const IQH: u64 = 0x80;
pub const IQT: u64 = 0x88;
pub const IQA: u64 = 0x90;

/// Virtual commands, as revision 3.3 has them: where, and their codes.
const VCMD: u64 = 0xe00;
const VCRSP: u64 = 0xe10;
pub const ALLOCATE_PASID: u64 = 1;
pub const FREE_PASID: u64 = 2;

pub const TRANSLATION: u32 = 1 << 31;
pub const ROOT_POINTER: u32 = 1 << 30;
pub const QUEUED_INVALIDATION: u32 = 1 << 26;

pub const FAULT_OVERFLOW: u32 = 1 << 0;
pub const FAULT_PENDING: u32 = 1 << 1;
pub const QUEUE_ERROR: u32 = 1 << 4;

/// Where the fault event goes, and with what.
pub const FAULT_MESSAGE: (Gpa, u32) = (Gpa(0xfee0_1004), 0x4021);

/// Domain of first-stage translations (Linux: FLPT_DEFAULT_DID).
const DOMAIN: u64 = 1;
/// PASIDs that a PASID table covers.
const PASIDS_PER_TABLE: u64 = 64;
/// Pages of a directory for 20 bits of PASID.
const DIRECTORY_PAGES: u64 = 32;
/// Descriptors of 256 bits in a queue of one page.
pub const QUEUE_ENTRIES: u64 = PAGE / 32;
/// What a wait descriptor stores.
const DONE: u64 = 2;
/// A wait descriptor that does nothing but fence (FN).
const FENCE: [u64; 4] = [5 | 1 << 6, 0, 0, 0];
/// Wait descriptor: page requests of before are in their queue when it completes (PD).
const PAGE_REQUEST_DRAIN: u64 = 1 << 7;
/// PASID-table entry: no fault is reported (FPD).
const FAULTS_DISABLED: u64 = 1 << 1;
/// Address field of a device TLB invalidation of everything, with S.
const EVERYTHING: u64 = 0x7fff_ffff_ffff_f000 | 1 << 11;

/// A fault recording register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRecord {
    pub source: u16,
    pub pasid: Option<u32>,
    pub reason: u8,
    pub page: u64,
    pub read: bool,
}

/// Where the wait descriptor writes that ends what was queued.
#[must_use]
pub struct Queued(Gpa);

/// The driver's state.
pub struct Unit {
    pub root: Gpa,
    pub context: Gpa,
    pub directory: Gpa,
    pub queue: Gpa,
    status: Gpa,
    tail: Cell<u64>,
}

impl Unit {
    /// Checks what there is, writes the tables, and turns the queue and translation on.
    pub fn boot(rig: &mut Rig) -> Verdict<Self> {
        Self::boot_with(rig, false)
    }

    /// The same; whether the device may ask for pages.
    pub fn boot_with(rig: &mut Rig, paging: bool) -> Verdict<Self> {
        // Firmware put the carrier's BAR where the DMAR table says.
        rig.carrier.config_write(0x10, &0xe000_0000u32.to_le_bytes());
        rig.carrier.config_write(0x04, &2u16.to_le_bytes());
        let (cap, ecap) = (read64(rig, CAP), read64(rig, ECAP));
        check(cap >> 7 & 1 == 1, "CAP.CM")?;
        for (bit, name) in [(1, "QI"), (2, "DT"), (40, "PASID"), (43, "SMTS"), (47, "FSTS")] {
            check(ecap >> bit & 1 == 1, name)?;
        }
        equal(ecap >> 35 & 0x1f, 19, "PASID bits less one")?;

        let ram = &mut rig.ram;
        let unit = Self {
            root: ram.page(),
            context: ram.page(),
            directory: ram.pages(DIRECTORY_PAGES, PAGE),
            queue: ram.page(),
            status: ram.page(),
            tail: Cell::new(0),
        };
        unit.write_context(ram, DEVICE, paging);
        write32(rig, FEDATA, FAULT_MESSAGE.1);
        write32(rig, FEADDR, FAULT_MESSAGE.0 .0 as u32);
        write32(rig, FECTL, 0);
        write64(rig, IQT, 0);
        // DW: descriptors of 256 bits, as scalable mode wants them.
        write64(rig, IQA, unit.queue.0 | 1 << 11);
        unit.command(rig, QUEUED_INVALIDATION)?;
        // TTM 01: scalable mode.
        write64(rig, RTADDR, unit.root.0 | 1 << 10);
        unit.command(rig, ROOT_POINTER | QUEUED_INVALIDATION)?;
        unit.invalidate_all(rig)?;
        unit.command(rig, TRANSLATION | QUEUED_INVALIDATION)?;
        Ok(unit)
    }

    /// Lets `device` use the PASIDs of the accelerator too.
    pub fn admit(&self, rig: &Rig, device: RequesterId) -> Verdict {
        self.write_context(&rig.ram, device, false);
        self.invalidate_all(rig)
    }

    /// Root and context entry of a device: device TLB and PASIDs allowed, 20 bits of them.
    fn write_context(&self, ram: &Ram, device: RequesterId, paging: bool) {
        let devfn = u64::from(device.devfn());
        assert!(devfn >= 0x80, "in the upper context table");
        let entry = Gpa(self.context.0 + 32 * (devfn & 0x7f));
        ram.store(Gpa(entry.0 + 8), 0);
        // PDTS; PRE, PASIDE, DTE, P.
        let bits = 7 << 9 | u64::from(paging) << 4 | 1 << 3 | 1 << 2 | 1;
        ram.store(entry, self.directory.0 | bits);
        let root = Gpa(self.root.0 + 16 * u64::from(device.bus()) + 8);
        ram.store(root, self.context.0 | 1);
    }

    /// Writes the global command register, and waits for its status.
    pub fn command(&self, rig: &Rig, bits: u32) -> Verdict {
        let latched = read32(rig, GSTS) & ROOT_POINTER;
        write32(rig, GCMD, bits);
        rig.wait("the global status", || read32(rig, GSTS) == bits | latched)
    }

    /// Sends a virtual command; gives its result, or its status code.
    pub fn virtual_command(&self, rig: &Rig, code: u64, operand: u32) -> Verdict<Result<u32, u64>> {
        write64(rig, VCMD, code | u64::from(operand) << 16);
        rig.wait("a virtual command", || read64(rig, VCRSP) & 1 == 0)?;
        let response = read64(rig, VCRSP);
        Ok(match response >> 1 & 0x7f {
            0 => Ok((response >> 16) as u32),
            status => Err(status),
        })
    }

    /// Gives `space` to its PASID: the entry becomes present, which caching mode wants told.
    pub fn bind(&self, rig: &mut Rig, space: &Space) -> Verdict {
        let entry = self.entry(&mut rig.ram, space.pasid);
        check(rig.ram.load(entry) & 1 == 0, "the PASID is bound already")?;
        for word in 3..8 {
            rig.ram.store(Gpa(entry.0 + 8 * word), 0);
        }
        // FSPTPTR and four levels; DID and PWSNP; PGTT first stage, and AW as Linux leaves it.
        rig.ram.store(Gpa(entry.0 + 16), space.root.0);
        rig.ram.store(Gpa(entry.0 + 8), DOMAIN | 1 << 23);
        rig.ram.store(entry, 1 << 6 | 2 << 2);
        rig.ram.store(entry, 1 << 6 | 2 << 2 | 1);
        self.invalidate(rig, &[pasid_cache(space.pasid), pasid_iotlb(space.pasid)])
    }

    /// Takes it away again.
    pub fn unbind(&self, rig: &Rig, pasid: Pasid) -> Verdict {
        let entry = self.present_entry(&rig.ram, pasid)?;
        self.clear(rig, pasid, entry, 0)
    }

    /// The first half of an unbind when a process has ended: its entry goes, and nobody is to hear of what faults
    /// (FPD). Once more it does the same again.
    pub fn forget(&self, rig: &mut Rig, pasid: Pasid) -> Verdict {
        let entry = self.entry(&mut rig.ram, pasid);
        self.clear(rig, pasid, entry, FAULTS_DISABLED)
    }

    /// Entry, caches, device TLB, in this order; the entry is `left` then.
    fn clear(&self, rig: &Rig, pasid: Pasid, entry: Gpa, left: u64) -> Verdict {
        rig.ram.store(entry, rig.ram.load(entry) & !1);
        self.invalidate(rig, &[pasid_cache(pasid)])?;
        self.invalidate(rig, &[pasid_iotlb(pasid)])?;
        self.invalidate(rig, &[device_tlb(pasid, EVERYTHING)])?;
        (0..8).for_each(|word| rig.ram.store(Gpa(entry.0 + 8 * word), 0));
        rig.ram.store(entry, left);
        Ok(())
    }

    /// What Linux queues to have all requests of `pasid` that are on their way in the page request queue: a fence, the
    /// caches once more, and a wait that drains (PD).
    pub fn drain(&self, rig: &Rig, pasid: Pasid) -> Verdict {
        let what = [FENCE, pasid_iotlb(pasid), device_tlb(pasid, EVERYTHING)];
        let queued = self.queue(rig, &what, PAGE_REQUEST_DRAIN);
        self.wait(rig, queued)
    }

    /// After `count` pages from `at` were taken out of a table: the smallest aligned block with all of them goes.
    pub fn flush_pages(&self, rig: &Rig, space: &Space, at: u64, count: u64) -> Verdict {
        let queued = self.queue_flush(rig, space, at, count);
        self.wait(rig, queued)
    }

    /// The same without waiting for the end, which is left to [`wait`](Self::wait).
    pub fn queue_flush(&self, rig: &Rig, space: &Space, at: u64, count: u64) -> Queued {
        let (first, last) = (at / PAGE, at / PAGE + count - 1);
        let order = u64::BITS - (first ^ last).leading_zeros();
        let at = (first >> order << order) * PAGE;
        // The device TLB's form says the size by the lowest clear bit of the page number.
        let size = (1u64 << order >> 1).saturating_sub(1) << 12;
        let large = u64::from(order != 0) << 11;
        let pages =
            [6 | 3 << 4 | DOMAIN << 16 | number(space.pasid) << 32, at | u64::from(order), 0, 0];
        self.queue(rig, &[pages, device_tlb(space.pasid, at | size | large)], 0)
    }

    /// Has everything forgotten: any table may have changed.
    pub fn invalidate_all(&self, rig: &Rig) -> Verdict {
        self.invalidate(rig, &[context_global(), pasid_cache_global(), iotlb_global()])
    }

    /// Queues `descriptors` and a wait, and waits for its status write.
    pub fn invalidate(&self, rig: &Rig, descriptors: &[[u64; 4]]) -> Verdict {
        let queued = self.queue(rig, descriptors, 0);
        self.wait(rig, queued)
    }

    /// Queues `descriptors` and a wait with more `flags`.
    fn queue(&self, rig: &Rig, descriptors: &[[u64; 4]], flags: u64) -> Queued {
        let status = Gpa(self.status.0 + 8 * self.tail.get());
        rig.ram.store(status, 0);
        // SW.
        let wait = [5 | 1 << 5 | flags | DONE << 32, status.0, 0, 0];
        for words in descriptors.iter().chain([&wait]) {
            let at = self.queue.0 + 32 * self.tail.get();
            (0..4).for_each(|i| rig.ram.store(Gpa(at + 8 * i), words[i as usize]));
            self.tail.set((self.tail.get() + 1) % QUEUE_ENTRIES);
        }
        write64(rig, IQT, self.tail.get() << 5);
        Queued(status)
    }

    /// Waits for the status write of what was queued.
    pub fn wait(&self, rig: &Rig, Queued(status): Queued) -> Verdict {
        let done = || rig.ram.load_u32(status) == DONE as u32;
        rig.wait("a wait descriptor", || done() || read32(rig, FSTS) & QUEUE_ERROR != 0)?;
        check(done(), "the queue took the descriptors")
    }

    /// Where the entry of `pasid` is; its table is made.
    pub fn entry(&self, ram: &mut Ram, pasid: Pasid) -> Gpa {
        let slot = Gpa(self.directory.0 + 8 * (number(pasid) / PASIDS_PER_TABLE));
        if ram.load(slot) & 1 == 0 {
            let table = ram.page();
            ram.store(slot, table.0 | 1);
        }
        entry_at(ram, slot, pasid)
    }

    /// Where the entry of a PASID is that is bound.
    pub fn present_entry(&self, ram: &Ram, pasid: Pasid) -> Verdict<Gpa> {
        let slot = Gpa(self.directory.0 + 8 * (number(pasid) / PASIDS_PER_TABLE));
        check(ram.load(slot) & 1 == 1, "the PASID has a table")?;
        let entry = entry_at(ram, slot, pasid);
        check(ram.load(entry) & 1 == 1, "the PASID is bound")?;
        Ok(entry)
    }

    /// Takes the faults out of the recording registers, in order, and clears the status.
    pub fn take_faults(&self, rig: &Rig) -> Vec<FaultRecord> {
        let cap = read64(rig, CAP);
        let (base, count) = (16 * (cap >> 24 & 0x3ff), (cap >> 40 & 0xff) + 1);
        let mut index = u64::from(read32(rig, FSTS) >> 8 & 0xff);
        let mut faults = Vec::new();
        loop {
            let at = base + 16 * index;
            let high = read64(rig, at + 8);
            if high >> 63 == 0 {
                break;
            }
            faults.push(FaultRecord {
                source: high as u16,
                pasid: (high >> 31 & 1 == 1).then_some((high >> 40) as u32 & 0xf_ffff),
                reason: (high >> 32) as u8,
                page: read64(rig, at),
                read: high >> 62 & 1 == 1,
            });
            write32(rig, at + 12, 1 << 31);
            index = (index + 1) % count;
        }
        write32(rig, FSTS, FAULT_OVERFLOW);
        faults
    }
}

fn entry_at(ram: &Ram, slot: Gpa, pasid: Pasid) -> Gpa {
    Gpa((ram.load(slot) & !0xfff) + 64 * (number(pasid) % PASIDS_PER_TABLE))
}

fn number(pasid: Pasid) -> u64 {
    pasid.get().into()
}

fn context_global() -> [u64; 4] {
    [1 | 1 << 4, 0, 0, 0]
}

fn pasid_cache_global() -> [u64; 4] {
    [7 | 3 << 4, 0, 0, 0]
}

fn iotlb_global() -> [u64; 4] {
    // With both drain bits.
    [2 | 1 << 4 | 3 << 6, 0, 0, 0]
}

fn pasid_cache(pasid: Pasid) -> [u64; 4] {
    [7 | 1 << 4 | DOMAIN << 16 | number(pasid) << 32, 0, 0, 0]
}

fn pasid_iotlb(pasid: Pasid) -> [u64; 4] {
    [6 | 2 << 4 | DOMAIN << 16 | number(pasid) << 32, 0, 0, 0]
}

fn device_tlb(pasid: Pasid, address: u64) -> [u64; 4] {
    [8 | u64::from(DEVICE.bits()) << 16 | number(pasid) << 32, address, 0, 0]
}

pub fn read32(rig: &Rig, at: u64) -> u32 {
    let mut bytes = [0; 4];
    rig.carrier.bar_read(0, at, &mut bytes);
    u32::from_le_bytes(bytes)
}

pub fn read64(rig: &Rig, at: u64) -> u64 {
    let mut bytes = [0; 8];
    rig.carrier.bar_read(0, at, &mut bytes);
    u64::from_le_bytes(bytes)
}

pub fn write32(rig: &Rig, at: u64, value: u32) {
    rig.carrier.bar_write(0, at, &value.to_le_bytes());
}

pub fn write64(rig: &Rig, at: u64, value: u64) {
    rig.carrier.bar_write(0, at, &value.to_le_bytes());
}
