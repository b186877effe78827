//! How one memory map becomes another, by mappings.

use iommu::Ticket;
use mem::{Access, MemoryMap, Segment};

use alloc::sync::Arc;

use super::call;
use crate::spec::flags::*;
use crate::spec::{MapDma, Ticketed, UnmapDma};
use crate::{Errno, File, Handle, Request};

/// Makes the host end's map, which is `old`, be `new`: as one step, in which what both maps have
/// is reachable throughout.
pub(super) fn replace<F: File>(
    file: &F,
    old: &MemoryMap,
    new: &MemoryMap,
) -> Result<Ticket, Errno> {
    let _none = update(file, UPDATE_BEGIN)?;
    match change(file, old, new) {
        // A closed VM has no memory, whatever it is given.
        Ok(()) | Err(Errno::ENODEV) => update(file, UPDATE_COMMIT),
        Err(errno) => {
            let _none = update(file, UPDATE_ABANDON)?;
            Err(errno)
        }
    }
}

fn update<F: File>(file: &F, flags: u32) -> Result<Ticket, Errno> {
    let mut request = Ticketed { argsz: size_of::<Ticketed>() as u32, flags, ticket: 0 };
    call(file, Request::UpdateMemory, &mut request, None)?;
    Ok(Ticket::new(request.ticket))
}

fn change<F: File>(file: &F, old: &MemoryMap, new: &MemoryMap) -> Result<(), Errno> {
    // What goes, goes first: what comes may take its place.
    for segment in old.segments().iter().filter(|segment| !has(new, segment)) {
        unmap(file, segment)?;
    }
    for segment in new.segments().iter().filter(|segment| !has(old, segment)) {
        map(file, segment)?;
    }
    Ok(())
}

/// Whether `map` has the very same segment.
fn has(map: &MemoryMap, segment: &Segment) -> bool {
    map.find(segment.range.start).is_some_and(|other| {
        other.range == segment.range
            && other.offset == segment.offset
            && other.access == segment.access
            && Arc::ptr_eq(&other.backing, &segment.backing)
    })
}

fn unmap<F: File>(file: &F, segment: &Segment) -> Result<(), Errno> {
    let mut request = UnmapDma {
        argsz: size_of::<UnmapDma>() as u32,
        flags: 0,
        iova: segment.range.start.0,
        size: size(segment),
    };
    call(file, Request::UnmapDma, &mut request, None).map(drop)
}

fn map<F: File>(file: &F, segment: &Segment) -> Result<(), Errno> {
    let mut request = MapDma {
        argsz: size_of::<MapDma>() as u32,
        flags: match segment.access {
            Access::Read => MAP_READ,
            Access::Write => MAP_READ | MAP_WRITE,
        },
        vaddr: segment.offset as u64,
        iova: segment.range.start.0,
        size: size(segment),
    };
    let memory = Handle::Memory(segment.backing.clone());
    call(file, Request::MapDma, &mut request, Some(memory)).map(drop)
}

/// Bytes of a segment: no backing is as long as the address space.
fn size(segment: &Segment) -> u64 {
    segment.range.len_minus_one().saturating_add(1)
}
