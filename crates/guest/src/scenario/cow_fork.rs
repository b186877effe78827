//! `cow-fork`: a process forks, and both halves write the pages that they shared, through the device.
//!
//! ```text
//!   device writes all ──► fork ──┬── parent: half of the pages ── the other half ──► sees its own
//!   (it may have cached          └── child: all, by a queue of its own ───────────► sees its own
//!    that it may write)
//! ```
//!
//! After the fork the pages are no process's to write any more, so that a write that is not made to
//! fault shows up in the other half.

use std::time::{Duration, Instant};

use guest_protocol::FromGuest;

use crate::child::{Child, Event};
use crate::dma::{Mapping, Place, Span, PAGE};
use crate::failure::{same, Context, Failure, Outcome};
use crate::job;
use crate::model::pattern::repeated;
use crate::queue::Queue;
use crate::report::{Counts, Report};
use crate::setup::BLOCKING;

/// Bytes that are shared.
const SIZE: usize = 32 * PAGE;
const HALF: usize = SIZE / 2;
/// Forks, one after the other.
const ROUNDS: u64 = 4;
/// How long a half may take for its part.
const WITHIN: Duration = Duration::from_secs(60);

/// What is written, by whom; each round has words of its own.
#[derive(Clone, Copy)]
enum Writer {
    Before = 0xb0,
    Parent = 0xaa,
    ParentAgain = 0xab,
    Child = 0xcc,
}

fn word(writer: Writer, round: u64) -> u64 {
    (writer as u64) << 56 | round << 32 | 0x0f0f_0f0f
}

/// The scenario.
pub(super) fn run(report: &mut Report, _seed: u64) -> Outcome<Counts> {
    let mut counts = Counts::default();
    let mut queue = Queue::open(BLOCKING[0])?;
    let mut found = Ok(String::new());
    for round in 0..ROUNDS {
        found = one_fork(&mut queue, round, &mut counts).at(format_args!("fork {round}"));
        if found.is_err() {
            break;
        }
    }
    report.check("parent and child each see their own", found);
    counts.add(queue.counts());
    drop(queue);
    Ok(counts)
}

fn one_fork(queue: &mut Queue, round: u64, counts: &mut Counts) -> Outcome {
    let memory = Mapping::anonymous(Place::Anywhere, SIZE)?;
    memory.want_small_pages()?;
    let span = memory.span();
    let [before, own, again] =
        [Writer::Before, Writer::Parent, Writer::ParentAgain].map(|writer| word(writer, round));
    queue.block(job::fill(before, span))?;
    let mut child = Child::forked(|report| {
        let ended = child_half(report, span, round);
        super::conclude(report, ended, "the child reached its end");
    })?;
    let (first, second) = (span.part(0, HALF), span.part(HALF, HALF));
    let outcome = meet(&mut child, "the child's queue").and_then(|()| {
        queue.block(job::fill(own, first))?;
        holds("the parent's first half", first, own)?;
        holds("the parent's second half", second, before)?;
        child.go_on(true)?;
        meet(&mut child, "the child's writes")?;
        holds("the parent's first half, after the child's writes", first, own)?;
        holds("the parent's second half, after the child's writes", second, before)?;
        queue.block(job::fill(again, second))?;
        holds("the parent's second half, written", second, again)?;
        child.go_on(true)?;
        Ok(())
    });
    if let Err(failure) = outcome {
        // Also what the child has to say of it.
        return match super::finish(child, Instant::now(), counts) {
            Ok(_) => Err(failure),
            Err(other) => Err(Failure::new(format!("{failure}; the child: {other}"))),
        };
    }
    super::finish(child, Instant::now() + WITHIN, counts).at("the child")?;
    Ok(format!("{ROUNDS} forks, {} pages written by both, {SIZE} bytes read back", SIZE / PAGE))
}

/// Waits until the child is at its next point.
fn meet(child: &mut Child, what: &str) -> Outcome<()> {
    match child.event(Instant::now() + WITHIN)? {
        Event::Message(FromGuest::Sync { .. }) => Ok(()),
        other => Err(Failure::new(format!("not {what}, but {other:?}"))),
    }
}

/// The child: finds what was there at the fork whatever the parent wrote since, and writes its own.
fn child_half(report: &mut Report, span: Span<'_>, round: u64) -> Outcome<Counts> {
    let (before, own) = (word(Writer::Before, round), word(Writer::Child, round));
    let mut queue = Queue::open(BLOCKING[1])?;
    report.sync("forked", &[])?;
    let seen = queue.block(job::compare_pattern(span, before, 0))?;
    if seen.result != 0 {
        let at = seen.bytes_completed;
        return Err(Failure::new(format!("the device sees what is not the child's, at byte {at}")));
    }
    holds("the child's pages, after the parent's writes", span, before)?;
    queue.block(job::fill(own, span))?;
    holds("the child's pages, written", span, own)?;
    report.sync("written", &[])?;
    holds("the child's pages, after the parent's second writes", span, own)?;
    report.check("child", Ok("its own".to_owned()));
    Ok(queue.counts())
}

fn holds(what: &str, span: Span<'_>, word: u64) -> Outcome<()> {
    same(what, &span.read(), &repeated(word, span.len()))
}
