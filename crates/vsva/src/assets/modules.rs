//! Kernel modules: finding them in a tree, decompressing them, and putting them in load order.
//!
//! Dependencies are read from the modules themselves (section `.modinfo`), because a package's tree has no
//! `modules.dep` before it is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;
use object::{Object as _, ObjectSection as _};

use super::error::Cause;

/// The biggest module, in bytes after decompression; the distribution's biggest has 10 MB.
pub const MAX_MODULE: u64 = 64 << 20;

/// The most files that a module tree may have; distributions have about 5,000.
const MAX_FILES: usize = 50_000;

/// The most modules that one driver may need.
const MAX_CLOSURE: usize = 64;

/// A module as the guest's kernel takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its ELF file, uncompressed.
    pub image: Vec<u8>,
}

/// What a module says about itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Info {
    depends: Vec<String>,
    release: String,
}

/// `driver` and all that it needs from the tree `dir` of kernel `release`, dependencies first.
pub(super) fn closure(dir: &Path, driver: &str, release: &str) -> Result<Vec<Module>, Cause> {
    let files = index(dir)?;
    let mut ordered = Vec::new();
    let mut entered = BTreeSet::new();
    // A module waits on the stack (`true`: what it needs is loaded already) until all below it is in order.
    let mut stack = vec![(driver.to_owned(), None)];
    while let Some((name, loaded)) = stack.pop() {
        if let Some(image) = loaded {
            ordered.push(Module { name, image });
            continue;
        }
        if !entered.insert(name.clone()) {
            continue;
        }
        let missing = || Cause::NoModule { name: name.clone(), dir: dir.to_owned() };
        let path = files.get(&name).ok_or_else(missing)?;
        let bad = |why: String| Cause::BadModule { path: path.clone(), why };
        if entered.len() > MAX_CLOSURE {
            return Err(bad(format!("{driver} needs more than {MAX_CLOSURE} modules")));
        }
        let image = read(path)?;
        let info = info_for(&image, release).map_err(bad)?;
        stack.push((name, Some(image)));
        stack.extend(info.depends.into_iter().map(|needed| (needed, None)));
    }
    Ok(ordered)
}

/// An uncompressed module file.
pub(super) fn read_plain(path: &Path) -> Result<Vec<u8>, Cause> {
    let file = File::open(path).map_err(Cause::file(path))?;
    limited(path, file)
}

/// The module `name` that was built for the kernel `release`.
pub(super) fn built(path: &Path, name: &str, release: &str) -> Result<Module, Cause> {
    let image = read_plain(path)?;
    let bad = |why: String| Cause::BadModule { path: path.to_owned(), why };
    info_for(&image, release).map_err(bad)?;
    Ok(Module { name: name.to_owned(), image })
}

/// Every module file of a tree, by the module's name.
fn index(dir: &Path) -> Result<BTreeMap<String, PathBuf>, Cause> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    let mut seen = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(Cause::file(&dir))? {
            let entry = entry.map_err(Cause::file(&dir))?;
            // Symbolic links are not followed: `build` and `source` lead out of the tree, or in circles.
            let kind = entry.file_type().map_err(Cause::file(entry.path()))?;
            seen += 1;
            if seen > MAX_FILES {
                let why = format!("the tree has more than {MAX_FILES} files");
                return Err(Cause::BadModule { path: dir, why });
            }
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

/// The module's name of a file name such as `idxd-bus.ko.xz`; the kernel takes dashes for underscores.
fn module_name(file: &str) -> Option<String> {
    let (stem, compression) = file.split_once(".ko")?;
    let known = matches!(compression, "" | ".xz" | ".gz" | ".zst");
    (known && !stem.is_empty()).then(|| stem.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>, Cause> {
    let file = File::open(path).map_err(Cause::file(path))?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => limited(path, file),
        Some("xz") => limited(path, XzReader::new(BufReader::new(file), false)),
        _ => Err(Cause::BadModule {
            path: path.to_owned(),
            why: "only plain and xz-compressed modules are read; decompress it first".to_owned(),
        }),
    }
}

fn limited(path: &Path, reader: impl std::io::Read) -> Result<Vec<u8>, Cause> {
    let mut bytes = Vec::new();
    reader.take(MAX_MODULE + 1).read_to_end(&mut bytes).map_err(Cause::file(path))?;
    if bytes.len() as u64 > MAX_MODULE {
        let why = format!("it is bigger than {MAX_MODULE} bytes");
        return Err(Cause::BadModule { path: path.to_owned(), why });
    }
    Ok(bytes)
}

/// The account of a module that must be for the kernel `release`.
fn info_for(image: &[u8], release: &str) -> Result<Info, String> {
    let info = parse_info(image)?;
    if info.release != release {
        return Err(format!("it is for kernel {}, not {release}", info.release));
    }
    Ok(info)
}

/// The module's own account: NUL-terminated `key=value` texts in section `.modinfo`.
fn parse_info(image: &[u8]) -> Result<Info, String> {
    let file = object::File::parse(image).map_err(|error| error.to_string())?;
    let section = file.section_by_name(".modinfo").ok_or("it has no .modinfo section")?;
    Ok(parse_modinfo(section.data().map_err(|error| error.to_string())?))
}

fn parse_modinfo(data: &[u8]) -> Info {
    let mut info = Info::default();
    for text in data.split(|&byte| byte == 0) {
        let text = String::from_utf8_lossy(text);
        if let Some(names) = text.strip_prefix("depends=") {
            let names = names.split(',').filter(|name| !name.is_empty());
            info.depends.extend(names.map(|name| name.replace('-', "_")));
        } else if let Some(magic) = text.strip_prefix("vermagic=") {
            info.release = magic.split(' ').next().unwrap_or_default().to_owned();
        }
    }
    info
}

#[cfg(test)]
pub(super) mod tests {
    use object::write::Object;
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};

    use super::*;

    const RELEASE: &str = "7.3.4-test";

    /// `printf vsva | xz --check=crc32`
    const XZ_OF_VSVA: [u8; 56] = [
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x03, 0x76, 0x73, 0x76,
        0x61, 0x00, 0xeb, 0x79, 0x77, 0x7a, 0x00, 0x01, 0x18, 0x04, 0x6b, 0xe9, 0xf0, 0xa5, 0x90,
        0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    pub(in crate::assets) fn elf(depends: &str, release: &str) -> Vec<u8> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let section =
            object.add_section(Vec::new(), b".modinfo".to_vec(), SectionKind::ReadOnlyData);
        let text = format!("license=GPL\0depends={depends}\0vermagic={release} SMP mod_unload \0");
        object.append_section_data(section, text.as_bytes(), 1);
        object.write().unwrap()
    }

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("kernel/drivers");
        fs::create_dir_all(&deep).unwrap();
        for (file, depends) in modules {
            fs::write(deep.join(file), elf(depends, RELEASE)).unwrap();
        }
        dir
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tree(&[
            ("idxd.ko", "idxd_bus,both"),
            ("idxd-bus.ko", "both"),
            ("both.ko", ""),
            ("unrelated.ko", ""),
        ]);
        let modules = closure(dir.path(), "idxd", RELEASE).unwrap();
        assert_eq!(names(&modules), ["both", "idxd_bus", "idxd"]);
    }

    #[test]
    fn a_circle_ends() {
        let dir = tree(&[("idxd.ko", "b"), ("b.ko", "idxd")]);
        assert_eq!(names(&closure(dir.path(), "idxd", RELEASE).unwrap()), ["b", "idxd"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        let dir = tree(&[("idxd.ko", "idxd_bus")]);
        let error = closure(dir.path(), "idxd", RELEASE).unwrap_err();
        assert!(matches!(error, Cause::NoModule { name, .. } if name == "idxd_bus"));
    }

    #[test]
    fn another_kernels_module_is_refused() {
        let dir = tree(&[("idxd.ko", "")]);
        let error = closure(dir.path(), "idxd", "6.1.0").unwrap_err();
        assert!(error.to_string().contains("it is for kernel 7.3.4-test, not 6.1.0"));
    }

    #[test]
    fn a_module_that_was_built_is_for_its_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ko");
        fs::write(&path, elf("", RELEASE)).unwrap();
        assert_eq!(built(&path, "a", RELEASE).unwrap().name, "a");
        let error = built(&path, "a", "6.1.0").unwrap_err();
        assert!(error.to_string().contains("it is for kernel 7.3.4-test, not 6.1.0"));
    }

    #[test]
    fn garbage_is_refused() {
        let dir = tree(&[]);
        for (file, bytes) in
            [("idxd.ko", &b"not an elf"[..]), ("idxd.ko.xz", b"not xz"), ("idxd.ko.zst", b"")]
        {
            let path = dir.path().join("kernel").join(file);
            fs::write(&path, bytes).unwrap();
            let error = closure(dir.path(), "idxd", RELEASE).unwrap_err();
            assert!(matches!(error, Cause::BadModule { .. } | Cause::File { .. }), "{error}");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn xz_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ko.xz");
        fs::write(&path, XZ_OF_VSVA).unwrap();
        assert_eq!(read(&path).unwrap(), b"vsva");
    }

    #[test]
    fn file_names_give_module_names() {
        assert_eq!(module_name("idxd-bus.ko.xz").as_deref(), Some("idxd_bus"));
        assert_eq!(module_name("idxd.ko").as_deref(), Some("idxd"));
        for other in ["modules.dep", ".ko", "a.ko.sig", "vmlinuz"] {
            assert_eq!(module_name(other), None);
        }
    }
}
