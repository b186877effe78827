//! What a lab needs from outside: a QEMU and a guest kernel, found or fetched.
//!
//! ```text
//!  --qemu PATH ──► QEMU on PATH, 10.1 or newer ──► cache ──► packages, through a private apt
//!  --kernel PATH ────────────────────────────────► cache ──► packages, through a private apt
//! ```
//!
//! Nothing is installed and nothing needs root; see [`AssetError`] for what a machine may lack.

mod apt;
mod cache;
mod error;
mod kernel;
mod mirror;
mod modules;
mod qemu;

use std::path::PathBuf;

use tempfile::TempDir;

use self::apt::Apt;
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
    /// Fetch from this Debian archive instead of the machine's.
    pub mirror: Option<String>,
    /// Fetch nothing.
    pub offline: bool,
}

/// A QEMU and a kernel that are ready to use.
#[derive(Clone, Debug)]
pub struct Assets {
    /// The emulator.
    pub qemu: Qemu,
    /// The guest's kernel.
    pub kernel: Kernel,
}

/// Finds a QEMU and a kernel, fetching what is missing, and says on `screen` what it does.
///
/// # Errors
/// [`AssetError`] says what was wanted, what happened, and which option supplies it.
pub fn find(sources: &Sources, screen: &Screen, stop: &Stop) -> Result<Assets, AssetError> {
    let mut finder = Finder { sources, screen, stop, cache: None, apt: None };
    let qemu = finder.qemu().map_err(|cause| cause.of(Wanted::Qemu))?;
    screen.mark(Mark::Note, &format!("QEMU {}", qemu.description()));
    let kernel = finder.kernel().map_err(|cause| cause.of(Wanted::Kernel))?;
    screen.mark(Mark::Note, &format!("Linux {}", kernel.description));
    Ok(Assets { qemu, kernel })
}

/// A search under way. The cache is opened, and the package system set up, when first needed.
struct Finder<'a> {
    sources: &'a Sources,
    screen: &'a Screen,
    stop: &'a Stop,
    // Declared before the directory it works in, so that it is dropped first.
    apt: Option<(Apt<'a>, TempDir)>,
    cache: Option<Cache>,
}

impl Finder<'_> {
    fn qemu(&mut self) -> Result<Qemu, Cause> {
        if let Some(path) = &self.sources.qemu {
            return Qemu::at(path, self.stop);
        }
        if let Some(path) = Qemu::on_path() {
            match Qemu::at(&path, self.stop) {
                Ok(qemu) => return Ok(qemu),
                Err(cause) if cause.is_stop() => return Err(cause),
                Err(cause) => self.screen.mark(Mark::Note, &format!("not used: {cause}")),
            }
        }
        let stop = self.stop;
        if let Some(qemu) = Qemu::cached(self.cache()?, stop) {
            return Ok(qemu);
        }
        let (cache, apt) = self.fetching()?;
        Qemu::fetch(cache, apt, stop)
    }

    fn kernel(&mut self) -> Result<Kernel, Cause> {
        if let Some(image) = &self.sources.kernel {
            return Kernel::at(image, self.sources.modules.as_deref());
        }
        if let Some(kernel) = Kernel::cached(self.cache()?) {
            return Ok(kernel);
        }
        let (cache, apt) = self.fetching()?;
        Kernel::fetch(cache, apt)
    }

    fn cache(&mut self) -> Result<&Cache, Cause> {
        let cache = match self.cache.take() {
            Some(cache) => cache,
            None => Cache::open(self.screen, self.stop)?,
        };
        Ok(self.cache.insert(cache))
    }

    /// The cache and a package system to fill it from.
    fn fetching(&mut self) -> Result<(&Cache, &Apt<'_>), Cause> {
        let (sources, screen, stop) = (self.sources, self.screen, self.stop);
        let apt = self.apt.take();
        let cache = self.cache()?;
        if sources.offline {
            return Err(Cause::Offline { cache: cache.dir().to_owned() });
        }
        let apt = match apt {
            Some(apt) => apt,
            None => {
                cache.sweep()?;
                let dir = cache.unfinished()?;
                (Apt::new(dir.path(), sources.mirror.as_deref(), screen, stop)?, dir)
            }
        };
        let apt = &self.apt.insert(apt).0;
        let cache = self.cache.as_ref().ok_or(Cause::NoCacheDir)?;
        Ok((cache, apt))
    }
}
