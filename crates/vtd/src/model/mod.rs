//! The device side: a remapping unit over an [`iommu::Vm`].
//!
//! A register access never waits and never walks a queue: it changes registers, tells the VM what
//! is to be forgotten, and leaves [`Effects`]. The queue is worked off by [`Model::poll`], a
//! bounded number of descriptors at a time. A wait descriptor is complete only when every
//! [`Ticket`] issued before it is, so after its status write no access uses an old translation.
//!
//! ```
//! use vtd::model::{Caps, Options};
//!
//! let caps = Caps::new(Options { first_stage_5_level: true, ..Options::default() }).unwrap();
//! assert!(caps.capability().first_stage_5_level());
//! assert!(Caps::new(Options { scalable_mode: false, ..Options::default() }).is_err());
//! ```

mod caps;
mod commands;
mod contexts;
mod counters;
mod effects;
mod event;
mod faults;
mod page_requests;
mod queue;
mod reading;
mod registers;
mod shadow;
mod timeout;
mod virtual_commands;

#[cfg(test)]
mod tests;

use iommu::{Fault, Ticket, Vm};
use pci::RequesterId;

pub use caps::{Caps, CapsError, Options, PasidTableMode, INVALIDATION_TIMEOUT};
pub use contexts::RootTable;
pub use counters::Counters;
pub use effects::{Effects, Message, Polled, Progress, Ticked};
pub use page_requests::{PAGE_REQUESTS_PER_POLL, PAGE_REQUESTS_PER_RESET};
pub use reading::{Reading, Turn};
pub use shadow::{BindingCounters, CHANGE_COST, ENTRIES_PER_POLL};

use crate::spec::{
    registers_in, ContextCommand, GlobalStatus, InvalidateAddress, IotlbInvalidate, Register,
    RootTableAddress,
};
use commands::Pending;
use event::{Event, Raised};
use faults::{fault_code, FaultLog, Recorded};
use page_requests::PageRequests;
use queue::Queue;
use reading::Lent;
use shadow::{Budget, Shadow, View};
use virtual_commands::VirtualCommands;

/// The most descriptors that one [`Model::poll`] works off.
pub const DESCRIPTORS_PER_POLL: u32 = 64;

/// The most faults that one [`Model::poll`] takes from the VM.
pub const FAULTS_PER_POLL: u32 = 64;

/// The most faults that [`Model::reset`] discards; later ones are recorded after the reset.
pub const FAULTS_PER_RESET: u32 = 4096;

/// A remapping unit: one owner, no locks, no threads.
#[derive(Debug)]
pub struct Model<V> {
    vm: V,
    caps: Caps,
    status: GlobalStatus,
    /// The register.
    root_address: RootTableAddress,
    /// What the last "set root table pointer" took from the register.
    root: RootTable,
    /// What TE was last written: [`GlobalStatus`] follows when the VM has.
    translation: bool,
    context_command: ContextCommand,
    invalidate_address: InvalidateAddress,
    iotlb_invalidate: IotlbInvalidate,
    pending: Pending,
    faults: FaultLog,
    fault_event: Event,
    queue: Queue,
    /// IWC.
    wait_complete: bool,
    completion_event: Event,
    page_requests: PageRequests,
    virtual_commands: VirtualCommands,
    /// With PASID tables that the host owns.
    shadow: Option<Shadow<V>>,
    /// While that is on loan.
    lent: Option<Lent>,
    counters: Counters,
}

impl<V: Vm> Model<V> {
    /// A unit as after reset, with translation off.
    pub fn new(caps: Caps, vm: V) -> Self {
        let asks_for_pasids = caps.options().virtual_commands.is_some();
        let asks_for_pages = caps.host_owned() && caps.options().page_requests;
        // A host without such queues answers page requests itself.
        let faults = if asks_for_pages { vm.alloc_fault_queue().ok() } else { None };
        Self {
            shadow: caps.host_owned().then(|| Shadow::new(vm.clone(), asks_for_pasids, faults)),
            lent: None,
            vm,
            caps,
            status: GlobalStatus::new(),
            root_address: RootTableAddress::new(),
            root: RootTable::new(RootTableAddress::new(), caps),
            translation: false,
            context_command: ContextCommand::new(),
            invalidate_address: InvalidateAddress::new(),
            iotlb_invalidate: IotlbInvalidate::new(),
            pending: Pending::default(),
            faults: FaultLog::new(),
            fault_event: Event::new(),
            queue: Queue::new(),
            wait_complete: false,
            completion_event: Event::new(),
            page_requests: PageRequests::new(faults),
            virtual_commands: VirtualCommands::default(),
            counters: Counters::default(),
        }
    }

    /// What the unit offers.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Counts since creation; a reset does not clear them.
    pub fn counters(&self) -> Counters {
        let lent = self.lent.as_ref().map(|lent| lent.counters);
        let bindings = self.shadow.as_ref().map(Shadow::counters).or(lent).unwrap_or_default();
        Counters { bindings, ..self.counters }
    }

    /// Takes notice of a device of the VM, which was attached just now and did nothing yet: where
    /// the host owns the PASID tables, the unit has to bind what the guest's tables say of it. A
    /// device that it was not told of is blocked while translation is on.
    pub fn add_device(&mut self, requester: RequesterId) -> Effects {
        if let Some(shadow) = &mut self.shadow {
            shadow.add_device(requester, self.translation);
        } else if let Some(lent) = &mut self.lent {
            lent.added.push(requester);
        }
        Effects { schedule: self.is_reading(), ..Effects::default() }
    }

    /// Whether tables of the guest's are being read: the queue waits for that.
    fn is_reading(&self) -> bool {
        self.lent.is_some() || self.shadow.as_ref().is_some_and(Shadow::is_busy)
    }

    /// Goes on reading the guest's tables.
    fn read_tables(&mut self, budget: &mut Budget) {
        if let Some(shadow) = self.shadow.as_mut().filter(|shadow| shadow.is_busy()) {
            let memory = self.vm.memory();
            let root = self.translation.then_some(self.root);
            shadow.run(View { memory: &*memory, root }, budget);
        }
    }

    /// Reads `data.len()` bytes at `offset` of the register page: 1, 2, 4 or 8, at any offset.
    ///
    /// Each byte is that of the register it belongs to; reserved bytes are zero. Any other length
    /// reads zero and is counted.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !self.is_access(data.len()) {
            return;
        }
        for register in self.registers_in(offset, data.len()) {
            let value = self.load(register.id).to_le_bytes();
            let bytes = value.iter().take(register.width.bytes().into());
            for (at, byte) in (u64::from(register.offset)..).zip(bytes) {
                let index = at.checked_sub(offset).and_then(|index| usize::try_from(index).ok());
                if let Some(out) = index.and_then(|index| data.get_mut(index)) {
                    *out = *byte;
                }
            }
        }
    }

    /// Writes `data` at `offset` of the register page: 1, 2, 4 or 8 bytes, at any offset.
    ///
    /// Each register sees at most one write, of those of its bytes that are written, by rising
    /// offset. A command in the top byte of a register is given when that byte is written. Any
    /// other length writes nothing and is counted.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effects {
        let mut effects = Effects::default();
        if !self.is_access(data.len()) {
            return effects;
        }
        for register in self.registers_in(offset, data.len()) {
            let write = registers::Write::of(register, offset, data);
            self.store(register, write, &mut effects);
        }
        self.counters.virtual_commands_refused += u64::from(self.lacks_command(offset, data.len()));
        self.settle();
        effects.schedule |= self.pending.is_any();
        effects
    }

    fn registers_in(&self, offset: u64, len: usize) -> impl Iterator<Item = &'static Register> {
        let Options { virtual_commands, page_requests, .. } = *self.caps.options();
        registers_in(virtual_commands, offset, len)
            .filter(move |register| page_requests || !register.id.is_of_page_requests())
    }

    fn is_access(&mut self, len: usize) -> bool {
        let valid = matches!(len, 1 | 2 | 4 | 8);
        self.counters.bad_accesses += u64::from(!valid);
        valid
    }

    /// Works on: records faults, takes page requests, completes commands, carries out a virtual one, and takes up to
    /// `budget` descriptors from the queue (at least one, at most [`DESCRIPTORS_PER_POLL`]). Where
    /// the host owns the PASID tables, it also reads some [`ENTRIES_PER_POLL`] entries of the
    /// guest's, if the guest said that they changed.
    pub fn poll(&mut self, budget: u32) -> Polled {
        let mut effects = Effects::default();
        let mut turn = Turn { descriptors: budget.clamp(1, DESCRIPTORS_PER_POLL), ..Turn::new() };
        let more_faults = self.take_faults(&mut turn.faults, &mut effects);
        let more_requests = self.take_page_requests(&mut turn, &mut effects);
        self.read_tables(&mut turn.entries);
        self.settle();
        self.run_virtual_command();
        let queue = self.drain_queue(&mut turn, false, &mut effects);
        Polled { progress: self.progress(queue, more_faults || more_requests), effects }
    }

    /// Takes the VM's faults into the fault recording registers; whether there may be more.
    fn take_faults(&mut self, budget: &mut u32, effects: &mut Effects) -> bool {
        if self.lent.is_some() {
            return false; // what is lent says what a fault is to the guest
        }
        while let Some(left) = budget.checked_sub(1) {
            *budget = left;
            let Some(fault) = self.vm.take_fault() else { return false };
            let fault = self.as_the_guest_sees(fault);
            let code = fault.and_then(|fault| fault_code(self.root.mode(), &fault));
            let (Some(fault), Some(code)) = (fault, code) else {
                self.counters.faults_not_recorded += 1;
                continue;
            };
            let quiet = !self.has_fault_status();
            match self.faults.record(&fault, code) {
                Recorded::Recorded => {
                    self.counters.faults_recorded += 1;
                    if quiet {
                        self.raise_fault_event(Some(fault.requester), effects);
                    }
                }
                Recorded::Lost => self.counters.faults_lost += 1,
            }
        }
        true
    }

    /// A fault of the host as the guest is to see it; `None` if it is not to be recorded.
    fn as_the_guest_sees(&self, fault: Fault) -> Option<Fault> {
        let Some(shadow) = &self.shadow else { return Some(fault) };
        let memory = self.vm.memory();
        let root = self.translation.then_some(self.root);
        shadow.as_the_guest_sees(fault, View { memory: &*memory, root })
    }

    /// Whether a condition of the fault event is unserviced (FSTS: PPF, PFO, IQE, ITE).
    fn has_fault_status(&self) -> bool {
        let queue = self.queue.error().is_some() || self.queue.timed_out().is_some();
        self.faults.pending() || self.faults.overflow() || queue
    }

    fn raise_fault_event(&mut self, requester: Option<RequesterId>, effects: &mut Effects) {
        let raised = self.fault_event.raise();
        let message = self.sent(raised).map(|message| Message { requester, ..message });
        effects.fault = message.or(effects.fault);
    }

    fn raise_completion_event(&mut self, effects: &mut Effects) {
        let raised = self.completion_event.raise();
        effects.completion = self.sent(raised).or(effects.completion);
    }

    fn sent(&mut self, raised: Raised) -> Option<Message> {
        match raised {
            Raised::Send(message) => {
                self.counters.messages += 1;
                Some(message)
            }
            Raised::Held => None,
            Raised::Dropped => {
                self.counters.messages_dropped += 1;
                None
            }
        }
    }

    /// Everything as after power-on: translation off, nothing cached, nothing pending, a virtual
    /// command that is in progress dropped, every page request that is unanswered answered Invalid,
    /// every PASID that the guest was granted taken back, and no answer of a device waited for.
    ///
    /// Until the ticket is complete, accesses that began before may still use old translations.
    pub fn reset(&mut self) -> Ticket {
        self.discard_page_requests();
        let Self {
            vm,
            caps,
            status,
            root_address,
            root,
            translation,
            context_command,
            invalidate_address,
            iotlb_invalidate,
            pending,
            faults,
            fault_event,
            queue,
            wait_complete,
            completion_event,
            page_requests,
            virtual_commands,
            shadow,
            lent,
            counters: _, // they are the host's, not the guest's
        } = self;
        vm.set_contexts(None);
        *status = GlobalStatus::new();
        *root_address = RootTableAddress::new();
        *root = RootTable::new(RootTableAddress::new(), *caps);
        *translation = false;
        *context_command = ContextCommand::new();
        *invalidate_address = InvalidateAddress::new();
        *iotlb_invalidate = IotlbInvalidate::new();
        *pending = Pending::default();
        *faults = FaultLog::new();
        *fault_event = Event::new();
        *queue = Queue::new();
        *wait_complete = false;
        *completion_event = Event::new();
        page_requests.reset();
        *virtual_commands = VirtualCommands::default();
        for _ in 0..FAULTS_PER_RESET {
            if vm.take_fault().is_none() {
                break;
            }
        }
        let ticket = if let Some(lent) = lent {
            lent.reset = true;
            lent.read_all = false;
            vm.release_pasids()
        } else if let Some(shadow) = shadow {
            shadow.reset();
            // Whoever numbers its PASIDs: those that were bound were granted.
            vm.release_pasids()
        } else {
            let forgotten = self.forget_everything();
            match self.caps.options().virtual_commands {
                None => forgotten, // nothing was granted through this unit
                Some(_) => self.vm.release_pasids(),
            }
        };
        self.vm.give_up_answers(ticket);
        ticket
    }
}
