//! Chains of capabilities after the structures of VFIO's questions.

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::argument::{claimed_bytes, copy_out, Argument};
use crate::spec::CapabilityHeader;
use crate::ArgumentError;

/// What the length of a capability is a multiple of.
const ALIGNMENT: usize = 8;

/// A structure with capabilities behind it.
pub(crate) trait Chained: Argument {
    /// Says how much there is, and where, or zero if the caller gave no room.
    fn set(&mut self, argsz: u32, cap_offset: u32);
}

/// Capabilities in a row.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    capabilities: Vec<(u16, Vec<u8>)>,
}

impl Chain {
    /// Adds one in its first version.
    pub(crate) fn add(&mut self, id: u16, body: &[u8]) {
        self.capabilities.push((id, body.to_vec()));
    }

    /// The bytes of the chain, which is to begin `base` bytes into an argument.
    fn encode(&self, base: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, (id, body)) in self.capabilities.iter().enumerate() {
            let len = (size_of::<CapabilityHeader>() + body.len()).next_multiple_of(ALIGNMENT);
            let end = bytes.len() + len;
            let last = index + 1 == self.capabilities.len();
            let next = if last { 0 } else { (base + end) as u32 };
            let header = CapabilityHeader { id: *id, version: 1, next };
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(body);
            bytes.resize(end, 0);
        }
        bytes
    }

    /// Writes an answer and, if there is room for all of them, the capabilities.
    pub(crate) fn answer<T: Chained>(
        &self,
        mut info: T,
        argument: &mut [u8],
    ) -> Result<(), ArgumentError> {
        let given = claimed_bytes(argument, T::NEEDED)?.len();
        let base = size_of::<T>();
        let chain = self.encode(base);
        match base + chain.len() {
            _ if chain.is_empty() => info.set(given as u32, 0),
            needed if given < needed => info.set(needed as u32, 0),
            needed => {
                info.set(given as u32, base as u32);
                argument[base..needed].copy_from_slice(&chain);
            }
        }
        copy_out(&info, argument);
        Ok(())
    }
}
