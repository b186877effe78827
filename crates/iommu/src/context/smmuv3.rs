//! The translation of a device behind an SMMUv3: a checked stream-table entry.

use mem::Gpa;
use pgtable::ArmStageTwo;

use crate::SmmuCaps;

/// The tag of a guest's translations (S2VMID).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vmid(pub u16);

/// The tag of one address space of a guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Asid(pub u16);

/// The translation of all requests of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamContext {
    /// Tag of what is cached.
    pub vmid: Vmid,
    /// How requests are translated.
    pub translation: StreamTranslation,
    /// Whether requests are taken as privileged; `None` for as they say.
    pub privilege: Option<bool>,
    /// Whether address translation requests (ATS) are allowed.
    pub ats: bool,
    /// What context descriptors may use.
    pub caps: SmmuCaps,
}

/// How the requests of a device are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamTranslation {
    /// Not at all: every request is refused, and none is recorded.
    Abort,
    /// Addresses are guest physical.
    Bypass,
    /// By the context descriptors of a table.
    StageOne(DescriptorTable),
    /// By one stage-2 table in guest memory.
    StageTwo(SmmuStageTwo),
    /// By context descriptors, and what comes out, addresses of tables and descriptors included,
    /// by a stage-2 table in guest memory.
    Nested(DescriptorTable, SmmuStageTwo),
}

/// A delegated table of context descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescriptorTable {
    /// Its address; in a nested translation it goes through stage 2, too.
    pub root: Gpa,
    /// log2 of the number of descriptors; with 0 there is one, and no request has a substream.
    pub bits: u8,
    /// How it lies in memory.
    pub form: DescriptorForm,
    /// What becomes of a request without substream, unless `bits` is 0.
    pub default: DefaultSubstream,
}

/// How a table of context descriptors lies in memory (S1Fmt).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DescriptorForm {
    /// One array.
    Linear,
    /// Pages of 4 KiB behind a first level.
    Leaves4K,
    /// Pages of 64 KiB behind a first level.
    Leaves64K,
}

/// What becomes of a request without substream (S1DSS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DefaultSubstream {
    /// It is refused.
    Terminate,
    /// It bypasses stage 1.
    Bypass,
    /// Descriptor 0 translates it, and no request may name substream 0.
    Zero,
}

/// A stage-2 table in guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SmmuStageTwo {
    /// Address of its root, which may be of several tables in a row.
    pub root: Gpa,
    /// Its format.
    pub format: ArmStageTwo,
    /// Whether faults that it causes are recorded (S2R).
    pub record: bool,
}
