//! Scenarios of a device that has a TLB of its own, as those of [`super::scenarios`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use iommu::PageRange;
use mem::Range;

use super::scenarios::Verdict;
use super::*;

/// What each page of an address space is remapped between.
const SOURCES: [u64; 2] = [0x10_0000, 0x20_0000];
const SINKS: [u64; 2] = [0x30_0000, 0x40_0000];
const SOURCE: u64 = 0x7f00_1234_5000;
const SINK: u64 = SOURCE + 0x1000;
/// What stands in a page that is not the device's any more.
const TAKEN: u64 = 0xdead_dead_dead_dead;
/// Bytes of a page that are copied.
const COPIED: usize = 256;

fn check(holds: bool, claim: &str) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(claim.into())
    }
}

fn leaf(page: u64) -> u64 {
    page | PRESENT | WRITABLE | USER
}

fn page(address: u64) -> Range<Iova> {
    Range::<Iova>::new(Iova(address), 4096).unwrap()
}

/// Has the IOTLB forget a page of PASID 1, then the device's own TLB.
pub fn forget(guest: &Guest, address: u64) -> Ticket {
    let (range, one) = (page(address), pasid(1));
    let pages = PageRange { range, leaf_only: true };
    let _ =
        guest.vm.invalidate(Invalidation::IotlbPasidPages { domain: DOMAIN, pasid: one, pages });
    guest.vm.invalidate(Invalidation::DeviceTlbPasid { requester: DEVICE, pasid: Some(one), range })
}

/// A page that was remapped, and forgotten everywhere, is found at its new place.
pub fn remap() -> Verdict {
    let mut guest = Guest::new();
    let root = guest.table();
    guest.set_first(root, SOURCE, 1, leaf(SOURCES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    for (page, word) in SOURCES.into_iter().zip([11, 22]) {
        guest.memory.store_u64(Gpa(page), word).unwrap();
    }
    let (endpoint, channel) = guest.attach();
    endpoint.set_ats(true);
    check(dma(&channel, with(1), SOURCE, Op::Read) == Ok(11), "first page")?;
    guest.set_first(root, SOURCE, 1, leaf(SOURCES[1]));
    wait(&guest.vm, forget(&guest, SOURCE));
    check(dma(&channel, with(1), SOURCE, Op::Read) == Ok(22), "second page")
}

/// Two channels copy from one page to another without pause, while both are remapped, and what the
/// device has lost is written to. Nothing that it lost is read, or written.
pub fn storm() -> Verdict {
    const ROUNDS: usize = 100;
    // On few processors the copies may not have been at it yet by then.
    const MOST_ROUNDS: usize = 100_000;
    let mut guest = Guest::new();
    let root = guest.table();
    let source = guest.set_first(root, SOURCE, 1, leaf(SOURCES[0]));
    let sink = guest.set_first(root, SINK, 1, leaf(SINKS[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (endpoint, _) = guest.attach();
    endpoint.set_ats(true);
    let (stop, stale) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut touched = false;
    thread::scope(|scope| {
        for _ in 0..2 {
            let channel = endpoint.channel();
            scope.spawn(|| {
                let channel = channel;
                while !stop.load(Ordering::Relaxed) {
                    copy(&channel, &stale);
                }
            });
        }
        for round in 0..MOST_ROUNDS {
            if round >= ROUNDS && guest.vm.counters().device_tlb_hits > 0 {
                break;
            }
            let (old, new) = (round % 2, (round + 1) % 2);
            fill(&guest, SOURCES[new], round as u64);
            guest.memory.store_u64(source, leaf(SOURCES[new])).unwrap();
            wait(&guest.vm, forget(&guest, SOURCE));
            fill(&guest, SOURCES[old], TAKEN);

            // What was taken a round ago has had all that time to be written to.
            touched |= round > 0 && !holds(&guest, SINKS[new], TAKEN);
            guest.memory.store_u64(sink, leaf(SINKS[new])).unwrap();
            wait(&guest.vm, forget(&guest, SINK));
            fill(&guest, SINKS[old], TAKEN);
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    check(!stale.into_inner(), "a page was read after it was taken away")?;
    check(!touched, "a page was written after it was taken away")?;
    check(guest.vm.counters().device_tlb_hits > 0, "the device's own TLB was not used")
}

/// Copies once, and says so if what is read is not the device's.
fn copy(channel: &Channel, stale: &AtomicBool) {
    let dma = channel.enter();
    let from = dma.window(with(1), Iova(SOURCE), COPIED, Access::Read).unwrap();
    let to = dma.window(with(1), Iova(SINK), COPIED, Access::Write).unwrap();
    for offset in (0..COPIED).step_by(8) {
        let word = from.load_u64(offset);
        if word == Some(TAKEN) {
            stale.store(true, Ordering::Relaxed);
        }
        to.store_u64(offset, word.unwrap_or(0)).unwrap();
    }
}

fn fill(guest: &Guest, page: u64, word: u64) {
    let words = (0..COPIED as u64).step_by(8);
    words.for_each(|offset| guest.memory.store_u64(Gpa(page + offset), word).unwrap());
}

fn holds(guest: &Guest, page: u64, word: u64) -> bool {
    let mut words = (0..COPIED as u64).step_by(8);
    words.all(|offset| guest.memory.load_u64(Gpa(page + offset)) == Ok(word))
}
