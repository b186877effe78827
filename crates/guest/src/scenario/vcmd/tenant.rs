//! `tenant`: as `vcmd`, but on a host that has other guests at the same time. The lab says when they meet, and whose
//! numbers are another's.

use guest_protocol::counts;
use iommu::Pasid;
use vtd::spec::VirtualStatus;

use super::{carry_out, fill, free_all, over_quota, quota, Books, Step, OVER_QUOTA};
use crate::failure::{ensure, Context, Outcome};
use crate::model::pattern::Random;
use crate::pasids::Commands;
use crate::report::{Account, Report};

const STEPS: [(&str, Step); 6] = [
    ("the kernel is granted its quota and no more", quota),
    ("over quota the unit says \"no PASID available\"", refused),
    ("numbers come and go beside other guests'", busy),
    ("another guest's numbers cannot be freed", strangers),
    ("numbers come and go while another guest dies", busy),
    ("all numbers go back, in random order", free_all),
];

/// Allocations over quota past the kernel, whose answers are looked at.
const COMMANDS_OVER_QUOTA: usize = 10;

pub(in crate::scenario) fn run(report: &mut Report, seed: u64) -> Outcome<Account> {
    carry_out(&STEPS, report, seed)
}

/// What the kernel makes of it, and what the response register said.
fn refused(report: &mut Report, books: &mut Books, random: &mut Random) -> Outcome {
    over_quota(report, books, random)?;
    let commands = Commands::open()?;
    for attempt in 0..COMMANDS_OVER_QUOTA {
        books.count(Some(counts::PASIDS_UNAVAILABLE));
        let status = commands.alloc()?;
        ensure!(
            status == Some(VirtualStatus::NoPasidAvailable),
            "attempt {attempt} past the kernel: {status:?}"
        );
    }
    report.holds(true, books.numbers())?;
    Ok(format!(
        "ioasid_alloc: {OVER_QUOTA} times INVALID_IOASID; VCRSP: {COMMANDS_OVER_QUOTA} times \"no PASID available\"; \
         {} numbers held",
        books.len()
    ))
}

/// Frees some at random and refills, until the lab has enough.
fn busy(report: &mut Report, books: &mut Books, random: &mut Random) -> Outcome {
    let (before, mut rounds) = (books.allocated(), 0);
    loop {
        let freed = books.free_some(1 + random.below(books.len()), random)?;
        for &id in &freed {
            books.expect_unknown(id)?;
        }
        report.holds(false, books.numbers()).at(format_args!("round {rounds}, freed"))?;
        let count = fill(books)?;
        ensure!(count == freed.len(), "{} freed, and only {count} granted again", freed.len());
        books.find_all()?;
        report.holds(true, books.numbers()).at(format_args!("round {rounds}, refilled"))?;
        rounds += 1;
        if !report.again()? {
            break;
        }
    }
    let allocated = books.allocated() - before;
    Ok(format!("{allocated} allocated in {rounds} rounds, {} held", books.len()))
}

/// Tries to free what another guest has.
fn strangers(report: &mut Report, books: &mut Books, _random: &mut Random) -> Outcome {
    let strangers = report.strangers()?;
    ensure!(!strangers.is_empty(), "the other guest has none");
    let commands = Commands::open()?;
    let mut done = Vec::new();
    for &number in &strangers {
        let pasid = Pasid::from_field(number);
        let status = commands.free(pasid)?;
        // The account is kept whatever the answer, so that one mistake is one failure.
        if status == Some(VirtualStatus::InvalidPasid) {
            books.count(Some(counts::PASID_FREES_REFUSED));
        } else {
            books.count(Some(counts::PASIDS_FREED));
            done.push(number);
        }
    }
    ensure!(
        done.is_empty(),
        "{} of {} were freed, such as {:?}",
        done.len(),
        strangers.len(),
        done.first()
    );
    books.find_all()?;
    report.holds(true, books.numbers())?;
    Ok(format!("{} times \"invalid PASID\"; own {} unchanged", strangers.len(), books.len()))
}
