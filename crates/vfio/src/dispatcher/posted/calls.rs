//! The calls on the domains of a container.

use iommu::nesting::{self, CacheInvalidate, Domain, InvalidateError, MsiBindings};
use iommu::{Hardware, Ticket, Vm};
use mem::{Gpa, Iova};

use super::{Kind, Posted};
use crate::argument::{claimed_bytes, copy_in};
use crate::nesting::{decode_cache, decode_config, decode_gpasid};
use crate::spec::flags::*;
use crate::spec::{Header, SetMsiBinding};
use crate::{ArgumentError, Refusal, Reply, Revision};

/// Low bits of `NESTING_OP`'s flags: the operation.
const OPERATION: u32 = 0xffff;

/// The size and flags of a structure whose rest has a size of its own, and that rest. Posted calls
/// look no further than the rest's own size; ours, no further than the size of the whole.
pub(in crate::dispatcher) fn split(
    argument: &[u8],
    revision: Revision,
) -> Result<(Header, &[u8]), ArgumentError> {
    let head = size_of::<Header>();
    let claimed = ArgumentError::Truncated { given: argument.len(), claimed: head };
    let (first, mut rest) = argument.split_at_checked(head).ok_or(claimed)?;
    let [argsz, flags] =
        [&first[..4], &first[4..]].map(|bytes| bytes.try_into().map_or(0, u32::from_ne_bytes));
    if (argsz as usize) < head {
        return Err(ArgumentError::TooShort { argsz, needed: head });
    }
    if revision == Revision::Own {
        rest = &claimed_bytes(argument, head)?[head..];
    }
    Ok((Header { argsz, flags }, rest))
}

/// A reply to a call that, as posted, returns when `pending` is over.
fn until(pending: Option<Ticket>) -> Reply {
    Reply { pending, ..Reply::default() }
}

impl<V: Vm> Posted<V> {
    /// `SET_PASID_TABLE`.
    pub(in crate::dispatcher) fn set_pasid_table(
        &mut self,
        argument: &[u8],
        revision: Revision,
    ) -> Result<Reply, Refusal> {
        let (Header { flags, .. }, config) = split(argument, revision)?;
        let unknown = flags & !(PASID_TABLE_SET | PASID_TABLE_UNSET);
        if unknown != 0 {
            return Err(ArgumentError::UnknownFlags { flags: unknown }.into());
        }
        let set = match flags {
            PASID_TABLE_SET => true,
            PASID_TABLE_UNSET => false,
            flags => return Err(Refusal::Flags { flags }),
        };
        let strict = revision == Revision::Own;
        match self.kind {
            Some(Kind::Nesting) => (),
            // As posted: what is done for each of no domains is done.
            None if !strict => return Ok(Reply::default()),
            _ => return Err(Refusal::NotNesting),
        }
        if set {
            let config = decode_config(config, revision)?;
            return Ok(until(nesting::set_pasid_table(&mut self.domains, &config)?));
        }
        match nesting::unset_pasid_table(&mut self.domains) {
            Ok(ticket) => Ok(until(ticket)),
            // As posted it cannot fail.
            Err(_) if !strict => Ok(Reply::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// `CACHE_INVALIDATE`, as posted.
    pub(in crate::dispatcher) fn cache_invalidate(
        &mut self,
        argument: &[u8],
        revision: Revision,
    ) -> Result<Reply, Refusal> {
        let (Header { flags, .. }, info) = split(argument, revision)?;
        if flags != 0 {
            return Err(ArgumentError::UnknownFlags { flags }.into());
        }
        if self.kind != Some(Kind::Nesting) {
            return Err(Refusal::NotNesting);
        }
        let what = decode_cache(info, revision)?;
        self.invalidate(&what).map(until).map_err(Refusal::from)
    }

    /// Forgets something for each device; stops at the first error.
    fn invalidate(&self, what: &CacheInvalidate) -> Result<Option<Ticket>, InvalidateError> {
        let mut latest = None;
        for domain in &self.domains {
            for device in domain.devices() {
                latest = latest.max(Some(domain.cache_invalidate(device, what)?));
            }
        }
        Ok(latest)
    }

    /// `SET_MSI_BINDING`.
    pub(in crate::dispatcher) fn set_msi_binding(
        &mut self,
        argument: &[u8],
    ) -> Result<Reply, Refusal> {
        let SetMsiBinding { flags, iova, gpa, size, .. } = copy_in(argument)?;
        let is_smmu = |domain: &Domain<V>| matches!(domain.hardware(), Some(Hardware::Smmuv3(_)));
        let bind = match flags {
            MSI_BIND => true,
            MSI_UNBIND => false,
            flags => return Err(Refusal::Flags { flags }),
        };
        // Elsewhere messages are not translated.
        if self.kind != Some(Kind::Nesting) || !self.domains.iter().all(is_smmu) {
            return Err(Refusal::NotNesting);
        }
        if bind {
            MsiBindings::bind_in_all(&mut self.doorbells, Iova(iova), Gpa(gpa), size)?;
        } else {
            for doorbells in &mut self.doorbells {
                let _ = doorbells.unbind(Iova(iova));
            }
        }
        Ok(Reply::default())
    }

    /// `NESTING_OP`.
    pub(in crate::dispatcher) fn nesting_op(
        &mut self,
        argument: &[u8],
        revision: Revision,
    ) -> Result<Reply, Refusal> {
        let (Header { flags, .. }, data) = split(argument, revision)?;
        let strict = revision == Revision::Own;
        if flags & !OPERATION != 0 {
            return Err(ArgumentError::UnknownFlags { flags: flags & !OPERATION }.into());
        }
        match flags {
            NESTING_BIND | NESTING_UNBIND | NESTING_INVALIDATE => (),
            flags => return Err(Refusal::Flags { flags }),
        }
        if self.kind != Some(Kind::Nesting) {
            return Err(Refusal::NotNesting);
        }
        let is_vtd = |domain: &Domain<V>| matches!(domain.hardware(), Some(Hardware::Vtd(_)));
        if !self.domains.iter().all(is_vtd) {
            return Err(Refusal::Unsupported { offset: core::mem::offset_of!(Header, flags) });
        }
        let groups = self.groups.len();
        // One group is in one domain, if its devices are behind one IOMMU.
        let [domain] = self.domains.as_mut_slice() else {
            return Err(Refusal::NotSingle { groups });
        };
        if groups != 1 {
            return Err(Refusal::NotSingle { groups });
        }
        let done: Result<_, Refusal> = match flags {
            NESTING_BIND => {
                let bind = decode_gpasid(data, revision)?.bind()?;
                domain.bind_gpasid_for_all(&bind)?;
                return Ok(Reply::default());
            }
            NESTING_UNBIND => {
                let guest = decode_gpasid(data, revision)?.guest;
                domain.unbind_gpasid_for_all(guest).map_err(Refusal::from)
            }
            _ => {
                let what = decode_cache(data, revision)?;
                self.invalidate(&what).map_err(Refusal::from)
            }
        };
        match done {
            Ok(ticket) => Ok(until(ticket)),
            // As posted they cannot fail.
            Err(_) if !strict => Ok(Reply::default()),
            Err(refusal) => Err(refusal),
        }
    }
}
