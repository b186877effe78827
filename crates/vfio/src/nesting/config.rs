//! `struct iommu_pasid_table_config`, in each of its layouts.

use core::mem::offset_of;

use iommu::nesting::{
    DefaultSubstream, DescriptorForm, PasidTableConfig, PasidTableFormat, TableMode,
};
use mem::Gpa;

use super::{check_padding, copy_sized, copy_unsized};
use crate::spec::flags::*;
use crate::spec::{PasidSmmuv3, PasidTableConfigV13, PasidTableConfigV7};
use crate::{spec, ArgumentError, Refusal, Revision};

/// The configuration in `bytes`, as `revision` has it. The checks come in the posted order.
///
/// An offset in an error is that in the configuration.
pub(crate) fn decode_config(bytes: &[u8], revision: Revision) -> Result<PasidTableConfig, Refusal> {
    let config = match revision {
        Revision::PasidTableV11 => without_size(copy_unsized(bytes)?),
        Revision::PasidTableV13 => {
            let fixed = offset_of!(PasidTableConfigV13, smmuv3);
            let (config, size) = copy_sized::<PasidTableConfigV13>(bytes, fixed, false)?;
            check_size(with_hole(config), size, fixed)?
        }
        _ => {
            let fixed = offset_of!(spec::PasidTableConfig, smmuv3);
            let strict = revision == Revision::Own;
            let (config, size) = copy_sized::<spec::PasidTableConfig>(bytes, fixed, strict)?;
            if strict {
                check_all_padding(&config)?;
            }
            check_size(config, size, fixed)?
        }
    };
    decode(&config)
}

/// The version, and that the vendor's part of the format is there.
fn check_size(
    config: spec::PasidTableConfig,
    size: usize,
    fixed: usize,
) -> Result<spec::PasidTableConfig, Refusal> {
    check_version(config.version)?;
    let needed = fixed + size_of::<PasidSmmuv3>();
    if config.format == PASID_TABLE_SMMUV3 && size < needed {
        return Err(ArgumentError::TooShort { argsz: size as u32, needed }.into());
    }
    Ok(config)
}

fn check_version(version: u32) -> Result<(), Refusal> {
    match version {
        PASID_TABLE_VERSION => Ok(()),
        _ => Err(Refusal::Value { offset: offset_of!(spec::PasidTableConfig, version) }),
    }
}

fn check_all_padding(config: &spec::PasidTableConfig) -> Result<(), ArgumentError> {
    let smmuv3 = offset_of!(spec::PasidTableConfig, smmuv3);
    check_padding(&config.padding, offset_of!(spec::PasidTableConfig, padding))?;
    check_padding(&config.smmuv3.padding, smmuv3 + offset_of!(PasidSmmuv3, padding))
}

fn with_hole(config: PasidTableConfigV13) -> spec::PasidTableConfig {
    let PasidTableConfigV13 {
        argsz,
        version,
        format,
        hole: _,
        base_ptr,
        pasid_bits,
        config,
        padding,
        smmuv3,
        tail: _,
    } = config;
    spec::PasidTableConfig { argsz, version, base_ptr, format, pasid_bits, config, padding, smmuv3 }
}

fn without_size(config: PasidTableConfigV7) -> spec::PasidTableConfig {
    let PasidTableConfigV7 { version, format, base_ptr, pasid_bits, config, padding: _, smmuv3 } =
        config;
    spec::PasidTableConfig {
        argsz: size_of::<PasidTableConfigV7>() as u32,
        version,
        base_ptr,
        format,
        pasid_bits,
        config,
        padding: [0; 2],
        smmuv3,
    }
}

fn decode(config: &spec::PasidTableConfig) -> Result<PasidTableConfig, Refusal> {
    let value = |offset| Refusal::Value { offset };
    check_version(config.version)?;
    let mode = match config.config {
        CONFIG_TRANSLATE => TableMode::Translate,
        CONFIG_BYPASS => TableMode::Bypass,
        CONFIG_ABORT => TableMode::Abort,
        _ => return Err(value(offset_of!(spec::PasidTableConfig, config))),
    };
    if config.format != PASID_TABLE_SMMUV3 {
        return Err(value(offset_of!(spec::PasidTableConfig, format)));
    }
    let PasidSmmuv3 { version, s1fmt, s1dss, padding: _ } = config.smmuv3;
    let smmuv3 = offset_of!(spec::PasidTableConfig, smmuv3);
    if version != PASID_TABLE_VERSION {
        return Err(value(smmuv3 + offset_of!(PasidSmmuv3, version)));
    }
    // What a table is like means nothing where there is none.
    let translates = mode == TableMode::Translate;
    let s1fmt = match s1fmt {
        1 if translates => DescriptorForm::Leaves4K,
        2 if translates => DescriptorForm::Leaves64K,
        3.. if translates => return Err(value(smmuv3 + offset_of!(PasidSmmuv3, s1fmt))),
        _ => DescriptorForm::Linear,
    };
    let s1dss = match s1dss {
        1 if translates => DefaultSubstream::Bypass,
        2 if translates => DefaultSubstream::Zero,
        3.. if translates => return Err(value(smmuv3 + offset_of!(PasidSmmuv3, s1dss))),
        _ => DefaultSubstream::Terminate,
    };
    Ok(PasidTableConfig {
        format: PasidTableFormat::Smmuv3 { s1fmt, s1dss },
        config: mode,
        pasid_bits: config.pasid_bits,
        base: Gpa(config.base_ptr),
    })
}
