//! The server behind the lab's guests: the IOMMU and the accelerator over vfio-user.

use crate::lab::{LabServer, ServerError};

/// Starts the server in this process, broken in the named way if a sabotage is given.
///
/// # Errors
/// [`ServerError::Unavailable`]: this build has no device models yet.
pub fn start(_sabotage: Option<&str>) -> Result<Box<dyn LabServer>, ServerError> {
    Err(ServerError::Unavailable("this build has no device models yet".to_owned()))
}
