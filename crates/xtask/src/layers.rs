//! Dependencies point down: from a layer to a lower one, never upward and never sideways.
//!
//! Normal and build dependencies count, optional ones too. What a crate's tests depend on does
//! not: there a model may meet its driver.

use crate::{Error, Kind, Tree, Verdict};

/// Which layer each room is in. A room that is not here is refused, so that a new one has to be
/// placed; `docs/architecture.md` has the same table with what lives where.
const LAYERS: [(&str, u8); 14] = [
    ("vsva", 5),
    ("vfio-user", 4),
    ("machine", 4),
    ("vtd", 3),
    ("smmuv3", 3),
    ("virtio-iommu", 3),
    ("dsa", 3),
    ("vfio", 3),
    ("iommu", 2),
    ("pgtable", 1),
    ("pci", 1),
    ("mem", 0),
    ("ioasid", 0),
    ("guest-protocol", 0),
];

/// Rooms for development, which may use everything and which nothing may use, but for build
/// scripts.
const DEV_ROOMS: [&str; 4] = ["guest", "fuzz", "benches", "xtask"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Layer(u8),
    Dev,
}

fn room(name: &str) -> Option<Room> {
    if DEV_ROOMS.contains(&name) {
        return Some(Room::Dev);
    }
    LAYERS.iter().find(|(room, _)| *room == name).map(|&(_, layer)| Room::Layer(layer))
}

/// Whether `name` is a room with a layer.
pub(crate) fn is_layered(name: &str) -> bool {
    matches!(room(name), Some(Room::Layer(_)))
}

/// Checks every arrow between packages of the workspace.
pub fn check(tree: &Tree) -> Result<Verdict, Error> {
    let mut violations = Vec::new();
    let mut arrows = 0;
    for package in &tree.packages {
        let from = &package.name;
        let Some(from_room) = room(from) else {
            violations.push(format!("`{from}` is in no layer: place it in xtask's table"));
            continue;
        };
        let own = package.dependencies.iter().filter(|dependency| {
            dependency.source.is_none() && tree.packages.iter().any(|p| p.name == dependency.name)
        });
        for dependency in own.filter(|dependency| dependency.kind != Kind::Dev) {
            arrows += 1;
            if let Some(reason) = refuse(from_room, &dependency.name, dependency.kind) {
                let kind = if dependency.kind == Kind::Build { " (build)" } else { "" };
                violations.push(format!("{from} -> {}{kind}: {reason}", dependency.name));
            }
        }
    }
    let looked_at = format!("{} crates, {arrows} arrows", tree.packages.len());
    Ok(Verdict { violations, looked_at })
}

/// Why there may be no arrow from a crate in `from` to `to`.
fn refuse(from: Room, to: &str, kind: Kind) -> Option<String> {
    match (from, room(to)?) {
        (_, Room::Dev) if kind == Kind::Build => None,
        (_, Room::Dev) => Some(format!("nothing may depend on `{to}`")),
        (Room::Dev, Room::Layer(_)) => None,
        (Room::Layer(from), Room::Layer(to)) if to < from => None,
        (Room::Layer(from), Room::Layer(to)) => {
            let direction = if to > from { "upward" } else { "sideways" };
            Some(format!("points {direction}, from layer {from} to layer {to}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Dependency, Package};

    fn package(name: &str, dependencies: Vec<Dependency>) -> Package {
        Package { name: name.to_owned(), dependencies, features: BTreeMap::new() }
    }

    fn violations(arrows: &[(&str, &str, Kind)], others: &[&str]) -> Vec<String> {
        let mut tree = Tree::default();
        let names =
            arrows.iter().flat_map(|&(from, to, _)| [from, to]).chain(others.iter().copied());
        for name in names {
            if !tree.packages.iter().any(|package| package.name == name) {
                tree.packages.push(package(name, Vec::new()));
            }
        }
        for &(from, to, kind) in arrows {
            let package = tree.packages.iter_mut().find(|package| package.name == from).unwrap();
            package.dependencies.push(Dependency { name: to.to_owned(), kind, source: None });
        }
        check(&tree).unwrap().violations
    }

    #[test]
    fn arrows_down_pass() {
        let arrows = [
            ("vsva", "machine", Kind::Normal),
            ("vsva", "vfio-user", Kind::Normal),
            ("machine", "vtd", Kind::Normal),
            ("dsa", "iommu", Kind::Normal),
            ("iommu", "mem", Kind::Build),
            ("guest", "dsa", Kind::Normal),
        ];
        assert_eq!(violations(&arrows, &[]), [""; 0]);
    }

    #[test]
    fn an_arrow_up_or_sideways_is_printed() {
        let arrows = [
            ("iommu", "machine", Kind::Normal),
            ("machine", "vfio-user", Kind::Normal),
            ("mem", "iommu", Kind::Build),
        ];
        assert_eq!(
            violations(&arrows, &[]),
            [
                "iommu -> machine: points upward, from layer 2 to layer 4",
                "machine -> vfio-user: points sideways, from layer 4 to layer 4",
                "mem -> iommu (build): points upward, from layer 0 to layer 2",
            ]
        );
    }

    #[test]
    fn tests_may_look_up() {
        assert_eq!(violations(&[("iommu", "dsa", Kind::Dev)], &[]), [""; 0]);
    }

    #[test]
    fn only_build_scripts_use_dev_rooms() {
        assert_eq!(violations(&[("vsva", "guest", Kind::Build)], &[]), [""; 0]);
        let found = violations(&[("vsva", "guest", Kind::Normal)], &[]);
        assert_eq!(found, ["vsva -> guest: nothing may depend on `guest`"]);
    }

    #[test]
    fn a_room_without_a_layer_is_refused() {
        let found = violations(&[], &["attic"]);
        assert_eq!(found, ["`attic` is in no layer: place it in xtask's table"]);
    }

    #[test]
    fn a_crate_of_the_registry_is_no_room_even_with_a_room_s_name() {
        let mut tree = Tree::default();
        let source = Some("registry".to_owned());
        let dependency = Dependency { name: "vsva".to_owned(), kind: Kind::Normal, source };
        for (name, dependencies) in [("mem", vec![dependency]), ("vsva", Vec::new())] {
            tree.packages.push(package(name, dependencies));
        }
        assert_eq!(check(&tree).unwrap().violations, [""; 0]);
    }
}
