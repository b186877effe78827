//! What an IOMMU can do with nested translation, as a capability of `VFIO_IOMMU_GET_INFO`.

use alloc::vec::Vec;

use iommu::Hardware;
use zerocopy::{FromZeros, IntoBytes};

use crate::objects::Info;
use crate::spec::flags::*;
use crate::spec::{NestingInfo, NestingInfoV7, NestingVtdV7};
use crate::Revision;

/// A capability of nested translation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NestingCapability {
    pub(crate) id: u16,
    /// What follows the header.
    pub(crate) body: Vec<u8>,
}

/// What `revision` says of `hardware`; `None` if it says nothing. `system_wide`: PASIDs are the
/// host's own numbers. Of an SMMUv3 it says no more than that there is nothing to say.
pub(crate) fn nesting_info(
    hardware: &Hardware,
    system_wide: bool,
    revision: Revision,
) -> Option<NestingCapability> {
    match revision {
        Revision::PasidRequest53 | Revision::PasidRequestV7 => {
            Some(NestingCapability { id: IOMMU_CAP_NESTING_V7, body: v7(hardware, system_wide) })
        }
        Revision::PasidRequestTree | Revision::Own => {
            Some(NestingCapability { id: IOMMU_CAP_NESTING, body: last(hardware) })
        }
        _ => None,
    }
}

fn v7(hardware: &Hardware, system_wide: bool) -> Vec<u8> {
    let head = size_of::<NestingInfoV7>();
    let Hardware::Vtd(caps) = *hardware else {
        let info = NestingInfoV7 { size: head as u32, ..NestingInfoV7::new_zeroed() };
        return info.as_bytes().to_vec();
    };
    let wide = if system_wide { NESTING_V7_SYSTEM_WIDE_PASID } else { 0 };
    let features = if caps.nested { NESTING_V7_BIND | NESTING_V7_INVALIDATE } else { 0 };
    let registers = Info::of(*hardware);
    let (cap_reg, ecap_reg) = registers.vtd_registers();
    let info = NestingInfoV7 {
        size: (head + size_of::<NestingVtdV7>()) as u32,
        format: NESTING_INTEL_VTD,
        features: wide | features,
        flags: 0,
        addr_width: caps.address_bits.into(),
        pasid_bits: registers.pasid_bits().into(),
        padding: 0,
    };
    let vtd = NestingVtdV7 { flags: 0, padding: 0, cap_reg, ecap_reg };
    [info.as_bytes(), vtd.as_bytes()].concat()
}

fn last(hardware: &Hardware) -> Vec<u8> {
    let argsz = size_of::<NestingInfo>() as u32;
    let Hardware::Vtd(caps) = *hardware else {
        return NestingInfo { argsz, ..NestingInfo::new_zeroed() }.as_bytes().to_vec();
    };
    let registers = Info::of(*hardware);
    let (cap_reg, ecap_reg) = registers.vtd_registers();
    let features = NESTING_FEATURE_BIND | NESTING_FEATURE_INVALIDATE;
    let info = NestingInfo {
        argsz,
        format: NESTING_INTEL_VTD,
        features: if caps.nested { features } else { 0 },
        addr_width: caps.address_bits.into(),
        pasid_bits: registers.pasid_bits().into(),
        cap_reg,
        ecap_reg,
        ..NestingInfo::new_zeroed()
    };
    info.as_bytes().to_vec()
}
