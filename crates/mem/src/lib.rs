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
#[cfg(feature = "std")]
extern crate std;

mod addr;
mod backing;
mod claims;
mod map;
mod memory;
mod window;

pub use addr::{Gpa, HostAddr, Iova, Range};
pub use backing::{Backing, HeapMemory};
pub use claims::{BackingId, Claim, ClaimError, Claims, ReporterId, MAX_CLAIMS};
pub use map::{LayoutError, MemoryMap, Segment};
pub use memory::{Access, GuestMemory, MemError};
pub use window::Window;
