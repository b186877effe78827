//! The same behind an SMMUv3.

use iommu::{Asid, DefaultSubstream, Invalidation, PageRange, SmmuInvalidation, StreamTranslation};
use mem::{Gpa, GuestMemory, Iova, Range};

use super::scenarios::Verdict;
use super::smmu::*;
use super::*;

const VA: u64 = 0x7f00_1234_5000;
const OLD: u64 = 0x10_0000;
const NEW: u64 = 0x20_0000;
/// HA and HD.
const UPDATES: u64 = 3 << 42;

/// A page is remapped under a device, marked by what the device does, and only by the process that
/// it belongs to.
pub fn smmu() -> Verdict {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, other, table) = (guest.table(), guest.table(), guest.table());
    let clean = TABLE | EL0 | NOT_GLOBAL | READ_ONLY | DBM;
    let entry = guest.set_one(root, VA, 1, OLD | clean);
    for (substream, root) in [(4, root), (5, other)] {
        let words = descriptor(root, asid(substream as u16) | UPDATES);
        guest.set_descriptor(table, substream, words);
    }
    let table = linear(table, 4, DefaultSubstream::Terminate);
    let two = stage_two(guest.identity_two(true));
    guest.set_stream(StreamTranslation::Nested(table, two));
    guest.memory.store_u64(Gpa(OLD), 0x01d).unwrap();
    guest.memory.store_u64(Gpa(NEW), 0x2e3).unwrap();

    let read = |substream| dma(&channel, with(substream), VA, Op::Read);
    if read(4) != Ok(0x01d) {
        return Err("the device does not find its page".into());
    }
    if read(5).is_ok() {
        return Err("the page is found by another substream".into());
    }
    dma(&channel, with(4), VA, Op::Atomic).map_err(|error| format!("{error}"))?;
    if guest.memory.load_u64(entry) != Ok((OLD | clean | AF) & !READ_ONLY) {
        return Err("the page is not marked".into());
    }
    guest.memory.store_u64(entry, NEW | clean).unwrap();
    let range = Range::<Iova>::new(Iova(VA), 4096).unwrap();
    let pages = PageRange { range, leaf_only: true };
    let what = SmmuInvalidation::StageOnePages { vmid: VMID, asid: Some(Asid(4)), pages };
    guest.settle(Invalidation::Smmuv3(what));
    if read(4) != Ok(0x2e3) {
        return Err("the old page is read after it was taken away".into());
    }
    Ok(())
}
