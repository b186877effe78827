//! Batches: mixed, failing, fenced, over pages that are not there.

use dsa::spec::{CompletionRecord, Flags, Operation, Status};

use super::Bench;
use crate::dma::{Mapping, Place, Span, PAGE};
use crate::failure::{ensure, same, Outcome};
use crate::job;
use crate::model::crc32c::{crc32c, Bypass};
use crate::model::pattern;
use crate::queue::{go_on, is_partial, BatchEnd, Member};
use crate::setup::MAX_BATCH;

/// Bytes of a member's operand.
const SIZE: usize = 3 * PAGE + 100;

fn member(operation: Operation) -> Member {
    Member { operation, flags: Flags::REQUEST_RECORD }
}

fn fenced(operation: Operation) -> Member {
    Member { operation, flags: Flags::REQUEST_RECORD | Flags::FENCE }
}

/// An operation that is always refused.
fn wrong() -> Member {
    let none = dsa::spec::Iova(0);
    member(Operation::MemoryMove { source: none, destination: none, size: 0 })
}

fn ended(end: &BatchEnd, status: Status, done: usize) -> Outcome<()> {
    let (got, count) = (end.record.status.status(), end.record.bytes_completed as usize);
    ensure!(got == Ok(status), "the batch ended with {got:?}, not {status:?}");
    ensure!(count == done, "{count} descriptors completed, not {done}");
    Ok(())
}

fn member_status(end: &BatchEnd, index: usize) -> Option<Status> {
    end.members.get(index)?.as_ref().and_then(|record| record.status.status().ok())
}

fn member_record(end: &BatchEnd, index: usize) -> CompletionRecord {
    end.members.get(index).copied().flatten().unwrap_or_default()
}

/// A batch as large as the queue takes, of several operations.
pub(super) fn mixed(bench: &mut Bench) -> Outcome {
    let memory = Mapping::anonymous(Place::Anywhere, MAX_BATCH * 4 * PAGE)?;
    let area = memory.span();
    let data = bench.randomize(area);
    let operand = |index: usize| area.part(index * 4 * PAGE + 1, SIZE);
    let members = (0..MAX_BATCH).map(|index| {
        let target = operand(index);
        member(match index % 4 {
            0 => Operation::Noop,
            1 => job::crc(target, 0),
            2 => job::fill(index as u64, target),
            _ => job::copy(operand(index - 2), target),
        })
    });
    let members: Vec<_> = members.collect();
    let end = bench.queue.batch(&members)?;
    // All done: a fully completed batch reports zero, like every operation.
    ensure!(end.record.status.status() == Ok(Status::Success), "ended with {:?}", end.record);
    for index in 0..MAX_BATCH {
        let status = member_status(&end, index);
        ensure!(status == Some(Status::Success), "member {index}: {status:?}");
        let original = |index: usize| {
            let start = index * 4 * PAGE + 1;
            data.get(start..start + SIZE).unwrap_or_default()
        };
        match index % 4 {
            0 => {}
            1 => {
                let crc = member_record(&end, index).crc();
                let expected = crc32c(0, original(index), Bypass::default());
                ensure!(crc == expected, "member {index}: CRC {crc:#x}, not {expected:#x}");
            }
            2 => same("filled", &operand(index).read(), &pattern::repeated(index as u64, SIZE))?,
            _ => same("copied", &operand(index).read(), original(index - 2))?,
        }
    }
    Ok(format!("{MAX_BATCH} members"))
}

/// A failing member fails the batch; the others are executed all the same.
pub(super) fn failing_member(bench: &mut Bench) -> Outcome {
    let memory = Mapping::anonymous(Place::Anywhere, 3 * PAGE)?;
    let pages = pages(&memory);
    let data = bench.randomize(pages[0]);
    pages[1].fill(0);
    pages[2].fill(0);
    let members =
        [member(job::copy(pages[0], pages[1])), wrong(), member(job::copy(pages[0], pages[2]))];
    let end = bench.queue.batch(&members)?;
    ended(&end, Status::BatchError, 3)?;
    let statuses = [0, 1, 2].map(|index| member_status(&end, index));
    let expected = [Status::Success, Status::BadTransferSize, Status::Success].map(Some);
    ensure!(statuses == expected, "members ended with {statuses:?}");
    same("before the failure", &pages[1].read(), &data)?;
    same("after the failure", &pages[2].read(), &data)?;
    Ok("3 members, 1 failed, 2 executed around it".to_owned())
}

/// A fence orders a copy after the copy that it depends on.
pub(super) fn fence(bench: &mut Bench) -> Outcome {
    const ROUNDS: usize = 50;
    let memory = Mapping::anonymous(Place::Anywhere, 3 * PAGE)?;
    let pages = pages(&memory);
    for _ in 0..ROUNDS {
        let data = bench.randomize(pages[0]);
        pages[1].fill(0);
        pages[2].fill(0);
        let members =
            [member(job::copy(pages[0], pages[1])), fenced(job::copy(pages[1], pages[2]))];
        let end = bench.queue.batch(&members)?;
        ensure!(end.record.status.status() == Ok(Status::Success), "ended with {:?}", end.record);
        same("copied after the fence", &pages[2].read(), &data)?;
    }
    Ok(format!("{ROUNDS} chains of two copies in order"))
}

/// After a failure a fence abandons its descriptor and all that follow.
pub(super) fn fence_after_failure(bench: &mut Bench) -> Outcome {
    let memory = Mapping::anonymous(Place::Anywhere, 3 * PAGE)?;
    let pages = pages(&memory);
    let data = bench.randomize(pages[0]);
    pages[1].fill(0x11);
    pages[2].fill(0x22);
    let members = [
        wrong(),
        member(job::copy(pages[0], pages[1])),
        fenced(job::copy(pages[0], pages[2])),
        member(Operation::Noop),
    ];
    let end = bench.queue.batch(&members)?;
    ended(&end, Status::BatchError, 2)?;
    let abandoned = end.members.iter().skip(2).all(Option::is_none);
    ensure!(abandoned, "an abandoned member has a record: {:?}", end.members);
    same("before the fence", &pages[1].read(), &data)?;
    same("behind the fence", &pages[2].read(), &[0x22; PAGE])?;
    Ok("2 of 4 members executed, the fenced one and its successor abandoned".to_owned())
}

/// Members that stop at pages that are not there are resumed one by one.
pub(super) fn untouched(bench: &mut Bench) -> Outcome {
    let source = Mapping::anonymous(Place::Anywhere, 4 * PAGE)?;
    let data = bench.randomize(source.span());
    let targets: Vec<_> =
        (0..4).map(|_| Mapping::anonymous(Place::Anywhere, 4 * PAGE)).collect::<Result<_, _>>()?;
    let members: Vec<_> =
        targets.iter().map(|target| member(job::copy(source.span(), target.span()))).collect();
    let end = bench.queue.batch(&members)?;
    let mut resumed = 0;
    for (member, record) in members.iter().zip(&end.members) {
        let record = record.unwrap_or_default();
        if is_partial(&record) {
            let rest = go_on(&member.operation, &record)?;
            bench.queue.complete(rest, Flags::empty())?;
            resumed += 1;
        }
    }
    ensure!(resumed > 0, "no member met a missing page: {:?}", end.record);
    ended(&end, Status::BatchError, members.len())?;
    for target in &targets {
        same("destination", &target.span().read(), &data)?;
    }
    Ok(format!("{resumed} of {} members resumed", members.len()))
}

fn pages(memory: &Mapping) -> [Span<'_>; 3] {
    [0, 1, 2].map(|index| memory.span().part(index * PAGE, PAGE))
}
