//! Scenarios that end in a verdict.

mod data;
mod faults;
mod lazy;
mod races;
mod shared;
mod teardown;
mod tenants;

pub use data::{accessed_dirty, copies, forged_pasid, isolation, rebind, remap};
pub use faults::{fault_message, unbound_pasid};
pub use lazy::{first_touch, overflow_storm, refused_page, the_others_go_on};
pub use races::{reset_under_copy, unmap_under_access, unmap_under_copy, vm_death_under_copy};
pub use shared::{plain_stores_to_shared, shared_queue};
pub use teardown::{death, function_reset, guest_reset, process_exit, unbind};
pub use tenants::{own_numbers, private_numbers, strangers_number};

/// Where processes have their memory.
pub const SOURCE: u64 = 0x7f12_3456_7000;
pub const DESTINATION: u64 = 0x5555_0000_0000;
pub const RECORD: u64 = 0x7ffe_0000_0100;
/// The three of them, as a copy takes them.
pub const COPY: [u64; 3] = [SOURCE, DESTINATION, RECORD];
