//! The file of a fault queue, byte for byte as iommufd's: what may be read and written, and how
//! much of it.

use std::sync::Arc;

use iommu::{Host, InvalidField, ObjectError, PageFault, PageRequest, Pasid, PrgIndex, VmConfig};
use mem::Iova;
use pci::RequesterId;
use proptest::prelude::*;
use vfio::{Container, Dispatcher, Errno, FaultFile, Request, Revision};

#[allow(dead_code)]
mod scripted;
use scripted::{Scripted, ScriptedVm};

struct Rig {
    _container: Container<Scripted>,
    vm: ScriptedVm,
    file: Arc<dyn FaultFile>,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Rig {
    fn new(revision: Revision) -> Self {
        let dispatcher = Dispatcher::new(Scripted::default(), revision);
        let container = dispatcher.open_container().unwrap();
        let mut create = words(&[128, 0, 1]);
        create.resize(128, 0);
        container.call(Request::CreateVm.number(revision).unwrap(), &mut create, None).unwrap();
        let mut alloc = words(&[16, 0, 0, 0]);
        let number = Request::FaultQueueAlloc.number(revision).unwrap();
        let reply = container.call(number, &mut alloc, None).unwrap();
        let vm = container.host_vm().unwrap();
        vm.take_calls();
        // There are no descriptors: the file is beside the bytes.
        assert_eq!(alloc[8..], words(&[1, u32::MAX]));
        Self { _container: container, vm, file: reply.fault_file.unwrap() }
    }

    /// A group of so many requests waits.
    fn group(&self, cookie: u32, requests: u64) {
        let mut script = self.vm.script();
        let fault = |n| fault(cookie, n, n + 1 == requests);
        script.page_faults.extend((0..requests).map(fault));
    }

    fn read(&self, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0xee; len];
        let read = self.file.read(0, &mut bytes)?;
        assert!(bytes[read..].iter().all(|&byte| byte == 0xee));
        bytes.truncate(read);
        Ok(bytes)
    }

    /// The cookies of what is read.
    fn cookies(&self, requests: usize) -> Result<Vec<u32>, Errno> {
        let bytes = self.read(requests * 40)?;
        let cookie = |fault: &[u8]| u32::from_ne_bytes(fault[36..].try_into().unwrap());
        Ok(bytes.chunks(40).map(cookie).collect())
    }
}

fn fault(cookie: u32, page: u64, last: bool) -> PageFault {
    PageFault {
        cookie,
        request: PageRequest {
            requester: RequesterId::from_bits(0x80),
            pasid: Some(Pasid::from_field(5)),
            privileged: true,
            execute: false,
            read: true,
            write: true,
            address: Iova(0x7f00_0000_0000 + page * 0x1000),
            group: PrgIndex::from_field(6),
            last,
            private_data: None,
        },
    }
}

#[test]
fn a_group_is_read_and_answered() {
    let rig = Rig::new(Revision::Iommufd);
    assert_eq!(rig.read(400), Ok(vec![]));
    rig.group(77, 2);
    let golden =
        [[1, 0x80, 5, 6, 11, 0, 0, 0x7f00, 0, 77], [3, 0x80, 5, 6, 11, 0, 0x1000, 0x7f00, 0, 77]];
    assert_eq!(rig.read(400), Ok(words(&golden.concat())));
    assert_eq!(rig.read(400), Ok(vec![]));
    rig.vm.take_calls();
    assert_eq!(rig.file.write(0, &words(&[77, 0, 78, 1])), Ok(16));
    let calls = ["respond FaultQueueId(1) 0x4d Success", "respond FaultQueueId(1) 0x4e Invalid"];
    assert_eq!(rig.vm.take_calls(), calls);
}

#[test]
fn positions_and_lengths() {
    let rig = Rig::new(Revision::Own);
    rig.group(1, 1);
    for len in [1, 39, 41, 79, 400 - 8] {
        assert_eq!(rig.read(len), Err(Errno::ESPIPE), "{len}");
        assert_eq!(rig.file.write(0, &vec![0; len * 2 + 1]), Err(Errno::ESPIPE));
    }
    for position in [1, 40, u64::MAX] {
        assert_eq!(rig.file.read(position, &mut [0; 40]), Err(Errno::ESPIPE));
        assert_eq!(rig.file.write(position, &[0; 8]), Err(Errno::ESPIPE));
    }
    // None of which took anything.
    assert_eq!(rig.read(0), Ok(vec![]));
    assert_eq!(rig.file.write(0, &[]), Ok(0));
    assert!(rig.vm.take_calls().is_empty());
    assert_eq!(rig.cookies(1), Ok(vec![1]));
}

#[test]
fn only_whole_groups() {
    let rig = Rig::new(Revision::Iommufd);
    rig.group(1, 3);
    rig.group(2, 1);
    rig.group(3, 2);
    // It stays as it is while there is not enough room.
    assert_eq!(rig.cookies(2), Err(Errno::EINVAL));
    assert_eq!(rig.cookies(1), Err(Errno::EINVAL));
    // As many as fit.
    assert_eq!(rig.cookies(5), Ok(vec![1, 1, 1, 2]));
    assert_eq!(rig.cookies(1), Err(Errno::EINVAL));
    assert_eq!(rig.cookies(9), Ok(vec![3, 3]));
    // A part of one is not there yet.
    rig.vm.script().page_faults.push_back(fault(4, 0, false));
    assert_eq!(rig.cookies(9), Ok(vec![]));
    rig.vm.script().page_faults.push_back(fault(4, 1, true));
    assert_eq!(rig.cookies(9), Ok(vec![4, 4]));
}

#[test]
fn stop_markers_are_not_read() {
    let rig = Rig::new(Revision::Iommufd);
    let request = PageRequest::stop_marker(RequesterId::from_bits(0x80), Pasid::from_field(5));
    rig.vm.script().page_faults.push_back(PageFault { cookie: 9, request });
    rig.group(1, 1);
    assert_eq!(rig.cookies(9), Ok(vec![1]));
}

#[test]
fn answers_that_reach_nobody() {
    let rig = Rig::new(Revision::Own);
    // The interface may not be said to be broken, in either revision.
    for code in [2, 3, 15, u32::MAX] {
        assert_eq!(rig.file.write(0, &words(&[7, code])), Err(Errno::EINVAL), "{code}");
    }
    assert!(rig.vm.take_calls().is_empty());
    // Up to there.
    assert_eq!(rig.file.write(0, &words(&[7, 1, 8, 2, 9, 0])), Ok(8));
    assert_eq!(rig.vm.take_calls().len(), 1);
    rig.vm.script().error = Some(ObjectError::Invalid(InvalidField::Cookie));
    assert_eq!(rig.file.write(0, &words(&[7, 1])), Err(Errno::EINVAL));
    rig.vm.script().error = Some(ObjectError::Closed);
    assert_eq!(rig.file.write(0, &words(&[7, 1])), Err(Errno::ENODEV));
    assert_eq!(rig.read(40), Err(Errno::ENODEV));
}

#[test]
fn a_client_of_ours_may_say_all() {
    use iommu::{FaultQueueId, ResponseCode, Vm};
    let vm = vfio::Door::encoded(Scripted::default()).create_vm(VmConfig::named("v")).unwrap();
    let queue = vm.alloc_fault_queue().unwrap();
    vm.respond_page_fault(queue, 7, ResponseCode::Failure).unwrap();
    let calls = vm.host_vm().unwrap().take_calls();
    assert_eq!(calls[1..], ["respond FaultQueueId(1) 0x7 Failure"]);
    assert_eq!(queue, FaultQueueId(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// Whatever is read into how little, every group comes once, whole, and in order.
    #[test]
    fn every_group_once(
        groups in prop::collection::vec(1..5u64, 0..20),
        rooms in prop::collection::vec((0..8usize, 0..2u64), 0..60),
    ) {
        let rig = Rig::new(Revision::Iommufd);
        for (cookie, requests) in (0..).zip(&groups) {
            rig.group(cookie, *requests);
        }
        let mut seen = Vec::new();
        for (room, position) in rooms {
            match rig.file.read(position, &mut vec![0; room * 40]) {
                Err(errno) if position > 0 => prop_assert_eq!(errno, Errno::ESPIPE),
                Err(errno) => prop_assert_eq!(errno, Errno::EINVAL),
                Ok(0) => continue,
                Ok(read) => {
                    prop_assert!(read <= room * 40);
                    seen.push(read / 40);
                }
            }
        }
        // Sums of whole groups.
        let mut rest = groups.iter();
        for read in seen {
            let mut sum = 0;
            while sum < read {
                sum += *rest.next().unwrap() as usize;
            }
            prop_assert_eq!(sum, read);
        }
        let left: u64 = rest.sum();
        prop_assert_eq!(rig.read(40 * 200).unwrap().len(), left as usize * 40);
    }

    #[test]
    fn hostile_answers(bytes in prop::collection::vec(any::<u8>(), 0..64), position in 0..2u64) {
        let rig = Rig::new(Revision::Iommufd);
        if let Ok(done) = rig.file.write(position, &bytes) {
            prop_assert!(done <= bytes.len() && done % 8 == 0);
            prop_assert_eq!(rig.vm.take_calls().len(), done / 8);
        }
    }
}
