//! `iommu::nesting` on a host of plain maps (`mock`): the posted rules row by row, what a failure
//! at any call leaves, and that a map is kept.
#![cfg(not(loom))]

mod bindings;
#[path = "../common/mod.rs"]
mod common;
mod domain;
mod faults;
mod gpasid;
mod invalidate;
#[path = "../common/mock.rs"]
mod mock;
mod model;
mod msi;
mod software;
mod software_smmu;
mod unwind;

use common::{pasid, CAPS};
use iommu::nesting::{
    DefaultSubstream, DescriptorForm, Domain, PasidTableConfig, PasidTableFormat, TableMode,
};
use iommu::{GuestPasid, Hardware, PasidRange, Vm};
use mem::Gpa;
use mock::{Mock, SMMU};
use pci::RequesterId;

const ONE: RequesterId = RequesterId::from_bits(0x0080);
const TWO: RequesterId = RequesterId::from_bits(0x0088);
const THREE: RequesterId = RequesterId::from_bits(0x0090);
const FOUR: RequesterId = RequesterId::from_bits(0x0098);
/// No device of any VM.
const STRANGER: RequesterId = RequesterId::from_bits(0x00ff);

const DEVICES: [RequesterId; 4] = [ONE, TWO, THREE, FOUR];
const VTD: Hardware = Hardware::Vtd(CAPS);
const SMMUV3: Hardware = Hardware::Smmuv3(SMMU);

/// Where a guest's tables are.
const BASE: u64 = 0x8_0000;

fn guest(number: u32) -> GuestPasid {
    GuestPasid(pasid(number))
}

fn only(number: u32) -> PasidRange {
    PasidRange::new(pasid(number), pasid(number)).unwrap()
}

fn host(hardware: Hardware) -> Mock {
    Mock::new(&DEVICES.map(|device| (device, hardware)))
}

/// A domain with these devices.
fn domain(mock: &Mock, devices: &[RequesterId]) -> Domain<Mock> {
    let mut domain = Domain::new(mock.clone());
    for device in devices {
        domain.add_device(*device).unwrap();
    }
    mock.calls();
    domain
}

/// PASIDs 1 to 9 are the VM's.
fn grant(mock: &Mock) {
    for number in 1..10 {
        mock.alloc_pasid(only(number)).unwrap();
    }
    mock.calls();
}

fn smmu_config(config: TableMode) -> PasidTableConfig {
    let format =
        PasidTableFormat::Smmuv3 { s1fmt: DescriptorForm::Linear, s1dss: DefaultSubstream::Bypass };
    PasidTableConfig { format, config, pasid_bits: 4, base: Gpa(BASE) }
}
