//! Groups of page requests: those that are not whole yet, and those whose answer is to come.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use iommu::{PageRequest, Pasid, PrgIndex};
use pci::RequesterId;

/// Requests that are kept of groups that are not whole, at most. One beyond makes its group one
/// that is refused.
pub const MAX_PARTIAL: usize = 4096;

/// Groups whose answer is to come, at most. One beyond is answered Invalid at once.
pub const MAX_DEFERRED: usize = 4096;

/// Who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) source: RequesterId,
    pub(super) pasid: Option<Pasid>,
    pub(super) group: PrgIndex,
    pub(super) private_data: Option<[u64; 2]>,
}

impl Key {
    pub(super) fn of(request: &PageRequest) -> Self {
        let PageRequest { requester: source, pasid, group, private_data, .. } = *request;
        Self { source, pasid, group, private_data }
    }
}

/// A group that is whole.
pub(super) struct Group {
    pub(super) requests: Vec<PageRequest>,
    /// Whether the guest is to decide about it.
    pub(super) is_sound: bool,
}

#[derive(Debug, Default)]
pub(super) struct Groups {
    partial: BTreeMap<(RequesterId, Option<Pasid>, PrgIndex), Vec<PageRequest>>,
    /// Number of requests in those.
    kept: usize,
    open: BTreeSet<Key>,
}

impl Groups {
    /// Takes a request; its group, if it is whole now. A request with private data is one that
    /// wants an answer, last of its group or not.
    pub(super) fn add(&mut self, request: PageRequest) -> Option<Group> {
        let PageRequest { requester, pasid, group, .. } = request;
        let key = (requester, pasid, group);
        if request.last || request.private_data.is_some() {
            let mut requests = self.partial.remove(&key).unwrap_or_default();
            self.kept -= requests.len();
            requests.push(request);
            let is_sound = requests.iter().all(is_sound);
            return Some(Group { requests, is_sound });
        }
        if self.kept < MAX_PARTIAL {
            self.kept += 1;
            self.partial.entry(key).or_default().push(request);
        }
        None
    }

    /// After an overflow, nobody knows what is missing.
    pub(super) fn discard_partial(&mut self) {
        self.partial.clear();
        self.kept = 0;
    }

    /// Forgets what is not whole of one address space.
    pub(super) fn discard_partial_of(&mut self, source: RequesterId, pasid: Option<Pasid>) {
        self.partial.retain(|key, _| (key.0, key.1) != (source, pasid));
        self.kept = self.partial.values().map(Vec::len).sum();
    }

    /// Notes that the answer is to come; whether there is room.
    pub(super) fn leave_open(&mut self, key: Key) -> bool {
        self.open.len() < MAX_DEFERRED && {
            self.open.insert(key);
            true
        }
    }

    /// Whether the group was open; it is not any more.
    pub(super) fn close(&mut self, key: &Key) -> bool {
        self.open.remove(key)
    }

    /// An open group of an address space, which is not open any more.
    pub(super) fn close_one_of(
        &mut self,
        source: RequesterId,
        pasid: Option<Pasid>,
    ) -> Option<Key> {
        let found = self.open.iter().find(|key| (key.source, key.pasid) == (source, pasid));
        let key = found.copied()?;
        self.open.remove(&key);
        Some(key)
    }

    pub(super) fn open(&self) -> usize {
        self.open.len()
    }
}

/// Whether a request makes sense to a guest that grants neither supervisor's pages nor execution,
/// as Linux has it.
fn is_sound(request: &PageRequest) -> bool {
    let address = request.address.0 as i64;
    let is_canonical = address << 7 >> 7 == address;
    let privileged = request.privileged && (request.read || request.write);
    is_canonical && !privileged && !(request.execute && request.read)
}
