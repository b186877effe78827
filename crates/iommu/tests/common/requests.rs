//! A device that asks for pages, and remembers what it heard.

use std::sync::{Arc, Mutex};

use iommu::{
    Endpoint, PageRequest, PageResponse, PageResponses, PrgIndex, ResponseCode, SoftwareVm, Vm,
};
use mem::Iova;
use pci::RequesterId;

use super::pasid;

/// What a device heard.
#[derive(Default)]
pub struct Ear(Mutex<Vec<PageResponse>>);

impl Ear {
    /// Has the device's answers come here.
    pub fn of(endpoint: &Endpoint) -> Arc<Self> {
        let ear = Arc::new(Self::default());
        endpoint.set_page_responses(Some(ear.clone()));
        ear
    }

    /// What it has heard since it was last asked.
    pub fn heard(&self) -> Vec<PageResponse> {
        core::mem::take(&mut self.0.lock().unwrap())
    }

    /// The same, as group indices and codes.
    pub fn codes(&self) -> Vec<(u16, ResponseCode)> {
        self.heard().into_iter().map(|answer| (answer.group.get(), answer.code)).collect()
    }
}

impl PageResponses for Ear {
    fn respond(&self, response: PageResponse) {
        self.0.lock().unwrap().push(response);
    }
}

pub fn group(index: u16) -> PrgIndex {
    PrgIndex::new(index).unwrap()
}

/// A request for writing, the only one of its group. The endpoint says whose it is.
pub fn request(of: Option<u32>, index: u16) -> PageRequest {
    PageRequest {
        requester: RequesterId::from_bits(0),
        pasid: of.map(pasid),
        privileged: false,
        execute: false,
        read: true,
        write: true,
        address: Iova(0x7000 + u64::from(index) * 0x1000),
        group: group(index),
        last: true,
        private_data: None,
    }
}

/// One that is not the last of its group.
pub fn part(of: Option<u32>, index: u16) -> PageRequest {
    PageRequest { last: false, ..request(of, index) }
}

pub fn answer(to: &PageRequest, code: ResponseCode) -> PageResponse {
    PageResponse { requester: to.requester, pasid: to.pasid, group: to.group, code }
}

/// Takes all that waits for the model.
pub fn taken(vm: &SoftwareVm) -> Vec<PageRequest> {
    core::iter::from_fn(|| vm.take_page_request()).collect()
}
