//! VFIO's user API byte for byte: a host end, and a client that is an [`iommu::Host`].
#![no_std]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

mod argument;
mod client;
mod counters;
mod dispatcher;
mod errno;
mod fault;
mod invalidation;
mod number;
mod refusal;
pub mod spec;
mod transport;

pub use argument::{ArgumentError, MAX_ARGUMENT};
pub use client::{Client, ClientVm, Failures};
pub use dispatcher::{Container, Dispatcher, DispatcherCounts, MAX_CONTAINERS, MAX_MAPPINGS};
pub use errno::Errno;
pub use number::{Request, Revision};
pub use refusal::Refusal;
pub use transport::{File, Handle, Reply, Transport};
