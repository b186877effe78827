//! The stream-table entry (IHI 0070, 5.2).

use bitfield_struct::bitfield;
use mem::Gpa;
use pgtable::{arm_output_field, ArmFlags, ArmStageTwo, Granule, Vtcr};

use super::{has_granule, is_wide, output_bits, updates_allowed};
use crate::format::vtd::exceeds;
use crate::{
    DefaultSubstream, DescriptorForm, DescriptorTable, SmmuCaps, SmmuStageTwo, StreamContext,
    StreamTranslation, Vmid,
};

/// Bytes of a stream-table entry.
pub const ENTRY_SIZE: u64 = 64;

/// Bits 63:0 of a stream-table entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct StreamWord0 {
    /// V.
    pub valid: bool,
    /// Config: 4 bypass, 5 stage 1, 6 stage 2, 7 both; anything below 4 aborts.
    #[bits(3)]
    pub config: u8,
    /// S1Fmt: 0 linear, 1 two levels with leaves of 4 KiB, 2 of 64 KiB.
    #[bits(2)]
    pub descriptor_format: u8,
    /// S1ContextPtr, in units of 64 bytes.
    #[bits(46)]
    pub descriptor_frame: u64,
    #[bits(7)]
    unused: u8,
    /// S1CDMax: log2 of the number of context descriptors.
    #[bits(5)]
    pub descriptor_bits: u8,
}

/// Bits 127:64 of a stream-table entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct StreamWord1 {
    /// S1DSS: requests without substream; 0 are refused, 1 bypass stage 1, 2 use substream 0.
    #[bits(2)]
    pub default_substream: u8,
    /// S1CIR: inner cacheability of fetches of descriptors.
    #[bits(2)]
    pub inner_cacheability: u8,
    /// S1COR: outer cacheability of fetches of descriptors.
    #[bits(2)]
    pub outer_cacheability: u8,
    /// S1CSH: shareability of fetches of descriptors.
    #[bits(2)]
    pub shareability: u8,
    #[bits(11)]
    unused_8: u16,
    /// MEV: like events may be merged.
    pub merge_events: bool,
    #[bits(5)]
    unused_20: u8,
    /// S2FWB: stage 2 decides memory types.
    pub force_write_back: bool,
    unused_26: bool,
    /// S1STALLD: stage-1 faults must not stall.
    pub stall_disable: bool,
    /// EATS: 0 no address translation services, 1 all of them, 2 stage 1 only.
    #[bits(2)]
    pub ats: u8,
    /// STRW: the world of stage 1; 0 is non-secure EL1.
    #[bits(2)]
    pub world: u8,
    #[bits(12)]
    unused_32: u16,
    /// SHCFG: shareability of accesses; 1 is theirs.
    #[bits(2)]
    pub incoming_shareability: u8,
    #[bits(2)]
    unused_46: u8,
    /// PRIVCFG: 0, 1 privilege as the request has it, 2 none, 3 all are privileged.
    #[bits(2)]
    pub privilege: u8,
    #[bits(14)]
    unused_50: u16,
}

/// Bits 191:128 of a stream-table entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct StreamWord2 {
    /// S2VMID: tags what is cached, also without stage 2.
    pub vmid: u16,
    #[bits(16)]
    unused_16: u16,
    /// S2T0SZ: 64 less the bits of an intermediate physical address.
    #[bits(6)]
    pub input_size: u8,
    /// S2SL0: level at which walks start.
    #[bits(2)]
    pub start_level: u8,
    /// S2IR0, S2OR0 and S2SH0: memory attributes of walks.
    #[bits(6)]
    pub walk_attributes: u8,
    /// S2TG: granule; 0 is 4 KiB, 1 is 64 KiB, 2 is 16 KiB.
    #[bits(2)]
    pub granule: u8,
    /// S2PS: width of output addresses.
    #[bits(3)]
    pub output_size: u8,
    /// S2AA64: the tables have the format of AArch64.
    pub aarch64: bool,
    /// S2ENDI: the tables are big-endian.
    pub big_endian: bool,
    /// S2AFFD: a clear access flag is no fault.
    pub access_flag_fault_disable: bool,
    /// S2PTW: walks of stage 1 must not go to device memory.
    pub protected_walk: bool,
    /// S2HD: dirty state is kept.
    pub dirty_update: bool,
    /// S2HA: access flags are set.
    pub access_flag_update: bool,
    /// S2S: stage-2 faults stall.
    pub stall: bool,
    /// S2R: stage-2 faults are recorded.
    pub record: bool,
    #[bits(5)]
    unused_59: u8,
}

/// Bits 255:192 of a stream-table entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct StreamWord3 {
    #[bits(4)]
    unused: u8,
    /// S2TTB, in units of 16 bytes.
    #[bits(48)]
    pub root_frame: u64,
    #[bits(12)]
    unused_52: u16,
}

/// A stream-table entry as it lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamEntry {
    /// Bits 63:0.
    pub word0: StreamWord0,
    /// Bits 127:64.
    pub word1: StreamWord1,
    /// Bits 191:128.
    pub word2: StreamWord2,
    /// Bits 255:192.
    pub word3: StreamWord3,
    /// Bits 511:256: not used by what is supported.
    pub rest: [u64; 4],
}

/// Why a stream-table entry cannot be used (the event C_BAD_STE). The guest's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamEntryError {
    /// V is clear.
    #[error("the stream-table entry is not valid")]
    NotValid,
    /// Stage 1, and there is none.
    #[error("there is no stage 1")]
    NoStageOne,
    /// Stage 2, and there is none.
    #[error("there is no stage 2")]
    NoStageTwo,
    /// S1CDMax is more than there are bits of a substream.
    #[error("S1CDMax {got} is more than {allowed}")]
    DescriptorBits {
        /// The field.
        got: u8,
        /// Bits of a substream.
        allowed: u8,
    },
    /// S1Fmt names no format, or one that is not supported.
    #[error("S1Fmt {got} is not supported")]
    DescriptorFormat {
        /// The field.
        got: u8,
    },
    /// S1DSS has no meaning.
    #[error("S1DSS {got} has no meaning")]
    DefaultSubstream {
        /// The field.
        got: u8,
    },
    /// STRW names a world that there is not.
    #[error("STRW {got} is not supported")]
    World {
        /// The field.
        got: u8,
    },
    /// EATS asks for something that is not supported.
    #[error("EATS {got} is not supported")]
    Ats {
        /// The field.
        got: u8,
    },
    /// Stage 2 is to have the format of AArch32.
    #[error("stage 2 in the format of AArch32 is not supported")]
    AArch32,
    /// Stage 2 is to be big-endian.
    #[error("big-endian stage 2 is not supported")]
    BigEndian,
    /// Stage-2 faults are to stall.
    #[error("stalls are not supported")]
    Stall,
    /// S2TG names no granule, or one that is not supported.
    #[error("S2TG {got} is not supported")]
    Granule {
        /// The field.
        got: u8,
    },
    /// S2HA or S2HD ask for updates that are not supported.
    #[error("hardware updates of stage 2 are not supported")]
    HardwareUpdate,
    /// S2T0SZ, S2SL0 and S2TG do not go together.
    #[error("S2T0SZ {input_size} and S2SL0 {start_level} do not go together")]
    Geometry {
        /// S2T0SZ.
        input_size: u8,
        /// S2SL0.
        start_level: u8,
    },
    /// S2TTB is beyond the output size.
    #[error("S2TTB {got:#x} is beyond the output size")]
    Root {
        /// The field.
        got: u64,
    },
}

impl StreamEntry {
    /// The entry of these 64-bit words, in the order of their addresses.
    pub const fn from_words(words: [u64; 8]) -> Self {
        let [word0, word1, word2, word3, rest @ ..] = words;
        Self {
            word0: StreamWord0::from_bits(word0),
            word1: StreamWord1::from_bits(word1),
            word2: StreamWord2::from_bits(word2),
            word3: StreamWord3::from_bits(word3),
            rest,
        }
    }

    /// Its 64-bit words, in the order of their addresses.
    pub const fn words(&self) -> [u64; 8] {
        let [r4, r5, r6, r7] = self.rest;
        [
            self.word0.into_bits(),
            self.word1.into_bits(),
            self.word2.into_bits(),
            self.word3.into_bits(),
            r4,
            r5,
            r6,
            r7,
        ]
    }

    /// What the entry asks for, given what is supported: a guest's own entry, whose stage 2 is in
    /// the guest's memory.
    ///
    /// Fields that the configuration does not use are ignored.
    ///
    /// # Errors
    ///
    /// See [`StreamEntryError`].
    pub fn decode(&self, caps: &SmmuCaps) -> Result<StreamContext, StreamEntryError> {
        let translation = match self.config(caps)? {
            Config::Abort => StreamTranslation::Abort,
            Config::Bypass => StreamTranslation::Bypass,
            Config::StageOne => StreamTranslation::StageOne(self.descriptors(caps)?),
            Config::StageTwo => StreamTranslation::StageTwo(self.stage_two(caps)?),
            Config::Nested => {
                StreamTranslation::Nested(self.descriptors(caps)?, self.stage_two(caps)?)
            }
        };
        self.context(translation, caps)
    }

    /// What the entry asks for where its stage 2 is the host's, which is under everything that
    /// the engine does anyway: what is left for it is stage 1, if there is one.
    ///
    /// # Errors
    ///
    /// See [`StreamEntryError`].
    pub fn decode_over_host(&self, caps: &SmmuCaps) -> Result<StreamContext, StreamEntryError> {
        let translation = match self.config(caps)? {
            Config::Abort => StreamTranslation::Abort,
            Config::Bypass | Config::StageTwo => StreamTranslation::Bypass,
            Config::StageOne | Config::Nested => {
                StreamTranslation::StageOne(self.descriptors(caps)?)
            }
        };
        self.context(translation, caps)
    }

    fn context(
        &self,
        translation: StreamTranslation,
        caps: &SmmuCaps,
    ) -> Result<StreamContext, StreamEntryError> {
        let ats = match self.word1.ats() {
            // Where nothing is translated there is nothing to ask for either.
            _ if matches!(translation, StreamTranslation::Abort) => false,
            0 => false,
            1 => caps.ats,
            got => return Err(StreamEntryError::Ats { got }),
        };
        let privilege = match self.word1.privilege() {
            2 => Some(false),
            3 => Some(true),
            _ => None,
        };
        let vmid = Vmid(self.word2.vmid());
        Ok(StreamContext { vmid, translation, privilege, ats, caps: *caps })
    }

    fn config(&self, caps: &SmmuCaps) -> Result<Config, StreamEntryError> {
        if !self.word0.valid() {
            return Err(StreamEntryError::NotValid);
        }
        let config = match self.word0.config() {
            4 => Config::Bypass,
            5 => Config::StageOne,
            6 => Config::StageTwo,
            7 => Config::Nested,
            _ => Config::Abort,
        };
        if matches!(config, Config::StageOne | Config::Nested) && !caps.stage_one {
            return Err(StreamEntryError::NoStageOne);
        }
        if matches!(config, Config::StageTwo | Config::Nested) && !caps.stage_two {
            return Err(StreamEntryError::NoStageTwo);
        }
        Ok(config)
    }

    fn descriptors(&self, caps: &SmmuCaps) -> Result<DescriptorTable, StreamEntryError> {
        let (word0, word1) = (self.word0, self.word1);
        let world = word1.world();
        if world != 0 {
            return Err(StreamEntryError::World { got: world });
        }
        let root = Gpa(word0.descriptor_frame() << DESCRIPTOR_FRAME_BITS);
        let bits = word0.descriptor_bits();
        if bits > caps.substream_bits {
            let allowed = caps.substream_bits;
            return Err(StreamEntryError::DescriptorBits { got: bits, allowed });
        }
        if bits == 0 {
            let (form, default) = (DescriptorForm::Linear, DefaultSubstream::Zero);
            return Ok(DescriptorTable { root, bits, form, default });
        }
        let form = match word0.descriptor_format() {
            0 => DescriptorForm::Linear,
            1 if caps.two_level_descriptors => DescriptorForm::Leaves4K,
            2 if caps.two_level_descriptors => DescriptorForm::Leaves64K,
            got => return Err(StreamEntryError::DescriptorFormat { got }),
        };
        let default = match word1.default_substream() {
            0 => DefaultSubstream::Terminate,
            1 => DefaultSubstream::Bypass,
            2 => DefaultSubstream::Zero,
            got => return Err(StreamEntryError::DefaultSubstream { got }),
        };
        Ok(DescriptorTable { root, bits, form, default })
    }

    fn stage_two(&self, caps: &SmmuCaps) -> Result<SmmuStageTwo, StreamEntryError> {
        let word = self.word2;
        if !word.aarch64() {
            return Err(StreamEntryError::AArch32);
        }
        if word.big_endian() {
            return Err(StreamEntryError::BigEndian);
        }
        if word.stall() {
            return Err(StreamEntryError::Stall);
        }
        if !updates_allowed(word.access_flag_update(), word.dirty_update(), caps) {
            return Err(StreamEntryError::HardwareUpdate);
        }
        let format = self.stage_two_format(caps)?.with_flags(ArmFlags::from_fields(
            word.access_flag_update(),
            word.dirty_update(),
            word.access_flag_fault_disable(),
        ));
        let root = self.word3.root_frame() << ROOT_FRAME_BITS;
        if exceeds(Gpa(root), format.sizes().output_bits) {
            return Err(StreamEntryError::Root { got: root });
        }
        Ok(SmmuStageTwo { root: Gpa(root), format, record: word.record() })
    }

    fn stage_two_format(&self, caps: &SmmuCaps) -> Result<ArmStageTwo, StreamEntryError> {
        let word = self.word2;
        let (got, input_size, start_level) =
            (word.granule(), word.input_size(), word.start_level());
        let granule = Granule::from_tg0(got).filter(|&granule| has_granule(granule, caps));
        let granule = granule.ok_or(StreamEntryError::Granule { got })?;
        let geometry = StreamEntryError::Geometry { input_size, start_level };
        let bits = output_bits(word.output_size(), caps);
        let ps = arm_output_field(bits).ok_or(geometry)?;
        let wide = is_wide(granule, caps);
        let vtcr = Vtcr { t0sz: input_size, sl0: start_level, tg0: got, ps, wide };
        let format = ArmStageTwo::from_vtcr(&vtcr).map_err(|_| geometry)?;
        // An intermediate address has no more bits than a physical one, and the topmost start
        // level is there from so many bits on.
        let least = if granule == Granule::Kib16 { 42 } else { 44 };
        let too_high = start_level == 2 && caps.output_bits < least;
        if too_high || format.sizes().input_bits > caps.output_bits {
            return Err(geometry);
        }
        Ok(format)
    }
}

/// Config, once it is known.
#[derive(Clone, Copy)]
enum Config {
    Abort,
    Bypass,
    StageOne,
    StageTwo,
    Nested,
}

/// Unit of S1ContextPtr.
const DESCRIPTOR_FRAME_BITS: u32 = 6;
/// Unit of S2TTB.
const ROOT_FRAME_BITS: u32 = 4;
