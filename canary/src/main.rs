//! The `no_std` crates in a program that has no standard library to fall back on.
//!
//! It is linked with `-nostdlib -static` and has its own panic handler, so a crate that brings in
//! `std`, even by a feature of a dependency, does not build ("found duplicate lang item"), and one
//! that calls into libc does not link. It then runs one real thing of each crate, since code that
//! is never called is never linked. Its exit code is the number of the first check that failed.
//!
//! To add a crate: a dependency in `Cargo.toml`, a function in `checks.rs`, a line in `CHECKS`.
#![no_std]
#![no_main]

extern crate alloc;

mod bare;
mod checks;

/// Does one real thing with a crate; `None` if it went wrong.
type Check = fn() -> Option<()>;

/// Each crate's name and its check.
const CHECKS: &[(&str, Check)] = &[
    ("mem", checks::mem),
    ("ioasid", checks::ioasid),
    ("pgtable", checks::pgtable),
    ("pci", checks::pci),
    ("iommu", checks::iommu),
    ("vtd", checks::vtd),
    ("vtd driver", checks::vtd_driver),
    ("virtio-iommu", checks::virtio_iommu),
    ("dsa", checks::dsa),
    ("vfio", checks::vfio),
];

/// Called by `bare` with the stack set up; gives the exit code.
fn run() -> u8 {
    for (number, (name, check)) in CHECKS.iter().enumerate() {
        let passed = check().is_some();
        for part in ["canary: ", name, if passed { " ok\n" } else { " FAILED\n" }] {
            bare::print(part);
        }
        if !passed {
            return number as u8 + 1;
        }
    }
    0
}
