//! A private directory for sockets and files that must not outlive the program.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::process::geteuid;
use tempfile::TempDir;

/// What such directories' names begin with. Short: a socket's name ends at 107 bytes.
const PREFIX: &str = "vsva-lab-";

/// A directory younger than this may belong to a program that has not locked it yet.
const SETTLED: Duration = Duration::from_secs(60);

/// A directory that only this user can look into (mode 0700). Removed when dropped; one whose owner was killed with
/// SIGKILL is removed by the next program that makes one.
#[derive(Debug)]
pub struct PrivateDir {
    dir: TempDir,
    /// Locked for as long as the owner lives.
    _lock: File,
}

impl PrivateDir {
    /// Makes one below the system's directory for temporary files.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn new() -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir(), SETTLED)
    }

    fn new_in(base: &Path, settled: Duration) -> io::Result<Self> {
        sweep(base, settled);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(base)?;
        let lock = File::open(dir.path())?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { dir, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes this user's directories whose owners are gone. What cannot be removed is not this program's trouble.
fn sweep(base: &Path, settled: Duration) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && abandoned(&entry.path(), settled)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn abandoned(dir: &Path, settled: Duration) -> bool {
    // Not followed: somebody else's symbolic link in a shared directory is not ours to act on.
    let Ok(metadata) = fs::symlink_metadata(dir) else { return false };
    let age = metadata.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
    if !metadata.is_dir()
        || metadata.uid() != geteuid().as_raw()
        || age.is_none_or(|age| age < settled)
    {
        return false;
    }
    let Ok(lock) = File::open(dir) else { return false };
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_private_and_goes_with_its_owner() {
        let base = tempfile::tempdir().unwrap();
        let private = PrivateDir::new_in(base.path(), SETTLED).unwrap();
        let path = private.path().to_owned();
        fs::write(path.join("socket"), "").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(private);
        assert!(!path.exists());
    }

    #[test]
    fn a_killed_owners_one_is_swept_and_a_living_ones_is_not() {
        let base = tempfile::tempdir().unwrap();
        let living = PrivateDir::new_in(base.path(), Duration::ZERO).unwrap();
        let killed = base.path().join("vsva-lab-killed");
        let other = base.path().join("other");
        fs::create_dir(&killed).unwrap();
        fs::create_dir(&other).unwrap();
        let young = PrivateDir::new_in(base.path(), SETTLED).unwrap();
        assert!(killed.exists(), "too young to be sure");
        let next = PrivateDir::new_in(base.path(), Duration::ZERO).unwrap();
        assert!(!killed.exists());
        assert!(living.path().exists() && young.path().exists() && next.path().exists());
        assert!(other.exists());
    }
}
