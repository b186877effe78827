//! `vcmd`: the kernel's allocator (`ioasid`) takes its PASIDs from the host, by the virtual commands of an IOMMU that
//! an unmodified `intel-iommu` found by itself. Whatever the kernel holds is compared with the host's record, number
//! by number.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use guest_protocol::{counts, MAX_HELD};
use iommu::Pasid;
use vtd::spec::VirtualStatus;

use crate::failure::{ensure, Context, Failure, Outcome};
use crate::kmsg::KernelLog;
use crate::model::pattern::Random;
use crate::pasids::{Commands, FindError, Holder};
use crate::report::{Account, Report};

mod books;
mod tenant;

use books::Books;
pub(super) use tenant::run as tenant;

/// What `intel-iommu` says once virtual commands are below `ioasid`.
const REGISTERED: &str = "Register custom PASID allocator";
/// Without this the kernel takes a grace period of its RCU for each number that is freed.
const EXPEDITED: &str = "/sys/kernel/rcu_expedited";
/// How long the kernel's log is looked through; the line is from its boot.
const LOG_WITHIN: Duration = Duration::from_millis(100);

/// Allocations of one scenario, at least; more while the last round is not over.
const ALLOCATIONS: u64 = 5000;
/// Rounds of freeing and refilling at most, whatever a small quota makes of `ALLOCATIONS`.
const MAX_ROUNDS: usize = 200;
/// Requests over quota in a row, each of which must be refused.
const OVER_QUOTA: usize = 50;
/// Callers at once, and how often each allocates and frees.
const CALLERS: usize = 4;
const CALLS: usize = 200;
/// Numbers that a caller holds at a time at most.
const CALLER_HOLDS: usize = 20;
/// Numbers in another set.
const OTHER_SET: usize = 16;
/// An opcode that no revision defines.
const UNDEFINED_COMMAND: u64 = 0x7f;
/// The status code of an undefined command, as VMMs answer it.
const UNDEFINED_STATUS: u8 = 1;

/// A part of the scenario. Each goes on from where the one before left the books, also when that failed.
type Step = fn(&mut Report, &mut Books, &mut Random) -> Outcome;

const STEPS: [(&str, Step); 9] = [
    ("the kernel is granted its quota and no more", quota),
    ("ioasid_find gives the private pointer", |_, books, _| books.find_all()),
    ("over quota nothing is granted or lost", over_quota),
    ("numbers come and go in random order", churn),
    ("numbers of another set are not found", other_set),
    ("several callers at once get different numbers", callers),
    ("a closed file's numbers go back", closed),
    ("forged commands change nothing", forged),
    ("all numbers go back, in random order", free_all),
];

pub(super) fn run(report: &mut Report, seed: u64) -> Outcome<Account> {
    carry_out(&STEPS, report, seed)
}

fn carry_out(steps: &[(&str, Step)], report: &mut Report, seed: u64) -> Outcome<Account> {
    report.check("intel-iommu found the virtual commands", registered());
    fs::write(EXPEDITED, "1").at(EXPEDITED)?;
    let mut random = Random::new(seed);
    let mut books = Books::open()?;
    for &(check, step) in steps {
        let outcome = step(report, &mut books, &mut random);
        report.check(check, outcome);
    }
    Ok(books.account())
}

/// The kernel's own word.
fn registered() -> Outcome {
    let found = KernelLog::from_start()?.find(LOG_WITHIN, |line| line.contains(REGISTERED))?;
    found.map_err(|seen| {
        let about: Vec<_> = seen.into_iter().filter(|line| line.contains("DMAR")).collect();
        Failure::new(format!("the kernel said only: {}", about.join(" | ")))
    })
}

fn quota(report: &mut Report, books: &mut Books, _random: &mut Random) -> Outcome {
    let count = fill(books)?;
    ensure!(count > 0, "the first allocation was refused");
    report.holds(true, books.numbers())?;
    Ok(format!("{count} numbers, {}; then INVALID_IOASID", books.span()))
}

/// Allocates until the kernel is refused; how many that were.
fn fill(books: &mut Books) -> Outcome<usize> {
    let mut count = 0;
    while books.alloc()?.is_some() {
        count += 1;
        ensure!(books.len() <= MAX_HELD, "{} numbers, and no end", books.len());
    }
    Ok(count)
}

fn over_quota(report: &mut Report, books: &mut Books, _random: &mut Random) -> Outcome {
    for attempt in 0..OVER_QUOTA {
        let granted = books.alloc()?;
        ensure!(granted.is_none(), "attempt {attempt} was granted {granted:?}");
    }
    report.holds(true, books.numbers())?;
    Ok(format!("{OVER_QUOTA} times INVALID_IOASID, {} numbers held", books.len()))
}

/// Frees some at random and refills.
fn refill(report: &mut Report, books: &mut Books, random: &mut Random) -> Outcome<()> {
    let freed = books.free_some(1 + random.below(books.len()), random)?;
    for &id in &freed {
        books.expect_unknown(id)?;
    }
    report.holds(false, books.numbers()).at("freed")?;
    let count = fill(books)?;
    ensure!(count == freed.len(), "{} freed, and only {count} granted again", freed.len());
    books.find_all()?;
    report.holds(true, books.numbers()).at("refilled")
}

/// Frees some at random and refills, until thousands were allocated.
fn churn(report: &mut Report, books: &mut Books, random: &mut Random) -> Outcome {
    let mut rounds = 0;
    while books.allocated() < ALLOCATIONS && rounds < MAX_ROUNDS {
        refill(report, books, random).at(format_args!("round {rounds}"))?;
        rounds += 1;
    }
    let (allocated, freed) = (books.allocated(), books.freed());
    Ok(format!("{allocated} allocated and {freed} freed in {rounds} rounds, no number twice"))
}

/// Two files are two `ioasid_set`s.
fn other_set(report: &mut Report, books: &mut Books, random: &mut Random) -> Outcome {
    books.free_some(OTHER_SET, random)?;
    let other = books.add_holder()?;
    for _ in 0..OTHER_SET {
        let id = books.alloc_in(other)?;
        let id = id.ok_or_else(|| Failure::new("no number for the other set"))?;
        match books.holder(0).find(id) {
            Err(FindError::OtherSet) => {}
            found => return Err(Failure::new(format!("number {id}: {found:?}, not EACCES"))),
        }
    }
    books.find_all()?;
    report.holds(false, books.numbers())?;
    Ok(format!("{OTHER_SET} numbers: EACCES through the first set, found through their own"))
}

/// Callers with a set each, whose numbers are compared while they run.
fn callers(report: &mut Report, books: &mut Books, random: &mut Random) -> Outcome {
    books.free_some(CALLERS * CALLER_HOLDS, random)?;
    let seeds: Vec<u64> = (0..CALLERS).map(|_| random.next()).collect();
    let shared = Mutex::new(books);
    let outcomes: Vec<Outcome<()>> = std::thread::scope(|scope| {
        let caller = |&seed: &u64| {
            let shared = &shared;
            scope.spawn(move || books::call(shared, seed))
        };
        let threads: Vec<_> = seeds.iter().map(caller).collect();
        let panicked = |_| Err(Failure::new("a caller panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    outcomes.into_iter().collect::<Outcome<Vec<()>>>()?;
    let books = shared.into_inner().map_err(|_| Failure::new("a caller panicked"))?;
    books.find_all()?;
    report.holds(false, books.numbers())?;
    Ok(format!("{CALLERS} callers, {CALLS} calls each, {} numbers held", books.len()))
}

/// A process that dies leaves as much: the module frees for it.
fn closed(report: &mut Report, books: &mut Books, _random: &mut Random) -> Outcome {
    let before = books.len();
    let gone = books.drop_all_but_first();
    report.holds(false, books.numbers())?;
    Ok(format!("{gone} of {before}, by {} files", CALLERS + 1))
}

/// What no kernel sends. The guest's own kernel knows nothing of it.
fn forged(report: &mut Report, books: &mut Books, random: &mut Random) -> Outcome {
    let commands = Commands::open()?;
    let held = books.numbers();
    let mut never = 0;
    for candidate in [Pasid::from_field(0), Pasid::MAX, Pasid::from_field(random.next() as u32)] {
        if !held.contains(&candidate.get()) {
            books.count(Some(counts::PASID_FREES_REFUSED));
            let status = commands.free(candidate)?;
            ensure!(status == Some(VirtualStatus::InvalidPasid), "{candidate}: {status:?}");
            never += 1;
        }
    }
    let gone = books.free_some(1, random)?.first().copied().unwrap_or_default();
    books.count(Some(counts::PASID_FREES_REFUSED));
    let twice = commands.free(Pasid::from_field(gone))?;
    ensure!(twice == Some(VirtualStatus::InvalidPasid), "{gone} freed twice: {twice:?}");
    books.count(None);
    let undefined = commands.send(UNDEFINED_COMMAND)?;
    ensure!(undefined.status == UNDEFINED_STATUS, "undefined command: {undefined:?}");
    report.holds(false, books.numbers())?;
    Ok(format!(
        "{never} frees of what was never granted and one of {gone} twice: invalid PASID; command \
         {UNDEFINED_COMMAND:#x}: status {UNDEFINED_STATUS}"
    ))
}

fn free_all(report: &mut Report, books: &mut Books, random: &mut Random) -> Outcome {
    let count = books.len();
    books.free_some(count, random)?;
    ensure!(books.len() == 0, "{} left", books.len());
    report.holds(false, Vec::new())?;
    Ok(format!("{count} freed"))
}
