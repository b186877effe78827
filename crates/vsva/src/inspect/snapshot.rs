//! What a running server says of itself: one host, its guests, their PASIDs.
//!
//! These are the names of `vsva inspect --json`. Fields are added as the server learns to tell more; a change of
//! meaning or a removal changes [`VERSION`](super::wire::VERSION).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of a count: groups of page requests that nobody has answered, now.
pub const PAGE_REQUESTS_OUTSTANDING: &str = "page_requests_outstanding";
/// Name of a count: groups of page requests that the host answered because the guest did not in time.
pub const PAGE_REQUESTS_TIMED_OUT: &str = "page_requests_timed_out";
/// Name of a count: groups of page requests that the host answered because what they came through ended.
pub const PAGE_REQUESTS_WITHDRAWN: &str = "page_requests_withdrawn";
/// Name of a count: groups of page requests that nobody answered, since their asker was reset.
pub const PAGE_REQUESTS_FORGOTTEN: &str = "page_requests_forgotten";
/// Name of a count: groups of page requests that the guest's unit answered in its place.
pub const PAGE_ANSWERS_AUTOMATIC: &str = "page_answers_automatic";
/// Name of a count: descriptors that wait for pages, now.
pub const DESCRIPTORS_BLOCKED: &str = "descriptors_blocked";

/// Those of a guest's counts that are of now; the others are since its place was made.
pub const OF_NOW: [&str; 2] = [PAGE_REQUESTS_OUTSTANDING, DESCRIPTORS_BLOCKED];

/// A server at one moment. Guests are looked at one after another, each at one moment of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The server's version.
    pub server: String,
    /// How long it has run, in milliseconds.
    pub uptime_ms: u64,
    /// What its users asked.
    pub inspections: Inspections,
    /// The PASID space that all guests share.
    pub space: Space,
    /// The guests' places, in the order in which they were made.
    pub guests: Vec<Guest>,
}

/// What was asked of the server, by this protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspections {
    /// Snapshots that it gave.
    pub answers: u64,
    /// Requests and clients that it refused.
    pub refusals: u64,
}

/// The host's PASID space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// PASIDs that there are for all guests together.
    pub capacity: u32,
    /// Those of them that are reserved by quotas, used or not.
    pub reserved: u32,
    /// Those in use by guests.
    pub live: u32,
    /// Those given back that something can still name, and that are therefore not handed out.
    pub parked: u32,
}

/// How a guest's numbers relate to the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numbering {
    /// They are the same.
    Identity,
    /// The guest has numbers of its own, each for a host PASID.
    Private,
}

/// Who owns the PASID table of a guest's devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PasidTable {
    /// The guest.
    #[default]
    Guest,
    /// The host, which binds each PASID in it.
    Host,
}

/// The host's second stage for a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageTwo {
    /// There is none.
    #[default]
    None,
    /// It maps each address to itself.
    Identity,
    /// It maps frames in random order.
    Shuffled,
}

/// One guest's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Whether a guest is there.
    pub connected: bool,
    /// Guests that were there so far.
    pub lives: u64,
    /// PASIDs that it can have at a time.
    pub quota: u32,
    /// How its numbers relate to the host's.
    pub numbering: Numbering,
    /// The layout of its unit's virtual commands (`3.0` or `3.3`), if it has some. Without them it asks for no PASID.
    pub vcmd: Option<String>,
    /// Who owns its PASID table.
    #[serde(default)]
    pub pasid_table: PasidTable,
    /// The host's second stage below it.
    #[serde(default)]
    pub stage_two: StageTwo,
    /// PASIDs that are granted to it.
    pub live: u32,
    /// PASIDs that it, or a guest before it, gave back or left behind, and that something can still name.
    pub parked: u32,
    /// PASIDs of it that are bound in a table of the host's.
    #[serde(default)]
    pub bound: u32,
    /// How the last guest that was there ended.
    pub last_end: Option<End>,
    /// Its PASIDs by number: those granted, those parked, and those that it uses without a grant.
    pub pasids: Vec<PasidEntry>,
    /// PASIDs beyond the limit of one answer, which are not listed.
    pub pasids_left_out: u64,
    /// Groups of page requests that nobody has answered, the oldest first.
    #[serde(default)]
    pub page_groups: Vec<PageGroup>,
    /// Such groups beyond the limit of one answer, which are not listed.
    #[serde(default)]
    pub page_groups_left_out: u64,
    /// Everything that is counted for it, since the place was made.
    pub counters: BTreeMap<String, u64>,
}

/// A group of page requests that nobody has answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageGroup {
    /// Who asked, as `bus:device.function`.
    pub device: String,
    /// In which address space, as the guest numbers it.
    pub pasid: Option<u32>,
    /// The index that the device gave it.
    pub group: u16,
    /// For how long it has waited, in milliseconds; unknown if it has only just come.
    pub age_ms: Option<u64>,
}

/// The end of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// PASIDs that were taken back.
    pub pasids: u32,
    /// From asking for the PASIDs until nothing used them any more, in microseconds.
    pub reclaim_us: u64,
    /// From the first lost connection until everything was freed, in microseconds.
    pub took_us: u64,
}

/// What is with a PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is granted.
    Live,
    /// It was given back, but something can still name it.
    Parked,
    /// Never granted: the guest numbers its address spaces itself, and the IOMMU has met it.
    Own,
}

/// One PASID of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasidEntry {
    /// The guest's number.
    pub guest: u32,
    /// The host's, if it was granted.
    pub host: Option<u32>,
    /// What is with it.
    pub state: State,
    /// Whether it is bound in a table of the host's.
    #[serde(default)]
    pub bound: bool,
    /// For how long it has been in this state, in milliseconds, where the host knows.
    pub age_ms: Option<u64>,
    /// The domain under which the IOMMU has something of it cached now.
    pub domain: Option<u16>,
    /// What keeps its number from being granted again, by name.
    pub holders: Vec<String>,
}
