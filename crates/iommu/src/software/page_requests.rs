//! The page requests of a VM: what waits for its IOMMU model, and which groups are unanswered.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;

use pci::RequesterId;
use spin::mutex::SpinMutex;

use crate::{PageRequest, PageResponse, PageResponseError, PageResponses, Pasid, PrgIndex};

/// Requests of one VM that wait for its model at most. A device has at most 512 groups out.
pub const PAGE_REQUEST_LIMIT: usize = 4096;

#[derive(Default)]
pub(crate) struct PageRequests(SpinMutex<Inner>);

#[derive(Default)]
struct Inner {
    waiting: VecDeque<PageRequest>,
    /// Groups that nobody has answered.
    outstanding: BTreeMap<(RequesterId, PrgIndex), Option<Pasid>>,
    /// The devices' ends, and which attachment each is of.
    sinks: BTreeMap<RequesterId, (u64, Arc<dyn PageResponses>)>,
}

impl PageRequests {
    /// Takes a request of a device; whether it waits now.
    pub(crate) fn send(&self, request: PageRequest) -> bool {
        let mut inner = self.0.lock();
        if inner.waiting.len() >= PAGE_REQUEST_LIMIT {
            return false;
        }
        if request.wants_response() {
            inner.outstanding.insert((request.requester, request.group), request.pasid);
        }
        inner.waiting.push_back(request);
        true
    }

    pub(crate) fn take(&self) -> Option<PageRequest> {
        self.0.lock().waiting.pop_front()
    }

    pub(crate) fn respond(&self, response: PageResponse) -> Result<(), PageResponseError> {
        let PageResponse { requester, group, pasid, .. } = response;
        let sink = {
            let mut inner = self.0.lock();
            let key = (requester, group);
            let asked = inner.outstanding.get(&key);
            let asked = *asked.ok_or(PageResponseError::NotOutstanding { requester, group })?;
            if asked != pasid {
                return Err(PageResponseError::WrongPasid { requester, group });
            }
            inner.outstanding.remove(&key);
            inner.sinks.get(&requester).map(|(_, sink)| sink.clone())
        };
        if let Some(sink) = sink {
            sink.respond(response);
        }
        Ok(())
    }

    pub(crate) fn set_sink(
        &self,
        requester: RequesterId,
        attachment: u64,
        sink: Option<Arc<dyn PageResponses>>,
    ) {
        let _old = {
            let mut inner = self.0.lock();
            match sink {
                Some(sink) => inner.sinks.insert(requester, (attachment, sink)),
                None if inner.sinks.get(&requester).is_some_and(|(of, _)| *of == attachment) => {
                    inner.sinks.remove(&requester)
                }
                None => None,
            }
        };
    }

    /// Gives up what `requester` has asked: nobody waits for the answers.
    pub(crate) fn forget(&self, requester: RequesterId) {
        let mut inner = self.0.lock();
        inner.waiting.retain(|request| request.requester != requester);
        inner.outstanding.retain(|(of, _), _| *of != requester);
    }
}
