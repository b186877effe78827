//! IOMMU, accelerator and a guest's drivers in one process, with no socket: what an embedder
//! builds on. Each scenario runs with the guest's own PASID tables and with the host's, and with
//! and without a stage 2 of the host under them.

mod common;

use common::Drive::{Inline, Threads};
use common::{in_every_setup, scenarios};
use common::{run, Setup};

in_every_setup! {
    copies_are_translated: scenarios::copies, Inline;
    copies_are_translated_with_threads: scenarios::copies, Threads;
    processes_with_the_same_addresses_see_their_own_memory: scenarios::isolation, Inline;
    processes_with_the_same_addresses_see_their_own_memory_with_threads:
        scenarios::isolation, Threads;
    a_forged_pasid_is_ignored: scenarios::forged_pasid, Inline;
    an_unbound_pasid_moves_nothing_and_is_recorded: scenarios::unbound_pasid, Inline;
    an_unbound_pasid_moves_nothing_and_is_recorded_with_threads: scenarios::unbound_pasid, Threads;
    a_fault_sends_one_message_until_it_is_serviced: scenarios::fault_message, Inline;
    a_page_that_is_taken_away_is_not_used: scenarios::remap, Inline;
    nothing_stale_is_used_after_a_wait_descriptor: |setup| scenarios::unmap_under_copy(setup, 100), Threads;
    nothing_stale_is_used_after_a_wait_descriptor_step_by_step:
        |setup| scenarios::unmap_under_copy(setup, 20), Inline;
    a_wait_descriptor_waits_for_the_access_in_flight: scenarios::unmap_under_access, Inline;
    accessed_and_dirty_bits_are_exact: scenarios::accessed_dirty, Inline;
    a_shared_queue_says_accepted_or_retry: scenarios::shared_queue, Inline;
    plain_stores_to_a_shared_queue_are_refused: scenarios::plain_stores_to_shared, Inline;
    a_reset_ends_the_copies: scenarios::reset_under_copy, Inline;
    the_death_of_a_vm_frees_everything: scenarios::vm_death_under_copy, Inline;
    the_death_of_a_vm_frees_everything_with_threads: scenarios::vm_death_under_copy, Threads;
    two_vms_with_the_same_private_number_never_meet: scenarios::private_numbers, Inline;
    two_vms_with_the_same_private_number_never_meet_with_threads:
        scenarios::private_numbers, Threads;
    a_number_that_is_another_vms_moves_nothing: scenarios::strangers_number, Inline;
    rebinding_leaves_nothing_behind: scenarios::rebind, Inline;
}

#[test]
fn guests_that_number_their_pasids_alike_never_meet() {
    for drive in [Inline, Threads] {
        run(scenarios::own_numbers, Setup::host_owned(drive));
        run(scenarios::own_numbers, Setup::host_owned(drive).over_stage_two());
    }
}
