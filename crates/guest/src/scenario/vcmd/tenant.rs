//! `tenant`: as `vcmd`, but on a host that has other guests at the same time. The lab says when they meet, and whose
//! numbers are another's.

use std::time::Duration;

use guest_protocol::{counts, sync};
use iommu::Pasid;
use vtd::spec::VirtualStatus;

use super::{carry_out, free_all, over_quota, quota, refill, Books, Step, OVER_QUOTA};
use crate::bare::Bare;
use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, same, Context, Failure, Outcome};
use crate::kmsg::KernelLog;
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

/// A PASID that the host grants to nobody as long as lower ones are left.
const NEVER_GRANTED: u32 = 0xabcde;

/// How long the kernel may take to log a fault.
const LOGGED_WITHIN: Duration = Duration::from_secs(5);

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
        refill(report, books, random).at(format_args!("round {rounds}"))?;
        rounds += 1;
        if !report.again()? {
            break;
        }
    }
    let allocated = books.allocated() - before;
    Ok(format!("{allocated} allocated in {rounds} rounds, {} held", books.len()))
}

/// Tries to free what another guest has, and to use it.
fn strangers(report: &mut Report, books: &mut Books, _random: &mut Random) -> Outcome {
    let strangers = report.strangers()?;
    let used = use_pasids(report, books, strangers.first().copied());
    report.check("DMA with PASIDs not granted moves nothing", used);
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
    if strangers.is_empty() {
        return Ok("in private numbering, each of them is also a number of its own".to_owned());
    }
    Ok(format!("{} times \"invalid PASID\"; own {} unchanged", strangers.len(), books.len()))
}

/// Programs the accelerator with PASIDs: one that nobody has, another guest's, and one of its own, which the host lets
/// pass and this guest's own tables have no entry for.
fn use_pasids(report: &mut Report, books: &Books, stranger: Option<u32>) -> Outcome {
    let own = books.numbers().first().copied();
    let own = own.ok_or_else(|| Failure::new("it has no PASID"))?;
    let mut device = Bare::open()?;
    let memory = Mapping::anonymous(Place::Anywhere, 3 * PAGE)?;
    let [source, target, record] = [0, 1, 2].map(|page| memory.span().part(page * PAGE, PAGE));
    let mut found = Vec::new();
    let others = stranger.map(|stranger| ("another's", stranger, 0));
    let all = [("nobody's", NEVER_GRANTED, 0), ("own", own, 1)];
    for (whose, number, granted) in all.into_iter().chain(others) {
        source.fill(0x77);
        target.fill(0x11);
        record.fill(0);
        let mut log = KernelLog::from_now()?;
        let pasid = Pasid::from_field(number);
        let addresses = [source, target, record].map(|span| span.address());
        let error = device.copy_with(pasid, addresses).at(whose)?;
        ensure!(
            error.pasid() == number,
            "{whose} {number:#x}: the error is of {:#x}",
            error.pasid()
        );
        same("destination", &target.read(), &[0x11; PAGE])?;
        same("completion record", &record.read(), &[0; PAGE])?;
        found.push(format!("{whose} {number:#x}: {}", fault(&mut log, number)?));
        report.sync(sync::PASID_USED, &[("pasid", number.into()), ("granted", granted)])?;
    }
    Ok(found.join("; "))
}

/// What the kernel says of a fault with this PASID, from its reason on.
fn fault(log: &mut KernelLog, pasid: u32) -> Outcome {
    let word = format!("PASID {pasid:#x}]");
    let line = log.find(LOGGED_WITHIN, |line| line.contains("DMAR") && line.contains(&word))?;
    let line = line
        .map_err(|seen| Failure::new(format!("no DMAR fault of PASID {pasid:#x}, but {seen:?}")))?;
    let reason = line.find("[fault reason").and_then(|at| line.get(at..));
    Ok(reason.unwrap_or(&line).to_owned())
}
