//! The same as SMMUv3 commands (IHI 0070, 4.4). The host puts its VMID in.

use alloc::vec;
use alloc::vec::Vec;

use bitfield_struct::bitfield;
use mem::{Iova, Range};

use super::{pages, CacheInvalidate, Caches, Granularity, InvalidateError};
use crate::SmmuCaps;

/// Commands that one invalidation by address becomes at most: a larger one forgets the whole
/// address space.
pub const MAX_ADDRESS_COMMANDS: u64 = 512;

const TLBI_NH_ALL: u8 = 0x10;
const TLBI_NH_ASID: u8 = 0x11;
const TLBI_NH_VA: u8 = 0x12;
const TLBI_NH_VAA: u8 = 0x13;

#[bitfield(u64)]
struct Word0 {
    opcode: u8,
    #[bits(40)]
    unused: u64,
    asid: u16,
}

#[bitfield(u64)]
struct Word1 {
    leaf: bool,
    #[bits(11)]
    unused: u16,
    /// The address, in units of 4 KiB.
    #[bits(52)]
    frame: u64,
}

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
    let opcode = if asid.is_some() { TLBI_NH_ASID } else { TLBI_NH_ALL };
    [word0(opcode, asid), 0]
}

/// A command without range invalidation forgets the one page or block that has its address, which
/// may be as small as the smallest page: so one for each of these.
fn by_address(range: Range<Iova>, page: u64, asid: Option<u16>, leaf: bool) -> Vec<[u64; 2]> {
    if range.len_minus_one() / page >= MAX_ADDRESS_COMMANDS {
        return vec![whole(asid)];
    }
    let opcode = if asid.is_some() { TLBI_NH_VA } else { TLBI_NH_VAA };
    let first = word0(opcode, asid);
    let command = |offset| {
        let frame = (range.start.0 + offset) >> 12;
        [first, Word1::new().with_leaf(leaf).with_frame(frame).into_bits()]
    };
    (0..=range.len_minus_one() / page).map(|index| command(index * page)).collect()
}

fn word0(opcode: u8, asid: Option<u16>) -> u64 {
    Word0::new().with_opcode(opcode).with_asid(asid.unwrap_or(0)).into_bits()
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
