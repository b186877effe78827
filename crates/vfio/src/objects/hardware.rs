//! What an IOMMU can do, as its own registers say it.
//!
//! Only what [`TableCaps`] and [`SmmuCaps`] have is in them; a guest physical address is as wide as
//! CAP.MGAW says.

use bitfield_struct::bitfield;
use iommu::{Hardware, Pasid, SmmuCaps, TableCaps};
use zerocopy::IntoBytes;

use crate::argument::copy_data;
use crate::spec::flags::*;
use crate::spec::{SmmuInfo, VtdInfo};
use crate::ArgumentError;

/// VT-d's capability register (VT-d 11.4.2), as far as page tables go.
#[bitfield(u64)]
struct VtdCap {
    #[bits(8)]
    __: u8,
    /// Levels of second-stage tables.
    #[bits(5)]
    sagaw: u8,
    #[bits(3)]
    __: u8,
    /// Width of a guest physical address, less one.
    #[bits(6)]
    mgaw: u8,
    #[bits(12)]
    __: u16,
    /// Large pages in second-stage tables.
    #[bits(4)]
    sllps: u8,
    #[bits(18)]
    __: u32,
    /// 1 GiB pages in first-stage tables.
    fl1gp: bool,
    #[bits(3)]
    __: u8,
    /// 5-level first-stage tables.
    fl5lp: bool,
    #[bits(3)]
    __: u8,
}

/// VT-d's extended capability register (VT-d 11.4.3), as far as page tables go.
#[bitfield(u64)]
struct VtdEcap {
    #[bits(6)]
    __: u8,
    pass_through: bool,
    #[bits(19)]
    __: u32,
    nested: bool,
    #[bits(4)]
    __: u8,
    supervisor: bool,
    #[bits(3)]
    __: u8,
    /// Bits of PASID, less one.
    #[bits(5)]
    pasid_size: u8,
    pasid: bool,
    #[bits(2)]
    __: u8,
    scalable_mode: bool,
    #[bits(1)]
    __: u8,
    second_stage_accessed_dirty: bool,
    second_stage: bool,
    first_stage: bool,
    page_walk_snoop: bool,
    #[bits(15)]
    __: u16,
}

/// SMMUv3's IDR0 (SMMUv3 6.3.1).
#[bitfield(u32)]
struct Idr0 {
    stage_two: bool,
    stage_one: bool,
    /// 2: AArch64 tables.
    #[bits(2)]
    table_format: u8,
    #[bits(2)]
    __: u8,
    #[bits(2)]
    hardware_updates: u8,
    #[bits(2)]
    __: u8,
    ats: bool,
    #[bits(1)]
    __: u8,
    asid_16: bool,
    #[bits(6)]
    __: u8,
    two_level_descriptors: bool,
    #[bits(12)]
    __: u16,
}

/// SMMUv3's IDR1 (SMMUv3 6.3.2).
#[bitfield(u32)]
struct Idr1 {
    #[bits(6)]
    __: u8,
    #[bits(5)]
    substream_bits: u8,
    #[bits(21)]
    __: u32,
}

/// SMMUv3's IDR5 (SMMUv3 6.3.6).
#[bitfield(u32)]
struct Idr5 {
    /// An index of [`OUTPUT_BITS`].
    #[bits(3)]
    output: u8,
    #[bits(1)]
    __: u8,
    granule_4k: bool,
    granule_16k: bool,
    granule_64k: bool,
    #[bits(3)]
    __: u8,
    /// 1: 52 bits.
    #[bits(2)]
    virtual_addresses: u8,
    #[bits(20)]
    __: u32,
}

/// IDR0.TTF: AArch64 tables.
const AARCH64: u8 = 2;
/// IDR5.OAS by its value.
const OUTPUT_BITS: [u8; 7] = [32, 36, 40, 42, 44, 48, 52];

/// Bytes of the longest registers.
pub(crate) const INFO_BYTES: usize = size_of::<SmmuInfo>();

/// What `IOMMU_GET_HW_INFO` says of an IOMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Info {
    Vtd(VtdInfo),
    Smmuv3(SmmuInfo),
}

impl Info {
    pub(crate) fn of(hardware: Hardware) -> Self {
        match hardware {
            Hardware::Vtd(caps) => Self::Vtd(vtd_info(caps)),
            Hardware::Smmuv3(caps) => Self::Smmuv3(smmu_info(caps)),
        }
    }

    /// The structure of this type in `bytes`; `None` if the type is not known.
    pub(crate) fn read(data_type: u32, bytes: &[u8]) -> Option<Result<Self, ArgumentError>> {
        match data_type {
            HW_INFO_INTEL_VTD => Some(copy_data(bytes).map(Self::Vtd)),
            HW_INFO_ARM_SMMUV3 => Some(copy_data(bytes).map(Self::Smmuv3)),
            _ => None,
        }
    }

    pub(crate) fn hardware(&self) -> Hardware {
        match self {
            Self::Vtd(info) => Hardware::Vtd(table_caps(info)),
            Self::Smmuv3(info) => Hardware::Smmuv3(smmu_caps(info)),
        }
    }

    pub(crate) const fn data_type(&self) -> u32 {
        match self {
            Self::Vtd(_) => HW_INFO_INTEL_VTD,
            Self::Smmuv3(_) => HW_INFO_ARM_SMMUV3,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Vtd(info) => info.as_bytes(),
            Self::Smmuv3(info) => info.as_bytes(),
        }
    }

    /// CAP and ECAP of a VT-d; zeroes of others.
    pub(crate) const fn vtd_registers(&self) -> (u64, u64) {
        match self {
            Self::Vtd(info) => (info.cap_reg, info.ecap_reg),
            Self::Smmuv3(_) => (0, 0),
        }
    }

    /// Bits of PASID.
    pub(crate) fn pasid_bits(&self) -> u8 {
        match self {
            Self::Vtd(_) => Pasid::BITS as u8,
            Self::Smmuv3(info) => Idr1::from_bits(info.idr[1]).substream_bits(),
        }
    }

    /// `HW_CAP_` bits.
    pub(crate) fn capabilities(&self) -> u64 {
        match self.hardware() {
            Hardware::Vtd(TableCaps { supervisor: true, .. }) => HW_CAP_PASID_PRIVILEGED,
            Hardware::Smmuv3(SmmuCaps { ats: false, .. }) => HW_CAP_NO_ATS,
            Hardware::Vtd(_) | Hardware::Smmuv3(_) => 0,
        }
    }
}

fn vtd_info(caps: TableCaps) -> VtdInfo {
    let TableCaps {
        address_bits,
        first_stage,
        second_stage,
        nested,
        pass_through,
        first_stage_5_level,
        first_stage_1g,
        second_stage_levels,
        second_stage_large,
        second_stage_accessed_dirty,
        supervisor,
        page_walk_snoop,
    } = caps;
    let cap = VtdCap::new()
        .with_sagaw(second_stage_levels & 0x1f)
        .with_mgaw(address_bits.saturating_sub(1) & 0x3f)
        .with_sllps(second_stage_large & 0xf)
        .with_fl1gp(first_stage_1g)
        .with_fl5lp(first_stage_5_level);
    let ecap = VtdEcap::new()
        .with_pass_through(pass_through)
        .with_nested(nested)
        .with_supervisor(supervisor)
        .with_pasid_size(Pasid::BITS as u8 - 1)
        .with_pasid(true)
        .with_scalable_mode(true)
        .with_second_stage_accessed_dirty(second_stage_accessed_dirty)
        .with_second_stage(second_stage)
        .with_first_stage(first_stage)
        .with_page_walk_snoop(page_walk_snoop);
    VtdInfo { flags: 0, reserved: 0, cap_reg: cap.into_bits(), ecap_reg: ecap.into_bits() }
}

fn table_caps(info: &VtdInfo) -> TableCaps {
    let (cap, ecap) = (VtdCap::from_bits(info.cap_reg), VtdEcap::from_bits(info.ecap_reg));
    TableCaps {
        address_bits: cap.mgaw() + 1,
        first_stage: ecap.first_stage(),
        second_stage: ecap.second_stage(),
        nested: ecap.nested(),
        pass_through: ecap.pass_through(),
        first_stage_5_level: cap.fl5lp(),
        first_stage_1g: cap.fl1gp(),
        second_stage_levels: cap.sagaw(),
        second_stage_large: cap.sllps(),
        second_stage_accessed_dirty: ecap.second_stage_accessed_dirty(),
        supervisor: ecap.supervisor(),
        page_walk_snoop: ecap.page_walk_snoop(),
    }
}

fn smmu_info(caps: SmmuCaps) -> SmmuInfo {
    let SmmuCaps {
        stage_one,
        stage_two,
        substream_bits,
        two_level_descriptors,
        granule_4k,
        granule_16k,
        granule_64k,
        output_bits,
        wide_addresses,
        hardware_updates,
        asid_16,
        ats,
    } = caps;
    // The largest that is not too much.
    let output = OUTPUT_BITS.iter().rposition(|&bits| bits <= output_bits).unwrap_or(0);
    let idr0 = Idr0::new()
        .with_stage_two(stage_two)
        .with_stage_one(stage_one)
        .with_table_format(AARCH64)
        .with_hardware_updates(hardware_updates & 3)
        .with_ats(ats)
        .with_asid_16(asid_16)
        .with_two_level_descriptors(two_level_descriptors);
    let idr1 = Idr1::new().with_substream_bits(substream_bits & 0x1f);
    let idr5 = Idr5::new()
        .with_output(output as u8)
        .with_granule_4k(granule_4k)
        .with_granule_16k(granule_16k)
        .with_granule_64k(granule_64k)
        .with_virtual_addresses(wide_addresses.into());
    let idr = [idr0.into_bits(), idr1.into_bits(), 0, 0, 0, idr5.into_bits()];
    SmmuInfo { flags: 0, reserved: 0, idr, iidr: 0, aidr: 0 }
}

fn smmu_caps(info: &SmmuInfo) -> SmmuCaps {
    let [idr0, idr1, _, _, _, idr5] = info.idr;
    let (idr0, idr1, idr5) = (Idr0::from_bits(idr0), Idr1::from_bits(idr1), Idr5::from_bits(idr5));
    // The value that is reserved stands for no more than the largest.
    let widest = OUTPUT_BITS[OUTPUT_BITS.len() - 1];
    SmmuCaps {
        stage_one: idr0.stage_one(),
        stage_two: idr0.stage_two(),
        substream_bits: idr1.substream_bits(),
        two_level_descriptors: idr0.two_level_descriptors(),
        granule_4k: idr5.granule_4k(),
        granule_16k: idr5.granule_16k(),
        granule_64k: idr5.granule_64k(),
        output_bits: OUTPUT_BITS.get(usize::from(idr5.output())).copied().unwrap_or(widest),
        wide_addresses: idr5.virtual_addresses() != 0,
        hardware_updates: idr0.hardware_updates(),
        asid_16: idr0.asid_16(),
        ats: idr0.ats(),
    }
}
