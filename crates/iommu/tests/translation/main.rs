//! The table by which a VM's processors translate PASIDs: when it opens and closes, relative to
//! the devices' table, and what becomes of whoever is late, refused, or gone.
#![cfg(not(loom))]
#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod endings;
mod layout;
mod model;
mod scenarios;
mod shared;
mod sharing;
mod submissions;
mod threads;

#[test]
fn it_opens_last_and_closes_first() {
    scenarios::order().unwrap();
}

#[test]
fn a_refusal_of_anothers_leaves_nothing() {
    scenarios::rollback().unwrap();
}

#[test]
fn what_it_has_no_place_for_is_not_bound() {
    scenarios::refusal().unwrap();
}

#[test]
fn what_is_unbound_is_refused_to_the_submitter() {
    scenarios::closed().unwrap();
}

#[test]
fn equal_numbers_of_two_guests_are_different_ones_of_the_hosts() {
    scenarios::numbers().unwrap();
}

#[test]
fn an_unbind_waits_for_submissions() {
    scenarios::in_flight().unwrap();
}
