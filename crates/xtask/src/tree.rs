//! What the checks look at: the workspace's packages and its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io, str};

use serde::Deserialize;

/// A workspace as `cargo metadata` and git see it.
#[derive(Debug, Default)]
pub struct Tree {
    /// The workspace's own packages.
    pub packages: Vec<Package>,
    /// Its text files, those that git would not ignore; sorted by path.
    pub files: Vec<File>,
}

/// A package of the workspace.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its direct dependencies, optional ones included.
    pub dependencies: Vec<Dependency>,
    /// Its features and what each turns on.
    #[serde(default)]
    pub features: BTreeMap<String, Vec<String>>,
}

/// A direct dependency as its package declares it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Dependency {
    /// The package depended on, whatever it is renamed to.
    pub name: String,
    /// What the dependency is for.
    #[serde(default)]
    pub kind: Kind,
    /// Where it comes from; `None` for a path.
    pub source: Option<String>,
}

/// What a dependency is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// The package itself.
    #[default]
    Normal,
    /// Its tests, examples and benchmarks.
    Dev,
    /// Its build script.
    Build,
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None | Some("normal") => Ok(Self::Normal),
            Some("dev") => Ok(Self::Dev),
            Some("build") => Ok(Self::Build),
            Some(other) => Err(serde::de::Error::custom(format!("dependency kind `{other}`"))),
        }
    }
}

/// A text file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Its path below the root, with `/` between the parts.
    pub path: String,
    /// What is in it.
    pub text: String,
}

impl File {
    /// The crate whose folder the file is in.
    pub fn package(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }

    /// Whether it is a Rust source file of the workspace (a check's fixture is not).
    pub fn is_source(&self) -> bool {
        self.path.ends_with(".rs") && self.package().is_some() && !self.is_fixture()
    }

    /// Whether it is a check's fixture, wrong on purpose.
    pub fn is_fixture(&self) -> bool {
        self.path.starts_with("crates/xtask/tests/fixtures/")
    }
}

/// Why the workspace could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be started.
    #[error("cannot run `{program}`: {error}")]
    Start {
        /// What was run.
        program: String,
        /// What the system said.
        error: io::Error,
    },
    /// A program failed.
    #[error("`{program}` failed: {stderr}")]
    Failed {
        /// What was run.
        program: String,
        /// What it said.
        stderr: String,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// `cargo metadata` printed something unexpected.
    #[error("cannot understand `cargo metadata`: {0}")]
    Metadata(#[from] serde_json::Error),
    /// A manifest is not TOML.
    #[error("cannot understand {path}: {error}")]
    Manifest {
        /// Which manifest.
        path: String,
        /// What is wrong with it.
        error: toml::de::Error,
    },
    /// A file that every workspace has is missing.
    #[error("there is no {0}")]
    Missing(&'static str),
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

impl Tree {
    /// Reads the workspace at `root`.
    pub fn read(root: &Path) -> Result<Self, Error> {
        Ok(Self { packages: packages(root)?, files: files(root)? })
    }

    /// The file at `path`, if there is one.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }
}

fn packages(root: &Path) -> Result<Vec<Package>, Error> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version=1", "--no-deps"]).current_dir(root);
    let metadata: Metadata = serde_json::from_slice(&output(&mut command)?)?;
    Ok(metadata.packages)
}

fn files(root: &Path) -> Result<Vec<File>, Error> {
    let mut git = Command::new("git");
    // A checkout that belongs to another user (a container's mount) is read all the same.
    git.args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ])
    .current_dir(root);
    let listing = output(&mut git)?;
    let mut paths: Vec<&str> =
        listing.split(|&byte| byte == 0).filter_map(|path| str::from_utf8(path).ok()).collect();
    paths.sort_unstable();
    paths.dedup();
    let mut files = Vec::new();
    for path in paths {
        let full: PathBuf = root.join(path);
        if !full.is_file() {
            continue; // deleted and not yet committed, or a folder
        }
        let bytes =
            fs::read(&full).map_err(|error| Error::Read { path: path.to_owned(), error })?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

fn output(command: &mut Command) -> Result<Vec<u8>, Error> {
    let program = format!("{command:?}");
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return Err(Error::Start { program, error }),
    };
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Failed { program, stderr });
    }
    Ok(output.stdout)
}
