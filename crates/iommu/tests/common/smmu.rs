//! Tables of an SMMUv3, written bit by bit: pages of 4 KiB, 48 bits in stage 1 and 39 in stage 2.

use iommu::format::smmuv3::event;
use iommu::{
    AddressSpace, Channel, DefaultSubstream, DescriptorForm, DescriptorTable, DeviceContext,
    DmaError, FaultReason, Invalidation, SmmuCaps, SmmuInvalidation, SmmuStageTwo, StreamContext,
    StreamTranslation, Vm, Vmid,
};
use mem::{Gpa, GuestMemory};
use pgtable::{ArmStageTwo, Granule, Vtcr};

use super::{dma, Guest, Op, DEVICE, MEMORY};

pub const SMMU: SmmuCaps =
    SmmuCaps { substream_bits: 16, output_bits: 44, wide_addresses: false, ..SmmuCaps::FULL };

pub const VMID: Vmid = Vmid(7);

/// A table descriptor, and at level 1 a page.
pub const TABLE: u64 = 0b11;
/// A page at a higher level.
pub const BLOCK: u64 = 0b01;
/// AP[1]: open to requests without privilege.
pub const EL0: u64 = 1 << 6;
/// AP[2].
pub const READ_ONLY: u64 = 1 << 7;
pub const AF: u64 = 1 << 10;
/// nG.
pub const NOT_GLOBAL: u64 = 1 << 11;
pub const DBM: u64 = 1 << 51;
/// A writable page of one address space.
pub const PAGE: u64 = TABLE | EL0 | AF | NOT_GLOBAL;
/// S2AP.
pub const S2_READ: u64 = 1 << 6;
pub const S2_WRITE: u64 = 1 << 7;
pub const S2_PAGE: u64 = TABLE | S2_READ | S2_WRITE | AF;

/// T0SZ 16, EPD1, V, IPS 4 (44 bits), AA64, R, A.
pub const DESCRIPTOR: u64 = 16 | 1 << 30 | 1 << 31 | 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46;
/// The field R.
pub const RECORD: u64 = 1 << 45;

pub fn asid(number: u16) -> u64 {
    u64::from(number) << 48
}

/// The words of a context descriptor for the low half, with more bits of the first.
pub fn descriptor(root: Gpa, word0: u64) -> [u64; 8] {
    [DESCRIPTOR | word0, root.0, 0, 0, 0, 0, 0, 0]
}

pub fn stream(translation: StreamTranslation) -> DeviceContext {
    stream_with(translation, false)
}

/// The stream of a device that may ask for translations, or may not.
pub fn stream_with(translation: StreamTranslation, ats: bool) -> DeviceContext {
    let (vmid, privilege, caps) = (VMID, None, SMMU);
    DeviceContext::Smmuv3(StreamContext { vmid, translation, privilege, ats, caps })
}

/// A linear table of 2^`bits` descriptors.
pub fn linear(root: Gpa, bits: u8, default: DefaultSubstream) -> DescriptorTable {
    DescriptorTable { root, bits, form: DescriptorForm::Linear, default }
}

/// A stage 2 of three levels.
pub fn stage_two(root: Gpa) -> SmmuStageTwo {
    let vtcr = Vtcr { t0sz: 25, sl0: 1, tg0: Granule::Kib4.tg0(), ps: 4, wide: false };
    SmmuStageTwo { root, format: ArmStageTwo::from_vtcr(&vtcr).unwrap(), record: true }
}

impl Guest {
    pub fn set_stream(&self, translation: StreamTranslation) {
        self.set_context(stream(translation));
        self.settle(Invalidation::Smmuv3(SmmuInvalidation::ConfigAll));
        self.settle(Invalidation::Smmuv3(SmmuInvalidation::TlbAll));
    }

    /// Has the device's stream-table entry refused.
    pub fn refuse_stream(&self, reason: FaultReason) {
        let fault = iommu::ContextFault { reason, fault_disable: false };
        *self.context.0.lock().unwrap() = Err(fault);
        self.settle(Invalidation::Smmuv3(SmmuInvalidation::ConfigAll));
    }

    pub fn store(&self, at: Gpa, words: &[u64]) {
        for (index, word) in (0..).zip(words) {
            self.memory.store_u64(Gpa(at.0 + 8 * index), *word).unwrap();
        }
    }

    /// Writes the descriptor of a substream of a linear table.
    pub fn set_descriptor(&self, table: Gpa, substream: u64, words: [u64; 8]) {
        self.store(Gpa(table.0 + 64 * substream), &words);
    }

    /// Writes the stage-1 entry for `address`.
    pub fn set_one(&mut self, root: Gpa, address: u64, level: u32, entry: u64) -> Gpa {
        let at = self.entry(root, 4, address, level, TABLE);
        self.memory.store_u64(at, entry).unwrap();
        at
    }

    /// Writes the stage-2 entry for `address`.
    pub fn set_two(&mut self, root: Gpa, address: u64, level: u32, entry: u64) -> Gpa {
        let at = self.entry(root, 3, address, level, TABLE);
        self.memory.store_u64(at, entry).unwrap();
        at
    }

    /// A stage 2 that maps all memory to itself, by blocks of 2 MiB or pages of 4 KiB.
    pub fn identity_two(&mut self, large: bool) -> Gpa {
        let root = self.table();
        let (level, step, kind) = if large { (2, 2 << 20, BLOCK) } else { (1, 4096, TABLE) };
        for address in (0..MEMORY).step_by(step) {
            let entry = address | S2_READ | S2_WRITE | AF | kind;
            self.set_two(root, address, level, entry);
        }
        root
    }
}

/// Makes one access; its result, and the reason and the event's number of its fault.
pub fn one(
    guest: &Guest,
    channel: &Channel,
    space: AddressSpace,
    at: u64,
    op: Op,
) -> (Result<u64, DmaError>, Option<(FaultReason, u8)>) {
    let result = dma(channel, space, at, op);
    let fault = guest.vm.take_fault().map(|fault| {
        assert_eq!((fault.requester, fault.pasid), (DEVICE, space.pasid));
        (fault.reason, event(&fault).map_or(0, |event| event.word0.id()))
    });
    assert_eq!(guest.vm.take_fault(), None);
    (result, fault)
}

pub fn reason_of(
    guest: &Guest,
    channel: &Channel,
    space: AddressSpace,
    at: u64,
) -> Option<FaultReason> {
    one(guest, channel, space, at, Op::Read).1.map(|(reason, _)| reason)
}
