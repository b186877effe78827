//! The user's cache directory: whole entries only, one writer at a time.
//!
//! ```text
//! $XDG_CACHE_HOME/vsva or ~/.cache/vsva     0700
//!     lock                                  held while the cache is looked into or filled
//!     qemu-1/  kernel-1/                    entries; the number is the layout's
//!     .fetch-XXXXXX/                        an entry being made; renamed when complete
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::Serialize;
use tempfile::TempDir;

use super::error::Cause;
use crate::stop::Stop;
use crate::term::{Mark, Screen};

/// The version of what an entry looks like; an entry of another layout is not this program's.
const LAYOUT: u32 = 1;

/// The longest wait for another lab that is filling the cache.
const LOCK_LIMIT: Duration = Duration::from_secs(30 * 60);

const UNFINISHED: &str = ".fetch-";

/// What an entry says about itself.
const MANIFEST: &str = "manifest.json";

/// The cache directory, locked against other labs until dropped.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    /// Closing the file gives the lock back.
    _lock: File,
}

impl Cache {
    /// Opens the user's cache, making it if need be and waiting for another lab that holds it.
    pub(super) fn open(screen: &Screen, stop: &Stop) -> Result<Self, Cause> {
        Self::open_at(&user_cache()?, screen, stop)
    }

    pub(super) fn open_at(dir: &Path, screen: &Screen, stop: &Stop) -> Result<Self, Cause> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Cause::file(dir))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Cause::file(&path))?;
        let deadline = Instant::now() + LOCK_LIMIT;
        let mut told = false;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    if !std::mem::replace(&mut told, true) {
                        screen.mark(Mark::Note, "another lab is filling the cache: waiting for it");
                    }
                    stop.pause(deadline)?;
                }
                Err(errno) => return Err(Cause::File { path, source: errno.into() }),
            }
        }
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the entry `name` is, or would be.
    pub(super) fn entry(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-{LAYOUT}"))
    }

    /// A directory for an entry in the making, on the cache's own file system; removed on drop.
    pub(super) fn unfinished(&self) -> Result<TempDir, Cause> {
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.dir)
            .map_err(Cause::file(&self.dir))
    }

    /// Removes what labs that were killed in the middle left; nobody else is filling the cache while it is locked.
    pub(super) fn sweep(&self) -> Result<(), Cause> {
        for entry in fs::read_dir(&self.dir).map_err(Cause::file(&self.dir))? {
            let entry = entry.map_err(Cause::file(&self.dir))?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path()).map_err(Cause::file(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Makes the complete directory `made` the entry `name`, in place of an unusable one.
    pub(super) fn publish(&self, name: &str, made: &Path) -> Result<PathBuf, Cause> {
        let entry = self.entry(name);
        // The contents reach the disk before the name does, or a power cut could leave a whole-looking half.
        let handle = File::open(made).map_err(Cause::file(made))?;
        rustix::fs::syncfs(&handle).map_err(|errno| Cause::file(made)(errno.into()))?;
        if entry.exists() {
            fs::remove_dir_all(&entry).map_err(Cause::file(&entry))?;
        }
        fs::rename(made, &entry).map_err(Cause::file(&entry))?;
        Ok(entry)
    }
}

/// Writes what the entry in the making says about itself.
pub(super) fn write_manifest(made: &Path, manifest: &impl Serialize) -> Result<(), Cause> {
    let path = made.join(MANIFEST);
    let text = serde_json::to_vec_pretty(manifest).map_err(Into::into);
    text.and_then(|text| fs::write(&path, text)).map_err(Cause::file(path))
}

/// What the entry says about itself; `None` is no entry, or not one of this program's.
pub(super) fn read_manifest<T: DeserializeOwned>(entry: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(entry.join(MANIFEST)).ok()?).ok()
}

/// `$XDG_CACHE_HOME/vsva` or `~/.cache/vsva`; the XDG base directory specification ignores relative paths.
fn user_cache() -> Result<PathBuf, Cause> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|base| base.join("vsva"))
        .ok_or(Cause::NoCacheDir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(dir: &Path, stop: &Stop) -> Result<Cache, Cause> {
        Cache::open_at(dir, &Screen::none(), stop)
    }

    #[test]
    fn the_cache_is_private_and_entries_appear_whole() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("deep/vsva");
        let cache = open(&dir, &Stop::default()).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let unfinished = cache.unfinished().unwrap();
        let made = unfinished.path().join("out");
        fs::create_dir(&made).unwrap();
        fs::write(made.join("file"), "whole").unwrap();
        assert!(!cache.entry("thing").exists());
        let entry = cache.publish("thing", &made).unwrap();
        assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "whole");
    }

    #[test]
    fn a_failed_fetch_leaves_nothing_and_a_killed_one_is_swept() {
        let base = tempfile::tempdir().unwrap();
        let cache = open(base.path(), &Stop::default()).unwrap();
        drop(cache.unfinished().unwrap());
        let killed = cache.unfinished().unwrap().keep();
        fs::write(killed.join("half"), "").unwrap();
        cache.sweep().unwrap();
        let names: Vec<_> =
            fs::read_dir(base.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["lock"]);
    }

    #[test]
    fn a_second_lab_waits_until_the_first_is_done() {
        let base = tempfile::tempdir().unwrap();
        let first = open(base.path(), &Stop::default()).unwrap();
        let stop = Stop::default();
        stop.raise();
        assert!(matches!(open(base.path(), &stop), Err(Cause::Stopped(_))));
        drop(first);
        assert!(open(base.path(), &stop).is_ok());
    }
}
