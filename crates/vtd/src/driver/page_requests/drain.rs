//! Draining: after an address space is unbound, no request of it is unanswered (7.10).

use iommu::{DomainId, PageRequest, Pasid, ResponseCode};
use mem::{GuestMemory, Iova};
use pci::RequesterId;

use super::{answer, InvalidationQueue, PageQueueError, PageRequestQueue};
use crate::driver::{Clock, Registers};
use crate::spec::{Descriptor, DeviceTlbScope, IotlbScope, PasidIotlbScope, Wait};

/// How often a drain begins anew at most: for requests that keep coming, or overflows.
pub const DRAIN_ROUNDS: u32 = 64;

/// Why a drain came to no end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DrainError {
    /// The queue, or a submission, failed.
    #[error(transparent)]
    Queue(#[from] PageQueueError),
    /// Requests kept coming, though nothing is bound any more.
    #[error("requests of device {source_id} keep coming after {rounds} rounds")]
    Requests {
        /// The device.
        source_id: RequesterId,
        /// How many times the drain was begun.
        rounds: u32,
    },
    /// The queue kept overflowing.
    #[error("the page request queue overflows again and again: {rounds} rounds")]
    Overflow {
        /// How many times the drain was begun.
        rounds: u32,
    },
    /// It took too long.
    #[error("page requests were not drained within {timeout_ns} ns")]
    Deadline {
        /// How long.
        timeout_ns: u64,
    },
}

impl<R: Registers, M: GuestMemory> PageRequestQueue<R, M> {
    /// Drains the page requests of a device's `pasid`, or of those without. To be called when the
    /// PASID entry is gone and its PASID cache, IOTLB and device TLB are invalidated (6.5.3.3);
    /// `domain` is what the entry had. Afterwards no request of that address space is in the ring or
    /// unanswered: groups that `decide` had left open are answered Invalid, and so is what arrives
    /// in the meantime, of that space. What arrives of others is decided as in
    /// [`handle`](Self::handle).
    ///
    /// # Errors
    ///
    /// See [`DrainError`]; it may be tried again.
    pub fn drain<C: Clock, N: GuestMemory>(
        &mut self,
        queue: &mut InvalidationQueue<R, C, N>,
        space: (RequesterId, Option<Pasid>),
        domain: DomainId,
        decide: &mut dyn FnMut(&[PageRequest]) -> Option<ResponseCode>,
    ) -> Result<(), DrainError> {
        let (source_id, pasid) = space;
        let timeout_ns = queue.timeout_ns();
        let start = queue.clock().now_ns();
        let mut decide = |requests: &[PageRequest]| {
            let of_space = |of: &PageRequest| (of.requester, of.pasid) == space;
            if requests.last().is_some_and(of_space) {
                return Some(ResponseCode::Invalid);
            }
            decide(requests)
        };
        let mut overflow = false;
        for _ in 0..DRAIN_ROUNDS {
            if queue.clock().now_ns().saturating_sub(start) >= timeout_ns {
                return Err(DrainError::Deadline { timeout_ns });
            }
            if self.has_request_of(source_id, pasid)? {
                let _handled = self.handle(queue, &mut decide)?;
            }
            while let Some(key) = self.groups.close_one_of(source_id, pasid) {
                answer(queue, &key, ResponseCode::Invalid)?;
            }
            let descriptors = descriptors(source_id, pasid, domain);
            queue.submit(&descriptors, true).map_err(PageQueueError::from)?;
            overflow = self.has_overflow();
            if overflow {
                // Clears it, once the ring is empty.
                let _handled = self.handle(queue, &mut decide)?;
            } else if !self.has_request_of(source_id, pasid)? {
                self.groups.discard_partial_of(source_id, pasid);
                return Ok(());
            }
        }
        let rounds = DRAIN_ROUNDS;
        Err(match overflow {
            true => DrainError::Overflow { rounds },
            false => DrainError::Requests { source_id, rounds },
        })
    }
}

/// A fence, and invalidations that push out what is under way; the wait with PD follows.
fn descriptors(source: RequesterId, pasid: Option<Pasid>, domain: DomainId) -> [Descriptor; 3] {
    let scope = DeviceTlbScope { address: Iova(0x7fff_ffff_ffff_f000), large: true };
    let fence = Descriptor::Wait(Wait { fence: true, ..Wait::default() });
    match pasid {
        Some(pasid) => [
            fence,
            Descriptor::PasidIotlb { domain, pasid, scope: PasidIotlbScope::All },
            Descriptor::PasidDeviceTlb { source, pasid: Some(pasid), scope },
        ],
        None => [
            fence,
            Descriptor::Iotlb {
                scope: IotlbScope::Domain(domain),
                drain_reads: true,
                drain_writes: true,
            },
            Descriptor::DeviceTlb { source, scope },
        ],
    }
}
