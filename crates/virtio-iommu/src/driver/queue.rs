//! The driver's end of a split virtqueue (2.7). A request has a slot: two descriptors and their
//! buffers, which are the device's from the moment that it is told of them until it gives them
//! back, whether or not anybody still waits.

use core::sync::atomic::{fence, Ordering};

use mem::{Gpa, GuestMemory, MemError};
use zerocopy::IntoBytes;

use super::{word_of, Error, ProtocolError, RawAnswer, SetupError};
use crate::spec::{
    available, used, Descriptor, Numbers, QueueLayout, QueueLayoutError, Request, UsedElement,
    DESCRIPTOR_SIZE, MAX_REQUEST_SIZE, TAIL_SIZE,
};

/// The most requests that can be with the device at a time.
const SLOTS: usize = 8;

/// Entries of the queue, if the device can have that many.
const QUEUE_SIZE: u16 = 2 * SLOTS as u16;

/// The most bytes that the device is given room for in one request.
pub(super) const MAX_REPLY_SIZE: usize = 256;

/// Bytes of a slot's buffers: what is read is in the first half, what is written in the second.
const SLOT_SIZE: u64 = 2 * MAX_REPLY_SIZE as u64;

const _: () = assert!(MAX_REQUEST_SIZE <= MAX_REPLY_SIZE);

/// Bytes of guest memory that a driver keeps its queue in.
pub const REGION_SIZE: u64 =
    QueueLayout::contiguous_size(QUEUE_SIZE).next_multiple_of(16) + SLOTS as u64 * SLOT_SIZE;

/// Which slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlotIndex(u16);

/// Whose a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    /// Nobody's.
    Free,
    /// The device's; somebody waits for it.
    Waiting(Pending),
    /// The device's; nobody waits any more.
    Abandoned(Pending),
    /// Given back, and not looked at yet.
    Done { room: usize, len: usize },
    /// Given back too late, with a PASID that nobody waits for any more.
    LateGrant(u32),
}

/// A request that the device has, and how many bytes it may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pending {
    request: Request,
    room: usize,
}

/// Bytes that no answer is made of: what the device does not write says nothing.
const UNWRITTEN: [u8; MAX_REPLY_SIZE] = [0xff; MAX_REPLY_SIZE];

/// A queue as its driver sees it.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    layout: QueueLayout,
    buffers: Gpa,
    slots: [Slot; SLOTS],
    /// How many of the slots the queue has descriptors for.
    usable: u16,
    /// Chains ever made available, modulo 2^16.
    offered: u16,
    /// Chains ever taken back, modulo 2^16.
    taken_back: u16,
}

impl Queue {
    /// A queue from `region` on for a device that can have `limit` entries.
    pub(super) fn new(
        memory: &impl GuestMemory,
        region: Gpa,
        limit: u16,
    ) -> Result<Self, SetupError> {
        let size = limit.min(QUEUE_SIZE);
        // A queue's size is a power of two; a request takes two entries.
        let size = size.checked_ilog2().map_or(0, |bits| 1 << bits);
        if size < 2 {
            return Err(SetupError::QueueTooShort(limit));
        }
        let wraps = QueueLayoutError::Wraps(region);
        let bad = |error| SetupError::BadRegion { region, error };
        region.checked_add(REGION_SIZE).ok_or_else(|| bad(wraps))?;
        let layout = QueueLayout::contiguous(region, size).ok_or_else(|| bad(wraps))?;
        let layout = layout.checked().map_err(bad)?;
        // Nothing of an earlier life of the region may look like the device's word.
        for offset in 0..REGION_SIZE / 2 {
            memory.store_u16(Gpa(region.0 + 2 * offset), 0)?;
        }
        // The driver looks by itself.
        memory.store_u16(Gpa(layout.available.0 + available::FLAGS), available::NO_INTERRUPT)?;
        let buffers = Gpa(region.0 + REGION_SIZE - SLOTS as u64 * SLOT_SIZE);
        let slots = [Slot::Free; SLOTS];
        Ok(Self { layout, buffers, slots, usable: size / 2, offered: 0, taken_back: 0 })
    }

    pub(super) fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// A slot that nobody has.
    pub(super) fn free_slot(&self) -> Option<SlotIndex> {
        self.slots().find(|(_, slot)| *slot == Slot::Free).map(|(index, _)| index)
    }

    /// A slot in which a PASID came back that nobody waits for, and its number.
    pub(super) fn late_grant(&self) -> Option<(SlotIndex, u32)> {
        self.slots().find_map(|(index, slot)| match slot {
            Slot::LateGrant(number) => Some((index, number)),
            _ => None,
        })
    }

    fn slots(&self) -> impl Iterator<Item = (SlotIndex, Slot)> + '_ {
        (0..self.usable).map(SlotIndex).zip(self.slots)
    }

    fn slot_mut(&mut self, SlotIndex(index): SlotIndex) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    /// Where the device reads a slot's request, and where it writes the answer.
    fn buffers_of(&self, SlotIndex(index): SlotIndex) -> (Gpa, Gpa) {
        let read = self.buffers.0 + SLOT_SIZE * u64::from(index);
        (Gpa(read), Gpa(read + MAX_REPLY_SIZE as u64))
    }

    /// Gives the device a request in a slot that it does not have. On an error it has not got it.
    pub(super) fn submit(
        &mut self,
        memory: &impl GuestMemory,
        slot: SlotIndex,
        request: Request,
        numbers: &Numbers,
        probe_size: usize,
    ) -> Result<(), MemError> {
        let mut bytes = [0; MAX_REQUEST_SIZE];
        let len = request.encode(numbers, &mut bytes);
        let room = (request.body_size(probe_size) + TAIL_SIZE).min(MAX_REPLY_SIZE);
        let (read, written) = self.buffers_of(slot);
        memory.write(read, &bytes[..len])?;
        memory.write(written, &UNWRITTEN[..room])?;

        let head = 2 * slot.0;
        let descriptors = [
            Descriptor::new(read, len as u32, false, Some(head + 1)),
            Descriptor::new(written, room as u32, true, None),
        ];
        let at = Gpa(self.layout.descriptors.0 + DESCRIPTOR_SIZE * u64::from(head));
        memory.write(at, descriptors.as_bytes())?;
        let ring = self.layout.available.0;
        let entry = available::entry(self.offered, self.layout.size);
        memory.store_u16(Gpa(ring + entry), head)?;
        // Release: a device that sees the index sees the rest.
        let offered = self.offered.wrapping_add(1);
        memory.store_u16(Gpa(ring + available::INDEX), offered)?;
        self.offered = offered;
        *self.slot_mut(slot) = Slot::Waiting(Pending { request, room });
        Ok(())
    }

    /// Whether the device wants to be told of what it was given.
    pub(super) fn wants_notification(&self, memory: &impl GuestMemory) -> bool {
        // The index is written before the flag is read; the device does it the other way round.
        fence(Ordering::SeqCst);
        let flags = memory.load_u16(Gpa(self.layout.used.0 + used::FLAGS));
        flags.is_ok_and(|flags| flags & used::NO_NOTIFY == 0)
    }

    /// Takes what the device gave back.
    pub(super) fn collect(&mut self, memory: &impl GuestMemory) -> Result<(), Error> {
        let ring = self.layout.used.0;
        // Acquire: what the device wrote before the index is seen after it.
        let index = memory.load_u16(Gpa(ring + used::INDEX))?;
        let got = index.wrapping_sub(self.taken_back);
        let with_device = |slot: &Slot| matches!(slot, Slot::Waiting(_) | Slot::Abandoned(_));
        let outstanding = self.slots.iter().filter(|slot| with_device(slot)).count() as u16;
        if got > outstanding {
            return Err(ProtocolError::TooMany { got, outstanding }.into());
        }
        for _ in 0..got {
            let mut element = UsedElement { id: 0.into(), len: 0.into() };
            let at = ring + used::entry(self.taken_back, self.layout.size);
            memory.read(Gpa(at), element.as_mut_bytes())?;
            self.taken_back = self.taken_back.wrapping_add(1);
            self.take_back(memory, element)?;
        }
        Ok(())
    }

    fn take_back(&mut self, memory: &impl GuestMemory, element: UsedElement) -> Result<(), Error> {
        let id = element.id.get();
        let not_out = ProtocolError::NotOut(id);
        let head = u16::try_from(id).ok().filter(|id| id % 2 == 0 && id / 2 < self.usable);
        let slot = SlotIndex(head.ok_or(not_out)? / 2);
        let (pending, waited_for) = match *self.slot_mut(slot) {
            Slot::Waiting(pending) => (pending, true),
            Slot::Abandoned(pending) => (pending, false),
            Slot::Free | Slot::Done { .. } | Slot::LateGrant(_) => return Err(not_out.into()),
        };
        let Pending { request, room } = pending;
        let got = element.len.get();
        let len = usize::try_from(got).ok().filter(|len| *len <= room);
        let len = len.ok_or(ProtocolError::TooLong { got, room })?;
        *self.slot_mut(slot) = if waited_for {
            Slot::Done { room, len }
        } else {
            let late = matches!(request, Request::AllocPasid { .. });
            let answer = self.read_answer(memory, slot, room, len)?;
            let number = late.then(|| word_of(answer).ok()).flatten();
            number.map_or(Slot::Free, Slot::LateGrant)
        };
        Ok(())
    }

    /// The answer in a slot, if it is there; the slot is nobody's then.
    pub(super) fn take_answer(
        &mut self,
        memory: &impl GuestMemory,
        slot: SlotIndex,
    ) -> Result<Option<RawAnswer>, MemError> {
        let Slot::Done { room, len } = *self.slot_mut(slot) else { return Ok(None) };
        *self.slot_mut(slot) = Slot::Free;
        self.read_answer(memory, slot, room, len).map(Some)
    }

    /// Nobody waits for the answer in a slot any more.
    pub(super) fn abandon(&mut self, slot: SlotIndex) {
        if let Slot::Waiting(pending) = *self.slot_mut(slot) {
            *self.slot_mut(slot) = Slot::Abandoned(pending);
        }
    }

    fn read_answer(
        &self,
        memory: &impl GuestMemory,
        slot: SlotIndex,
        room: usize,
        len: usize,
    ) -> Result<RawAnswer, MemError> {
        let mut answer = RawAnswer { bytes: [0; MAX_REPLY_SIZE], len, room };
        let (_, written) = self.buffers_of(slot);
        // By `submit` there is no more room than a buffer has.
        memory.read(written, &mut answer.bytes[..room])?;
        Ok(answer)
    }
}
