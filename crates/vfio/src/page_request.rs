//! Page requests and their answers as bytes, and back.

use core::mem::offset_of;
use core::time::Duration;

use iommu::{
    PageFault, PageRequest, PageRequestPolicy, PageResponse, PageResponseError, Pasid, PrgIndex,
    ResponseCode, TakenGroups,
};
use mem::Iova;
use pci::RequesterId;
use zerocopy::FromZeros;

use crate::spec::flags::*;
use crate::spec::{
    self, CreateVm, HwptPageFault, HwptPageResponse, PageRequestFault, PageRequestPolicyArgument,
};
use crate::Refusal;

/// The bytes are no page request that this crate knows: the host end is not ours, or newer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnknownRequest;

/// `bit` if `condition` holds.
const fn bit_if(condition: bool, bit: u32) -> u32 {
    if condition {
        bit
    } else {
        0
    }
}

fn permission(request: &PageRequest) -> u32 {
    bit_if(request.read, PERMISSION_READ)
        | bit_if(request.write, PERMISSION_WRITE)
        | bit_if(request.execute, PERMISSION_EXECUTE)
        | bit_if(request.privileged, PERMISSION_PRIVILEGED)
}

/// What both structures have in common.
struct Common {
    flags: u32,
    pasid: u32,
    group: u32,
    permission: u32,
    address: u64,
}

impl Common {
    fn request(
        &self,
        requester: RequesterId,
        private_data: Option<[u64; 2]>,
    ) -> Result<PageRequest, UnknownRequest> {
        let may = |bit| self.permission & bit != 0;
        let pasid = match self.flags & PAGE_REQUEST_PASID_VALID {
            0 => None,
            _ => Some(Pasid::new(self.pasid).ok_or(UnknownRequest)?),
        };
        let group = u16::try_from(self.group).ok().and_then(PrgIndex::new);
        Ok(PageRequest {
            requester,
            pasid,
            privileged: may(PERMISSION_PRIVILEGED),
            execute: may(PERMISSION_EXECUTE),
            read: may(PERMISSION_READ),
            write: may(PERMISSION_WRITE),
            address: Iova(self.address),
            group: group.ok_or(UnknownRequest)?,
            last: self.flags & PAGE_REQUEST_LAST != 0,
            private_data,
        })
    }
}

/// The flags of both structures.
fn flags(request: &PageRequest) -> u32 {
    bit_if(request.pasid.is_some(), PAGE_REQUEST_PASID_VALID)
        | bit_if(request.last, PAGE_REQUEST_LAST)
}

/// A request as posted. Its requester is beside it.
pub(crate) fn encode(request: &PageRequest) -> PageRequestFault {
    PageRequestFault {
        kind: FAULT_PAGE_REQUEST,
        // An answer goes to the address space that asked.
        flags: flags(request)
            | bit_if(request.pasid.is_some(), PAGE_REQUEST_RESPONSE_NEEDS_PASID)
            | bit_if(request.private_data.is_some(), PAGE_REQUEST_PRIVATE_DATA),
        pasid: request.pasid.map_or(0, Pasid::get),
        grpid: request.group.get().into(),
        permission: permission(request),
        address: request.address.0,
        private_data: request.private_data.unwrap_or_default(),
        ..PageRequestFault::new_zeroed()
    }
}

/// What a host end said: a request, or that there is none.
pub(crate) fn decode(
    fault: &PageRequestFault,
    requester: u16,
) -> Result<Option<PageRequest>, UnknownRequest> {
    let &PageRequestFault { kind, flags, pasid, grpid, permission, address, private_data, .. } =
        fault;
    match kind {
        0 => return Ok(None),
        FAULT_PAGE_REQUEST => (),
        _ => return Err(UnknownRequest),
    }
    let private_data = (flags & PAGE_REQUEST_PRIVATE_DATA != 0).then_some(private_data);
    let common = Common { flags, pasid, group: grpid, permission, address };
    common.request(RequesterId::from_bits(requester), private_data).map(Some)
}

/// A request as iommufd has it, which has no private data.
pub(crate) fn encode_fault(PageFault { cookie, request }: &PageFault) -> HwptPageFault {
    HwptPageFault {
        flags: flags(request),
        dev_id: request.requester.bits().into(),
        pasid: request.pasid.map_or(0, Pasid::get),
        grpid: request.group.get().into(),
        permission: permission(request),
        reserved: 0,
        address: request.address.0,
        length: 0,
        cookie: *cookie,
    }
}

/// What a host end said of a queue's request.
pub(crate) fn decode_fault(
    fault: &HwptPageFault,
    private_data: Option<[u64; 2]>,
) -> Result<PageFault, UnknownRequest> {
    let &HwptPageFault { flags, dev_id, pasid, grpid, permission, address, cookie, .. } = fault;
    let requester = u16::try_from(dev_id).map_err(|_| UnknownRequest)?;
    let common = Common { flags, pasid, group: grpid, permission, address };
    let request = common.request(RequesterId::from_bits(requester), private_data)?;
    Ok(PageFault { cookie, request })
}

/// The number of an answer, in every structure.
pub(crate) const fn code(code: ResponseCode) -> u32 {
    match code {
        ResponseCode::Success => 0,
        ResponseCode::Invalid => 1,
        ResponseCode::Failure => 2,
    }
}

/// The answer that has this number.
pub(crate) const fn code_of(code: u32) -> Option<ResponseCode> {
    Some(match code {
        0 => ResponseCode::Success,
        1 => ResponseCode::Invalid,
        2 => ResponseCode::Failure,
        _ => return None,
    })
}

/// An answer as posted. The requester is beside it.
pub(crate) fn encode_response(response: &PageResponse) -> spec::PageResponse {
    let &PageResponse { requester: _, pasid, group, code: answer } = response;
    spec::PageResponse {
        argsz: size_of::<spec::PageResponse>() as u32,
        version: PAGE_RESPONSE_VERSION,
        flags: bit_if(pasid.is_some(), PAGE_RESPONSE_PASID_VALID),
        pasid: pasid.map_or(0, Pasid::get),
        grpid: group.get().into(),
        code: code(answer),
    }
}

/// An answer to a group of a queue, in iommufd's structure at `offset` of an argument. iommufd does
/// not let its callers say that the interface is broken; ours does.
pub(crate) fn decode_answer(
    response: &HwptPageResponse,
    own: bool,
    offset: usize,
) -> Result<(u32, ResponseCode), Refusal> {
    let code = code_of(response.code).filter(|code| own || *code != ResponseCode::Failure);
    let refused = Refusal::Value { offset: offset + offset_of!(HwptPageResponse, code) };
    Ok((response.cookie, code.ok_or(refused)?))
}

/// The number of why an answer reached nobody.
pub(crate) const fn failure(error: &PageResponseError) -> u32 {
    match error {
        PageResponseError::NotOutstanding { .. } => RESPONSE_NOT_OUTSTANDING,
        PageResponseError::WrongPasid { .. } => RESPONSE_WRONG_PASID,
        PageResponseError::NotSupported => RESPONSE_NOT_SUPPORTED,
    }
}

/// Why an answer reached nobody, if this crate knows the number.
pub(crate) const fn failure_of(code: u32, response: &PageResponse) -> Option<PageResponseError> {
    let &PageResponse { requester, group, .. } = response;
    Some(match code {
        RESPONSE_NOT_OUTSTANDING => PageResponseError::NotOutstanding { requester, group },
        RESPONSE_WRONG_PASID => PageResponseError::WrongPasid { requester, group },
        RESPONSE_NOT_SUPPORTED => PageResponseError::NotSupported,
        _ => return None,
    })
}

/// A time of so many seconds and less than a second's nanoseconds.
pub(crate) fn time(seconds: u64, nanoseconds: u32) -> Option<Duration> {
    (nanoseconds < 1_000_000_000).then(|| Duration::new(seconds, nanoseconds))
}

/// What a VM's devices may ask for.
pub(crate) fn encode_policy(policy: &PageRequestPolicy) -> PageRequestPolicyArgument {
    let &PageRequestPolicy { per_device, timeout, taken } = policy;
    let withdrawn = taken == TakenGroups::Withdrawn;
    PageRequestPolicyArgument {
        flags: PAGE_REQUEST_POLICY
            | bit_if(timeout.is_some(), PAGE_REQUEST_POLICY_TIMEOUT)
            | bit_if(withdrawn, PAGE_REQUEST_POLICY_WITHDRAWN),
        per_device,
        seconds: timeout.map_or(0, |timeout| timeout.as_secs()),
        nanoseconds: timeout.map_or(0, |timeout| timeout.subsec_nanos()),
        reserved: 0,
    }
}

/// What a client wants its VM's devices to be able to ask for.
pub(crate) fn policy(argument: &PageRequestPolicyArgument) -> Result<PageRequestPolicy, Refusal> {
    let &PageRequestPolicyArgument { flags, per_device, seconds, nanoseconds, .. } = argument;
    let base = offset_of!(CreateVm, page_requests);
    let bad_time =
        Refusal::Value { offset: base + offset_of!(PageRequestPolicyArgument, nanoseconds) };
    const WITH_TIMEOUT: u32 = PAGE_REQUEST_POLICY | PAGE_REQUEST_POLICY_TIMEOUT;
    let taken = match flags & PAGE_REQUEST_POLICY_WITHDRAWN {
        0 => TakenGroups::Stay,
        _ => TakenGroups::Withdrawn,
    };
    let timeout = match flags & !PAGE_REQUEST_POLICY_WITHDRAWN {
        0 if flags == 0 && per_device == 0 && seconds == 0 && nanoseconds == 0 => {
            return Ok(PageRequestPolicy::default())
        }
        PAGE_REQUEST_POLICY if seconds == 0 && nanoseconds == 0 => None,
        WITH_TIMEOUT => Some(time(seconds, nanoseconds).ok_or(bad_time)?),
        _ => return Err(Refusal::Value { offset: base }),
    };
    Ok(PageRequestPolicy { per_device, timeout, taken })
}

#[cfg(test)]
mod tests;
