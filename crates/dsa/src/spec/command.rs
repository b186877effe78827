//! Device commands (CMD, CMDSTATUS) and their errors.

use bitfield_struct::bitfield;

/// Command register (CMD).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct Cmd {
    /// Operand.
    #[bits(20)]
    pub operand: u32,
    /// Command code, see [`CommandCode`].
    #[bits(5)]
    pub code: u8,
    /// Reserved.
    #[bits(6)]
    pub reserved: u8,
    /// Raise the command interrupt on completion.
    pub interrupt: bool,
}

/// Command status register (CMDSTATUS).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct CmdStatus {
    /// Error, see [`CommandError`]; 0 is success.
    pub error: u8,
    /// Result of the command.
    pub result: u16,
    #[bits(7)]
    __: u8,
    /// The command is still being carried out.
    pub active: bool,
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// A command code.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum CommandCode {
            $($(#[$doc])* $name = $code,)*
        }

        impl CommandCode {
            /// All commands of DSA 1.0, in order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }

        impl TryFrom<u8> for CommandCode {
            type Error = UnknownCommand;

            fn try_from(code: u8) -> Result<Self, UnknownCommand> {
                match code {
                    $($code => Ok(Self::$name),)*
                    _ => Err(UnknownCommand(code)),
                }
            }
        }
    };
}

commands! {
    /// Checks the configuration and enables the device.
    EnableDevice = 1,
    /// Stops intake, completes everything, disables all queues and the device.
    DisableDevice = 2,
    /// Waits for everything submitted so far.
    DrainAll = 3,
    /// Abandons everything submitted so far.
    AbortAll = 4,
    /// Abandons everything and clears the configuration.
    ResetDevice = 5,
    /// Checks a queue's configuration and enables it.
    EnableWq = 6,
    /// Stops intake of queues, completes what they hold, disables them.
    DisableWq = 7,
    /// Waits for what queues hold.
    DrainWq = 8,
    /// Abandons what queues hold.
    AbortWq = 9,
    /// Abandons what queues hold, disables them and clears all of their configuration but size.
    ResetWq = 10,
    /// Waits for everything submitted with a PASID.
    DrainPasid = 11,
    /// Abandons everything submitted with a PASID.
    AbortPasid = 12,
    /// Gives an interrupt handle.
    RequestInterruptHandle = 13,
    /// Takes an interrupt handle back.
    ReleaseInterruptHandle = 14,
}

/// No command of DSA 1.0 has this code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownCommand(pub u8);

/// A command with its operand decoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Enable Device.
    EnableDevice,
    /// Disable Device.
    DisableDevice,
    /// Drain All.
    DrainAll,
    /// Abort All.
    AbortAll,
    /// Reset Device.
    ResetDevice,
    /// Enable WQ, by index.
    EnableWq(u8),
    /// Disable WQ.
    DisableWq(WqSet),
    /// Drain WQ.
    DrainWq(WqSet),
    /// Abort WQ.
    AbortWq(WqSet),
    /// Reset WQ.
    ResetWq(WqSet),
    /// Drain PASID.
    DrainPasid(u32),
    /// Abort PASID.
    AbortPasid(u32),
    /// Request Interrupt Handle.
    RequestInterruptHandle(HandleOperand),
    /// Release Interrupt Handle.
    ReleaseInterruptHandle(HandleOperand),
}

/// Operand of the commands that name several work queues: 16 of up to 256.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct WqSet {
    /// Bit n: work queue `base * 16 + n`.
    pub bitmap: u16,
    /// Bits 7:4 of the indices.
    #[bits(4)]
    pub base: u8,
    #[bits(12)]
    __: u16,
}

/// Operand of the interrupt-handle commands.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash)]
pub struct HandleOperand {
    /// Table index (Request), or handle (Release).
    pub index: u16,
    /// The table is interrupt message storage, not MSI-X.
    pub ims: bool,
    #[bits(15)]
    __: u16,
}

impl Command {
    /// The command in a CMD register value.
    ///
    /// # Errors
    ///
    /// [`CommandError::Unsupported`] for an unknown code, [`CommandError::Reserved`] if a bit is
    /// set that this command does not use.
    pub fn decode(cmd: Cmd) -> Result<Self, CommandError> {
        let code = CommandCode::try_from(cmd.code()).map_err(|_| CommandError::Unsupported)?;
        let operand = cmd.operand();
        let (command, used) = match code {
            CommandCode::EnableDevice => (Self::EnableDevice, 0),
            CommandCode::DisableDevice => (Self::DisableDevice, 0),
            CommandCode::DrainAll => (Self::DrainAll, 0),
            CommandCode::AbortAll => (Self::AbortAll, 0),
            CommandCode::ResetDevice => (Self::ResetDevice, 0),
            CommandCode::EnableWq => (Self::EnableWq(operand as u8), 0xff),
            CommandCode::DisableWq => (Self::DisableWq(WqSet::from_bits(operand)), 0xf_ffff),
            CommandCode::DrainWq => (Self::DrainWq(WqSet::from_bits(operand)), 0xf_ffff),
            CommandCode::AbortWq => (Self::AbortWq(WqSet::from_bits(operand)), 0xf_ffff),
            CommandCode::ResetWq => (Self::ResetWq(WqSet::from_bits(operand)), 0xf_ffff),
            CommandCode::DrainPasid => (Self::DrainPasid(operand), 0xf_ffff),
            CommandCode::AbortPasid => (Self::AbortPasid(operand), 0xf_ffff),
            CommandCode::RequestInterruptHandle => {
                (Self::RequestInterruptHandle(HandleOperand::from_bits(operand)), 0x1_ffff)
            }
            CommandCode::ReleaseInterruptHandle => {
                (Self::ReleaseInterruptHandle(HandleOperand::from_bits(operand)), 0x1_ffff)
            }
        };
        if cmd.reserved() != 0 || operand & !used != 0 {
            return Err(CommandError::Reserved);
        }
        Ok(command)
    }
}

/// Why a command failed (CMDSTATUS 7:0).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum CommandError {
    /// Unknown command, or one that this device does not have.
    Unsupported = 0x01,
    /// No such work queue.
    BadWq = 0x02,
    /// Hardware error.
    Hardware = 0x03,
    /// A reserved bit is set.
    Reserved = 0x04,
    /// The device is halted.
    Halted = 0x05,
    /// Enable Device: the device is not disabled.
    DeviceNotDisabled = 0x10,
    /// Enable Device: something else in the configuration.
    Configuration = 0x11,
    /// Enable Device: bus mastering is off.
    BusMasterOff = 0x12,
    /// Enable Device: the page request allocation is 0 or above the capacity.
    PageRequestAllocation = 0x13,
    /// Enable Device: the sizes of all queues exceed the total.
    TotalWqSize = 0x14,
    /// Enable Device: a group has queues without engines or engines without queues.
    GroupIncomplete = 0x15,
    /// Enable Device: a queue is in two groups, has a size and no group, or a group and no size.
    GroupWqs = 0x16,
    /// Enable Device: an engine is in two groups, or does not exist.
    GroupEngines = 0x17,
    /// Enable Device: the read buffer configuration.
    ReadBuffers = 0x18,
    /// Enable Device: the event log configuration.
    EventLog = 0x19,
    /// Enable Device: the ATS configuration.
    Ats = 0x1a,
    /// Enable Device: the PASID configuration.
    Pasid = 0x1b,
    /// Enable WQ: the device is not enabled.
    DeviceNotEnabled = 0x20,
    /// Enable WQ: the queue is not disabled.
    WqNotDisabled = 0x21,
    /// Enable WQ: the queue's size is 0.
    WqSizeZero = 0x22,
    /// Enable WQ: the queue's priority is 0.
    WqPriorityZero = 0x23,
    /// Enable WQ: the queue's mode is not supported.
    WqMode = 0x24,
    /// Enable WQ: block on fault, which is not supported or needs page requests.
    WqBlockOnFault = 0x25,
    /// Enable WQ: PASID enable (a shared queue without, or PASIDs are off in the function).
    WqPasidEnable = 0x26,
    /// Enable WQ: the maximum batch size.
    WqMaxBatch = 0x27,
    /// Enable WQ: the maximum transfer size.
    WqMaxTransfer = 0x28,
    /// Enable WQ: privileged, and privileged mode is off in the function.
    WqPrivilege = 0x2a,
    /// Enable WQ: the occupancy interrupt's handle or table.
    WqOccupancyInterrupt = 0x2b,
    /// Enable WQ: ATS disable is not supported.
    WqAtsDisable = 0x2c,
    /// Enable WQ: operations that the device does not have.
    WqOperations = 0x2d,
    /// Enable WQ: page request disable is not supported.
    WqPrsDisable = 0x2e,
    /// Disable Device: the device is not enabled.
    DisableNotEnabled = 0x31,
    /// Disable, Drain, Abort WQ: a queue is not enabled.
    WqNotEnabled = 0x32,
    /// Interrupt-handle commands: the index is out of range.
    BadInterruptIndex = 0x41,
    /// Request Interrupt Handle: no handle is free.
    NoInterruptHandle = 0x42,
}
