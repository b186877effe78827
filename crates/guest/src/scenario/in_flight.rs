//! `in-flight`: memory is remapped while the device works on it.
//!
//! ```text
//!   device ──► address ──┬── round r:     page r mod n  ──┐
//!                        └── round r + 1: next page       ├── one memfd, and a twin mapping of all
//!   main thread: mmap(MAP_FIXED) from one to the next     ┘   of it through which pages are judged
//! ```
//!
//! A second thread keeps the queue full of fills of, or copies out of, the address. `mmap` returns
//! after the kernel has invalidated the old translation and waited; from then on the device must
//! neither write to nor read from the old page, in the middle of a descriptor or not.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dsa::spec::{CompletionRecord, Flags, Iova, Operation, Status};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::mm::ProtFlags;

use crate::dma::{Mapping, Place, Span, HUGE_PAGE, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::queue::{bad_status, go_on, is_partial, pause, Queue};
use crate::report::{Counts, Report};
use crate::setup::QUEUE_SIZE;

/// Descriptors that the storm keeps outstanding.
const OUTSTANDING: usize = 8;
const _: () = assert!(OUTSTANDING <= QUEUE_SIZE);
/// Shortest time for which an unmapped page is watched.
const WATCH: Duration = Duration::from_millis(2);
/// How long the storm may take to come round.
const PATIENCE: Duration = Duration::from_secs(10);
/// High half of every word that the storm fills with; the low half counts descriptors.
const FILL_TAG: u64 = 0xf111_0000_0000_0000;
/// High half of every word that the storm copies; the low half is the round.
const PAGE_TAG: u64 = 0x9a6e_0000_0000_0000;

/// What the storm does with the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Destination,
    Source,
}

/// What is remapped, and how often.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    name: &'static str,
    /// Bytes that are remapped at once, and transferred by each descriptor.
    unit: usize,
    /// How many units the file has.
    units: usize,
    /// Whether they are huge pages of the kernel's pool.
    huge: bool,
    rounds: u64,
}

const GEOMETRIES: [Geometry; 3] = [
    Geometry { name: "4 KiB pages", unit: PAGE, units: 64, huge: false, rounds: 200 },
    Geometry { name: "64 KiB at once", unit: 16 * PAGE, units: 16, huge: false, rounds: 60 },
    Geometry { name: "2 MiB pages", unit: HUGE_PAGE, units: 4, huge: true, rounds: 24 },
];

/// Huge pages in the kernel's pool while the scenario runs.
const HUGE_PAGES: &str = "8";
const HUGE_PAGE_POOL: &str = "/proc/sys/vm/nr_hugepages";

/// The scenario.
pub(super) fn run(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut queue = Queue::open(0)?;
    for geometry in GEOMETRIES {
        for role in [Role::Destination, Role::Source] {
            let what = match role {
                Role::Destination => "written while remapped",
                Role::Source => "read while remapped",
            };
            let outcome = remap_storm(&mut queue, geometry, role);
            let failed = outcome.is_err();
            report.check(&format!("{}: {what}", geometry.name), outcome);
            if queue.lost() > 0 {
                let text = "not tried: a descriptor never completed";
                report.check("the other remaps", Err(Failure::new(text)));
                return Ok(queue.counts());
            }
            if failed {
                // Descriptors may be outstanding on it.
                let counts = queue.counts();
                drop(queue);
                queue = Queue::open(0)?;
                queue.carry(counts);
            }
        }
    }
    Ok(queue.counts())
}

/// The file, its twin mapping, and the address that is remapped.
struct Stage {
    file: OwnedFd,
    twin: Mapping,
    window: Mapping,
    geometry: Geometry,
}

impl Stage {
    fn new(geometry: Geometry) -> Outcome<Self> {
        let kind = if geometry.huge {
            std::fs::write(HUGE_PAGE_POOL, HUGE_PAGES).at(HUGE_PAGE_POOL)?;
            MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB
        } else {
            MemfdFlags::CLOEXEC
        };
        let file = memfd_create("in-flight", kind).at("memfd")?;
        let len = geometry.unit * geometry.units;
        ftruncate(&file, len as u64).at("sizing the memfd")?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let twin = Mapping::shared(file.as_fd(), 0, len, access).at("twin mapping")?;
        let window = Mapping::shared(file.as_fd(), 0, geometry.unit, access).at("window")?;
        Ok(Self { file, twin, window, geometry })
    }

    /// The unit that the window shows in a round, through the twin.
    fn unit(&self, round: u64) -> Span<'_> {
        let index = (round % self.geometry.units as u64) as usize;
        self.twin.span().part(index * self.geometry.unit, self.geometry.unit)
    }

    /// Makes the window show the unit of a round.
    fn show(&self, round: u64) -> Outcome<()> {
        let index = round % self.geometry.units as u64;
        let offset = index * self.geometry.unit as u64;
        self.window.replace(self.file.as_fd(), offset).at("remapping")
    }
}

/// What the two threads tell each other.
#[derive(Default)]
struct Shared {
    /// Remaps that have returned: the window shows this round's unit, or already the next one's.
    round: AtomicU64,
    /// Descriptors that have completed.
    completed: AtomicU64,
    stop: AtomicBool,
}

fn remap_storm(queue: &mut Queue, geometry: Geometry, role: Role) -> Outcome {
    let stage = Stage::new(geometry)?;
    let shared = Shared::default();
    prepare(&stage, role, 0);
    let address = stage.window.span().address();
    let before = queue.counts();
    let (remapped, stormed) = std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let stormed = Storm::new(queue, address, geometry.unit, role)
                .and_then(|mut storm| storm.rage(&shared));
            shared.stop.store(true, Ordering::SeqCst);
            stormed
        });
        let remapped = remap(&stage, &shared, role);
        shared.stop.store(true, Ordering::SeqCst);
        let stormed = storm.join();
        (remapped, stormed.unwrap_or_else(|_| Err(Failure::new("the storm's thread panicked"))))
    });
    stormed.and(remapped)?;
    let after = queue.counts();
    Ok(format!(
        "{} remaps under {} descriptors, {} of them resumed after a fault",
        geometry.rounds,
        after.descriptors - before.descriptors,
        after.partial_completions - before.partial_completions,
    ))
}

/// Puts the contents in place that a unit begins its round with.
fn prepare(stage: &Stage, role: Role, round: u64) {
    let unit = stage.unit(round);
    match role {
        Role::Destination => unit.fill(0),
        Role::Source => {
            let word = PAGE_TAG | round;
            unit.write(&crate::model::pattern::repeated(word, unit.len()));
        }
    }
}

/// The main thread: remaps, and watches what is no longer mapped.
fn remap(stage: &Stage, shared: &Shared, role: Role) -> Outcome<()> {
    for round in 0..stage.geometry.rounds {
        await_storm(shared, || role == Role::Source || stage.unit(round).load(7) != 0)
            .at(format_args!("round {round}: the device works on the new page"))?;
        prepare(stage, role, round + 1);
        stage.show(round + 1)?;
        shared.round.store(round + 1, Ordering::SeqCst);
        watch(stage, shared, role, round).at(format_args!("round {round}"))?;
    }
    Ok(())
}

/// Watches the unit of a round that is over, for as long as the storm takes to come round.
fn watch(stage: &Stage, shared: &Shared, role: Role, round: u64) -> Outcome<()> {
    let old = stage.unit(round);
    let frozen = old.read();
    let start = Instant::now();
    let completed = shared.completed.load(Ordering::SeqCst);
    // Everything that was outstanding at the remap has completed, and as much again.
    await_storm(shared, || {
        let since = shared.completed.load(Ordering::SeqCst) - completed;
        since >= 2 * OUTSTANDING as u64 && start.elapsed() >= WATCH
    })
    .at("the device goes on")?;
    if role == Role::Destination {
        same("the page that was unmapped", &old.read(), &frozen)?;
    }
    Ok(())
}

fn await_storm(shared: &Shared, arrived: impl Fn() -> bool) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut looks = 0;
    while !arrived() {
        ensure!(!shared.stop.load(Ordering::SeqCst), "the storm is over");
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}");
        pause(&mut looks);
    }
    Ok(())
}

/// The second thread's work: a queue full of descriptors that all use the window.
struct Storm<'a> {
    queue: &'a mut Queue,
    address: u64,
    unit: usize,
    role: Role,
    /// Where copies go, a unit for each slot.
    copies: Mapping,
    /// What each slot holds, and the round in which it was submitted.
    slots: [(Operation, u64); OUTSTANDING],
    submitted: u64,
}

impl<'a> Storm<'a> {
    fn new(queue: &'a mut Queue, address: u64, unit: usize, role: Role) -> Outcome<Self> {
        let copies = Mapping::anonymous(Place::Anywhere, OUTSTANDING * unit)?;
        copies.span().fill(0);
        let slots = [(Operation::Noop, 0); OUTSTANDING];
        Ok(Self { queue, address, unit, role, copies, slots, submitted: 0 })
    }

    /// Keeps the queue full until it is told to stop, then empties it.
    fn rage(&mut self, shared: &Shared) -> Outcome<()> {
        for slot in 0..OUTSTANDING {
            self.submit(slot, shared);
        }
        let mut looks = 0;
        while !shared.stop.load(Ordering::SeqCst) {
            for slot in 0..OUTSTANDING {
                if let Some(record) = self.queue.poll(slot) {
                    looks = 0;
                    self.judge(slot, &record, shared)?;
                    shared.completed.fetch_add(1, Ordering::SeqCst);
                    self.submit(slot, shared);
                }
            }
            pause(&mut looks);
        }
        for (slot, (operation, _)) in self.slots.into_iter().enumerate() {
            self.queue.wait(slot, &operation)?;
        }
        Ok(())
    }

    fn submit(&mut self, slot: usize, shared: &Shared) {
        let size = u32::try_from(self.unit).unwrap_or(u32::MAX);
        let window = Iova(self.address);
        self.submitted += 1;
        let operation = match self.role {
            Role::Destination => {
                Operation::Fill { pattern: FILL_TAG | self.submitted, destination: window, size }
            }
            Role::Source => {
                let destination = Iova(self.copy(slot).address());
                Operation::MemoryMove { source: window, destination, size }
            }
        };
        self.slots[slot] = (operation, shared.round.load(Ordering::SeqCst));
        self.queue.submit(slot, operation, Flags::REQUEST_RECORD);
    }

    fn copy(&self, slot: usize) -> Span<'_> {
        self.copies.span().part(slot * self.unit, self.unit)
    }

    /// Looks at what a descriptor did, and makes the page present at which it may have stopped.
    fn judge(&mut self, slot: usize, record: &CompletionRecord, shared: &Shared) -> Outcome<()> {
        let (operation, earliest) = self.slots[slot];
        self.queue.account(&operation, record);
        let done = if is_partial(record) {
            // The next descriptor of this slot starts over: what is left of this one has no
            // meaning once the window shows another page.
            go_on(&operation, record)?;
            record.bytes_completed as usize
        } else if record.status.status() == Ok(Status::Success) {
            self.unit
        } else {
            return Err(bad_status(operation, record).into());
        };
        match self.role {
            Role::Destination => Ok(()),
            Role::Source => {
                // A remap that has returned counts; one that is under way may have happened.
                let latest = shared.round.load(Ordering::SeqCst) + 1;
                let copied = self.copy(slot).part(0, done.min(self.unit)).read();
                of_rounds(&copied, earliest, latest)
            }
        }
    }
}

/// Every word was copied from a page that was mapped while the descriptor was outstanding.
fn of_rounds(copied: &[u8], earliest: u64, latest: u64) -> Outcome<()> {
    for (index, word) in copied.chunks_exact(8).enumerate() {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        let round = word ^ PAGE_TAG;
        ensure!(
            (earliest..=latest).contains(&round),
            "word {index} is {word:#x}: submitted in round {earliest}, read in {latest} at most, \
             it shows round {round}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pattern::repeated;

    #[test]
    fn words_of_other_rounds_are_noticed() {
        let copied = repeated(PAGE_TAG | 7, 64);
        assert_eq!(of_rounds(&copied, 7, 7), Ok(()));
        assert_eq!(of_rounds(&copied, 6, 8), Ok(()));
        assert!(of_rounds(&copied, 8, 9).is_err());
        assert!(of_rounds(&copied, 5, 6).is_err());
        assert!(of_rounds(&repeated(7, 64), 0, 100).is_err());
    }

    #[test]
    fn the_window_moves_from_page_to_page() {
        let stage = Stage::new(GEOMETRIES[0]).unwrap();
        for round in 0..70 {
            prepare(&stage, Role::Source, round);
            stage.show(round).unwrap();
            assert_eq!(of_rounds(&stage.window.span().read(), round, round), Ok(()));
        }
    }
}
