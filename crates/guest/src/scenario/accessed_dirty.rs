//! `accessed-dirty`: what the accelerator does to pages shows in the guest kernel's own account.
//!
//! ```text
//!   memfd, sized by ftruncate:  | page 0 |  hole  | page 2 |  hole  | page 4 | ...
//!   mappings of one page each:      0                 1                 2        ...
//! ```
//!
//! The pages are only read-faulted, so nothing but the device can make them dirty. Each is a
//! mapping of its own (with gaps, or the kernel would merge them), so that smaps has a line for it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use dsa::spec::Flags;
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::mm::ProtFlags;

use crate::dma::{Mapping, Place, Span, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::job;
use crate::model::pattern::Random;
use crate::queue::Queue;
use crate::report::{Counts, Report};
use crate::smaps::{self, Account};

/// Pages, each with a mapping of its own.
const PAGES: usize = 48;

/// Pages that the device may touch and nobody else writes.
struct Pages {
    mappings: Vec<Mapping>,
    _file: OwnedFd,
}

impl Pages {
    /// Sized, mapped, and read-faulted.
    fn new() -> Outcome<Self> {
        let file = memfd_create("accessed-dirty", MemfdFlags::CLOEXEC).at("memfd")?;
        ftruncate(&file, (2 * PAGES * PAGE) as u64).at("sizing the memfd")?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let mappings: Result<Vec<_>, _> = (0..PAGES)
            .map(|index| Mapping::shared(file.as_fd(), (2 * index * PAGE) as u64, PAGE, access))
            .collect();
        let mappings = mappings?;
        mappings.iter().for_each(|mapping| mapping.span().touch_for_reading());
        Ok(Self { mappings, _file: file })
    }

    fn span(&self, index: usize) -> Span<'_> {
        self.mappings[index].span()
    }

    /// The pages of which the kernel's account says `what`.
    fn having(&self, what: fn(&Account) -> u64) -> Outcome<BTreeSet<usize>> {
        let accounts = smaps::all()?;
        let mut found = BTreeSet::new();
        for (index, mapping) in self.mappings.iter().enumerate() {
            let address = mapping.span().address();
            let own = address..address + PAGE as u64;
            let account = accounts.iter().find(|account| account.range == own);
            let account = account
                .ok_or_else(|| Failure::new(format!("page {index} has no mapping of its own")))?;
            ensure!(account.resident == PAGE as u64, "page {index} is not resident: {account:?}");
            if what(account) > 0 {
                found.insert(index);
            }
        }
        Ok(found)
    }
}

/// The scenario.
pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut random = Random::new(seed);
    let mut queue = Queue::open(0)?;
    let pages = Pages::new()?;
    report.check("pages that were only read are clean", clean(&pages));
    let outcome = written(&mut queue, &pages, &mut random);
    report.check("the device's writes make exactly their pages dirty", outcome);
    let outcome = read(&mut queue, &pages, &mut random);
    report.check("the device's reads make exactly their pages referenced", outcome);
    let outcome = read_after_flush(&mut queue, &pages, &mut random);
    report.check("and again after a flush, other pages", outcome);
    Ok(queue.counts())
}

fn clean(pages: &Pages) -> Outcome {
    let dirty = pages.having(|account| account.dirty)?;
    ensure!(dirty.is_empty(), "pages {dirty:?} are dirty before the device did anything");
    Ok(format!("{PAGES} pages resident, none dirty"))
}

/// A random third of the pages.
fn choose(random: &mut Random) -> BTreeSet<usize> {
    (0..PAGES / 3).map(|_| random.below(PAGES)).collect()
}

fn written(queue: &mut Queue, pages: &Pages, random: &mut Random) -> Outcome {
    let chosen = choose(random);
    let source = Mapping::anonymous(Place::Anywhere, PAGE)?;
    let data = random.bytes(PAGE);
    source.span().write(&data);
    for (turn, index) in chosen.iter().enumerate() {
        // One byte is enough to make a page dirty; whole pages and copies do as well.
        let target = pages.span(*index);
        let operation = match turn % 3 {
            0 => job::fill(0x6b, target.part(random.below(PAGE), 1)),
            1 => job::fill(0x6b6b_6b6b_6b6b_6b6b, target),
            _ => job::copy(source.span(), target),
        };
        let finished = queue.complete(operation, Flags::empty())?;
        // A fault taken by this process would make the page dirty itself and prove nothing.
        let partial = finished.partial_completions;
        ensure!(partial == 0, "page {index} faulted, though it is mapped for writing");
    }
    let dirty = pages.having(|account| account.dirty)?;
    ensure!(dirty == chosen, "the device wrote pages {chosen:?}, dirty are {dirty:?}");
    for (turn, index) in chosen.iter().enumerate() {
        let bytes = pages.span(*index).read();
        match turn % 3 {
            0 => ensure!(bytes.contains(&0x6b), "page {index} does not hold the byte"),
            1 => same("filled page", &bytes, &[0x6b; PAGE])?,
            _ => same("copied page", &bytes, &data)?,
        }
    }
    Ok(format!("{} of {PAGES} pages written and dirty, no other", dirty.len()))
}

/// Clears the kernel's account, and makes it drop every translation that the device may hold.
fn forget_references(pages: &Pages) -> Outcome<()> {
    smaps::clear_referenced().at("clear_refs")?;
    for mapping in &pages.mappings {
        mapping.flush_translations().at("flushing translations")?;
    }
    let left = pages.having(|account| account.referenced)?;
    ensure!(left.is_empty(), "pages {left:?} are still referenced after clear_refs");
    Ok(())
}

fn read(queue: &mut Queue, pages: &Pages, random: &mut Random) -> Outcome {
    forget_references(pages)?;
    let dirty = pages.having(|account| account.dirty)?;
    let chosen = choose(random);
    let target = Mapping::anonymous(Place::Anywhere, PAGE)?;
    target.span().fill(0);
    for (turn, index) in chosen.iter().enumerate() {
        let source = pages.span(*index);
        let operation = match turn % 2 {
            0 => job::crc(source.part(random.below(PAGE), 1), 0),
            _ => job::copy(source, target.span()),
        };
        let finished = queue.complete(operation, Flags::empty())?;
        let partial = finished.partial_completions;
        ensure!(partial == 0, "page {index} faulted, though it is mapped");
    }
    let referenced = pages.having(|account| account.referenced)?;
    ensure!(
        referenced == chosen,
        "the device read pages {chosen:?}, referenced are {referenced:?}"
    );
    let after = pages.having(|account| account.dirty)?;
    ensure!(after == dirty, "reading changed the dirty pages from {dirty:?} to {after:?}");
    Ok(format!("{} of {PAGES} pages read and referenced, no other", referenced.len()))
}

/// Once more: a translation that survived the flush would leave no mark in the tables.
fn read_after_flush(queue: &mut Queue, pages: &Pages, random: &mut Random) -> Outcome {
    read(queue, pages, random)
}
