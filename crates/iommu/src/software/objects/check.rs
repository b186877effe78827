//! Whether a request for a page table asks for something that there can be.

use mem::Gpa;

use crate::format::vtd::exceeds;
use crate::{
    Hardware, HwptFlags, HwptParent, HwptRequest, InvalidField, ObjectError, Pasid, SmmuCaps,
    StageOneTable, TableCaps, ViommuKind, VtdPasidTable, VtdStageOne, VtdStageOneFlags,
};

const PAGE_BITS: u32 = 12;
/// PASID bits of the smallest directory.
const MIN_PASID_BITS: u8 = 7;

impl Hardware {
    /// The kind of a vIOMMU of it.
    pub(crate) fn viommu_kind(&self) -> ViommuKind {
        match self {
            Self::Vtd(_) => ViommuKind::Vtd,
            Self::Smmuv3(_) => ViommuKind::Smmuv3,
        }
    }
}

/// Checks a request against the hardware; `input_bits` is how wide the addresses are that stage 2
/// translates. Whether the objects that it names exist is not checked here.
pub(super) fn request(
    request: &HwptRequest,
    hardware: &Hardware,
    input_bits: u8,
) -> Result<(), ObjectError> {
    flags(request)?;
    // What it has for PASIDs is the guest's table, or nothing.
    if matches!(hardware, Hardware::Smmuv3(_)) && request.flags.contains(HwptFlags::PASID) {
        return Err(ObjectError::NotSupported);
    }
    let Some(data) = &request.data else { return Ok(()) };
    match (data, hardware) {
        (StageOneTable::Vtd(table), Hardware::Vtd(caps)) => vtd_stage_one(table, caps, input_bits),
        (StageOneTable::VtdPasidTable(table), Hardware::Vtd(_)) => {
            whole_device(request)?;
            vtd_pasid_table(table, input_bits)
        }
        (StageOneTable::Smmuv3(_), Hardware::Smmuv3(caps)) => {
            whole_device(request)?;
            smmuv3(request, caps)
        }
        _ => Err(ObjectError::WrongModel),
    }
}

fn flags(request: &HwptRequest) -> Result<(), ObjectError> {
    let HwptRequest { flags, parent, data, fault, .. } = request;
    if flags.bits() & !HwptFlags::all().bits() != 0 {
        return Err(ObjectError::Invalid(InvalidField::Flags));
    }
    if flags.contains(HwptFlags::FAULT_ID_VALID) != fault.is_some() {
        return Err(ObjectError::Invalid(InvalidField::FaultQueue));
    }
    let paging = matches!(parent, HwptParent::Ioas(_));
    if paging == data.is_some() {
        return Err(ObjectError::Invalid(InvalidField::Data));
    }
    let faults = HwptFlags::FAULT_ID_VALID;
    let (allowed, together) = match paging {
        true => {
            (faults | HwptFlags::NEST_PARENT | HwptFlags::PASID, faults | HwptFlags::NEST_PARENT)
        }
        false => (faults | HwptFlags::PASID, HwptFlags::all()),
    };
    // Nobody can read the dirty bits yet, so none are promised.
    if !allowed.contains(*flags) || flags.contains(together) {
        return Err(ObjectError::NotSupported);
    }
    Ok(())
}

/// A table for all PASIDs of a device cannot be one of them.
fn whole_device(request: &HwptRequest) -> Result<(), ObjectError> {
    match request.flags.contains(HwptFlags::PASID) {
        true => Err(ObjectError::Invalid(InvalidField::Flags)),
        false => Ok(()),
    }
}

/// What a VT-d first-stage table may ask for.
fn vtd_stage_one(table: &VtdStageOne, caps: &TableCaps, input_bits: u8) -> Result<(), ObjectError> {
    let VtdStageOne { flags, root, address_width } = *table;
    if !(caps.nested && caps.first_stage && caps.second_stage) {
        return Err(ObjectError::NotSupported);
    }
    match address_width {
        48 => {}
        57 if caps.first_stage_5_level => {}
        _ => return Err(ObjectError::Invalid(InvalidField::AddressWidth)),
    }
    table_address(root, input_bits)?;
    let unknown = flags.bits() & !VtdStageOneFlags::all().bits() != 0;
    // The engine knows no extended accessed flag, and no capabilities say that it does.
    let incapable = flags.contains(VtdStageOneFlags::EAFE)
        || (flags.contains(VtdStageOneFlags::SRE) && !caps.supervisor);
    if unknown || incapable {
        return Err(ObjectError::Invalid(InvalidField::Flags));
    }
    Ok(())
}

fn vtd_pasid_table(table: &VtdPasidTable, input_bits: u8) -> Result<(), ObjectError> {
    table_address(table.directory, input_bits)?;
    if !(MIN_PASID_BITS..=Pasid::BITS as u8).contains(&table.pasid_bits) {
        return Err(ObjectError::Invalid(InvalidField::Pasid));
    }
    Ok(())
}

/// A guest's stream-table entry: only a vIOMMU says whose it is.
fn smmuv3(request: &HwptRequest, caps: &SmmuCaps) -> Result<(), ObjectError> {
    if !(caps.stage_one && caps.stage_two) {
        return Err(ObjectError::NotSupported);
    }
    match request.parent {
        HwptParent::Viommu(_) => Ok(()),
        _ => Err(ObjectError::Invalid(InvalidField::Parent)),
    }
}

fn table_address(address: Gpa, input_bits: u8) -> Result<(), ObjectError> {
    if !address.is_aligned(PAGE_BITS) || exceeds(address, input_bits) {
        return Err(ObjectError::Invalid(InvalidField::Address));
    }
    Ok(())
}
