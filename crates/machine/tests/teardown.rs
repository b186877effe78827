//! Memory that is not there yet, and ends of all kinds while devices wait for it. Each scenario runs with the guest's own
//! PASID tables and with the host's, and with and without a stage 2 of the host under them.

mod common;

use common::Drive::{Inline, Threads};
use common::{in_every_setup, scenarios};

in_every_setup! {
    untouched_memory_is_copied: scenarios::first_touch, Inline;
    untouched_memory_is_copied_with_threads: scenarios::first_touch, Threads;
    a_page_that_is_refused_ends_the_copy: scenarios::refused_page, Inline;
    what_waits_keeps_nobody_else: scenarios::the_others_go_on, Inline;
    what_waits_keeps_nobody_else_with_threads: scenarios::the_others_go_on, Threads;
    a_storm_beyond_the_queue_passes: scenarios::overflow_storm, Inline;
    a_storm_beyond_the_queue_passes_with_threads: scenarios::overflow_storm, Threads;
    an_unbind_leaves_nobody_waiting: scenarios::unbind, Inline;
    an_unbind_leaves_nobody_waiting_with_threads: scenarios::unbind, Threads;
    a_killed_process_leaves_nobody_waiting: scenarios::process_exit, Inline;
    a_killed_process_leaves_nobody_waiting_with_threads: scenarios::process_exit, Threads;
    a_function_level_reset_forgets_what_was_asked: scenarios::function_reset, Inline;
    a_reset_guest_starts_anew: scenarios::guest_reset, Inline;
    a_dead_guest_leaves_nobody_waiting: scenarios::death, Inline;
    a_dead_guest_leaves_nobody_waiting_with_threads: scenarios::death, Threads;
}
