//! Where this process's pages lie in what the kernel takes for physical memory, from
//! `/proc/self/pagemap`, which says so to root only.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::dma::{Span, PAGE};
use crate::failure::{ensure, Context, Outcome};

/// Bytes of an entry; there is one for each page of the address space.
const ENTRY: usize = 8;

/// The guest physical address of the page in which a span begins.
pub(crate) fn physical(span: Span<'_>) -> Outcome<u64> {
    let page = span.address() / PAGE as u64;
    let mut entry = [0; ENTRY];
    let file = File::open("/proc/self/pagemap").at("/proc/self/pagemap")?;
    file.read_exact_at(&mut entry, page * ENTRY as u64).at("/proc/self/pagemap")?;
    address(u64::from_le_bytes(entry)).at(format_args!("the page at {:#x}", span.address()))
}

/// The address in an entry of the page map.
fn address(entry: u64) -> Outcome<u64> {
    const PRESENT: u64 = 1 << 63;
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
