//! `mprotect-munmap`: permission is taken away and memory is unmapped while the device works on it.
//!
//! ```text
//!   device ──► window ──┬── may be written ◄──────────── main thread, round after round
//!                       ├── may be read only
//!                       ├── may not be touched
//!                       └── is not mapped                 a twin mapping of the same file shows
//!                                                         what the device did, and when
//! ```
//!
//! Once `mprotect` or `munmap` has returned, a descriptor either ends with the fault or was over
//! before: not a byte of the page changes, and not a byte is read that was put there since. With
//! block on fault the kernel is asked for each page and says no; without, the descriptor stops.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dsa::spec::{CompletionRecord, Flags, Iova, Operation, Status};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::mm::{MprotectFlags, ProtFlags};

use crate::dma::{fault_in, Mapping, Place, Span, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::job;
use crate::model::pattern::repeated;
use crate::queue::{bad_status, pause, Queue};
use crate::report::{Counts, Report};
use crate::setup::{BLOCKING, QUEUES, QUEUE_SIZE};

/// Where the window is. Nothing else comes to lie there while it is unmapped.
const WINDOW: usize = 0x2345_0000_0000;
/// Bytes of it.
const SIZE: usize = 4 * PAGE;
/// Rounds of each kind; each takes everything away in three ways.
const ROUNDS: u64 = 12;
/// Descriptors that are outstanding.
const OUTSTANDING: usize = 4;
const _: () = assert!(OUTSTANDING <= QUEUE_SIZE);
/// How long the device may take to come round.
const PATIENCE: Duration = Duration::from_secs(20);
/// High half of every word that may be read; the low half is the round.
const GOOD: u64 = 0x600d_0000_0000_0000;
/// Every word that is put there when nobody may read it any more.
const POISON: u64 = 0xdead_dead_dead_dead;
/// High half of every word that the device writes; the low half counts descriptors.
const FILL: u64 = 0xf111_0000_0000_0000;

/// What the device does with the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Writes,
    Reads,
}

/// What becomes of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    ReadOnly,
    NoAccess,
    Unmapped,
}

/// The scenario.
pub(super) fn run(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut counts = Counts::default();
    for (queue, block, how) in
        [(QUEUES[0], Flags::empty(), "stops"), (BLOCKING[0], Flags::BLOCK_ON_FAULT, "asks")]
    {
        for (role, what) in [(Role::Writes, "written"), (Role::Reads, "read")] {
            let mut queue = Queue::open(queue)?;
            let outcome = revoke(&mut queue, block, role);
            counts.add(queue.counts());
            report.check(&format!("{what} while it is taken away, the device {how}"), outcome);
            if !report.is_good() {
                report.note("the rest is not tried");
                return Ok(counts);
            }
        }
    }
    Ok(counts)
}

/// What the two threads tell each other.
#[derive(Default)]
struct Shared {
    /// Descriptors that have ended.
    ended: AtomicU64,
    /// Of those, with success.
    succeeded: AtomicU64,
    stop: AtomicBool,
}

fn revoke(queue: &mut Queue, block: Flags, role: Role) -> Outcome {
    let shared = Shared::default();
    let (changed, worked) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let worked =
                Worker::new(queue, block, role).and_then(|mut worker| worker.work(&shared));
            shared.stop.store(true, Ordering::SeqCst);
            worked
        });
        let changed = Stage::new().and_then(|mut stage| stage.rounds(&shared, block, role));
        shared.stop.store(true, Ordering::SeqCst);
        let panicked = |_| Err(Failure::new("the device's thread panicked"));
        (changed, worker.join().unwrap_or_else(panicked))
    });
    let faults = worked?;
    let changes = changed?;
    Ok(format!("{changes} changes, {faults} descriptors ended with the fault"))
}

/// The file, its twin mapping, and the window while it is mapped.
struct Stage {
    file: OwnedFd,
    twin: Mapping,
    window: Option<Mapping>,
}

impl Stage {
    fn new() -> Outcome<Self> {
        let file = memfd_create("window", MemfdFlags::CLOEXEC).at("memfd")?;
        ftruncate(&file, SIZE as u64).at("sizing the memfd")?;
        let twin = Mapping::shared(file.as_fd(), 0, SIZE, ProtFlags::READ | ProtFlags::WRITE)?;
        twin.span().write(&repeated(GOOD, SIZE));
        Ok(Self { file, twin, window: None })
    }

    /// Takes the window away in every way, over and over; says how often.
    fn rounds(&mut self, shared: &Shared, block: Flags, role: Role) -> Outcome<u64> {
        let changes: &[Change] = match role {
            Role::Writes => &[Change::ReadOnly, Change::NoAccess, Change::Unmapped],
            // Reading is allowed where only writing is not.
            Role::Reads => &[Change::NoAccess, Change::Unmapped],
        };
        let mut done = 0;
        for round in 0..ROUNDS {
            for &change in changes {
                let place = format!("round {round}, {change:?}");
                self.give(round, block).at(&place)?;
                let before = shared.succeeded.load(Ordering::SeqCst);
                await_device(shared, || shared.succeeded.load(Ordering::SeqCst) > before)
                    .at(format_args!("{place}: the device works on it"))?;
                self.take(change).at(&place)?;
                self.watch(shared, role).at(&place)?;
                done += 1;
            }
        }
        self.give(ROUNDS, block)?;
        Ok(done)
    }

    /// Makes everything possible again, with words that may be read.
    fn give(&mut self, round: u64, block: Flags) -> Outcome<()> {
        self.twin.span().write(&repeated(GOOD | round, SIZE));
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let window = match self.window.take() {
            Some(window) => {
                window.protect(MprotectFlags::READ | MprotectFlags::WRITE).at("mprotect")?;
                window
            }
            None => {
                let place = Place::At(WINDOW);
                Mapping::shared_at(place, self.file.as_fd(), 0, SIZE, access).at("mmap")?
            }
        };
        if !block.contains(Flags::BLOCK_ON_FAULT) {
            // Nobody else does it for this device.
            for page in 0..SIZE / PAGE {
                fault_in((WINDOW + page * PAGE) as u64, true).at("touching the window")?;
            }
        }
        self.window = Some(window);
        Ok(())
    }

    fn take(&mut self, change: Change) -> Outcome<()> {
        let window = self.window.take().ok_or_else(|| Failure::new("there is no window"))?;
        let access = match change {
            Change::Unmapped => return Ok(()),
            Change::ReadOnly => MprotectFlags::READ,
            Change::NoAccess => MprotectFlags::empty(),
        };
        window.protect(access).at("mprotect")?;
        self.window = Some(window);
        Ok(())
    }

    /// Nothing changes what was taken away, and nothing of what is put there now is read: that is
    /// for the other thread to see.
    fn watch(&self, shared: &Shared, role: Role) -> Outcome<()> {
        if role == Role::Reads {
            self.twin.span().write(&repeated(POISON, SIZE));
        }
        let frozen = self.twin.span().read();
        let ended = shared.ended.load(Ordering::SeqCst);
        // Everything that was outstanding has ended, and as much again.
        let enough = 2 * OUTSTANDING as u64;
        await_device(shared, || shared.ended.load(Ordering::SeqCst) - ended >= enough)
            .at("the device goes on")?;
        same("what was taken away", &self.twin.span().read(), &frozen)
    }
}

fn await_device(shared: &Shared, arrived: impl Fn() -> bool) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut looks = 0;
    while !arrived() {
        ensure!(!shared.stop.load(Ordering::SeqCst), "the device has stopped");
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}");
        pause(&mut looks);
    }
    Ok(())
}

/// The second thread's work: keeps descriptors outstanding that use the window.
struct Worker<'a> {
    queue: &'a mut Queue,
    block: Flags,
    role: Role,
    /// Where copies go, a window's size for each slot.
    copies: Mapping,
    slots: [Operation; OUTSTANDING],
    submitted: u64,
    faults: u64,
}

impl<'a> Worker<'a> {
    fn new(queue: &'a mut Queue, block: Flags, role: Role) -> Outcome<Self> {
        let copies = Mapping::anonymous(Place::Anywhere, OUTSTANDING * SIZE)?;
        copies.span().fill(0);
        let slots = [Operation::Noop; OUTSTANDING];
        Ok(Self { queue, block, role, copies, slots, submitted: 0, faults: 0 })
    }

    /// Works until it is told to stop; says how often it met the fault.
    fn work(&mut self, shared: &Shared) -> Outcome<u64> {
        (0..OUTSTANDING).for_each(|slot| self.submit(slot));
        let mut looks = 0;
        while !shared.stop.load(Ordering::SeqCst) {
            for slot in 0..OUTSTANDING {
                if let Some(record) = self.queue.poll(slot) {
                    looks = 0;
                    self.queue.account(&self.slots[slot], &record);
                    let succeeded = self.judge(slot, &record)?;
                    shared.succeeded.fetch_add(u64::from(succeeded), Ordering::SeqCst);
                    shared.ended.fetch_add(1, Ordering::SeqCst);
                    self.submit(slot);
                }
            }
            pause(&mut looks);
        }
        for (slot, operation) in self.slots.into_iter().enumerate() {
            self.queue.wait(slot, &operation)?;
        }
        Ok(self.faults)
    }

    fn copy(&self, slot: usize) -> Span<'_> {
        self.copies.span().part(slot * SIZE, SIZE)
    }

    fn submit(&mut self, slot: usize) {
        let (window, size) = (Iova(WINDOW as u64), SIZE as u32);
        self.submitted += 1;
        let operation = match self.role {
            Role::Writes => {
                Operation::Fill { pattern: FILL | self.submitted, destination: window, size }
            }
            Role::Reads => {
                let destination = Iova(self.copy(slot).address());
                Operation::MemoryMove { source: window, destination, size }
            }
        };
        self.slots[slot] = operation;
        self.queue.submit(slot, operation, Flags::REQUEST_RECORD | self.block);
    }

    /// Looks at how a descriptor ended: whether with success. Everything but success and its fault
    /// is a failure.
    fn judge(&mut self, slot: usize, record: &CompletionRecord) -> Outcome<bool> {
        let operation = self.slots[slot];
        let fault = match self.block.contains(Flags::BLOCK_ON_FAULT) {
            true => Status::PageRequestInvalid,
            false => Status::PageFault,
        };
        let done = match record.status.status() {
            Ok(Status::Success) => SIZE,
            Ok(status) if status == fault => {
                let write = self.role == Role::Writes;
                let own = job::owns_fault(&operation, record.fault_address, write);
                ensure!(
                    own && record.status.write() == write,
                    "a fault that is not its own: {record:?}"
                );
                self.faults += 1;
                record.bytes_completed as usize
            }
            _ => return Err(bad_status(operation, record).into()),
        };
        if self.role == Role::Reads {
            let copied = self.copy(slot).part(0, done.min(SIZE)).read();
            unpoisoned(&copied)?;
        }
        Ok(done == SIZE)
    }
}

/// Every word could be read when it was.
fn unpoisoned(copied: &[u8]) -> Outcome<()> {
    for (index, word) in copied.chunks_exact(8).enumerate() {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        ensure!(
            word >> 32 == GOOD >> 32,
            "word {index} is {word:#x}: read after it was taken away"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_too_late_is_noticed() {
        assert_eq!(unpoisoned(&repeated(GOOD | 7, 64)), Ok(()));
        assert!(unpoisoned(&repeated(POISON, 64)).is_err());
        assert!(unpoisoned(&repeated(0, 64)).is_err());
    }

    #[test]
    fn the_window_is_given_and_taken() {
        let mut stage = Stage::new().unwrap();
        for change in [Change::ReadOnly, Change::NoAccess, Change::Unmapped] {
            stage.give(3, Flags::empty()).unwrap();
            let window = stage.window.as_ref().map(|window| window.span().address());
            assert_eq!(window, Some(WINDOW as u64));
            stage.take(change).unwrap();
            assert_eq!(stage.window.is_some(), change != Change::Unmapped);
            assert!(fault_in(WINDOW as u64, true).is_err(), "{change:?}");
            let readable = fault_in(WINDOW as u64, false).is_ok();
            assert_eq!(readable, change == Change::ReadOnly);
        }
    }
}
