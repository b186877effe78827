//! Two VMs that share a device of the host's.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use ioasid::Priority;
use iommu::{
    Channel, DmaError, Endpoint, Host, HostPasid, HwptId, Numbering, PasidEvent, PasidHold,
    PasidRange, PasidSubscriber, SoftwareHost, SoftwareVm, Vm, VmConfig,
};
use mem::{Gpa, MemoryMap};
use pci::RequesterId;

use super::scenarios::{check, submitted, CONFIG};
use crate::common::hosted::{guest, Hosted, VA};
use crate::common::scenarios::Verdict;
use crate::common::{dma, pasid, wait, with, Guest, Op, DEVICE};

/// What the device is to the host's own VM.
pub const OWN: RequesterId = RequesterId::from_bits(0x6a00);

/// A VM that shares the device, with PASID 5 attached to a page that holds its word.
pub struct Sharer {
    pub guest: Guest,
    pub space: HwptId,
    /// Another one, with [`OTHER`] where the first has its word.
    pub other_space: HwptId,
    pub host: HostPasid,
}

pub struct Shared {
    pub host: SoftwareHost,
    pub own: SoftwareVm,
    pub own_memory: Arc<MemoryMap>,
    pub endpoint: Endpoint,
    pub sharers: Vec<Sharer>,
}

pub const WORDS: [u64; 2] = [11, 22];
pub const OTHER: u64 = 33;

impl Shared {
    pub fn new(numbering: Numbering) -> Self {
        let host = SoftwareHost::new();
        let own = host.create_vm(VmConfig::named("host")).unwrap();
        let own_memory = Arc::new(MemoryMap::anonymous(&[(Gpa(0), 0x10_0000)]).unwrap());
        let _ = own.set_memory(MemoryMap::clone(&own_memory));
        let (mut sharers, mut endpoints) = (Vec::new(), Vec::new());
        for word in WORDS {
            let mut hosted = Hosted::on(&host, numbering);
            let space = hosted.space(0x10_0000, word);
            let other_space = hosted.space(0x11_0000, OTHER);
            let number = match numbering {
                Numbering::Private => hosted.grant(5),
                Numbering::Identity => hosted.guest.vm.alloc_pasid(PasidRange::ALL).unwrap(),
            };
            let table = hosted.guest.vm.translate_pasids(CONFIG).unwrap();
            hosted.guest.vm.attach_hwpt(DEVICE, Some(number), space).unwrap();
            let of_host = submitted(&mut table.vcpu().unwrap(), number.0.get()).unwrap();
            let Hosted { guest, endpoint, channel, .. } = hosted;
            drop(channel);
            endpoints.push(endpoint);
            sharers.push(Sharer { guest, space, other_space, host: HostPasid(pasid(of_host)) });
        }
        let endpoint = own.attach(OWN).unwrap().shared_by(endpoints).unwrap();
        Self { host, own, own_memory, endpoint, sharers }
    }

    pub fn read(&self, channel: &Channel, vm: usize) -> Result<u64, DmaError> {
        dma(channel, with(self.sharers[vm].host.0.get()), VA, Op::Read)
    }

    pub fn end(self) {
        let Self { host, own, endpoint, sharers, .. } = self;
        wait(&own, endpoint.detach());
        wait(&own, own.close());
        for sharer in sharers {
            wait(&sharer.guest.vm, sharer.guest.vm.close());
        }
        assert_eq!((host.pasid_report().live, host.pasid_report().parked), (0, 0));
        host.check_books().unwrap();
    }
}

/// Keeps every number that was bound from being anybody's again.
#[derive(Default)]
struct Hoarder(Mutex<Vec<PasidHold>>);

impl PasidSubscriber for Hoarder {
    fn commit(&self, event: &PasidEvent<'_>) {
        self.0.lock().unwrap().push(event.hold().unwrap());
    }
}

/// A guest gives its PASID back and takes the same number for another address space, again and
/// again, while the device goes on with what number of the host's it was given before.
pub fn reused() -> Verdict {
    const ROUNDS: u64 = 100;
    let shared = Shared::new(Numbering::Private);
    let hoarder = Arc::new(Hoarder::default());
    let hoarding = shared.host.subscribe("hoarder", Priority::Last, hoarder.clone()).unwrap();
    let channel = shared.endpoint.channel();
    let Sharer { guest: of, space, other_space, host } = &shared.sharers[0];
    let (vm, spaces) = (&of.vm, [(*space, WORDS[0]), (*other_space, OTHER)]);
    let table = vm.translate_pasids(CONFIG).unwrap();
    let mut vcpu = table.vcpu().unwrap();
    // The first one is hoarded, too.
    wait(vm, vm.detach_hwpt(DEVICE, Some(guest(5))).unwrap());
    vm.attach_hwpt(DEVICE, Some(guest(5)), *space).unwrap();
    // What the device was given, and the one word that it may find with it.
    let given = Mutex::new((host.0.get(), WORDS[0]));
    let over = AtomicBool::new(false);
    let (found, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let (number, word) = *given.lock().unwrap();
                for _ in 0..20 {
                    if let Ok(read) = dma(&channel, with(number), VA, Op::Read) {
                        found.fetch_add(1, Ordering::Relaxed);
                        wrong.fetch_add(u64::from(read != word), Ordering::Relaxed);
                    }
                }
            }
        });
        for round in 1..=ROUNDS {
            vm.free_pasid(guest(5)).unwrap();
            while vm.alloc_pasid(PasidRange::new(pasid(5), pasid(5)).unwrap()).is_err() {
                thread::yield_now();
            }
            let (space, word) = spaces[(round % 2) as usize];
            vm.attach_hwpt(DEVICE, Some(guest(5)), space).unwrap();
            // For a while the device has only the number of before.
            for _ in 0..round % 5 {
                thread::yield_now();
            }
            *given.lock().unwrap() = (submitted(&mut vcpu, 5).unwrap(), word);
        }
        // What is bound now stays so.
        while found.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
    });
    drop((vcpu, table, channel, hoarding));
    hoarder.0.lock().unwrap().clear();
    shared.end();
    let (found, wrong) = (found.into_inner(), wrong.into_inner());
    check(wrong == 0, &format!("{wrong} of {found} led elsewhere"))
}
