//! What a guest's place is made with.

use std::fmt;
use std::str::FromStr;

use iommu::{Numbering, DEFAULT_QUOTA};
use vtd::spec::VcmdLayout;

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
}

impl Default for GuestConfig {
    /// A guest that numbers its PASIDs itself, as Linux since 6.4 does.
    fn default() -> Self {
        Self { quota: DEFAULT_QUOTA, numbering: Numbering::Identity, commands: Commands::Off }
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
