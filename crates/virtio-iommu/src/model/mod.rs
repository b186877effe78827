//! The device side: a virtio-iommu device over an [`iommu::Vm`], without a transport.
//!
//! A transport (PCI, MMIO, or two ends in one process) calls [`Model`] for what the driver reads
//! and writes; what it is to do leaves as [`Effects`]. A notification only schedules; the queue is
//! worked off by [`Model::poll`], a bounded number of requests at a time.
//!
//! ```
//! use iommu::{Host, SoftwareHost, VmConfig};
//! use virtio_iommu::model::{Model, Options};
//! use virtio_iommu::spec::{Features, Revision, Status};
//!
//! let vm = SoftwareHost::new().create_vm(VmConfig::named("guest")).unwrap();
//! let mut device = Model::new(Options::default(), vm);
//!
//! let features = Features::new().with_version_1(true).into_bits();
//! device.set_driver_features(Features::from_bits(features | Revision::Experimental.feature().into_bits()));
//! let status = Status::new().with_acknowledge(true).with_driver(true).with_features_ok(true);
//! let effects = device.write_status(status);
//! assert!(!effects.schedule);
//! assert!(device.status().features_ok());
//! ```

mod counters;
mod effects;
mod requests;
mod ring;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use iommu::{Ticket, Vm};
use mem::GuestMemory;
use zerocopy::IntoBytes;

pub use counters::Counters;
pub use effects::{Effects, Polled, Progress};

use crate::spec::{
    Config, Features, QueueLayout, QueueLayoutError, Revision, Status, MAX_QUEUE_SIZE, QUEUES,
    REQUEST_QUEUE, TAIL_SIZE,
};
use ring::{Ring, RingError};

/// The most requests that one [`Model::poll`] takes. Each costs at most [`MAX_QUEUE_SIZE`]
/// descriptors.
pub const REQUESTS_PER_POLL: u32 = 64;

/// Bytes of properties in an answer to PROBE.
pub const PROBE_SIZE: usize = 64;

/// The most bytes that the device writes for one request; one with more room is not answered.
pub const MAX_REPLY_SIZE: usize = 256;

const _: () = assert!(PROBE_SIZE + TAIL_SIZE <= MAX_REPLY_SIZE);

/// The pages that could be mapped if there were mappings: the field may not be zero (5.13.4.2).
const PAGE_SIZE_MASK: u64 = 1 << 12;

/// What a device offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Revisions of the PASID requests; none is a device without them.
    pub revisions: Vec<Revision>,
    /// Numbers of the endpoints that are behind this device, so that PROBE knows them. Their DMA
    /// is not up to it: it follows the VM's device contexts.
    pub endpoints: BTreeSet<u32>,
}

impl Default for Options {
    /// Every revision, no endpoints.
    fn default() -> Self {
        Self { revisions: Revision::ALL.to_vec(), endpoints: BTreeSet::new() }
    }
}

impl Options {
    /// The feature bits that say so.
    pub fn features(&self) -> Features {
        let base = Features::new().with_version_1(true).with_probe(true).into_bits();
        let revisions = self.revisions.iter().map(|revision| revision.feature().into_bits());
        Features::from_bits(revisions.fold(base, |all, feature| all | feature))
    }
}

/// Why a queue is not set up. The driver's mistake, or the transport's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueError {
    /// The device has no queue of this number.
    #[error("there is no queue {0}")]
    NoSuchQueue(u16),
    /// It cannot be there.
    #[error(transparent)]
    Layout(#[from] QueueLayoutError),
    /// Queues are set up between FEATURES_OK and DRIVER_OK.
    #[error("queues cannot be set up now")]
    NotNow,
}

/// A virtio-iommu device: one owner, no locks, no threads.
///
/// What the PASID requests of one VM do goes by its [`Vm`] handle, so a VM has one device that
/// offers them: a reset gives back everything that the VM was granted.
#[derive(Debug)]
pub struct Model<V> {
    vm: V,
    options: Options,
    status: Status,
    /// The reset under way.
    resetting: Option<Ticket>,
    driver_features: Features,
    request_queue: Option<Ring>,
    /// Faults would be told here; this device has none to tell.
    event_queue: Option<QueueLayout>,
    counters: Counters,
}

impl<V: Vm> Model<V> {
    /// A device as after reset.
    pub fn new(options: Options, vm: V) -> Self {
        Self {
            vm,
            options,
            status: Status::new(),
            resetting: None,
            driver_features: Features::new(),
            request_queue: None,
            event_queue: None,
            counters: Counters::default(),
        }
    }

    /// Counts since creation; a reset does not clear them.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What the device offers.
    pub fn features(&self) -> Features {
        self.options.features()
    }

    /// The revision of the PASID requests that was agreed upon.
    pub fn revision(&self) -> Option<Revision> {
        let agreed = self.status.features_ok();
        agreed.then(|| Revision::among(self.driver_features).next()).flatten()
    }

    /// The driver says which features it wants. Not after FEATURES_OK.
    pub fn set_driver_features(&mut self, features: Features) {
        if self.status.features_ok() || self.is_resetting() {
            self.counters.refused += 1;
            return;
        }
        self.driver_features = features;
    }

    /// The device status; not zero until a reset is over.
    pub fn status(&mut self) -> Status {
        let resetting = self.is_resetting();
        self.status.with_needs_reset(self.status.needs_reset() || resetting)
    }

    /// The driver writes the device status: zero resets, and other bits are only ever added.
    ///
    /// FEATURES_OK stays clear if the features are not acceptable: one that is not offered, no
    /// VERSION_1, or more than one revision of the PASID requests.
    pub fn write_status(&mut self, written: Status) -> Effects {
        if written.into_bits() == 0 {
            self.reset();
            return Effects::default();
        }
        if self.is_resetting() {
            self.counters.refused += 1;
            return Effects::default();
        }
        let mut status = Status::from_bits(self.status.into_bits() | written.into_bits())
            .with_needs_reset(self.status.needs_reset());
        if status.features_ok() && !self.status.features_ok() && !self.accepts_features() {
            self.counters.refused += 1;
            status.set_features_ok(false);
        }
        if status.driver_ok() && !status.features_ok() {
            self.counters.refused += 1;
            status.set_driver_ok(false);
        }
        let started = status.driver_ok() && !self.status.driver_ok();
        self.status = status;
        Effects { schedule: started, ..Effects::default() }
    }

    fn accepts_features(&self) -> bool {
        let wanted = self.driver_features;
        let not_offered = wanted.into_bits() & !self.features().into_bits();
        not_offered == 0 && wanted.version_1() && Revision::among(wanted).count() <= 1
    }

    /// Reads `data.len()` bytes of the configuration from `offset`; what is past its end is zero.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let config = Config {
            page_size_mask: PAGE_SIZE_MASK.into(),
            input_last: u64::MAX.into(),
            domain_last: u32::MAX.into(),
            probe_size: (PROBE_SIZE as u32).into(),
            ..Config::default()
        };
        let bytes = config.as_bytes().get(offset..).unwrap_or_default();
        for (out, byte) in data.iter_mut().zip(bytes) {
            *out = *byte;
        }
    }

    /// The driver writes the configuration. Nothing in it can be written.
    pub fn write_config(&mut self, _offset: usize, _data: &[u8]) {
        self.counters.refused += 1;
    }

    /// The driver sets a queue up.
    ///
    /// # Errors
    ///
    /// See [`QueueError`]; the queue is as it was.
    pub fn set_queue(&mut self, queue: u16, layout: QueueLayout) -> Result<(), QueueError> {
        let result = self.try_set_queue(queue, layout);
        self.counters.refused += u64::from(result.is_err());
        result
    }

    fn try_set_queue(&mut self, queue: u16, layout: QueueLayout) -> Result<(), QueueError> {
        if queue >= QUEUES {
            return Err(QueueError::NoSuchQueue(queue));
        }
        if !self.status.features_ok() || self.status.driver_ok() || self.is_resetting() {
            return Err(QueueError::NotNow);
        }
        let layout = layout.checked()?;
        if queue == REQUEST_QUEUE {
            self.request_queue = Some(Ring::new(layout));
        } else {
            self.event_queue = Some(layout);
        }
        Ok(())
    }

    /// The most entries that a queue can have; zero if there is no such queue.
    pub fn max_queue_size(&self, queue: u16) -> u16 {
        if queue < QUEUES {
            MAX_QUEUE_SIZE
        } else {
            0
        }
    }

    /// The driver notifies the device that there is something in a queue.
    pub fn notify(&mut self, queue: u16) -> Effects {
        let schedule = queue == REQUEST_QUEUE && self.is_running();
        Effects { schedule, ..Effects::default() }
    }

    fn is_running(&self) -> bool {
        self.status.driver_ok() && !self.status.needs_reset()
    }

    fn is_resetting(&mut self) -> bool {
        let vm = &self.vm;
        self.resetting = self.resetting.filter(|ticket| !vm.is_complete(*ticket));
        self.resetting.is_some()
    }

    /// Works on: takes up to `budget` requests from the queue (at least one, at most
    /// [`REQUESTS_PER_POLL`]).
    pub fn poll(&mut self, budget: u32) -> Polled {
        let mut effects = Effects::default();
        let mut progress = Progress::Idle;
        if let Some(mut ring) = self.request_queue.filter(|_| self.is_running()) {
            let memory = self.vm.memory();
            match self.drain(&mut ring, &*memory, budget.clamp(1, REQUESTS_PER_POLL)) {
                Ok(drained) => {
                    progress = drained.progress;
                    effects.used_buffers = drained.requests > 0 && ring.wants_interrupt(&*memory);
                }
                Err(_) => {
                    self.counters.queue_errors += 1;
                    self.status.set_needs_reset(true);
                    effects.configuration_changed = true;
                }
            }
            self.request_queue = Some(ring);
        }
        Polled { progress, effects }
    }

    fn drain(
        &mut self,
        ring: &mut Ring,
        memory: &dyn GuestMemory,
        budget: u32,
    ) -> Result<Drained, RingError> {
        for requests in 0..budget {
            let Some(head) = ring.take(memory)? else {
                return Ok(Drained { requests, progress: Progress::Idle });
            };
            self.counters.requests += 1;
            let chain = ring.chain(memory, head).ok();
            let written = chain.and_then(|chain| self.serve(memory, &chain));
            self.counters.requests_unanswered += u64::from(written.is_none());
            ring.give_back(memory, head, written.unwrap_or(0))?;
        }
        Ok(Drained { requests: budget, progress: Progress::More })
    }

    /// Everything as after power-on, and every PASID that the VM was granted given back.
    ///
    /// The driver sees a status of zero, and can start anew, when none of them is parked any more.
    pub fn reset(&mut self) {
        let Self {
            vm,
            options: _, // they are the host's, not the driver's
            status,
            resetting,
            driver_features,
            request_queue,
            event_queue,
            counters,
        } = self;
        *resetting = Some(vm.release_pasids());
        *status = Status::new();
        *driver_features = Features::new();
        *request_queue = None;
        *event_queue = None;
        counters.resets += 1;
    }
}

/// What a drain came to.
struct Drained {
    requests: u32,
    progress: Progress,
}
