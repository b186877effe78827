//! The guest's words of a stream-table entry, made of what a call says (IHI 0070, 5.2).

use bitfield_struct::bitfield;

use super::{DefaultSubstream, DescriptorForm, PasidTableConfig};

/// Config: stage 1; the host puts stage 2 under it.
const CONFIG_STAGE_ONE: u8 = 5;
/// S1CIR and S1COR: write-back, read-allocate.
const CACHEABLE: u8 = 1;
/// S1CSH: inner shareable.
const INNER_SHAREABLE: u8 = 3;

#[bitfield(u64)]
struct Word0 {
    valid: bool,
    #[bits(3)]
    config: u8,
    #[bits(2)]
    s1fmt: u8,
    /// S1ContextPtr, in units of 64 bytes.
    #[bits(46)]
    descriptor_frame: u64,
    #[bits(7)]
    unused: u8,
    #[bits(5)]
    s1cdmax: u8,
}

#[bitfield(u64)]
struct Word1 {
    #[bits(2)]
    s1dss: u8,
    #[bits(2)]
    s1cir: u8,
    #[bits(2)]
    s1cor: u8,
    #[bits(2)]
    s1csh: u8,
    #[bits(56)]
    unused: u64,
}

impl PasidTableConfig {
    /// The words of a configuration that was checked.
    pub(super) fn stream_words(&self, s1fmt: DescriptorForm, s1dss: DefaultSubstream) -> [u64; 2] {
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
        let word0 = Word0::new()
            .with_valid(true)
            .with_config(CONFIG_STAGE_ONE)
            .with_s1fmt(s1fmt)
            .with_descriptor_frame(self.base.0 >> 6)
            .with_s1cdmax(self.pasid_bits);
        // The posted structure has no attributes for the fetches; these are what Linux uses.
        let word1 = Word1::new()
            .with_s1dss(s1dss)
            .with_s1cir(CACHEABLE)
            .with_s1cor(CACHEABLE)
            .with_s1csh(INNER_SHAREABLE);
        [word0.into_bits(), word1.into_bits()]
    }
}
