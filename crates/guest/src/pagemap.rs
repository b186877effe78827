//! Where this process's pages lie in what the kernel takes for physical memory, from
//! `/proc/self/pagemap`, which says so to root only.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::dma::{Span, PAGE};
use crate::failure::{ensure, Context, Outcome};

/// Bytes of an entry; there is one for each page of the address space.
const ENTRY: usize = 8;

const FILE: &str = "/proc/self/pagemap";
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// The guest physical address of the page in which a span begins.
pub(crate) fn physical(span: Span<'_>) -> Outcome<u64> {
    let page = span.part(0, span.len().min(PAGE));
    let entry = entries(page)?.first().copied().unwrap_or_default();
    address(entry).at(format_args!("the page at {:#x}", span.address()))
}

/// Where a span's pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Census {
    /// In the process's page table.
    pub(crate) present: usize,
    /// In swap.
    pub(crate) swapped: usize,
    /// All of them.
    pub(crate) pages: usize,
}

/// Where a span's pages are now. Looking does not touch them.
pub(crate) fn census(span: Span<'_>) -> Outcome<Census> {
    let entries = entries(span)?;
    let having = |bit: u64| entries.iter().filter(|entry| *entry & bit != 0).count();
    Ok(Census { present: having(PRESENT), swapped: having(SWAPPED), pages: entries.len() })
}

/// Nothing has touched a page of the span.
pub(crate) fn untouched(span: Span<'_>) -> Outcome<()> {
    let census = census(span)?;
    ensure!(census.present + census.swapped == 0, "not fresh: {census:?}");
    Ok(())
}

/// The entries of all pages that a span has bytes of.
fn entries(span: Span<'_>) -> Outcome<Vec<u64>> {
    let first = span.address() / PAGE as u64;
    let end = (span.address() + span.len() as u64).div_ceil(PAGE as u64);
    let mut bytes = vec![0; (end - first) as usize * ENTRY];
    let file = File::open(FILE).at(FILE)?;
    file.read_exact_at(&mut bytes, first * ENTRY as u64).at(FILE)?;
    let entry = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    Ok(bytes.chunks_exact(ENTRY).map(entry).collect())
}

/// The address in an entry of the page map.
fn address(entry: u64) -> Outcome<u64> {
    const FRAME: u64 = (1 << 55) - 1;
    ensure!(entry & PRESENT != 0, "not present");
    let frame = entry & FRAME;
    ensure!(frame != 0, "the kernel does not say where it is (not root?)");
    Ok(frame * PAGE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{Mapping, Place};

    #[test]
    fn an_entry_is_taken_apart() {
        // Present, soft-dirty and exclusive, and a frame number.
        assert_eq!(address(0x8180_0000_0001_2345), Ok(0x1234_5000));
        assert!(address(0x0180_0000_0001_2345).is_err(), "in swap");
        assert!(address(1 << 63).unwrap_err().to_string().contains("root"));
    }

    #[test]
    fn pages_are_counted_without_touching_them() {
        let mapping = Mapping::anonymous(Place::Anywhere, 8 * PAGE).unwrap();
        assert_eq!(untouched(mapping.span()), Ok(()));
        mapping.span().part(2 * PAGE, PAGE + 1).fill(1);
        let all = Census { present: 2, swapped: 0, pages: 8 };
        assert_eq!(census(mapping.span()), Ok(all));
        let unaligned = mapping.span().part(PAGE + 1, 2 * PAGE);
        assert_eq!(census(unaligned), Ok(Census { pages: 3, ..all }));
        assert!(untouched(unaligned).is_err());
    }

    #[test]
    fn a_page_that_is_not_there_has_no_address() {
        let mapping = Mapping::anonymous(Place::Anywhere, PAGE).unwrap();
        let untouched = physical(mapping.span()).unwrap_err().to_string();
        assert!(untouched.ends_with("not present"), "{untouched}");
        mapping.span().fill(1);
        // Only root is told where it is.
        if let Err(failure) = physical(mapping.span()) {
            assert!(failure.to_string().ends_with("(not root?)"), "{failure}");
        }
    }
}
