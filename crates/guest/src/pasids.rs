//! The kernel's own PASID allocator (`ioasid`), reached through the guest's module (`module/vsva_pasids.c`).

use std::fs::{self, File};
use std::io::{self, Read, Write};

use iommu::Pasid;
use rustix::io::Errno;
use vtd::spec::{VcmdLayout, VirtualCommand, VirtualResponse, VirtualStatus};

/// What the module makes.
const DEVICE: &str = "/dev/vsva_pasids";
/// Where the kernel says where the first unit's registers are, in hexadecimal.
const UNIT_ADDRESS: &str = "/sys/class/iommu/dmar0/intel-iommu/address";
/// What `ioasid_alloc` returns instead of a number.
const INVALID_IOASID: u32 = u32::MAX;
/// The layout of the registers that Linux 5.15 to 6.3 uses.
const LAYOUT: VcmdLayout = VcmdLayout::Revision33;

/// What the module is asked for; the numbers are the module's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Operation {
    Alloc = 1,
    Free = 2,
    Find = 3,
    Registers = 4,
    Command = 5,
}

/// `struct request` of the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    operation: Operation,
    id: u32,
    max: u32,
    value: u64,
}

impl Request {
    const SIZE: usize = 24;

    fn encode(self) -> [u8; Self::SIZE] {
        let Self { operation, id, max, value } = self;
        let words = [operation as u32, id, max, 0];
        let mut bytes = [0; Self::SIZE];
        let (head, tail) = bytes.split_at_mut(words.len() * size_of::<u32>());
        head.copy_from_slice(words.map(u32::to_le_bytes).as_flattened());
        tail.copy_from_slice(&value.to_le_bytes());
        bytes
    }
}

/// `struct reply` of the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reply {
    status: i32,
    id: u32,
    value: u64,
}

impl Reply {
    const SIZE: usize = 16;

    fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let all = u128::from_le_bytes(bytes);
        Self { status: all as u32 as i32, id: (all >> 32) as u32, value: (all >> 64) as u64 }
    }
}

/// A set of numbers of the kernel's allocator (`struct ioasid_set`). What it still holds is freed
/// when it is dropped, by the module.
#[derive(Debug)]
pub(crate) struct Holder {
    device: File,
}

impl Holder {
    /// A new, empty set.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { device: File::options().read(true).write(true).open(DEVICE)? })
    }

    /// `ioasid_alloc` in this range, with `value` behind the private pointer; `None` is
    /// `INVALID_IOASID`.
    pub(crate) fn alloc(&self, first: u32, last: u32, value: u64) -> io::Result<Option<u32>> {
        let request = Request { operation: Operation::Alloc, id: first, max: last, value };
        let id = self.perform(request)?.id;
        Ok((id != INVALID_IOASID).then_some(id))
    }

    /// `ioasid_free` of a number of this set.
    pub(crate) fn free(&self, id: u32) -> io::Result<()> {
        self.perform(Request { operation: Operation::Free, id, max: 0, value: 0 })?;
        Ok(())
    }

    /// `ioasid_find` in this set: the value behind the pointer, or the kernel's error.
    pub(crate) fn find(&self, id: u32) -> Result<u64, FindError> {
        let request = Request { operation: Operation::Find, id, max: 0, value: 0 };
        let reply = self.perform(request).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => FindError::Unknown,
            Some(Errno::ACCESS) => FindError::OtherSet,
            _ => FindError::Other(error),
        })?;
        if reply.id != id {
            return Err(FindError::Wrong { wanted: id, found: reply.id });
        }
        Ok(reply.value)
    }

    fn perform(&self, request: Request) -> io::Result<Reply> {
        (&self.device).write_all(&request.encode())?;
        let mut bytes = [0; Reply::SIZE];
        (&self.device).read_exact(&mut bytes)?;
        let reply = Reply::decode(bytes);
        match reply.status {
            0 => Ok(reply),
            status => Err(io::Error::from_raw_os_error(status.saturating_neg())),
        }
    }
}

/// Why the kernel does not find a number.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// Nobody has it.
    #[error("unknown (ENOENT)")]
    Unknown,
    /// It is another set's.
    #[error("another set's (EACCES)")]
    OtherSet,
    /// The pointer is another number's.
    #[error("the pointer is that of {found}, not of {wanted}")]
    Wrong { wanted: u32, found: u32 },
    /// Anything else.
    #[error(transparent)]
    Other(io::Error),
}

/// The unit's virtual commands, sent past the kernel: what only a guest gone wrong would do.
/// Nobody else may be allocating or freeing meanwhile.
#[derive(Debug)]
pub(crate) struct Commands {
    holder: Holder,
}

impl Commands {
    /// To the unit that the kernel found first.
    pub(crate) fn open() -> io::Result<Self> {
        let text = fs::read_to_string(UNIT_ADDRESS)?;
        let value = u64::from_str_radix(text.trim(), 16).map_err(io::Error::other)?;
        let holder = Holder::open()?;
        holder.perform(Request { operation: Operation::Registers, id: 0, max: 0, value })?;
        Ok(Self { holder })
    }

    /// Sends a command as the register takes it.
    pub(crate) fn send(&self, command: u64) -> io::Result<VirtualResponse> {
        let request = Request { operation: Operation::Command, id: 0, max: 0, value: command };
        Ok(LAYOUT.decode_response(self.holder.perform(request)?.value))
    }

    /// Asks for a number, and says what became of it; `None` is a code that is not defined.
    pub(crate) fn alloc(&self) -> io::Result<Option<VirtualStatus>> {
        let command = VirtualCommand::AllocatePasid;
        let response = self.send(LAYOUT.encode_command(command))?;
        Ok(LAYOUT.status(response.status, command.opcode()))
    }

    /// Frees a number, and says what became of it; `None` is a code that is not defined.
    pub(crate) fn free(&self, pasid: Pasid) -> io::Result<Option<VirtualStatus>> {
        let command = VirtualCommand::FreePasid(pasid);
        let response = self.send(LAYOUT.encode_command(command))?;
        Ok(LAYOUT.status(response.status, command.opcode()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_are_laid_out_as_in_the_module() {
        let request =
            Request { operation: Operation::Alloc, id: 0x0102, max: 0x0304, value: 0x0506_0708 };
        let expected = [
            1, 0, 0, 0, 2, 1, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 0, 0, 0, 0, //
        ];
        assert_eq!(request.encode(), expected);
        let reply = Reply::decode([0xfe, 0xff, 0xff, 0xff, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(reply, Reply { status: -2, id: 7, value: 0x0100_0000_0000_0009 });
    }

    /// The module's source, which is the other end of the same layout.
    #[test]
    fn operations_have_the_modules_numbers() {
        let source = include_str!("../module/vsva_pasids.c");
        for (name, operation) in [
            ("OP_ALLOC", Operation::Alloc),
            ("OP_FREE", Operation::Free),
            ("OP_FIND", Operation::Find),
            ("OP_REGISTERS", Operation::Registers),
            ("OP_COMMAND", Operation::Command),
        ] {
            let line = format!("{name} = {},", operation as u32);
            assert!(source.contains(&line), "{line}");
        }
        assert!(source.contains(&format!("#define VCMD\t\t{:#x}", LAYOUT.command_offset())));
        assert!(source.contains(&format!("#define VCRSP\t\t{:#x}", LAYOUT.response_offset())));
    }
}
