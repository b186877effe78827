//! One VM, assembled.

use core::fmt;
use std::sync::{Arc, Mutex};

use iommu::{Ticket, Vm};
use mem::{Claim, ClaimError, Claims, Gpa, Range, ReporterId};
use pci::RequesterId;
use vtd::model::{Caps, Counters, Model, Progress, DESCRIPTORS_PER_POLL};

use crate::shared::{lock, MessageSink, Unit, Waker};
use crate::{BaseMismatch, Dmar, DmarError, IommuFunction};

/// What a machine is made with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineConfig {
    /// What the unit offers.
    pub caps: Caps,
    /// Where the guest will find the unit's registers: where its firmware puts BAR 0 of the
    /// [`IommuFunction`].
    pub register_base: Gpa,
    /// The devices behind the unit.
    pub devices: Vec<RequesterId>,
}

/// Why a machine cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration cannot be said in a DMAR table.
    #[error(transparent)]
    Dmar(#[from] DmarError),
    /// The function that carries the registers cannot be laid out.
    #[error(transparent)]
    Function(#[from] pci::LayoutError),
}

/// Why a function's report of memory was not taken; nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// It contradicts what the function reported before, or is not possible.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The VM is closed.
    #[error("the VM is closed")]
    Closed,
}

/// When [`Machine::poll`] wants to be called again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// At once: the budget is used up.
    Now,
    /// In some microseconds: accesses are in flight that something waits for.
    Soon,
    /// When the waker is called.
    WhenWoken,
}

/// One VM: its handle, its unit, its memory map. Clones are the same machine.
pub struct Machine<V> {
    shared: Arc<Shared<V>>,
}

struct Shared<V> {
    vm: V,
    config: MachineConfig,
    unit: Arc<Unit<V>>,
    function: Arc<IommuFunction<V>>,
    memory: Mutex<Memory>,
}

/// The reports of all functions. The lock is held while the map made of them is handed on, so
/// that an older map never replaces a newer one.
#[derive(Default)]
struct Memory {
    claims: Claims,
    members: u32,
    closed: bool,
}

impl<V: Vm> Machine<V> {
    /// Assembles a VM.
    ///
    /// `sink` sends interrupt messages, `waker` is called when [`poll`](Self::poll) has something
    /// to do, and `report` hears when the guest puts the registers where its DMAR table does not
    /// say.
    ///
    /// # Errors
    ///
    /// If the configuration cannot be said in a DMAR table.
    pub fn new(
        vm: V,
        config: MachineConfig,
        sink: Arc<dyn MessageSink>,
        waker: Waker,
        report: impl Fn(BaseMismatch) + Send + Sync + 'static,
    ) -> Result<Self, MachineError> {
        dmar(&config).to_bytes()?;
        vm.set_fault_waker(Some(waker.clone()));
        let unit = Arc::new(Unit::new(Model::new(config.caps, vm.clone()), sink, waker));
        let base = config.register_base;
        let function = Arc::new(IommuFunction::new(unit.clone(), base, Box::new(report))?);
        let memory = Mutex::new(Memory::default());
        Ok(Self { shared: Arc::new(Shared { vm, config, unit, function, memory }) })
    }

    /// The VM.
    pub fn vm(&self) -> &V {
        &self.shared.vm
    }

    /// What the machine was made with.
    pub fn config(&self) -> &MachineConfig {
        &self.shared.config
    }

    /// The function that carries the unit's registers.
    pub fn iommu_function(&self) -> Arc<IommuFunction<V>> {
        self.shared.function.clone()
    }

    /// The ACPI DMAR table for the guest.
    ///
    /// # Errors
    ///
    /// None in a machine that could be made.
    pub fn dmar(&self) -> Result<Vec<u8>, DmarError> {
        dmar(&self.shared.config).to_bytes()
    }

    /// Counts of the unit.
    pub fn counters(&self) -> Counters {
        self.shared.unit.counters()
    }

    /// How many reports of memory contradicted another function's.
    pub fn contradictions(&self) -> u64 {
        lock(&self.shared.memory).claims.contradictions()
    }

    /// Takes faults and works off the queue, a bounded amount of each; says when to be called
    /// again. Never blocks.
    pub fn poll(&self) -> Next {
        match self.shared.unit.poll(DESCRIPTORS_PER_POLL).progress {
            Progress::More => Next::Now,
            Progress::Waiting(_) => Next::Soon,
            Progress::Idle => Next::WhenWoken,
        }
    }

    /// A function joins the VM: what it reports of the VM's memory goes into the one map.
    pub fn join(&self) -> Member<V> {
        let mut memory = lock(&self.shared.memory);
        // Wrapping round takes four billion connections of one VM.
        memory.members = memory.members.wrapping_add(1);
        Member { machine: self.clone(), reporter: ReporterId(memory.members) }
    }

    /// Whether everything up to `ticket` is over; never blocks.
    pub fn is_complete(&self, ticket: Ticket) -> bool {
        self.shared.vm.is_complete(ticket)
    }

    /// Ends the VM: devices are detached, memory is given back, and nothing more is mapped. Once
    /// the ticket is complete, none of its memory is in use. Idempotent.
    pub fn close(&self) -> Ticket {
        let mut memory = lock(&self.shared.memory);
        memory.closed = true;
        memory.claims = Claims::new();
        self.shared.vm.set_fault_waker(None);
        self.shared.vm.close()
    }
}

fn dmar(config: &MachineConfig) -> Dmar {
    Dmar {
        host_address_bits: config.caps.options().address_bits,
        register_base: config.register_base,
        devices: config.devices.clone(),
    }
}

impl<V> Clone for Machine<V> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<V> fmt::Debug for Machine<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// A function's place in the VM. Dropping it withdraws what the function reported; a reset of the
/// function does not, since the guest's memory outlives it.
pub struct Member<V: Vm> {
    machine: Machine<V>,
    reporter: ReporterId,
}

impl<V: Vm> Member<V> {
    /// The function says that a range is memory.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn map(&self, claim: Claim) -> Result<(), MapError> {
        let mut memory = lock(&self.machine.shared.memory);
        if memory.closed {
            return Err(MapError::Closed);
        }
        memory.claims.add(self.reporter, claim)?;
        // What was there before and is there still may be used meanwhile.
        let _ = self.machine.publish(&memory);
        Ok(())
    }

    /// The function says that what it reported inside `range` is no memory any more. Once the
    /// ticket is complete, no access uses it, unless another function says that it is.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn unmap(&self, range: Range<Gpa>) -> Result<Ticket, MapError> {
        let mut memory = lock(&self.machine.shared.memory);
        if memory.closed {
            return Err(MapError::Closed);
        }
        memory.claims.remove(self.reporter, range)?;
        Ok(self.machine.publish(&memory))
    }

    /// As [`unmap`](Self::unmap), for all that the function reported.
    pub fn unmap_all(&self) -> Ticket {
        let mut memory = lock(&self.machine.shared.memory);
        memory.claims.remove_all(self.reporter);
        self.machine.publish(&memory)
    }

    /// The function leaves the VM. Once the ticket is complete, no access uses what only it
    /// reported.
    pub fn leave(self) -> Ticket {
        self.unmap_all()
    }
}

impl<V: Vm> Machine<V> {
    fn publish(&self, memory: &Memory) -> Ticket {
        self.shared.vm.set_memory(memory.claims.build())
    }
}

impl<V: Vm> Drop for Member<V> {
    fn drop(&mut self) {
        let mut memory = lock(&self.machine.shared.memory);
        if memory.claims.remove_all(self.reporter) > 0 {
            let _ = self.machine.publish(&memory);
        }
    }
}

impl<V: Vm> fmt::Debug for Member<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("reporter", &self.reporter).finish_non_exhaustive()
    }
}
