//! The guest's words of a stream-table entry, made of what a call says (IHI 0070, 5.2).

use super::PasidTableConfig;
use crate::format::smmuv3::{StreamWord0, StreamWord1, DESCRIPTOR_SIZE};
use crate::{DefaultSubstream, DescriptorForm};

/// Config: stage 1; the host puts stage 2 under it.
const CONFIG_STAGE_ONE: u8 = 5;
/// S1CIR and S1COR: write-back, read-allocate.
const CACHEABLE: u8 = 1;
/// EATS: address translation services, which the posted structure leaves to the host: where the
/// hardware has them, they are a device's to use.
const ATS: u8 = 1;
/// S1CSH: inner shareable.
const INNER_SHAREABLE: u8 = 3;

/// A valid entry that refuses every request: V, and Config 0.
pub(super) const ABORT: [u64; 2] = [1, 0];

/// The words of a configuration that was checked.
pub(super) fn stage_one(
    config: &PasidTableConfig,
    s1fmt: DescriptorForm,
    s1dss: DefaultSubstream,
) -> [u64; 2] {
    let s1fmt = match s1fmt {
        DescriptorForm::Linear => 0,
        DescriptorForm::Leaves4K => 1,
        DescriptorForm::Leaves64K => 2,
    };
    let s1dss = match s1dss {
        DefaultSubstream::Terminate => 0,
        DefaultSubstream::Bypass => 1,
        DefaultSubstream::Zero => 2,
    };
    let word0 = StreamWord0::new()
        .with_valid(true)
        .with_config(CONFIG_STAGE_ONE)
        .with_descriptor_format(s1fmt)
        .with_descriptor_frame(config.base.0 / DESCRIPTOR_SIZE)
        .with_descriptor_bits(config.pasid_bits);
    // The posted structure has no attributes for the fetches; these are what Linux uses.
    let word1 = StreamWord1::new()
        .with_default_substream(s1dss)
        .with_inner_cacheability(CACHEABLE)
        .with_outer_cacheability(CACHEABLE)
        .with_shareability(INNER_SHAREABLE)
        .with_ats(ATS);
    [word0.into_bits(), word1.into_bits()]
}
