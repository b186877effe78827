//! The checks behind the `xtask` program, each a function from the [`Tree`] to a [`Verdict`].

pub mod dependencies;
pub mod features;
pub mod layers;
pub mod lints;
mod manifest;
pub mod paths;
pub mod sizes;
mod source;
mod tree;
pub mod unsafety;

pub use tree::{Dependency, Error, File, Kind, Package, Tree};

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// One line each; none if the check passed.
    pub violations: Vec<String>,
    /// How much was looked at, so that a check that saw nothing does not look like one that passed.
    pub looked_at: String,
}
