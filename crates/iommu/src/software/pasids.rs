//! The PASID space of a software host: a set in it for each VM.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;

use ioasid::{
    AllocError, Config, ConfigError, Executor, HoldError, Holder, HolderError, Hooks, Ioasid,
    Priority, SetError, SetType, Space, SubscribeError, Subscriber, Tag, Usage, Work,
};

use crate::pasid::BooksError;
use crate::{AllocPasidError, HostError, Pasid, PasidRange};

/// Tells the time since some moment: for the age of what a report lists.
pub(crate) type Clock = fn() -> Duration;

/// Under whose name a VM holds what it was granted.
const GUEST: &str = "guest";

/// Under whose name a PASID is held until no DMA in flight and no cache can name it.
const IOTLB: &str = "iotlb";

/// Under whose name a PASID is held as long as an entry of the host's tables has it.
const IOMMU: &str = "iommu";

/// Under whose name a PASID is held as long as a table of a VM's processors has it.
const CPU: &str = "cpu";

/// Under whose name a PASID is held as long as a device waits for an answer about it.
const PAGE_REQUEST: &str = "page-request";

/// Pieces of the work that frees cause which one poll does at most.
const WORK_BUDGET: usize = 64;

/// How the space is cut: for the model checker, into pieces that it can look at.
#[cfg(not(loom))]
pub(crate) type Cut = ioasid::Geometry;
#[cfg(loom)]
pub(crate) type Cut = ioasid::Geometry<1, 1>;

/// When a PASID was handed out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since(Option<Duration>);

/// What the space keeps with a PASID.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) since: Since,
    guest: AtomicU32,
}

impl Kept {
    fn new(since: Option<Duration>) -> Self {
        Self { since: Since(since), guest: AtomicU32::new(Self::UNNUMBERED) }
    }

    /// No VM has a number of its own for it.
    const UNNUMBERED: u32 = u32::MAX;

    /// Its VM's own number for it, if it has one.
    pub(crate) fn guest(&self) -> Option<Pasid> {
        // The number is set before anybody can have been given either of the two.
        Pasid::new(self.guest.load(Ordering::Relaxed))
    }

    pub(crate) fn set_guest(&self, number: Pasid) {
        self.guest.store(number.get(), Ordering::Relaxed);
    }
}

pub(crate) type Lease = ioasid::Lease<Kept, Cut>;
pub(crate) type Reader = ioasid::Reader<Kept, Cut>;
pub(crate) type Ref = ioasid::Ref<Kept, Cut>;
pub(crate) type Set = ioasid::Set<Kept, Cut>;

/// The host's PASID space.
#[derive(Debug)]
pub(crate) struct HostPasids {
    space: Space<Kept, Cut>,
    guest: Holder,
    iotlb: Holder,
    iommu: Holder,
    cpu: Holder,
    page_requests: Holder,
    clock: Option<Clock>,
    /// `None` if the caller lent an executor.
    polled: Option<Arc<Polled>>,
}

/// The executor of a host that was lent none: whoever polls one of its VMs.
#[derive(Debug, Default)]
struct Polled {
    due: AtomicBool,
    running: AtomicBool,
}

/// Somebody is at it, as long as this lives.
struct Running<'p>(&'p AtomicBool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Executor for Polled {
    fn schedule(&self) {
        self.due.store(true, Ordering::Release);
    }
}

/// The caller's clock as the space wants it.
struct Nanoseconds(Clock);

impl ioasid::Clock for Nanoseconds {
    fn now_ns(&self) -> u64 {
        u64::try_from((self.0)().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A PASID of a VM's set, with what holds it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) lease: Lease,
    /// The VM's, as long as it is granted.
    pub(crate) granted: Ref,
    /// For what may be cached: taken now, because what is freed takes no references.
    pub(crate) cached: Ref,
}

impl HostPasids {
    pub(crate) fn new(
        config: Config,
        clock: Option<Clock>,
        executor: Option<Arc<dyn Executor>>,
    ) -> Result<Self, ConfigError> {
        // Guests number within the bus's width, however narrow the hardware's own is.
        let spid_width = config.spid_width.or(Some(Pasid::BITS));
        let polled = executor.is_none().then(Arc::<Polled>::default);
        let executor = executor.or_else(|| Some(polled.clone()? as Arc<dyn Executor>));
        let hooks = Hooks {
            executor,
            clock: clock.map(|clock| Arc::new(Nanoseconds(clock)) as Arc<dyn ioasid::Clock>),
        };
        let space = Space::with_geometry(Config { spid_width, ..config }, hooks)?;
        let holder = |name| {
            space.holder(name).map_err(|error| match error {
                HolderError::TooMany | HolderError::NoMemory => ConfigError::NoMemory,
            })
        };
        let (guest, iotlb) = (holder(GUEST)?, holder(IOTLB)?);
        let (iommu, cpu, page_requests) = (holder(IOMMU)?, holder(CPU)?, holder(PAGE_REQUEST)?);
        Ok(Self { space, guest, iotlb, iommu, cpu, page_requests, clock, polled })
    }

    /// Under whose name table entries hold PASIDs.
    pub(crate) fn iommu(&self) -> &Holder {
        &self.iommu
    }

    /// Under whose name tables of processors hold PASIDs.
    pub(crate) fn cpu(&self) -> &Holder {
        &self.cpu
    }

    /// Under whose name unanswered page requests hold PASIDs.
    pub(crate) fn page_requests(&self) -> &Holder {
        &self.page_requests
    }

    /// Tells a subscriber of every VM's PASIDs.
    pub(crate) fn subscribe(
        &self,
        name: &str,
        priority: Priority,
        subscriber: Arc<dyn Subscriber<Kept, Cut>>,
    ) -> Result<ioasid::Subscription<Kept, Cut>, SubscribeError> {
        let holder = self.space.holder(name).map_err(|_| SubscribeError::NoMemory)?;
        self.space.subscribe(&holder, priority, subscriber)
    }

    /// Does up to `budget` pieces of the work that frees cause.
    pub(crate) fn work(&self, budget: usize) -> Work {
        self.space.work(budget)
    }

    /// Does some of the work that frees cause, if that is left to whoever polls, and there is any.
    /// To be called with no lock held: it calls subscribers.
    pub(crate) fn poll(&self) {
        let Some(polled) = &self.polled else { return };
        if !polled.due.load(Ordering::Acquire) || polled.running.swap(true, Ordering::AcqRel) {
            return;
        }
        // Also if a subscriber panics.
        let running = Running(&polled.running);
        polled.due.store(false, Ordering::Release);
        let work = self.work(WORK_BUDGET);
        drop(running);
        if work == Work::More {
            polled.due.store(true, Ordering::Release);
        }
    }

    /// Sets `quota` PASIDs aside for a VM; `None` if it may have none.
    pub(crate) fn set(&self, name: &str, quota: u32) -> Result<Option<Set>, HostError> {
        if quota == 0 {
            return Ok(None);
        }
        let set = self.space.create_set(name, SetType::Native, quota);
        set.map(Some).map_err(|error| match error {
            SetError::OutOfCapacity { unreserved: available, .. } => {
                HostError::QuotaUnavailable { quota, available }
            }
            _ => HostError::NoMemory,
        })
    }

    /// A PASID for the host's own use: of those that are not promised to anyone.
    pub(crate) fn alloc(&self, range: PasidRange) -> Result<Lease, AllocPasidError> {
        self.space.alloc(numbers(range), Kept::new(self.now())).map_err(refusal)
    }

    /// A PASID for the VM whose set that is.
    pub(crate) fn alloc_in(&self, set: &Set, range: PasidRange) -> Result<Member, AllocPasidError> {
        let lease = set.alloc(numbers(range), Kept::new(self.now())).map_err(refusal)?;
        let share = |holder| {
            lease.share(holder).map_err(|error| match error {
                HoldError::NoMemory => AllocPasidError::NoMemory,
                // Its set was closed meanwhile.
                _ => AllocPasidError::Closed,
            })
        };
        let (granted, cached) = (share(&self.guest)?, share(&self.iotlb)?);
        Ok(Member { lease, granted, cached })
    }

    pub(crate) fn usage(&self) -> Usage {
        self.space.usage()
    }

    pub(crate) fn reader(&self) -> Reader {
        self.space.reader()
    }

    /// Checks that every PASID is accounted for just once.
    pub(crate) fn check(&self) -> Result<(), BooksError> {
        Ok(self.space.report(0)?.balance()?)
    }

    /// How long a PASID has been out, if there is a clock.
    pub(crate) fn age(&self, since: Since) -> Option<Duration> {
        self.now().zip(since.0).map(|(now, since)| now.saturating_sub(since))
    }

    /// How long what is parked now has been so; nothing if there is no clock.
    pub(crate) fn parked_ages(&self) -> ParkedAges {
        let report = self.clock.and_then(|_| self.space.report(usize::MAX).ok());
        let parked = report.map(|report| report.parked).unwrap_or_default();
        let age = |age_ns| Duration::from_nanos(age_ns);
        let ages = parked.into_iter().map(|one| (one.tag.id(), (one.tag, age(one.age_ns))));
        ParkedAges { ages: ages.collect(), clock: self.clock.is_some() }
    }

    /// Who holds a PASID, by name.
    pub(crate) fn holders(&self, id: Ioasid) -> Vec<String> {
        let holders = self.space.holders_of(id).unwrap_or_default();
        holders.into_iter().map(|held| held.holder).collect()
    }

    fn now(&self) -> Option<Duration> {
        self.clock.map(|clock| clock())
    }
}

/// How long what is parked has been so.
#[derive(Debug)]
pub(crate) struct ParkedAges {
    ages: BTreeMap<Ioasid, (Tag, Duration)>,
    clock: bool,
}

impl ParkedAges {
    /// That of one; nothing yet for one that was parked since.
    pub(crate) fn of(&self, tag: Tag) -> Option<Duration> {
        let known = self.ages.get(&tag.id()).filter(|(of, _)| *of == tag);
        self.clock.then(|| known.map_or(Duration::ZERO, |(_, age)| *age))
    }
}

fn numbers(range: PasidRange) -> RangeInclusive<u32> {
    range.first.get()..=range.last.get()
}

fn refusal(error: AllocError) -> AllocPasidError {
    match error {
        AllocError::QuotaExceeded { quota } => AllocPasidError::QuotaExceeded { quota },
        AllocError::SetClosed => AllocPasidError::Closed,
        AllocError::NoMemory => AllocPasidError::NoMemory,
        _ => AllocPasidError::NoneAvailable,
    }
}
