//! VFIO's door as it was posted, byte for byte: groups and containers, a guest's PASID tables,
//! invalidation, doorbells, rings of faults.

#[path = "../../../iommu/tests/common/mock.rs"]
mod mock;

mod capabilities;
mod config;
mod gpasid;
mod groups;
mod hostile;
mod invalidate;
mod iommufd;
mod msi;
mod rig;
mod rings;
