//! What can go wrong between wanting a QEMU or a kernel and having one.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::qemu::Version;
use super::qemu::MINIMUM_VERSION;
use crate::capture::CaptureError;
use crate::stop::Stopped;
use crate::supervise::SuperviseError;

/// What was wanted when something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A QEMU with `vfio-user-pci`.
    Qemu,
    /// A guest kernel and its `idxd` modules.
    Kernel,
    /// Linux 6.1, and a module built for it.
    Linux61,
}

impl Wanted {
    /// The option of `vsva lab` that supplies it.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Qemu => "--qemu PATH",
            Self::Kernel => "--kernel PATH (with --modules DIR)",
            Self::Linux61 => "--vcmd-kernel PATH (with --vcmd-headers DIR)",
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qemu => write!(f, "a QEMU {MINIMUM_VERSION} or newer with vfio-user-pci"),
            Self::Kernel => write!(f, "a Linux kernel for the guest with its idxd modules"),
            Self::Linux61 => write!(f, "Linux 6.1 for the guest, and a module built for it"),
        }
    }
}

/// A QEMU or a kernel that could not be had: what was wanted, what happened, and what would supply it.
#[derive(Debug, thiserror::Error)]
#[error("wanted {wanted}: {cause}\n  {}", cause.remedy(*.wanted))]
pub struct AssetError {
    /// What was wanted.
    pub wanted: Wanted,
    /// What happened.
    pub cause: Cause,
}

/// What happened on the way to an asset.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The machine is not an x86-64 one, for which the packages are.
    #[error("packages are fetched for x86-64 machines only, and this is {0}")]
    Machine(&'static str),
    /// Neither XDG_CACHE_HOME nor HOME names a directory.
    #[error("there is no place for a cache: neither XDG_CACHE_HOME nor HOME is an absolute path")]
    NoCacheDir,
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// `--offline`, and the cache does not have it.
    #[error("it is not in the cache ({}), and --offline forbids fetching it", cache.display())]
    Offline {
        /// The cache that was looked into.
        cache: PathBuf,
    },
    /// A program of the package system is not installed.
    #[error("it would be fetched with {0}, which this machine does not have")]
    NoTool(&'static str),
    /// The archive's keys are not installed.
    #[error("the Debian archive's keys are not installed (looked for {})", path.display())]
    NoKeyring {
        /// The keyring that was looked for.
        path: PathBuf,
    },
    /// The machine's apt configuration names no Debian archive.
    #[error("this machine's apt configuration names no Debian archive to fetch it from")]
    NoMirror,
    /// The address given or configured is not one that a sources list can hold.
    #[error("{0:?} is not an archive address")]
    BadMirror(String),
    /// The package system failed at a step.
    #[error("{step} failed ({status}):\n{said}")]
    Packages {
        /// What it was doing.
        step: String,
        /// How the program ended.
        status: String,
        /// Its last lines.
        said: String,
    },
    /// The package system did not name what it was asked for.
    #[error("the archive at {mirror} offers no {what}")]
    NotOffered {
        /// The archive's address.
        mirror: String,
        /// What was looked for.
        what: String,
    },
    /// A helper program could not be run to its end.
    #[error(transparent)]
    Process(#[from] CaptureError),
    /// The user asked to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The program given does not say that it is QEMU.
    #[error("{} does not answer --version as QEMU does: {said}", path.display())]
    NotQemu {
        /// The program.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// The QEMU given is too old.
    #[error("{} is QEMU {found}", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        found: Version,
    },
    /// The QEMU given was built without the device.
    #[error("{} was built without the vfio-user-pci device", path.display())]
    NoDevice {
        /// The program.
        path: PathBuf,
    },
    /// The file given is not a Linux boot image.
    #[error("{} is not an x86 Linux boot image (vmlinuz): {why}", path.display())]
    NotKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No module tree belongs to the kernel given.
    #[error("no modules of kernel {release} were found (looked in {})", looked.join(", "))]
    NoModules {
        /// The kernel's release.
        release: String,
        /// The directories looked into.
        looked: Vec<String>,
    },
    /// A module is missing from the tree.
    #[error("the module {name} is not in {}", dir.display())]
    NoModule {
        /// The module.
        name: String,
        /// The tree that was searched.
        dir: PathBuf,
    },
    /// A module file cannot be used.
    #[error("the module {} cannot be used: {why}", path.display())]
    BadModule {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program that builds the guest's module is not installed.
    #[error("the guest's kernel module is built with {0}, which this machine does not have")]
    NoCompiler(&'static str),
    /// kbuild cannot work below that path.
    #[error("kernel modules cannot be built below {}: its name has more than plain characters", path.display())]
    BuildPlace {
        /// The directory.
        path: PathBuf,
    },
    /// The guest's module does not build.
    #[error("the guest's kernel module does not build ({status}):\n{said}")]
    Build {
        /// How make ended.
        status: String,
        /// Its last lines.
        said: String,
    },
}

impl Cause {
    /// What the user can do about it.
    fn remedy(&self, wanted: Wanted) -> String {
        let option = wanted.option();
        match self {
            Self::NoKeyring { .. } => {
                format!("install the package debian-archive-keyring, or give {option}")
            }
            Self::NoMirror | Self::BadMirror(_) => {
                format!("give --mirror URL of a Debian archive, or {option}")
            }
            Self::Packages { .. } | Self::NotOffered { .. } => format!(
                "give --mirror URL of another Debian archive, {option}, or --offline to use only the cache"
            ),
            Self::Offline { .. } => format!("run once without --offline, or give {option}"),
            Self::NoCacheDir => format!("set HOME or XDG_CACHE_HOME, or give {option}"),
            Self::TooOld { .. } | Self::NoDevice { .. } | Self::NotQemu { .. } => {
                "give another with --qemu PATH, or leave --qemu out and one is fetched".to_owned()
            }
            Self::NotKernel { .. } => {
                "give another with --kernel PATH, or leave --kernel out and one is fetched".to_owned()
            }
            Self::NoModules { .. } | Self::NoModule { .. } | Self::BadModule { .. } => {
                "give the kernel's own tree with --modules DIR (as /lib/modules/RELEASE), or leave \
                 --kernel out and a kernel is fetched"
                    .to_owned()
            }
            Self::NoCompiler(_) => {
                "install the packages make and gcc, or choose other scenarios with --scenario".to_owned()
            },
            Self::BuildPlace { .. } => {
                "set XDG_CACHE_HOME to a directory with a plain name".to_owned()
            }
            Self::Build { .. } => format!("it takes gcc 12 or newer with its binutils; or give {option}"),
            Self::Stopped(_) => "nothing was left behind".to_owned(),
            Self::Machine(_) | Self::File { .. } | Self::NoTool(_) | Self::Process(_) => {
                format!("give {option}")
            }
        }
    }

    /// Whether the user's own signal is what happened.
    pub fn is_stop(&self) -> bool {
        matches!(
            self,
            Self::Stopped(_) | Self::Process(CaptureError::Process(SuperviseError::Stopped(_)))
        )
    }

    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    pub(super) fn of(self, wanted: Wanted) -> AssetError {
        AssetError { wanted, cause: self }
    }
}
