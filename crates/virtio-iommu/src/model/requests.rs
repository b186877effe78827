//! What a request does: a total decode, a plain apply, an answer.

use iommu::{AllocPasidError, FreePasidError, GuestPasid, Pasid, PasidRange, Vm};
use mem::GuestMemory;

use super::ring::Chain;
use super::{Model, MAX_REPLY_SIZE, PROBE_SIZE};
use crate::spec::{DecodeError, Reply, Request, RequestStatus, MAX_REQUEST_SIZE, TAIL_SIZE};

impl<V: Vm> Model<V> {
    /// Does what the request in `chain` asks, and answers it; how many bytes were written, zero
    /// if it cannot be answered, in which case nothing was done.
    pub(super) fn serve(&mut self, memory: &dyn GuestMemory, chain: &Chain) -> Option<u32> {
        let room = usize::try_from(chain.room()).ok()?;
        if !(TAIL_SIZE..=MAX_REPLY_SIZE).contains(&room) {
            return None;
        }
        chain.check_writable(memory).ok()?;
        // One byte more than the longest, so that a longer one is told from it.
        let mut bytes = [0; MAX_REQUEST_SIZE + 1];
        let len = chain.read(memory, &mut bytes).ok()?;
        let mut answer = [0; MAX_REPLY_SIZE];
        let answer = answer.get_mut(..room)?;
        let (body, tail) = answer.split_last_chunk_mut::<TAIL_SIZE>()?;
        let status = match self.perform(bytes.get(..len)?, room) {
            Ok(reply) => {
                reply.encode(body);
                RequestStatus::Ok
            }
            Err(status) => {
                self.counters.requests_refused += 1;
                status
            }
        };
        tail[0] = status as u8;
        // This is the memory that was found writable above: the snapshot does not change.
        chain.write(memory, answer).ok()?;
        u32::try_from(room).ok()
    }

    fn perform(&mut self, bytes: &[u8], room: usize) -> Result<Reply, RequestStatus> {
        let probe_size = self.driver_features.probe().then_some(PROBE_SIZE);
        let numbers = self.revision().map(|revision| revision.numbers());
        let decoded = Request::decode(bytes, room, probe_size, numbers.as_ref());
        let unsupported = matches!(decoded, Err(DecodeError::Unsupported(_)));
        self.counters.requests_unsupported += u64::from(unsupported);
        match decoded.map_err(DecodeError::status)? {
            Request::Probe { endpoint } => {
                let known = self.options.endpoints.contains(&endpoint);
                known.then_some(Reply::NoProperties).ok_or(RequestStatus::NotFound)
            }
            Request::AllocPasid { first, last } => self.alloc_pasid(first, last),
            Request::FreePasid { pasid } => self.free_pasid(pasid),
        }
    }

    fn alloc_pasid(&mut self, first: u32, last: u32) -> Result<Reply, RequestStatus> {
        if last < first {
            return Err(RequestStatus::Invalid);
        }
        let range = Pasid::new(first).zip(Pasid::new(last));
        let range = range.and_then(|(first, last)| PasidRange::new(first, last));
        let range = range.ok_or(RequestStatus::Range)?;
        let GuestPasid(pasid) = self.vm.alloc_pasid(range).map_err(|error| match error {
            AllocPasidError::QuotaExceeded { .. } => RequestStatus::NoMemory,
            AllocPasidError::NoneAvailable => RequestStatus::NotFound,
            AllocPasidError::Closed | AllocPasidError::NoMemory => RequestStatus::DeviceError,
        })?;
        self.counters.pasids_allocated += 1;
        Ok(Reply::Pasid(pasid.get()))
    }

    fn free_pasid(&mut self, pasid: u32) -> Result<Reply, RequestStatus> {
        let pasid = Pasid::new(pasid).map(GuestPasid).ok_or(RequestStatus::Range)?;
        self.vm.free_pasid(pasid).map_err(|error| match error {
            FreePasidError::NotGranted(_) => RequestStatus::NotFound,
            FreePasidError::Closed => RequestStatus::DeviceError,
        })?;
        self.counters.pasids_freed += 1;
        Ok(Reply::Empty)
    }
}
