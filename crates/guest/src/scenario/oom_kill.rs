//! `oom-kill`: processes die while page requests of theirs are in flight, by a signal and for lack of
//! memory. The queue works for the next one, and nothing of the dead one is left.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use dsa::spec::Flags;
use guest_protocol::{counts, sync, FromGuest};
use rustix::mount::{mount, MountFlags};

use crate::child::{Child, Event};
use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::job;
use crate::kmsg::KernelLog;
use crate::model::pattern::Random;
use crate::queue::Queue;
use crate::report::{Account, Report};
use crate::setup::{BLOCKING, QUEUE_SIZE};

/// Name of the worker.
pub(super) const WORKER: &str = "oom-kill";

/// Processes that are killed by a signal.
const KILLED: u64 = 8;
/// After which the lab samples what the server holds.
const SAMPLED: [u64; 2] = [2, KILLED];
/// The latest moment after the beginning at which one is killed.
const LATEST: Duration = Duration::from_millis(40);
/// Bytes that each descriptor of a worker writes, in pages that are not there.
const PART: usize = 1 << 20;
/// How long a worker may take to begin, or to die.
const WITHIN: Duration = Duration::from_secs(30);
/// How long a worker goes on if nobody kills it.
const ENDLESS: Duration = Duration::from_secs(60);

/// The control groups, and that of the process that is to run out of memory.
const GROUPS: &str = "/sys/fs/cgroup";
const GROUP: &str = "/sys/fs/cgroup/vsva";
/// Bytes that it may have.
const MEMORY: &str = "12M";
/// How long the kernel may take to log that it killed it.
const LOGGED_WITHIN: Duration = Duration::from_secs(5);

/// The scenario. Nobody can say how many descriptors the dead had done.
pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Account> {
    let mut random = Random::new(seed);
    let mut survived = Ok(Duration::ZERO);
    for number in 1..=KILLED {
        survived = survived.and_then(|longest| Ok(longest.max(one_kill(&mut random, number)?)));
        report.steady(number, SAMPLED)?;
    }
    let text = |longest: Duration| {
        let longest = longest.as_millis();
        format!("{KILLED} killed, the queue works for the next one after {longest} ms at most")
    };
    report.check("processes killed with requests in flight", survived.map(text));
    report.check("a process killed for lack of memory", out_of_memory());
    let works = works(BLOCKING[0]);
    let text = |after: Duration| format!("for the next one, after {} ms", after.as_millis());
    report.check("the queue works after it", works.map(text));
    report.sync(sync::SETTLED, &[])?;
    // None of these queues' descriptors may end early: all that could were told to block. And nobody
    // may have answered for the kernel what it was asked.
    let none = [counts::PARTIAL_COMPLETIONS, counts::PAGE_ANSWERS_UNKNOWN];
    Ok(none.into_iter().map(|name| (name.to_owned(), 0)).collect())
}

/// Kills a process at some moment. Says how long it took until the next one could use its queue.
fn one_kill(random: &mut Random, number: u64) -> Outcome<Duration> {
    let queue = BLOCKING[number as usize % BLOCKING.len()];
    let place = format!("process {number}, queue {queue}");
    let mut worker = begin(queue).at(&place)?;
    worker.go_on(true)?;
    std::thread::sleep(Duration::from_micros(random.below(LATEST.as_micros() as usize) as u64));
    let ending = worker.kill()?.trouble();
    ensure!(is_killed(&ending), "{place}: {ending:?}");
    works(queue).at(&place)
}

fn is_killed(ending: &Option<String>) -> bool {
    ending.as_deref().is_some_and(|ending| ending.starts_with("killed by signal 9"))
}

/// A worker that is about to begin.
fn begin(queue: usize) -> Outcome<Child> {
    let mut worker = Child::worker(&["worker", WORKER, &queue.to_string()])?;
    match worker.event(Instant::now() + WITHIN)? {
        Event::Message(FromGuest::Sync { .. }) => Ok(worker),
        other => Err(Failure::new(format!("not ready, but {other:?}"))),
    }
}

/// The worker: has the device write new memory until it is killed.
pub(super) fn work(report: &mut Report, arguments: &[String]) -> Outcome<crate::report::Counts> {
    let [queue] = arguments else {
        return Err(Failure::new(format!("arguments {arguments:?}")));
    };
    let mut queue = Queue::open(queue.parse()?)?;
    report.sync("ready", &[])?;
    let flags = Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT;
    let until = Instant::now() + ENDLESS;
    let mut kept = Vec::new();
    while Instant::now() < until {
        let memory = Mapping::anonymous(Place::Anywhere, QUEUE_SIZE * PART)?;
        memory.want_small_pages()?;
        let part = |slot: usize| job::fill(!0, memory.span().part(slot * PART, PART));
        for slot in 0..QUEUE_SIZE {
            queue.submit(slot, part(slot), flags);
        }
        for slot in 0..QUEUE_SIZE {
            // With an error if there was no more memory.
            queue.wait_for(slot, &part(slot), ENDLESS)?;
        }
        kept.push(memory);
    }
    Err(Failure::new("nobody killed it"))
}

/// A process opens the queue and has memory made by the device. Says how long it had to wait for it.
fn works(queue: usize) -> Outcome<Duration> {
    let begun = Instant::now();
    let mut queue = Queue::open_within(queue, WITHIN)?;
    let waited = begun.elapsed();
    let memory = Mapping::anonymous(Place::Anywhere, 4 * PAGE)?;
    queue.block(job::fill(0x4242_4242_4242_4242, memory.span()))?;
    same("filled pages", &memory.span().read(), &[0x42; 4 * PAGE])?;
    Ok(waited)
}

/// Limits a worker's memory: the kernel meets the limit while it makes pages for the device.
fn out_of_memory() -> Outcome {
    let _mounted_already = mount("cgroup2", GROUPS, "cgroup2", MountFlags::empty(), None);
    let write = |dir: &str, name: &str, value: &str| {
        let path = Path::new(dir).join(name);
        fs::write(&path, value).at(path.display())
    };
    write(GROUPS, "cgroup.subtree_control", "+memory")?;
    fs::create_dir_all(GROUP).at(GROUP)?;
    write(GROUP, "memory.max", MEMORY)?;
    let mut log = KernelLog::from_now()?;
    let mut worker = begin(BLOCKING[0])?;
    write(GROUP, "cgroup.procs", &worker.id().to_string())?;
    worker.go_on(true)?;
    let ending = worker.end(Instant::now() + WITHIN)?.trouble();
    let events = fs::read_to_string(Path::new(GROUP).join("memory.events")).at("memory.events")?;
    let line = log.find(LOGGED_WITHIN, |line| line.contains("Killed process"))?;
    let removed = fs::remove_dir(GROUP).at(GROUP);
    ensure!(is_killed(&ending), "{ending:?}; {}", events.replace('\n', ", "));
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    ensure!(kills.is_some_and(|kills| kills != "0"), "no oom_kill: {events:?}");
    removed?;
    line.map_err(|seen| Failure::new(format!("the kernel logged no kill, but {seen:?}")))
}
