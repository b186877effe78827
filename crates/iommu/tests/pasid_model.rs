//! A host and its VMs against plain maps, under random calls with forged numbers: every answer is
//! the one predicted, and after every step the books balance to the ID.
#![cfg(not(loom))]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::pasid;
use iommu::pasid::{AllocError, Consumer, GrantState, PasidAllocator, Scope};
use iommu::{
    AllocPasidError, Channel, FreePasidError, GuestPasid, Host, HostError, InFlight, Numbering,
    PasidRange, SoftwareHost, SoftwareVm, Vm, VmConfig,
};
use pci::RequesterId;
use proptest::prelude::*;

/// Numbers of the host's space that are handed out: 1 to this.
const NUMBERS: u32 = 15;
const VMS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc {
        vm: usize,
        first: u32,
        last: u32,
    },
    /// Any number, most often a forged, stale or foreign one.
    Free {
        vm: usize,
        number: u32,
    },
    /// An access of the VM's device begins, or ends.
    Access {
        vm: usize,
    },
    Reset {
        vm: usize,
    },
    Close {
        vm: usize,
    },
    /// A VM without devices comes and goes.
    Guest {
        quota: u32,
    },
    /// The host's own kernel allocates, or frees.
    OwnAlloc,
    OwnFree {
        number: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (vm, number) = (0..VMS, 0..=NUMBERS + 1);
    let step = prop_oneof![
        8 => (vm.clone(), number.clone(), number.clone())
            .prop_map(|(vm, first, last)| Step::Alloc { vm, first, last }),
        6 => (vm.clone(), number.clone()).prop_map(|(vm, number)| Step::Free { vm, number }),
        4 => vm.clone().prop_map(|vm| Step::Access { vm }),
        1 => vm.clone().prop_map(|vm| Step::Reset { vm }),
        1 => vm.prop_map(|vm| Step::Close { vm }),
        1 => (0..=NUMBERS + 1).prop_map(|quota| Step::Guest { quota }),
        1 => Just(Step::OwnAlloc),
        1 => number.prop_map(|number| Step::OwnFree { number }),
    ];
    prop::collection::vec(step, 1..60)
}

/// What one VM ought to have. Host numbers are known in identity numbering alone.
struct Expected {
    quota: u32,
    numbering: Numbering,
    live: BTreeSet<u32>,
    /// Given back during an access that is not over.
    parked: BTreeSet<u32>,
    closed: bool,
}

impl Expected {
    fn out(&self) -> u32 {
        (self.live.len() + self.parked.len()) as u32
    }

    fn owes(&self) -> u32 {
        if self.closed && self.out() == 0 {
            0
        } else {
            self.quota
        }
    }

    fn has(&self, number: u32) -> bool {
        self.live.contains(&number) || self.parked.contains(&number)
    }

    fn park_all(&mut self, in_flight: bool) {
        let all = std::mem::take(&mut self.live);
        if in_flight {
            self.parked.extend(all);
        }
    }
}

struct World<'c> {
    host: SoftwareHost,
    vms: Vec<SoftwareVm>,
    channels: &'c [Channel],
    in_flight: Vec<Option<InFlight<'c>>>,
    expected: Vec<Expected>,
    own: Consumer<()>,
    own_expected: BTreeSet<u32>,
}

impl World<'_> {
    fn promised(&self) -> u32 {
        self.expected.iter().map(Expected::owes).sum::<u32>() + self.own_expected.len() as u32
    }

    /// The host's numbers, each with how often it is out.
    fn host_numbers(&self) -> BTreeMap<u32, u32> {
        let mut numbers = BTreeMap::new();
        let report = self.host.pasid_report();
        let of_vms = report.vms.iter().flat_map(|vm| &vm.entries).map(|entry| entry.host.0.get());
        for number in of_vms.chain(self.own_expected.iter().copied()) {
            *numbers.entry(number).or_default() += 1;
        }
        numbers
    }

    fn alloc(&mut self, vm: usize, first: u32, last: u32) {
        let taken = self.host_numbers();
        let expected = &mut self.expected[vm];
        let mut free = (first.max(1)..=last).filter(|number| match expected.numbering {
            Numbering::Identity => *number <= NUMBERS && !taken.contains_key(number),
            Numbering::Private => !expected.has(*number),
        });
        let range = PasidRange { first: pasid(first), last: pasid(last) };
        let got = self.vms[vm].alloc_pasid(range);
        let quota = expected.quota;
        let want = match got {
            _ if expected.closed => Err(AllocPasidError::Closed),
            _ if expected.out() >= quota => Err(AllocPasidError::QuotaExceeded { quota }),
            // Any free number will do, if there is one.
            Ok(granted) if free.any(|number| number == granted.0.get()) => Ok(granted),
            _ => Err(AllocPasidError::NoneAvailable),
        };
        assert_eq!(got, want);
        assert!(got != Err(AllocPasidError::NoneAvailable) || free.next().is_none());
        if let Ok(granted) = want {
            expected.live.insert(granted.0.get());
        }
    }

    fn free(&mut self, vm: usize, number: u32) {
        let (expected, forged) = (&mut self.expected[vm], GuestPasid(pasid(number)));
        let want = match expected.live.contains(&number) {
            _ if expected.closed => Err(FreePasidError::Closed),
            true => Ok(()),
            false => Err(FreePasidError::NotGranted(forged)),
        };
        assert_eq!(self.vms[vm].free_pasid(forged), want);
        if want.is_ok() {
            expected.live.remove(&number);
            if self.in_flight[vm].is_some() {
                expected.parked.insert(number);
            }
        }
    }

    fn access(&mut self, vm: usize) {
        match self.in_flight[vm].take() {
            Some(access) => {
                drop(access);
                self.expected[vm].parked.clear();
            }
            None => self.in_flight[vm] = Some(self.channels[vm].enter()),
        }
    }

    fn guest(&mut self, quota: u32) {
        let available = NUMBERS - self.promised();
        let vm = self.host.create_vm(VmConfig { quota, ..VmConfig::default() });
        if quota > available {
            let refused = HostError::QuotaUnavailable { quota, available };
            assert_eq!(vm.unwrap_err(), refused);
        } else {
            let vm = vm.unwrap();
            assert_eq!(self.host.pasid_report().promised, self.promised() + quota);
            // Dropped with what it has.
            let _ = vm.alloc_pasid(PasidRange::ALL);
        }
    }

    fn own_alloc(&mut self) {
        let taken = self.host_numbers();
        let some = self.promised() < NUMBERS;
        match self.own.alloc(PasidRange::ALL, ()) {
            Ok(pasid) => {
                assert!(some && !taken.contains_key(&pasid.get()));
                self.own_expected.insert(pasid.get());
            }
            Err(error) => assert_eq!((error, some), (AllocError::NoneAvailable, false)),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Alloc { vm, first, last } => self.alloc(vm, first, last),
            Step::Free { vm, number } => self.free(vm, number),
            Step::Access { vm } => self.access(vm),
            Step::Reset { vm } => {
                let ticket = self.vms[vm].release_pasids();
                let in_flight = self.in_flight[vm].is_some();
                self.expected[vm].park_all(in_flight);
                assert_eq!(self.vms[vm].is_complete(ticket), !in_flight);
            }
            Step::Close { vm } => {
                let ticket = self.vms[vm].close();
                let in_flight = self.in_flight[vm].is_some();
                let first = !std::mem::replace(&mut self.expected[vm].closed, true);
                self.expected[vm].park_all(in_flight);
                if first {
                    assert_eq!(self.vms[vm].is_complete(ticket), !in_flight);
                }
            }
            Step::Guest { quota } => self.guest(quota),
            Step::OwnAlloc => self.own_alloc(),
            Step::OwnFree { number } => {
                let had = self.own_expected.remove(&number);
                assert_eq!(self.own.free(pasid(number)).is_ok(), had);
            }
        }
    }

    fn check_books(&self) {
        assert_eq!(self.host.check_books(), Ok(()));
        let report = self.host.pasid_report();
        assert_eq!(report.capacity, NUMBERS);
        assert_eq!(report.promised, self.promised(), "sum of quotas");
        let live: usize = self.expected.iter().map(|vm| vm.live.len()).sum();
        let parked: usize = self.expected.iter().map(|vm| vm.parked.len()).sum();
        assert_eq!(report.live as usize, live + self.own_expected.len());
        assert_eq!(report.parked as usize, parked, "no look-up holds a number");
        assert!(self.host_numbers().values().all(|times| *times == 1), "a number is out once");

        let mut reported = report.vms.iter();
        for (vm, expected) in self.vms.iter().zip(&self.expected) {
            let usage = vm.pasid_usage();
            assert_eq!(usage.quota, expected.owes());
            assert_eq!(usage.live, expected.live.len() as u32);
            assert_eq!(usage.parked, expected.parked.len() as u32);
            // A VM that is closed and owes nothing is in no report.
            if expected.closed && expected.out() == 0 {
                continue;
            }
            let reported = reported.next().unwrap();
            assert_eq!((reported.closed, reported.usage), (expected.closed, usage));
            let of = |state| -> BTreeSet<u32> {
                let entries = reported.entries.iter().filter(|entry| entry.state == state);
                entries.map(|entry| entry.guest.0.get()).collect()
            };
            assert_eq!(of(GrantState::Live), expected.live);
            assert_eq!(of(GrantState::Parked), expected.parked);
            if expected.numbering == Numbering::Identity {
                assert!(reported.entries.iter().all(|entry| entry.guest.0 == entry.host.0));
            }
        }
        assert!(reported.next().is_none());
        let own: BTreeSet<u32> = self.own_expected.clone();
        assert_eq!(self.own.len(), own.len());
        let listed =
            self.own.for_each(
                |pasid, ()| {
                    if own.contains(&pasid.get()) {
                        Ok(())
                    } else {
                        Err(pasid)
                    }
                },
            );
        assert_eq!(listed, Ok(()));
    }
}

fn run(quotas: &[(u32, bool)], steps: &[Step]) {
    let config = ioasid::Config { width: 4, ..ioasid::Config::default() };
    let host = SoftwareHost::with_pasids(config, None).unwrap();
    let expected: Vec<_> = quotas
        .iter()
        .map(|&(quota, private)| Expected {
            quota,
            numbering: if private { Numbering::Private } else { Numbering::Identity },
            live: BTreeSet::new(),
            parked: BTreeSet::new(),
            closed: false,
        })
        .collect();
    let vms: Vec<_> = expected
        .iter()
        .map(|&Expected { quota, numbering, .. }| {
            let config = VmConfig { quota, numbering, ..VmConfig::default() };
            host.create_vm(config).unwrap()
        })
        .collect();
    let endpoints: Vec<_> =
        vms.iter().map(|vm| vm.attach(RequesterId::from_bits(8)).unwrap()).collect();
    let channels: Vec<_> = endpoints.iter().map(|endpoint| endpoint.channel()).collect();
    let pasids: PasidAllocator = host.pasid_allocator();
    let mut world = World {
        host: host.clone(),
        in_flight: vms.iter().map(|_| None).collect(),
        vms,
        channels: &channels,
        expected,
        own: Consumer::init(&pasids, Scope::Bus(0)).unwrap(),
        own_expected: BTreeSet::new(),
    };
    for step in steps {
        world.step(*step);
        world.check_books();
    }
    drop(world);
    drop((channels, endpoints));
    let report = host.pasid_report();
    assert_eq!((report.promised, report.live, report.parked), (0, 0, 0), "at the end");
    assert_eq!(report.vms, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_host_keeps_its_books(
        quotas in prop::collection::vec((0..=NUMBERS / VMS as u32, any::<bool>()), VMS),
        steps in steps(),
    ) {
        run(&quotas, &steps);
    }
}
