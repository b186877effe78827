//! Reading manifests.

use toml::{Table, Value};

use crate::{Error, Tree};

/// The manifest at `path`; `None` if there is none.
pub(crate) fn parse(tree: &Tree, path: &str) -> Result<Option<Table>, Error> {
    let parse =
        |text: &str| text.parse().map_err(|error| Error::Manifest { path: path.to_owned(), error });
    tree.file(path).map(|file| parse(&file.text)).transpose()
}

/// The table under `key`.
pub(crate) fn table<'t>(parent: &'t Table, key: &str) -> Option<&'t Table> {
    parent.get(key).and_then(Value::as_table)
}
