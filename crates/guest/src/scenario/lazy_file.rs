//! `lazy-file`: files on a disk, mapped and in no cache.
//!
//! The device reads pages that the kernel has to fetch from the disk first, and writes pages through
//! a shared mapping, which `read` then finds, in the page cache and again from the disk.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use dsa::spec::Flags;
use rustix::fs::{fadvise, Advice};
use rustix::mm::ProtFlags;

use crate::disk::FileSystem;
use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::job;
use crate::model::pattern::Random;
use crate::pagemap::{census, untouched};
use crate::queue::Queue;
use crate::report::{Counts, Report};
use crate::setup::BLOCKING;

/// Bytes of the files.
const SIZE: usize = 256 * PAGE;

/// The scenario.
pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Counts> {
    let mut random = Random::new(seed);
    let files = FileSystem::new()?;
    let mut queue = Queue::open(BLOCKING[0])?;
    let outcome = read(&mut queue, &files, &mut random);
    report.check("a file that is on the disk only is read", outcome);
    let outcome = write(&mut queue, &files, &mut random);
    report.check("a shared mapping is written, and found by read", outcome);
    let outcome = private(&mut queue, &files, &mut random);
    report.check("a private mapping is written, and the file is not", outcome);
    let counts = queue.counts();
    drop(queue);
    Ok(counts)
}

/// A file with these bytes, on the disk and in no cache.
fn stored(files: &FileSystem, name: &str, bytes: &[u8]) -> Outcome<File> {
    let path = files.path(name);
    let mut options = File::options();
    let mut file =
        options.read(true).write(true).create(true).truncate(true).open(&path).at(name)?;
    file.write_all(bytes).at(name)?;
    forget(&file).at(name)?;
    Ok(file)
}

/// Writes a file back, and has the kernel drop its pages.
fn forget(file: &File) -> Outcome<()> {
    file.sync_all().at("writing back")?;
    fadvise(file, 0, None, Advice::DontNeed).at("dropping the pages")?;
    Ok(())
}

/// Pages that the kernel had to fetch from somewhere since boot.
fn fetched() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").at("/proc/vmstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("pgmajfault "));
    Ok(line.ok_or_else(|| Failure::new("no pgmajfault in /proc/vmstat"))?.parse()?)
}

fn read(queue: &mut Queue, files: &FileSystem, random: &mut Random) -> Outcome {
    let data = random.bytes(SIZE);
    let file = stored(files, "read", &data)?;
    let source = Mapping::shared(file.as_fd(), 0, SIZE, ProtFlags::READ).at("mapping")?;
    let target = Mapping::anonymous(Place::Anywhere, SIZE)?;
    untouched(source.span())?;
    let before = fetched()?;
    queue.block(job::copy(source.span(), target.span()))?;
    let fetches = fetched()?.saturating_sub(before);
    ensure!(fetches > 0, "no page was fetched from the disk: the file was in the cache");
    same("the file", &target.span().read(), &data)?;
    let census = census(source.span())?;
    Ok(format!("{SIZE} bytes, {fetches} times from the disk; {} pages mapped", census.present))
}

fn write(queue: &mut Queue, files: &FileSystem, random: &mut Random) -> Outcome {
    let mut expected = random.bytes(SIZE);
    let file = stored(files, "write", &expected)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let target = Mapping::shared(file.as_fd(), 0, SIZE, access).at("mapping")?;
    untouched(target.span())?;
    let data = random.bytes(SIZE / 2);
    let source = Mapping::anonymous(Place::Anywhere, SIZE / 2)?;
    source.span().write(&data);
    // Neither end at a page's, so that what is beside it has to come from the disk.
    let from = PAGE + 1 + random.below(SIZE / 4);
    expected[from..from + data.len()].copy_from_slice(&data);
    queue.block(job::copy(source.span(), target.span().part(from, data.len())))?;
    let mut found = vec![0; SIZE];
    file.read_exact_at(&mut found, 0).at("reading")?;
    same("what read finds", &found, &expected)?;
    drop(target);
    forget(&file)?;
    let before = fetched()?;
    let again = Mapping::shared(file.as_fd(), 0, SIZE, ProtFlags::READ).at("mapping again")?;
    same("what the disk has", &again.span().read(), &expected)?;
    ensure!(fetched()? > before, "the file was still in the cache");
    Ok(format!("{} bytes at {from}, found by read, and on the disk", data.len()))
}

fn private(queue: &mut Queue, files: &FileSystem, random: &mut Random) -> Outcome {
    let data = random.bytes(16 * PAGE);
    let file = stored(files, "private", &data)?;
    let copy = Mapping::private(file.as_fd(), 0, data.len()).at("mapping")?;
    untouched(copy.span())?;
    let middle = copy.span().part(4 * PAGE + 100, 2 * PAGE);
    let pattern = random.next();
    let finished = queue.once(job::fill(pattern, middle), Flags::BLOCK_ON_FAULT)?;
    ensure!(finished.bytes_completed == 0, "{finished:?}");
    let mut expected = data.clone();
    expected[4 * PAGE + 100..][..2 * PAGE]
        .copy_from_slice(&crate::model::pattern::repeated(pattern, 2 * PAGE));
    same("the mapping", &copy.span().read(), &expected)?;
    let mut found = vec![0; data.len()];
    file.read_exact_at(&mut found, 0).at("reading")?;
    same("the file", &found, &data)?;
    Ok(format!("{} bytes in pages of the process's own", 2 * PAGE))
}
