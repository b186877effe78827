//! Rings and chains that a driver has no business writing.

use mem::MemoryMap;
use zerocopy::IntoBytes;

use super::*;
use crate::spec::DescriptorFlags;

const SIZE: u16 = 8;
const BASE: Gpa = Gpa(0x1000);
const BUFFER: Gpa = Gpa(0x2000);

struct Rig {
    memory: MemoryMap,
    ring: Ring,
    layout: QueueLayout,
}

impl Rig {
    fn new() -> Self {
        let memory = MemoryMap::anonymous(&[(Gpa(0x1000), 0x2000)]).unwrap();
        let layout = QueueLayout::contiguous(BASE, SIZE).unwrap();
        Self { memory, ring: Ring::new(layout), layout }
    }

    fn put(&self, index: u16, descriptor: Descriptor) {
        let at = Gpa(self.layout.descriptors.0 + DESCRIPTOR_SIZE * u64::from(index));
        self.memory.write(at, descriptor.as_bytes()).unwrap();
    }

    /// Puts `heads` into the ring and moves its index.
    fn offer(&self, heads: &[u16], index: u16) {
        let ring = self.layout.available.0;
        for (at, head) in (0..).zip(heads) {
            self.memory.store_u16(Gpa(ring + available::entry(at, SIZE)), *head).unwrap();
        }
        self.memory.store_u16(Gpa(ring + available::INDEX), index).unwrap();
    }

    fn chain(&self) -> Result<Chain, ChainError> {
        self.ring.chain(&self.memory, 0)
    }
}

#[test]
fn chains_come_in_order_and_go_back_with_what_was_written() {
    let mut rig = Rig::new();
    rig.offer(&[3, 5], 2);
    assert_eq!(rig.ring.take(&rig.memory), Ok(Some(3)));
    rig.ring.give_back(&rig.memory, 3, 8).unwrap();
    assert_eq!(rig.ring.take(&rig.memory), Ok(Some(5)));
    rig.ring.give_back(&rig.memory, 5, 4).unwrap();
    assert_eq!(rig.ring.take(&rig.memory), Ok(None));

    let mut used = [0; 20];
    rig.memory.read(rig.layout.used, &mut used).unwrap();
    assert_eq!(used, [0, 0, 2, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0]);
}

#[test]
fn the_index_wraps() {
    let mut rig = Rig::new();
    for taken in 0..=u16::MAX {
        rig.offer(&[1; SIZE as usize], taken.wrapping_add(1));
        assert_eq!(rig.ring.take(&rig.memory), Ok(Some(1)));
        rig.ring.give_back(&rig.memory, 1, 0).unwrap();
    }
    assert_eq!(rig.ring.take(&rig.memory), Ok(None));
    assert_eq!(rig.ring, Ring::new(rig.layout));
}

#[test]
fn more_than_the_queue_holds_is_an_error() {
    let mut rig = Rig::new();
    rig.offer(&[], SIZE + 1);
    assert_eq!(rig.ring.take(&rig.memory), Err(RingError::TooMany(SIZE + 1)));
    // Backwards is forward by a lot.
    rig.offer(&[], u16::MAX);
    assert_eq!(rig.ring.take(&rig.memory), Err(RingError::TooMany(u16::MAX)));
    rig.offer(&[SIZE], 1);
    assert_eq!(rig.ring.take(&rig.memory), Err(RingError::BadHead(SIZE)));
}

#[test]
fn a_chain_is_not_taken_if_it_cannot_be_given_back() {
    let mut rig = Rig::new();
    let layout = QueueLayout { used: Gpa(0x3000), ..rig.layout };
    rig.ring = Ring::new(layout);
    rig.offer(&[1], 1);
    let gone = MemError::Unmapped { gpa: Gpa(0x3002) };
    assert_eq!(rig.ring.take(&rig.memory), Err(RingError::Memory(gone)));
    assert_eq!(rig.ring, Ring::new(layout));
    // The index is there, its first entry is not.
    rig.ring = Ring::new(QueueLayout { used: Gpa(0x2ffc), ..layout });
    let gone = MemError::Unmapped { gpa: Gpa(0x3000) };
    assert_eq!(rig.ring.take(&rig.memory), Err(RingError::Memory(gone)));
}

#[test]
fn a_chain_is_read_and_written_across_its_buffers() {
    let rig = Rig::new();
    rig.put(0, Descriptor::new(BUFFER, 3, false, Some(6)));
    rig.put(6, Descriptor::new(Gpa(BUFFER.0 + 0x10), 2, false, Some(2)));
    rig.put(2, Descriptor::new(Gpa(BUFFER.0 + 0x20), 1, true, Some(7)));
    rig.put(7, Descriptor::new(Gpa(BUFFER.0 + 0x30), 2, true, None));
    rig.memory.write(BUFFER, b"abcX").unwrap();
    rig.memory.write(Gpa(BUFFER.0 + 0x10), b"deX").unwrap();

    let chain = rig.chain().unwrap();
    let mut bytes = [0; 8];
    assert_eq!(chain.read(&rig.memory, &mut bytes), Ok(5));
    assert_eq!(&bytes, b"abcde\0\0\0");
    let mut bytes = [0; 4];
    assert_eq!(chain.read(&rig.memory, &mut bytes), Ok(4));
    assert_eq!(&bytes, b"abcd");
    assert_eq!(chain.room(), 3);
    chain.write(&rig.memory, b"xyz").unwrap();
    let mut written = [0; 0x13];
    rig.memory.read(Gpa(BUFFER.0 + 0x20), &mut written).unwrap();
    assert_eq!(written[..2], *b"x\0");
    assert_eq!(written[0x10..], *b"yz\0");
}

#[test]
fn what_is_no_chain_is_told_why_not() {
    let rig = Rig::new();
    // A loop, of one descriptor and of all.
    rig.put(0, Descriptor::new(BUFFER, 1, false, Some(0)));
    assert_eq!(rig.chain(), Err(ChainError::Loop));
    for index in 0..SIZE {
        rig.put(index, Descriptor::new(BUFFER, 1, false, Some((index + 1) % SIZE)));
    }
    assert_eq!(rig.chain(), Err(ChainError::Loop));
    // All of the table, without a loop, is a chain.
    rig.put(SIZE - 1, Descriptor::new(BUFFER, 1, false, None));
    assert!(rig.chain().is_ok());

    rig.put(0, Descriptor::new(BUFFER, 1, false, Some(SIZE)));
    assert_eq!(rig.chain(), Err(ChainError::BadNext(SIZE)));
    rig.put(0, Descriptor::new(BUFFER, 1, true, Some(1)));
    assert_eq!(rig.chain(), Err(ChainError::ReadAfterWrite));
    let indirect = DescriptorFlags::new().with_indirect(true);
    rig.put(0, Descriptor::new(BUFFER, 16, false, None).with_flags(indirect));
    assert_eq!(rig.chain(), Err(ChainError::Indirect));
}

#[test]
fn buffers_outside_memory_are_found_out_before_anything_is_written() {
    let rig = Rig::new();
    rig.put(0, Descriptor::new(BUFFER, 4, true, Some(1)));
    rig.put(1, Descriptor::new(Gpa(0x2ffe), 4, true, None));
    let chain = rig.chain().unwrap();
    let gone = MemError::Unmapped { gpa: Gpa(0x3000) };
    assert_eq!(chain.check_writable(&rig.memory), Err(gone));

    rig.put(0, Descriptor::new(Gpa(u64::MAX), u32::MAX, false, Some(1)));
    rig.put(1, Descriptor::new(Gpa(u64::MAX), u32::MAX, true, None));
    let chain = rig.chain().unwrap();
    assert!(chain.read(&rig.memory, &mut [0; 8]).is_err());
    assert!(chain.check_writable(&rig.memory).is_err());
    assert_eq!(chain.room(), u64::from(u32::MAX));
}

#[test]
fn a_chain_in_a_table_that_is_not_memory_is_no_chain() {
    let rig = Rig::new();
    let layout = QueueLayout { descriptors: Gpa(0x2fe0), ..rig.layout };
    rig.memory.write(Gpa(0x2fe0), Descriptor::new(BUFFER, 1, false, Some(7)).as_bytes()).unwrap();
    let gone = MemError::Unmapped { gpa: Gpa(0x3050) };
    assert_eq!(Ring::new(layout).chain(&rig.memory, 0), Err(ChainError::Memory(gone)));
}

#[test]
fn the_driver_decides_whether_it_wants_an_interrupt() {
    let rig = Rig::new();
    assert!(rig.ring.wants_interrupt(&rig.memory));
    rig.memory.store_u16(rig.layout.available, available::NO_INTERRUPT).unwrap();
    assert!(!rig.ring.wants_interrupt(&rig.memory));
}
