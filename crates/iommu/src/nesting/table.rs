//! A guest's PASID table as a whole: what the calls say about it, and what of it the hardware can
//! take.

use mem::{Gpa, Range};

use super::{stream, NestingError};
use crate::format::smmuv3::{DESCRIPTOR_SIZE, POINTER_SIZE};
use crate::{
    DefaultSubstream, DescriptorForm, Hardware, ObjectError, Pasid, SmmuCaps, StageOneTable,
    TableCaps, VtdPasidTable,
};

/// Bits of an address in a stream-table entry.
const SMMU_ADDRESS_BITS: u8 = 52;
/// Bytes of an entry of a VT-d PASID directory; each is for 64 PASIDs (VT-d 9.5).
const DIRECTORY_ENTRY_SIZE: u64 = 8;
const DIRECTORY_ENTRY_BITS: u8 = 6;
/// Alignment of a VT-d PASID directory.
const DIRECTORY_ALIGNMENT: u64 = 0x1000;

/// `iommu_pasid_table_config`, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidTableConfig {
    /// Of which IOMMU the table is.
    pub format: PasidTableFormat,
    /// What becomes of requests.
    pub config: TableMode,
    /// PASID bits that the table covers (SMMUv3: S1CDMax). Means nothing unless
    /// [`TableMode::Translate`], as the base.
    pub pasid_bits: u8,
    /// Address of the table.
    pub base: Gpa,
}

/// What a configuration asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TableMode {
    /// The guest's table, then stage 2.
    Translate,
    /// Stage 2 alone.
    Bypass,
    /// Every request is terminated.
    Abort,
}

/// The IOMMU that a PASID table is for, with what belongs to it alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidTableFormat {
    /// A table of context descriptors.
    Smmuv3 {
        /// Its form.
        s1fmt: DescriptorForm,
        /// What requests without PASID are translated by.
        s1dss: DefaultSubstream,
    },
    /// A VT-d PASID directory. Not in the posted structure: the same for the call of 2017.
    Vtd,
}

impl PasidTableConfig {
    /// Whether the hardware can take it: of the right model, and, if it translates, of a form and
    /// size that the hardware knows, at an address that it can reach.
    pub(super) fn check(&self, hardware: &Hardware) -> Result<(), NestingError> {
        match (self.format, hardware) {
            (PasidTableFormat::Smmuv3 { s1fmt, .. }, Hardware::Smmuv3(caps)) => {
                self.if_translating(|| self.check_descriptors(s1fmt, caps))
            }
            (PasidTableFormat::Vtd, Hardware::Vtd(caps)) => {
                self.if_translating(|| self.check_directory(caps))
            }
            _ => Err(NestingError::WrongModel),
        }
    }

    fn if_translating(
        &self,
        check: impl FnOnce() -> Result<(), NestingError>,
    ) -> Result<(), NestingError> {
        match self.config {
            TableMode::Translate => check(),
            TableMode::Bypass | TableMode::Abort => Ok(()),
        }
    }

    fn check_descriptors(&self, form: DescriptorForm, caps: &SmmuCaps) -> Result<(), NestingError> {
        if !(caps.stage_one && caps.stage_two) {
            return Err(ObjectError::NotSupported.into());
        }
        self.check_bits(caps.substream_bits)?;
        if form != DescriptorForm::Linear && !caps.two_level_descriptors {
            return Err(NestingError::NoTwoLevelTables);
        }
        let first_level = |leaf_bits| POINTER_SIZE << self.pasid_bits.saturating_sub(leaf_bits);
        let size = match form {
            DescriptorForm::Linear => DESCRIPTOR_SIZE << self.pasid_bits,
            DescriptorForm::Leaves4K => first_level(6),
            DescriptorForm::Leaves64K => first_level(10),
        };
        let reach = caps.output_bits.min(SMMU_ADDRESS_BITS);
        check_address(self.base, DESCRIPTOR_SIZE, size, reach)
    }

    fn check_directory(&self, caps: &TableCaps) -> Result<(), NestingError> {
        if !caps.nested {
            return Err(ObjectError::NotSupported.into());
        }
        self.check_bits(Pasid::BITS as u8)?;
        let entries_bits = self.pasid_bits.saturating_sub(DIRECTORY_ENTRY_BITS);
        let size = DIRECTORY_ENTRY_SIZE << entries_bits;
        check_address(self.base, DIRECTORY_ALIGNMENT, size, second_stage_reach(caps))
    }

    fn check_bits(&self, limit: u8) -> Result<(), NestingError> {
        let limit = limit.min(Pasid::BITS as u8);
        if self.pasid_bits > limit {
            return Err(NestingError::PasidBits { got: self.pasid_bits, limit });
        }
        Ok(())
    }

    /// The guest's part of a nested table that translates by it.
    pub(super) fn stage_one(&self) -> StageOneTable {
        match self.format {
            PasidTableFormat::Smmuv3 { s1fmt, s1dss } => {
                StageOneTable::Smmuv3(stream::stage_one(self, s1fmt, s1dss))
            }
            PasidTableFormat::Vtd => StageOneTable::VtdPasidTable(VtdPasidTable {
                directory: self.base,
                pasid_bits: self.pasid_bits,
            }),
        }
    }
}

/// Bits of the addresses that a VT-d second stage can translate.
pub(super) fn second_stage_reach(caps: &TableCaps) -> u8 {
    let width = [(3, 57), (2, 48), (1, 39)]
        .into_iter()
        .find_map(|(bit, width)| (caps.second_stage_levels >> bit & 1 != 0).then_some(width));
    width.unwrap_or(caps.address_bits).min(caps.address_bits)
}

/// Whether the `size` bytes at `address` can be a table within `bits` bits of address. The
/// alignment is a power of two.
pub(super) fn check_address(
    address: Gpa,
    alignment: u64,
    size: u64,
    bits: u8,
) -> Result<(), NestingError> {
    if !address.is_aligned(alignment.ilog2()) {
        return Err(NestingError::Misaligned { address, alignment });
    }
    let fits = |range: Range<Gpa>| range.last.0.checked_shr(bits.into()).unwrap_or(0) == 0;
    if !Range::<Gpa>::new(address, size).is_some_and(fits) {
        return Err(NestingError::BeyondStageTwo { address, bits });
    }
    Ok(())
}

/// `pasid_table_info` of 2017, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidTableInfo {
    /// Of which IOMMU the table is.
    pub model: TableModel,
    /// Its address (VT-d: of the directory; SMMUv3: of a linear table of context descriptors).
    pub ptr: Gpa,
    /// Its size in bytes.
    pub size: u64,
}

/// `iommu_model`: whose table it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TableModel {
    /// VT-d.
    Vtd,
    /// Arm SMMUv3.
    Smmu,
}

impl PasidTableInfo {
    /// The same as a configuration: requests without PASID see stage 2 alone.
    ///
    /// # Errors
    ///
    /// [`NestingError::Size`] if the size is not that of a power of two of PASIDs.
    pub fn config(&self) -> Result<PasidTableConfig, NestingError> {
        let (entry_size, entry_bits, format) = match self.model {
            TableModel::Vtd => (DIRECTORY_ENTRY_SIZE, DIRECTORY_ENTRY_BITS, PasidTableFormat::Vtd),
            TableModel::Smmu => {
                let s1dss = DefaultSubstream::Bypass;
                let format = PasidTableFormat::Smmuv3 { s1fmt: DescriptorForm::Linear, s1dss };
                (DESCRIPTOR_SIZE, 0, format)
            }
        };
        let entries = self.size / entry_size;
        if !self.size.is_power_of_two() || entries == 0 {
            return Err(NestingError::Size(self.size));
        }
        // At most 60 and 6.
        let pasid_bits = entries.ilog2() as u8 + entry_bits;
        let config = TableMode::Translate;
        Ok(PasidTableConfig { format, config, pasid_bits, base: self.ptr })
    }
}
