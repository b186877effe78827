//! Context descriptors (IHI 0070, 5.4) and the first level of a table of them (5.3).

use bitfield_struct::bitfield;
use mem::Gpa;
use pgtable::{ArmFlags, ArmRegime, ArmSizes, ArmStageOne, ArmTable, Granule};

use super::{has_granule, is_wide, output_bits, updates_allowed};
use crate::format::vtd::exceeds;
use crate::{Asid, DescriptorForm, Pasid, SmmuCaps};

/// Bytes of a context descriptor.
pub const DESCRIPTOR_SIZE: u64 = 64;
/// Bytes of a first-level descriptor.
pub const POINTER_SIZE: u64 = 8;

/// A first-level descriptor: where a leaf of context descriptors is.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DescriptorPointer {
    /// V.
    pub valid: bool,
    #[bits(11)]
    unused: u16,
    /// L2Ptr, in pages of 4 KiB.
    #[bits(40)]
    pub leaf_page: u64,
    #[bits(12)]
    unused_52: u16,
}

/// Bits 63:0 of a context descriptor.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DescriptorWord0 {
    /// T0SZ: 64 less the bits of an address of the low half.
    #[bits(6)]
    pub low_size: u8,
    /// TG0: granule of the low half; 0 is 4 KiB, 1 is 64 KiB, 2 is 16 KiB.
    #[bits(2)]
    pub low_granule: u8,
    /// IR0, OR0 and SH0: memory attributes of walks of the low half.
    #[bits(6)]
    pub low_attributes: u8,
    /// EPD0: the low half has no table.
    pub low_disable: bool,
    /// ENDI: the tables are big-endian.
    pub big_endian: bool,
    /// T1SZ: 64 less the bits of an address of the high half.
    #[bits(6)]
    pub high_size: u8,
    /// TG1: granule of the high half; 1 is 16 KiB, 2 is 4 KiB, 3 is 64 KiB.
    #[bits(2)]
    pub high_granule: u8,
    /// IR1, OR1 and SH1: memory attributes of walks of the high half.
    #[bits(6)]
    pub high_attributes: u8,
    /// EPD1: the high half has no table.
    pub high_disable: bool,
    /// V.
    pub valid: bool,
    /// IPS: width of output addresses.
    #[bits(3)]
    pub output_size: u8,
    /// AFFD: a clear access flag is no fault.
    pub access_flag_fault_disable: bool,
    /// WXN: what can be written is not executed.
    pub write_execute_never: bool,
    /// UWXN: what can be written without privilege is not executed with it.
    pub user_write_execute_never: bool,
    /// TBI0: the top byte of an address of the low half is no part of it.
    pub low_top_byte_ignore: bool,
    /// TBI1: the same for the high half.
    pub high_top_byte_ignore: bool,
    /// PAN: privileged requests do not reach what is open to others.
    pub privileged_access_never: bool,
    /// AA64: the tables have the format of AArch64.
    pub aarch64: bool,
    /// HD: dirty state is kept.
    pub dirty_update: bool,
    /// HA: access flags are set.
    pub access_flag_update: bool,
    /// S: faults stall.
    pub stall: bool,
    /// R: faults are recorded.
    pub record: bool,
    /// A: a faulting request is told so.
    pub abort: bool,
    /// ASET: the ASID is not of the set that processors invalidate by broadcast. There is no
    /// broadcast here, so it makes no difference.
    pub private_asid: bool,
    /// ASID.
    pub asid: u16,
}

/// Bits 127:64 of a context descriptor: the low half's table.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DescriptorWord1 {
    /// NSCFG0: of the secure world only.
    pub non_secure: bool,
    /// HAD0: hierarchical permissions are ignored.
    pub hierarchical_disable: bool,
    unused_2: bool,
    /// HAFT: access flags of table descriptors are set, too.
    pub table_access_flag: bool,
    /// TTB0, in units of 16 bytes.
    #[bits(48)]
    pub root_frame: u64,
    #[bits(12)]
    unused_52: u16,
}

/// Bits 191:128 of a context descriptor: the high half's table.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DescriptorWord2 {
    /// NSCFG1: of the secure world only.
    pub non_secure: bool,
    /// HAD1: hierarchical permissions are ignored.
    pub hierarchical_disable: bool,
    #[bits(2)]
    unused_2: u8,
    /// TTB1, in units of 16 bytes.
    #[bits(48)]
    pub root_frame: u64,
    #[bits(12)]
    unused_52: u16,
}

/// A context descriptor as it lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Descriptor {
    /// Bits 63:0.
    pub word0: DescriptorWord0,
    /// Bits 127:64.
    pub word1: DescriptorWord1,
    /// Bits 191:128.
    pub word2: DescriptorWord2,
    /// Bits 255:192, MAIR: memory types, of which there is one.
    pub memory_types: u64,
    /// Bits 511:256: not used by what is supported.
    pub rest: [u64; 4],
}

/// How requests of one substream are translated: a context descriptor once it is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regime {
    /// Tags what is cached.
    pub asid: Asid,
    /// The tables of both halves.
    pub tables: ArmRegime,
    /// Whether faults that stage 1 causes are recorded (R).
    pub record: bool,
}

/// Why a context descriptor cannot be used (the event C_BAD_CD). The guest's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DescriptorError {
    /// V is clear.
    #[error("the context descriptor is not valid")]
    NotValid,
    /// The tables are to have the format of AArch32.
    #[error("tables in the format of AArch32 are not supported")]
    AArch32,
    /// The tables are to be big-endian.
    #[error("big-endian tables are not supported")]
    BigEndian,
    /// Faults are to stall.
    #[error("stalls are not supported")]
    Stall,
    /// A is clear: faulting reads are to give zeros.
    #[error("faults that are not told to the device are not supported")]
    NoAbort,
    /// HA or HD ask for updates that are not supported.
    #[error("hardware updates are not supported")]
    HardwareUpdate,
    /// The ASID has more bits than there are.
    #[error("ASID {got:#x} has more than 8 bits")]
    Asid {
        /// The field.
        got: u16,
    },
    /// TG0 or TG1 names no granule, or one that is not supported.
    #[error("granule {got} of half {half} is not supported")]
    Granule {
        /// 0 for the low half, 1 for the high one.
        half: u8,
        /// The field.
        got: u8,
    },
    /// T0SZ or T1SZ is out of the granule's range.
    #[error("size {got} of half {half} is not supported")]
    Size {
        /// 0 for the low half, 1 for the high one.
        half: u8,
        /// The field.
        got: u8,
    },
    /// TTB0 or TTB1 is beyond the output size.
    #[error("the root of half {half} is beyond the output size")]
    Root {
        /// 0 for the low half, 1 for the high one.
        half: u8,
    },
}

impl DescriptorPointer {
    /// A valid pointer to the leaf at `leaf`, a page address.
    pub const fn to_leaf(leaf: Gpa) -> Self {
        Self::new().with_valid(true).with_leaf_page((leaf.0 >> PAGE_BITS) & PAGE_MASK)
    }

    /// The leaf's address; bits below the size of a leaf do not count.
    pub const fn leaf(&self, form: DescriptorForm) -> Gpa {
        let leaf = self.leaf_page() << PAGE_BITS;
        Gpa(leaf & !((DESCRIPTOR_SIZE << leaf_bits(form)) - 1))
    }

    /// Where the pointer for `substream` lies in the first level at `table`; `None` if that is
    /// past the address space.
    pub const fn address(table: Gpa, form: DescriptorForm, substream: Pasid) -> Option<Gpa> {
        table.checked_add((substream.get() >> leaf_bits(form)) as u64 * POINTER_SIZE)
    }
}

impl Descriptor {
    /// Where the descriptor of `substream` lies in the array at `array`: the whole table if it is
    /// linear, else the leaf. `None` if that is past the address space.
    pub const fn address(array: Gpa, form: DescriptorForm, substream: Pasid) -> Option<Gpa> {
        let index = match form {
            DescriptorForm::Linear => substream.get(),
            _ => substream.get() & ((1 << leaf_bits(form)) - 1),
        };
        array.checked_add(index as u64 * DESCRIPTOR_SIZE)
    }

    /// The descriptor of these 64-bit words, in the order of their addresses.
    pub const fn from_words(words: [u64; 8]) -> Self {
        let [word0, word1, word2, memory_types, rest @ ..] = words;
        Self {
            word0: DescriptorWord0::from_bits(word0),
            word1: DescriptorWord1::from_bits(word1),
            word2: DescriptorWord2::from_bits(word2),
            memory_types,
            rest,
        }
    }

    /// Its 64-bit words, in the order of their addresses.
    pub const fn words(&self) -> [u64; 8] {
        let [r4, r5, r6, r7] = self.rest;
        let words = (self.word0.into_bits(), self.word1.into_bits(), self.word2.into_bits());
        [words.0, words.1, words.2, self.memory_types, r4, r5, r6, r7]
    }
}

impl Descriptor {
    /// What the descriptor asks for, given what is supported.
    ///
    /// What a half that is turned off (EPD) says is ignored.
    ///
    /// # Errors
    ///
    /// See [`DescriptorError`].
    pub fn decode(&self, caps: &SmmuCaps) -> Result<Regime, DescriptorError> {
        let word = self.word0;
        if !word.valid() {
            return Err(DescriptorError::NotValid);
        }
        self.check(caps)?;
        let low = Half {
            number: 0,
            size: word.low_size(),
            granule: word.low_granule(),
            named: Granule::from_tg0(word.low_granule()),
            root: self.word1.root_frame() << ROOT_FRAME_BITS,
            hierarchical: !self.word1.hierarchical_disable(),
        };
        let high = Half {
            number: 1,
            size: word.high_size(),
            granule: word.high_granule(),
            named: Granule::from_tg1(word.high_granule()),
            root: self.word2.root_frame() << ROOT_FRAME_BITS,
            hierarchical: !self.word2.hierarchical_disable(),
        };
        let flags = ArmFlags::from_fields(
            word.access_flag_update(),
            word.dirty_update(),
            word.access_flag_fault_disable(),
        );
        let output_bits = output_bits(word.output_size(), caps);
        let table = |disabled: bool, half: Half| {
            (!disabled).then(|| half.table(output_bits, flags, caps)).transpose()
        };
        let tables = ArmRegime {
            low: table(word.low_disable(), low)?,
            high: table(word.high_disable(), high)?,
            top_byte_ignore: [word.low_top_byte_ignore(), word.high_top_byte_ignore()],
        };
        Ok(Regime { asid: Asid(word.asid()), tables, record: word.record() })
    }

    /// What does not depend on the halves.
    fn check(&self, caps: &SmmuCaps) -> Result<(), DescriptorError> {
        let word = self.word0;
        let asid = word.asid();
        if !word.aarch64() {
            Err(DescriptorError::AArch32)
        } else if word.big_endian() {
            Err(DescriptorError::BigEndian)
        } else if word.stall() {
            Err(DescriptorError::Stall)
        } else if !word.abort() {
            Err(DescriptorError::NoAbort)
        } else if !updates_allowed(word.access_flag_update(), word.dirty_update(), caps) {
            Err(DescriptorError::HardwareUpdate)
        } else if asid > 0xff && !caps.asid_16 {
            Err(DescriptorError::Asid { got: asid })
        } else {
            Ok(())
        }
    }
}

/// What a descriptor says of one half of the address space.
struct Half {
    number: u8,
    /// TxSZ.
    size: u8,
    /// TGx.
    granule: u8,
    /// The granule that it names.
    named: Option<Granule>,
    root: u64,
    hierarchical: bool,
}

impl Half {
    fn table(
        &self,
        output_bits: u8,
        flags: ArmFlags,
        caps: &SmmuCaps,
    ) -> Result<ArmTable, DescriptorError> {
        let (half, got) = (self.number, self.granule);
        let granule = self.named.filter(|&granule| has_granule(granule, caps));
        let granule = granule.ok_or(DescriptorError::Granule { half, got })?;

        let size = DescriptorError::Size { half, got: self.size };
        let input_bits = 64u8.checked_sub(self.size).ok_or(size)?;
        if input_bits > 48 && !(caps.wide_addresses && granule == Granule::Kib64) {
            return Err(size);
        }
        let sizes = ArmSizes { granule, input_bits, output_bits, wide: is_wide(granule, caps) };
        let format = ArmStageOne::with_sizes(&sizes).map_err(|_| size)?;
        if exceeds(Gpa(self.root), format.sizes().output_bits) {
            return Err(DescriptorError::Root { half });
        }
        let format = format.with_flags(flags).with_hierarchical(self.hierarchical);
        Ok(ArmTable { root: self.root, format })
    }
}

/// Unit of TTB0 and TTB1.
const ROOT_FRAME_BITS: u32 = 4;

/// log2 of the descriptors of a leaf.
const fn leaf_bits(form: DescriptorForm) -> u32 {
    match form {
        DescriptorForm::Linear => Pasid::BITS,
        DescriptorForm::Leaves4K => 6,
        DescriptorForm::Leaves64K => 10,
    }
}

const PAGE_BITS: u32 = 12;
/// The bits of a page number in a pointer.
const PAGE_MASK: u64 = (1 << 40) - 1;
