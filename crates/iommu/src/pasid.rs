//! PASIDs: the numbers, and how a VM is granted them.

mod grant;
mod number;
mod report;

pub use grant::{AllocPasidError, FreePasidError, Numbering, PasidUsage, DEFAULT_QUOTA};
pub use number::{DomainId, GuestPasid, HostPasid, Pasid, PasidRange};
pub use report::{GrantState, PasidEntry, PasidReport, VmPasids};
