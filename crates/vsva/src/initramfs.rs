//! The guest's root file system: a `newc` cpio archive (Linux `Documentation/driver-api/early-userspace/buffer-format`)
//! with the guest program, a console to speak to before devtmpfs is mounted, and the kernel modules it loads.
//!
//! ```text
//! /init                      the guest program, process 1
//! /dev/console               character device 5:1
//! /lib/modules/<name>.ko     uncompressed modules
//! /lib/modules/load-order    absolute paths of those to load at once, one a line, dependencies first
//! ```
//!
//! ```
//! use vsva::initramfs::Archive;
//!
//! let mut archive = Archive::default();
//! archive.directory("dev", 0o755)?;
//! archive.file("init", 0o755, b"an ELF file")?;
//! assert!(archive.finish()?.starts_with(b"070701"));
//! # Ok::<(), vsva::initramfs::InitramfsError>(())
//! ```

use crate::assets::Module;

/// Where the guest program finds the list of modules to load.
pub const LOAD_ORDER: &str = "lib/modules/load-order";

/// The longest path in the archive, in bytes, without the closing NUL.
pub const MAX_NAME: usize = 255;

const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";
const ALIGN: usize = 4;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// Why an archive cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitramfsError {
    /// A path is empty, too long, or holds a NUL.
    #[error("{name:?} cannot be a name in the initramfs (1 to {MAX_NAME} bytes, no NUL)")]
    Name {
        /// The path as given.
        name: String,
    },
    /// A file does not fit the format's 32-bit size.
    #[error("{name:?} is {bytes} bytes: the initramfs format ends at 4 GiB")]
    Size {
        /// The path as given.
        name: String,
        /// Its length.
        bytes: usize,
    },
}

/// Builds the archive of the guest: `init` as process 1, `modules` in load order, and beside them those that the guest
/// program loads `on_demand`.
///
/// # Errors
/// A module's name or size that the format cannot hold.
pub fn build(
    init: &[u8],
    modules: &[Module],
    on_demand: &[Module],
) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "tmp", "lib", "lib/modules"] {
        archive.directory(dir, 0o755)?;
    }
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, init)?;
    let mut order = String::new();
    for module in modules {
        order.push('/');
        order.push_str(&add_module(&mut archive, module)?);
        order.push('\n');
    }
    for module in on_demand {
        add_module(&mut archive, module)?;
    }
    archive.file(LOAD_ORDER, 0o644, order.as_bytes())?;
    archive.finish()
}

fn add_module(archive: &mut Archive, module: &Module) -> Result<String, InitramfsError> {
    let path = format!("lib/modules/{}.ko", module.name);
    archive.file(&path, 0o644, &module.image)?;
    Ok(path)
}

/// A `newc` archive being written. Owners are root and times are zero, so equal input gives equal bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    last_inode: u32,
}

/// The header's fields that differ between kinds of entry.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl Archive {
    /// Adds a directory, in which later entries may be.
    ///
    /// # Errors
    /// [`InitramfsError::Name`].
    pub fn directory(&mut self, name: &str, permissions: u32) -> Result<(), InitramfsError> {
        let mode = S_IFDIR | permissions;
        self.entry(&Entry { name, mode, links: 2, device: (0, 0), data: &[] })
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// [`InitramfsError::Name`], [`InitramfsError::Size`].
    pub fn file(
        &mut self,
        name: &str,
        permissions: u32,
        data: &[u8],
    ) -> Result<(), InitramfsError> {
        let mode = S_IFREG | permissions;
        self.entry(&Entry { name, mode, links: 1, device: (0, 0), data })
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// [`InitramfsError::Name`].
    pub fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), InitramfsError> {
        let mode = S_IFCHR | permissions;
        self.entry(&Entry { name, mode, links: 1, device: (major, minor), data: &[] })
    }

    /// Closes the archive.
    ///
    /// # Errors
    /// None in practice; the trailer is an entry like the others.
    pub fn finish(mut self) -> Result<Vec<u8>, InitramfsError> {
        self.entry(&Entry { name: TRAILER, mode: 0, links: 1, device: (0, 0), data: &[] })?;
        Ok(self.bytes)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), InitramfsError> {
        let name = entry.name;
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(InitramfsError::Name { name: name.to_owned() });
        }
        let bytes = entry.data.len();
        let size = u32::try_from(bytes)
            .map_err(|_| InitramfsError::Size { name: name.to_owned(), bytes })?;
        // The name's closing NUL counts; MAX_NAME keeps this far below the field's limit.
        let name_size = name.len() as u32 + 1;
        self.last_inode += 1;
        let (major, minor) = entry.device;
        let inode = self.last_inode;
        let (owner, group, time, disk, check) = (0, 0, 0, (0, 0), 0);
        self.bytes.extend_from_slice(MAGIC);
        for field in [
            inode,
            entry.mode,
            owner,
            group,
            entry.links,
            time,
            size,
            disk.0,
            disk.1,
            major,
            minor,
            name_size,
            check,
        ] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_byte_for_byte() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"hello").unwrap();
        let expected = concat!(
            "070701",   // magic
            "00000001", // inode
            "000081ed", // regular file, 0755
            "00000000", // owner
            "00000000", // group
            "00000001", // links
            "00000000", // time
            "00000005", // size
            "00000000", // device major
            "00000000", // device minor
            "00000000", // special file's major
            "00000000", // special file's minor
            "00000005", // name with its NUL
            "00000000", // check
            "init\0\0hello\0\0\0",
        );
        assert_eq!(String::from_utf8(archive.bytes).unwrap(), expected);
    }

    #[test]
    fn devices_and_directories_say_what_they_are() {
        let mut archive = Archive::default();
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        let text = String::from_utf8(archive.bytes).unwrap();
        assert_eq!(&text[14..22], "000041ed");
        let console = &text[116..];
        assert_eq!(&console[..6], "070701");
        assert_eq!(&console[14..22], "00002180");
        assert_eq!(&console[78..94], "0000000500000001");
    }

    #[test]
    fn the_guests_archive_lists_modules_in_order_and_ends_aligned() {
        let module = |name: &str| Module { name: name.to_owned(), image: vec![7; 5] };
        let at_once = [module("idxd_bus"), module("idxd")];
        let bytes = build(b"program", &at_once, &[module("brd")]).unwrap();
        assert_eq!(bytes.len() % ALIGN, 0);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("/lib/modules/idxd_bus.ko\n/lib/modules/idxd.ko\n"));
        assert!(text.contains("lib/modules/brd.ko\0") && !text.contains("brd.ko\n"));
        assert!(text.trim_end_matches('\0').ends_with(TRAILER));
        // Parents come before what they hold: the kernel makes no directory by itself.
        let parent = text.find("lib/modules\0").unwrap();
        assert!(parent < text.find("lib/modules/idxd.ko\0").unwrap());
    }

    #[test]
    fn bad_names_are_refused() {
        let mut archive = Archive::default();
        for name in [String::new(), "a\0b".to_owned(), "n".repeat(MAX_NAME + 1)] {
            let error = archive.file(&name, 0o644, b"").unwrap_err();
            assert_eq!(error, InitramfsError::Name { name });
        }
        assert!(archive.bytes.is_empty());
    }
}
