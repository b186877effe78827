//! Linux 6.1, as Debian's bookworm has it: the last long-lived kernel whose `intel-iommu` uses virtual commands.
//!
//! ```text
//!  packages ──► boot image ───────────────────────────────┐
//!          └──► headers, kbuild, C library (kept packed) ─┴─► module built here, with the machine's make and gcc
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::apt::{self, Apt, Archive};
use super::cache::{self, Cache};
use super::error::Cause;
use super::guest_module;
use super::kernel::{find_image, release_of, Kernel};
use super::modules::{self, Module};
use super::Step;

/// The packages that always depend on the suite's kernel and on what builds modules for it.
const PACKAGES: [&str; 2] = ["linux-image-amd64", "linux-headers-amd64"];
/// What the package with the boot image is called.
const IMAGE_PREFIX: &str = "linux-image-";
/// What the packages that build modules are called.
const BUILD_PREFIXES: [&str; 2] = ["linux-headers-", "linux-kbuild-"];
/// What the programs of `linux-kbuild` run on: theirs, because the machine's C library may be older, and libelf missing.
const BUILD_LIBRARIES: [&str; 3] = ["libc6", "libelf1", "zlib1g"];

const ENTRY: &str = "linux-6.1";
const IMAGE: &str = "vmlinuz";
const ARCHIVES: &str = "packages";
const MODULE_ENTRY: &str = "linux-6.1-module";

/// What the cache entry says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    release: String,
    version: String,
}

/// What a cached module was built from: anything else needs another one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Built {
    kernel: Manifest,
    sources: Vec<(String, String)>,
}

/// The kernel without its module.
struct Bare {
    image: PathBuf,
    manifest: Manifest,
    /// The package files that build a module.
    archives: PathBuf,
}

/// The user's own kernel, and the module built in the prepared tree `headers` (as /lib/modules/RELEASE/build).
pub(super) fn at(
    image: &Path,
    headers: &Path,
    cache: &Cache,
    step: &Step<'_>,
) -> Result<Kernel, Cause> {
    let release = release_of(image)?;
    let description = format!("{release} ({})", image.display());
    let scratch = cache.unfinished()?;
    let module = guest_module::build(headers, &release, scratch.path(), step)?;
    Ok(Kernel {
        image: image.to_owned(),
        release,
        description,
        modules: vec![module],
        on_demand: Vec::new(),
    })
}

/// The cached one, if it is there and whole; its module is built if it is missing or outdated.
pub(super) fn cached(cache: &Cache, step: &Step<'_>) -> Option<Result<Kernel, Cause>> {
    let dir = cache.entry(ENTRY);
    let bare = Bare::load(&dir, cache::read_manifest(&dir)?).ok()?;
    Some(bare.with_module(cache, step))
}

/// Fetches it into the cache, and builds its module.
pub(super) fn fetch(cache: &Cache, apt: &Apt<'_>, step: &Step<'_>) -> Result<Kernel, Cause> {
    // Asked before 85 MB are fetched for nothing.
    guest_module::check_tools()?;
    let closure = apt.closure(&PACKAGES)?;
    let (image, build) = select(&closure);
    let offered = |what: &str| apt.not_offered(&format!("Linux 6.1 with {what}"));
    let version = image.first().ok_or_else(|| offered("a package"))?.version.clone();
    let unfinished = cache.unfinished()?;
    let (all, made) = (unfinished.path().join("all"), unfinished.path().join("made"));
    apt.unpack(&format!("Linux {version}"), &image, &all)?;
    let archives = made.join(ARCHIVES);
    fs::create_dir_all(&archives).map_err(Cause::file(&archives))?;
    let found = find_image(&all).ok_or_else(|| offered("a boot image"))?;
    fs::rename(&found, made.join(IMAGE)).map_err(Cause::file(&found))?;
    apt.download("what builds its modules", &build, &archives)?;
    let manifest = Manifest { release: release_of(&made.join(IMAGE))?, version };
    cache::write_manifest(&made, &manifest)?;
    Bare::load(&cache.publish(ENTRY, &made)?, manifest)?.with_module(cache, step)
}

/// The package with the boot image, and those that build a module.
fn select(closure: &[Archive]) -> (Vec<Archive>, Vec<Archive>) {
    let prefixed = |name: &str, prefixes: &[&str]| {
        !PACKAGES.contains(&name) && prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    let chosen = |keep: &dyn Fn(&str) -> bool| {
        closure.iter().filter(|archive| keep(&archive.name)).cloned().collect()
    };
    let image = chosen(&|name| prefixed(name, &[IMAGE_PREFIX]));
    let build = chosen(&|name| prefixed(name, &BUILD_PREFIXES) || BUILD_LIBRARIES.contains(&name));
    (image, build)
}

impl Bare {
    fn load(dir: &Path, manifest: Manifest) -> Result<Self, Cause> {
        let (image, archives) = (dir.join(IMAGE), dir.join(ARCHIVES));
        let found = release_of(&image)?;
        if found != manifest.release {
            return Err(Cause::NotKernel { path: image, why: "it is of another release" });
        }
        fs::read_dir(&archives).map_err(Cause::file(&archives))?;
        Ok(Self { image, manifest, archives })
    }

    fn with_module(self, cache: &Cache, step: &Step<'_>) -> Result<Kernel, Cause> {
        let module = match self.cached_module(cache) {
            Some(module) => module,
            None => self.build_module(cache, step)?,
        };
        let Manifest { release, version } = self.manifest;
        let description = format!("{release} (package version {version})");
        Ok(Kernel {
            image: self.image,
            release,
            description,
            modules: vec![module],
            on_demand: Vec::new(),
        })
    }

    fn built(&self) -> Built {
        Built { kernel: self.manifest.clone(), sources: guest_module::sources() }
    }

    /// The module as it was built from the same sources for the same kernel.
    fn cached_module(&self, cache: &Cache) -> Option<Module> {
        let dir = cache.entry(MODULE_ENTRY);
        let built: Built = cache::read_manifest(&dir)?;
        let path = dir.join(guest_module::FILE);
        let same = built == self.built();
        same.then(|| modules::built(&path, guest_module::NAME, &self.manifest.release).ok())?
    }

    fn build_module(&self, cache: &Cache, step: &Step<'_>) -> Result<Module, Cause> {
        guest_module::check_tools()?;
        let unfinished = cache.unfinished()?;
        let tree = unfinished.path().join("tree");
        apt::unpack_all(&self.archives, &tree, step.stop)?;
        let headers = guest_module::prepare(&tree, &self.manifest.release)?;
        let module =
            guest_module::build(&headers, &self.manifest.release, unfinished.path(), step)?;
        let made = unfinished.path().join("made");
        fs::create_dir(&made).map_err(Cause::file(&made))?;
        let path = made.join(guest_module::FILE);
        fs::write(&path, &module.image).map_err(Cause::file(&path))?;
        cache::write_manifest(&made, &self.built())?;
        cache.publish(MODULE_ENTRY, &made)?;
        Ok(module)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::image;
    use super::super::modules::tests::elf;
    use super::*;
    use crate::stop::Stop;
    use crate::term::Screen;

    const RELEASE: &str = "6.1.0-50-amd64";

    fn archive(name: &str) -> Archive {
        Archive { name: name.to_owned(), version: "6.1.176-1".to_owned(), bytes: 1 }
    }

    #[test]
    fn only_what_boots_and_what_builds_is_taken_from_the_closure() {
        let closure: Vec<_> = [
            "linux-image-amd64",
            "linux-image-6.1.0-50-amd64",
            "linux-headers-amd64",
            "linux-headers-6.1.0-50-amd64",
            "linux-headers-6.1.0-50-common",
            "linux-kbuild-6.1",
            "linux-compiler-gcc-12-x86",
            "gcc-12",
            "libc6",
            "libelf1",
            "zlib1g",
            "udev",
        ]
        .map(archive)
        .into();
        let names = |archives: Vec<Archive>| -> Vec<String> {
            archives.into_iter().map(|archive| archive.name).collect()
        };
        let (image, build) = select(&closure);
        assert_eq!(names(image), ["linux-image-6.1.0-50-amd64"]);
        let expected = [
            "linux-headers-6.1.0-50-amd64",
            "linux-headers-6.1.0-50-common",
            "linux-kbuild-6.1",
            "libc6",
            "libelf1",
            "zlib1g",
        ];
        assert_eq!(names(build), expected);
    }

    /// A cache with the kernel in it.
    fn cache_with_kernel(base: &Path) -> Cache {
        let cache = Cache::open_at(base, &Screen::none(), &Stop::default()).unwrap();
        let unfinished = cache.unfinished().unwrap();
        let made = unfinished.path().join("made");
        fs::create_dir_all(made.join(ARCHIVES)).unwrap();
        fs::write(made.join(IMAGE), image(0x100, format!("{RELEASE} #1\0").as_bytes())).unwrap();
        let manifest = Manifest { release: RELEASE.to_owned(), version: "1".to_owned() };
        cache::write_manifest(&made, &manifest).unwrap();
        cache.publish(ENTRY, &made).unwrap();
        cache
    }

    fn put_module(cache: &Cache, built: &Built) {
        let unfinished = cache.unfinished().unwrap();
        let made = unfinished.path().join("made");
        fs::create_dir(&made).unwrap();
        fs::write(made.join(guest_module::FILE), elf("", RELEASE)).unwrap();
        cache::write_manifest(&made, built).unwrap();
        cache.publish(MODULE_ENTRY, &made).unwrap();
    }

    fn bare(cache: &Cache) -> Bare {
        let dir = cache.entry(ENTRY);
        Bare::load(&dir, cache::read_manifest(&dir).unwrap()).unwrap()
    }

    #[test]
    fn a_module_of_the_same_sources_and_kernel_is_used_again() {
        let base = tempfile::tempdir().unwrap();
        let cache = cache_with_kernel(base.path());
        assert!(bare(&cache).cached_module(&cache).is_none());
        put_module(&cache, &bare(&cache).built());
        let step = Step { screen: &Screen::none(), stop: &Stop::default() };
        let kernel = cached(&cache, &step).unwrap().unwrap();
        assert_eq!(kernel.release, RELEASE);
        assert_eq!(kernel.modules[0].name, guest_module::NAME);
    }

    #[test]
    fn a_module_of_other_sources_or_of_another_kernel_is_not() {
        let base = tempfile::tempdir().unwrap();
        let cache = cache_with_kernel(base.path());
        let (mut sources, mut kernel) = (bare(&cache).built(), bare(&cache).built());
        sources.sources[0].1.push(' ');
        kernel.kernel.version.push('0');
        for outdated in [sources, kernel] {
            put_module(&cache, &outdated);
            assert!(bare(&cache).cached_module(&cache).is_none());
        }
    }

    #[test]
    fn an_entry_that_is_not_whole_is_none() {
        let base = tempfile::tempdir().unwrap();
        let cache = cache_with_kernel(base.path());
        let step = Step { screen: &Screen::none(), stop: &Stop::default() };
        fs::remove_dir(cache.entry(ENTRY).join(ARCHIVES)).unwrap();
        assert!(cached(&cache, &step).is_none());
    }
}
