//! A guest's tables, and what it wants forgotten of them.

use core::mem::offset_of;

use iommu::{StageOneInvalidation, StageOneTable, VtdPasidTable, VtdStageOne, VtdStageOneFlags};
use mem::{Gpa, Iova, Range};
use zerocopy::IntoBytes;

use crate::argument::copy_data;
use crate::spec::flags::*;
use crate::spec::{SmmuStageOneData, VtdInvalidateEntry, VtdPasidTableData, VtdStageOneData};
use crate::Refusal;

/// Bytes of the longest table's structure.
pub(crate) const MAX_TABLE_BYTES: usize = size_of::<VtdStageOneData>();
/// Unit of addresses and lengths.
const PAGE: u64 = 4096;

/// What an entry of a request says: for a nested table, or for a vIOMMU.
pub(crate) trait Entry: Sized {
    /// Its bytes; `own` if values that are ours are known.
    fn read(bytes: &[u8], own: bool) -> Result<Self, Refusal>;
}

impl Entry for StageOneInvalidation {
    fn read(bytes: &[u8], own: bool) -> Result<Self, Refusal> {
        decode_entry(&copy_data(bytes)?, own)
    }
}

impl Entry for [u64; 2] {
    fn read(bytes: &[u8], _: bool) -> Result<Self, Refusal> {
        Ok(copy_data::<[u64; 2]>(bytes)?.map(u64::from_le))
    }
}

/// The type and the structure of a table, as bytes of `buffer`.
pub(crate) fn encode_table(
    table: &StageOneTable,
    buffer: &mut [u8; MAX_TABLE_BYTES],
) -> (u32, u32) {
    match *table {
        StageOneTable::Vtd(VtdStageOne { flags, root, address_width }) => {
            let data = VtdStageOneData {
                flags: flags.bits(),
                pgtbl_addr: root.0,
                addr_width: address_width.into(),
                reserved: 0,
            };
            (HWPT_DATA_VTD_S1, write(&data, buffer))
        }
        StageOneTable::Smmuv3(words) => {
            let data = SmmuStageOneData { ste: words.map(u64::to_le) };
            (HWPT_DATA_ARM_SMMUV3, write(&data, buffer))
        }
        StageOneTable::VtdPasidTable(VtdPasidTable { directory, pasid_bits }) => {
            let data = VtdPasidTableData {
                directory: directory.0,
                pasid_bits: pasid_bits.into(),
                reserved: 0,
            };
            (HWPT_DATA_VTD_PASID_TABLE, write(&data, buffer))
        }
    }
}

fn write<T: IntoBytes + zerocopy::Immutable>(data: &T, buffer: &mut [u8; MAX_TABLE_BYTES]) -> u32 {
    let bytes = data.as_bytes();
    buffer[..bytes.len()].copy_from_slice(bytes);
    bytes.len() as u32
}

/// The table in `bytes`, of a type that has one; `own` if a type of ours is known. `kind` is the
/// offset of the type for its error; an offset in the table's own structure follows `base`.
pub(crate) fn decode_table(
    data_type: u32,
    bytes: &[u8],
    own: bool,
    kind: usize,
    base: usize,
) -> Result<StageOneTable, Refusal> {
    let unsupported = |field| Refusal::Unsupported { offset: base + field };
    let value = |field| Refusal::Value { offset: base + field };
    match data_type {
        HWPT_DATA_VTD_S1 => {
            let data: VtdStageOneData = copy_data(bytes)?;
            let flags = VtdStageOneFlags::from_bits(data.flags)
                .ok_or(unsupported(offset_of!(VtdStageOneData, flags)))?;
            if data.reserved != 0 {
                return Err(unsupported(offset_of!(VtdStageOneData, reserved)));
            }
            let address_width = u8::try_from(data.addr_width)
                .map_err(|_| value(offset_of!(VtdStageOneData, addr_width)))?;
            let root = Gpa(data.pgtbl_addr);
            Ok(StageOneTable::Vtd(VtdStageOne { flags, root, address_width }))
        }
        HWPT_DATA_ARM_SMMUV3 => {
            let data: SmmuStageOneData = copy_data(bytes)?;
            Ok(StageOneTable::Smmuv3(data.ste.map(u64::from_le)))
        }
        HWPT_DATA_VTD_PASID_TABLE if own => {
            let data: VtdPasidTableData = copy_data(bytes)?;
            if data.reserved != 0 {
                return Err(unsupported(offset_of!(VtdPasidTableData, reserved)));
            }
            let pasid_bits = u8::try_from(data.pasid_bits)
                .map_err(|_| value(offset_of!(VtdPasidTableData, pasid_bits)))?;
            let directory = Gpa(data.directory);
            Ok(StageOneTable::VtdPasidTable(VtdPasidTable { directory, pasid_bits }))
        }
        _ => Err(Refusal::Unsupported { offset: kind }),
    }
}

/// An entry for what a guest wants forgotten of one table.
pub(crate) fn encode_entry(what: &StageOneInvalidation) -> VtdInvalidateEntry {
    let entry = |addr, npages, flags| VtdInvalidateEntry { addr, npages, flags, reserved: 0 };
    match *what {
        StageOneInvalidation::All => entry(0, u64::MAX, 0),
        StageOneInvalidation::Entry => entry(0, 0, VTD_INVALIDATE_ENTRY),
        StageOneInvalidation::Pages { range, leaf_only } => {
            let leaf = if leaf_only { VTD_INVALIDATE_LEAF } else { 0 };
            let (start, more) = (range.start.0, range.last.0.saturating_sub(range.start.0));
            if start % PAGE == 0 && more % PAGE == PAGE - 1 {
                entry(start, more / PAGE + 1, leaf)
            } else {
                entry(start, more, leaf | VTD_INVALIDATE_BYTES)
            }
        }
    }
}

/// What an entry says.
fn decode_entry(entry: &VtdInvalidateEntry, own: bool) -> Result<StageOneInvalidation, Refusal> {
    let &VtdInvalidateEntry { addr, npages, flags, reserved } = entry;
    let ours = if own { VTD_INVALIDATE_BYTES | VTD_INVALIDATE_ENTRY } else { 0 };
    if flags & !(VTD_INVALIDATE_LEAF | ours) != 0 {
        return Err(Refusal::Unsupported { offset: offset_of!(VtdInvalidateEntry, flags) });
    }
    if reserved != 0 {
        return Err(Refusal::Unsupported { offset: offset_of!(VtdInvalidateEntry, reserved) });
    }
    let bad_addr = Refusal::Value { offset: offset_of!(VtdInvalidateEntry, addr) };
    let bad_npages = Refusal::Value { offset: offset_of!(VtdInvalidateEntry, npages) };
    if flags & VTD_INVALIDATE_ENTRY != 0 {
        return match (flags, addr, npages) {
            (VTD_INVALIDATE_ENTRY, 0, 0) => Ok(StageOneInvalidation::Entry),
            _ => Err(Refusal::Flags { flags }),
        };
    }
    let bytes = flags & VTD_INVALIDATE_BYTES != 0;
    let more = match npages {
        more if bytes => more,
        u64::MAX if addr == 0 => return Ok(StageOneInvalidation::All),
        u64::MAX => return Err(bad_addr),
        _ if addr % PAGE != 0 => return Err(bad_addr),
        // Less one, so that all 2^64 bytes can be named.
        npages => npages
            .checked_sub(1)
            .and_then(|pages| pages.checked_mul(PAGE)?.checked_add(PAGE - 1))
            .ok_or(bad_npages)?,
    };
    let last = addr.checked_add(more).ok_or(bad_npages)?;
    let range = Range { start: Iova(addr), last: Iova(last) };
    Ok(StageOneInvalidation::Pages { range, leaf_only: flags & VTD_INVALIDATE_LEAF != 0 })
}
