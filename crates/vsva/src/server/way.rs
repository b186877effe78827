//! Room for a socket where an earlier server may have left one.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{connect, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::ServeError;

/// Most bytes of a unix socket's path: `sun_path` without its closing NUL.
pub const MAX_SOCKET_PATH: usize = 107;

/// Makes sure that a socket can be made at `path`: one that is there and that nobody listens on
/// any more is removed.
pub(super) fn make_way(path: &Path) -> Result<(), ServeError> {
    let len = path.as_os_str().as_bytes().len();
    if len > MAX_SOCKET_PATH {
        return Err(ServeError::PathTooLong { path: path.to_owned(), len });
    }
    // Not followed: a symbolic link is no socket of an earlier server's.
    let Ok(there) = fs::symlink_metadata(path) else { return Ok(()) };
    if !there.file_type().is_socket() {
        return Err(ServeError::InTheWay { path: path.to_owned() });
    }
    let failed = |source| ServeError::File { path: path.to_owned(), source };
    match knock(path) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed),
        Err(Errno::NOENT) => Ok(()),
        // A listener whose queue is full is one too.
        Ok(()) | Err(Errno::AGAIN) => Err(ServeError::Taken { path: path.to_owned() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Connects, without waiting, and hangs up.
fn knock(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        make_way(&path).unwrap();

        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(make_way(&path), Err(ServeError::Taken { .. })));
        drop(listener);
        assert!(path.exists(), "a server that was killed leaves its socket");
        make_way(&path).unwrap();
        assert!(!path.exists());

        fs::write(&path, "somebody's").unwrap();
        assert!(matches!(make_way(&path), Err(ServeError::InTheWay { .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_path_must_fit_into_an_address() {
        let path = |len: usize| "/".to_owned() + &"a".repeat(len - 1);
        make_way(Path::new(&path(MAX_SOCKET_PATH))).unwrap();
        let too_long = path(MAX_SOCKET_PATH + 1);
        let refused = make_way(Path::new(&too_long));
        assert!(matches!(refused, Err(ServeError::PathTooLong { len: 108, .. })));
    }
}
