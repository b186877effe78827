//! PASIDs: the numbers, and how a VM is granted them.

mod grant;
mod number;

pub use grant::{AllocPasidError, FreePasidError, Numbering, PasidUsage, DEFAULT_QUOTA};
pub use number::{DomainId, GuestPasid, HostPasid, Pasid, PasidRange};
