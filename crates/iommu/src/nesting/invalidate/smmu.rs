//! The same as SMMUv3 commands (IHI 0070, 4.4). The host puts its VMID in.

use alloc::vec;
use alloc::vec::Vec;

use mem::{Iova, Range};

use super::{pages, CacheInvalidate, Caches, Granularity, InvalidateError};
use crate::format::smmuv3::{opcode, TlbCommandWord0, TlbCommandWord1};
use crate::SmmuCaps;

/// Commands that one invalidation by address becomes at most: a larger one forgets the whole
/// address space.
pub const MAX_ADDRESS_COMMANDS: u64 = 512;

/// log2 of the unit of addresses in a command.
const PAGE_BITS: u32 = 12;

pub(super) fn commands(
    what: &CacheInvalidate,
    caps: &SmmuCaps,
) -> Result<Vec<[u64; 2]>, InvalidateError> {
    if what.caches != Caches::IOTLB {
        return Err(InvalidateError::NotForHardware);
    }
    let (pasid, archid) = match what.granularity {
        Granularity::Domain => (None, None),
        Granularity::Pasid { pasid, archid } | Granularity::Address { pasid, archid, .. } => {
            (pasid, archid)
        }
    };
    if pasid.is_some() {
        return Err(InvalidateError::NotForHardware);
    }
    let asid = archid.map(|id| asid(id, caps)).transpose()?;
    match what.granularity {
        Granularity::Domain | Granularity::Pasid { .. } => Ok(vec![whole(asid)]),
        Granularity::Address { leaf, address, granule, count, .. } => {
            let smallest = smallest_page(caps).filter(|smallest| granule >= *smallest);
            let smallest = smallest.ok_or(InvalidateError::Granule(granule))?;
            let range = pages(address, granule, count)?;
            Ok(by_address(range, smallest, asid, leaf))
        }
    }
}

/// All of an address space, or of all.
fn whole(asid: Option<u16>) -> [u64; 2] {
    let opcode = if asid.is_some() { opcode::TLBI_NH_ASID } else { opcode::TLBI_NH_ALL };
    [word0(opcode, asid), 0]
}

/// A command without range invalidation forgets the one page or block that has its address, which
/// may be as small as the smallest page: so one for each of these.
fn by_address(range: Range<Iova>, page: u64, asid: Option<u16>, leaf: bool) -> Vec<[u64; 2]> {
    let last = range.len_minus_one() / page;
    if last >= MAX_ADDRESS_COMMANDS {
        return vec![whole(asid)];
    }
    let opcode = if asid.is_some() { opcode::TLBI_NH_VA } else { opcode::TLBI_NH_VAA };
    let word0 = word0(opcode, asid);
    let word1 = |index| {
        let address = range.start.0 + index * page;
        TlbCommandWord1::new().with_leaf(leaf).with_page(address >> PAGE_BITS).into_bits()
    };
    (0..=last).map(|index| [word0, word1(index)]).collect()
}

fn word0(opcode: u8, asid: Option<u16>) -> u64 {
    TlbCommandWord0::new().with_opcode(opcode).with_asid(asid.unwrap_or(0)).into_bits()
}

fn asid(id: u32, caps: &SmmuCaps) -> Result<u16, InvalidateError> {
    let limit = if caps.asid_16 { u16::MAX } else { u8::MAX.into() };
    u16::try_from(id).ok().filter(|asid| *asid <= limit).ok_or(InvalidateError::ArchId(id))
}

fn smallest_page(caps: &SmmuCaps) -> Option<u64> {
    [(caps.granule_4k, 0x1000), (caps.granule_16k, 0x4000), (caps.granule_64k, 0x1_0000)]
        .into_iter()
        .find_map(|(has, size)| has.then_some(size))
}
