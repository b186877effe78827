//! A device waits for a page that its guest has not mapped yet, asks for it, hears the answer and
//! goes on: through each generation's calls, on the host in software. Nothing stays unanswered.

use std::sync::{Arc, Mutex, Weak};

use ioasid::Priority;
use iommu::{
    Channel, Hardware, PageRequest, PageResponse, PageResponses, Pasid, PasidEvent,
    PasidSubscriber, PrgIndex, ResponseCode, SoftwareHost, Vm,
};
use mem::Iova;
use vfio::{Container, DeviceFile, Errno, FaultFile, File, Request, Revision};

#[allow(dead_code)]
mod dma;
#[allow(dead_code)]
mod rings;
use dma::{
    finish, nesting_op, pasid_table, read, Client, DATA, DESCRIPTORS, DEVICE, PASID, ROOT, SMMU,
    VA, VALUE,
};
use rings::{header, respond, response, words, FAULTS, SUCCESS};

/// The device's end: what it heard.
#[derive(Default)]
struct Heard(Mutex<Vec<(u16, ResponseCode)>>);

impl PageResponses for Heard {
    fn respond(&self, response: PageResponse) {
        assert_eq!(response.pasid, Some(Pasid::from_field(PASID)));
        self.0.lock().unwrap().push((response.group.get(), response.code));
    }
}

/// A device that makes translation requests.
struct Device {
    file: Arc<dyn DeviceFile>,
    channel: Channel,
    heard: Arc<Heard>,
}

impl Device {
    fn new(client: &Client) -> Self {
        let heard = Arc::<Heard>::default();
        let endpoint = client.device.endpoint().upgrade().unwrap();
        endpoint.set_ats(true);
        endpoint.set_page_responses(Some(heard.clone()));
        Self { file: client.device.clone(), channel: endpoint.channel(), heard }
    }

    fn ask(&self, group: u64) {
        let request = PageRequest {
            requester: DEVICE,
            pasid: Some(Pasid::from_field(PASID)),
            privileged: false,
            execute: false,
            read: true,
            write: false,
            address: Iova(VA),
            group: PrgIndex::from_field(group),
            last: true,
            private_data: None,
        };
        self.file.endpoint().upgrade().unwrap().send_page_request(request);
    }

    fn finds_nothing(&self) {
        assert!(read(&self.channel, Some(PASID), VA).is_err());
    }

    fn finds_it(&self) {
        assert_eq!(read(&self.channel, Some(PASID), VA), VALUE);
    }

    fn heard(&self) -> Vec<(u16, ResponseCode)> {
        std::mem::take(&mut self.heard.0.lock().unwrap())
    }
}

/// The guest has the page: its table's last entry.
fn map(client: &Client, bits: u64) {
    client.store(0x4000 + 8 * 0x56, DATA | bits);
}

/// Present, writable, a user's, accessed.
const VTD_PAGE: u64 = 0x27;

fn bound(revision: Revision) -> (Client, Device) {
    let client = Client::new(SoftwareHost::new(), revision);
    client.build(0x27, 0);
    if revision == Revision::Own {
        let mut grant = words(&[48, 1, PASID, PASID]);
        grant.resize(48, 0);
        client.call(Request::PasidRequest, &grant);
    } else {
        client.call(Request::PasidRequest, &words(&[16, 1, PASID, PASID]));
    }
    let bind = match revision {
        Revision::PasidRequest53 => {
            let mut bind = words(&[80, 0, 1, 1, 1, 0, ROOT as u32, 0, PASID, 0, PASID, 0, 48]);
            bind.resize(80, 0);
            bind
        }
        _ => nesting_op(0),
    };
    client.call(Request::NestingOp, &bind);
    let device = Device::new(&client);
    (client, device)
}

const RESPONSE: [u32; 6] = [24, 1, 1, PASID, 3, SUCCESS];

#[test]
fn a_guest_pasid_bound_alone() {
    for revision in [Revision::PasidRequest53, Revision::PasidRequestV7, Revision::PasidRequestTree]
    {
        let (client, device) = bound(revision);
        device.finds_nothing();
        device.ask(3);
        // It is the device's business: no fault, but what it asks for.
        assert_eq!(client.faults(), 1);
        let mut entry = [0; 64];
        client.device.read(FAULTS + 4096, &mut entry).unwrap();
        let golden = [2, 0, 11, PASID, 3, 1, VA as u32, (VA >> 32) as u32];
        assert_eq!(entry[..32], words(&golden));
        map(&client, VTD_PAGE);
        assert_eq!(device.heard(), []);
        respond(&client.device, &[response(3, Some(PASID), SUCCESS)]);
        assert_eq!(device.heard(), [(3, ResponseCode::Success)]);
        device.finds_it();
        // What is out when the PASID is unbound is answered, and later nobody's.
        device.ask(4);
        assert_eq!(client.faults(), 2);
        let mut unbind = nesting_op(1);
        if revision == Revision::PasidRequest53 {
            unbind = words(&[80, 1, 1, 1, 1, 0, ROOT as u32, 0, PASID, 0, PASID, 0, 48]);
            unbind.resize(80, 0);
        }
        client.call(Request::NestingOp, &unbind);
        assert_eq!(device.heard(), [(4, ResponseCode::Invalid)]);
        respond(&client.device, &[response(4, Some(PASID), SUCCESS)]);
        assert_eq!(device.heard(), []);
        assert_eq!(client.device.ring_counts().responses_refused, 1);
        // Nothing is bound there any more.
        device.ask(5);
        assert_eq!(device.heard(), [(5, ResponseCode::Invalid)]);
        drop(device);
        finish(client);
    }
}

#[test]
fn by_our_nesting_op() {
    let (client, device) = bound(Revision::Own);
    device.ask(3);
    assert_eq!(client.faults(), 1);
    map(&client, VTD_PAGE);
    client.call(Request::NestingOp, &[words(&[32, 3]), words(&RESPONSE)].concat());
    assert_eq!(device.heard(), [(3, ResponseCode::Success)]);
    device.finds_it();
    drop(device);
    finish(client);
}

#[test]
fn a_table_of_all_pasids() {
    for (revision, size) in [(Revision::PasidTableV15, 40), (Revision::PasidTableV13, 48)] {
        let host = SoftwareHost::with_hardware(Hardware::Smmuv3(SMMU));
        let client = Client::new(host, revision);
        client.build(3, 0);
        // T0SZ 16, EPD1, V, IPS 44 bits, AA64, R, A, ASID 1.
        let descriptor = 16 | 3 << 30 | 4 << 32 | 1 << 41 | 3 << 45 | 1 << 48;
        client.store(DESCRIPTORS + 64 * u64::from(PASID), descriptor);
        client.store(DESCRIPTORS + 64 * u64::from(PASID) + 8, ROOT);
        let mut table = pasid_table(1);
        if revision == Revision::PasidTableV13 {
            let mode = 1 << 8 | 4;
            table = words(&[48, 1, 40, 1, 1, 0, DESCRIPTORS as u32, 0, mode, 1, 1 << 8, 0]);
        }
        assert_eq!(table.len(), size);
        client.call(Request::SetPasidTable, &table);
        let device = Device::new(&client);
        device.finds_nothing();
        device.ask(3);
        assert_eq!(client.faults(), 1);
        map(&client, 3 | 1 << 6 | 1 << 10 | 1 << 11);
        respond(&client.device, &[response(3, Some(PASID), SUCCESS)]);
        assert_eq!(device.heard(), [(3, ResponseCode::Success)]);
        device.finds_it();
        // What is out when the table goes is answered.
        device.ask(4);
        assert_eq!(client.faults(), 2);
        client.call(Request::SetPasidTable, &words(&[8, 2]));
        assert_eq!(device.heard(), [(4, ResponseCode::Invalid)]);
        drop(device);
        finish(client);
    }
}

#[test]
fn a_client_that_closes_or_dies() {
    // Its device's file; group and container; the container's VM.
    let (client, device) = bound(Revision::PasidRequestV7);
    device.ask(3);
    assert_eq!(header(&client.device, FAULTS), (0, 1));
    let Client { dispatcher, container, _group: group, device: file, .. } = client;
    let Device { file: other, channel, heard } = device;
    let take = || std::mem::take(&mut *heard.0.lock().unwrap());
    drop((file, other));
    assert_eq!(take(), [(3, ResponseCode::Invalid)]);
    drop((group, container, channel));
    assert_eq!(take(), []);
    assert_eq!(dispatcher.host().vms(), 0);

    // One that is in no ring yet.
    let (client, device) = bound(Revision::PasidRequestV7);
    device.ask(3);
    let Device { heard, file, channel } = device;
    drop((client, file, channel));
    assert_eq!(*heard.0.lock().unwrap(), [(3, ResponseCode::Invalid)]);

    let (client, device) = bound(Revision::Own);
    device.ask(3);
    assert_eq!(client.faults(), 1);
    client.call(Request::CloseVm, &words(&[16, 0, 0, 0]));
    assert_eq!(device.heard(), [(3, ResponseCode::Invalid)]);
    respond(&client.device, &[response(3, Some(PASID), SUCCESS)]);
    assert_eq!(device.heard(), []);
}

/// A nested table of today's calls with a fault queue, attached to a PASID by the device's file.
fn attached() -> (Client, Device, Arc<dyn FaultFile>) {
    let client = Client::plain(SoftwareHost::new(), Revision::Iommufd);
    client.build(0x27, 0);
    let answer = |request: Request, argument: Vec<u8>| {
        let mut argument = argument;
        let number = request.number(Revision::Iommufd).unwrap();
        let reply = client.container.call(number, &mut argument, None).unwrap();
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        (argument.chunks(4).map(word).collect::<Vec<_>>(), reply)
    };
    let vm = client.container.host_vm().unwrap();
    let pasid = Pasid::from_field(PASID);
    vm.alloc_pasid(iommu::PasidRange { first: pasid, last: pasid }).unwrap();
    let (ioas, _) = answer(Request::IoasAlloc, words(&[12, 0, 0]));
    let device = DEVICE.bits().into();
    // NEST_PARENT and PASID; FAULT_ID_VALID and PASID.
    let parent = words(&[48, 9, device, ioas[2], 0, 0, 0, 0, 0, 0, 0, 0]);
    let (parent, _) = answer(Request::HwptAlloc, parent);
    let (queue, reply) = answer(Request::FaultQueueAlloc, words(&[16, 0, 0, 0]));
    let nested = words(&[48, 12, device, parent[4], 0, 0, 1, 24, 48, 0, queue[2], 0]);
    let data = words(&[0, 0, ROOT as u32, 0, 48, 0]);
    let (nested, _) = answer(Request::HwptAlloc, [nested, data].concat());
    let number = Request::AttachIommufdPt.number(Revision::Iommufd).unwrap();
    let mut attach = words(&[16, 1, nested[4], PASID]);
    client.device.ioctl(number, &mut attach, None).unwrap();
    let device = Device::new(&client);
    (client, device, reply.fault_file.unwrap())
}

#[test]
fn by_the_file_of_a_fault_queue() {
    let (client, device, file) = attached();
    device.finds_nothing();
    device.ask(3);
    assert_eq!(client.faults(), 0);
    let mut bytes = [0; 80];
    assert_eq!(file.read(0, &mut bytes), Ok(40));
    let golden = [3, DEVICE.bits().into(), PASID, 3, 1, 0, VA as u32, (VA >> 32) as u32, 0];
    assert_eq!(bytes[..36], words(&golden));
    let cookie: u32 = u32::from_ne_bytes(bytes[36..40].try_into().unwrap());
    map(&client, VTD_PAGE);
    assert_eq!(file.write(0, &words(&[cookie, 2])), Err(Errno::EINVAL));
    assert_eq!(device.heard(), []);
    assert_eq!(file.write(0, &words(&[cookie, 0])), Ok(8));
    assert_eq!(device.heard(), [(3, ResponseCode::Success)]);
    device.finds_it();
    assert_eq!(file.write(0, &words(&[cookie, 0])), Err(Errno::EINVAL));
    // What is out when the table is detached is answered, read or not.
    device.ask(4);
    assert_eq!(file.read(0, &mut bytes), Ok(40));
    device.ask(5);
    let number = Request::DetachIommufdPt.number(Revision::Iommufd).unwrap();
    client.device.ioctl(number, &mut words(&[12, 1, PASID]), None).unwrap();
    let mut heard = device.heard();
    heard.sort_by_key(|(group, _)| *group);
    assert_eq!(heard, [(4, ResponseCode::Invalid), (5, ResponseCode::Invalid)]);
    assert_eq!(file.read(0, &mut bytes), Ok(0));
    let cookie = u32::from_ne_bytes(bytes[36..40].try_into().unwrap());
    assert_eq!(file.write(0, &words(&[cookie, 0])), Err(Errno::EINVAL));
    drop(device);
    finish(client);
    assert_eq!(file.read(0, &mut bytes), Err(Errno::ENODEV));
}

/// Somebody who is told of PASIDs, and makes calls on the container on the way.
struct Caller {
    container: Weak<Container<SoftwareHost>>,
    seen: Mutex<Vec<(&'static str, Option<Errno>)>>,
}

impl Caller {
    fn call(&self, when: &'static str) {
        let container = self.container.upgrade().unwrap();
        let number = |request: Request| request.number(Revision::PasidRequestV7).unwrap();
        let posted = container.ioctl(number(Request::NestingOp), &mut nesting_op(0), None);
        self.seen.lock().unwrap().push((when, posted.err()));
        // All that is the VM's own goes on.
        let mut counters = words(&[168, 0]);
        counters.resize(168, 0);
        container.ioctl(number(Request::GetCounters), &mut counters, None).unwrap();
    }
}

impl PasidSubscriber for Caller {
    fn commit(&self, _: &PasidEvent<'_>) {
        self.call("bound");
    }

    fn unbind(&self, _: &PasidEvent<'_>) {
        self.call("unbound");
    }

    fn free(&self, _: &PasidEvent<'_>) {
        self.call("freed");
    }
}

#[test]
fn who_is_told_of_a_pasid_may_call_the_container() {
    let client = Client::new(SoftwareHost::new(), Revision::PasidRequestV7);
    let container = Arc::downgrade(&client.container);
    let caller = Arc::new(Caller { container, seen: Mutex::default() });
    let subscription =
        client.dispatcher.host().subscribe("caller", Priority::Cpu, caller.clone()).unwrap();
    client.build(0x27, VTD_PAGE);
    client.call(Request::PasidRequest, &words(&[16, 1, PASID, PASID]));
    client.call(Request::NestingOp, &nesting_op(0));
    client.call(Request::NestingOp, &nesting_op(1));
    client.call(Request::PasidRequest, &words(&[16, 2, PASID, PASID]));
    // A posted call within one is refused; within others it fails for reasons of its own.
    let seen = caller.seen.lock().unwrap().clone();
    let busy = Some(Errno::EBUSY);
    assert_eq!(seen[..2], [("bound", busy), ("unbound", busy)]);
    assert!(seen[2..].iter().all(|(when, errno)| *when == "freed" && errno.is_some()), "{seen:?}");
    drop(subscription);
    finish(client);
}
