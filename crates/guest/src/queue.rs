//! A dedicated queue of this process: submitting descriptors and awaiting their records.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dsa::spec::{
    CompletionRecord, Descriptor, Flags, Iova, Operation, Status, StatusByte, Submitter,
};
use rustix::io::Errno;

use crate::dma::{fault_in, Mapping, Place, Span, PAGE};
use crate::job::{self, Unresumable};
use crate::portal::{Portal, DESCRIPTOR};
use crate::report::Counts;
use crate::setup::{self, MAX_BATCH, QUEUE_SIZE};

/// How long a descriptor may take. The largest takes milliseconds; a busy host much longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looks at a record before the processor is given up between looks.
const SPINS: u32 = 64;
/// Pause between two looks after that.
const POLL: Duration = Duration::from_micros(50);
/// Pause between two attempts to open a queue that is not free yet.
const REOPEN: Duration = Duration::from_millis(2);
/// Partial completions of one operation that are resumed. The largest has 3 operands of 2 MiB, a
/// fault in each page of them is 1536; the rest is for pages that the kernel takes away again.
pub(crate) const MAX_RESUMES: u32 = 2048;

/// Where a batch's list and its members' records are in the queue's own memory.
const LIST_PAGE: usize = PAGE;
const MEMBER_RECORDS_PAGE: usize = 2 * PAGE;
const PAGES: usize = 3 * PAGE;

/// Why a descriptor's end is unknown, or wrong in a way that no check expects.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("{path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("the portal cannot be mapped: {0}")]
    Portal(Errno),
    #[error("no memory for completion records: {0}")]
    Memory(Errno),
    #[error("{operation:?} has not completed within {patience:?}")]
    Lost { operation: Operation, patience: Duration },
    #[error("{operation:?} reports a fault at {address:#x} (write: {write}), none of its pages")]
    WildFault { operation: Operation, address: u64, write: bool },
    #[error("the page at {address:#x} that {operation:?} wants cannot be had: {source}")]
    NoPage { operation: Operation, address: u64, source: Errno },
    #[error("{operation:?}: {source}")]
    Unresumable { operation: Operation, source: Unresumable },
    #[error("{operation:?} stopped at a page for the {MAX_RESUMES}th time")]
    TooManyFaults { operation: Operation },
    #[error("{operation:?} ended with status {status:#04x}, result {result}, {done} bytes done")]
    Status { operation: Operation, status: u8, result: u8, done: u32 },
}

/// An operation that came to its end, its partial completions included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    /// The last record.
    pub(crate) record: CompletionRecord,
    /// Bytes that partial completions had done before.
    pub(crate) before: u64,
    /// How many there were.
    pub(crate) partial_completions: u32,
}

/// A descriptor of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) operation: Operation,
    pub(crate) flags: Flags,
}

/// How a batch ended.
#[derive(Debug)]
pub(crate) struct BatchEnd {
    /// The batch's own record.
    pub(crate) record: CompletionRecord,
    /// The members' records; `None` where none was written.
    pub(crate) members: Vec<Option<CompletionRecord>>,
}

/// An open queue. The process is bound to the accelerator for as long as it is open.
pub(crate) struct Queue {
    // Dropped in this order: the portal must be gone before the file is.
    portal: Portal,
    memory: Mapping,
    counts: Counts,
    forged: Option<Submitter>,
    lost: u32,
    _file: File,
}

impl Queue {
    /// Opens a queue, which binds this process's address space to it. Nobody else can meanwhile.
    pub(crate) fn open(index: usize) -> Result<Self, QueueError> {
        let path = setup::node(index);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| QueueError::Open { path, source })?;
        let portal = Portal::map(file.as_fd()).map_err(QueueError::Portal)?;
        let memory = Mapping::anonymous(Place::Anywhere, PAGES).map_err(QueueError::Memory)?;
        memory.span().fill(0);
        Ok(Self { portal, memory, counts: Counts::default(), forged: None, lost: 0, _file: file })
    }

    /// Opens a queue that somebody is about to give back: the kernel keeps a dead process's until the
    /// last page request of its is answered.
    pub(crate) fn open_within(index: usize, limit: Duration) -> Result<Self, QueueError> {
        let until = Instant::now() + limit;
        loop {
            match Self::open(index) {
                Err(QueueError::Open { source, .. })
                    if source.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until =>
                {
                    std::thread::sleep(REOPEN);
                }
                outcome => return outcome,
            }
        }
    }

    /// What was done through this queue.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Continues the account of a queue that was given up.
    pub(crate) fn carry(&mut self, past: Counts) {
        self.counts.add(past);
    }

    /// Descriptors that never completed.
    pub(crate) fn lost(&self) -> u32 {
        self.lost
    }

    /// Puts a PASID and privilege into each descriptor from now on. A dedicated queue ignores both.
    pub(crate) fn forge(&mut self, submitter: Submitter) {
        self.forged = Some(submitter);
    }

    /// The completion record of a slot.
    pub(crate) fn record(&self, slot: usize) -> Span<'_> {
        assert!(slot < QUEUE_SIZE, "slot {slot} of {QUEUE_SIZE}");
        self.memory.span().part(slot * CompletionRecord::SIZE, CompletionRecord::SIZE)
    }

    /// Submits an operation whose record goes to the slot. A slot holds one at a time, and there
    /// are as many slots as entries in the queue: it cannot overflow.
    pub(crate) fn submit(&mut self, slot: usize, operation: Operation, flags: Flags) {
        let record = self.record(slot);
        record.fill(0);
        let record = Iova(record.address());
        self.submit_raw(&Descriptor::new(operation).with_record(record).with_flags(flags));
    }

    /// Submits a descriptor as it is (but for a forged PASID).
    pub(crate) fn submit_raw(&mut self, descriptor: &Descriptor) {
        let descriptor = match self.forged {
            Some(submitter) => descriptor.with_submitter(submitter),
            None => *descriptor,
        };
        self.counts.descriptors += 1;
        self.portal.submit(&descriptor.to_bytes());
    }

    /// The record of a slot, if it has been written.
    pub(crate) fn poll(&self, slot: usize) -> Option<CompletionRecord> {
        read_record(self.record(slot))
    }

    /// Adds a completed operation to the account.
    pub(crate) fn account(&mut self, operation: &Operation, record: &CompletionRecord) {
        self.counts.bytes += job::bytes_done(operation, record);
        self.counts.partial_completions += u64::from(is_partial(record));
    }

    /// Waits for the record of a slot.
    pub(crate) fn wait(
        &mut self,
        slot: usize,
        operation: &Operation,
    ) -> Result<CompletionRecord, QueueError> {
        self.wait_for(slot, operation, PATIENCE)
    }

    /// Waits for the record of a slot with a patience of its own.
    pub(crate) fn wait_for(
        &mut self,
        slot: usize,
        operation: &Operation,
        patience: Duration,
    ) -> Result<CompletionRecord, QueueError> {
        let deadline = Instant::now() + patience;
        let mut looks = 0;
        loop {
            if let Some(record) = self.poll(slot) {
                self.account(operation, &record);
                return Ok(record);
            }
            pause(&mut looks);
            if Instant::now() >= deadline {
                self.lost += 1;
                return Err(QueueError::Lost { operation: *operation, patience });
            }
        }
    }

    /// Runs an operation once, whatever it ends with.
    pub(crate) fn once(
        &mut self,
        operation: Operation,
        flags: Flags,
    ) -> Result<CompletionRecord, QueueError> {
        self.submit(0, operation, flags | Flags::REQUEST_RECORD);
        self.wait(0, &operation)
    }

    /// Runs an operation that blocks where a page is missing, to its successful end.
    pub(crate) fn block(&mut self, operation: Operation) -> Result<CompletionRecord, QueueError> {
        let record = self.once(operation, Flags::BLOCK_ON_FAULT)?;
        match record.status.status() {
            Ok(Status::Success) => Ok(record),
            _ => Err(bad_status(operation, &record)),
        }
    }

    /// Runs an operation, and what is left of it after each partial completion, to its end.
    pub(crate) fn run(
        &mut self,
        operation: Operation,
        flags: Flags,
    ) -> Result<Finished, QueueError> {
        let mut finished =
            Finished { record: self.once(operation, flags)?, before: 0, partial_completions: 0 };
        let mut operation = operation;
        while is_partial(&finished.record) {
            operation = go_on(&operation, &finished.record)?;
            finished.partial_completions += 1;
            if finished.partial_completions >= MAX_RESUMES {
                return Err(QueueError::TooManyFaults { operation });
            }
            finished.before += u64::from(finished.record.bytes_completed);
            // What continues a CRC carries its seed itself.
            let flags = flags - Flags::CRC_READ_SEED;
            finished.record = self.once(operation, flags)?;
        }
        Ok(finished)
    }

    /// Runs an operation to its successful end.
    pub(crate) fn complete(
        &mut self,
        operation: Operation,
        flags: Flags,
    ) -> Result<Finished, QueueError> {
        let finished = self.run(operation, flags)?;
        match finished.record.status.status() {
            Ok(Status::Success) => Ok(finished),
            _ => Err(bad_status(operation, &finished.record)),
        }
    }

    /// Runs a batch once. Members are accounted as far as the batch says that they were executed.
    pub(crate) fn batch(&mut self, members: &[Member]) -> Result<BatchEnd, QueueError> {
        assert!(members.len() <= MAX_BATCH, "{} members of {MAX_BATCH}", members.len());
        for (index, member) in members.iter().enumerate() {
            let record = self.member_record(index);
            record.fill(0);
            let descriptor = Descriptor::new(member.operation)
                .with_record(Iova(record.address()))
                .with_flags(member.flags);
            self.list(members.len())
                .part(index * DESCRIPTOR, DESCRIPTOR)
                .write(&descriptor.to_bytes());
        }
        let list = Iova(self.list(members.len()).address());
        let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let record = self.once(Operation::Batch { list, count }, Flags::empty())?;
        let executed = match record.status.status() {
            Ok(Status::Success) => members.len(),
            Ok(Status::BatchError | Status::BatchListFault) => record.bytes_completed as usize,
            _ => 0,
        };
        for (index, member) in members.iter().enumerate().take(executed) {
            self.counts.descriptors += 1;
            // A member without a record ended well and did not have to say so.
            let ended = read_record(self.member_record(index)).unwrap_or_else(success);
            self.account(&member.operation, &ended);
        }
        let members = (0..members.len()).map(|index| read_record(self.member_record(index)));
        Ok(BatchEnd { record, members: members.collect() })
    }

    /// Adds a member of a batch that was not made here to the account.
    pub(crate) fn account_member(&mut self, operation: &Operation, record: &CompletionRecord) {
        self.counts.descriptors += 1;
        self.account(operation, record);
    }

    fn list(&self, members: usize) -> Span<'_> {
        self.memory.span().part(LIST_PAGE, members * DESCRIPTOR)
    }

    fn member_record(&self, index: usize) -> Span<'_> {
        let offset = MEMBER_RECORDS_PAGE + index * CompletionRecord::SIZE;
        self.memory.span().part(offset, CompletionRecord::SIZE)
    }
}

/// The record that an operation would have written that succeeded and was not asked for one.
pub(crate) fn success() -> CompletionRecord {
    CompletionRecord {
        status: StatusByte::of(Status::Success, false),
        ..CompletionRecord::default()
    }
}

/// Whether an operation stopped at a page and can go on.
pub(crate) fn is_partial(record: &CompletionRecord) -> bool {
    record.status.status() == Ok(Status::PageFault)
}

/// Makes the page present at which an operation stopped, and says what is left to do.
pub(crate) fn go_on(
    operation: &Operation,
    record: &CompletionRecord,
) -> Result<Operation, QueueError> {
    let operation = *operation;
    let (address, write) = (record.fault_address, record.status.write());
    if !job::owns_fault(&operation, address, write) {
        return Err(QueueError::WildFault { operation, address: address.0, write });
    }
    fault_in(address.0, write).map_err(|source| QueueError::NoPage {
        operation,
        address: address.0,
        source,
    })?;
    job::remainder(&operation, record)
        .map_err(|source| QueueError::Unresumable { operation, source })
}

/// An error that says with what an operation ended.
pub(crate) fn bad_status(operation: Operation, record: &CompletionRecord) -> QueueError {
    QueueError::Status {
        operation,
        status: record.status.into_bits(),
        result: record.result,
        done: record.bytes_completed,
    }
}

/// Lets others run between two looks at memory.
pub(crate) fn pause(looks: &mut u32) {
    *looks = looks.saturating_add(1);
    if *looks < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::sleep(POLL);
    }
}

/// The record in `record`, if it has been written.
pub(crate) fn read_record(record: Span<'_>) -> Option<CompletionRecord> {
    if record.load(0) == 0 {
        return None;
    }
    // The status byte is written last, so the rest is there.
    let bytes = record.read();
    Some(CompletionRecord::from_bytes(&bytes.try_into().unwrap_or_default()))
}
