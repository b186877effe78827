//! `struct iommu_page_response`.

use core::mem::offset_of;

use iommu::nesting::GroupResponse;
use iommu::{Pasid, PrgIndex};

use super::copy_sized;
use crate::spec::flags::*;
use crate::spec::PageResponse;
use crate::{page_request, ArgumentError, Refusal};

/// Reads an answer, of which the structure does not say the device.
pub(crate) fn decode_response(bytes: &[u8], strict: bool) -> Result<GroupResponse, Refusal> {
    let (response, _) = copy_sized::<PageResponse>(bytes, size_of::<PageResponse>(), strict)?;
    let value = |offset| Refusal::Value { offset };
    if response.version != PAGE_RESPONSE_VERSION {
        return Err(value(offset_of!(PageResponse, version)));
    }
    let unknown = response.flags & !PAGE_RESPONSE_PASID_VALID;
    if unknown != 0 {
        return Err(ArgumentError::UnknownFlags { flags: unknown }.into());
    }
    let pasid = match response.flags & PAGE_RESPONSE_PASID_VALID {
        0 => None,
        _ => Some(Pasid::new(response.pasid).ok_or(value(offset_of!(PageResponse, pasid)))?),
    };
    let code = page_request::code_of(response.code);
    let code = code.ok_or(value(offset_of!(PageResponse, code)))?;
    // No device has a group of more bits.
    let group = u16::try_from(response.grpid).ok().and_then(PrgIndex::new);
    Ok(GroupResponse { pasid, group: group.ok_or(Refusal::NoPageRequest)?, code })
}
