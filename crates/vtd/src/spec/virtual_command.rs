//! Virtual commands: registers by which a guest asks whoever emulates its unit for a PASID.
//!
//! They exist in two published layouts. Revision 3.0 of the specification (10.4.43 to 10.4.45) had
//! the capability register first; revision 3.3 (10.4.43 to 10.4.46) moved the registers, the
//! operand, the result and the status codes. Nothing in a unit's registers says which one it has.

use bitfield_struct::bitfield;
use iommu::Pasid;

use super::registers::{AccessClass, Register, RegisterId, Reset, Width};

/// Which layout the registers have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum VcmdLayout {
    /// That of revision 3.0, used by Linux up to 5.14.
    Revision30,
    /// That of revision 3.3, used by Linux 5.15 to 6.3, and by earlier stable kernels since
    /// September 2021.
    Revision33,
}

/// Virtual command capability register, in both layouts.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct VirtualCommandCapability {
    /// PAS: PASIDs can be allocated and freed.
    pub pasid: bool,
    #[bits(63)]
    __: u64,
}

#[bitfield(u64)]
struct Command30 {
    opcode: u8,
    #[bits(56)]
    operand: u64,
}

#[bitfield(u64)]
struct Command33 {
    opcode: u8,
    __: u8,
    #[bits(48)]
    operand: u64,
}

#[bitfield(u64)]
struct Response30 {
    in_progress: bool,
    #[bits(2)]
    status: u8,
    #[bits(5)]
    __: u8,
    #[bits(56)]
    result: u64,
}

#[bitfield(u64)]
struct Response33 {
    in_progress: bool,
    #[bits(7)]
    status: u8,
    __: u8,
    #[bits(48)]
    result: u64,
}

/// What a command asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum VirtualOpcode {
    /// A PASID, in the result. The operand does not count.
    AllocatePasid = 1,
    /// That the PASID in the operand is free again.
    FreePasid = 2,
}

/// A decoded command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum VirtualCommand {
    /// See [`VirtualOpcode::AllocatePasid`].
    AllocatePasid,
    /// See [`VirtualOpcode::FreePasid`].
    FreePasid(Pasid),
}

impl VirtualCommand {
    /// What it asks for.
    pub const fn opcode(self) -> VirtualOpcode {
        match self {
            Self::AllocatePasid => VirtualOpcode::AllocatePasid,
            Self::FreePasid(_) => VirtualOpcode::FreePasid,
        }
    }
}

/// Why a command is none. The guest's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum VirtualCommandError {
    /// No command has this number.
    #[error("virtual command {0} is not defined")]
    Undefined(u8),
    /// The operand is no PASID: it has more than 20 bits.
    #[error("virtual command operand {0:#x} is no PASID")]
    Operand(u64),
}

impl VirtualCommandError {
    /// What the response says of it.
    pub const fn status(self) -> VirtualStatus {
        match self {
            Self::Undefined(_) => VirtualStatus::UndefinedCommand,
            Self::Operand(_) => VirtualStatus::InvalidPasid,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum VirtualStatus {
    /// It was done.
    Success,
    /// No such command.
    ///
    /// The code (1 in both layouts) is not sure: it is what VMMs answered when revision 3.0 was
    /// current, and no published guest tells it from any other error.
    UndefinedCommand,
    /// There is no PASID for this guest: the answer to an allocation only.
    NoPasidAvailable,
    /// The PASID is not this guest's to free: the answer to a free only.
    InvalidPasid,
}

/// What the response register says, before anybody looks at its codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct VirtualResponse {
    /// IP: the command is not done yet; the rest does not count.
    pub in_progress: bool,
    /// SC: see [`VcmdLayout::status`].
    pub status: u8,
    /// Result: 56 bits (3.0) or 48 bits (3.3), of which a PASID uses 20.
    pub result: u64,
}

const fn register(
    id: RegisterId,
    name: &'static str,
    offset: u16,
    writable: u64,
    section: &'static str,
) -> Register {
    let (access, reset) = match id {
        RegisterId::VirtualCommand => (AccessClass::ReadWrite, Reset::Value(0)),
        RegisterId::VirtualCommandCapability => (AccessClass::ReadOnly, Reset::Capabilities),
        _ => (AccessClass::ReadOnly, Reset::Value(0)),
    };
    Register { id, name, offset, width: Width::Bits64, access, writable, clears: 0, reset, section }
}

use RegisterId as Id;

const REVISION_30: [Register; 3] = [
    register(Id::VirtualCommandCapability, "VCCAP_REG", 0xe00, 0, "10.4.43 of 3.0"),
    register(Id::VirtualCommand, "VCMD_REG", 0xe10, u64::MAX, "10.4.44 of 3.0"),
    register(Id::VirtualCommandResponse, "VCRSP_REG", 0xe20, 0, "10.4.45 of 3.0"),
];

const REVISION_33: [Register; 3] = [
    register(Id::VirtualCommand, "VCMD_REG", 0xe00, 0xffff_ffff_ffff_00ff, "10.4.43 of 3.3"),
    register(Id::VirtualCommandResponse, "VCRSP_REG", 0xe10, 0, "10.4.45 of 3.3"),
    register(Id::VirtualCommandCapability, "VCCAP_REG", 0xe30, 0, "10.4.46 of 3.3"),
];

impl VcmdLayout {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Revision30, Self::Revision33];

    /// The registers, by rising offset. The second operand register of revision 3.3 is not among
    /// them: no command uses it.
    pub const fn registers(self) -> &'static [Register; 3] {
        match self {
            Self::Revision30 => &REVISION_30,
            Self::Revision33 => &REVISION_33,
        }
    }

    /// Offset of the capability register (VCCAP) in the register page.
    pub const fn capability_offset(self) -> u16 {
        match self {
            Self::Revision30 => REVISION_30[0].offset,
            Self::Revision33 => REVISION_33[2].offset,
        }
    }

    /// Offset of the command register (VCMD).
    pub const fn command_offset(self) -> u16 {
        match self {
            Self::Revision30 => REVISION_30[1].offset,
            Self::Revision33 => REVISION_33[0].offset,
        }
    }

    /// Offset of the response register (VCRSP).
    pub const fn response_offset(self) -> u16 {
        match self {
            Self::Revision30 => REVISION_30[2].offset,
            Self::Revision33 => REVISION_33[1].offset,
        }
    }

    /// The command register's bits for a command.
    pub const fn encode_command(self, command: VirtualCommand) -> u64 {
        let opcode = command.opcode() as u8;
        let operand = match command {
            VirtualCommand::AllocatePasid => 0,
            VirtualCommand::FreePasid(pasid) => pasid.get() as u64,
        };
        match self {
            Self::Revision30 => {
                Command30::new().with_opcode(opcode).with_operand(operand).into_bits()
            }
            Self::Revision33 => {
                Command33::new().with_opcode(opcode).with_operand(operand).into_bits()
            }
        }
    }

    /// The command in the command register's bits.
    ///
    /// # Errors
    ///
    /// An opcode or operand that does not exist. An operand with more than 20 bits is not cut
    /// down to them: that would free somebody's PASID by mistake.
    pub fn decode_command(self, bits: u64) -> Result<VirtualCommand, VirtualCommandError> {
        let (opcode, operand) = match self {
            Self::Revision30 => {
                let command = Command30::from_bits(bits);
                (command.opcode(), command.operand())
            }
            Self::Revision33 => {
                let command = Command33::from_bits(bits);
                (command.opcode(), command.operand())
            }
        };
        if opcode == VirtualOpcode::AllocatePasid as u8 {
            return Ok(VirtualCommand::AllocatePasid);
        }
        if opcode != VirtualOpcode::FreePasid as u8 {
            return Err(VirtualCommandError::Undefined(opcode));
        }
        let pasid = u32::try_from(operand).ok().and_then(Pasid::new);
        pasid.map(VirtualCommand::FreePasid).ok_or(VirtualCommandError::Operand(operand))
    }

    /// The response register's bits while a command is under way: IP.
    pub const fn encode_in_progress(self) -> u64 {
        match self {
            Self::Revision30 => Response30::new().with_in_progress(true).into_bits(),
            Self::Revision33 => Response33::new().with_in_progress(true).into_bits(),
        }
    }

    /// The response register's bits when a command is done.
    pub fn encode_response(self, status: VirtualStatus, result: Option<Pasid>) -> u64 {
        let code = self.status_code(status);
        let result = result.map_or(0, |pasid| pasid.get().into());
        match self {
            Self::Revision30 => Response30::new().with_status(code).with_result(result).into_bits(),
            Self::Revision33 => Response33::new().with_status(code).with_result(result).into_bits(),
        }
    }

    /// What the response register's bits say.
    pub fn decode_response(self, bits: u64) -> VirtualResponse {
        match self {
            Self::Revision30 => {
                let response = Response30::from_bits(bits);
                VirtualResponse {
                    in_progress: response.in_progress(),
                    status: response.status(),
                    result: response.result(),
                }
            }
            Self::Revision33 => {
                let response = Response33::from_bits(bits);
                VirtualResponse {
                    in_progress: response.in_progress(),
                    status: response.status(),
                    result: response.result(),
                }
            }
        }
    }

    /// The code of a status. No PASID available and invalid PASID share one: which it is follows
    /// from the command. (Linux before 5.12 took 1 for it in the older layout, by mistake.)
    pub const fn status_code(self, status: VirtualStatus) -> u8 {
        match (status, self) {
            (VirtualStatus::Success, _) => 0,
            (VirtualStatus::UndefinedCommand, _) => 1,
            (VirtualStatus::NoPasidAvailable | VirtualStatus::InvalidPasid, Self::Revision30) => 2,
            (VirtualStatus::NoPasidAvailable | VirtualStatus::InvalidPasid, Self::Revision33) => 16,
        }
    }

    /// What a status code says about a command; `None` if the code is not defined for it.
    pub fn status(self, code: u8, command: VirtualOpcode) -> Option<VirtualStatus> {
        let failure = match command {
            VirtualOpcode::AllocatePasid => VirtualStatus::NoPasidAvailable,
            VirtualOpcode::FreePasid => VirtualStatus::InvalidPasid,
        };
        [VirtualStatus::Success, VirtualStatus::UndefinedCommand, failure]
            .into_iter()
            .find(|status| self.status_code(*status) == code)
    }
}

#[cfg(test)]
mod tests;
