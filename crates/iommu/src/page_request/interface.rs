//! The device's end of page requests (PCI Express 10.4 and 10.5.2): credits, group indices, and
//! which of the device's work waits for which group.
//!
//! ```text
//!   request ──► out, waiting ── respond ─────────────► token, answer
//!                    │
//!                 abandon
//!                    ▼
//!               out, stale ──── respond ─────────────► nobody
//! ```
//!
//! A group keeps its index and its credits until it is answered, also if nobody waits for the answer
//! any more: an answer that comes late cannot be taken for that of another group.

use alloc::vec::Vec;

use mem::Iova;
use pci::RequesterId;

use super::{PageRequest, PageResponse, PrgIndex, ResponseCode};
use crate::{AddressSpace, Pasid};

/// The low bits of an address, which requests do not carry.
const PAGE_OFFSET: u64 = 0xfff;

/// The page request interface of a device: what it has asked and not been answered.
///
/// It has no lock and calls nobody: the device keeps it with its other state, sends the messages that
/// it makes, in their order, and tells it the answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRequestInterface {
    requester: RequesterId,
    capacity: u32,
    /// Messages that may be out at a time.
    allocation: u32,
    enabled: bool,
    /// An answer was "response failure": nothing is asked, and no answer heard, until the interface
    /// is enabled again.
    failed: bool,
    /// By index.
    groups: Vec<Option<Group>>,
    /// The index to look for a free one from, so that an index rests as long as can be.
    next: u16,
    /// Messages that are out.
    messages: u32,
}

/// A group that is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Group {
    pasid: Option<Pasid>,
    /// Its messages.
    messages: u32,
    /// What waits for the answer; `None` if that was abandoned.
    token: Option<u64>,
}

/// A page that a device wants, and for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WantedPage {
    /// An address in it.
    pub address: Iova,
    /// Whether it is to be read.
    pub read: bool,
    /// Whether it is to be written.
    pub write: bool,
    /// Whether it is to be executed.
    pub execute: bool,
}

/// Why nothing is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageRequestRefused {
    /// The interface is not enabled.
    #[error("page requests are disabled")]
    Disabled,
    /// An answer said that the interface is broken.
    #[error("a page response said failure")]
    Failed,
    /// Too many requests are out: try again after the next answer.
    #[error("no credit is left for {wanted} page requests")]
    NoCredit {
        /// Messages that were to be sent.
        wanted: usize,
    },
    /// There can never be such a group: without a page, with a page that is wanted for nothing, or
    /// with more pages than the interface could ever have out.
    #[error("no group can be of {pages} such pages; the capacity is {capacity}")]
    BadGroup {
        /// Pages that it was to have.
        pages: usize,
        /// Most that it could have.
        capacity: u32,
    },
}

/// What an answer means to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// It is for this.
    Token(u64, ResponseCode),
    /// It is for something that was abandoned. Its credits are free again.
    Stale,
    /// It is of no group that is out, or with another PASID: an "unexpected page request group
    /// index", for the status register.
    Unexpected,
    /// It came after a failure, when none is heard.
    Ignored,
}

impl PageRequestInterface {
    /// An interface as after power-on, which could have `capacity` requests out at a time.
    pub fn new(requester: RequesterId, capacity: u32) -> Self {
        Self {
            requester,
            capacity,
            allocation: 0,
            enabled: false,
            failed: false,
            groups: alloc::vec![None; PrgIndex::COUNT.into()],
            next: 0,
            messages: 0,
        }
    }

    /// Says how many requests may be out at a time. Past the capacity more is of no use.
    pub fn set_allocation(&mut self, allocation: u32) {
        self.allocation = allocation.min(self.capacity);
    }

    /// Requests that may be out at a time.
    pub fn allocation(&self) -> u32 {
        self.allocation
    }

    /// Lets it ask. Ends a failure. What is out stays so: the specification has no interface enabled
    /// that is not stopped, but if it is, no index is given twice.
    pub fn enable(&mut self) {
        self.enabled = true;
        self.failed = false;
    }

    /// Lets it ask nothing more. It is stopped once all that is out is answered.
    pub fn disable(&mut self) {
        self.enabled = false;
    }

    /// Forgets all that is out, as writing the reset bit or a reset of the function does. Answers
    /// that come yet are unexpected. It stays enabled or not, as it is.
    pub fn reset(&mut self) {
        // By name, so that state added later cannot be forgotten. The next index goes on from where
        // it is: a late answer then meets no new group for as long as possible.
        let Self {
            requester: _,
            capacity: _,
            allocation: _,
            enabled: _,
            failed,
            groups,
            next: _,
            messages,
        } = self;
        *failed = false;
        groups.fill(None);
        *messages = 0;
    }

    /// Whether it may ask: it is enabled and no answer said failure.
    pub fn may_ask(&self) -> bool {
        self.enabled && !self.failed
    }

    /// Whether it is disabled and everything is answered ("stopped").
    pub fn is_stopped(&self) -> bool {
        !self.enabled && self.messages == 0
    }

    /// Requests that it may send now.
    pub fn credits(&self) -> u32 {
        match self.may_ask() {
            true => self.allocation.saturating_sub(self.messages),
            false => 0,
        }
    }

    /// Requests that are out, abandoned ones included.
    pub fn outstanding(&self) -> u32 {
        self.messages
    }

    /// What waits for answers.
    pub fn waiting(&self) -> impl Iterator<Item = u64> + '_ {
        self.groups.iter().flatten().filter_map(|group| group.token)
    }

    /// Asks for a page, in a group of its own, for whatever `token` stands for. The message is for
    /// the device to send.
    ///
    /// # Errors
    ///
    /// [`PageRequestRefused`]; nothing is out then that was not before.
    pub fn request(
        &mut self,
        space: AddressSpace,
        page: WantedPage,
        token: u64,
    ) -> Result<PageRequest, PageRequestRefused> {
        let index = self.open(space, &[page], token)?;
        Ok(self.message(space, page, index, true))
    }

    /// Asks for several pages of one address space, which are answered together. The messages are
    /// for the device to send in their order; the last of them says that it is.
    ///
    /// # Errors
    ///
    /// [`PageRequestRefused`]; nothing is out then that was not before.
    pub fn request_group(
        &mut self,
        space: AddressSpace,
        pages: &[WantedPage],
        token: u64,
    ) -> Result<Vec<PageRequest>, PageRequestRefused> {
        let index = self.open(space, pages, token)?;
        let last = pages.len().saturating_sub(1);
        let messages = pages.iter().enumerate();
        Ok(messages.map(|(at, &page)| self.message(space, page, index, at == last)).collect())
    }

    /// Takes an answer.
    pub fn respond(&mut self, response: &PageResponse) -> Answered {
        let slot = self.groups.get_mut(usize::from(response.group.get()));
        // An answer to a request with a PASID carries it (the capability says that it must).
        let Some(slot) = slot.filter(|slot| slot.is_some_and(|g| g.pasid == response.pasid)) else {
            return if self.failed { Answered::Ignored } else { Answered::Unexpected };
        };
        let Some(group) = slot.take() else { return Answered::Unexpected };
        self.messages = self.messages.saturating_sub(group.messages);
        if self.failed {
            return Answered::Ignored;
        }
        self.failed = response.code == ResponseCode::Failure;
        match group.token {
            Some(token) => Answered::Token(token, response.code),
            None => Answered::Stale,
        }
    }

    /// Nobody waits any more for what `token` stands for. Gives whether something was out for it.
    pub fn abandon(&mut self, token: u64) -> bool {
        let mut found = false;
        for group in self.groups.iter_mut().flatten().filter(|group| group.token == Some(token)) {
            group.token = None;
            found = true;
        }
        found
    }

    /// The stop marker for `pasid`, to be sent when the device has stopped using it and does not
    /// wait for answers that are out; `None` if none is out, or nothing may be sent.
    pub fn stop_marker(&self, pasid: Pasid) -> Option<PageRequest> {
        let out = self.groups.iter().flatten().any(|group| group.pasid == Some(pasid));
        (out && self.may_ask()).then(|| PageRequest::stop_marker(self.requester, pasid))
    }

    /// Opens a group for `pages`.
    fn open(
        &mut self,
        space: AddressSpace,
        pages: &[WantedPage],
        token: u64,
    ) -> Result<PrgIndex, PageRequestRefused> {
        if !self.enabled {
            return Err(PageRequestRefused::Disabled);
        }
        if self.failed {
            return Err(PageRequestRefused::Failed);
        }
        let for_nothing = |page: &WantedPage| !page.read && !page.write && !page.execute;
        let fits = u32::try_from(pages.len()).ok().filter(|&pages| pages <= self.capacity);
        let messages = fits.filter(|&count| count != 0 && !pages.iter().any(for_nothing));
        let Some(messages) = messages else {
            return Err(PageRequestRefused::BadGroup {
                pages: pages.len(),
                capacity: self.capacity,
            });
        };
        let no_credit = PageRequestRefused::NoCredit { wanted: pages.len() };
        if messages > self.credits() {
            return Err(no_credit);
        }
        let index = self.free_index().ok_or(no_credit)?;
        let slot = self.groups.get_mut(usize::from(index.get())).ok_or(no_credit)?;
        *slot = Some(Group { pasid: space.pasid, messages, token: Some(token) });
        self.messages += messages;
        self.next = (index.get() + 1) % PrgIndex::COUNT;
        Ok(index)
    }

    /// The next index that is not out.
    fn free_index(&self) -> Option<PrgIndex> {
        let from_next = (self.next..PrgIndex::COUNT).chain(0..self.next);
        let is_free = |index: &u16| matches!(self.groups.get(usize::from(*index)), Some(None));
        from_next.filter(is_free).find_map(PrgIndex::new)
    }

    fn message(
        &self,
        space: AddressSpace,
        page: WantedPage,
        group: PrgIndex,
        last: bool,
    ) -> PageRequest {
        PageRequest {
            requester: self.requester,
            pasid: space.pasid,
            privileged: space.privileged,
            execute: page.execute,
            read: page.read,
            write: page.write,
            address: Iova(page.address.0 & !PAGE_OFFSET),
            group,
            last,
            private_data: None,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
