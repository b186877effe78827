//! What the IOMMU drivers of the older generations did, as code over the objects of a
//! [`Vm`](crate::Vm): it runs on any host (ADR 0004).
//!
//! ```text
//!   VFIO's posted calls                      a VMM that shadows a guest's PASID table
//!        │ decoded                                   │ the guest's entry, when it changes
//!        ▼                                           ▼
//!   Domain: configuration, devices ──────────► Bindings: what is bound by device and PASID
//!        │ nested table of a whole PASID table       │ nested tables of first stages
//!        ▼                                           ▼
//!   trait Vm: page tables, attach, replace, detach, invalidate
//! ```
//!
//! | posted | here |
//! |---|---|
//! | `iommu_attach_pasid_table`, `iommu_detach_pasid_table` | [`Domain::attach_pasid_table`], [`Domain::detach_pasid_table`] |
//! | `VFIO_IOMMU_SET_PASID_TABLE` over the domains of a container | [`set_pasid_table`], [`unset_pasid_table`] |
//! | a guest's entry that goes from table to table | [`replace_pasid_table`] |
//! | `bind_pasid_table`, `unbind_pasid_table` of 2017 | [`Domain::bind_pasid_table`], [`Domain::unbind_pasid_table`] |
//! | `iommu_sva_bind_gpasid`, `iommu_sva_unbind_gpasid` | [`Domain::bind_gpasid`], [`Domain::unbind_gpasid`] |
//! | `iommu_cache_invalidate` | [`Domain::cache_invalidate`] |
//! | `iommu_register_device_fault_handler`, `iommu_report_device_fault`, `iommu_page_response` | [`DeviceFaults`] |
//! | `iommu_bind_guest_msi`, `iommu_unbind_guest_msi` | [`MsiBindings`] |
//!
//! The calls take decoded values: bytes, versions and sizes are the door's business. Unlike the
//! posted code, a call over several devices or domains that fails restores what each had; a device
//! that joins later has the domain's configuration; and requests without PASID are translated as
//! the caller says (S1DSS).
//!
//! ```
//! use iommu::nesting::{Domain, GpasidBind};
//! use iommu::{Host, PasidRange, SoftwareHost, Vm, VmConfig, VtdStageOneFlags};
//! use mem::{Gpa, MemoryMap};
//! use pci::RequesterId;
//!
//! let vm = SoftwareHost::new().create_vm(VmConfig::named("guest"))?;
//! let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x10000)])?);
//! let device = RequesterId::from_bits(0x80);
//! let endpoint = vm.attach(device)?;
//!
//! // Its requests go to guest memory, those with PASID nowhere.
//! let mut domain = Domain::new(vm.clone());
//! domain.add_device(device)?;
//!
//! // One PASID by a first stage of the guest's.
//! let guest = vm.alloc_pasid(PasidRange::ALL)?;
//! let flags = VtdStageOneFlags::empty();
//! let table = GpasidBind { root: Gpa(0x1000), address_width: 48, flags, guest };
//! domain.bind_gpasid(device, &table)?;
//!
//! // No DMA with it passes once the ticket is complete. The PASID is still the VM's.
//! let ticket = domain.unbind_gpasid(device, guest)?.expect("the only user");
//! assert!(vm.is_complete(ticket));
//! vm.free_pasid(guest)?;
//! # drop(endpoint);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bindings;
mod domain;
mod error;
mod faults;
mod invalidate;
mod msi;
mod stream;
mod table;

pub use bindings::{Bindings, Change, Entry, Scope, IDLE_PASIDS, MAX_BINDINGS};
pub use domain::{
    replace_pasid_table, set_pasid_table, unset_pasid_table, Configuration, Domain, GpasidBind,
    MAX_RETIRED,
};
pub use error::NestingError;
pub use faults::{
    DeviceFault, DeviceFaultError, DeviceFaults, FaultHandler, GroupAnswer, GroupResponse,
    NotHandled,
};
pub use invalidate::{CacheInvalidate, Caches, Granularity, InvalidateError, MAX_ADDRESS_COMMANDS};
pub use msi::{MsiBinding, MsiBindings, MsiError, MAX_MSI_BINDINGS};
pub use table::{PasidTableConfig, PasidTableFormat, PasidTableInfo, TableMode, TableModel};

#[doc(no_inline)]
pub use crate::{DefaultSubstream, DescriptorForm};
