//! Every sequence of commands up to some length, on spaces of two to eight numbers with two sets,
//! against the reference model.

use std::collections::BTreeSet;

use ioasid::{Config, Geometry, Hooks, Space};

use crate::reference::Model;
use crate::run::Run;
use crate::Command::{self, *};
use crate::{Token, READERS};

/// The commands. Both sets exist at the start; the first has one ID on the second shard.
fn alphabet(last: u32) -> Vec<Command> {
    let any = (0, last);
    vec![
        Alloc { set: 0, shard: 0, range: any },
        Alloc { set: 1, shard: 0, range: any },
        Alloc { set: 1, shard: 1, range: (1, 1) },
        Alloc { set: 2, shard: 1, range: any },
        Free(0),
        Free(1),
        Keep { lease: 0, set: 0 },
        Take { set: 0, id: 1 },
        Hold { id: 1, holder: 0 },
        Put(0),
        Pin(1),
        Unpin(0),
        Create { owner: Some(0), quota: 1 },
        Close(0),
        DropSet(0),
        Adjust { set: 0, quota: 1 },
        Adjust { set: 1, quota: 3 },
    ]
}

/// Runs every sequence of exactly `length`; the shorter ones are their beginnings. What is looked
/// at between the steps would release what is parked, so that is done at the end alone.
fn every_sequence(width: u32, length: u32) {
    let last = (1 << width) - 1;
    let alphabet = alphabet(last);
    let count = alphabet.len().pow(length);
    for sequence in 0..count {
        let config =
            Config { width, capacity: None, reserved: Vec::new(), shards: 2, ..Config::default() };
        let space =
            Space::<Token, Geometry<1, 1>>::with_geometry(config, Hooks::default()).unwrap();
        let readers: Vec<_> = (0..READERS).map(|_| space.reader()).collect();
        let model = Model::new(last, BTreeSet::new(), last + 1);
        let mut run = Run::new(&space, &readers, model, 3 + length as usize);
        let start = [
            Create { owner: Some(0), quota: 2.min(last) },
            Create { owner: None, quota: 1 },
            Alloc { set: 1, shard: 1, range: (1, 1) },
        ];
        let steps =
            (0..length).map(|at| &alphabet[sequence / alphabet.len().pow(at) % alphabet.len()]);
        let mut result = Ok(());
        for command in start.iter().chain(steps.clone()) {
            result = result.and_then(|()| run.run(command));
        }
        let result = result.and_then(|()| run.look_in_passing()).and_then(|()| run.end());
        if let Err(error) = result {
            panic!("{error} after {:?} in {width} bits", steps.collect::<Vec<_>>());
        }
    }
}

#[test]
fn every_sequence_in_two_numbers() {
    every_sequence(1, 3);
}

#[test]
fn every_sequence_in_four_numbers() {
    every_sequence(2, 4);
}

#[test]
fn every_sequence_in_eight_numbers() {
    every_sequence(3, 4);
}
