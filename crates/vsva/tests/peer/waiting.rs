//! A server with two guests: one whose page requests nobody answers, until it ends in some way, and a neighbour that
//! has its own answered all the time and must not notice.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dsa::model::SET_ASIDE;
use iommu::Numbering;
use mem::Policy;
use vsva::server::{GuestConfig, GuestPlace, HostCalls, PageTimeout, PasidTable, Server, StageTwo};

use super::kernel::{Kernel, REACHED};
use super::{count, eventually, ram, server_calling, Said, StopOnDrop, QUEUE};

/// In which an end must be over, on a machine that does other things besides. Nothing else would end the waiting: the
/// time-out for page requests is off.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// Descriptors that wait, each for one page request: as many as the queue's engine sets aside. More are behind them.
pub(crate) const WAITING: u64 = SET_ASIDE as u64;
const _: () = assert!(WAITING < QUEUE as u64);
/// Fills in a round.
const FILLS: u64 = 4;

/// The guests' names, which their memory files have, too.
pub(crate) const NAME: &str = "waiting";
const NEIGHBOUR: &str = "neighbour";

/// How groups ended: who answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ended {
    /// The guest.
    pub(crate) by_guest: u64,
    /// Its unit in its place.
    pub(crate) by_unit: u64,
    /// The host, because what they came through ended.
    pub(crate) withdrawn: u64,
    /// The host at once, because they came when nobody was there to answer any more.
    pub(crate) without_queue: u64,
    /// Nobody, since their asker was reset.
    pub(crate) forgotten: u64,
    /// The host for any other reason.
    pub(crate) others: u64,
}

impl Ended {
    const NONE: Self =
        Self { by_guest: 0, by_unit: 0, withdrawn: 0, without_queue: 0, forgotten: 0, others: 0 };

    /// Whether those that wait end so when the accelerator is reset first: nobody asks for more after that.
    pub(crate) fn is_by_the_accelerator(self) -> bool {
        self == Self { forgotten: WAITING, ..Self::NONE }
    }

    /// Whether they do when the unit is reset first. They are in its guest's queue, so theirs to answer who has that.
    /// What is told that there is no page ends, and others come forward and ask until they are told as well.
    pub(crate) fn is_by_the_unit(self) -> bool {
        self.by_unit >= WAITING && self.is_by_somebody()
    }

    /// Whether all of them ended, none by the guest, a time-out or a limit.
    pub(crate) fn is_by_somebody(self) -> bool {
        let Self { by_guest, by_unit, withdrawn, without_queue: _, forgotten, others } = self;
        by_unit + withdrawn + forgotten >= WAITING && by_guest + others == 0
    }

    fn of(place: &GuestPlace) -> Self {
        let count = |name: &str| count(place, name);
        let by_unit = count("page_answers_automatic");
        let others = ["timed_out", "refused", "beyond_limit", "malformed"];
        let others = others.map(|other| count(&format!("page_requests_{other}")));
        Self {
            // The unit counts those, too, that the host was faster with.
            by_guest: count("page_requests_answered").saturating_sub(by_unit),
            by_unit,
            withdrawn: count("page_requests_withdrawn"),
            without_queue: count("page_requests_without_queue"),
            forgotten: count("page_requests_forgotten"),
            others: others.iter().sum(),
        }
    }

    /// What has been counted since `before`.
    fn since(self, before: Self) -> Self {
        Self {
            by_guest: self.by_guest.saturating_sub(before.by_guest),
            by_unit: self.by_unit - before.by_unit,
            withdrawn: self.withdrawn - before.withdrawn,
            without_queue: self.without_queue - before.without_queue,
            forgotten: self.forgotten - before.forgotten,
            others: self.others - before.others,
        }
    }
}

/// Whose PASID tables, how the host is called, and what is below the guests' addresses.
pub(crate) const SETUPS: [Setup; 4] = [
    (PasidTable::Guest, HostCalls::Direct, StageTwo::None),
    (PasidTable::Host, HostCalls::Direct, StageTwo::None),
    (PasidTable::Guest, HostCalls::Bytes, StageTwo::Shuffled),
    (PasidTable::Host, HostCalls::Bytes, StageTwo::Shuffled),
];

pub(crate) type Setup = (PasidTable, HostCalls, StageTwo);

/// The server and its guests' places.
pub(crate) struct World {
    /// Its setup, for messages.
    pub(crate) what: String,
    pub(crate) server: Server,
    pub(crate) place: GuestPlace,
    pub(crate) ram: File,
    pub(crate) said: Said,
    neighbour: GuestPlace,
    /// What is bound in the host's table before there is a guest: requests without PASID.
    bound: u64,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new((pasid_table, calls, stage_two): Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, said) = server_calling(calls, Policy::SealedOnly);
        let numbering = match pasid_table {
            PasidTable::Guest => Numbering::Identity,
            // Both guests take the same numbers.
            PasidTable::Host => Numbering::Private,
        };
        let config = GuestConfig {
            pasid_table,
            numbering,
            stage_two,
            page_request_timeout: PageTimeout::Never,
            ..GuestConfig::USUAL
        };
        let [place, neighbour] =
            [NAME, NEIGHBOUR].map(|name| server.add_guest(dir.path(), name, config).unwrap());
        let bound = place.bound();
        let what = format!("{pasid_table}'s table, stage 2: {stage_two}, called: {calls}");
        Self { what, server, place, ram: ram(NAME, true), said, neighbour, bound, _dir: dir }
    }

    /// Tells `story` while the neighbour works. Says how many rounds it did and how long the longest took.
    pub(crate) fn beside_a_neighbour(&self, story: impl FnOnce(&AtomicU64)) -> (u64, Duration) {
        let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        let longest = thread::scope(|scope| {
            let neighbour = scope.spawn(|| work(&self.neighbour, &stop, &rounds));
            let stopping = StopOnDrop(&stop);
            go_on(&rounds);
            story(&rounds);
            go_on(&rounds);
            drop(stopping);
            neighbour.join().unwrap()
        });
        assert!(longest < SOON, "the neighbour was held up for {longest:?}");
        let ended = Ended::of(&self.neighbour);
        assert_eq!(ended, Ended { by_guest: ended.by_guest, ..Ended::NONE }, "the neighbour's");
        assert_eq!(count(&self.neighbour, "faults"), 0);
        (rounds.into_inner(), longest)
    }

    /// Has all descriptors of a guest that works wait for pages.
    pub(crate) fn have_it_wait(&self, kernel: &mut Kernel) -> Ended {
        kernel.round(FILLS, 0x5a5a);
        let queued = || count(&self.place, "page_requests_queued");
        let before = queued();
        (0..QUEUE.into()).for_each(|index| kernel.fill(index, !0));
        let wait = || self.waits() == (WAITING, WAITING) && queued() == before + WAITING;
        eventually("the page requests", wait);
        assert_eq!(self.place.outstanding_page_requests().len() as u64, WAITING);
        Ended::of(&self.place)
    }

    /// Groups that are not answered, and descriptors that wait.
    pub(crate) fn waits(&self) -> (u64, u64) {
        let of = |name: &str| count(&self.place, name);
        (of("page_requests_outstanding"), of("descriptors_blocked"))
    }

    /// How groups ended since `before`.
    pub(crate) fn ended_since(&self, before: Ended) -> Ended {
        Ended::of(&self.place).since(before)
    }

    /// Asserts that nobody waits, no PASID of the guest's is there, and nothing is cached for it.
    pub(crate) fn nothing_is_left(&self, what: &str) {
        assert_eq!(self.waits(), (0, 0), "{what}");
        assert!(self.place.outstanding_page_requests().is_empty(), "{what}");
        let report = self.server.pasids();
        assert_eq!(report.parked, 0, "{what}");
        let its = report.vms.iter().find(|vm| vm.name == NAME).unwrap();
        assert!(its.entries.is_empty(), "{what}: {its:?}");
        let cached = self.place.vm_counters();
        assert_eq!((cached.iotlb_entries, cached.pasid_entries), (0, 0), "{what}");
        assert_eq!(self.place.bound(), self.bound, "{what}");
        assert_eq!(self.place.cached_domains(), 0, "{what}");
    }

    /// Asserts that nothing was written at guest physical addresses that are the process's virtual ones: no access
    /// went past a translation that was gone.
    pub(crate) fn is_free_of_strays(&self, what: &str) {
        let mut bytes = vec![0; (REACHED.end - REACHED.start) as usize];
        self.ram.read_exact_at(&mut bytes, REACHED.start).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{what}: a stray write");
    }
}

/// Waits until the neighbour has done a whole round that began after this did.
pub(crate) fn go_on(rounds: &AtomicU64) {
    let before = rounds.load(Ordering::SeqCst);
    eventually("the neighbour goes on", || rounds.load(Ordering::SeqCst) > before + 1);
}

/// The neighbour: fills memory that is not there, until it is told to stop.
fn work(place: &GuestPlace, stop: &AtomicBool, rounds: &AtomicU64) -> Duration {
    let ram = ram(NEIGHBOUR, true);
    let mut kernel = Kernel::boot(place, &ram);
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        kernel.round(FILLS, rounds.load(Ordering::SeqCst) << 8);
        longest = longest.max(begun.elapsed());
        rounds.fetch_add(1, Ordering::SeqCst);
    }
    longest
}
