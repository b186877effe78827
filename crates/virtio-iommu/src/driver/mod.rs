//! The guest side: a driver of a virtio-iommu device that allocates PASIDs by it.
//!
//! It is given four things: a [`Transport`] to reach the device by, the memory that both see, a
//! piece of it to keep its queue in, and a [`Clock`], because it trusts no device to answer. Every
//! wait has a deadline. A request that misses it is not forgotten: its buffers stay the device's
//! until they come back, and a PASID that comes back too late is given back.
//!
//! ```
//! use std::cell::Cell;
//! use iommu::{Host, PasidRange, SoftwareHost, SoftwareVm, Vm, VmConfig};
//! use mem::{Gpa, MemoryMap};
//! use virtio_iommu::driver::{Clock, Driver, Transport, DEFAULT_PATIENCE_NS};
//! use virtio_iommu::model::{Model, Options};
//! use virtio_iommu::spec::{Features, QueueLayout, Status};
//!
//! // The other end in the same process: a notification is worked off at once.
//! struct Wire(Model<SoftwareVm>);
//!
//! impl Transport for Wire {
//!     fn features(&mut self) -> Features { self.0.features() }
//!     fn set_driver_features(&mut self, features: Features) { self.0.set_driver_features(features) }
//!     fn status(&mut self) -> Status { self.0.status() }
//!     fn write_status(&mut self, status: Status) { let _ = self.0.write_status(status); }
//!     fn read_config(&mut self, offset: usize, data: &mut [u8]) { self.0.read_config(offset, data) }
//!     fn max_queue_size(&mut self, queue: u16) -> u16 { self.0.max_queue_size(queue) }
//!     fn set_queue(&mut self, queue: u16, layout: QueueLayout) { let _ = self.0.set_queue(queue, layout); }
//!     fn notify(&mut self, queue: u16) { if self.0.notify(queue).schedule { let _ = self.0.poll(1); } }
//! }
//!
//! struct Ticks(Cell<u64>);
//!
//! impl Clock for Ticks {
//!     fn now_ns(&self) -> u64 { self.0.replace(self.0.get() + 1) }
//! }
//!
//! let vm = SoftwareHost::new().create_vm(VmConfig::named("guest")).unwrap();
//! let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x4000)]).unwrap());
//! let wire = Wire(Model::new(Options::default(), vm.clone()));
//! let clock = Ticks(Cell::new(0));
//! let mut driver = Driver::new(wire, vm.memory(), Gpa(0x1000), clock, DEFAULT_PATIENCE_NS)?;
//!
//! let pasid = driver.alloc(PasidRange::ALL).unwrap();
//! assert_eq!(vm.pasid_usage().live, 1);
//! driver.free(pasid).unwrap();
//! assert!(driver.free(pasid).is_err());
//! # Ok::<(), virtio_iommu::driver::SetupError>(())
//! ```

mod error;
mod queue;
mod shared;

use alloc::vec::Vec;
use core::fmt;
use core::hint::spin_loop;

use iommu::{Pasid, PasidRange};
use mem::{Gpa, GuestMemory};
use zerocopy::IntoBytes;

pub use error::{Error, ProtocolError, SetupError};
pub use queue::REGION_SIZE;
pub use shared::SharedDriver;

use crate::spec::{
    Answer, Config, Features, QueueLayout, Request, RequestStatus, Revision, Status, REQUEST_QUEUE,
    TAIL_SIZE,
};
use queue::{Queue, SlotIndex, MAX_REPLY_SIZE};

/// How a driver reaches its device (4).
pub trait Transport {
    /// What the device offers.
    fn features(&mut self) -> Features;
    /// Says what the driver wants of it.
    fn set_driver_features(&mut self, features: Features);
    /// The device status.
    fn status(&mut self) -> Status;
    /// Writes the device status; zero resets.
    fn write_status(&mut self, status: Status);
    /// Reads the configuration.
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    /// The most entries that a queue can have.
    fn max_queue_size(&mut self, queue: u16) -> u16;
    /// Sets a queue up.
    fn set_queue(&mut self, queue: u16, layout: QueueLayout);
    /// Tells the device that there is something in a queue.
    fn notify(&mut self, queue: u16);
}

/// A clock that does not go back.
pub trait Clock {
    /// Nanoseconds since whenever.
    fn now_ns(&self) -> u64;
}

/// How long the device may take for one thing, unless it is said otherwise, in nanoseconds.
pub const DEFAULT_PATIENCE_NS: u64 = 1_000_000_000;

/// Counts of one driver since its creation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests made.
    pub requests: u64,
    /// … that missed their deadline.
    pub timed_out: u64,
    /// PASIDs given back because they came too late or were not what was asked for.
    pub given_back: u64,
}

/// A driver of one device: one owner, one request at a time.
pub struct Driver<T, M, C> {
    transport: T,
    memory: M,
    clock: C,
    patience_ns: u64,
    revision: Revision,
    /// Bytes of properties that PROBE gives, if there is PROBE.
    probe_size: Option<usize>,
    queue: Queue,
    /// Why the device is not spoken to any more: it broke the rules, or needs a reset.
    ended: Option<Error>,
    counters: Counters,
}

impl<T: Transport, M: GuestMemory, C: Clock> Driver<T, M, C> {
    /// Resets the device and sets it up (3.1.1), with the queue in the [`REGION_SIZE`] bytes from
    /// `region`, which are aligned to 16 bytes and nobody else's.
    ///
    /// # Errors
    ///
    /// See [`SetupError`]. The device is told FAILED then, unless it does not even reset.
    pub fn new(
        mut transport: T,
        memory: M,
        region: Gpa,
        clock: C,
        patience_ns: u64,
    ) -> Result<Self, SetupError> {
        reset(&mut transport, &clock, patience_ns)?;
        match set_up(&mut transport, &memory, region) {
            Ok((revision, probe_size, queue)) => Ok(Self {
                transport,
                memory,
                clock,
                patience_ns,
                revision,
                probe_size,
                queue,
                ended: None,
                counters: Counters::default(),
            }),
            Err(error) => {
                let status = transport.status();
                transport.write_status(status.with_failed(true));
                Err(error)
            }
        }
    }

    /// The revision of the PASID requests that was agreed upon.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Counts since creation.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Asks for a PASID in `range`.
    ///
    /// The number is checked: it is in `range`, and not zero. Whether it is in use already is for
    /// the caller's own books to find out. That goes for a number outside the range, too, so it
    /// is not given back here: it could be taken from under its user.
    ///
    /// # Errors
    ///
    /// See [`Error`]; over quota is `Refused(NoMemory)`, and nothing free in the range is
    /// `Refused(NotFound)`.
    pub fn alloc(&mut self, range: PasidRange) -> Result<Pasid, Error> {
        let (first, last) = (range.first.get(), range.last.get());
        let answer = self.execute(Request::AllocPasid { first, last })?;
        let number = word_of(answer)?;
        match Pasid::new(number).filter(|pasid| pasid.get() != 0) {
            Some(pasid) if range.contains(pasid) => Ok(pasid),
            Some(pasid) => Err(Error::OutOfRange(pasid)),
            None => {
                self.give_back(number);
                Err(Error::BadNumber(number))
            }
        }
    }

    /// Gives a PASID back.
    ///
    /// # Errors
    ///
    /// See [`Error`]; one that was not granted is `Refused(NotFound)`.
    pub fn free(&mut self, pasid: Pasid) -> Result<(), Error> {
        let answer = self.execute(Request::FreePasid { pasid: pasid.get() })?;
        word_of(answer).map(|_| ())
    }

    /// Asks for the properties of an endpoint: as many bytes as the device gives, of which a
    /// property of type zero ends the list.
    ///
    /// # Errors
    ///
    /// See [`Error`]; without PROBE this is `Refused(Unsupported)`, and an endpoint that is not
    /// behind the device is `Refused(NotFound)`.
    pub fn probe(&mut self, endpoint: u32) -> Result<Vec<u8>, Error> {
        let Some(probe_size) = self.probe_size else {
            return Err(Error::Refused(RequestStatus::Unsupported));
        };
        let answer = self.execute(Request::Probe { endpoint })?;
        word_of(answer)?;
        Ok(answer.bytes.iter().copied().take(probe_size).collect())
    }

    /// Resets the device, which gives back every PASID, and gives the transport back.
    ///
    /// # Errors
    ///
    /// [`SetupError::ResetTimedOut`].
    pub fn close(mut self) -> Result<T, SetupError> {
        reset(&mut self.transport, &self.clock, self.patience_ns)?;
        Ok(self.transport)
    }

    /// Makes a request and waits for its answer. First of all, what earlier ones left is put in
    /// order.
    fn execute(&mut self, request: Request) -> Result<RawAnswer, Error> {
        self.collect()?;
        while let Some((slot, number)) = self.queue.late_grant() {
            self.counters.given_back += 1;
            // What the device says to it changes nothing, and if it says nothing the slot is its own.
            match self.run(slot, Request::FreePasid { pasid: number }) {
                Ok(_) | Err(Error::TimedOut { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let slot = self.queue.free_slot().ok_or(Error::Stuck)?;
        self.run(slot, request)
    }

    fn give_back(&mut self, number: u32) {
        self.counters.given_back += 1;
        // It was the device's mistake to begin with; another one shows in the next request.
        let _ = self.execute(Request::FreePasid { pasid: number });
    }

    /// Makes a request in `slot` and waits for its answer.
    fn run(&mut self, slot: SlotIndex, request: Request) -> Result<RawAnswer, Error> {
        self.counters.requests += 1;
        let (numbers, probe_size) = (self.revision.numbers(), self.probe_size.unwrap_or(0));
        self.queue.submit(&self.memory, slot, request, &numbers, probe_size)?;
        if self.queue.wants_notification(&self.memory) {
            self.transport.notify(REQUEST_QUEUE);
        }
        let deadline = self.clock.now_ns().saturating_add(self.patience_ns);
        loop {
            self.collect()?;
            if let Some(answer) = self.queue.take_answer(&self.memory, slot)? {
                return Ok(answer);
            }
            if self.transport.status().needs_reset() {
                return Err(self.end(Error::NeedsReset));
            }
            if self.clock.now_ns() >= deadline {
                self.queue.abandon(slot);
                self.counters.timed_out += 1;
                return Err(Error::TimedOut { patience_ns: self.patience_ns });
            }
            spin_loop();
        }
    }

    /// Takes what the device gave back.
    fn collect(&mut self) -> Result<(), Error> {
        if let Some(error) = self.ended {
            return Err(error);
        }
        self.queue.collect(&self.memory).map_err(|error| match error {
            Error::Broken(_) => self.end(error),
            other => other,
        })
    }

    fn end(&mut self, error: Error) -> Error {
        self.ended = Some(error);
        error
    }
}

impl<T, M, C> fmt::Debug for Driver<T, M, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("revision", &self.revision)
            .field("queue", &self.queue)
            .field("ended", &self.ended)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// What the device wrote for one request.
#[derive(Clone, Copy, Debug)]
struct RawAnswer {
    bytes: [u8; MAX_REPLY_SIZE],
    /// How many of them are the device's.
    len: usize,
    /// How many there is room for: the tail is at their end.
    room: usize,
}

/// The first word of an answer that says OK.
fn word_of(answer: RawAnswer) -> Result<u32, Error> {
    // Less than the whole room: the device did not get as far as the status.
    let bytes = answer.bytes.get(..answer.room).filter(|_| answer.len == answer.room);
    let answer = bytes.and_then(Answer::decode).ok_or(Error::Unanswered)?;
    match RequestStatus::from_number(answer.status) {
        Some(RequestStatus::Ok) => Ok(answer.word),
        Some(status) => Err(Error::Refused(status)),
        None => Err(Error::UnknownStatus(answer.status)),
    }
}

/// Resets the device and waits until it says that it is over.
fn reset(
    transport: &mut impl Transport,
    clock: &impl Clock,
    patience_ns: u64,
) -> Result<(), SetupError> {
    transport.write_status(Status::new());
    let deadline = clock.now_ns().saturating_add(patience_ns);
    while transport.status().into_bits() != 0 {
        if clock.now_ns() >= deadline {
            return Err(SetupError::ResetTimedOut { patience_ns });
        }
        spin_loop();
    }
    Ok(())
}

/// From ACKNOWLEDGE to DRIVER_OK.
fn set_up<M: GuestMemory>(
    transport: &mut impl Transport,
    memory: &M,
    region: Gpa,
) -> Result<(Revision, Option<usize>, Queue), SetupError> {
    let mut status = Status::new().with_acknowledge(true);
    transport.write_status(status);
    status.set_driver(true);
    transport.write_status(status);

    let offered = transport.features();
    if !offered.version_1() {
        return Err(SetupError::Legacy);
    }
    let revision = Revision::among(offered).next().ok_or(SetupError::NoPasidRequests)?;
    let probe_size = offered.probe().then(|| probe_size(transport)).flatten();
    let base = Features::new().with_version_1(true).with_probe(probe_size.is_some());
    let wanted = base.into_bits() | revision.feature().into_bits();
    transport.set_driver_features(Features::from_bits(wanted));
    status.set_features_ok(true);
    transport.write_status(status);
    if !transport.status().features_ok() {
        return Err(SetupError::FeaturesRefused);
    }

    let queue = Queue::new(memory, region, transport.max_queue_size(REQUEST_QUEUE))?;
    transport.set_queue(REQUEST_QUEUE, queue.layout());
    status.set_driver_ok(true);
    transport.write_status(status);
    let status = transport.status();
    if !status.driver_ok() || status.needs_reset() {
        return Err(SetupError::NotStarted);
    }
    Ok((revision, probe_size, queue))
}

/// How many bytes of properties the device says it gives, if that many fit here.
fn probe_size(transport: &mut impl Transport) -> Option<usize> {
    let mut config = Config::default();
    transport.read_config(0, config.as_mut_bytes());
    let size = usize::try_from(config.probe_size.get()).ok()?;
    (size <= MAX_REPLY_SIZE - TAIL_SIZE).then_some(size)
}
