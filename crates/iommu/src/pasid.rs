//! PASIDs: the numbers, their users in a kernel, and how a VM is granted them.
//!
//! ```text
//!  driver ─► Consumer ─► PasidAllocator ─┬─ bare metal ────────────────────► ID space of the host
//!                        (one route for   └─ guest: PasidCommands ─► VMM ─► Vm::alloc_pasid ─┘
//!                         the machine)       virtual commands,              quota, numbering
//!                                            virtio requests
//! ```
//!
//! The two ends are each other's counterpart: what a guest's [`PasidAllocator`] asks for through a
//! [`PasidCommands`], the VMM asks the host for through the guest's [`Vm`](crate::Vm).
//!
//! ```
//! use iommu::pasid::{Consumer, FreeError, PasidRange, Route, Scope};
//! use iommu::SoftwareHost;
//!
//! let host = SoftwareHost::new();
//! let pasids = host.pasid_allocator();
//! assert_eq!(pasids.route(), Route::BareMetal);
//!
//! // Two drivers. Neither has a domain yet, and none is needed.
//! let one = Consumer::init(&pasids, Scope::Bus(0))?;
//! let other = Consumer::<()>::init(&pasids, Scope::Bus(0))?;
//! let pasid = one.alloc(PasidRange::ALL, "queue 7")?;
//! assert_eq!(one.find(pasid).as_deref(), Some(&"queue 7"));
//! assert_eq!(other.free(pasid), Err(FreeError::NotFound(pasid)), "a number grants nothing");
//!
//! // What a consumer leaves behind is given back for it, and counted.
//! assert_eq!(one.exit().freed, 1);
//! assert_eq!(host.pasid_report().live, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocator;
mod asked;
mod commands;
mod consumer;
mod grant;
mod number;
mod report;
pub mod translation;

pub use allocator::{PasidAllocator, PasidOps, Route, Scope};
pub use commands::{CommandError, PasidCommands};
pub use consumer::{AllocError, Consumer, Exited, FreeError, InitError};
pub use grant::{AllocPasidError, FreePasidError, Numbering, PasidUsage, DEFAULT_QUOTA};
pub use number::{DomainId, GuestPasid, HostPasid, Pasid, PasidRange};
pub use report::{BooksError, GrantState, PasidEntry, PasidReport, VmPasids};
