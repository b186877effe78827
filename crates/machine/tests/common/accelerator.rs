//! What Linux's idxd driver and its users do: probe, configuration, commands, portals.

use std::cell::Cell;

use dsa::spec::{Descriptor, Flags, Iova, Operation, Submitter};
use iommu::Pasid;
use pci::Function;

use super::rig::Rig;
use super::{check, equal, Verdict};

const VERSION: u64 = 0x00;
const GENCAP: u64 = 0x10;
const OFFSETS: u64 = 0x60;
const GENCTRL: u64 = 0x88;
const GENSTS: u64 = 0x90;
const INTCAUSE: u64 = 0x98;
const CMD: u64 = 0xa0;
pub const CMDSTATUS: u64 = 0xa8;
const SWERROR: u64 = 0xc0;

const PORTALS: u8 = 2;
const PORTAL_STRIDE: u64 = 0x4000;
/// The limited portal, which user space gets.
const LIMITED: u64 = 0x1000;

/// Page requests that it may have out, as Linux allocates them.
const CREDITS: u32 = 32;

/// CMDSTATUS: the command is being carried out.
pub const ACTIVE: u32 = 1 << 31;
const INTERRUPT: u32 = 1 << 31;

/// A device command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Command {
    EnableDevice = 1,
    ResetDevice = 5,
    EnableWq = 6,
    DrainWq = 8,
    ResetWq = 10,
}

/// A work queue, which is the group of its number too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queue {
    pub index: u8,
    pub dedicated: bool,
    pub size: u32,
    pub threshold: u32,
    /// Engines of the group.
    engines: u64,
}

/// A dedicated queue with two engines.
pub const DEDICATED: Queue =
    Queue { index: 0, dedicated: true, size: 16, threshold: 0, engines: 0b0011 };
/// Another one, with an engine of its own.
pub const OTHER: Queue =
    Queue { index: 1, dedicated: true, size: 16, threshold: 0, engines: 0b0100 };
/// A shared queue with an engine of its own.
pub const SHARED: Queue =
    Queue { index: 2, dedicated: false, size: 16, threshold: 6, engines: 0b1000 };
const QUEUES: [Queue; 3] = [DEDICATED, OTHER, SHARED];

/// What SWERROR says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SoftwareError {
    pub code: u8,
    pub wq: u8,
    pub pasid: u32,
    pub write: bool,
    pub address: u64,
}

/// The driver's state.
pub struct Accelerator {
    wqcfg: u64,
    grpcfg: u64,
    /// Portal slot of the next store.
    slot: Cell<u64>,
    /// Whether it asks for pages.
    paging: bool,
}

impl Accelerator {
    /// Finds the device as after power-on, turns on PASIDs and ATS, and resets it.
    pub fn probe(rig: &Rig) -> Verdict<Self> {
        Self::probe_with(rig, false)
    }

    /// The same; whether it is to ask for pages.
    pub fn probe_with(rig: &Rig, paging: bool) -> Verdict<Self> {
        let mut ids = [0; 4];
        rig.device.config_read(0, &mut ids);
        equal(u32::from_le_bytes(ids), 0x0b25_8086, "device and vendor id")?;
        // Memory and bus master; then PASID, then page requests: reset, allocation, enabled; then ATS.
        rig.device.config_write(0x04, &6u16.to_le_bytes());
        rig.device.config_write(0x236, &1u16.to_le_bytes());
        if paging {
            rig.device.config_write(0x244, &2u16.to_le_bytes());
            rig.device.config_write(0x24c, &CREDITS.to_le_bytes());
            rig.device.config_write(0x244, &1u16.to_le_bytes());
        }
        rig.device.config_write(0x226, &0x8000u16.to_le_bytes());
        equal(read32(rig, VERSION), 0x100, "VERSION")?;
        equal(read32(rig, GENSTS), 0, "GENSTS")?;
        write32(rig, CMD, (Command::ResetDevice as u32) << 20);
        rig.wait("the reset", || read32(rig, CMDSTATUS) & ACTIVE == 0)?;
        equal(read32(rig, CMDSTATUS), 0, "CMDSTATUS of the reset")?;
        check(read64(rig, GENCAP) >> 31 & 1 == 1, "configurable")?;
        let offsets = read64(rig, OFFSETS);
        write32(rig, GENCTRL, 3);
        Ok(Self {
            grpcfg: (offsets & 0xffff) * 0x100,
            wqcfg: (offsets >> 16 & 0xffff) * 0x100,
            slot: Cell::new(0),
            paging,
        })
    }

    /// Sets up the three queues and enables the device, and the shared queue.
    pub fn configure(&self, rig: &Rig) -> Verdict {
        for queue in QUEUES {
            self.write_queue(rig, queue, None);
            let group = self.grpcfg + 64 * u64::from(queue.index);
            write64(rig, group, 1 << queue.index);
            write64(rig, group + 32, queue.engines);
            // Traffic classes 1, and eight read buffers allowed.
            write64(rig, group + 40, 8 << 20 | 1 << 3 | 1);
        }
        self.command(rig, Command::EnableDevice, 0)?;
        self.command(rig, Command::EnableWq, SHARED.index.into())
    }

    fn write_queue(&self, rig: &Rig, queue: Queue, pasid: Option<Pasid>) {
        let pasid_bits = match pasid {
            Some(pasid) => pasid.get() << 8 | 1 << 28,
            // A shared queue takes PASIDs from its descriptors.
            None => u32::from(!queue.dedicated) << 28,
        };
        // With page requests, descriptors may block on fault.
        let bof = u32::from(self.paging) << 1;
        let mode = u32::from(queue.dedicated) | bof | 10 << 4 | pasid_bits;
        // Transfers up to 2 MiB, batches up to 32.
        let limits = 21 | 5 << 5;
        let at = self.wqcfg + 32 * u64::from(queue.index);
        for (index, dword) in (0..).zip([queue.size, queue.threshold, mode, limits, 0, 0, 0, 0]) {
            write32(rig, at + 4 * index, dword);
        }
    }

    /// What opening a dedicated queue's file does: it is emptied and gets the PASID of the opener.
    pub fn open(&self, rig: &Rig, queue: Queue, pasid: Pasid) -> Verdict {
        self.write_queue(rig, queue, Some(pasid));
        self.command(rig, Command::EnableWq, queue.index.into())
    }

    /// What closing it does.
    pub fn close(&self, rig: &Rig, queue: Queue) -> Verdict {
        self.command(rig, Command::DrainWq, 1 << queue.index)?;
        self.command(rig, Command::ResetWq, 1 << queue.index)
    }

    /// A command with its interrupt; an error if it ends with one.
    pub fn command(&self, rig: &Rig, command: Command, operand: u32) -> Verdict {
        let raised = rig.vectors.count(0);
        self.start(rig, command, operand);
        self.finish(rig, raised)
    }

    /// Only the start of it.
    pub fn start(&self, rig: &Rig, command: Command, operand: u32) {
        write32(rig, CMD, operand | (command as u32) << 20 | INTERRUPT);
    }

    /// Waits for the end of a command, before which vector 0 had been raised `raised` times.
    pub fn finish(&self, rig: &Rig, raised: u64) -> Verdict {
        rig.wait("a command's interrupt", || rig.vectors.count(0) > raised)?;
        let cause = read32(rig, INTCAUSE);
        write32(rig, INTCAUSE, cause);
        check(cause & 2 != 0, "INTCAUSE says that a command is complete")?;
        equal(read32(rig, CMDSTATUS), 0, "CMDSTATUS")
    }

    /// Stores a descriptor to the limited portal, eight bytes at a time.
    pub fn store(&self, rig: &Rig, queue: Queue, descriptor: &Descriptor) {
        let slot = self.slot.replace((self.slot.get() + 1) % 64);
        let base = u64::from(queue.index) * PORTAL_STRIDE + LIMITED + 64 * slot;
        for (at, piece) in (base..).step_by(8).zip(descriptor.to_bytes().chunks(8)) {
            rig.device.bar_write(PORTALS, at, piece);
        }
    }

    /// Takes what SWERROR holds.
    pub fn take_software_error(&self, rig: &Rig) -> Option<SoftwareError> {
        let head = read64(rig, SWERROR);
        let error = SoftwareError {
            code: (head >> 8) as u8,
            wq: (head >> 16) as u8,
            pasid: (head >> 40) as u32 & 0xf_ffff,
            write: head >> 5 & 1 == 1,
            address: read64(rig, SWERROR + 16),
        };
        write64(rig, SWERROR, 3);
        (head & 1 == 1).then_some(error)
    }
}

/// A memory move with a completion record: from, to, record.
pub fn copy([from, to, record]: [u64; 3], size: u32) -> Descriptor {
    let (source, destination) = (Iova(from), Iova(to));
    Descriptor::new(Operation::MemoryMove { source, destination, size })
        .with_record(Iova(record))
        .with_flags(Flags::REQUEST_RECORD)
}

/// The same, waiting for pages that are not there.
pub fn patient_copy(addresses: [u64; 3], size: u32) -> Descriptor {
    let flags = Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT;
    copy(addresses, size).with_flags(flags)
}

/// The same in the name of `pasid`, as a processor puts it into a deferrable write.
pub fn copy_as(pasid: Pasid, addresses: [u64; 3], size: u32) -> Descriptor {
    copy(addresses, size).with_submitter(Submitter::new().with_pasid(pasid.get()))
}

pub fn read32(rig: &Rig, at: u64) -> u32 {
    let mut bytes = [0; 4];
    rig.device.bar_read(0, at, &mut bytes);
    u32::from_le_bytes(bytes)
}

pub fn read64(rig: &Rig, at: u64) -> u64 {
    let mut bytes = [0; 8];
    rig.device.bar_read(0, at, &mut bytes);
    u64::from_le_bytes(bytes)
}

pub fn write32(rig: &Rig, at: u64, value: u32) {
    rig.device.bar_write(0, at, &value.to_le_bytes());
}

pub fn write64(rig: &Rig, at: u64, value: u64) {
    rig.device.bar_write(0, at, &value.to_le_bytes());
}
