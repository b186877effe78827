//! Who else is told when a PASID is attached, detached and given back: when, in which order, and
//! what becomes of it if he says no, is slow, or calls back.
#![cfg(not(loom))]

mod common;

use std::sync::{Arc, Mutex};

use common::hosted::*;
use common::*;
use ioasid::{Executor, Priority, Refusal};
use iommu::{
    Endpoint, GuestPasid, HostConfig, HwptId, Numbering, ObjectError, PasidEvent, PasidHold,
    PasidRange, PasidSubscriber, SoftwareHost, SoftwareVm, Vm,
};
use pci::RequesterId;

/// What was told, with the host's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Prepare,
    Commit,
    Abort,
    Unbind,
    Free,
}

/// Who was told what, and of which PASID of the guest's.
type Log = Arc<Mutex<Vec<(&'static str, Told, u32)>>>;

type Hook = Box<dyn Fn(Told) + Send + Sync>;

/// Writes down what it is told, and does something then.
struct Recorder {
    name: &'static str,
    log: Log,
    refuse: Mutex<bool>,
    hook: Mutex<Option<Hook>>,
}

impl Recorder {
    fn new(name: &'static str, log: &Log) -> Arc<Self> {
        let (log, refuse, hook) = (log.clone(), Mutex::new(false), Mutex::new(None));
        Arc::new(Self { name, log, refuse, hook })
    }

    fn note(&self, told: Told, event: &PasidEvent<'_>) {
        self.log.lock().unwrap().push((self.name, told, event.guest.0.get()));
        // Taken: it may cause further events.
        let hook = self.hook.lock().unwrap().take();
        if let Some(hook) = hook {
            hook(told);
            self.hook.lock().unwrap().get_or_insert(hook);
        }
    }
}

impl PasidSubscriber for Recorder {
    fn prepare(&self, event: &PasidEvent<'_>) -> Result<(), Refusal> {
        self.note(Told::Prepare, event);
        match *self.refuse.lock().unwrap() {
            true => Err(Refusal::NoSpace),
            false => Ok(()),
        }
    }

    fn commit(&self, event: &PasidEvent<'_>) {
        self.note(Told::Commit, event);
    }

    fn abort(&self, event: &PasidEvent<'_>) {
        self.note(Told::Abort, event);
    }

    fn unbind(&self, event: &PasidEvent<'_>) {
        self.note(Told::Unbind, event);
    }

    fn free(&self, event: &PasidEvent<'_>) {
        self.note(Told::Free, event);
    }
}

fn five() -> GuestPasid {
    guest(5)
}

/// A VM with PASID 5, of private numbers, and what is told of it to a processors' table.
struct Watched {
    hosted: Hosted,
    cpu: Arc<Recorder>,
    log: Log,
    space: HwptId,
    _subscription: iommu::PasidSubscription,
}

impl Watched {
    fn new() -> Self {
        Self::on(&SoftwareHost::new())
    }

    fn on(host: &SoftwareHost) -> Self {
        let mut hosted = Hosted::on(host, Numbering::Private);
        let space = hosted.space(0x10_0000, 11);
        hosted.grant(5);
        let log = Log::default();
        let cpu = Recorder::new("cpu", &log);
        let _subscription = host.subscribe("cpu", Priority::Cpu, cpu.clone()).unwrap();
        Self { hosted, cpu, log, space, _subscription }
    }

    fn vm(&self) -> SoftwareVm {
        self.hosted.guest.vm.clone()
    }

    fn log(&self) -> Vec<Told> {
        let log = std::mem::take(&mut *self.log.lock().unwrap());
        log.into_iter().map(|(_, told, _)| told).collect()
    }

    fn hook(&self, hook: impl Fn(Told) + Send + Sync + 'static) {
        *self.cpu.hook.lock().unwrap() = Some(Box::new(hook));
    }

    fn end(self) {
        *self.cpu.hook.lock().unwrap() = None;
        self.hosted.end();
    }
}

#[test]
fn what_opens_and_closes_does_so_in_order() {
    let watched = Watched::new();
    let vm = watched.vm();
    let channel = watched.hosted.endpoint.channel();
    let reads = Arc::new(Mutex::new(Vec::new()));
    let seen = reads.clone();
    watched.hook(move |told| {
        let read = dma(&channel, with(5), VA, Op::Read).is_ok();
        seen.lock().unwrap().push((told, read));
    });
    watched.hosted.attach(5, watched.space);
    wait(&vm, vm.detach_hwpt(DEVICE, Some(five())).unwrap());
    // The processors open when the devices' table is there, and close before it goes.
    let expected = [(Told::Prepare, false), (Told::Commit, true), (Told::Unbind, true)];
    assert_eq!(*reads.lock().unwrap(), expected);
    assert!(watched.hosted.read(5).is_err());
    watched.end();
}

#[test]
fn an_event_names_the_vm_and_both_numbers() {
    #[derive(Default)]
    struct Last(Mutex<Option<(String, u32, u32)>>);
    impl PasidSubscriber for Last {
        fn commit(&self, event: &PasidEvent<'_>) {
            let numbers = (event.guest.0.get(), event.host.0.get());
            *self.0.lock().unwrap() = Some((event.vm.into(), numbers.0, numbers.1));
        }
    }
    let host = SoftwareHost::new();
    let first = Hosted::on(&host, Numbering::Private);
    first.grant(1);
    let watched = Watched::on(&host);
    let last = Arc::new(Last::default());
    let subscription = host.subscribe("kvm", Priority::Cpu, last.clone()).unwrap();
    watched.hosted.attach(5, watched.space);
    let report = host.pasid_report();
    let host_number = report.vms[1].entries[0].host.0.get();
    assert_eq!(last.0.lock().unwrap().take(), Some(("hosted".into(), 5, host_number)));
    assert_ne!(host_number, 5);
    drop(subscription);
    first.end_one();
    watched.end();
}

#[test]
fn a_refusal_undoes_the_attachment() {
    let watched = Watched::new();
    let vm = watched.vm();
    let device = Recorder::new("device", &watched.log);
    let subscription =
        watched.hosted.guest.host.subscribe("device", Priority::Device, device).unwrap();
    *watched.cpu.refuse.lock().unwrap() = true;
    let refused = vm.attach_hwpt(DEVICE, Some(five()), watched.space);
    assert_eq!(refused, Err(ObjectError::Refused));
    // Whoever had agreed is told that nothing comes of it.
    let log = std::mem::take(&mut *watched.log.lock().unwrap());
    let expected =
        [("device", Told::Prepare, 5), ("cpu", Told::Prepare, 5), ("device", Told::Abort, 5)];
    assert_eq!(log, expected);
    assert!(watched.hosted.read(5).is_err());
    let holders = watched.hosted.guest.host.pasid_report().vms[0].entries[0].holders.clone();
    assert_eq!(holders, ["guest", "iotlb"], "no reference is left");
    assert_eq!(vm.detach_hwpt(DEVICE, Some(five())), Err(ObjectError::NotAttached));
    *watched.cpu.refuse.lock().unwrap() = false;
    watched.hosted.attach(5, watched.space);
    assert_eq!(watched.hosted.read(5), Ok(11));
    drop(subscription);
    watched.end();
}

#[test]
fn only_the_first_and_the_last_attachment_is_told() {
    let watched = Watched::new();
    let vm = watched.vm();
    let other = RequesterId::from_bits(0x90);
    let endpoint = vm.attach(other).unwrap();
    watched.hosted.attach(5, watched.space);
    vm.attach_hwpt(other, Some(five()), watched.space).unwrap();
    assert_eq!(watched.log(), [Told::Prepare, Told::Commit]);
    wait(&vm, vm.replace_hwpt(DEVICE, Some(five()), watched.hosted.parent).unwrap());
    wait(&vm, vm.detach_hwpt(DEVICE, Some(five())).unwrap());
    assert_eq!(watched.log(), []);
    wait(&vm, endpoint.detach());
    assert_eq!(watched.log(), [Told::Unbind]);
    watched.end();
}

#[test]
fn a_free_tells_once_and_no_unbind() {
    let watched = Watched::new();
    let vm = watched.vm();
    watched.hosted.attach(5, watched.space);
    watched.log();
    vm.free_pasid(five()).unwrap();
    assert_eq!(watched.log(), [], "freeing calls nobody");
    assert_eq!(vm.pasid_usage().live, 0);
    assert_eq!(watched.log(), [Told::Free]);
    watched.hosted.grant(5);
    watched.end();
}

/// Counts how often there is work, and leaves it to the test.
#[derive(Default)]
struct Later(std::sync::atomic::AtomicU64);

impl Executor for Later {
    fn schedule(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn with_an_executor_polls_call_nobody() {
    let later = Arc::new(Later::default());
    let executor: Option<Arc<dyn Executor>> = Some(later.clone());
    let host = SoftwareHost::with_config(HostConfig { executor, ..HostConfig::default() }).unwrap();
    let watched = Watched::on(&host);
    let vm = watched.vm();
    watched.hosted.attach(5, watched.space);
    watched.log();
    let ticket = vm.release_pasids();
    assert!(later.0.load(std::sync::atomic::Ordering::Relaxed) > 0);
    assert!(!vm.is_complete(ticket), "nobody was told yet");
    // Meanwhile no access passes, and other tickets are not held up.
    assert!(watched.hosted.read(5).is_err());
    wait(&vm, vm.invalidate(iommu::Invalidation::IotlbAll));
    let report = host.pasid_report();
    assert_eq!(report.vms[0].entries[0].holders, ["iotlb", "iommu"]);
    assert_eq!(vm.pasid_usage().parked, 1);
    assert_eq!(watched.log(), []);
    while host.work(1) == ioasid::Work::More {}
    assert_eq!(watched.log(), [Told::Free]);
    assert!(vm.is_complete(ticket));
    assert_eq!(vm.pasid_usage().parked, 0);
    wait_working(&host, &vm);
    host.check_books().unwrap();
}

/// Closes a VM whose host leaves work to the test.
fn wait_working(host: &SoftwareHost, vm: &SoftwareVm) {
    let ticket = vm.close();
    while !vm.is_complete(ticket) {
        while host.work(1) == ioasid::Work::More {}
    }
}

#[test]
fn a_subscribers_own_reference_keeps_the_number_after_the_vms_end() {
    #[derive(Default)]
    struct Slow(Mutex<Option<PasidHold>>);
    impl PasidSubscriber for Slow {
        fn commit(&self, event: &PasidEvent<'_>) {
            *self.0.lock().unwrap() = Some(event.hold().unwrap());
        }
        fn free(&self, event: &PasidEvent<'_>) {
            assert!(event.hold().is_err());
        }
    }
    let watched = Watched::new();
    let host = watched.hosted.guest.host.clone();
    let vm = watched.vm();
    let slow = Arc::new(Slow::default());
    let subscription = host.subscribe("slow", Priority::Cpu, slow.clone()).unwrap();
    watched.hosted.attach(5, watched.space);
    watched.log();
    wait(&vm, vm.close());
    assert_eq!(watched.log(), [Told::Free]);
    drop((watched, vm));
    assert_eq!((host.pasid_report().live, host.pasid_report().parked), (0, 1));
    *slow.0.lock().unwrap() = None;
    assert_eq!((host.pasid_report().live, host.pasid_report().parked), (0, 0));
    drop(subscription);
    host.check_books().unwrap();
}

/// What a handler does while it is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Attach,
    Replace,
    Detach,
    Free,
    Release,
    DetachDevice,
    Close,
    Destroy,
    Poll,
}

const ACTIONS: [Action; 9] = [
    Action::Attach,
    Action::Replace,
    Action::Detach,
    Action::Free,
    Action::Release,
    Action::DetachDevice,
    Action::Close,
    Action::Destroy,
    Action::Poll,
];

fn act(action: Action, vm: &SoftwareVm, space: HwptId, device: &Mutex<Option<Endpoint>>) {
    match action {
        Action::Attach => drop(vm.attach_hwpt(DEVICE, Some(five()), space)),
        Action::Replace => drop(vm.replace_hwpt(DEVICE, Some(five()), space)),
        Action::Detach => drop(vm.detach_hwpt(DEVICE, Some(five()))),
        Action::Free => drop(vm.free_pasid(five())),
        Action::Release => {
            let ticket = vm.release_pasids();
            vm.is_complete(ticket);
        }
        Action::DetachDevice => drop(device.lock().unwrap().take()),
        Action::Close => {
            let ticket = vm.close();
            vm.is_complete(ticket);
        }
        Action::Destroy => drop(vm.destroy(space.into())),
        Action::Poll => assert!(vm.pasid_usage().live <= 1),
    }
}

/// Whatever a handler does to the very thing that it is told of: nothing hangs, nothing of a
/// PASID that is gone stays programmed, and everything is given back.
#[test]
fn handlers_may_call_back() {
    for at in [Told::Prepare, Told::Commit, Told::Abort, Told::Unbind, Told::Free] {
        for action in ACTIONS {
            let watched = Watched::new();
            let (vm, host) = (watched.vm(), watched.hosted.guest.host.clone());
            let Watched { hosted, cpu, log, space, _subscription } = watched;
            let Hosted { guest: of, parent, endpoint, channel } = hosted;
            let device = Arc::new(Mutex::new(Some(endpoint)));
            // Told before the processors' table, so it hears of the abort.
            let first = Recorder::new("first", &log);
            let of_first = host.subscribe("first", Priority::Device, first.clone()).unwrap();
            *cpu.refuse.lock().unwrap() = at == Told::Abort;
            let (in_vm, in_device) = (vm.clone(), device.clone());
            *first.hook.lock().unwrap() = Some(Box::new(move |told| {
                if told == at {
                    act(action, &in_vm, space, &in_device);
                }
            }));
            let attached = vm.attach_hwpt(DEVICE, Some(five()), space);
            if at == Told::Abort {
                assert_eq!(attached, Err(ObjectError::Refused), "{action:?}");
            }
            match at {
                Told::Unbind => drop(vm.detach_hwpt(DEVICE, Some(five()))),
                Told::Free => drop(vm.free_pasid(five())),
                _ => {}
            }
            let _ = vm.pasid_usage();
            let told = log.lock().unwrap().iter().any(|&(_, told, _)| told == at);
            assert!(told, "{at:?} was told");
            let range = PasidRange::new(pasid(5), pasid(5)).unwrap();
            let granted_anew = vm.alloc_pasid(range).is_ok();
            if granted_anew || device.lock().unwrap().is_none() {
                assert!(dma(&channel, with(5), VA, Op::Read).is_err(), "{at:?} {action:?}");
            }
            *first.hook.lock().unwrap() = None;
            drop((of_first, _subscription));
            let endpoint = device.lock().unwrap().take();
            match endpoint {
                Some(endpoint) => Hosted { guest: of, parent, endpoint, channel }.end(),
                None => {
                    drop(channel);
                    wait(&vm, vm.close());
                    drop(of);
                    host.check_books().unwrap();
                    assert_eq!((host.pasid_report().live, host.pasid_report().parked), (0, 0));
                }
            }
        }
    }
}
