//! Scenarios that end in a verdict, so that builds with a deliberate defect can prove that the
//! verdict turns.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

pub type Verdict = Result<(), String>;

fn check(holds: bool, claim: &str) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(claim.into())
    }
}

const PAGES: [u64; 2] = [0x10_0000, 0x20_0000];
const VA: u64 = 0x7f00_1234_5000;
/// What stands in a page that no longer belongs to the device.
const TAKEN: u64 = 0xdead_dead_dead_dead;
/// Bytes of the page that each access looks at.
const LOOK: usize = 512;

fn leaf(page: u64) -> u64 {
    page | PRESENT | WRITABLE | USER
}

/// After an invalidation is complete, the old page is not read any more, while devices keep
/// reading on two channels without pause. They are in the middle of it most of the time, so that
/// invalidations find an access in flight on a busy machine too.
pub fn storm() -> Verdict {
    const ROUNDS: usize = 50;
    // Turns for which an access lasts at the most until an invalidation is posted, and then yet.
    const HOLD: usize = 10_000;
    const LINGER: usize = 500;
    let mut guest = Guest::new();
    let root = guest.table();
    let entry = guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (endpoint, _) = guest.attach();
    let (stop, stale) = (AtomicBool::new(false), AtomicBool::new(false));
    let (posted, begun) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let readers = [endpoint.channel(), endpoint.channel()].map(|channel| {
            scope.spawn(|| {
                let channel = channel;
                while !stop.load(Ordering::Relaxed) {
                    let dma = channel.enter();
                    let round = posted.load(Ordering::Relaxed);
                    let window = dma.window(with(1), Iova(VA), 4096, Access::Read).unwrap();
                    begun.fetch_add(1, Ordering::Relaxed);
                    let held = || posted.load(Ordering::Relaxed) == round;
                    (0..HOLD).take_while(|_| held()).for_each(|_| hint::spin_loop());
                    (0..LINGER).for_each(|_| hint::spin_loop());
                    for offset in (0..LOOK).step_by(8) {
                        if window.load_u64(offset) == Some(TAKEN) {
                            stale.store(true, Ordering::Relaxed);
                        }
                    }
                }
            })
        });
        let mut seen = 0;
        for round in 0..ROUNDS {
            // An access that began after the last invalidation: readers that do not get to run prove nothing.
            while begun.load(Ordering::Relaxed) == seen && !readers.iter().all(|r| r.is_finished())
            {
                thread::yield_now();
            }
            seen = begun.load(Ordering::Relaxed);
            let (old, new) = (PAGES[round % 2], PAGES[(round + 1) % 2]);
            guest.memory.write(Gpa(new), &[0; LOOK]).unwrap();
            guest.memory.store_u64(entry, leaf(new)).unwrap();
            let range = mem::Range::<Iova>::new(Iova(VA), 4096).unwrap();
            let pages = iommu::PageRange { range, leaf_only: true };
            let scope = Invalidation::IotlbPasidPages { domain: DOMAIN, pasid: pasid(1), pages };
            let ticket = guest.vm.invalidate(scope);
            posted.store(round + 1, Ordering::Relaxed);
            wait(&guest.vm, ticket);
            for offset in (0..LOOK as u64).step_by(8) {
                guest.memory.store_u64(Gpa(old + offset), TAKEN).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    check(!stale.into_inner(), "a page was read after it was taken away")
}

/// An invalidation is not complete while an access of before it is in flight.
pub fn in_flight() -> Verdict {
    let mut guest = Guest::new();
    let root = guest.table();
    guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    let access = channel.enter();
    let _window = access.window(with(1), Iova(VA), 8, Access::Write).unwrap();
    let ticket = guest.vm.invalidate(Invalidation::IotlbAll);
    check(!guest.vm.is_complete(ticket), "complete during an access")?;
    drop(access);
    check(guest.vm.is_complete(ticket), "incomplete after the access")
}

/// A remapped page is found at its new place.
pub fn remap() -> Verdict {
    let mut guest = Guest::new();
    let root = guest.table();
    guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    for (page, word) in PAGES.into_iter().zip([11, 22]) {
        guest.memory.store_u64(Gpa(page), word).unwrap();
    }
    let (_endpoint, channel) = guest.attach();
    check(dma(&channel, with(1), VA, Op::Read) == Ok(11), "first page")?;
    guest.set_first(root, VA, 1, leaf(PAGES[1]));
    guest.settle(Invalidation::IotlbPasid { domain: DOMAIN, pasid: pasid(1) });
    check(dma(&channel, with(1), VA, Op::Read) == Ok(22), "second page")
}

/// Reads mark the entries on the way accessed, writes mark the leaf dirty too, and nothing else
/// in the tables changes.
pub fn accessed_dirty() -> Verdict {
    let mut guest = Guest::new();
    let root = guest.table();
    let flags = PRESENT | WRITABLE | USER;
    let read_at = guest.set_first(root, VA, 1, PAGES[0] | flags);
    let written_at = guest.set_first(root, VA + 0x1000, 1, PAGES[1] | flags);
    guest.set_first(root, VA + 0x2000, 1, PAGES[1] | flags);
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest.attach();

    let before = tables(&guest);
    dma(&channel, with(1), VA, Op::Read).map_err(|error| error.to_string())?;
    let on_the_way = [4, 3, 2].map(|level| guest.entry(root, 4, VA, level, 0));
    let mut expected = before;
    for entry in on_the_way.into_iter().chain([read_at]) {
        expected[index(entry)] |= ACCESSED;
    }
    check(tables(&guest) == expected, "after a read")?;

    // A read first, so that the write meets a cached translation of a clean page.
    dma(&channel, with(1), VA + 0x1000, Op::Read).map_err(|error| error.to_string())?;
    dma(&channel, with(1), VA + 0x1000, Op::Write).map_err(|error| error.to_string())?;
    expected[index(written_at)] |= ACCESSED | DIRTY;
    check(tables(&guest) == expected, "after a write")
}

fn tables(guest: &Guest) -> Vec<u64> {
    (TABLES..MEMORY).step_by(8).map(|at| guest.memory.load_u64(Gpa(at)).unwrap()).collect()
}

fn index(entry: Gpa) -> usize {
    ((entry.0 - TABLES) / 8) as usize
}

/// Two PASIDs see their own memory at the same address.
pub fn isolation() -> Verdict {
    let mut guest = Guest::new();
    for (number, page) in [(2, PAGES[0]), (3, PAGES[1])] {
        let root = guest.table();
        guest.set_first(root, VA, 1, leaf(page));
        guest.set_pasid(number, first_stage(root, DOMAIN));
        guest.memory.store_u64(Gpa(page), u64::from(number)).unwrap();
    }
    let (_endpoint, channel) = guest.attach();
    check(dma(&channel, with(2), VA, Op::Read) == Ok(2), "PASID 2")?;
    check(dma(&channel, with(3), VA, Op::Read) == Ok(3), "PASID 3")?;
    check(dma(&channel, with(4), VA, Op::Read).is_err(), "a PASID that nobody bound")
}

/// A closed VM refuses every access and holds no memory.
pub fn close() -> Verdict {
    let mut guest = Guest::new();
    let root = guest.table();
    guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    dma(&channel, with(1), VA, Op::Write).map_err(|error| error.to_string())?;
    let backing = Arc::downgrade(&guest.memory.segments()[0].backing);
    guest.memory = Arc::default();
    let ticket = guest.vm.close();
    wait(&guest.vm, ticket);
    let refused = dma(&channel, with(1), VA, Op::Write) == Err(DmaError::Detached);
    check(refused, "access after close")?;
    check(backing.upgrade().is_none(), "memory is still there")?;
    check(guest.host.vms() == 0, "the host still counts the VM")
}

/// Binding, working and unbinding again and again leaves nothing behind.
pub fn rebind() -> Verdict {
    let mut guest = Guest::new();
    let root = guest.table();
    for page in 0..64 {
        guest.set_first(root, VA + page * 4096, 1, leaf(PAGES[0] + page * 4096));
    }
    let (_endpoint, channel) = guest.attach();
    let mut cached = Vec::new();
    for round in 0..100 {
        guest.set_pasid(5, first_stage(root, DOMAIN));
        for page in 0..64 {
            dma(&channel, with(5), VA + page * 4096, Op::Write)
                .map_err(|error| error.to_string())?;
        }
        guest.set_pasid(5, [0; 8]);
        guest.settle(Invalidation::PasidCache { domain: DOMAIN, pasid: pasid(5) });
        guest.settle(Invalidation::IotlbPasid { domain: DOMAIN, pasid: pasid(5) });
        if round == 10 || round == 99 {
            let counters = guest.vm.counters();
            cached.push((counters.iotlb_entries, counters.pasid_entries));
        }
    }
    check(cached == [(0, 0), (0, 0)], "entries are left over")
}

/// A device that is never idle cannot keep an invalidation from completing.
pub fn no_starvation() -> Verdict {
    let mut guest = Guest::new();
    let root = guest.table();
    guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                dma(&channel, with(1), VA, Op::Read).unwrap();
            }
        });
        let ticket = guest.vm.invalidate(Invalidation::IotlbAll);
        let start = Instant::now();
        while !guest.vm.is_complete(ticket) && start.elapsed() < Duration::from_secs(20) {
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        check(guest.vm.is_complete(ticket), "not complete after 20 s")
    })
}

/// Guests' memory is where the host's stage 2 says, and nowhere where it says nothing.
pub fn stage_two() -> Verdict {
    let config = VmConfig { stage_two: Some(SHUFFLED), ..VmConfig::named("guest") };
    let mut guest = Guest::with(&SoftwareHost::new(), config);
    let root = guest.table();
    guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    guest.memory.store_u64(Gpa(PAGES[0]), 11).unwrap();
    let (_endpoint, channel) = guest.attach();
    check(dma(&channel, with(1), VA, Op::Read) == Ok(11), "another page")?;
    let page = mem::Range::<Gpa>::new(Gpa(PAGES[0]), 4096).unwrap();
    let ticket = guest.vm.clear_stage_two(page).map_err(|error| error.to_string())?;
    wait(&guest.vm, ticket);
    check(dma(&channel, with(1), VA, Op::Read).is_err(), "read though it is cleared")
}

/// Where the host owns the PASID table, a PASID reaches what is attached, and nothing once that is
/// detached.
pub fn attached() -> Verdict {
    let mut hosted = super::hosted::Hosted::new();
    let spaces = [hosted.space(PAGES[0], 11), hosted.space(PAGES[1], 22)];
    let vm = hosted.guest.vm.clone();
    for (number, space) in (4..).zip(spaces) {
        hosted.grant(number);
        hosted.attach(number, space);
    }
    check((hosted.read(4), hosted.read(5)) == (Ok(11), Ok(22)), "another's pages")?;
    let four = Some(super::hosted::guest(4));
    wait(&vm, vm.detach_hwpt(DEVICE, four).map_err(|error| error.to_string())?);
    check(hosted.read(4).is_err(), "read though it is detached")?;
    check(hosted.read(5) == Ok(22), "another PASID was detached")?;
    let five = Some(super::hosted::guest(5));
    let replaced = vm.replace_hwpt(DEVICE, five, spaces[0]);
    wait(&vm, replaced.map_err(|error| error.to_string())?);
    check(hosted.read(5) == Ok(11), "the old table is in use")
}

/// A PASID that was given back is granted to nobody while an access may name it.
pub fn parking() -> Verdict {
    let host = SoftwareHost::new();
    let guest = Guest::on(&host);
    let other = host.create_vm(VmConfig::named("other")).unwrap();
    let (_endpoint, channel) = guest.attach();
    let granted = guest.vm.alloc_pasid(PasidRange::ALL).unwrap();
    let access = channel.enter();
    guest.vm.free_pasid(granted).unwrap();
    let same = PasidRange::new(granted.0, granted.0).unwrap();
    let _ = guest.vm.pasid_usage();
    check(other.alloc_pasid(same).is_err(), "granted to another VM while it is in use")?;
    drop(access);
    let _ = guest.vm.pasid_usage();
    check(other.alloc_pasid(same).is_ok(), "not granted again")
}

/// Where grants are enforced, a PASID that was never granted reaches nothing.
pub fn grants() -> Verdict {
    let config = VmConfig { enforce_grants: true, ..VmConfig::named("guest") };
    let mut guest = Guest::with(&SoftwareHost::new(), config);
    let root = guest.table();
    guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    check(dma(&channel, with(1), VA, Op::Write).is_err(), "passed without a grant")?;
    check(guest.vm.counters().ungranted == 1, "not counted")?;
    guest.vm.alloc_pasid(PasidRange::ALL).unwrap();
    check(dma(&channel, with(1), VA, Op::Write).is_ok(), "refused with a grant")
}

/// A PASID of one VM is nothing that another could give back.
pub fn owners() -> Verdict {
    let host = SoftwareHost::new();
    let config = VmConfig { enforce_grants: true, ..VmConfig::named("guest") };
    let mut guest = Guest::with(&host, config);
    let other = host.create_vm(VmConfig::named("other")).unwrap();
    let root = guest.table();
    guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    let pasid = guest.vm.alloc_pasid(PasidRange::ALL).unwrap();
    check(dma(&channel, with(1), VA, Op::Write).is_ok(), "refused with a grant")?;
    check(other.free_pasid(pasid).is_err(), "another VM gave it back")?;
    check(guest.vm.pasid_usage().live == 1, "it does not count any more")?;
    check(dma(&channel, with(1), VA, Op::Write).is_ok(), "refused after another VM's mistake")
}

/// The host's tables do what their model says, over every ground.
pub fn hosted_model() -> Verdict {
    let grounds = super::hosted_model::grounds().into_iter();
    let runs = grounds.flat_map(|ground| (0..4).map(move |seed| (ground, seed)));
    runs.into_iter().try_for_each(|(ground, seed)| super::hosted_model::run(ground, seed, 400))
}

/// What the host's stage 2 has no more is not reached by what was found before.
pub fn holes() -> Verdict {
    let config = VmConfig { stage_two: Some(SHUFFLED), ..VmConfig::named("guest") };
    let mut guest = Guest::with(&SoftwareHost::new(), config);
    let root = guest.table();
    guest.set_first(root, VA, 1, leaf(PAGES[0]));
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    let page = mem::Range::<Gpa>::new(Gpa(PAGES[0]), 4096).unwrap();
    for _ in 0..2 {
        check(dma(&channel, with(1), VA, Op::Write).is_ok(), "refused though it is there")?;
        wait(&guest.vm, guest.vm.clear_stage_two(page).unwrap());
        check(dma(&channel, with(1), VA, Op::Write).is_err(), "written though it is cleared")?;
        wait(&guest.vm, guest.vm.restore_stage_two(page).unwrap());
    }
    Ok(())
}

/// A guest behind an SMMUv3 whose substream 1 maps [`VA`], by a descriptor with more bits; and the
/// entry of the page.
fn behind_smmu(config: VmConfig, flags: u64, page: u64) -> (Guest, Gpa) {
    use super::smmu::{asid, descriptor, linear};
    let mut guest = Guest::with(&SoftwareHost::new(), config);
    let (root, table) = (guest.table(), guest.table());
    let entry = guest.set_one(root, VA, 1, page);
    guest.set_descriptor(table, 1, descriptor(root, flags | asid(3)));
    let table = linear(table, 4, iommu::DefaultSubstream::Terminate);
    guest.set_stream(iommu::StreamTranslation::StageOne(table));
    (guest, entry)
}

/// A remapped page is found at its new place, by each command that says so.
pub fn smmu_remap() -> Verdict {
    use super::smmu::{PAGE, VMID};
    use iommu::{Asid, PageRange, SmmuInvalidation};
    let (guest, entry) = behind_smmu(VmConfig::named("guest"), 0, PAGES[0] | PAGE);
    for (page, word) in PAGES.into_iter().zip([11, 22]) {
        guest.memory.store_u64(Gpa(page), word).unwrap();
    }
    let (_endpoint, channel) = guest.attach();
    let range = mem::Range::<Iova>::new(Iova(VA), 4096).unwrap();
    let pages = PageRange { range, leaf_only: true };
    let mut at = 0;
    for what in [
        SmmuInvalidation::TlbAll,
        SmmuInvalidation::Guest(VMID),
        SmmuInvalidation::StageOneAll(VMID),
        SmmuInvalidation::StageOneAsid { vmid: VMID, asid: Asid(3) },
        SmmuInvalidation::StageOnePages { vmid: VMID, asid: Some(Asid(3)), pages },
        SmmuInvalidation::StageOnePages { vmid: VMID, asid: None, pages },
    ] {
        check(dma(&channel, with(1), VA, Op::Read) == Ok([11, 22][at]), "before")?;
        at = 1 - at;
        guest.memory.store_u64(entry, PAGES[at] | PAGE).unwrap();
        guest.settle(Invalidation::Smmuv3(what));
        let found = dma(&channel, with(1), VA, Op::Read);
        check(found == Ok([11, 22][at]), &format!("after {what:?}"))?;
    }
    Ok(())
}

/// With HA and HD, a read marks the page accessed and a write makes it writable.
pub fn smmu_flags() -> Verdict {
    use super::smmu::{AF, DBM, PAGE, READ_ONLY};
    let clean = PAGES[0] | PAGE & !AF | READ_ONLY | DBM;
    let (guest, entry) = behind_smmu(VmConfig::named("guest"), 1 << 43 | 1 << 42, clean);
    let (_endpoint, channel) = guest.attach();
    for (op, held) in [(Op::Read, clean | AF), (Op::Write, (clean | AF) & !READ_ONLY)] {
        dma(&channel, with(1), VA, op).map_err(|error| error.to_string())?;
        check(guest.memory.load_u64(entry) == Ok(held), "the flags of the page")?;
    }
    Ok(())
}

/// Descriptors, tables and pages are where the host's stage 2 says, in Arm's format, too.
pub fn smmu_stage_two() -> Verdict {
    let format = iommu::ArmStageTwo::new(iommu::Granule::Kib16, 44, 48).unwrap();
    let (format, layout) = (StageTwoFormat::Arm(format), Layout::Shuffled { seed: 9 });
    let stage_two = Some(StageTwoConfig { format, layout });
    let config = VmConfig { stage_two, ..VmConfig::named("guest") };
    let (guest, _) = behind_smmu(config, 0, PAGES[0] | super::smmu::PAGE);
    guest.memory.store_u64(Gpa(PAGES[0]), 11).unwrap();
    let (_endpoint, channel) = guest.attach();
    check(dma(&channel, with(1), VA, Op::Read) == Ok(11), "another page")?;
    check(guest.vm.counters().stage_two_walks > 0, "not by stage 2")
}
