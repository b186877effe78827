//! Descriptors for the accelerator: good ones, with flaws.

use dsa::spec::{
    CompletionRecord, Descriptor, DestinationFlags, DifFlags, DifTags, Flags, Iova, Operation,
    SourceFlags, Submitter,
};

use super::{Hostile, BASE, PAGES};
use crate::common::memory::PAGE;
use crate::common::rig::Rig;

/// Members of a batch at most.
const MEMBERS: u64 = 8;

impl Hostile {
    /// A descriptor, with a flaw now and then.
    pub(super) fn descriptor(&mut self, rig: &Rig) -> [u8; Descriptor::SIZE] {
        let operation = match self.random.below(12) {
            0 => self.batch(rig),
            _ => self.operation(rig),
        };
        self.finish(rig, operation)
    }

    /// Writes the members of a batch somewhere, and gives the batch.
    fn batch(&mut self, rig: &Rig) -> Operation {
        let count = self.random.below(MEMBERS);
        let list = BASE + self.random.below(PAGES - 1) * PAGE + self.random.below(64) * 64;
        for index in 0..count {
            let operation = self.operation(rig);
            let member = self.finish(rig, operation);
            self.process.write(&rig.ram, list + 64 * index, &member);
        }
        let list = if self.random.once_in(8) { self.address(rig) } else { Iova(list) };
        Operation::Batch { list, count: count as u32 }
    }

    fn finish(&mut self, rig: &Rig, operation: Operation) -> [u8; Descriptor::SIZE] {
        let pasid = self.random.pick(&[0x10, 0x10, 0x10, 0x10, 0x11, 0, 0xf_ffff]);
        let record = Iova(self.address(rig).0 & !(CompletionRecord::SIZE as u64 - 1));
        let mut descriptor = Descriptor::new(operation)
            .with_submitter(Submitter::new().with_pasid(pasid))
            .with_record(record)
            .with_flags(Flags::REQUEST_RECORD);
        if self.random.once_in(10) {
            descriptor.control.set_flags(self.random.next() as u32 & 0xff_ffff);
        }
        let mut bytes = descriptor.to_bytes();
        if self.random.once_in(10) {
            let at = self.random.below(64) as usize;
            bytes[at] = self.random.next() as u8;
        }
        bytes
    }

    /// An operation that is no batch.
    fn operation(&mut self, rig: &Rig) -> Operation {
        let (source, destination) = (self.address(rig), self.address(rig));
        let other = self.address(rig);
        let size = self.size();
        let r = &mut self.random;
        let (pattern, expected, seed) = (r.next(), r.next() as u8, r.next() as u32);
        let aligned = |at: Iova| Iova(at.0 & !7);
        match r.below(12) {
            0 => Operation::Noop,
            1 => Operation::Drain { readback1: Iova(0), readback2: Iova(0) },
            2 | 3 => Operation::MemoryMove { source, destination, size },
            4 => Operation::Fill { pattern, destination, size },
            5 => Operation::Compare { source1: source, source2: destination, size, expected },
            6 => Operation::ComparePattern { source, pattern, size, expected },
            7 => Operation::CreateDelta {
                source1: aligned(source),
                source2: aligned(destination),
                size: size & !7,
                delta: aligned(other),
                max_delta_size: r.below(0x1_0000) as u32,
                expected_mask: expected,
            },
            8 => {
                let delta_size = r.below(4000) as u32;
                Operation::ApplyDelta { delta: source, destination, size, delta_size }
            }
            9 => {
                let destination2 = Iova(other.0 & !0xfff | destination.0 & 0xfff);
                Operation::Dualcast { source, destination1: destination, destination2, size }
            }
            10 if r.once_in(3) => Operation::CacheFlush { destination, size },
            10 => Operation::CopyCrc { source, destination, size, seed, seed_address: Iova(0) },
            _ => self.dif(source, destination, size),
        }
    }

    /// Data integrity fields: mostly unchecked, so that a block comes through.
    fn dif(&mut self, source: Iova, destination: Iova, size: u32) -> Operation {
        let r = &mut self.random;
        let flags = DifFlags::from_bits(r.below(16) as u8);
        let unchecked = SourceFlags::new().with_guard_disable(true).with_ref_disable(true);
        let source_flags =
            if r.once_in(3) { SourceFlags::from_bits(r.next() as u8) } else { unchecked };
        let destination_flags = DestinationFlags::from_bits(r.next() as u8 & !7);
        let source_tags = DifTags { app_mask: 0xffff, ..DifTags::default() };
        let destination_tags = source_tags;
        let block = flags.block().data() as u32;
        let (plain, protected) = (size / block * block, size / (block + 8) * (block + 8));
        match r.below(4) {
            0 => Operation::DifCheck { source, size: protected, source_flags, flags, source_tags },
            1 => Operation::DifInsert {
                source,
                destination,
                size: plain,
                destination_flags,
                flags,
                destination_tags,
            },
            2 => Operation::DifStrip {
                source,
                destination,
                size: protected,
                source_flags,
                flags,
                source_tags,
            },
            _ => Operation::DifUpdate {
                source,
                destination,
                size: protected,
                source_flags,
                destination_flags,
                flags,
                source_tags,
                destination_tags,
            },
        }
    }

    fn size(&mut self) -> u32 {
        let limit = self.random.pick(&[33, 4096, 0x1_0000, 0x2_0000, 0x10_0000, 1 << 32]);
        self.random.below(limit) as u32
    }

    /// An address for the accelerator: mostly one that the process has.
    fn address(&mut self, rig: &Rig) -> Iova {
        let inside = BASE + self.random.below(PAGES * PAGE);
        Iova(match self.random.below(16) {
            0 => self.value(rig),
            1..=4 => inside,
            _ => inside & !63,
        })
    }
}
