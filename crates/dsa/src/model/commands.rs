//! Device commands: they start with a write to CMD and end, at once or when the work that they wait
//! for is over, with CMDSTATUS and an interrupt. Nothing waits inside a register access.

use iommu::Pasid;

use super::effects::Effects;
use super::queue::{Scope, Sequence, WorkQueue};
use super::sabotage::{self, Sabotage};
use super::state::State;
use crate::spec::{
    Cmd, CmdStatus, Command, CommandError, DeviceState, HandleOperand, IntCause, SwError,
    SwErrorHead, WqSet, WqState,
};

/// A command that waits for work in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pending {
    /// What it waits for.
    scope: Scope,
    /// … of what was submitted up to here.
    barrier: Sequence,
    then: Then,
    interrupt: bool,
}

/// What a command does when everything that it waited for is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Nothing,
    DisableDevice,
    ResetDevice,
    /// By bit.
    DisableWqs(u32),
    /// By bit.
    ResetWqs(u32),
}

/// How a command goes on after its checks.
enum Start {
    /// It is done, with this result.
    Done(u16),
    /// It waits for this, then does that.
    Wait(Scope, Then),
}

impl State {
    /// A write to CMD.
    pub(super) fn command(&mut self, cmd: Cmd, fx: &mut Effects) {
        if self.cmdstatus.active() {
            let head = SwErrorHead::new().with_code(SwError::COMMAND_ACTIVE);
            return self.software_error(SwError { head, ..SwError::default() }, fx);
        }
        let start = Command::decode(cmd).and_then(|command| self.start(command, fx));
        match start {
            Ok(Start::Done(result)) => self.complete_command(Ok(result), cmd.interrupt(), fx),
            Err(error) => self.complete_command(Err(error), cmd.interrupt(), fx),
            Ok(Start::Wait(scope, then)) => {
                self.cmdstatus = CmdStatus::new().with_active(true);
                let barrier = self.sequence;
                self.pending = Some(Pending { scope, barrier, then, interrupt: cmd.interrupt() });
                self.progress(fx);
            }
        }
    }

    /// Completes the pending command if what it waits for is over.
    pub(super) fn progress(&mut self, fx: &mut Effects) {
        let Some(pending) = self.pending else { return };
        if self.is_outstanding(pending.scope, pending.barrier) {
            return;
        }
        self.pending = None;
        match pending.then {
            Then::Nothing => {}
            Then::DisableDevice => self.disable_device(),
            Then::ResetDevice => {
                self.disable_device();
                self.clear_configuration();
            }
            Then::DisableWqs(set) => self.each_wq(set, |wq| wq.set_state(WqState::Disabled)),
            Then::ResetWqs(set) => self.each_wq(set, |wq| wq.clear_config()),
        }
        self.complete_command(Ok(0), pending.interrupt, fx);
    }

    /// The device stops under a pending command.
    pub(super) fn fail_pending(&mut self, fx: &mut Effects) {
        if let Some(pending) = self.pending.take() {
            self.complete_command(Err(CommandError::Halted), pending.interrupt, fx);
        }
    }

    fn complete_command(
        &mut self,
        result: Result<u16, CommandError>,
        interrupt: bool,
        fx: &mut Effects,
    ) {
        self.tally.commands.add(1);
        self.cmdstatus = match result {
            Ok(result) => CmdStatus::new().with_result(result),
            Err(error) => {
                self.tally.command_errors.add(1);
                CmdStatus::new().with_error(error as u8)
            }
        };
        if interrupt {
            self.cause(IntCause::new().with_command(true), fx);
        }
    }

    /// Checks a command and does the part of it that comes before any waiting.
    fn start(&mut self, command: Command, fx: &mut Effects) -> Result<Start, CommandError> {
        if self.device == DeviceState::Halted {
            return self.start_halted(command);
        }
        match command {
            Command::EnableDevice => {
                self.check_enable_device()?;
                self.device = DeviceState::Enabled;
                Ok(Start::Done(0))
            }
            Command::DisableDevice => {
                if self.device != DeviceState::Enabled {
                    return Err(CommandError::DisableNotEnabled);
                }
                self.stop_intake();
                Ok(Start::Wait(Scope::All, Then::DisableDevice))
            }
            Command::DrainAll => Ok(Start::Wait(Scope::All, Then::Nothing)),
            Command::AbortAll => Ok(self.abort(Scope::All, Then::Nothing, fx)),
            Command::ResetDevice => {
                self.stop_intake();
                Ok(self.abort(Scope::All, Then::ResetDevice, fx))
            }
            Command::EnableWq(index) => {
                let wq = self.check_enable_wq(index)?;
                wq.set_state(WqState::Enabled);
                Ok(Start::Done(0))
            }
            Command::DisableWq(set) => {
                let set = self.enabled_wqs(set)?;
                self.each_wq(set, |wq| wq.set_state(WqState::Disabling));
                Ok(Start::Wait(Scope::Wqs(set), Then::DisableWqs(set)))
            }
            Command::DrainWq(set) => {
                Ok(Start::Wait(Scope::Wqs(self.enabled_wqs(set)?), Then::Nothing))
            }
            Command::AbortWq(set) => {
                let set = self.enabled_wqs(set)?;
                Ok(self.abort(Scope::Wqs(set), Then::Nothing, fx))
            }
            Command::ResetWq(set) => {
                let set = self.wq_bits(set)?;
                self.each_wq(set, |wq| {
                    if wq.state() == WqState::Enabled {
                        wq.set_state(WqState::Disabling);
                    }
                });
                Ok(self.abort(Scope::Wqs(set), Then::ResetWqs(set), fx))
            }
            Command::DrainPasid(pasid) => {
                Ok(Start::Wait(Scope::Pasid(Pasid::from_field(pasid)), Then::Nothing))
            }
            Command::AbortPasid(pasid) => {
                let pasid = Pasid::from_field(pasid);
                let start = self.abort(Scope::Pasid(pasid), Then::Nothing, fx);
                self.stop_pasid(pasid);
                Ok(start)
            }
            Command::RequestInterruptHandle(operand) | Command::ReleaseInterruptHandle(operand) => {
                self.interrupt_handle(operand)
            }
        }
    }

    /// Only a function-level reset helps a halted device: Reset Device clears its configuration,
    /// but leaves it halted and says so.
    fn start_halted(&mut self, command: Command) -> Result<Start, CommandError> {
        if command == Command::ResetDevice {
            self.clear_configuration();
        }
        Err(CommandError::Halted)
    }

    /// Abandons what there is in `scope`; then waits until it is over.
    fn abort(&mut self, scope: Scope, then: Then, fx: &mut Effects) -> Start {
        self.cancel(scope, fx);
        let scope = if sabotage::is(Sabotage::HastyAbort) { Scope::Wqs(0) } else { scope };
        Start::Wait(scope, then)
    }

    /// Takes no more descriptors.
    fn stop_intake(&mut self) {
        self.device = DeviceState::Disabling;
        for wq in &mut self.wqs {
            if wq.state() == WqState::Enabled {
                wq.set_state(WqState::Disabling);
            }
        }
    }

    fn disable_device(&mut self) {
        self.device = DeviceState::Disabled;
        for wq in &mut self.wqs {
            wq.set_state(WqState::Disabled);
        }
    }

    /// Handles are the indices of the MSI-X table; there is nothing to give out.
    fn interrupt_handle(&self, operand: HandleOperand) -> Result<Start, CommandError> {
        if !self.caps.config().interrupt_handles {
            return Err(CommandError::Unsupported);
        }
        if operand.ims() || operand.index() >= self.caps.vectors() {
            return Err(CommandError::BadInterruptIndex);
        }
        Ok(Start::Done(operand.index()))
    }

    /// The queues of an operand by bit, if they exist.
    fn wq_bits(&self, set: WqSet) -> Result<u32, CommandError> {
        const { assert!(super::caps::MAX_QUEUES <= 16, "base is 0 for every queue") };
        let bits = u32::from(set.bitmap());
        let known = (1 << self.wqs.len()) - 1;
        if bits & !known != 0 || (bits != 0 && set.base() != 0) {
            return Err(CommandError::BadWq);
        }
        Ok(bits)
    }

    /// The queues of an operand by bit, if all of them are enabled.
    fn enabled_wqs(&self, set: WqSet) -> Result<u32, CommandError> {
        let bits = self.wq_bits(set)?;
        let enabled = |wq: usize| {
            bits >> wq & 1 == 0 || self.wqs.get(wq).is_some_and(|q| q.state() == WqState::Enabled)
        };
        match (0..self.wqs.len()).all(enabled) {
            true => Ok(bits),
            false => Err(CommandError::WqNotEnabled),
        }
    }

    fn each_wq(&mut self, set: u32, mut f: impl FnMut(&mut WorkQueue)) {
        for (index, wq) in self.wqs.iter_mut().enumerate() {
            if set >> index & 1 != 0 {
                f(wq);
            }
        }
    }
}
