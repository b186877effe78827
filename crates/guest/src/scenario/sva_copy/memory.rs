//! The kinds of memory that a process hands to the accelerator.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::mm::ProtFlags;

use crate::dma::{Mapping, Place, Span, HUGE_PAGE};
use crate::failure::{ensure, Context, Outcome};
use crate::smaps;

/// Operands that an operation may need at once.
pub(crate) const AREAS: usize = 4;
/// Bytes from the start of one area to the next.
const STRIDE: usize = 3 * HUGE_PAGE;
/// Bytes of an area: the largest size at the largest offset, with room to spare.
const AREA: usize = 2 * HUGE_PAGE + 128 * 1024;
/// Bytes of an area on the stack, of which there are eight megabytes.
const STACK_AREA: usize = 96 * 1024;

/// A kind of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What the allocator gives: a `Vec` for each operand.
    Heap,
    /// Local variables.
    Stack,
    /// A file of a tmpfs, mapped shared.
    File,
    /// A memfd, mapped shared.
    Memfd,
    /// Private memory with transparent huge pages.
    Huge,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::Heap, Self::Stack, Self::File, Self::Memfd, Self::Huge];

    /// What a reader of a check calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Heap => "malloc",
            Self::Stack => "stack",
            Self::File => "tmpfs file",
            Self::Memfd => "memfd",
            Self::Huge => "huge pages",
        }
    }
}

/// Memory of one kind for the operands of an operation.
pub(crate) struct Arena<'a> {
    pub(crate) kind: Kind,
    pub(crate) areas: [Span<'a>; AREAS],
}

/// Calls `use_it` with memory of one kind.
pub(crate) fn with<T>(kind: Kind, use_it: impl FnOnce(&Arena<'_>) -> T) -> Outcome<T> {
    match kind {
        Kind::Heap => Ok(on_heap(use_it)),
        Kind::Stack => Ok(on_stack(use_it)),
        Kind::File => {
            let path = &format!("/tmp/sva-copy-{}", std::process::id());
            let file =
                File::options().read(true).write(true).create_new(true).open(path).at(path)?;
            std::fs::remove_file(path).at(path)?;
            in_file(kind, file.as_fd(), use_it)
        }
        Kind::Memfd => {
            let file = memfd_create("sva-copy", MemfdFlags::CLOEXEC).at("memfd")?;
            in_file(kind, file.as_fd(), use_it)
        }
        Kind::Huge => {
            let mapping = Mapping::anonymous(Place::Anywhere, (AREAS + 1) * STRIDE)?;
            mapping.want_huge_pages().at("asking for huge pages")?;
            let span = mapping.aligned(HUGE_PAGE);
            Ok(use_it(&Arena { kind, areas: areas_of(span) }))
        }
    }
}

fn on_heap<T>(use_it: impl FnOnce(&Arena<'_>) -> T) -> T {
    let mut operands = [const { Vec::new() }; AREAS];
    operands.iter_mut().for_each(|operand| operand.resize(AREA, 0));
    let areas = operands.each_mut().map(|operand| Span::lend(operand));
    use_it(&Arena { kind: Kind::Heap, areas })
}

#[inline(never)]
fn on_stack<T>(use_it: impl FnOnce(&Arena<'_>) -> T) -> T {
    let mut operands = [[0; STACK_AREA]; AREAS];
    let areas = operands.each_mut().map(|operand| Span::lend(operand));
    use_it(&Arena { kind: Kind::Stack, areas })
}

fn in_file<T>(
    kind: Kind,
    file: BorrowedFd<'_>,
    use_it: impl FnOnce(&Arena<'_>) -> T,
) -> Outcome<T> {
    let len = (AREAS + 1) * STRIDE;
    ftruncate(file, len as u64).at("sizing the file")?;
    let mapping = Mapping::shared(file, 0, len, ProtFlags::READ | ProtFlags::WRITE)?;
    let areas = areas_of(mapping.aligned(HUGE_PAGE));
    Ok(use_it(&Arena { kind, areas }))
}

fn areas_of(span: Span<'_>) -> [Span<'_>; AREAS] {
    std::array::from_fn(|index| span.part(index * STRIDE, AREA))
}

/// Says how the kernel backs the first area, once it was touched.
pub(crate) fn backing(arena: &Arena<'_>) -> Outcome {
    let [area, ..] = arena.areas;
    let accounts = smaps::accounts_of(area)?;
    let huge: u64 = accounts.iter().map(|account| account.huge).sum();
    let resident: u64 = accounts.iter().map(|account| account.resident).sum();
    ensure!(resident > 0, "the kernel shows no page of it in smaps");
    Ok(match (arena.kind, huge) {
        (Kind::Huge, 0) => "the kernel gave no huge page, base pages tested".to_owned(),
        (_, 0) => "base pages".to_owned(),
        (_, huge) => format!("{} huge pages", huge / HUGE_PAGE as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_gives_separate_areas_that_hold_what_is_written() {
        for kind in Kind::ALL {
            with(kind, |arena| {
                assert_eq!(arena.kind, kind);
                for (index, area) in (1..).zip(arena.areas) {
                    area.fill(index);
                }
                for (index, area) in (1..).zip(arena.areas) {
                    assert_eq!((area.load(0), area.load(area.len() - 1)), (index, index));
                }
                backing(arena).unwrap();
            })
            .unwrap();
        }
    }
}
