//! What a lab needs from outside: a QEMU and a guest kernel, found or fetched.
//!
//! ```text
//!  --qemu PATH ──► QEMU on PATH, 10.1 or newer ──► cache ──► packages, through a private apt
//!  --kernel PATH ────────────────────────────────► cache ──► packages, through a private apt
//!  --vcmd-kernel PATH ───────────────────────────► cache ──► packages, through a private apt
//!    └─ and its module ──────────────────────────► cache ──► built with the machine's make and gcc
//! ```
//!
//! Nothing is installed and nothing needs root; see [`AssetError`] for what a machine may lack.

mod apt;
mod cache;
mod error;
mod guest_module;
mod kernel;
mod linux61;
mod mirror;
mod modules;
mod qemu;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tempfile::TempDir;

use self::apt::{Apt, Release};
use self::cache::Cache;
pub use self::error::{AssetError, Cause, Wanted};
pub use self::kernel::Kernel;
pub use self::modules::{Module, MAX_MODULE};
pub use self::qemu::{Qemu, Version, MINIMUM_VERSION};
use crate::stop::Stop;
use crate::term::{Mark, Screen};

/// What the user said about where things come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Use this QEMU.
    pub qemu: Option<PathBuf>,
    /// Use this boot image.
    pub kernel: Option<PathBuf>,
    /// Take the modules of `kernel` from here.
    pub modules: Option<PathBuf>,
    /// Use this boot image where a kernel that uses virtual commands is wanted.
    pub vcmd_kernel: Option<PathBuf>,
    /// Build the module of `vcmd_kernel` in this tree.
    pub vcmd_headers: Option<PathBuf>,
    /// Fetch from this Debian archive instead of the machine's.
    pub mirror: Option<String>,
    /// Fetch nothing.
    pub offline: bool,
}

/// A kernel that a guest can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Linux {
    /// The newest that the distribution has: it numbers its PASIDs itself, and allows shared virtual addressing.
    Newest,
    /// 6.1: it asks the host for each PASID by a virtual command, and comes with a module that makes it ask.
    V6_1,
}

impl Linux {
    /// Its key in results.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Newest => "kernel",
            Self::V6_1 => "vcmd_kernel",
        }
    }
}

/// A QEMU and kernels that are ready to use.
#[derive(Clone, Debug)]
pub struct Assets {
    /// The emulator.
    pub qemu: Qemu,
    /// The guests' kernels: those that were wanted.
    pub kernels: BTreeMap<Linux, Kernel>,
}

/// Finds a QEMU and the kernels `wanted`, fetching what is missing, and says on `screen` what it does.
///
/// # Errors
/// [`AssetError`] says what was wanted, what happened, and which option supplies it.
pub fn find(
    sources: &Sources,
    wanted: &BTreeSet<Linux>,
    screen: &Screen,
    stop: &Stop,
) -> Result<Assets, AssetError> {
    let step = Step { screen, stop };
    let mut finder = Finder { sources, step, cache: None, apt: None };
    let qemu = finder.qemu().map_err(|cause| cause.of(Wanted::Qemu))?;
    screen.mark(Mark::Note, &format!("QEMU {}", qemu.description()));
    let mut kernels = BTreeMap::new();
    for &linux in wanted {
        let kernel = match linux {
            Linux::Newest => finder.kernel().map_err(|cause| cause.of(Wanted::Kernel))?,
            Linux::V6_1 => finder.linux61().map_err(|cause| cause.of(Wanted::Linux61))?,
        };
        screen.mark(Mark::Note, &format!("Linux {}", kernel.description));
        kernels.insert(linux, kernel);
    }
    Ok(Assets { qemu, kernels })
}

/// How to speak to the user, and when to stop, on the way to an asset.
#[derive(Clone, Copy)]
struct Step<'a> {
    screen: &'a Screen,
    stop: &'a Stop,
}

/// A search under way. The cache is opened, and the package system set up, when first needed.
struct Finder<'a> {
    sources: &'a Sources,
    step: Step<'a>,
    // Declared before the directory it works in, so that it is dropped first.
    apt: Option<(Release, Apt<'a>, TempDir)>,
    cache: Option<Cache>,
}

impl Finder<'_> {
    fn qemu(&mut self) -> Result<Qemu, Cause> {
        let Step { screen, stop } = self.step;
        if let Some(path) = &self.sources.qemu {
            return Qemu::at(path, stop);
        }
        if let Some(path) = Qemu::on_path() {
            match Qemu::at(&path, stop) {
                Ok(qemu) => return Ok(qemu),
                Err(cause) if cause.is_stop() => return Err(cause),
                Err(cause) => screen.mark(Mark::Note, &format!("not used: {cause}")),
            }
        }
        if let Some(qemu) = Qemu::cached(self.cache()?, stop) {
            return Ok(qemu);
        }
        let (cache, apt) = self.fetching(Release::Trixie)?;
        Qemu::fetch(cache, apt, stop)
    }

    fn kernel(&mut self) -> Result<Kernel, Cause> {
        if let Some(image) = &self.sources.kernel {
            return Kernel::at(image, self.sources.modules.as_deref());
        }
        if let Some(kernel) = Kernel::cached(self.cache()?) {
            return Ok(kernel);
        }
        let (cache, apt) = self.fetching(Release::Trixie)?;
        Kernel::fetch(cache, apt)
    }

    fn linux61(&mut self) -> Result<Kernel, Cause> {
        let step = self.step;
        if let (Some(image), Some(headers)) =
            (&self.sources.vcmd_kernel, &self.sources.vcmd_headers)
        {
            return linux61::at(image, headers, self.cache()?, &step);
        }
        if let Some(outcome) = linux61::cached(self.cache()?, &step) {
            return outcome;
        }
        let (cache, apt) = self.fetching(Release::Bookworm)?;
        linux61::fetch(cache, apt, &step)
    }

    fn cache(&mut self) -> Result<&Cache, Cause> {
        let cache = match self.cache.take() {
            Some(cache) => cache,
            None => {
                let cache = Cache::open(self.step.screen, self.step.stop)?;
                cache.sweep()?;
                cache
            }
        };
        Ok(self.cache.insert(cache))
    }

    /// The cache and a package system of `release` to fill it from.
    fn fetching(&mut self, release: Release) -> Result<(&Cache, &Apt<'_>), Cause> {
        let (sources, Step { screen, stop }) = (self.sources, self.step);
        // Another release's is of no more use.
        let apt = self.apt.take().filter(|(of, ..)| *of == release);
        let cache = self.cache()?;
        if sources.offline {
            return Err(Cause::Offline { cache: cache.dir().to_owned() });
        }
        let apt = match apt {
            Some(apt) => apt,
            None => {
                let dir = cache.unfinished()?;
                let mirror = sources.mirror.as_deref();
                (release, Apt::new(release, dir.path(), mirror, screen, stop)?, dir)
            }
        };
        let apt = &self.apt.insert(apt).1;
        let cache = self.cache.as_ref().ok_or(Cause::NoCacheDir)?;
        Ok((cache, apt))
    }
}
