//! A guest kernel: the boot image, and the modules that bring the accelerator's driver.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::apt::Apt;
use super::cache::{self, Cache};
use super::error::Cause;
use super::modules::{self, Module};

/// The package that always depends on the suite's newest kernel.
const PACKAGE: &str = "linux-image-amd64";
/// What the packages with the boot image and with the modules are called; which has what differs by version.
const PREFIXES: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
const ENTRY: &str = "kernel";
const IMAGE: &str = "vmlinuz";
/// The accelerator's driver; what it needs comes along.
const DRIVER: &str = "idxd";
/// What scenarios load when they want it: a disk in memory, and a file system for it.
const ON_DEMAND: [&str; 2] = ["brd", "minix"];

/// A bigger boot image is not one, in bytes.
const MAX_IMAGE: u64 = 256 << 20;

// The x86 boot protocol's setup header (Linux Documentation/arch/x86/boot.rst).
const HEADER_MAGIC_AT: usize = 0x202;
const HEADER_MAGIC: &[u8] = b"HdrS";
const RELEASE_POINTER_AT: usize = 0x20e;
/// What the pointer to the release text is relative to.
const RELEASE_BASE: usize = 0x200;
const MAX_RELEASE: usize = 128;

/// A boot image with the modules to load in it.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The boot image (vmlinuz).
    pub image: PathBuf,
    /// Its release, as `uname -r` gives it.
    pub release: String,
    /// Where it comes from, for people and results.
    pub description: String,
    /// The modules to load, dependencies first.
    pub modules: Vec<Module>,
    /// Modules that scenarios load when they want them, dependencies first; those that the kernel has as modules.
    pub on_demand: Vec<Module>,
}

/// What the cache entry says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    release: String,
    version: String,
    /// Names of the modules in load order; each is a file `<name>.ko`.
    modules: Vec<String>,
    /// Names of those that are loaded on demand; an entry that does not say is of before there were any.
    on_demand: Vec<String>,
}

impl Kernel {
    /// The user's own kernel, with modules from `modules` or from where they usually are.
    pub(super) fn at(image: &Path, modules: Option<&Path>) -> Result<Self, Cause> {
        let release = release_of(image)?;
        let looked = match modules {
            Some(dir) => vec![dir.to_owned(), dir.join("lib/modules").join(&release)],
            None => usual_module_dirs(image, &release),
        };
        let Some(dir) = looked.iter().find(|dir| dir.join("kernel/drivers").is_dir()) else {
            let looked = looked.iter().map(|dir| dir.display().to_string()).collect();
            return Err(Cause::NoModules { release, looked });
        };
        let modules = modules::closure(dir, DRIVER, &release)?;
        let on_demand = on_demand(dir, &release)?;
        let description = format!("{release} ({})", image.display());
        Ok(Self { image: image.to_owned(), release, description, modules, on_demand })
    }

    /// The cached one, if it is there and whole.
    pub(super) fn cached(cache: &Cache) -> Option<Self> {
        let dir = cache.entry(ENTRY);
        Self::load(&dir, cache::read_manifest(&dir)?).ok()
    }

    fn load(dir: &Path, manifest: Manifest) -> Result<Self, Cause> {
        let read = |names: Vec<String>| {
            let read = |name: String| {
                let image = modules::read_plain(&dir.join(format!("{name}.ko")))?;
                Ok(Module { name, image })
            };
            names.into_iter().map(read).collect::<Result<Vec<_>, Cause>>()
        };
        let (modules, on_demand) = (read(manifest.modules)?, read(manifest.on_demand)?);
        let image = dir.join(IMAGE);
        let release = release_of(&image)?;
        let description = format!("{release} (package version {})", manifest.version);
        Ok(Self { image, release, description, modules, on_demand })
    }

    /// Fetches one into the cache: the boot image and the modules that are needed.
    pub(super) fn fetch(cache: &Cache, apt: &Apt<'_>) -> Result<Self, Cause> {
        let mut archives = apt.closure(&[PACKAGE])?;
        archives.retain(|archive| {
            archive.name != PACKAGE
                && PREFIXES.iter().any(|prefix| archive.name.starts_with(prefix))
        });
        let offered = |what: &str| apt.not_offered(&format!("kernel with {what}"));
        let version = archives.first().ok_or_else(|| offered("a package"))?.version.clone();
        let unfinished = cache.unfinished()?;
        let (all, made) = (unfinished.path().join("all"), unfinished.path().join("made"));
        apt.unpack(&format!("Linux {version}"), &archives, &all)?;
        fs::create_dir(&made).map_err(Cause::file(&made))?;
        let image = find_image(&all).ok_or_else(|| offered("a boot image"))?;
        let release = release_of(&image)?;
        let tree = ["usr/lib/modules", "lib/modules"].map(|dir| all.join(dir).join(&release));
        let tree = tree.iter().find(|dir| dir.is_dir()).ok_or_else(|| offered("modules"))?;
        let modules = modules::closure(tree, DRIVER, &release)?;
        fs::rename(&image, made.join(IMAGE)).map_err(Cause::file(&image))?;
        let on_demand = on_demand(tree, &release)?;
        for module in modules.iter().chain(&on_demand) {
            let path = made.join(format!("{}.ko", module.name));
            fs::write(&path, &module.image).map_err(Cause::file(path))?;
        }
        let names = |modules: Vec<Module>| modules.into_iter().map(|module| module.name).collect();
        let (modules, on_demand) = (names(modules), names(on_demand));
        let manifest = Manifest { release, version, modules, on_demand };
        cache::write_manifest(&made, &manifest)?;
        Self::load(&cache.publish(ENTRY, &made)?, manifest)
    }
}

/// The modules for scenarios. A kernel may have them built in, or not at all: the scenario then says so.
fn on_demand(dir: &Path, release: &str) -> Result<Vec<Module>, Cause> {
    let mut found: Vec<Module> = Vec::new();
    for name in ON_DEMAND {
        match modules::closure(dir, name, release) {
            Ok(modules) => found.extend(modules),
            Err(Cause::NoModule { .. }) => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(found)
}

/// Where a kernel's modules are when nobody says: beside it, or where distributions put them.
fn usual_module_dirs(image: &Path, release: &str) -> Vec<PathBuf> {
    let beside = match image.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    vec![
        beside.clone(),
        beside.join("lib/modules").join(release),
        beside.join("../lib/modules").join(release),
        Path::new("/lib/modules").join(release),
    ]
}

/// The boot image below `root`: in `boot`, or (since 7.2) beside the modules.
pub(super) fn find_image(root: &Path) -> Option<PathBuf> {
    let is_image = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name == IMAGE || name.starts_with("vmlinuz-")) && path.is_file()
    };
    let entries =
        |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let in_boot = entries(root.join("boot")).find(is_image);
    in_boot.or_else(|| {
        let releases = ["usr/lib/modules", "lib/modules"].map(|dir| root.join(dir));
        releases.into_iter().flat_map(entries).flat_map(entries).find(is_image)
    })
}

/// The release that the boot image carries in its setup header.
pub(super) fn release_of(image: &Path) -> Result<String, Cause> {
    let bad = |why| Cause::NotKernel { path: image.to_owned(), why };
    let size = fs::metadata(image).map_err(Cause::file(image))?.len();
    if size > MAX_IMAGE {
        return Err(bad("it is too big"));
    }
    let bytes = fs::read(image).map_err(Cause::file(image))?;
    parse_release(&bytes).map_err(bad)
}

fn parse_release(bytes: &[u8]) -> Result<String, &'static str> {
    let magic = bytes.get(HEADER_MAGIC_AT..HEADER_MAGIC_AT + HEADER_MAGIC.len());
    if magic != Some(HEADER_MAGIC) {
        return Err("it has no setup header");
    }
    let pointer = bytes.get(RELEASE_POINTER_AT..RELEASE_POINTER_AT + 2);
    let pointer = pointer.map_or(0, |at| usize::from(u16::from_le_bytes([at[0], at[1]])));
    if pointer == 0 {
        return Err("it does not say its release");
    }
    let text = bytes.get(RELEASE_BASE + pointer..).unwrap_or_default();
    let word = text.split(|&byte| byte == b' ' || byte == 0).next().unwrap_or_default();
    let plain = |&byte: &u8| byte.is_ascii_alphanumeric() || b"+-._~".contains(&byte);
    if word.is_empty() || word.len() > MAX_RELEASE || word == b".." || !word.iter().all(plain) {
        return Err("its release is not a name");
    }
    Ok(String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::assets) fn image(pointer: u16, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&pointer.to_le_bytes());
        bytes[0x300..0x300 + text.len()].copy_from_slice(text);
        bytes
    }

    #[test]
    fn the_release_is_read_from_the_setup_header() {
        let bytes = image(0x100, b"7.3.4+deb13-amd64 (debian-kernel) #1 SMP\0");
        assert_eq!(parse_release(&bytes).unwrap(), "7.3.4+deb13-amd64");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for (bytes, why) in [
            (vec![], "it has no setup header"),
            (vec![0; 0x1000], "it has no setup header"),
            (image(0, b""), "it does not say its release"),
            (image(0xffff, b""), "its release is not a name"),
            (image(0x100, b"../../etc #1"), "its release is not a name"),
            (image(0x100, b".. #1"), "its release is not a name"),
        ] {
            assert_eq!(parse_release(&bytes), Err(why));
        }
    }

    #[test]
    fn a_kernel_without_modules_says_where_it_looked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        fs::write(&path, image(0x100, b"0.0.1-none #1\0")).unwrap();
        let Err(Cause::NoModules { release, looked }) = Kernel::at(&path, None) else {
            panic!("modules of a kernel that never was")
        };
        assert_eq!(release, "0.0.1-none");
        assert!(looked.iter().any(|dir| dir == "/lib/modules/0.0.1-none"));
    }

    #[test]
    fn the_image_is_found_in_both_layouts() {
        for at in ["boot/vmlinuz-6.1", "usr/lib/modules/7.3/vmlinuz"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(at);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            assert_eq!(find_image(dir.path()), Some(path));
        }
    }
}
