//! Allocating and freeing PASIDs by virtual commands.

use iommu::{Pasid, PasidRange};

use super::{Clock, Registers};
use crate::spec::{
    Capability, ExtendedCapability, VcmdLayout, VirtualCommand, VirtualCommandCapability,
    VirtualOpcode, VirtualResponse, VirtualStatus, CAPABILITY_OFFSET, EXTENDED_CAPABILITY_OFFSET,
    VERSION_OFFSET,
};

/// How long a command may take unless [`VirtualCommands::with_timeout`] says otherwise: what
/// Linux waits before it gives up on a unit.
pub const COMMAND_TIMEOUT_NS: u64 = 10_000_000_000;

/// What a register reads as where there is no device (any more).
const ALL_ONES: u64 = u64::MAX;

/// Which layout the registers have. Nothing in a unit says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayoutChoice {
    /// This one.
    Known(VcmdLayout),
    /// Whichever capability register says that PASIDs can be allocated, the newer one first. A
    /// unit of the older layout has no register where the newer one has that; the other way
    /// round there is one, so that the newer one has to be looked for first.
    Detect,
}

/// Why a unit cannot be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no unit: its version, capabilities or virtual command capabilities read as all
    /// ones, or it has no version.
    #[error("there is no remapping unit")]
    Absent,
}

/// Why a command did not come to an end that it can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// The command was not given: an earlier one is in progress for too long.
    #[error("an earlier virtual command is still in progress after {timeout_ns} ns")]
    Busy {
        /// How long it was waited for.
        timeout_ns: u64,
    },
    /// The command was given and is in progress for too long. It may be carried out yet: what an
    /// allocation gets goes back to the host before the next command; whether a free was done
    /// nobody can tell. The command can be that giving back.
    #[error("virtual command {command:?} is still in progress after {timeout_ns} ns")]
    Timeout {
        /// The command.
        command: VirtualOpcode,
        /// How long it was waited for.
        timeout_ns: u64,
    },
    /// The response register reads as all ones: the unit is gone.
    #[error("the remapping unit is gone")]
    Absent,
    /// The unit does not know a command that it offers.
    #[error("the unit offers virtual command {0:?} and does not know it")]
    Undefined(VirtualOpcode),
    /// A status that this command cannot have.
    #[error("virtual command {command:?} ended with the unknown status code {code}")]
    UnknownStatus {
        /// The command.
        command: VirtualOpcode,
        /// The code.
        code: u8,
    },
}

/// Why there is no PASID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocError {
    /// The host has none for this guest, or the wanted range holds none that may be handed out.
    #[error("no PASID is available")]
    NoneAvailable,
    /// The unit's fault: the number has more than 20 bits. It cannot be given back, since no
    /// command can name it.
    #[error("the unit gave {0:#x}, which is no PASID")]
    TooWide(u64),
    /// The number is zero or not in the wanted range, which the command cannot tell the host.
    #[error("the unit gave PASID {got}, which is not in {wanted}")]
    OutOfRange {
        /// The number.
        got: Pasid,
        /// What would have been taken.
        wanted: PasidRange,
        /// Whether the host took it back.
        given_back: bool,
    },
    /// The command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Why a PASID is not free again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FreeError {
    /// The host says that it is not this guest's.
    #[error("PASID {0} is not granted to this guest")]
    InvalidPasid(Pasid),
    /// The command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// The virtual commands of one unit.
///
/// One command at a time: calls need `&mut`, so several callers share it behind a lock, as
/// [`SharedVirtualCommands`](super::SharedVirtualCommands) or of their own.
/// A call waits for up to five timeouts if the unit is that slow: for an earlier command, for one
/// that gives back what an abandoned command got, for its own, and as much again to give back a
/// PASID that it cannot take. In between it calls [`Clock::pause`].
///
/// It keeps no record of what it allocated. Whoever does (an ID space that takes its numbers from
/// here) has to look whether a number that comes back is in use already: a unit that repeats
/// itself is wrong, and to give such a number back would free it under its user. For the same
/// reason, whoever wants numbers of several ranges asks for [`PasidRange::ALL`] and looks at the
/// range after that, as [`SharedVirtualCommands`](super::SharedVirtualCommands) has it.
///
/// ```
/// use core::cell::{Cell, RefCell};
/// use iommu::{Host, PasidRange, SoftwareHost, SoftwareVm, VmConfig};
/// use vtd::driver::{AllocError, Clock, LayoutChoice, Registers, VirtualCommands};
/// use vtd::model::{Caps, Model, Options};
/// use vtd::spec::VcmdLayout;
///
/// // The other end in the same process: a unit, on a host that grants this guest one PASID.
/// struct Unit(RefCell<Model<SoftwareVm>>, Cell<u64>);
///
/// impl Registers for Unit {
///     fn read32(&self, offset: u16) -> u32 {
///         let mut data = [0; 4];
///         self.0.borrow_mut().read(offset.into(), &mut data);
///         u32::from_le_bytes(data)
///     }
///     fn write32(&self, offset: u16, value: u32) {
///         let _ = self.0.borrow_mut().write(offset.into(), &value.to_le_bytes());
///     }
/// }
///
/// impl Clock for Unit {
///     fn now_ns(&self) -> u64 {
///         self.1.replace(self.1.get() + 1000)
///     }
///     fn pause(&self) {
///         let _ = self.0.borrow_mut().poll(1);
///     }
/// }
///
/// let host = SoftwareHost::new();
/// let vm = host.create_vm(VmConfig { quota: 1, ..VmConfig::named("guest") }).unwrap();
/// let virtual_commands = Some(VcmdLayout::Revision33);
/// let caps = Caps::new(Options { virtual_commands, ..Options::default() }).unwrap();
/// let unit = Unit(RefCell::new(Model::new(caps, vm)), Cell::new(0));
///
/// let mut commands =
///     VirtualCommands::probe(&unit, &unit, LayoutChoice::Detect).unwrap().expect("offered");
/// assert_eq!(commands.layout(), VcmdLayout::Revision33);
/// let pasid = commands.alloc(PasidRange::ALL).unwrap();
/// assert_eq!(commands.alloc(PasidRange::ALL), Err(AllocError::NoneAvailable));
/// commands.free(pasid).unwrap();
/// assert!(commands.alloc(PasidRange::ALL).is_ok());
/// ```
#[derive(Debug)]
pub struct VirtualCommands<R, C> {
    registers: R,
    clock: C,
    layout: VcmdLayout,
    timeout_ns: u64,
    /// An allocation that was not waited for to its end: its PASID is nobody's.
    abandoned: bool,
}

impl<R: Registers, C: Clock> VirtualCommands<R, C> {
    /// Looks whether a unit offers to allocate PASIDs: it emulates (CM), has scalable mode (SMTS)
    /// and virtual commands (VCS), and PASID allocation is among them (PAS). `None` if it does not.
    ///
    /// # Errors
    ///
    /// There is no unit.
    pub fn probe(registers: R, clock: C, choice: LayoutChoice) -> Result<Option<Self>, ProbeError> {
        let version = registers.read32(VERSION_OFFSET);
        if version == 0 || version == u32::MAX {
            return Err(ProbeError::Absent);
        }
        let read = |offset| match registers.read64(offset) {
            ALL_ONES => Err(ProbeError::Absent),
            value => Ok(value),
        };
        let capability = Capability::from_bits(read(CAPABILITY_OFFSET)?);
        let extended = ExtendedCapability::from_bits(read(EXTENDED_CAPABILITY_OFFSET)?);
        let emulated = capability.caching_mode();
        if !(emulated && extended.scalable_mode() && extended.virtual_commands()) {
            return Ok(None);
        }
        let candidates: &[VcmdLayout] = match &choice {
            LayoutChoice::Known(layout) => core::slice::from_ref(layout),
            LayoutChoice::Detect => &[VcmdLayout::Revision33, VcmdLayout::Revision30],
        };
        for layout in candidates {
            let offer = VirtualCommandCapability::from_bits(read(layout.capability_offset())?);
            if offer.pasid() {
                return Ok(Some(Self::new(registers, clock, *layout)));
            }
        }
        Ok(None)
    }

    fn new(registers: R, clock: C, layout: VcmdLayout) -> Self {
        Self { registers, clock, layout, timeout_ns: COMMAND_TIMEOUT_NS, abandoned: false }
    }

    /// The same with another timeout for each command, in nanoseconds.
    #[must_use]
    pub fn with_timeout(self, timeout_ns: u64) -> Self {
        Self { timeout_ns, ..self }
    }

    /// The layout that its registers have.
    pub fn layout(&self) -> VcmdLayout {
        self.layout
    }

    /// Asks the host for a PASID and takes it if it is in `range`, and not zero.
    ///
    /// # Errors
    ///
    /// See [`AllocError`]; the guest has no PASID more than before, unless the host refused to
    /// take back one that it should not have given.
    pub fn alloc(&mut self, range: PasidRange) -> Result<Pasid, AllocError> {
        let wanted = range.intersection(&PasidRange::ALL).ok_or(AllocError::NoneAvailable)?;
        let (status, result) = self.run(VirtualCommand::AllocatePasid)?;
        if status != VirtualStatus::Success {
            return Err(AllocError::NoneAvailable);
        }
        let got = pasid(result).ok_or(AllocError::TooWide(result))?;
        if !wanted.contains(got) {
            let given_back = self.free(got).is_ok();
            return Err(AllocError::OutOfRange { got, wanted, given_back });
        }
        Ok(got)
    }

    /// Gives a PASID back to the host. The caller has seen to it that no table and no device of
    /// the guest names it any more.
    ///
    /// # Errors
    ///
    /// See [`FreeError`]; after [`CommandError::Timeout`] the PASID may or may not be free.
    pub fn free(&mut self, pasid: Pasid) -> Result<(), FreeError> {
        match self.run(VirtualCommand::FreePasid(pasid))? {
            (VirtualStatus::Success, _) => Ok(()),
            _ => Err(FreeError::InvalidPasid(pasid)),
        }
    }

    /// Carries out a command once every earlier one is over.
    fn run(&mut self, command: VirtualCommand) -> Result<(VirtualStatus, u64), CommandError> {
        let earlier = self.wait()?.ok_or(CommandError::Busy { timeout_ns: self.timeout_ns })?;
        if core::mem::take(&mut self.abandoned) {
            if let Some(nobodys) = self.granted(earlier) {
                // A host that does not take it back has its reasons; nobody here can use it.
                let _ = self.give(VirtualCommand::FreePasid(nobodys))?;
            }
        }
        let response = self.give(command)?;
        let opcode = command.opcode();
        let status = self.layout.status(response.status, opcode);
        match status
            .ok_or(CommandError::UnknownStatus { command: opcode, code: response.status })?
        {
            VirtualStatus::UndefinedCommand => Err(CommandError::Undefined(opcode)),
            status => Ok((status, response.result)),
        }
    }

    /// The PASID that an allocation's response grants.
    fn granted(&self, response: VirtualResponse) -> Option<Pasid> {
        let status = self.layout.status(response.status, VirtualOpcode::AllocatePasid);
        let granted = pasid(response.result).filter(|_| status == Some(VirtualStatus::Success));
        // A unit that was reset meanwhile says "success, PASID 0".
        granted.filter(|pasid| PasidRange::ALL.contains(*pasid))
    }

    /// Writes a command, none being in progress, and waits until it is over.
    fn give(&mut self, command: VirtualCommand) -> Result<VirtualResponse, CommandError> {
        self.registers.write64(self.layout.command_offset(), self.layout.encode_command(command));
        if let Some(response) = self.wait()? {
            return Ok(response);
        }
        self.abandoned = command == VirtualCommand::AllocatePasid;
        Err(CommandError::Timeout { command: command.opcode(), timeout_ns: self.timeout_ns })
    }

    /// The response register once nothing is in progress; `None` if something is for too long.
    fn wait(&self) -> Result<Option<VirtualResponse>, CommandError> {
        let start = self.clock.now_ns();
        loop {
            // Before the read: a caller that is held up in between still sees what has arrived.
            let late = self.clock.now_ns().saturating_sub(start) >= self.timeout_ns;
            let bits = self.registers.read64(self.layout.response_offset());
            if bits == ALL_ONES {
                return Err(CommandError::Absent);
            }
            let response = self.layout.decode_response(bits);
            if !response.in_progress {
                return Ok(Some(response));
            }
            if late {
                return Ok(None);
            }
            self.clock.pause();
        }
    }
}

/// The PASID in a result; `None` if it has more bits.
fn pasid(result: u64) -> Option<Pasid> {
    u32::try_from(result).ok().and_then(Pasid::new)
}
