//! The host's stage 2 of a VM of the software host, and what changes it.

use alloc::sync::Arc;
use alloc::vec::Vec;

use mem::{Gpa, MemoryMap, Range};

use super::control::Control;
use super::SoftwareVm;
use crate::channel::Batch;
use crate::stage_two::{Editor, HostStageTwo, HostTables, Retired};
use crate::sync::{Mutex, MutexGuard};
use crate::{Fault, HostError, StageTwoConfig, StageTwoError, Ticket};

/// The host's stage 2 of one VM.
pub(crate) struct VmStageTwo {
    walker: Arc<HostStageTwo>,
    /// Held while the tables are changed, which takes as long as the change is large: no access,
    /// invalidation or poll waits for it.
    editor: Mutex<Editor>,
}

impl VmStageTwo {
    /// An empty one.
    pub(super) fn new(
        config: &StageTwoConfig,
        tables: &Arc<HostTables>,
    ) -> Result<Self, HostError> {
        let editor = Editor::new(HostStageTwo::new(config, tables)?);
        Ok(Self { walker: editor.stage_two().clone(), editor: Mutex::new(editor) })
    }

    /// What walks it.
    pub(crate) fn walker(&self) -> &Arc<HostStageTwo> {
        &self.walker
    }

    /// Keeps others from changing it, and changes it.
    pub(super) fn edit(&self) -> MutexGuard<'_, Editor> {
        self.editor.lock()
    }

    /// [`crate::Vm::set_memory`]: the tables are changed first, so that whoever adopts the map finds
    /// them so.
    pub(super) fn set_memory(&self, control: &Mutex<Control>, map: Arc<MemoryMap>) -> Ticket {
        let mut editor = self.edit();
        // Nobody closes the VM meanwhile: that takes the editor, too.
        let closed = {
            let control = control.lock();
            control.closed.then_some(Ticket(control.sequence))
        };
        if let Some(ticket) = closed {
            return ticket;
        }
        let retired = editor.set_memory(MemoryMap::clone(&map));
        let (ticket, _old) = {
            let mut control = control.lock();
            let old = core::mem::replace(&mut control.memory, map.clone());
            let (ticket, left) = control.post(
                |_| true,
                |batch| {
                    batch.forget_everything();
                    batch.adopt_memory(MemoryMap::clone(&map))
                },
            );
            control.retired.push_back((ticket, retired));
            (ticket, (old, left))
        };
        ticket
    }

    /// Makes a change, and has everything forgotten that was made of what was there before.
    fn change(
        &self,
        control: &Mutex<Control>,
        change: impl FnOnce(&mut Editor) -> Result<Retired, StageTwoError>,
    ) -> Result<Ticket, StageTwoError> {
        let mut editor = self.edit();
        let retired = change(&mut editor)?;
        let mut control = control.lock();
        let (ticket, _) = control.post(|_| true, Batch::forget_everything);
        control.retired.push_back((ticket, retired));
        Ok(ticket)
    }
}

impl SoftwareVm {
    /// Takes a range of guest physical addresses out of the host's stage 2, by whole pages,
    /// whatever memory is or will be there: accesses fault with the guest physical address. Once
    /// the ticket is complete, none goes there any more. The tables are changed at once.
    ///
    /// # Errors
    ///
    /// If the VM has no stage 2, is closed, or has too many ranges cleared.
    pub fn clear_stage_two(&self, range: Range<Gpa>) -> Result<Ticket, StageTwoError> {
        let stage_two = self.0.stage_two.as_ref().ok_or(StageTwoError::None)?;
        stage_two.change(&self.0.control, |editor| editor.clear(range))
    }

    /// Ends what [`clear_stage_two`](Self::clear_stage_two) did to a range.
    ///
    /// # Errors
    ///
    /// If the VM has no stage 2, is closed, or would have too many ranges cleared.
    pub fn restore_stage_two(&self, range: Range<Gpa>) -> Result<Ticket, StageTwoError> {
        let stage_two = self.0.stage_two.as_ref().ok_or(StageTwoError::None)?;
        stage_two.change(&self.0.control, |editor| editor.restore(range))
    }

    /// The latest faults of the host's stage 2, the oldest first: for the host, so also those that
    /// the guest's tables kept from being recorded. At most
    /// [`STAGE_TWO_LOG_LIMIT`](crate::STAGE_TWO_LOG_LIMIT).
    pub fn stage_two_faults(&self) -> Vec<Fault> {
        self.0.faults.of_host()
    }
}
