//! The record of page requests against a slow model of it, under random calls.
#![cfg(not(loom))]

mod common;

use common::request_model::{run, Place, Step, DEVICES, INDICES, PASIDS, TABLES};
use iommu::{ResponseCode, TakenGroups};
use proptest::prelude::*;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let device = || 0..DEVICES;
    let of = || 1..=PASIDS;
    let place = || (device(), prop::option::weighted(0.8, of()));
    let index = || 0..INDICES;
    let code = || {
        prop_oneof![
            Just(ResponseCode::Success),
            Just(ResponseCode::Invalid),
            Just(ResponseCode::Failure)
        ]
    };
    let send = (place(), index(), prop::bool::weighted(0.7));
    let send = send.prop_map(|(place, index, last)| Step::Send { place, index, last });
    let respond = |place: Place, index, code| Step::Respond { place, index, code };
    let fault = |(queue, cookie, code)| Step::RespondFault { queue, cookie, code };
    let attach = |(place, table)| Step::Attach { place, table };
    let step = prop_oneof![
        30 => send,
        1 => (device(), of()).prop_map(|(device, of)| Step::StopMarker { device, of }),
        12 => Just(Step::Take),
        10 => (0..2usize).prop_map(|queue| Step::TakeFault { queue }),
        8 => (0..8usize, code()).prop_map(|(nth, code)| Step::Answer { nth, code }),
        3 => (place(), index(), code())
            .prop_map(move |(place, index, code)| respond(place, index, code)),
        8 => (0..2usize, 0..3usize, code()).prop_map(fault),
        1 => device().prop_map(|device| Step::Forget { device }),
        5 => (place(), 0..TABLES).prop_map(attach),
        2 => place().prop_map(|place| Step::Detach { place }),
        6 => of().prop_map(|of| Step::Grant { of }),
        1 => of().prop_map(|of| Step::Free { of }),
        1 => Just(Step::Release),
        2 => device().prop_map(|device| Step::Plug { device }),
        4 => (0..3u64).prop_map(|seconds| Step::Tick { seconds }),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_group_is_answered_once(stay in any::<bool>(), steps in steps()) {
        let taken = if stay { TakenGroups::Stay } else { TakenGroups::Withdrawn };
        prop_assert_eq!(run(taken, &steps), Ok(()));
    }
}
