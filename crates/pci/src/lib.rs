//! PCI functions without sockets: requester ids, configuration space, capabilities, BARs, MSI-X.
#![no_std]

extern crate alloc;

mod function;
mod requester;

pub use function::{Bar, BarKind, Function, InterruptSink};
pub use requester::RequesterId;
