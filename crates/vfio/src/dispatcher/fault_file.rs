//! The file of a fault queue, as iommufd has it: page requests are read, answers are written.

use alloc::collections::VecDeque;
use core::fmt;

use iommu::{FaultQueueId, ObjectError, PageFault, Vm};
use spin::mutex::SpinMutex;
use zerocopy::{FromBytes, IntoBytes};

use crate::spec::{HwptPageFault, HwptPageResponse};
use crate::{page_request, Errno, FaultFile, Refusal};

/// Bytes of a request.
const REQUEST: usize = size_of::<HwptPageFault>();
/// Bytes of an answer.
const ANSWER: usize = size_of::<HwptPageResponse>();

/// The file of one queue.
pub(super) struct QueueFile<V> {
    vm: V,
    queue: FaultQueueId,
    /// A group that did not fit what was last read into. The host hands out whole groups, and
    /// bounds them.
    held: SpinMutex<VecDeque<PageFault>>,
}

impl<V: Vm> QueueFile<V> {
    pub(super) fn new(vm: V, queue: FaultQueueId) -> Self {
        Self { vm, queue, held: SpinMutex::default() }
    }

    /// Takes requests until a group is there as a whole; whether one is.
    fn fill(&self, held: &mut VecDeque<PageFault>) -> Result<bool, ObjectError> {
        while held.back().is_none_or(|fault| !fault.request.last) {
            let Some(fault) = self.vm.take_page_fault(self.queue)? else { return Ok(false) };
            // Nobody answers it, so nobody reads it: drivers keep it to themselves.
            if !fault.request.is_stop_marker() {
                held.push_back(fault);
            }
        }
        Ok(true)
    }

    fn read_groups(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        let mut held = self.held.lock();
        let mut done = 0;
        while done < bytes.len() {
            match self.fill(&mut held) {
                Ok(true) => (),
                Ok(false) => break,
                // What was read before counts; the error comes the next time.
                Err(_) if done > 0 => break,
                Err(error) => return Err(Refusal::from(error).errno()),
            }
            let rest = bytes.get_mut(done..).unwrap_or_default();
            if held.len() > rest.len() / REQUEST {
                // A group is read as a whole. The first of a read has to fit.
                return if done > 0 { Ok(done) } else { Err(Errno::EINVAL) };
            }
            for (to, fault) in rest.chunks_exact_mut(REQUEST).zip(held.drain(..)) {
                to.copy_from_slice(page_request::encode_fault(&fault).as_bytes());
                done += REQUEST;
            }
        }
        Ok(done)
    }

    fn answer(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let response = HwptPageResponse::read_from_bytes(bytes);
        let response = response.map_err(|_| Refusal::Value { offset: 0 })?;
        let (cookie, code) = page_request::decode_answer(&response, false, 0)?;
        Ok(self.vm.respond_page_fault(self.queue, cookie, code)?)
    }
}

impl<V: Vm> FaultFile for QueueFile<V> {
    fn read(&self, position: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        if position != 0 || bytes.len() % REQUEST != 0 {
            return Err(Errno::ESPIPE);
        }
        self.read_groups(bytes)
    }

    fn write(&self, position: u64, bytes: &[u8]) -> Result<usize, Errno> {
        if position != 0 || bytes.len() % ANSWER != 0 {
            return Err(Errno::ESPIPE);
        }
        let mut done = 0;
        for answer in bytes.chunks_exact(ANSWER) {
            match self.answer(answer) {
                Ok(()) => done += ANSWER,
                Err(_) if done > 0 => break,
                Err(refusal) => return Err(refusal.errno()),
            }
        }
        Ok(done)
    }
}

impl<V> fmt::Debug for QueueFile<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueFile").field("queue", &self.queue).finish_non_exhaustive()
    }
}
