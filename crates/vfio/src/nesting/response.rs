//! `struct iommu_page_response`.

use core::mem::offset_of;

use iommu::Pasid;

use super::copy_sized;
use crate::spec::flags::*;
use crate::spec::PageResponse;
use crate::{ArgumentError, Refusal};

/// Checks a response, and looks for its request. No host sends requests yet, so there is none.
pub(crate) fn decode_response(bytes: &[u8], strict: bool) -> Result<(), Refusal> {
    let (response, _) = copy_sized::<PageResponse>(bytes, size_of::<PageResponse>(), strict)?;
    let value = |offset| Refusal::Value { offset };
    if response.version != PAGE_RESPONSE_VERSION {
        return Err(value(offset_of!(PageResponse, version)));
    }
    let unknown = response.flags & !PAGE_RESPONSE_PASID_VALID;
    if unknown != 0 {
        return Err(ArgumentError::UnknownFlags { flags: unknown }.into());
    }
    if response.flags & PAGE_RESPONSE_PASID_VALID != 0 && Pasid::new(response.pasid).is_none() {
        return Err(value(offset_of!(PageResponse, pasid)));
    }
    if response.code > PAGE_RESPONSE_FAILURE {
        return Err(value(offset_of!(PageResponse, code)));
    }
    Err(Refusal::NoPageRequest)
}
