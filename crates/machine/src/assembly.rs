//! One VM put together: its handle, its remapping unit, its one memory map.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iommu::{AttachError, Endpoint, Ticket, Vm};
use mem::{Claim, ClaimError, Claims, Gpa, Range, ReporterId};
use pci::RequesterId;
use vtd::model::{Caps, Counters, Effects, Model, Progress, Ticked, Turn, DESCRIPTORS_PER_POLL};

use crate::{MessageSink, RegisterPage};

/// Called when there is something to [`poll`](Machine::poll): from register accesses and DMA
/// paths, so it must neither block nor call back.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// A VM and its IOMMU.
///
/// Has no thread of its own. Register accesses come in through [`RegisterPage`]; whoever drives
/// the machine calls [`poll`](Self::poll) when the waker was called, and as `poll` says, and
/// [`tick`](Self::tick) after it.
pub struct Machine<V: Vm> {
    vm: V,
    /// Whose turn it is to work; taken before the unit. Register accesses do without it.
    turn: Mutex<()>,
    unit: Mutex<Model<V>>,
    claims: Mutex<Claims>,
    messages: Arc<dyn MessageSink>,
    waker: Waker,
}

impl<V: Vm> Machine<V> {
    /// A machine of `vm` with a remapping unit; nothing is mapped, translation is off.
    pub fn new(vm: V, caps: Caps, messages: Arc<dyn MessageSink>, waker: Waker) -> Self {
        vm.set_fault_waker(Some(waker.clone()));
        Self {
            turn: Mutex::default(),
            unit: Mutex::new(Model::new(caps, vm.clone())),
            claims: Mutex::default(),
            vm,
            messages,
            waker,
        }
    }

    /// The VM.
    pub fn vm(&self) -> &V {
        &self.vm
    }

    /// Attaches a device to the VM and tells the unit of it: where the host owns the PASID tables,
    /// a device that the unit does not know can do nothing while translation is on.
    ///
    /// # Errors
    ///
    /// As [`Vm::attach`].
    pub fn attach(&self, requester: RequesterId) -> Result<Endpoint, AttachError> {
        let endpoint = self.vm.attach(requester)?;
        let _turn = lock(&self.turn);
        let effects = self.unit().add_device(requester);
        self.perform(effects);
        Ok(endpoint)
    }

    /// Does a bounded part of the unit's work: faults recorded, page requests put into the guest's queue, queued invalidations carried out,
    /// the guest's tables read.
    /// Says when to call again: at once, when a ticket may have been completed, or when woken.
    ///
    /// While it calls the host for what the guest's tables say, it holds no lock that a register
    /// access takes: whoever is told there that a PASID is bound may sleep.
    pub fn poll(&self) -> Progress {
        let _turn = lock(&self.turn);
        let mut turn = Turn::new();
        // Each time but the first a descriptor was taken, or a command given.
        for _ in 0..=DESCRIPTORS_PER_POLL {
            let (polled, reading) = {
                let mut unit = self.unit();
                (unit.poll_apart(&mut turn), unit.lend())
            };
            self.perform(polled.effects);
            let Some(mut reading) = reading else { return polled.progress };
            let more = reading.run(&mut turn);
            self.unit().take_back(reading);
            if more {
                break;
            }
        }
        Progress::More
    }

    /// Says what time it is, on a clock that only goes forward: what waits for something longer than it may is ended.
    /// Gives when to call again at the latest, if at all; a poll may bring something that is due sooner.
    pub fn tick(&self, now: Duration) -> Option<Duration> {
        let of_vm = self.vm.tick(now);
        let Ticked { effects, deadline } = self.unit().tick(now);
        self.perform(effects);
        [of_vm, deadline].into_iter().flatten().min()
    }

    /// Has the guest's page request queue look full, or no longer, whatever is in it: for those who
    /// test what a guest makes of an overflow.
    pub fn inject_page_request_overflow(&self, full: bool) {
        self.unit().inject_page_request_overflow(full);
    }

    /// The unit's counters.
    pub fn unit_counters(&self) -> Counters {
        self.unit().counters()
    }

    /// Takes a function's report that there is memory.
    ///
    /// # Errors
    ///
    /// As [`Claims::add`]; nothing has changed then.
    pub fn map(&self, reporter: ReporterId, claim: Claim) -> Result<(), ClaimError> {
        // Nobody has to wait for the end of accesses under the old map: nothing was withdrawn, and
        // the memory that a contradicting report hides stays there for whoever is still in it.
        self.remap(|claims| claims.add(reporter, claim)).map(|((), _ticket)| ())
    }

    /// Takes back what `reporter` said of `range`. Memory that no other function reports is out
    /// of use when the ticket is complete.
    ///
    /// # Errors
    ///
    /// As [`Claims::remove`]; nothing has changed then.
    pub fn unmap(&self, reporter: ReporterId, range: Range<Gpa>) -> Result<Ticket, ClaimError> {
        self.remap(|claims| claims.remove(reporter, range)).map(|(_count, ticket)| ticket)
    }

    /// Takes back all that `reporter` said: its transport is gone.
    pub fn forget(&self, reporter: ReporterId) -> Ticket {
        let mut claims = lock(&self.claims);
        claims.remove_all(reporter);
        self.vm.set_memory(claims.build())
    }

    /// How many reports contradicted another function's.
    pub fn contradictions(&self) -> u64 {
        lock(&self.claims).contradictions()
    }

    /// Number of memory reports that stand.
    pub fn claims(&self) -> usize {
        lock(&self.claims).len()
    }

    /// The whole machine as after power-on, but for its memory: the unit's registers, translation
    /// off, nothing cached. The functions are reset by who owns them.
    pub fn reset(&self) -> Ticket {
        let _turn = lock(&self.turn);
        let reading = self.unit().lend_anyway();
        if let Some(mut reading) = reading {
            reading.reset();
            self.unit().take_back(reading);
        }
        self.unit().reset()
    }

    /// The end of the VM: all reports are withdrawn, every device is detached. Nothing of the
    /// VM's is in use any more when the ticket is complete. Idempotent.
    pub fn close(&self) -> Ticket {
        lock(&self.claims).clear();
        self.vm.close()
    }

    fn remap<R>(
        &self,
        change: impl FnOnce(&mut Claims) -> Result<R, ClaimError>,
    ) -> Result<(R, Ticket), ClaimError> {
        // Published under the lock, so that maps appear in the order of the reports.
        let mut claims = lock(&self.claims);
        let result = change(&mut claims)?;
        Ok((result, self.vm.set_memory(claims.build())))
    }

    fn unit(&self) -> MutexGuard<'_, Model<V>> {
        lock(&self.unit)
    }

    /// Does what the unit wants done; its lock is released.
    fn perform(&self, effects: Effects) {
        for message in effects.messages() {
            self.messages.send(message.address, message.data);
        }
        if effects.schedule {
            (self.waker)();
        }
    }
}

impl<V: Vm> RegisterPage for Machine<V> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.unit().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let effects = self.unit().write(offset, data);
        self.perform(effects);
    }

    fn reset(&self) {
        // Nothing waits here for accesses in flight: a reset is a register access to its guest.
        let _ticket = Machine::reset(self);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
