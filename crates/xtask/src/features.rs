//! Which crates and features have to compile alone.
//!
//! Inside one build of the workspace features are united, so that a crate may use what only its
//! neighbour asked for, and a `driver` may see a `model`. Built alone they cannot.

use crate::{layers, Tree};

/// Pairs of a crate and one of its features (none: the bare crate), for each room with a layer.
pub fn list(tree: &Tree) -> Vec<(&str, Option<&str>)> {
    let mut list = Vec::new();
    for package in tree.packages.iter().filter(|package| layers::is_layered(&package.name)) {
        list.push((package.name.as_str(), None));
        let features = package.features.keys().filter(|feature| *feature != "default");
        list.extend(features.map(|feature| (package.name.as_str(), Some(feature.as_str()))));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Package;

    #[test]
    fn every_feature_is_listed_by_itself() {
        let metadata = r#"[
            {"name": "vtd", "dependencies": [], "features": {"default": ["model"], "model": [], "driver": []}},
            {"name": "guest", "dependencies": [], "features": {"std": []}}]"#;
        let packages: Vec<Package> = serde_json::from_str(metadata).unwrap();
        let tree = Tree { packages, ..Tree::default() };
        let expected = [("vtd", None), ("vtd", Some("driver")), ("vtd", Some("model"))];
        assert_eq!(list(&tree), expected);
    }
}
