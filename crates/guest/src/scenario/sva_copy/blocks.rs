//! Data integrity fields: checked, inserted, stripped, updated.

use dsa::spec::{BlockSize, DifTags, Flags};

use super::memory::Arena;
use super::{Bench, Shape};
use crate::failure::{ensure, Outcome};
use crate::job::{self, Fields};
use crate::model::dif::{self, protected, Tags, BLOCK_SIZES};

/// A block size and tags for a shape; successive shapes go through all kinds of them.
fn fields(bench: &mut Bench, shape: Shape) -> Fields {
    let choice = bench.random.next();
    let flag = |bit: u32| choice >> bit & 1 == 1;
    Fields {
        block: BLOCK_SIZES.get(shape.index % 4).copied().unwrap_or(BlockSize::B512),
        tags: Tags {
            application: (choice >> 16) as u16,
            application_grows: flag(0),
            application_mask: if flag(1) { 0x00ff } else { 0 },
            reference: (choice >> 32) as u32,
            reference_grows: flag(2),
            guard_seed: if flag(3) { 0xffff } else { 0 },
            guard_inverted: flag(4),
        },
    }
}

/// As many whole blocks as the shape's size holds, one at least.
fn blocks(bench: &mut Bench, shape: Shape, block: BlockSize) -> (usize, Vec<u8>) {
    let count = (shape.size / protected(block)).max(1);
    (count, bench.random.bytes(count * block.data()))
}

/// A record carries the tags that the next block would have.
fn next_tags(got: DifTags, fields: Fields, blocks: usize) -> Outcome<()> {
    let next = fields.tags.after(blocks);
    let reference = next.reference;
    ensure!(got.reference == reference, "next reference {:#x}, not {reference:#x}", got.reference);
    let application = next.application;
    // Masked tags read as the device likes.
    ensure!(
        next.application_mask != 0 || got.app == application,
        "next application tag {:#x}, not {application:#x}",
        got.app
    );
    Ok(())
}

pub(super) fn check(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let fields = fields(bench, shape);
    let (count, data) = blocks(bench, shape, fields.block);
    let data = dif::insert(&data, fields.block, fields.tags);
    let source = shape.operand(arena, 0, data.len());
    source.write(&data);
    let record = bench.queue.complete(job::dif_check(source, fields), Flags::empty())?.record;
    next_tags(record.source_tags(), fields, count)
}

pub(super) fn insert(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let fields = fields(bench, shape);
    let (count, data) = blocks(bench, shape, fields.block);
    let source = shape.operand(arena, 0, data.len());
    source.write(&data);
    let expected = dif::insert(&data, fields.block, fields.tags);
    let destination = shape.guarded(arena, 1, expected.len());
    let operation = job::dif_insert(source, destination.inner, fields);
    let record = bench.queue.complete(operation, Flags::empty())?.record;
    destination.holds("blocks with fields", &expected)?;
    next_tags(record.destination_tags(), fields, count)
}

pub(super) fn strip(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let fields = fields(bench, shape);
    let (count, data) = blocks(bench, shape, fields.block);
    let with_fields = dif::insert(&data, fields.block, fields.tags);
    let source = shape.operand(arena, 0, with_fields.len());
    source.write(&with_fields);
    let destination = shape.guarded(arena, 1, data.len());
    let operation = job::dif_strip(source, destination.inner, fields);
    let record = bench.queue.complete(operation, Flags::empty())?.record;
    destination.holds("blocks without fields", &data)?;
    next_tags(record.source_tags(), fields, count)
}

pub(super) fn update(bench: &mut Bench, arena: &Arena<'_>, shape: Shape) -> Outcome<()> {
    let old = fields(bench, shape);
    let mut new = fields(bench, shape);
    new.tags.guard_seed = old.tags.guard_seed;
    new.tags.guard_inverted = old.tags.guard_inverted;
    let (count, data) = blocks(bench, shape, old.block);
    let source_data = dif::insert(&data, old.block, old.tags);
    let source = shape.operand(arena, 0, source_data.len());
    source.write(&source_data);
    let destination = shape.guarded(arena, 1, source_data.len());
    let operation = job::dif_update(source, destination.inner, old, new);
    let record = bench.queue.complete(operation, Flags::empty())?.record;
    destination.holds("blocks with new fields", &dif::insert(&data, new.block, new.tags))?;
    next_tags(record.source_tags(), old, count)?;
    next_tags(record.destination_tags(), new, count)
}
