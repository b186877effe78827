//! Work queues: what waits in them, and whose turn it is.

use alloc::collections::VecDeque;

use iommu::{AddressSpace, Pasid};

use super::portal::Assembler;
use crate::spec::{Descriptor, Opcode, Portal, WqConfig, WqState};

/// Whether a deferrable memory write (ENQCMD) was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Submission {
    /// The descriptor is queued.
    Accepted,
    /// It is not: try again.
    Retry,
}

/// A position in the sequence of everything submitted to a device.
pub(super) type Sequence = u64;

/// A descriptor that waits in a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) descriptor: Descriptor,
    pub(super) sequence: Sequence,
    /// In whose name its accesses are made.
    pub(super) space: AddressSpace,
}

/// What a command is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// Everything.
    All,
    /// Work queues, by bit.
    Wqs(u32),
    /// One PASID, through whatever queue.
    Pasid(Pasid),
}

impl Scope {
    /// Whether a descriptor of queue `wq` with accesses in `space` is meant.
    pub(super) fn covers(self, wq: usize, space: AddressSpace) -> bool {
        match self {
            Self::All => true,
            Self::Wqs(bits) => bits >> wq & 1 != 0,
            Self::Pasid(pasid) => space.pasid == Some(pasid),
        }
    }
}

/// A work queue.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkQueue {
    /// Its WQCFG; of the occupancy dword only the state is kept up to date.
    pub(super) config: WqConfig,
    entries: VecDeque<Entry>,
    /// Descriptors it may still have dispatched before its turn is over.
    credit: u8,
    pub(super) assembler: Assembler,
}

impl WorkQueue {
    pub(super) fn state(&self) -> WqState {
        self.config.occupancy.state()
    }

    pub(super) fn set_state(&mut self, state: WqState) {
        self.config.occupancy.set_state(state);
    }

    /// Its WQCFG as it is read, with the occupancy.
    pub(super) fn registers(&self) -> WqConfig {
        let mut config = self.config;
        config.occupancy.set_occupancy(u16::try_from(self.entries.len()).unwrap_or(u16::MAX));
        config
    }

    /// Everything but the size back to its initial value (Reset WQ).
    pub(super) fn clear_config(&mut self) {
        self.config = WqConfig { size: self.config.size, ..WqConfig::default() };
        self.assembler = Assembler::default();
        self.credit = 0;
    }

    /// Whether an entry is free for a submission through `portal`.
    pub(super) fn has_room(&self, portal: Portal) -> bool {
        let limited = portal.limited && !self.config.mode.dedicated();
        let room =
            if limited { self.config.threshold.min(self.config.size) } else { self.config.size };
        self.entries.len() < usize::from(room)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push_back(entry);
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Removes what `keep` refuses; gives how many.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Entry) -> bool) -> usize {
        let before = self.entries.len();
        self.entries.retain(keep);
        before - self.entries.len()
    }

    /// The oldest entry, which is next to be dispatched.
    pub(super) fn head(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// Whether the oldest entry is a drain.
    pub(super) fn drain_at_head(&self) -> Option<&Entry> {
        self.head().filter(|entry| entry.descriptor.opcode() == Ok(Opcode::Drain))
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        self.entries.pop_front()
    }

    /// Uses a turn; `false` if none is left.
    pub(super) fn spend(&mut self) -> bool {
        let left = self.credit.checked_sub(1);
        self.credit = left.unwrap_or(0);
        left.is_some()
    }

    /// Gives it turns by its priority.
    pub(super) fn refill(&mut self) {
        self.credit = self.config.mode.priority().max(1);
    }
}
