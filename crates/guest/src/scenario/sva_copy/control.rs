//! Operations without operands, or without an effect on them: no-op, drain, cache flush.

use dsa::spec::{Descriptor, Flags, Iova, Operation};

use super::memory::Arena;
use super::{Bench, Shape};
use crate::dma::{Mapping, Place, PAGE};
use crate::failure::{ensure, same, Outcome};
use crate::job::{self, DRAIN};
use crate::queue::success;
use crate::setup::QUEUE_SIZE;

pub(super) fn cache_flush(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let span = shape.operand(arena, 0, shape.size);
    let data = bench.randomize(span);
    bench.queue.complete(job::cache_flush(span), Flags::empty())?;
    same("flushed memory", &span.read(), &data)
}

pub(super) fn noop(bench: &mut Bench) -> Outcome {
    const ROUNDS: usize = 100;
    for _ in 0..ROUNDS {
        let record = bench.queue.complete(Operation::Noop, Flags::empty())?.record;
        ensure!(record.bytes_completed == 0, "{} bytes completed", record.bytes_completed);
    }
    Ok(format!("{ROUNDS} completed"))
}

/// Copies that write no record, then a drain: when the drain has completed, all copies have.
pub(super) fn drain(bench: &mut Bench) -> Outcome {
    const ROUNDS: u64 = 20;
    const SIZE: usize = 16 * PAGE;
    let memory = Mapping::anonymous(Place::Anywhere, 2 * SIZE)?;
    let (source, destination) = (memory.span().part(0, SIZE), memory.span().part(SIZE, SIZE));
    for _ in 0..ROUNDS {
        let data = bench.randomize(source);
        destination.fill(0);
        for piece in (0..SIZE).step_by(2 * PAGE) {
            let from = source.part(piece, 2 * PAGE);
            submit_unrecorded(bench, job::copy(from, destination.part(piece, 2 * PAGE)));
        }
        bench.queue.complete(DRAIN, Flags::empty())?;
        same("copied before the drain", &destination.read(), &data)?;
    }
    Ok(format!("{ROUNDS} times {} copies, all done when the drain was", SIZE / PAGE / 2))
}

/// Submits an operation that asks for no record, and that will succeed: its pages were touched.
fn submit_unrecorded(bench: &mut Bench, operation: Operation) {
    bench.queue.submit_raw(&Descriptor::new(operation));
    bench.queue.account(&operation, &success());
}

/// Without RCR a record is written when something is wrong, and only then.
pub(super) fn unrequested_record(bench: &mut Bench) -> Outcome {
    let slot = QUEUE_SIZE - 1;
    let memory = Mapping::anonymous(Place::Anywhere, 2 * PAGE)?;
    let (source, destination) = (memory.span().part(0, PAGE), memory.span().part(PAGE, PAGE));
    let data = bench.randomize(source);
    destination.fill(0);
    let copy = job::copy(source, destination);
    bench.queue.submit(slot, copy, Flags::empty());
    bench.queue.account(&copy, &success());
    bench.queue.complete(DRAIN, Flags::empty())?;
    same("copied without a record", &destination.read(), &data)?;
    ensure!(bench.queue.poll(slot).is_none(), "a record was written that nobody asked for");

    let wrong = Operation::MemoryMove { source: Iova(0), destination: Iova(0), size: 0 };
    bench.queue.submit(slot, wrong, Flags::empty());
    let record = bench.queue.wait(slot, &wrong)?;
    Ok(format!("none for a success, status {:#04x} for an error", record.status.into_bits()))
}
