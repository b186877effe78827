//! The guest's end of the page request queue (7.4, 7.10).

mod drain;
mod groups;

use iommu::{PageRequest, Pasid, PrgIndex, ResponseCode};
use mem::{Gpa, GuestMemory};
use pci::RequesterId;

use super::queue::{InvalidationQueue, SubmitError};
use super::{Clock, Registers};
use crate::spec::{
    Descriptor, EventControl, ExtendedCapability, PageGroupResponse, PageRequestDescriptor,
    PageRequestQueueAddress, PageRequestStatus, EXTENDED_CAPABILITY_OFFSET, RESPONSE_FAILURE,
    RESPONSE_INVALID, RESPONSE_SUCCESS,
};
pub use drain::{DrainError, DRAIN_ROUNDS};
use groups::{Groups, Key};
pub use groups::{MAX_DEFERRED, MAX_PARTIAL};

const PQH: u16 = 0xc0;
const PQT: u16 = 0xc8;
const PQA: u16 = 0xd0;
const PRS: u16 = 0xdc;
const PECTL: u16 = 0xe0;
const PEDATA: u16 = 0xe4;
const PEADDR: u16 = 0xe8;
const PEUADDR: u16 = 0xec;

/// Why the queue cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageQueueError {
    /// The unit has no page requests.
    #[error("the unit offers no page requests")]
    NotOffered,
    /// The caller's mistake: the size of a ring is 2 to the power of 0 to 7 pages.
    #[error("a ring of 2^{0} pages cannot be had")]
    Order(u8),
    /// The caller's mistake: the ring is not in memory.
    #[error("there is no memory at {0:x}", address.0)]
    NoMemory {
        /// Where.
        address: Gpa,
    },
    /// The unit's mistake: its tail is no entry of the ring. The requests are lost.
    #[error("the unit's tail {tail:#x} is not in the ring")]
    Tail {
        /// The register.
        tail: u64,
    },
    /// An answer could not be given.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

/// What one turn of the handler came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Handled {
    /// Entries taken from the ring.
    pub entries: u64,
    /// Groups that the handler was asked about.
    pub groups: u64,
    /// Groups answered Invalid, since one of their requests makes no sense.
    pub refused: u64,
    /// Entries that are no page request. Nobody can be answered for them.
    pub unknown: u64,
    /// Stop markers.
    pub stop_markers: u64,
    /// Whether an overflow was found and cleared; the groups that were not whole are discarded, and
    /// their devices ask again.
    pub overflow: bool,
}

/// The page request queue of one unit.
///
/// [`handle`](Self::handle) is to be called for each page request event, and before a group of a
/// device can be waited for. It has the guest decide about whole groups, and answers each exactly
/// once: at once, or when the guest comes back with [`respond`](Self::respond).
#[derive(Debug)]
pub struct PageRequestQueue<R, M> {
    registers: R,
    memory: M,
    ring: Gpa,
    /// Size in bytes.
    size: u64,
    groups: Groups,
}

impl<R: Registers, M: GuestMemory> PageRequestQueue<R, M> {
    /// Takes a ring of 2 to the power of `order` pages at `ring` into use. The event stays masked.
    ///
    /// # Errors
    ///
    /// See [`PageQueueError`].
    pub fn enable(registers: R, memory: M, ring: Gpa, order: u8) -> Result<Self, PageQueueError> {
        let extended = ExtendedCapability::from_bits(registers.read64(EXTENDED_CAPABILITY_OFFSET));
        if !extended.page_requests() || extended.into_bits() == u64::MAX {
            return Err(PageQueueError::NotOffered);
        }
        if order > 7 {
            return Err(PageQueueError::Order(order));
        }
        let size = 4096 << order;
        for address in [ring, Gpa(ring.0.saturating_add(size - 8))] {
            memory.load_u64(address).map_err(|_| PageQueueError::NoMemory { address })?;
        }
        registers.write64(PQH, 0);
        registers.write64(PQT, 0);
        let address = PageRequestQueueAddress::new().with_page(ring.0 >> 12).with_size(order);
        registers.write64(PQA, address.into_bits());
        let stale = PageRequestStatus::new().with_pending(true).with_overflow(true);
        registers.write32(PRS, stale.into_bits());
        Ok(Self { registers, memory, ring, size, groups: Groups::default() })
    }

    /// Has the event sent as `data` to `address`, from now on.
    pub fn unmask_event(&self, address: u32, data: u32) {
        self.registers.write32(PEDATA, data);
        self.registers.write32(PEADDR, address);
        self.registers.write32(PEUADDR, 0);
        self.registers.write32(PECTL, EventControl::new().into_bits());
    }

    /// No request is taken any more; those that come are the unit's to lose.
    pub fn disable(self) {
        self.registers.write32(PECTL, EventControl::new().with_masked(true).into_bits());
        self.registers.write64(PQH, 0);
        self.registers.write64(PQT, 0);
        self.registers.write64(PQA, 0);
    }

    /// Takes what is in the ring. Of each group that is whole, `decide` says what becomes of it:
    /// an answer, or `None` if there will be one later. Groups with a request that makes no sense
    /// are answered Invalid without asking.
    ///
    /// # Errors
    ///
    /// See [`PageQueueError`]. If an answer cannot be given, the group counts as answered.
    pub fn handle<C: Clock, N: GuestMemory>(
        &mut self,
        queue: &mut InvalidationQueue<R, C, N>,
        decide: &mut dyn FnMut(&[PageRequest]) -> Option<ResponseCode>,
    ) -> Result<Handled, PageQueueError> {
        let mut handled = Handled::default();
        // First of all: what comes later raises the event again.
        self.registers.write32(PRS, PageRequestStatus::new().with_pending(true).into_bits());
        let tail = self.registers.read64(PQT);
        let mut head = self.registers.read64(PQH) % self.size;
        if tail >= self.size || tail % PageRequestDescriptor::BYTES != 0 {
            self.registers.write64(PQH, 0);
            self.registers.write64(PQT, 0);
            return Err(PageQueueError::Tail { tail });
        }
        let mut result = Ok(());
        for _ in 0..self.size / PageRequestDescriptor::BYTES {
            if head == tail {
                break;
            }
            let entry = self.entry(head)?;
            handled.entries += 1;
            let taken = self.take(entry, queue, decide, &mut handled);
            result = result.and(taken);
            head = (head + PageRequestDescriptor::BYTES) % self.size;
        }
        self.registers.write64(PQH, tail);
        handled.overflow = self.clear_overflow();
        result.map(|()| handled)
    }

    /// Answers a group that `decide` left open; whether it was open.
    ///
    /// # Errors
    ///
    /// [`PageQueueError::Submit`]; the group counts as answered.
    pub fn respond<C: Clock, N: GuestMemory>(
        &mut self,
        queue: &mut InvalidationQueue<R, C, N>,
        request: &PageRequest,
        code: ResponseCode,
    ) -> Result<bool, PageQueueError> {
        let open = self.groups.close(&Key::of(request));
        if open {
            answer(queue, &Key::of(request), code)?;
        }
        Ok(open)
    }

    /// Groups that `decide` left open.
    pub fn open_groups(&self) -> usize {
        self.groups.open()
    }

    fn entry(&self, offset: u64) -> Result<PageRequestDescriptor, PageQueueError> {
        let mut words = [0; 4];
        for (word, index) in words.iter_mut().zip((0..).step_by(8)) {
            let address = Gpa(self.ring.0.saturating_add(offset + index));
            let loaded = self.memory.load_u64(address);
            *word = loaded.map_err(|_| PageQueueError::NoMemory { address })?;
        }
        Ok(PageRequestDescriptor(words))
    }

    fn take<C: Clock, N: GuestMemory>(
        &mut self,
        entry: PageRequestDescriptor,
        queue: &mut InvalidationQueue<R, C, N>,
        decide: &mut dyn FnMut(&[PageRequest]) -> Option<ResponseCode>,
        handled: &mut Handled,
    ) -> Result<(), PageQueueError> {
        let Ok(request) = entry.decode() else {
            handled.unknown += 1;
            return Ok(());
        };
        if request.is_stop_marker() {
            handled.stop_markers += 1;
            return Ok(());
        }
        let Some(group) = self.groups.add(request) else { return Ok(()) };
        let code = if group.is_sound {
            handled.groups += 1;
            decide(&group.requests)
        } else {
            handled.refused += 1;
            Some(ResponseCode::Invalid)
        };
        match code {
            None if self.groups.leave_open(Key::of(&request)) => Ok(()),
            code => answer(queue, &Key::of(&request), code.unwrap_or(ResponseCode::Invalid)),
        }
    }

    /// Clears an overflow, if the ring is empty; whether it did. Before that, hardware writes
    /// nothing, so nothing is lost by looking again later.
    fn clear_overflow(&mut self) -> bool {
        let is_empty = self.registers.read64(PQH) == self.registers.read64(PQT);
        if !self.has_overflow() || !is_empty {
            return false;
        }
        self.groups.discard_partial();
        let overflow = PageRequestStatus::new().with_overflow(true);
        self.registers.write32(PRS, overflow.into_bits());
        true
    }

    fn has_overflow(&self) -> bool {
        PageRequestStatus::from_bits(self.registers.read32(PRS)).overflow()
    }

    /// Whether the ring has an entry of this device and PASID.
    fn has_request_of(
        &self,
        source: RequesterId,
        pasid: Option<Pasid>,
    ) -> Result<bool, PageQueueError> {
        let tail = self.registers.read64(PQT) % self.size;
        let mut head = self.registers.read64(PQH) % self.size;
        for _ in 0..self.size / PageRequestDescriptor::BYTES {
            if head == tail {
                break;
            }
            if let Ok(request) = self.entry(head)?.decode() {
                if (request.requester, request.pasid) == (source, pasid) {
                    return Ok(true);
                }
            }
            head = (head + PageRequestDescriptor::BYTES) % self.size;
        }
        Ok(false)
    }
}

/// Has a page group response carried out.
fn answer<R: Registers, C: Clock, N: GuestMemory>(
    queue: &mut InvalidationQueue<R, C, N>,
    key: &Key,
    code: ResponseCode,
) -> Result<(), PageQueueError> {
    let Key { source, pasid, group, private_data } = *key;
    let code = match code {
        ResponseCode::Success => RESPONSE_SUCCESS,
        ResponseCode::Invalid => RESPONSE_INVALID,
        ResponseCode::Failure => RESPONSE_FAILURE,
    };
    let group = PrgIndex::get(group);
    let response = PageGroupResponse { source, pasid, group, code, private_data };
    Ok(queue.submit(&[Descriptor::PageGroupResponse(response)], false)?)
}
