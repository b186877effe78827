//! The guest's end of the invalidation queue (6.5.2).

use mem::{Gpa, GuestMemory};
use pci::RequesterId;

use super::{Clock, Registers};
use crate::spec::{
    Descriptor, FaultStatus, GlobalCommand, GlobalStatus, QueueAddress, QueueErrorRecord, Wait,
};

/// How long a submission may take unless [`InvalidationQueue::with_timeout`] says otherwise: more
/// than a device has to answer an invalidation of its device TLB (PCI Express: a minute and a
/// half).
pub const SUBMISSION_TIMEOUT_NS: u64 = 100_000_000_000;

/// Entries of the queue: one page of 256-bit descriptors.
pub const QUEUE_ENTRIES: u64 = 128;

/// Descriptors of one submission at most, its wait not counted.
pub const MAX_DESCRIPTORS: usize = QUEUE_ENTRIES as usize - 2;

const ENTRY_BYTES: u64 = 32;
const GCMD: u16 = 0x18;
const GSTS: u16 = 0x1c;
const FSTS: u16 = 0x34;
const IQH: u16 = 0x80;
const IQT: u16 = 0x88;
const IQA: u16 = 0x90;
const IQERCD: u16 = 0xb0;

/// Why descriptors were not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The caller's mistake: more descriptors than the queue takes at once.
    #[error("{count} descriptors; the queue takes {limit} at once")]
    TooMany {
        /// How many.
        count: usize,
        /// How many it takes.
        limit: usize,
    },
    /// The caller's mistake: the queue or its status word is not in memory.
    #[error("there is no memory at {0:x}", address.0)]
    NoMemory {
        /// Where.
        address: Gpa,
    },
    /// The unit does not take the queue into use.
    #[error("the invalidation queue is not enabled")]
    NotEnabled,
    /// A descriptor is not valid, or the queue cannot be read; nothing behind it was carried out
    /// but the wait. The queue goes on.
    #[error("the unit refused a descriptor: error {info}")]
    Refused {
        /// IQEI.
        info: u8,
    },
    /// A device did not answer an invalidation of its device TLB; the submission may have been
    /// carried out in part, and the rest of it is not any more. The queue goes on.
    #[error("device {source_id} did not answer an invalidation of its device TLB")]
    DeviceTimeout {
        /// The device.
        source_id: RequesterId,
    },
    /// The wait was not complete in time. The queue is not used any more.
    #[error("the unit did not carry out a submission within {timeout_ns} ns")]
    Deadline {
        /// How long it was waited for.
        timeout_ns: u64,
    },
    /// An earlier submission ran into its deadline.
    #[error("the invalidation queue is given up")]
    GivenUp,
}

/// The invalidation queue of one unit, in scalable mode: 256-bit descriptors in one page.
///
/// One submission at a time, each followed by a wait that stores to a status word; the caller
/// spins, with [`Clock::pause`] between two looks. What the unit reports is checked and named.
#[derive(Debug)]
pub struct InvalidationQueue<R, C, M> {
    registers: R,
    clock: C,
    memory: M,
    ring: Gpa,
    status: Gpa,
    /// Index of the next entry.
    tail: u64,
    /// What the last wait stored.
    sequence: u32,
    timeout_ns: u64,
    given_up: bool,
}

impl<R: Registers, C: Clock, M: GuestMemory> InvalidationQueue<R, C, M> {
    /// Enables the queue with its page at `ring` and a status word at `status`. The commands that
    /// are on in the unit stay on.
    ///
    /// # Errors
    ///
    /// [`SubmitError::NoMemory`], and [`SubmitError::NotEnabled`] if the unit does not follow in
    /// time.
    pub fn enable(
        registers: R,
        clock: C,
        memory: M,
        ring: Gpa,
        status: Gpa,
    ) -> Result<Self, SubmitError> {
        let queue = Self {
            registers,
            clock,
            memory,
            ring,
            status,
            tail: 0,
            sequence: 0,
            timeout_ns: SUBMISSION_TIMEOUT_NS,
            given_up: false,
        };
        queue.store_status(0)?;
        queue.registers.write64(IQT, 0);
        let address = QueueAddress::new().with_page(ring.0 >> 12).with_wide(true);
        queue.registers.write64(IQA, address.into_bits());
        let on = GlobalStatus::from_bits(queue.registers.read32(GSTS));
        let command = GlobalCommand::new()
            .with_translation(on.translation())
            .with_interrupt_remapping(on.interrupt_remapping())
            .with_queued_invalidation(true);
        queue.registers.write32(GCMD, command.into_bits());
        let enabled = |status: u32| GlobalStatus::from_bits(status).queued_invalidation();
        queue
            .wait_until(|queue| enabled(queue.registers.read32(GSTS)))
            .then_some(queue)
            .ok_or(SubmitError::NotEnabled)
    }

    /// The same with another timeout for each submission, in nanoseconds.
    #[must_use]
    pub fn with_timeout(self, timeout_ns: u64) -> Self {
        Self { timeout_ns, ..self }
    }

    /// Has `descriptors` carried out, in their order, and waits until they are. With `drain`, the
    /// page requests that were received before are in their queue then, or lost with PRO set.
    ///
    /// # Errors
    ///
    /// See [`SubmitError`].
    pub fn submit(&mut self, descriptors: &[Descriptor], drain: bool) -> Result<(), SubmitError> {
        if self.given_up {
            return Err(SubmitError::GivenUp);
        }
        let (count, limit) = (descriptors.len(), MAX_DESCRIPTORS);
        if count > limit {
            return Err(SubmitError::TooMany { count, limit });
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.store_status(!self.sequence)?;
        let wait = Descriptor::Wait(Wait {
            status: Some((self.status, self.sequence)),
            page_request_drain: drain,
            ..Wait::default()
        });
        let mut at = self.tail;
        for descriptor in descriptors.iter().chain([&wait]) {
            self.store_entry(at, descriptor)?;
            at = (at + 1) % QUEUE_ENTRIES;
        }
        self.tail = at;
        self.registers.write64(IQT, at * ENTRY_BYTES);
        self.wait(&wait)
    }

    /// Waits for the status word, looking at the errors of the unit each turn.
    fn wait(&mut self, wait: &Descriptor) -> Result<(), SubmitError> {
        let mut refused = None;
        let start = self.clock.now_ns();
        loop {
            let late = self.clock.now_ns().saturating_sub(start) >= self.timeout_ns;
            if self.load_status()? == self.sequence {
                return refused.map_or(Ok(()), |info| Err(SubmitError::Refused { info }));
            }
            let status = FaultStatus::from_bits(self.registers.read32(FSTS));
            if status.queue_error() {
                refused = Some(self.skip(wait)?);
            }
            if status.timeout_error() {
                return Err(self.abandon());
            }
            if late {
                self.given_up = true;
                return Err(SubmitError::Deadline { timeout_ns: self.timeout_ns });
            }
            self.clock.pause();
        }
    }

    /// A device did not answer. What is behind the head is taken out of the queue, while nothing is
    /// fetched, so that it is neither carried out later nor in the way.
    fn abandon(&mut self) -> SubmitError {
        let record = QueueErrorRecord::from_bits(self.registers.read64(IQERCD));
        self.tail = self.head();
        self.registers.write64(IQT, self.tail * ENTRY_BYTES);
        let clear = FaultStatus::new().with_timeout_error(true);
        self.registers.write32(FSTS, clear.into_bits());
        SubmitError::DeviceTimeout { source_id: RequesterId::from_bits(record.timeout_source()) }
    }

    /// Index of the entry that is fetched next, whatever the register says.
    fn head(&self) -> u64 {
        self.registers.read64(IQH) / ENTRY_BYTES % QUEUE_ENTRIES
    }

    /// A descriptor was refused. It is replaced by the wait, and what is behind it taken out, while
    /// nothing is fetched; what was wrong.
    fn skip(&mut self, wait: &Descriptor) -> Result<u8, SubmitError> {
        let record = QueueErrorRecord::from_bits(self.registers.read64(IQERCD));
        let head = self.head();
        self.store_entry(head, wait)?;
        self.tail = (head + 1) % QUEUE_ENTRIES;
        self.registers.write64(IQT, self.tail * ENTRY_BYTES);
        self.registers.write32(FSTS, FaultStatus::new().with_queue_error(true).into_bits());
        Ok(record.info())
    }

    /// Whether `done` came true in time.
    fn wait_until(&self, done: impl Fn(&Self) -> bool) -> bool {
        let start = self.clock.now_ns();
        loop {
            let late = self.clock.now_ns().saturating_sub(start) >= self.timeout_ns;
            if done(self) || late {
                return done(self);
            }
            self.clock.pause();
        }
    }

    fn store_entry(&self, index: u64, descriptor: &Descriptor) -> Result<(), SubmitError> {
        let entry = Gpa(self.ring.0.saturating_add(index * ENTRY_BYTES));
        for (word, offset) in descriptor.encode().into_iter().zip((0..).step_by(8)) {
            let address = Gpa(entry.0.saturating_add(offset));
            let stored = self.memory.store_u64(address, word);
            stored.map_err(|_| SubmitError::NoMemory { address })?;
        }
        Ok(())
    }

    fn store_status(&self, value: u32) -> Result<(), SubmitError> {
        let stored = self.memory.store_u32(self.status, value);
        stored.map_err(|_| SubmitError::NoMemory { address: self.status })
    }

    fn load_status(&self) -> Result<u32, SubmitError> {
        self.memory
            .load_u32(self.status)
            .map_err(|_| SubmitError::NoMemory { address: self.status })
    }

    /// The clock.
    pub(super) fn clock(&self) -> &C {
        &self.clock
    }

    /// The timeout of each submission, in nanoseconds.
    pub(super) fn timeout_ns(&self) -> u64 {
        self.timeout_ns
    }
}
