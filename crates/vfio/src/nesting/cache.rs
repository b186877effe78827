//! `struct iommu_cache_invalidate_info`, in each of its layouts, as a domain takes it.

use core::mem::offset_of;

use iommu::nesting::{CacheInvalidate, Caches, Granularity};
use iommu::{GuestPasid, Pasid};
use mem::Iova;
use zerocopy::FromBytes;

use super::{check_padding, copy_sized, copy_unsized};
use crate::spec::flags::*;
use crate::spec::{AddressScope, CacheInvalidateInfo, CacheInvalidateInfo53, PasidScope};
use crate::{ArgumentError, Refusal, Revision};

/// Where the scope is.
const SCOPE: usize = offset_of!(CacheInvalidateInfo, scope);

/// What the structure in `bytes` says, as `revision` has it. The checks come in the posted order;
/// an offset in an error is that in Linux 5.10's structure.
pub(crate) fn decode_cache(bytes: &[u8], revision: Revision) -> Result<CacheInvalidate, Refusal> {
    let info = if revision.is_unsized() {
        without_size(copy_unsized(bytes)?)
    } else {
        let (info, size) =
            copy_sized::<CacheInvalidateInfo>(bytes, SCOPE, revision == Revision::Own)?;
        let needed = SCOPE
            + match info.granularity {
                GRANULARITY_PASID => size_of::<PasidScope>(),
                GRANULARITY_ADDRESS => size_of::<AddressScope>(),
                _ => 0,
            };
        if size < needed {
            return Err(ArgumentError::TooShort { argsz: info.argsz, needed }.into());
        }
        info
    };
    let value = |offset| Refusal::Value { offset };
    if info.version != CACHE_VERSION {
        return Err(value(offset_of!(CacheInvalidateInfo, version)));
    }
    let caches =
        Caches::from_bits(info.cache).ok_or(value(offset_of!(CacheInvalidateInfo, cache)))?;
    let granularity = granularity(&info)?;
    check_padding(&info.padding, offset_of!(CacheInvalidateInfo, padding))?;
    Ok(CacheInvalidate { caches, granularity })
}

fn without_size(info: CacheInvalidateInfo53) -> CacheInvalidateInfo {
    let CacheInvalidateInfo53 { version, cache, granularity, padding: [a, b], scope } = info;
    let argsz = size_of::<CacheInvalidateInfo>() as u32;
    CacheInvalidateInfo { argsz, version, cache, granularity, padding: [a, b, 0, 0, 0, 0], scope }
}

fn granularity(info: &CacheInvalidateInfo) -> Result<Granularity, Refusal> {
    match info.granularity {
        GRANULARITY_DOMAIN => Ok(Granularity::Domain),
        GRANULARITY_PASID => {
            let PasidScope { flags, archid, pasid } = scope(info)?;
            let (pasid, archid) = tags(flags, SCOPE_PASID | SCOPE_ARCHID, pasid, archid)?;
            Ok(Granularity::Pasid { pasid, archid })
        }
        GRANULARITY_ADDRESS => {
            let AddressScope { flags, archid, pasid, address, granule_size, granules } =
                scope(info)?;
            let known = SCOPE_PASID | SCOPE_ARCHID | SCOPE_LEAF;
            let (pasid, archid) = tags(flags, known, pasid, archid)?;
            Ok(Granularity::Address {
                pasid,
                archid,
                leaf: flags & SCOPE_LEAF != 0,
                address: Iova(address),
                granule: granule_size,
                count: granules,
            })
        }
        _ => Err(Refusal::Value { offset: offset_of!(CacheInvalidateInfo, granularity) }),
    }
}

fn scope<T: FromBytes>(info: &CacheInvalidateInfo) -> Result<T, ArgumentError> {
    copy_unsized(&info.scope)
}

/// The PASID and the architecture's tag, each if its flag says that it counts.
fn tags(
    flags: u32,
    known: u32,
    pasid: u64,
    archid: u32,
) -> Result<(Option<GuestPasid>, Option<u32>), Refusal> {
    if flags & !known != 0 {
        return Err(ArgumentError::UnknownFlags { flags: flags & !known }.into());
    }
    let archid = (flags & SCOPE_ARCHID != 0).then_some(archid);
    if flags & SCOPE_PASID == 0 {
        return Ok((None, archid));
    }
    let offset = SCOPE + offset_of!(AddressScope, pasid);
    let pasid = u32::try_from(pasid).ok().and_then(Pasid::new).ok_or(Refusal::Value { offset })?;
    Ok((Some(GuestPasid(pasid)), archid))
}
