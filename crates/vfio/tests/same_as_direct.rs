//! A host behind encoded bytes against the same host called directly, under random commands: every
//! answer, every fault and every counter is the same.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iommu::{
    AddressSpace, Channel, ContextFault, ContextSource, DeviceContext, DomainId, Endpoint,
    EventQueueId, FaultQueueId, FaultReason, GuestPasid, Host, HwptFlags, HwptId, HwptParent,
    HwptRequest, Invalidation, IoasId, Numbering, ObjectError, ObjectId, PageRange, PageRequest,
    PageRequestPolicy, PageResponse, PageResponses, Pasid, PasidRange, PrgIndex, ResponseCode,
    SoftwareHost, StageOneInvalidation, StageOneTable, TakenGroups, Ticket, ViommuId, ViommuKind,
    Vm, VmConfig, VtdStageOne, VtdStageOneFlags,
};
use mem::{Access, Backing, Gpa, GuestMemory, HeapMemory, Iova, MemoryMap, Range, Segment};
use pci::RequesterId;
use proptest::prelude::*;
use vfio::{Client, Dispatcher, Revision};

const PAGE: u64 = 0x1000;
const BACKINGS: usize = 3;
const BACKING_PAGES: u64 = 4;
const DEVICES: usize = 3;
const FAULT_ID_VALID: u32 = 4;

/// A piece of a memory map, in pages.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: u64,
    pages: u64,
    backing: usize,
    offset: u64,
    write: bool,
}

#[derive(Debug, Clone)]
enum Command {
    SetMemory(Vec<Piece>),
    /// Pass-through, a fault, or none.
    SetContexts(u8),
    Invalidate(Invalidation),
    IsComplete(usize),
    IsForgedComplete(u64),
    TakeFault,
    SetWaker(bool),
    Attach(usize),
    Detach(usize),
    Access {
        device: usize,
        pasid: Option<u32>,
        page: u64,
        write: bool,
    },
    /// Begins an access that lasts, or ends it.
    Linger(usize),
    Alloc(u32, u32),
    Free(u32),
    Release,
    Usage,
    Counters,
    Memory,
    Object(ObjectCommand),
    /// A device asks for a page.
    Ask {
        device: usize,
        pasid: Option<u32>,
        group: u16,
        bits: u8,
    },
    TakePageRequest,
    Respond {
        device: usize,
        pasid: Option<u32>,
        group: u16,
        code: ResponseCode,
    },
    Forget(usize),
    Unanswered(usize),
    /// Whether a device has a TLB, and keeps its answers to itself.
    Ats(usize, bool, bool),
    GiveUpAnswers(usize),
    GiveUpForged(u64),
    InFlight,
    Tick(u64),
    Close,
}

/// A call on an object; objects are named by when their ids were given.
#[derive(Debug, Clone)]
enum ObjectCommand {
    Ioas,
    Hardware(usize),
    /// Flags and a root, if it is to be nested.
    AllocHwpt {
        device: usize,
        parent: usize,
        flags: u32,
        root: Option<u64>,
        on_hwpt: bool,
        queue: Option<usize>,
    },
    AllocViommu(usize, usize),
    AllocFaultQueue,
    AllocEventQueue(usize),
    TakeEvent(usize),
    Destroy(usize),
    Attach(usize, Option<u32>, usize),
    Replace(usize, Option<u32>, usize),
    Detach(usize, Option<u32>),
    Forget(usize, u64),
    TakePageFault(usize),
    RespondPageFault(usize, u32, ResponseCode),
}

fn code() -> impl Strategy<Value = ResponseCode> {
    use ResponseCode::{Failure, Invalid, Success};
    prop_oneof![Just(Success), Just(Invalid), Just(Failure)]
}

fn page_commands() -> impl Strategy<Value = Command> {
    let pasid = || prop::option::of(0..3u32);
    let ask = (0..DEVICES, pasid(), 0..3u16, any::<u8>())
        .prop_map(|(device, pasid, group, bits)| Command::Ask { device, pasid, group, bits });
    let respond = (0..DEVICES, pasid(), 0..3u16, code())
        .prop_map(|(device, pasid, group, code)| Command::Respond { device, pasid, group, code });
    prop_oneof![
        4 => ask,
        4 => Just(Command::TakePageRequest),
        4 => respond,
        1 => (0..DEVICES).prop_map(Command::Forget),
        2 => (0..64usize).prop_map(Command::Unanswered),
        2 => (0..DEVICES, any::<bool>(), any::<bool>())
            .prop_map(|(device, on, silent)| Command::Ats(device, on, silent)),
        1 => (0..64usize).prop_map(Command::GiveUpAnswers),
        1 => any::<u64>().prop_map(Command::GiveUpForged),
        1 => Just(Command::InFlight),
        2 => prop_oneof![(0..60u64).prop_map(|s| s * 1_000_000_000), any::<u64>()]
            .prop_map(Command::Tick),
    ]
}

fn object_commands() -> impl Strategy<Value = ObjectCommand> {
    use ObjectCommand as C;
    // Mostly what there is.
    let id = || prop_oneof![4 => 1..3usize, 1 => 0..8usize];
    let pasid = || prop::option::of(prop_oneof![4 => 1..3u32, 1 => 0..8u32]);
    // A queue, and a table that names it.
    let queue = || prop_oneof![6 => Just(3usize), 1 => 0..8usize];
    let table = || prop_oneof![3 => 1..3usize, 3 => Just(4), 1 => 0..8usize];
    let alloc = (id(), 0..16u32, prop::option::of(0..4u64), any::<bool>(), queue()).prop_map(
        |(parent, flags, root, on_hwpt, queue)| {
            let queue = (flags & FAULT_ID_VALID != 0).then_some(queue);
            C::AllocHwpt { device: 0, parent, flags, root, on_hwpt, queue }
        },
    );
    prop_oneof![
        2 => Just(C::Ioas),
        1 => (0..DEVICES).prop_map(C::Hardware),
        6 => alloc,
        1 => (0..DEVICES, id()).prop_map(|(device, id)| C::AllocViommu(device, id)),
        1 => Just(C::AllocFaultQueue),
        1 => id().prop_map(C::AllocEventQueue),
        1 => id().prop_map(C::TakeEvent),
        2 => id().prop_map(C::Destroy),
        6 => (0..DEVICES, pasid(), table()).prop_map(|(d, pasid, id)| C::Attach(d, pasid, id)),
        2 => (0..DEVICES, pasid(), table()).prop_map(|(d, pasid, id)| C::Replace(d, pasid, id)),
        2 => (0..DEVICES, pasid()).prop_map(|(d, pasid)| C::Detach(d, pasid)),
        2 => (id(), any::<u64>()).prop_map(|(id, address)| C::Forget(id, address)),
        4 => queue().prop_map(C::TakePageFault),
        4 => (queue(), 0..6u32, code())
            .prop_map(|(id, cookie, code)| C::RespondPageFault(id, cookie, code)),
    ]
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let piece = (0..8u64, 1..=2u64, 0..BACKINGS, 0..3u64, any::<bool>()).prop_map(
        |(at, pages, backing, offset, write)| Piece { at, pages, backing, offset, write },
    );
    let invalidation =
        (0..6u8, 0..3u16, 0..4u32, 0..DEVICES).prop_map(|(kind, domain, pasid, device)| {
            let (domain, pasid) = (DomainId(domain), Pasid::from_field(pasid));
            let range = Range { start: Iova(0), last: Iova(0x3fff) };
            match kind {
                0 => Invalidation::ContextAll,
                1 => Invalidation::IotlbAll,
                2 => Invalidation::PasidCache { domain, pasid },
                3 => Invalidation::ContextDevice { requester: requester(device), ignore: 7 },
                4 => {
                    let pages = PageRange { range, leaf_only: true };
                    Invalidation::IotlbDomainPages { domain, pages }
                }
                _ => Invalidation::DeviceTlb { requester: requester(device), range },
            }
        });
    let pasid = prop_oneof![2 => Just(None), 1 => (0..8u32).prop_map(Some)];
    let command = prop_oneof![
        3 => prop::collection::vec(piece, 0..4).prop_map(Command::SetMemory),
        2 => (0..3u8).prop_map(Command::SetContexts),
        3 => invalidation.prop_map(Command::Invalidate),
        4 => (0..64usize).prop_map(Command::IsComplete),
        1 => any::<u64>().prop_map(Command::IsForgedComplete),
        3 => Just(Command::TakeFault),
        1 => any::<bool>().prop_map(Command::SetWaker),
        3 => (0..DEVICES).prop_map(Command::Attach),
        1 => (0..DEVICES).prop_map(Command::Detach),
        8 => (0..DEVICES, pasid, 0..10u64, any::<bool>())
            .prop_map(|(device, pasid, page, write)| Command::Access { device, pasid, page, write }),
        2 => (0..DEVICES).prop_map(Command::Linger),
        4 => (0..8u32, 0..8u32).prop_map(|(first, last)| Command::Alloc(first, last)),
        3 => (0..8u32).prop_map(Command::Free),
        1 => Just(Command::Release),
        2 => Just(Command::Usage),
        2 => Just(Command::Counters),
        2 => Just(Command::Memory),
        12 => object_commands().prop_map(Command::Object),
        8 => page_commands(),
        1 => Just(Command::Close),
    ];
    prop::collection::vec(command, 1..80)
}

fn requester(device: usize) -> RequesterId {
    RequesterId::from_bits(0x80 + device as u16)
}

/// Devices whose number is odd have no context.
struct Contexts;

impl ContextSource for Contexts {
    fn lookup(
        &self,
        _: &dyn GuestMemory,
        requester: RequesterId,
    ) -> Result<DeviceContext, ContextFault> {
        match requester.bits() % 2 {
            0 => Ok(DeviceContext::PassThrough {
                domain: DomainId(1),
                ats: false,
                fault_disable: false,
            }),
            _ => Err(ContextFault { reason: FaultReason::ContextNotPresent, fault_disable: false }),
        }
    }
}

/// A VM and what is around it.
struct World<V> {
    vm: V,
    backings: [Arc<dyn Backing>; BACKINGS],
    devices: [Option<(Endpoint, Arc<Channel>)>; DEVICES],
    /// Accesses that last, each on a channel of its own: told to begin and to end.
    lingering: [Option<Lingering>; DEVICES],
    tickets: Vec<Ticket>,
    /// Ids of objects, in the order they were given.
    ids: Vec<u32>,
    woken: Arc<AtomicUsize>,
    /// What devices heard.
    heard: Arc<Heard>,
}

/// What the devices of a VM heard.
#[derive(Default)]
struct Heard(Mutex<Vec<PageResponse>>);

impl PageResponses for Heard {
    fn respond(&self, response: PageResponse) {
        self.0.lock().unwrap().push(response);
    }
}

/// An access in flight on a thread of its own.
struct Lingering {
    end: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Lingering {
    fn new(channel: Channel) -> Self {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _access = channel.enter();
            begun.send(()).unwrap();
            let _ = ended.recv();
        });
        has_begun.recv().unwrap();
        Self { end, thread }
    }

    fn end(self) {
        self.end.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

impl<V: Vm> World<V> {
    fn new(host: &impl Host<Vm = V>, config: VmConfig) -> Self {
        let heap = |number: u8| -> Arc<dyn Backing> {
            let len = BACKING_PAGES * PAGE;
            let backing: Arc<dyn Backing> = Arc::new(HeapMemory::new(len as usize).unwrap());
            // Each page of each backing has contents of its own.
            let range = Range::<Gpa>::new(Gpa(0), len).unwrap();
            let segment =
                Segment { range, backing: backing.clone(), offset: 0, access: Access::Write };
            let map = MemoryMap::new(vec![segment]).unwrap();
            for page in 0..BACKING_PAGES {
                let contents = [0x10 * (number + 1) + page as u8; PAGE as usize];
                map.write(Gpa(page * PAGE), &contents).unwrap();
            }
            backing
        };
        Self {
            vm: host.create_vm(config).unwrap(),
            backings: [0, 1, 2].map(heap),
            devices: [const { None }; DEVICES],
            lingering: [const { None }; DEVICES],
            tickets: Vec::new(),
            ids: Vec::new(),
            woken: Arc::default(),
            heard: Arc::default(),
        }
    }

    fn map(&self, pieces: &[Piece]) -> Option<MemoryMap> {
        let segment = |&Piece { at, pages, backing, offset, write }: &Piece| Segment {
            range: Range::<Gpa>::new(Gpa(at * PAGE), pages * PAGE).unwrap(),
            backing: self.backings[backing].clone(),
            offset: (offset * PAGE) as usize,
            access: if write { Access::Write } else { Access::Read },
        };
        MemoryMap::new(pieces.iter().map(segment).collect()).ok()
    }

    /// The present map, by which backing it is.
    fn memory(&self) -> String {
        let index = |segment: &Segment| {
            self.backings.iter().position(|backing| Arc::ptr_eq(backing, &segment.backing))
        };
        let memory = self.vm.memory();
        let segments = memory.segments().iter();
        format!(
            "{:?}",
            segments.map(|s| (s.range, index(s), s.offset, s.access)).collect::<Vec<_>>()
        )
    }

    fn access(&self, device: usize, pasid: Option<u32>, page: u64, write: bool) -> String {
        let Some((_, channel)) = &self.devices[device] else { return String::new() };
        let space = AddressSpace { pasid: pasid.map(Pasid::from_field), privileged: false };
        let at = Iova(page * PAGE + PAGE - 2);
        let mut bytes = [page as u8, device as u8, 1, 2];
        // Across the end of a page.
        let result = match write {
            true => channel.enter().write(space, at, &bytes),
            false => channel.enter().read(space, at, &mut bytes),
        };
        format!("{result:?} {bytes:?}")
    }

    fn linger(&mut self, device: usize) {
        if let Some(lingering) = self.lingering[device].take() {
            lingering.end();
        } else if let Some((endpoint, _)) = &self.devices[device] {
            self.lingering[device] = Some(Lingering::new(endpoint.channel()));
        }
    }

    /// Makes a call on an object; gives its answer.
    fn object(&mut self, command: &ObjectCommand, ticket: &mut Option<Ticket>) -> String {
        use ObjectCommand as C;
        let vm = &self.vm;
        // One that was never given, too.
        let id = |index: usize| self.ids.get(index).copied().unwrap_or(0x7000);
        let guest = |pasid: Option<u32>| pasid.map(|number| GuestPasid(Pasid::from_field(number)));
        let mut new = None;
        let answer = match *command {
            C::Ioas => note(vm.ioas().map(|id| id.0), &mut new),
            C::Hardware(device) => format!("{:?}", vm.hardware(requester(device))),
            C::AllocHwpt { device, parent, flags, root, on_hwpt, queue } => {
                let parent = match on_hwpt {
                    true => HwptParent::Hwpt(HwptId(id(parent))),
                    false => HwptParent::Ioas(IoasId(id(parent))),
                };
                let data = root.map(|root| {
                    let flags = VtdStageOneFlags::empty();
                    StageOneTable::Vtd(VtdStageOne {
                        flags,
                        root: Gpa(root * PAGE),
                        address_width: 48,
                    })
                });
                let flags = HwptFlags::from_bits_retain(flags);
                let device = requester(device);
                let fault = queue.map(|queue| FaultQueueId(id(queue)));
                let request = HwptRequest { device, parent, flags, data, fault };
                note(vm.alloc_hwpt(&request).map(|id| id.0), &mut new)
            }
            C::AllocViommu(device, parent) => {
                let viommu =
                    vm.alloc_viommu(requester(device), HwptId(id(parent)), ViommuKind::Vtd);
                note(viommu.map(|id| id.0), &mut new)
            }
            C::AllocFaultQueue => note(vm.alloc_fault_queue().map(|id| id.0), &mut new),
            C::AllocEventQueue(viommu) => {
                let queue = vm.alloc_event_queue(ViommuId(id(viommu)), 4);
                note(queue.map(|id| id.0), &mut new)
            }
            C::TakeEvent(queue) => format!("{:?}", vm.take_event(EventQueueId(id(queue)))),
            C::Destroy(object) => format!("{:?}", vm.destroy(ObjectId(id(object)))),
            C::Attach(device, pasid, hwpt) => {
                format!("{:?}", vm.attach_hwpt(requester(device), guest(pasid), HwptId(id(hwpt))))
            }
            C::Replace(device, pasid, hwpt) => {
                let result = vm.replace_hwpt(requester(device), guest(pasid), HwptId(id(hwpt)));
                *ticket = result.ok();
                format!("{result:?}")
            }
            C::Detach(device, pasid) => {
                let result = vm.detach_hwpt(requester(device), guest(pasid));
                *ticket = result.ok();
                format!("{result:?}")
            }
            C::Forget(hwpt, address) => {
                let range = Range { start: Iova(address), last: Iova(address | 0x1fff) };
                let pages = StageOneInvalidation::Pages { range, leaf_only: false };
                let what = [StageOneInvalidation::All, pages, StageOneInvalidation::Entry];
                let result = vm.invalidate_hwpt(HwptId(id(hwpt)), &what);
                *ticket = result.ok();
                format!("{result:?}")
            }
            C::TakePageFault(queue) => {
                format!("{:?}", vm.take_page_fault(FaultQueueId(id(queue))))
            }
            C::RespondPageFault(queue, cookie, code) => {
                format!("{:?}", vm.respond_page_fault(FaultQueueId(id(queue)), cookie, code))
            }
        };
        self.ids.extend(new);
        answer
    }

    /// Carries out a command; gives all that can be seen of it.
    fn run(&mut self, command: &Command) -> String {
        let pasid = Pasid::from_field;
        let mut ticket = None;
        let seen = match *command {
            Command::SetMemory(ref pieces) => {
                ticket = self.map(pieces).map(|map| self.vm.set_memory(map));
                String::new()
            }
            Command::SetContexts(which) => {
                let source: Option<Arc<dyn ContextSource>> = match which {
                    0 => None,
                    _ => Some(Arc::new(Contexts)),
                };
                self.vm.set_contexts(source);
                String::new()
            }
            Command::Invalidate(what) => {
                ticket = Some(self.vm.invalidate(what));
                String::new()
            }
            Command::IsComplete(which) => {
                let which = which.checked_rem(self.tickets.len());
                format!("{:?}", which.map(|which| self.vm.is_complete(self.tickets[which])))
            }
            Command::IsForgedComplete(number) => {
                format!("{:?}", self.vm.is_complete(Ticket::new(number)))
            }
            Command::TakeFault => format!("{:?}", self.vm.take_fault()),
            Command::SetWaker(set) => {
                let woken = self.woken.clone();
                let waker = move || {
                    woken.fetch_add(1, Ordering::Relaxed);
                };
                self.vm.set_fault_waker(set.then_some(Arc::new(waker)));
                String::new()
            }
            Command::Attach(device) => match self.vm.attach(requester(device)) {
                Ok(endpoint) => {
                    endpoint.set_page_responses(Some(self.heard.clone()));
                    let channel = Arc::new(endpoint.channel());
                    self.devices[device] = Some((endpoint, channel));
                    String::new()
                }
                Err(error) => format!("{error:?}"),
            },
            Command::Detach(device) => {
                ticket = self.devices[device].take().map(|(endpoint, _)| endpoint.detach());
                String::new()
            }
            Command::Access { device, pasid, page, write } => {
                self.access(device, pasid, page, write)
            }
            Command::Linger(device) => {
                self.linger(device);
                String::new()
            }
            Command::Alloc(first, last) => {
                let range = PasidRange { first: pasid(first), last: pasid(last) };
                format!("{:?}", self.vm.alloc_pasid(range))
            }
            Command::Free(number) => format!("{:?}", self.vm.free_pasid(GuestPasid(pasid(number)))),
            Command::Release => {
                ticket = Some(self.vm.release_pasids());
                String::new()
            }
            Command::Usage => format!("{:?}", self.vm.pasid_usage()),
            Command::Counters => {
                format!("{:?} {:?}", self.vm.counters(), self.vm.page_request_counters())
            }
            Command::Memory => self.memory(),
            Command::Object(ref command) => self.object(command, &mut ticket),
            Command::Ask { device, pasid, group, bits } => {
                if let Some((endpoint, _)) = &self.devices[device] {
                    endpoint.send_page_request(page_request(pasid, group, bits));
                }
                String::new()
            }
            Command::TakePageRequest => format!("{:?}", self.vm.take_page_request()),
            Command::Respond { device, pasid, group, code } => {
                let group = PrgIndex::from_field(group.into());
                let (requester, pasid) = (requester(device), pasid.map(Pasid::from_field));
                let response = PageResponse { requester, pasid, group, code };
                format!("{:?}", self.vm.respond_page_request(response))
            }
            Command::Forget(device) => {
                if let Some((endpoint, _)) = &self.devices[device] {
                    endpoint.forget_page_requests();
                }
                String::new()
            }
            Command::Unanswered(which) => {
                let which = which.checked_rem(self.tickets.len());
                format!("{:?}", which.map(|which| self.vm.unanswered(self.tickets[which])))
            }
            Command::Ats(device, on, silent) => {
                if let Some((endpoint, _)) = &self.devices[device] {
                    endpoint.set_ats(on);
                    endpoint.withhold_invalidation_answers(silent);
                }
                String::new()
            }
            Command::GiveUpAnswers(which) => {
                if let Some(which) = which.checked_rem(self.tickets.len()) {
                    self.vm.give_up_answers(self.tickets[which]);
                }
                String::new()
            }
            Command::GiveUpForged(number) => {
                self.vm.give_up_answers(Ticket::new(number));
                String::new()
            }
            Command::InFlight => {
                ticket = Some(self.vm.in_flight());
                String::new()
            }
            Command::Tick(now) => format!("{:?}", self.vm.tick(Duration::from_nanos(now))),
            Command::Close => {
                ticket = Some(self.vm.close());
                String::new()
            }
        };
        self.tickets.extend(ticket);
        let woken = self.woken.load(Ordering::Relaxed);
        let heard = std::mem::take(&mut *self.heard.0.lock().unwrap());
        format!("{seen} {ticket:?}, woken {woken}, heard {heard:?}")
    }

    fn end(&mut self) {
        for lingering in self.lingering.iter_mut().filter_map(Option::take) {
            lingering.end();
        }
    }
}

fn page_request(pasid: Option<u32>, group: u16, bits: u8) -> PageRequest {
    let bit = |n: u32| bits >> n & 1 != 0;
    PageRequest {
        // Not what counts.
        requester: RequesterId::from_bits(0),
        pasid: pasid.map(Pasid::from_field),
        privileged: bit(0),
        execute: bit(1),
        read: bit(2),
        write: bit(3),
        address: Iova(u64::from(bits) << 12),
        group: PrgIndex::from_field(group.into()),
        last: bit(4) || bit(5),
        private_data: bit(6).then_some([1, 2]),
    }
}

/// An answer with an id, which is noted.
fn note(answer: Result<u32, ObjectError>, new: &mut Option<u32>) -> String {
    *new = answer.ok();
    format!("{answer:?}")
}

fn config(private: bool, enforce_grants: bool) -> VmConfig {
    let numbering = if private { Numbering::Private } else { Numbering::Identity };
    // Few, and not for long.
    let timeout = Some(Duration::from_secs(10));
    let taken = if private { TakenGroups::Withdrawn } else { TakenGroups::Stay };
    let page_requests = PageRequestPolicy { per_device: 4, timeout, taken };
    VmConfig { quota: 3, numbering, enforce_grants, page_requests, ..VmConfig::named("one") }
}

/// Devices, and a nested table on a nesting parent to attach to them, and PASIDs.
fn preparation() -> Vec<Command> {
    use ObjectCommand::{AllocFaultQueue, AllocHwpt, Ioas};
    let hwpt = |parent, flags, root, on_hwpt| {
        let queue = (flags & FAULT_ID_VALID != 0).then_some(3);
        Command::Object(AllocHwpt { device: 0, parent, flags, root, on_hwpt, queue })
    };
    vec![
        Command::Attach(0),
        Command::Attach(1),
        Command::Alloc(1, 1),
        Command::Alloc(2, 2),
        Command::Object(Ioas),
        // NEST_PARENT and PASID; PASID.
        hwpt(0, 9, None, false),
        hwpt(1, 8, Some(1), true),
        Command::Object(AllocFaultQueue),
        hwpt(1, 8 | FAULT_ID_VALID, Some(1), true),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_same(
        private in any::<bool>(),
        enforce in any::<bool>(),
        prepared in any::<bool>(),
        commands in commands(),
    ) {
        let direct_host = SoftwareHost::new();
        let dispatcher = Dispatcher::new(SoftwareHost::new(), Revision::Own);
        let client = Client::new(dispatcher.clone());
        let mut direct = World::new(&direct_host, config(private, enforce));
        let mut through = World::new(&client, config(private, enforce));
        let prepared = if prepared { preparation() } else { Vec::new() };
        for command in prepared.iter().chain(&commands) {
            let (expected, got) = (direct.run(command), through.run(command));
            prop_assert_eq!(expected, got, "{:?}", command);
        }
        for last in [Command::Memory, Command::Usage, Command::Counters] {
            prop_assert_eq!(direct.run(&last), through.run(&last));
        }
        prop_assert_eq!(through.vm.failures(), vfio::Failures::default());
        prop_assert_eq!(direct_host.vms(), dispatcher.host().vms());
        direct.end();
        through.end();
    }
}
