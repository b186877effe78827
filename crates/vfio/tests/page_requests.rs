//! Page requests in the rings of the posted generation, and their answers: the rules of
//! `iommu_report_device_fault` and `iommu_page_response`, over a host that does as it is told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use iommu::{FaultQueueId, Hardware, PageFault, PageRequest, Pasid, PrgIndex, TableCaps};
use mem::{Access, Gpa, GuestMemory, Iova, MemoryMap, Range, Segment};
use pci::RequesterId;
use proptest::prelude::*;
use vfio::{
    Container, DeviceFile, Dispatcher, Errno, File, Group, GroupDevice, Handle, Request, Revision,
};

mod rings;
#[allow(dead_code)]
mod scripted;
use rings::{header, respond, response, words, FAILURE, FAULTS, INVALID, RESPONSES, SUCCESS};
use scripted::{Scripted, ScriptedVm};

const A: RequesterId = RequesterId::from_bits(0x80);
const B: RequesterId = RequesterId::from_bits(0x88);
const VTD: TableCaps =
    TableCaps { address_bits: 46, second_stage_levels: 0b110, ..TableCaps::FULL };

/// A container with a group of two devices, for nested translation.
struct Rig {
    revision: Revision,
    vm: ScriptedVm,
    container: Arc<Container<Scripted>>,
    group: Option<Group<Scripted>>,
    queue: FaultQueueId,
}

impl Rig {
    fn new(revision: Revision) -> Self {
        let dispatcher = Dispatcher::new(Scripted::default(), revision);
        let device = |requester| GroupDevice { name: format!("{requester}"), requester };
        dispatcher.add_group(7, vec![device(A), device(B)]).unwrap();
        let container = Arc::new(dispatcher.open_container().unwrap());
        let group = dispatcher.open_group(7).unwrap();
        let number = |request: Request| request.number(revision).unwrap();
        let mut create = words(&[128, 0, 1]);
        create.resize(128, 0);
        container.call(number(Request::CreateVm), &mut create, None).unwrap();
        let vm = container.host_vm().unwrap();
        vm.script().hardware = Hardware::Vtd(VTD);
        let join = number(Request::GroupSetContainer);
        group.call(join, &mut [], Some(container.handle())).unwrap();
        container.call(number(Request::SetIommu), &mut 6u32.to_ne_bytes(), None).unwrap();
        // The first that was made, and every nested table names it.
        let calls = vm.take_calls();
        assert_eq!(calls[0], "fault queue");
        Self { revision, vm, container, group: Some(group), queue: FaultQueueId(1) }
    }

    fn open(&self, device: RequesterId) -> Arc<dyn DeviceFile> {
        let mut name = format!("{device}\0").into_bytes();
        let number = Request::GroupGetDeviceFd.number(self.revision).unwrap();
        self.group.as_ref().unwrap().call(number, &mut name, None).unwrap().file.unwrap()
    }

    fn call(&self, request: Request, argument: &[u8]) -> Result<u32, Errno> {
        let number = request.number(self.revision).unwrap();
        self.container.ioctl(number, &mut argument.to_vec(), None).map(|reply| reply.value)
    }

    fn asks(&self, fault: PageFault) {
        self.vm.script().page_faults.push_back(fault);
    }

    /// The answers that the host was given.
    fn answers(&self) -> Vec<String> {
        let queue = format!("respond {:?} ", self.queue);
        let calls = self.vm.take_calls().into_iter();
        calls.filter_map(|call| call.strip_prefix(&queue).map(String::from)).collect()
    }
}

fn fault(device: RequesterId, cookie: u32, group: u16, pasid: Option<u32>) -> PageFault {
    PageFault {
        cookie,
        request: PageRequest {
            requester: device,
            pasid: pasid.map(Pasid::from_field),
            privileged: true,
            execute: false,
            read: true,
            write: true,
            address: Iova(0x7f00_1234_5000),
            group: PrgIndex::from_field(group.into()),
            last: true,
            private_data: Some([1, 2]),
        },
    }
}

#[test]
fn a_page_request_arrives_in_the_ring_and_is_answered_by_the_other() {
    let revisions = Revision::ALL.into_iter();
    for revision in revisions {
        let rig = Rig::new(revision);
        let (a, b) = (rig.open(A), rig.open(B));
        let rung = Arc::new(AtomicUsize::new(0));
        let ring = rung.clone();
        let bell = Arc::new(move || {
            ring.fetch_add(1, Ordering::Relaxed);
        });
        let number = Request::DeviceSetIrqs.number(revision).unwrap();
        let mut argument = words(&[24, 36, 5, 0, 1, 7]);
        a.ioctl(number, &mut argument, Some(Handle::Event(bell))).unwrap();
        rig.asks(fault(A, 77, 0x1ff, Some(0x12345)));
        assert_eq!(header(&a, FAULTS), (0, 1));
        assert_eq!(header(&b, FAULTS), (0, 0));
        assert_eq!(rung.load(Ordering::Relaxed), 1);
        let mut entry = [0; 64];
        a.read(FAULTS + 4096, &mut entry).unwrap();
        let golden = [2, 0, 15, 0x12345, 0x1ff, 11, 0x1234_5000, 0x7f00, 1, 0, 2, 0, 0, 0, 0, 0];
        assert_eq!(entry[..], words(&golden));
        // Nobody has answered in the client's place.
        assert!(rig.answers().is_empty());
        respond(&a, &[response(0x1ff, Some(0x12345), SUCCESS)]);
        assert_eq!(rig.answers(), ["0x4d Success"]);
        // Once.
        respond(&a, &[response(0x1ff, Some(0x12345), SUCCESS)]);
        assert!(rig.answers().is_empty());
        assert_eq!(a.ring_counts().responses_refused, 1);
        assert_eq!(a.ring_counts().faults_dropped, 0);
    }
}

#[test]
fn what_answers_a_group() {
    let rig = Rig::new(Revision::PasidTableV15);
    let (a, b) = (rig.open(A), rig.open(B));
    rig.asks(fault(A, 1, 5, Some(9)));
    rig.asks(fault(A, 2, 6, None));
    rig.asks(fault(A, 3, 7, Some(9)));
    assert_eq!(header(&a, FAULTS), (0, 3));
    // Another's, none's, without the PASID that was asked with, or with another.
    respond(&b, &[response(5, Some(9), SUCCESS)]);
    let wrong = [
        response(4, Some(9), SUCCESS),
        response(0x205, Some(9), SUCCESS),
        response(5, None, SUCCESS),
        response(5, Some(8), SUCCESS),
        response(5, Some(9), 3),
        [24, 2, 1, 9, 5, 0],
        [24, 1, 3, 9, 5, 0],
        [23, 1, 1, 9, 5, 0],
        [24, 1, 1, 1 << 20, 5, 0],
    ];
    respond(&a, &wrong);
    assert!(rig.answers().is_empty());
    assert_eq!(a.ring_counts().responses_refused, wrong.len() as u64);
    assert_eq!(b.ring_counts().responses_refused, 1);
    // In any order; a PASID that was not asked with is passed over.
    let good =
        [response(7, Some(9), FAILURE), response(6, Some(9), INVALID), response(5, Some(9), 0)];
    respond(&a, &good);
    assert_eq!(rig.answers(), ["0x3 Failure", "0x2 Invalid", "0x1 Success"]);
}

#[test]
fn what_is_in_no_ring_is_answered_at_once() {
    let rig = Rig::new(Revision::PasidRequestV7);
    let a = rig.open(A);
    // A device that nobody has open; only the last of a group has an answer.
    let mut more = fault(B, 1, 1, None);
    more.request.last = false;
    rig.asks(more);
    rig.asks(fault(B, 1, 1, None));
    header(&a, FAULTS);
    assert_eq!(rig.answers(), ["0x1 Invalid"]);
    // A ring has one place less than entries.
    for group in 0..512 {
        rig.asks(fault(A, 1000 + u32::from(group), group, Some(5)));
    }
    assert_eq!(header(&a, FAULTS), (0, 511));
    assert_eq!(rig.answers(), ["0x5e7 Invalid"]);
    assert_eq!(a.ring_counts().faults_dropped, 1);
    // The others wait for theirs, and the lost one has none.
    respond(&a, &[response(511, Some(5), SUCCESS), response(510, Some(5), SUCCESS)]);
    assert_eq!(rig.answers(), ["0x5e6 Success"]);
}

#[test]
fn stop_markers_are_nobodys() {
    let rig = Rig::new(Revision::PasidTableV15);
    let a = rig.open(A);
    for device in [A, B] {
        let request = PageRequest::stop_marker(device, Pasid::from_field(5));
        rig.asks(PageFault { cookie: 1, request });
    }
    assert_eq!(header(&a, FAULTS), (0, 0));
    assert!(rig.answers().is_empty());
}

#[test]
fn a_client_that_goes_leaves_nothing_unanswered() {
    let rig = Rig::new(Revision::PasidTableV15);
    let (first, second) = (rig.open(A), rig.open(A));
    rig.asks(fault(A, 1, 1, None));
    rig.asks(fault(A, 2, 2, None));
    assert_eq!(header(&first, FAULTS), (0, 2));
    respond(&first, &[response(2, None, SUCCESS)]);
    drop(first);
    assert_eq!(rig.answers(), ["0x2 Success"]);
    drop(second);
    assert_eq!(rig.answers(), ["0x1 Invalid"]);
    // Who opens it next begins anew.
    let next = rig.open(A);
    assert_eq!(header(&next, FAULTS), (0, 0));
    respond(&next, &[response(1, None, SUCCESS)]);
    assert!(rig.answers().is_empty());
    rig.asks(fault(A, 3, 1, None));
    assert_eq!(header(&next, FAULTS), (0, 1));
    respond(&next, &[response(1, None, SUCCESS)]);
    assert_eq!(rig.answers(), ["0x3 Success"]);
}

#[test]
fn by_nesting_op() {
    let op = |entry: [u32; 6]| [words(&[32, 3]), words(&entry)].concat();
    let rig = Rig::new(Revision::Own);
    let (a, b) = (rig.open(A), rig.open(B));
    let answer = |entry| rig.call(Request::NestingOp, &op(entry));
    assert_eq!(answer(response(5, Some(9), SUCCESS)), Err(Errno::EINVAL));
    rig.asks(fault(A, 1, 5, Some(9)));
    rig.asks(fault(A, 2, 6, Some(9)));
    rig.asks(fault(B, 3, 6, Some(9)));
    rig.asks(fault(B, 4, 5, Some(8)));
    assert_eq!((header(&a, FAULTS), header(&b, FAULTS)), ((0, 2), (0, 2)));
    for wrong in
        [[24, 2, 1, 9, 5, 0], [24, 1, 2, 9, 5, 0], [24, 1, 1, 9, 5, 3], [23, 1, 1, 9, 5, 0]]
    {
        assert_eq!(answer(wrong), Err(Errno::EINVAL), "{wrong:?}");
    }
    // Of which device it is has to be clear, for the structure does not say it.
    assert_eq!(answer(response(6, Some(9), SUCCESS)), Err(Errno::EINVAL));
    assert!(rig.answers().is_empty());
    assert_eq!(answer(response(5, Some(9), INVALID)), Ok(0));
    assert_eq!(answer(response(5, Some(9), INVALID)), Err(Errno::EINVAL));
    assert_eq!(answer(response(5, Some(8), FAILURE)), Ok(0));
    respond(&b, &[response(6, Some(9), SUCCESS)]);
    assert_eq!(answer(response(6, Some(9), SUCCESS)), Ok(0));
    assert_eq!(rig.answers(), ["0x1 Invalid", "0x4 Failure", "0x3 Success", "0x2 Success"]);
    // No posted series has it.
    for revision in [Revision::PasidRequest53, Revision::PasidRequestV7, Revision::PasidRequestTree]
    {
        let rig = Rig::new(revision);
        let a = rig.open(A);
        rig.asks(fault(A, 1, 5, None));
        header(&a, FAULTS);
        let argument = op(response(5, None, SUCCESS));
        assert_eq!(rig.call(Request::NestingOp, &argument), Err(Errno::EINVAL));
        assert!(rig.answers().is_empty());
    }
}

/// `NESTING_OP` with Linux 5.10's structure.
fn bind(op: u32) -> Vec<u8> {
    let mut argument = words(&[80, op, 72, 1, 1, 48, 1, 0, 0x5000, 0, 5, 0, 5, 0]);
    argument.resize(80, 0);
    argument
}

#[test]
fn whoever_is_asked_may_make_calls_but_not_posted_ones() {
    let rig = Rig::new(Revision::Own);
    let a = rig.open(A);
    rig.asks(fault(A, 1, 1, None));
    // Asked on the way of a call whether a PASID may be bound.
    let (container, device) = (rig.container.clone(), a.clone());
    let seen = Arc::new(AtomicUsize::new(0));
    let calls = seen.clone();
    rig.vm.script().hook = Some(Box::new(move || {
        let number = |request: Request| request.number(Revision::Own).unwrap();
        // A second one for the same domains does not wait for itself.
        let second = container.ioctl(number(Request::NestingOp), &mut bind(0), None);
        assert_eq!(second.err(), Some(Errno::EBUSY));
        // All that is for the VM, and for the rings, goes on.
        assert_eq!(header(&device, FAULTS), (0, 1));
        respond(&device, &[response(1, None, SUCCESS)]);
        let mut counters = words(&[128, 0]);
        counters.resize(128, 0);
        container.ioctl(number(Request::GetCounters), &mut counters, None).unwrap();
        let mut info = words(&[200, 0]);
        info.resize(200, 0);
        container.ioctl(number(Request::IommuGetInfo), &mut info, None).unwrap();
        calls.fetch_add(1, Ordering::Relaxed);
    }));
    assert_eq!(rig.call(Request::NestingOp, &bind(0)), Ok(0));
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    assert_eq!(rig.answers(), ["0x1 Success"]);
    assert_eq!(rig.call(Request::NestingOp, &bind(1)), Ok(0));
}

#[test]
fn a_group_that_goes_meanwhile_leaves_when_the_call_is_over() {
    let mut rig = Rig::new(Revision::Own);
    let endpoint = rig.open(A).endpoint();
    assert!(endpoint.upgrade().is_some());
    let group = rig.group.take();
    let (before, container) = (endpoint.clone(), rig.container.clone());
    rig.vm.script().hook = Some(Box::new(move || {
        drop(group);
        // The call still has it.
        assert!(before.upgrade().is_some());
        let number = Request::SetIommu.number(Revision::Own).unwrap();
        let second = container.ioctl(number, &mut 6u32.to_ne_bytes(), None);
        assert_eq!(second.err(), Some(Errno::EBUSY));
    }));
    assert_eq!(rig.call(Request::NestingOp, &bind(0)), Ok(0));
    assert!(endpoint.upgrade().is_none());
    let calls = rig.vm.take_calls();
    // Unbound, then detached.
    let detached = |device, pasid: &str| {
        let call = format!("detach {device:?} {pasid}");
        calls.iter().position(|other| other.starts_with(&call)).unwrap()
    };
    let pasid = "Some(";
    assert!(detached(A, pasid) < detached(A, "None"), "{calls:?}");
    assert!(detached(B, pasid) < detached(B, "None"), "{calls:?}");
    assert_eq!(rig.call(Request::NestingOp, &bind(0)), Err(Errno::EINVAL));
}

#[test]
fn every_table_of_a_guest_names_the_queue() {
    let rig = Rig::new(Revision::Own);
    assert_eq!(rig.call(Request::NestingOp, &bind(0)), Ok(0));
    let calls = rig.vm.take_calls();
    let tables: Vec<_> = calls.iter().filter(|call| call.starts_with("HwptRequest")).collect();
    let [table] = *tables else { panic!("{calls:?}") };
    assert!(table.contains("fault: Some(FaultQueueId(1))"), "{table}");
    assert!(table.contains("FAULT_ID_VALID"), "{table}");
    assert!(calls.iter().any(|call| call.starts_with("attach") && call.contains("Some")));
}

/// Which group an answer is to.
fn cookie_of(answer: &str) -> u32 {
    let number = answer.strip_prefix("0x").and_then(|rest| rest.split(' ').next());
    u32::from_str_radix(number.unwrap(), 16).unwrap()
}

/// What devices, clients and whoever writes nonsense do.
#[derive(Debug, Clone)]
enum Step {
    Ask { device: bool, group: u16, pasid: Option<u32>, last: bool },
    Look(bool),
    Take(bool, u32),
    Respond { device: bool, group: u32, pasid: Option<u32>, code: u32 },
    Index(bool, u32),
    Entry { device: bool, at: u64, bytes: Vec<u8> },
    NestingOp { group: u32, pasid: Option<u32>, code: u32, spoil: Option<(usize, u8)> },
    Reopen(bool),
    Rebind,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pasid = || prop::option::of(5..7u32);
    let index = || prop_oneof![3 => 0..4u32, 1 => 0..512u32, 1 => any::<u32>()];
    let code = || prop_oneof![4 => 0..3u32, 1 => any::<u32>()];
    let spoil = prop::option::of((0..32usize, any::<u8>()));
    let step = prop_oneof![
        6 => (any::<bool>(), 0..4u16, pasid(), prop::bool::weighted(0.8))
            .prop_map(|(device, group, pasid, last)| Step::Ask { device, group, pasid, last }),
        4 => any::<bool>().prop_map(Step::Look),
        1 => (any::<bool>(), index()).prop_map(|(device, index)| Step::Take(device, index)),
        6 => (any::<bool>(), 0..4u32, pasid(), code())
            .prop_map(|(device, group, pasid, code)| Step::Respond { device, group, pasid, code }),
        1 => (any::<bool>(), index()).prop_map(|(device, index)| Step::Index(device, index)),
        1 => (any::<bool>(), 0..12_300u64, prop::collection::vec(any::<u8>(), 0..30))
            .prop_map(|(device, at, bytes)| Step::Entry { device, at, bytes }),
        2 => (0..4u32, pasid(), code(), spoil)
            .prop_map(|(group, pasid, code, spoil)| Step::NestingOp { group, pasid, code, spoil }),
        1 => any::<bool>().prop_map(Step::Reopen),
        1 => Just(Step::Rebind),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Whatever a client does, and whenever it goes: one answer to each group that was asked for,
    /// and none to any other.
    #[test]
    fn one_answer_each(steps in steps()) {
        let rig = Rig::new(Revision::Own);
        let mut files = [A, B].map(|device| rig.open(device));
        // Groups that are out, by cookie: a device does not use an index twice.
        let mut out = BTreeMap::new();
        for (cookie, step) in (1..).zip(steps) {
            let of = usize::from;
            match step {
                Step::Ask { device, group, .. } if out.values().any(|at| *at == (device, group)) => {}
                Step::Ask { device, group, pasid, last } => {
                    let mut fault = fault([A, B][of(device)], cookie, group, pasid);
                    fault.request.last = last;
                    rig.asks(fault);
                    out.extend(last.then_some((cookie, (device, group))));
                }
                Step::Look(device) => drop(header(&files[of(device)], FAULTS)),
                Step::Take(device, index) => {
                    let _ = files[of(device)].write(FAULTS, &index.to_ne_bytes());
                }
                Step::Respond { device, group, pasid, code } => {
                    respond(&files[of(device)], &[response(group, pasid, code)]);
                }
                Step::Index(device, index) => {
                    let _ = files[of(device)].write(RESPONSES, &index.to_ne_bytes());
                }
                Step::Entry { device, at, bytes } => {
                    let (backing, _) = files[of(device)].map(RESPONSES + 4096, 512 * 24).unwrap();
                    let len = 512 * 24;
                    let range = Range::<Gpa>::new(Gpa(0), len).unwrap();
                    let segment = Segment { range, backing, offset: 0, access: Access::Write };
                    let ring = MemoryMap::new(vec![segment]).unwrap();
                    let _ = ring.write(Gpa(at), &bytes);
                }
                Step::NestingOp { group, pasid, code, spoil } => {
                    let entry = response(group, pasid, code);
                    let mut argument = [words(&[32, 3]), words(&entry)].concat();
                    if let Some((at, byte)) = spoil {
                        argument[at] = byte;
                    }
                    let _ = rig.call(Request::NestingOp, &argument);
                }
                Step::Reopen(device) => {
                    let name = [A, B][of(device)];
                    // Its last file closes first, or its rings would stay.
                    files[of(device)] = files[1 - of(device)].clone();
                    files[of(device)] = rig.open(name);
                }
                Step::Rebind => {
                    let _ = rig.call(Request::NestingOp, &bind(0));
                    let _ = rig.call(Request::NestingOp, &bind(1));
                }
            }
            for answer in rig.answers() {
                prop_assert!(out.remove(&cookie_of(&answer)).is_some(), "{}", answer);
            }
        }
        // What is in no ring yet comes, and everybody goes.
        header(&files[0], FAULTS);
        drop(files);
        for answer in rig.answers() {
            prop_assert!(out.remove(&cookie_of(&answer)).is_some(), "{}", answer);
        }
        prop_assert!(out.is_empty(), "{:?}", out);
    }
}
