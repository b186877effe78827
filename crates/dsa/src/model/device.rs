//! The handle of a device, and the device as a PCI function.

use alloc::sync::{Arc, Weak};
use core::fmt;

use iommu::{Endpoint, PageResponse, PageResponses, Pasid};
use pci::{Bar, Function, InterruptSink, Message, MsiX};
use spin::Mutex;

use super::caps::{Caps, Config, ConfigError};
use super::counters::{Counters, Tally};
use super::effects::Effects;
use super::engine::Engine;
use super::function::{self, BAR0_SIZE, PORTAL_BAR, REGISTER_BAR};
use super::paging::Outgoing;
use super::portal::Fed;
use super::queue::Submission;
use super::state::State;
use crate::spec::{Descriptor, Portal, PORTAL_STRIDE};

/// Called with the number of an engine that may have work. It is called from register accesses and
/// from engines, so it must neither block nor call back; waking too often is harmless.
pub type Waker = Arc<dyn Fn(usize) + Send + Sync>;

/// An accelerator. A cheap handle: clones name the same device.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

/// What handles and engines share.
pub(super) struct Shared {
    pub(super) endpoint: Endpoint,
    pub(super) tally: Arc<Tally>,
    /// Held for short and bounded work only: never for DMA, and never for a call to the embedder.
    state: Mutex<State>,
    sink: Mutex<Option<Arc<dyn InterruptSink>>>,
    waker: Mutex<Option<Waker>>,
    bars: [Bar; 2],
    vectors: u16,
}

impl Device {
    /// A device as after power-on, that reaches memory through `endpoint`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if there can be no such device.
    pub fn new(config: Config, endpoint: Endpoint) -> Result<Self, ConfigError> {
        let caps = Caps::new(config)?;
        let space = function::config_space(&caps)?;
        let msix = MsiX::new(function::msix_capability(&caps));
        let tally = Arc::new(Tally::default());
        let requester = endpoint.requester();
        let shared = Arc::new(Shared {
            endpoint,
            tally: tally.clone(),
            state: Mutex::new(State::new(caps, tally, space, msix, requester)),
            sink: Mutex::new(None),
            waker: Mutex::new(None),
            bars: function::bars(&caps),
            vectors: caps.vectors(),
        });
        let answers = Answers(Arc::downgrade(&shared));
        shared.endpoint.set_page_responses(Some(Arc::new(answers)));
        Ok(Self { shared })
    }

    /// Number of engines.
    pub fn engines(&self) -> usize {
        self.shared.change(|state, _| state.engines.len())
    }

    /// Engine `index`, to be run by whoever gets it; `None` if there is no such engine or somebody
    /// has it. Dropping it makes it available again.
    pub fn engine(&self, index: usize) -> Option<Engine> {
        let cancel = self.shared.change(|state, _| {
            let slot = state.engines.get_mut(index).filter(|slot| !slot.taken)?;
            slot.taken = true;
            Some(slot.cancel.clone())
        })?;
        Some(Engine::new(self.shared.clone(), index, cancel))
    }

    /// Sets or removes what is called when an engine may have work. Of work that is queued already
    /// it says nothing: run every engine once after setting it.
    pub fn set_waker(&self, waker: Option<Waker>) {
        *self.shared.waker.lock() = waker;
    }

    /// A deferrable memory write (ENQCMD, ENQCMDS) of `descriptor` to `portal` of work queue `wq`:
    /// the only way into a shared queue. The caller stands for the processor, so it has put the
    /// PASID and the privilege into the descriptor.
    pub fn submit(
        &self,
        wq: usize,
        portal: Portal,
        descriptor: &[u8; Descriptor::SIZE],
    ) -> Submission {
        self.shared.change(|state, fx| state.submit(wq, portal, descriptor, fx))
    }

    /// What the device has done.
    pub fn counters(&self) -> Counters {
        self.shared.tally.read()
    }

    /// The message for `vector`, for an embedder that delivers messages itself and is called by
    /// [`InterruptSink::raise`]; `None` if the guest has masked it, and then the vector is raised
    /// again when it is unmasked. Not used where the transport keeps the MSI-X table (vfio-user).
    pub fn message(&self, vector: u16) -> Option<Message> {
        self.shared.change(|state, _| state.msix.fire(vector))
    }

    /// Puts `pasid` into the configuration of work queue `wq` though it is enabled, as no guest
    /// could: for tests that want to see a PASID refused that was never bound. What is submitted
    /// from here on uses it, until the guest configures the queue again. Gives the PASID that was
    /// there; `None`, and nothing is changed, if there is no such queue.
    pub fn inject_wq_pasid(&self, wq: usize, pasid: Pasid) -> Option<Pasid> {
        self.shared.change(|state, _| {
            let mode = &mut state.wqs.get_mut(wq)?.config.mode;
            let before = Pasid::from_field(mode.pasid());
            mode.set_pasid(pasid.get());
            Some(before)
        })
    }

    /// A write to the portals.
    fn portal_write(&self, offset: u64, data: &[u8]) {
        let (wq, portal) = Portal::at(offset);
        self.shared.change(|state, fx| {
            let wq = usize::try_from(wq).unwrap_or(usize::MAX);
            let Some(queue) = state.wqs.get_mut(wq) else {
                return state.tally.portal_ignored.add(1);
            };
            match queue.assembler.store(offset % PORTAL_STRIDE, data) {
                Fed::Incomplete => {}
                Fed::Complete(bytes) => state.post(wq, portal, &bytes, fx),
                Fed::Misordered => state.tally.portal_misordered.add(1),
            }
        });
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Changes the state, then carries out what follows from it, with the lock released.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State, &mut Effects) -> R) -> R {
        let mut fx = Effects::default();
        let (result, must_send) = {
            let mut state = self.state.lock();
            let result = change(&mut state, &mut fx);
            (result, state.paging.must_send())
        };
        self.perform(&fx);
        if must_send {
            self.send();
        }
        result
    }

    /// Sends the messages that wait, those included that come of sending them.
    fn send(&self) {
        loop {
            // The lock is released before anything is sent: the answer may come at once.
            let next = self.state.lock().paging.next_message();
            match next {
                Some(Outgoing::Request(request)) => self.endpoint.send_page_request(request),
                Some(Outgoing::Forget) => self.endpoint.forget_page_requests(),
                None => return,
            }
        }
    }

    fn perform(&self, fx: &Effects) {
        if let Some(ats) = fx.ats {
            self.endpoint.set_ats(ats);
        }
        for vector in fx.vectors() {
            self.raise(vector);
        }
        if fx.engines().next().is_some() {
            let waker = self.waker.lock().clone();
            if let Some(waker) = waker {
                fx.engines().for_each(|engine| waker(engine));
            }
        }
    }

    /// Raises an interrupt; not to be called with the lock held.
    pub(super) fn raise(&self, vector: u16) {
        let sink = self.sink.lock().clone();
        if let Some(sink) = sink {
            self.tally.interrupts.add(1);
            sink.raise(vector);
        }
    }
}

/// What the host answers through. It does not keep the device alive.
struct Answers(Weak<Shared>);

impl PageResponses for Answers {
    fn respond(&self, response: PageResponse) {
        if let Some(shared) = self.0.upgrade() {
            shared.change(|state, fx| state.page_response(&response, fx));
        }
    }
}

impl Function for Device {
    fn bars(&self) -> &[Bar] {
        &self.shared.bars
    }

    fn vectors(&self) -> u16 {
        self.shared.vectors
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.shared.change(|state, _| state.function.read(offset, data));
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.shared.change(|state, fx| state.config_write(offset, data, fx));
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        // Portals read as all ones.
        if bar != REGISTER_BAR || offset >= BAR0_SIZE {
            return data.fill(0xff);
        }
        self.shared.change(|state, _| {
            if !state.msix.read(bar, offset, data) {
                state.register_read(offset, data);
            }
        });
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        match bar {
            REGISTER_BAR => self.shared.change(|state, fx| {
                if state.msix.write(bar, offset, data) {
                    state.raise_unmasked(fx);
                } else {
                    state.register_write(offset, data, fx);
                }
            }),
            PORTAL_BAR => self.portal_write(offset, data),
            _ => {}
        }
    }

    fn reset(&self) {
        self.shared.change(|state, fx| state.power_on_reset(fx));
    }

    fn set_interrupts(&self, sink: Option<Arc<dyn InterruptSink>>) {
        *self.shared.sink.lock() = sink;
    }
}
