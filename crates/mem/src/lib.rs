//! Guest memory: typed addresses, checked windows with atomic access, and the mapping itself.
//!
//! ```text
//!  Gpa, len, Access ──► GuestMemory::window ──► Window ──► copy, compare, atomic update
//!                          ▲
//!        MemoryMap: an immutable snapshot of what the functions of one VM reported
//! ```
//!
//! Nothing above this crate touches guest memory through a pointer.
#![no_std]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

mod addr;
mod backing;
mod claims;
mod map;
#[cfg(feature = "mapping")]
mod mapping;
mod memory;
#[cfg(feature = "mapping")]
mod vm_memory;
mod window;

pub use addr::{Gpa, HostAddr, Iova, Range};
pub use backing::{Backing, HeapMemory};
pub use claims::{BackingId, Claim, ClaimError, Claims, ReporterId, MAX_CLAIMS};
pub use map::{LayoutError, MemoryMap, Segment};
#[cfg(feature = "mapping")]
pub use mapping::{MapError, Mapping, Mappings, Policy, SealedFile, MAX_MAPPED};
pub use memory::{Access, GuestMemory, MemError};
#[cfg(feature = "mapping")]
pub use vm_memory::VmMemory;
pub use window::Window;
