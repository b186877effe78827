//! What a guest's place is made with.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use iommu::{Numbering, PageRequestPolicy, DEFAULT_QUOTA, PAGE_REQUEST_TIMEOUT};
use vtd::spec::VcmdLayout;

/// How long a device may take to answer an invalidation of its TLB. Ours answer within microseconds unless an injection
/// keeps them from it; a guest that waits has its interrupts off, so that this is far less than on hardware.
pub const INVALIDATION_TIMEOUT: Duration = Duration::from_secs(1);

/// What a guest may have of the host, and how its unit offers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestConfig {
    /// PASIDs that it can have at a time; set aside for it when its place is made.
    pub quota: u32,
    /// How its PASID numbers relate to the host's.
    pub numbering: Numbering,
    /// The virtual commands of its unit: with them the guest takes its PASIDs from the host, without it numbers them
    /// itself and has no use for a quota.
    pub commands: Commands,
    /// Who owns the PASID table of its devices.
    pub pasid_table: PasidTable,
    /// The host's second stage, below all that the guest calls physical.
    pub stage_two: StageTwo,
    /// How long it may leave page requests unanswered.
    pub page_request_timeout: PageTimeout,
    /// How long its devices may take to answer an invalidation of their TLBs before its unit gives them up.
    pub invalidation_timeout: Duration,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self::USUAL
    }
}

impl GuestConfig {
    /// A guest that numbers its PASIDs itself, as Linux since 6.4 does, in a table of its own.
    pub const USUAL: Self = Self {
        quota: DEFAULT_QUOTA,
        numbering: Numbering::Identity,
        commands: Commands::Off,
        pasid_table: PasidTable::Guest,
        stage_two: StageTwo::None,
        page_request_timeout: PageTimeout::After(PAGE_REQUEST_TIMEOUT),
        invalidation_timeout: INVALIDATION_TIMEOUT,
    };

    /// Whether the guest puts PASIDs into the host's table that it has not asked for, but numbers
    /// itself. The host then needs a number of its own for each.
    pub const fn numbers_host_table(&self) -> bool {
        matches!((self.pasid_table, self.commands), (PasidTable::Host, Commands::Off))
    }
}

/// Who owns the PASID table of a guest's devices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum PasidTable {
    /// The guest: the host walks the guest's own table.
    #[default]
    Guest,
    /// The host: each PASID is bound when the guest announces it, in a table in host memory.
    Host,
}

impl fmt::Display for PasidTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Host => "host",
        })
    }
}

/// A word that names no owner of a PASID table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there are guest and host")]
pub struct NoSuchPasidTable;

impl FromStr for PasidTable {
    type Err = NoSuchPasidTable;

    fn from_str(word: &str) -> Result<Self, NoSuchPasidTable> {
        let all = [Self::Guest, Self::Host];
        all.into_iter().find(|known| known.to_string() == word).ok_or(NoSuchPasidTable)
    }
}

/// The host's second stage for a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StageTwo {
    /// None: the guest's physical addresses are looked up in its memory map.
    #[default]
    None,
    /// Tables in host memory that map each address to itself.
    Identity,
    /// Tables in host memory over frames in random order, some of 2 MiB and some of 4 KiB.
    Shuffled,
}

impl fmt::Display for StageTwo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Identity => "identity",
            Self::Shuffled => "shuffled",
        })
    }
}

/// A word that names no second stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there are none, identity and shuffled")]
pub struct NoSuchStageTwo;

impl FromStr for StageTwo {
    type Err = NoSuchStageTwo;

    fn from_str(word: &str) -> Result<Self, NoSuchStageTwo> {
        let all = [Self::None, Self::Identity, Self::Shuffled];
        all.into_iter().find(|known| known.to_string() == word).ok_or(NoSuchStageTwo)
    }
}

/// How long a guest may leave page requests unanswered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageTimeout {
    /// So long: the host answers then in its place that the page cannot be had.
    After(Duration),
    /// As long as it likes.
    Never,
}

impl PageTimeout {
    /// The policy for a VM's devices.
    pub fn policy(self) -> PageRequestPolicy {
        let timeout = match self {
            Self::After(timeout) => Some(timeout),
            Self::Never => None,
        };
        PageRequestPolicy { timeout, ..PageRequestPolicy::default() }
    }
}

impl fmt::Display for PageTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(timeout) => write!(f, "{}", timeout.as_millis()),
            Self::Never => f.write_str("never"),
        }
    }
}

/// A word that is no such time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there are never and whole numbers of milliseconds from 1")]
pub struct NoSuchPageTimeout;

impl FromStr for PageTimeout {
    type Err = NoSuchPageTimeout;

    fn from_str(word: &str) -> Result<Self, NoSuchPageTimeout> {
        if word == "never" {
            return Ok(Self::Never);
        }
        let millis: NonZeroU32 = word.parse().map_err(|_| NoSuchPageTimeout)?;
        Ok(Self::After(Duration::from_millis(millis.get().into())))
    }
}

/// Whether a unit has virtual commands, and in which layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Commands {
    /// None.
    #[default]
    Off,
    /// Those of revision 3.0 of the specification.
    Revision30,
    /// Those of revision 3.3.
    Revision33,
}

impl Commands {
    /// The layout, if there are any.
    pub fn layout(self) -> Option<VcmdLayout> {
        match self {
            Self::Off => None,
            Self::Revision30 => Some(VcmdLayout::Revision30),
            Self::Revision33 => Some(VcmdLayout::Revision33),
        }
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Revision30 => "3.0",
            Self::Revision33 => "3.3",
        })
    }
}

/// A word that names no layout of virtual commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there are 3.0, 3.3 and off")]
pub struct NoSuchCommands;

impl FromStr for Commands {
    type Err = NoSuchCommands;

    fn from_str(word: &str) -> Result<Self, NoSuchCommands> {
        let all = [Self::Off, Self::Revision30, Self::Revision33];
        all.into_iter().find(|known| known.to_string() == word).ok_or(NoSuchCommands)
    }
}

/// How the devices of a server's guests call its host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HostCalls {
    /// Each call is one of a function.
    #[default]
    Direct,
    /// Each call is encoded as VFIO's user API has it, and carried out by a host end that decodes it.
    Bytes,
}

impl fmt::Display for HostCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Bytes => "bytes",
        })
    }
}

/// A word that names no way to call a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there are direct and bytes")]
pub struct NoSuchHostCalls;

impl FromStr for HostCalls {
    type Err = NoSuchHostCalls;

    fn from_str(word: &str) -> Result<Self, NoSuchHostCalls> {
        let all = [Self::Direct, Self::Bytes];
        all.into_iter().find(|known| known.to_string() == word).ok_or(NoSuchHostCalls)
    }
}
