//! What is copied where, and what that leaves behind.

use dsa::spec::Status;

use super::super::accelerator::{copy, copy_as};
use super::super::memory::{ACCESSED, DIRTY, LARGE_PAGE};
use super::super::random::Random;
use super::super::{check, equal, succeeded, Guest, Setup, Space, Verdict, DEDICATED, OTHER, PAGE};
use super::{COPY, DESTINATION, RECORD, SOURCE};

/// Copies of all sizes by first-stage translations, unaligned, across pages and across 2 MiB.
pub fn copies(setup: Setup) -> Verdict {
    const LARGEST: u32 = 2 << 20;
    // Ends in the middle of a page, and begins just below a 2 MiB border.
    const FROM: u64 = 0x7f12_3440_0000 - 3 * PAGE + 5;
    let mut guest = Guest::boot(setup)?;
    let mut space = guest.process(0x21)?;
    let ram = &mut guest.rig.ram;
    space.allocate(ram, FROM, u64::from(LARGEST));
    // The destination begins in small pages and goes on in a large one.
    let to = DESTINATION + LARGE_PAGE - 2 * PAGE + 77;
    space.allocate(ram, to, PAGE);
    space.allocate(ram, DESTINATION + LARGE_PAGE - PAGE, 1);
    space.allocate_large(ram, DESTINATION + LARGE_PAGE);
    space.allocate(ram, RECORD, 1);
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
    let mut random = Random::new(1);
    for len in [1, 63, 4096, 4097, 65_536, 200_001, LARGEST] {
        let data = random.bytes(len as usize);
        space.write(&guest.rig.ram, FROM, &data);
        let record = guest.copy(DEDICATED, &space, [FROM, to, RECORD], len)?;
        succeeded(&record)?;
        check(space.read(&guest.rig.ram, to, data.len()) == data, &format!("{len} bytes"))?;
    }
    let counters = guest.rig.device.counters();
    equal((counters.descriptors, counters.errors()), (7, 0), "descriptors and errors")
}

/// Two processes with the same addresses and two queues see their own memory. They copy different
/// amounts, so that it shows if each did the other's work.
pub fn isolation(setup: Setup) -> Verdict {
    const LENS: [usize; 2] = [50_000, 20_001];
    let mut guest = Guest::boot(setup)?;
    let mut spaces = Vec::new();
    for (queue, number) in [(DEDICATED, 0x10), (OTHER, 0x11)] {
        let mut space = guest.process(number)?;
        for at in [SOURCE, DESTINATION] {
            space.allocate(&mut guest.rig.ram, at, LENS[0] as u64);
        }
        space.allocate(&mut guest.rig.ram, RECORD, 1);
        guest.accelerator.open(&guest.rig, queue, space.pasid)?;
        spaces.push((queue, space));
    }
    let mut random = Random::new(2);
    for round in 0..20 {
        let mut expected = Vec::new();
        for ((queue, space), len) in spaces.iter().zip(LENS) {
            let mut data = random.bytes(LENS[0]);
            space.write(&guest.rig.ram, SOURCE, &data);
            space.write(&guest.rig.ram, DESTINATION, &[0; LENS[0]]);
            space.write(&guest.rig.ram, RECORD, &[0; 32]);
            guest.accelerator.store(&guest.rig, *queue, &copy(COPY, len as u32));
            data[len..].fill(0);
            expected.push(data);
        }
        for ((_, space), data) in spaces.iter().zip(expected) {
            succeeded(&guest.wait_record(space, RECORD)?)?;
            let copied = space.read(&guest.rig.ram, DESTINATION, data.len());
            check(copied == data, &format!("round {round}: its own bytes, and no more"))?;
        }
    }
    Ok(())
}

/// A PASID that a descriptor names does not count in a dedicated queue: the queue's does.
pub fn forged_pasid(setup: Setup) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let mut own = guest.process(0x10)?;
    let mut victim = guest.process(0x33)?;
    for (space, content) in [(&mut own, b"mine"), (&mut victim, b"hers")] {
        for at in COPY {
            space.allocate(&mut guest.rig.ram, at, PAGE);
        }
        space.write(&guest.rig.ram, SOURCE, content);
    }
    guest.accelerator.open(&guest.rig, DEDICATED, own.pasid)?;
    let forged = copy_as(victim.pasid, COPY, 4);
    guest.accelerator.store(&guest.rig, DEDICATED, &forged);
    let ended = || [&own, &victim].iter().any(|s| s.read(&guest.rig.ram, RECORD, 1) != [0]);
    guest.rig.wait("a record", ended)?;
    guest.rig.settle()?;
    succeeded(&guest.wait_record(&own, RECORD)?)?;
    equal(own.read(&guest.rig.ram, DESTINATION, 4), b"mine".to_vec(), "its own memory")?;
    let untouched = victim.read(&guest.rig.ram, DESTINATION, 4);
    equal(untouched, vec![0; 4], "the other's memory")
}

/// Reads mark a page accessed, writes dirty too; nothing else in the tables changes.
pub fn accessed_dirty(setup: Setup) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let mut space = guest.process(0x10)?;
    for at in [SOURCE, DESTINATION] {
        // Twice as much as is used.
        space.allocate(&mut guest.rig.ram, at, 8 * PAGE);
    }
    space.allocate(&mut guest.rig.ram, RECORD, 1);
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
    let mut expected = space.table_words(&guest.rig.ram);
    // The middle two pages of the source, the last four of the destination.
    let (from, to) = (SOURCE + 3 * PAGE, DESTINATION + 4 * PAGE);
    let (read, written) = (2 * PAGE, 4 * PAGE);
    let mut mark = |guest: &mut Guest, space: &mut Space, at, level, bits| {
        let entry = space.entry(&mut guest.rig.ram, at, level);
        *expected.get_mut(&entry.0).expect("an entry of a table") |= bits;
    };
    for (base, len, bits) in
        [(from, read, ACCESSED), (to, written, ACCESSED | DIRTY), (RECORD, 1, ACCESSED | DIRTY)]
    {
        for at in (base..base + len).step_by(PAGE as usize) {
            (2..=4).for_each(|level| mark(&mut guest, &mut space, at, level, ACCESSED));
            mark(&mut guest, &mut space, at, 1, bits);
        }
    }
    // A piece of the source is read first, so that the translation of a clean page is cached.
    let first = guest.copy(DEDICATED, &space, [from, to, RECORD], 16)?;
    let second = guest.copy(DEDICATED, &space, [from, to, RECORD], read as u32)?;
    let third = guest.copy(DEDICATED, &space, [from, to + read, RECORD], read as u32)?;
    [first, second, third].iter().try_for_each(succeeded)?;
    let words = space.table_words(&guest.rig.ram);
    let differ = words.iter().find(|(at, word)| expected[*at] != **word);
    check(differ.is_none(), &format!("an entry of the tables: {differ:x?}"))
}

/// A page that is taken away faults; one that is put in its place is found.
pub fn remap(setup: Setup) -> Verdict {
    let mut guest = Guest::boot(setup)?;
    let mut space = guest.process(0x10)?;
    for at in COPY {
        space.allocate(&mut guest.rig.ram, at, PAGE);
    }
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
    space.write(&guest.rig.ram, SOURCE, b"old");
    succeeded(&guest.copy(DEDICATED, &space, COPY, 3)?)?;
    let old = space.unmap(&mut guest.rig.ram, SOURCE);
    guest.unit.flush_pages(&guest.rig, &space, SOURCE, 1)?;
    let record = guest.copy(DEDICATED, &space, COPY, 3)?;
    equal(record.status.status().ok(), Some(Status::PageFault), "a page that is away")?;
    equal(record.fault_address.0 & !(PAGE - 1), SOURCE, "fault address")?;
    equal(record.bytes_completed, 0, "bytes completed")?;
    let new = guest.rig.ram.page();
    guest.rig.ram.write(new, b"new");
    guest.rig.ram.write(old, b"bad");
    space.map(&mut guest.rig.ram, SOURCE, new);
    succeeded(&guest.copy(DEDICATED, &space, COPY, 3)?)?;
    equal(space.read(&guest.rig.ram, DESTINATION, 3), b"new".to_vec(), "the new page")?;
    // ATS: page faults are the device's business.
    equal(guest.unit.take_faults(&guest.rig), vec![], "faults recorded")
}

/// Bind, work, exit, again and again: what is cached and used does not grow.
pub fn rebind(setup: Setup) -> Verdict {
    const TIMES: u32 = 200;
    const SETTLED: u32 = 50;
    let mut guest = Guest::boot(setup)?;
    let mut settled = None;
    for turn in 0..TIMES {
        let mut space = guest.process(1 + turn % 40)?;
        for at in [SOURCE, DESTINATION] {
            space.allocate(&mut guest.rig.ram, at, 4 * PAGE);
        }
        space.allocate(&mut guest.rig.ram, RECORD, 1);
        guest.accelerator.open(&guest.rig, DEDICATED, space.pasid)?;
        let data = turn.to_le_bytes().repeat(4096);
        space.write(&guest.rig.ram, SOURCE, &data);
        succeeded(&guest.copy(DEDICATED, &space, COPY, data.len() as u32)?)?;
        check(space.read(&guest.rig.ram, DESTINATION, data.len()) == data, "the data")?;
        guest.accelerator.close(&guest.rig, DEDICATED)?;
        guest.exit(space)?;
        let now = (guest.rig.footprint(), guest.rig.ram.used);
        if turn >= SETTLED {
            equal(now, *settled.get_or_insert(now), "cached entries, devices and pages")?;
        }
    }
    equal(guest.rig.footprint(), [0, 0, 1], "cached entries and devices at the end")
}
