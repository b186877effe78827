//! A host that is somewhere else: every call goes there as bytes.

mod memory;
mod objects;
mod page_requests;
mod vm;

use alloc::string::String;
use core::fmt;

use iommu::{Host, HostError, Numbering, VmConfig};
use zerocopy::{FromZeros, IntoBytes};

pub use vm::{ClientVm, Failures};

use crate::spec::flags::{VM_ENFORCE_GRANTS, VM_PRIVATE_PASIDS};
use crate::spec::{CreateVm, NAME_BYTES};
use crate::{page_request, stage_two, Errno, File, Handle, Reply, Request, Revision, Transport};

/// An [`iommu::Host`] whose every call is encoded as the user API's bytes and carried out by a host
/// end behind a [`Transport`], which has to speak [`Revision::Own`].
#[derive(Clone)]
pub struct Client<T> {
    transport: T,
}

impl<T: Transport> Client<T> {
    /// A client of the host end behind `transport`.
    pub fn new(transport: T) -> Self {
        Self { transport }
    }

    /// The way to the host end.
    pub fn transport(&self) -> &T {
        &self.transport
    }
}

impl<T> fmt::Debug for Client<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl<T: Transport> Host for Client<T> {
    type Vm = ClientVm<T::File>;

    /// As the host end's, but for the name, of which the first [`NAME_BYTES`] bytes count. A host
    /// end that cannot be reached takes no VMs at all.
    fn create_vm(&self, config: VmConfig) -> Result<Self::Vm, HostError> {
        let none = HostError::TooManyVms { limit: 0 };
        let file = self.transport.open().map_err(|_| none)?;
        let mut request = encode(&config);
        match call(&file, Request::CreateVm, &mut request, None) {
            Ok(_) => Ok(ClientVm::new(file)),
            Err(Errno::EDQUOT) => Err(HostError::QuotaUnavailable {
                quota: config.quota,
                available: request.available,
            }),
            Err(Errno::ENOSPC) => Err(HostError::TooManyVms { limit: request.limit as usize }),
            Err(Errno::ENOMEM) => Err(HostError::NoMemory),
            Err(Errno::EOPNOTSUPP) => Err(HostError::UnsupportedStageTwo),
            Err(_) => Err(none),
        }
    }
}

fn encode(config: &VmConfig) -> CreateVm {
    let VmConfig { name, quota, numbering, enforce_grants, stage_two, page_requests } = config;
    let numbering = match numbering {
        Numbering::Identity => 0,
        Numbering::Private => VM_PRIVATE_PASIDS,
    };
    let grants = if *enforce_grants { VM_ENFORCE_GRANTS } else { 0 };
    let mut request = CreateVm {
        argsz: size_of::<CreateVm>() as u32,
        flags: numbering | grants,
        quota: *quota,
        stage_two: stage_two::encode(stage_two.as_ref()),
        page_requests: page_request::encode_policy(page_requests),
        ..CreateVm::new_zeroed()
    };
    let name = shortened(name);
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request
}

/// As much of `name` as there is room for, without the zeroes that end one.
fn shortened(name: &str) -> String {
    let mut kept = String::new();
    for character in name.chars().filter(|&character| character != '\0') {
        if kept.len() + character.len_utf8() > NAME_BYTES {
            break;
        }
        kept.push(character);
    }
    kept
}

/// Makes a call with `argument`, which has the answer afterwards.
fn call<F: File, A: IntoBytes + zerocopy::FromBytes>(
    file: &F,
    request: Request,
    argument: &mut A,
    handle: Option<Handle>,
) -> Result<Reply, Errno> {
    let number = request.number(Revision::Own).ok_or(Errno::ENOTTY)?;
    file.ioctl(number, argument.as_mut_bytes(), handle)
}

#[cfg(test)]
mod tests;
