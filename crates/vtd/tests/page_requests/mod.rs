//! A device, the software host, the unit, and a guest that fills in the page.

mod driver;
mod random;
mod silent;

use crate::guest::{with_pasid, Guest, DEVICE, PAGE_A, PAGE_TABLE, PASID, STATUS, VIRTUAL};
use iommu::{PageRequest, PageResponse, PageResponses, PrgIndex, ResponseCode};
use mem::{Gpa, Iova};
use std::sync::{Arc, Mutex};

const RING: u64 = 0x2_4000;

#[derive(Default)]
struct Heard(Mutex<Vec<PageResponse>>);

impl PageResponses for Heard {
    fn respond(&self, response: PageResponse) {
        self.0.lock().unwrap().push(response);
    }
}

#[test]
fn a_page_that_is_not_there_yet_is_asked_for_and_comes() {
    let mut guest = Guest::new();
    let device = guest.attach();
    device.set_ats(true);
    let heard = Arc::new(Heard::default());
    device.set_page_responses(Some(heard.clone()));
    guest.enable_scalable_mode();
    guest.store(Gpa(0x2000), &[0x3000 | 7 << 9 | 0b1_1101]);
    guest.write64(0xd0, RING);
    guest.write32(0xe4, 0x43);
    guest.write32(0xe8, 0xfee0_3000);
    guest.write32(0xe0, 0);
    guest.store(PAGE_TABLE, &[0]);

    let channel = device.channel();
    assert!(channel.enter().write(PASID, VIRTUAL, b"lazy").is_err());
    device.send_page_request(PageRequest {
        requester: DEVICE,
        pasid: PASID.pasid,
        privileged: false,
        execute: false,
        read: false,
        write: true,
        address: VIRTUAL,
        group: PrgIndex::new(9).unwrap(),
        last: true,
        private_data: None,
    });
    let _ = guest.poll();
    assert_eq!(guest.messages.pop().unwrap().data, 0x43);
    assert_eq!(guest.read32(0x34), 0, "a miss of a device with a device TLB is its own matter");
    assert_eq!(guest.load(Gpa(RING)), 0x0000_0001_0080_0101);
    assert_eq!(guest.load(Gpa(RING + 8)), VIRTUAL.0 | 9 << 3 | 0b110);
    assert_eq!(guest.read64(0xc8), 32);

    guest.write32(0xdc, 1);
    guest.store(PAGE_TABLE, &[PAGE_A.0 | 7]);
    guest.write64(0xc0, 32);
    let drain = [0xa5 | 5 << 32, STATUS.0];
    guest.submit(&[[0x0000_0001_0080_0019, 9 << 3], drain]);
    let _ = guest.poll();
    assert_eq!(guest.load(STATUS), 5);
    let answer = PageResponse {
        requester: DEVICE,
        pasid: PASID.pasid,
        group: PrgIndex::new(9).unwrap(),
        code: ResponseCode::Success,
    };
    assert_eq!(*heard.0.lock().unwrap(), [answer]);
    channel.enter().write(PASID, VIRTUAL, b"lazy").unwrap();
    assert_eq!(&guest.load_bytes::<4>(PAGE_A), b"lazy");

    // Twice is once.
    guest.submit(&[[0x0000_0001_0080_0019, 9 << 3]]);
    let _ = guest.poll();
    assert_eq!(heard.0.lock().unwrap().len(), 1);
    assert_eq!(guest.model.counters().page_responses_unknown, 1);
}

#[test]
fn a_page_that_cannot_be_had_is_refused_by_the_guest() {
    let mut guest = Guest::new();
    let device = guest.attach();
    let heard = Arc::new(Heard::default());
    device.set_page_responses(Some(heard.clone()));
    guest.enable_scalable_mode();
    // PRE is clear: the unit refuses in the guest's place.
    let request = PageRequest {
        requester: DEVICE,
        pasid: with_pasid(1).pasid,
        privileged: false,
        execute: false,
        read: true,
        write: false,
        address: Iova(0x1000),
        group: PrgIndex::new(0).unwrap(),
        last: true,
        private_data: None,
    };
    device.send_page_request(request);
    let _ = guest.poll();
    assert_eq!(heard.0.lock().unwrap()[0].code, ResponseCode::Invalid);
    assert_eq!(guest.read64(0x228) >> 32 & 0xff, 0x47);
}
