//! Invalidations as bytes, and back.
//!
//! | cache \ granularity | domain | PASID | address |
//! |---|---|---|---|
//! | contexts (own) | all; with `requester`: some devices' | a domain's | – |
//! | PASID entries | all | a domain's, or one in it | – |
//! | IOTLB | all | a domain's, or of a PASID in it | pages of either |
//! | device IOTLB | – | a device's for a PASID, or for all | the same, of addresses |
//!
//! The domain is `archid`. A posted request may leave it out, for there a container is one domain;
//! it is then widened to all domains of the VM, since only the VM knows which it meant. A device's
//! own TLB is named by `requester`, which posted requests do not have: they are refused, for they
//! would otherwise succeed in silence.

use core::mem::offset_of;

use iommu::{DomainId, Invalidation, PageRange, Pasid};
use mem::{Iova, Range};
use pci::RequesterId;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::argument::copy_in;
use crate::spec::flags::*;
use crate::spec::{
    AddressScope, CacheInvalidate, CacheInvalidateInfo, OwnCacheInvalidate, PasidScope,
};
use crate::{ArgumentError, Refusal};

/// Granule of ranges that consist of pages.
const PAGE: u64 = 4096;

/// Where `info` lies in both structures.
const INFO: usize = offset_of!(OwnCacheInvalidate, info);
/// Where its scope lies.
const SCOPE: usize = INFO + offset_of!(CacheInvalidateInfo, scope);

/// A device, and the bits of its requester id that do not count.
#[derive(Clone, Copy)]
struct Device {
    requester: RequesterId,
    ignore: u16,
}

/// What our own structure says beside the posted one.
#[derive(Clone, Copy, Default)]
struct Extra {
    /// Whether device contexts may be named.
    contexts: bool,
    device: Option<Device>,
    /// Whether only what is for requests without PASID is meant.
    without_pasid: bool,
}

/// Up to one invalidation for each kind of cache.
pub(crate) type Scopes = [Option<Invalidation>; 4];

/// Decodes our own structure.
pub(crate) fn decode_own(argument: &OwnCacheInvalidate) -> Result<Scopes, Refusal> {
    let named = argument.flags & INVALIDATE_REQUESTER != 0;
    let without_pasid = argument.flags & INVALIDATE_NO_PASID != 0;
    let requester = RequesterId::from_bits(argument.requester);
    let device = named.then_some(Device { requester, ignore: argument.ignore });
    let extra = Extra { contexts: true, device, without_pasid };
    decode(argument.info.as_bytes(), extra)
}

/// Decodes the posted structure.
pub(crate) fn decode_posted(argument: &CacheInvalidate) -> Result<Scopes, Refusal> {
    // The caller may have given no more of it than its granularity needs.
    let given = (argument.argsz as usize).saturating_sub(INFO);
    let info = argument.info.as_bytes();
    decode(&info[..given.min(info.len())], Extra::default())
}

/// Decodes the bytes of a [`CacheInvalidateInfo`].
fn decode(info: &[u8], extra: Extra) -> Result<Scopes, Refusal> {
    let info: CacheInvalidateInfo = copy_in(info)?;
    let value = |field| Refusal::Value { offset: INFO + field };
    if info.version != CACHE_VERSION {
        return Err(value(offset_of!(CacheInvalidateInfo, version)));
    }
    let known = CACHE_IOTLB | CACHE_DEVICE_IOTLB | CACHE_PASID;
    let known = if extra.contexts { known | CACHE_CONTEXT } else { known };
    if info.cache == 0 || info.cache & !known != 0 {
        return Err(value(offset_of!(CacheInvalidateInfo, cache)));
    }
    let scope = Scope::decode(&info)?;
    let one = |cache, decode: fn(Scope, Extra) -> Result<Invalidation, Refusal>| {
        (info.cache & cache != 0).then(|| decode(scope, extra)).transpose()
    };
    Ok([
        one(CACHE_CONTEXT, context)?,
        one(CACHE_PASID, pasid_cache)?,
        one(CACHE_IOTLB, iotlb)?,
        one(CACHE_DEVICE_IOTLB, device_tlb)?,
    ])
}

/// What a granularity's own structure says.
#[derive(Clone, Copy)]
enum Scope {
    All,
    Tagged { domain: Option<DomainId>, pasid: Option<Pasid> },
    Pages { domain: Option<DomainId>, pasid: Option<Pasid>, pages: PageRange },
}

/// A granularity that a cache does not have.
const NO_SUCH: Refusal =
    Refusal::Value { offset: INFO + offset_of!(CacheInvalidateInfo, granularity) };

impl Scope {
    fn decode(info: &CacheInvalidateInfo) -> Result<Self, Refusal> {
        match info.granularity {
            GRANULARITY_DOMAIN => Ok(Self::All),
            GRANULARITY_PASID => {
                let PasidScope { flags, archid, pasid } = read(info)?;
                let (domain, pasid) = tags(flags, SCOPE_PASID | SCOPE_ARCHID, archid, pasid)?;
                if domain.is_none() && pasid.is_none() {
                    return Err(Refusal::Flags { flags });
                }
                Ok(Self::Tagged { domain, pasid })
            }
            GRANULARITY_ADDRESS => {
                let scope: AddressScope = read(info)?;
                let known = SCOPE_PASID | SCOPE_ARCHID | SCOPE_LEAF;
                let (domain, pasid) = tags(scope.flags, known, scope.archid, scope.pasid)?;
                let leaf_only = scope.flags & SCOPE_LEAF != 0;
                let pages = PageRange { range: decode_range(&scope)?, leaf_only };
                Ok(Self::Pages { domain, pasid, pages })
            }
            _ => Err(NO_SUCH),
        }
    }
}

/// The structure in `info`'s scope, if `info` is long enough to have it.
fn read<T: FromBytes>(info: &CacheInvalidateInfo) -> Result<T, ArgumentError> {
    let needed = offset_of!(CacheInvalidateInfo, scope) + size_of::<T>();
    match T::read_from_prefix(&info.scope) {
        Ok((scope, _)) if info.argsz as usize >= needed => Ok(scope),
        _ => Err(ArgumentError::TooShort { argsz: info.argsz, needed }),
    }
}

/// The domain and the PASID of a scope, each if its flag says that it counts.
fn tags(
    flags: u32,
    known: u32,
    archid: u32,
    pasid: u64,
) -> Result<(Option<DomainId>, Option<Pasid>), Refusal> {
    if flags & !known != 0 {
        return Err(ArgumentError::UnknownFlags { flags: flags & !known }.into());
    }
    let value = |field| Refusal::Value { offset: SCOPE + field };
    let mut domain = None;
    if flags & SCOPE_ARCHID != 0 {
        let number = u16::try_from(archid);
        domain = Some(DomainId(number.map_err(|_| value(offset_of!(AddressScope, archid)))?));
    }
    let mut tag = None;
    if flags & SCOPE_PASID != 0 {
        let number = u32::try_from(pasid).ok().and_then(Pasid::new);
        tag = Some(number.ok_or(value(offset_of!(AddressScope, pasid)))?);
    }
    Ok((domain, tag))
}

fn decode_range(scope: &AddressScope) -> Result<Range<Iova>, Refusal> {
    let value = |field| Refusal::Value { offset: SCOPE + field };
    let &AddressScope { address, granule_size, granules, .. } = scope;
    if !granule_size.is_power_of_two() {
        return Err(value(offset_of!(AddressScope, granule_size)));
    }
    if address & (granule_size - 1) != 0 {
        return Err(value(offset_of!(AddressScope, address)));
    }
    // Less one, so that all 2^64 bytes can be named.
    let last = granules
        .checked_sub(1)
        .and_then(|granules| granules.checked_mul(granule_size)?.checked_add(granule_size - 1))
        .and_then(|len_minus_one| address.checked_add(len_minus_one));
    let last = last.ok_or(value(offset_of!(AddressScope, granules)))?;
    Ok(Range { start: Iova(address), last: Iova(last) })
}

fn context(scope: Scope, extra: Extra) -> Result<Invalidation, Refusal> {
    match (scope, extra.device) {
        (Scope::All, None) => Ok(Invalidation::ContextAll),
        (Scope::All, Some(Device { requester, ignore })) => {
            Ok(Invalidation::ContextDevice { requester, ignore })
        }
        (Scope::Tagged { domain: Some(domain), pasid: None }, None) => {
            Ok(Invalidation::ContextDomain(domain))
        }
        _ => Err(NO_SUCH),
    }
}

fn pasid_cache(scope: Scope, _: Extra) -> Result<Invalidation, Refusal> {
    match scope {
        Scope::All | Scope::Tagged { domain: None, .. } => Ok(Invalidation::PasidCacheAll),
        Scope::Tagged { domain: Some(domain), pasid: None } => {
            Ok(Invalidation::PasidCacheDomain(domain))
        }
        Scope::Tagged { domain: Some(domain), pasid: Some(pasid) } => {
            Ok(Invalidation::PasidCache { domain, pasid })
        }
        Scope::Pages { .. } => Err(NO_SUCH),
    }
}

fn iotlb(scope: Scope, _: Extra) -> Result<Invalidation, Refusal> {
    Ok(match scope {
        Scope::All | Scope::Tagged { domain: None, .. } | Scope::Pages { domain: None, .. } => {
            Invalidation::IotlbAll
        }
        Scope::Tagged { domain: Some(domain), pasid: None } => Invalidation::IotlbDomain(domain),
        Scope::Tagged { domain: Some(domain), pasid: Some(pasid) } => {
            Invalidation::IotlbPasid { domain, pasid }
        }
        Scope::Pages { domain: Some(domain), pasid: None, pages } => {
            Invalidation::IotlbDomainPages { domain, pages }
        }
        Scope::Pages { domain: Some(domain), pasid: Some(pasid), pages } => {
            Invalidation::IotlbPasidPages { domain, pasid, pages }
        }
    })
}

fn device_tlb(scope: Scope, extra: Extra) -> Result<Invalidation, Refusal> {
    let all = Range { start: Iova(0), last: Iova(u64::MAX) };
    let (pasid, range) = match scope {
        Scope::All => return Err(NO_SUCH),
        Scope::Tagged { pasid, .. } => (pasid, all),
        Scope::Pages { pasid, pages, .. } => (pasid, pages.range),
    };
    let unsupported =
        Refusal::Unsupported { offset: INFO + offset_of!(CacheInvalidateInfo, cache) };
    let Device { requester, ignore } = extra.device.ok_or(unsupported)?;
    if ignore != 0 {
        return Err(Refusal::Value { offset: offset_of!(OwnCacheInvalidate, ignore) });
    }
    match (extra.without_pasid, pasid) {
        (false, pasid) => Ok(Invalidation::DeviceTlbPasid { requester, pasid, range }),
        (true, None) => Ok(Invalidation::DeviceTlb { requester, range }),
        (true, Some(_)) => Err(Refusal::Flags { flags: INVALIDATE_NO_PASID }),
    }
}

/// Encodes an invalidation as our own structure.
pub(crate) fn encode(what: Invalidation) -> OwnCacheInvalidate {
    use Invalidation as I;
    let (cache, scope) = match what {
        I::ContextAll | I::ContextDevice { .. } => (CACHE_CONTEXT, Scope::All),
        I::ContextDomain(domain) => (CACHE_CONTEXT, in_domain(domain, None)),
        I::PasidCacheAll => (CACHE_PASID, Scope::All),
        I::PasidCacheDomain(domain) => (CACHE_PASID, in_domain(domain, None)),
        I::PasidCache { domain, pasid } => (CACHE_PASID, in_domain(domain, Some(pasid))),
        I::IotlbAll => (CACHE_IOTLB, Scope::All),
        I::IotlbDomain(domain) => (CACHE_IOTLB, in_domain(domain, None)),
        I::IotlbPasid { domain, pasid } => (CACHE_IOTLB, in_domain(domain, Some(pasid))),
        I::IotlbDomainPages { domain, pages } => {
            (CACHE_IOTLB, Scope::Pages { domain: Some(domain), pasid: None, pages })
        }
        I::IotlbPasidPages { domain, pasid, pages } => {
            (CACHE_IOTLB, Scope::Pages { domain: Some(domain), pasid: Some(pasid), pages })
        }
        I::DeviceTlb { range, .. } => (CACHE_DEVICE_IOTLB, of_device(None, range)),
        I::DeviceTlbPasid { pasid, range, .. } => (CACHE_DEVICE_IOTLB, of_device(pasid, range)),
        // The structure has no words for SMMUv3's scopes: all of it, which is more than was asked.
        I::Smmuv3(_) => (CACHE_CONTEXT | CACHE_PASID | CACHE_IOTLB, Scope::All),
    };
    let mut argument = OwnCacheInvalidate {
        argsz: size_of::<OwnCacheInvalidate>() as u32,
        info: encode_info(cache, scope),
        ..OwnCacheInvalidate::new_zeroed()
    };
    let mut name = |requester: RequesterId, ignore, flags| {
        argument.flags = INVALIDATE_REQUESTER | flags;
        (argument.requester, argument.ignore) = (requester.bits(), ignore);
    };
    match what {
        I::ContextDevice { requester, ignore } => name(requester, ignore, 0),
        I::DeviceTlb { requester, .. } => name(requester, 0, INVALIDATE_NO_PASID),
        I::DeviceTlbPasid { requester, .. } => name(requester, 0, 0),
        _ => {}
    }
    argument
}

fn in_domain(domain: DomainId, pasid: Option<Pasid>) -> Scope {
    Scope::Tagged { domain: Some(domain), pasid }
}

fn of_device(pasid: Option<Pasid>, range: Range<Iova>) -> Scope {
    Scope::Pages { domain: None, pasid, pages: PageRange { range, leaf_only: false } }
}

fn encode_info(cache: u8, scope: Scope) -> CacheInvalidateInfo {
    let mut info = CacheInvalidateInfo {
        argsz: size_of::<CacheInvalidateInfo>() as u32,
        version: CACHE_VERSION,
        cache,
        ..CacheInvalidateInfo::new_zeroed()
    };
    let flags = |domain: Option<_>, pasid: Option<_>| {
        let domain = if domain.is_some() { SCOPE_ARCHID } else { 0 };
        domain | if pasid.is_some() { SCOPE_PASID } else { 0 }
    };
    let archid = |domain: Option<DomainId>| domain.map_or(0, |DomainId(domain)| domain.into());
    let number = |pasid: Option<Pasid>| pasid.map_or(0, |pasid| pasid.get().into());
    match scope {
        Scope::All => info.granularity = GRANULARITY_DOMAIN,
        Scope::Tagged { domain, pasid } => {
            info.granularity = GRANULARITY_PASID;
            let scope = PasidScope {
                flags: flags(domain, pasid),
                archid: archid(domain),
                pasid: number(pasid),
            };
            info.scope[..size_of::<PasidScope>()].copy_from_slice(scope.as_bytes());
        }
        Scope::Pages { domain, pasid, pages } => {
            info.granularity = GRANULARITY_ADDRESS;
            let leaf = if pages.leaf_only { SCOPE_LEAF } else { 0 };
            let (granule_size, granules) = granules(&pages.range);
            let scope = AddressScope {
                flags: flags(domain, pasid) | leaf,
                archid: archid(domain),
                pasid: number(pasid),
                address: pages.range.start.0,
                granule_size,
                granules,
            };
            info.scope.copy_from_slice(scope.as_bytes());
        }
    }
    info
}

/// The size and number of granules that make up `range` exactly: pages where that is possible,
/// which the whole of the address space is.
fn granules(range: &Range<Iova>) -> (u64, u64) {
    let len_minus_one = range.last.0.saturating_sub(range.start.0);
    if range.start.0 % PAGE == 0 && len_minus_one % PAGE == PAGE - 1 {
        (PAGE, len_minus_one / PAGE + 1)
    } else {
        // Not all of the address space, so it cannot overflow.
        (1, len_minus_one.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
