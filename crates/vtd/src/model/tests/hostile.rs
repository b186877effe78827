//! Random stimulus: every register, any width and value, tables and queue anywhere. Nothing
//! panics, and each call does a bounded amount of work.

use proptest::prelude::*;
use std::vec;

use super::*;
use crate::model::Counters;
use crate::spec::{registers, VcmdLayout};

#[derive(Clone, Debug)]
enum Action {
    Write {
        offset: u64,
        value: u64,
        width: usize,
    },
    Read {
        offset: u64,
        width: usize,
    },
    /// A value that is likely to mean something, to a register that matters.
    Aim {
        register: usize,
        value: u64,
    },
    Memory {
        at: u64,
        word: u64,
    },
    Fault {
        page: u64,
    },
    /// A device asks for a page, or says that it stops.
    Ask {
        group: u16,
        requester: u16,
        pasid: Option<u32>,
        kind: u8,
    },
    /// The same, where the host's tables translate.
    AskHost {
        cookie: u32,
        group: u16,
    },
    Tick {
        seconds: u64,
    },
    Overflow {
        on: bool,
    },
    Poll {
        budget: u32,
    },
    Complete,
    Lookup {
        requester: u16,
    },
    Reset,
}

fn action() -> impl Strategy<Value = Action> {
    let width = prop::sample::select(std::vec![1usize, 2, 4, 8, 3, 16]);
    let offset = prop_oneof![0u64..0x300, 0xe00u64..0xe40, Just(0x18), Just(0x88), any::<u64>()];
    let aimed = prop_oneof![
        (0u64..0x100_000),
        (0u64..0x100).prop_map(|page| page << 12 | 0x800),
        (0u64..32).prop_map(|bit| 1 << bit),
        any::<u64>(),
        Just(0xc400_0000),
    ];
    let word =
        prop_oneof![(0u64..0x100).prop_map(|page| page << 12 | 1), (0u64..0x80), any::<u64>(),];
    prop_oneof![
        3 => (offset.clone(), any::<u64>(), width.clone())
            .prop_map(|(offset, value, width)| Action::Write { offset, value, width }),
        1 => (offset, width).prop_map(|(offset, width)| Action::Read { offset, width }),
        6 => (0..REGISTERS.len() + 3, aimed.clone())
            .prop_map(|(register, value)| Action::Aim { register, value }),
        3 => (REGISTERS.len()..REGISTERS.len() + 3, aimed)
            .prop_map(|(register, value)| Action::Aim { register, value }),
        6 => ((0u64..0x20_000), word).prop_map(|(word_at, word)| Action::Memory { at: word_at * 8, word }),
        1 => any::<u64>().prop_map(|page| Action::Fault { page: page >> 12 }),
        2 => (any::<u16>(), any::<u16>(), any::<Option<u32>>(), any::<u8>()).prop_map(
            |(group, requester, pasid, kind)| Action::Ask { group, requester, pasid, kind }
        ),
        1 => (0u32..8, 0u16..4).prop_map(|(cookie, group)| Action::AskHost { cookie, group }),
        1 => any::<u64>().prop_map(|seconds| Action::Tick { seconds }),
        1 => any::<bool>().prop_map(|on| Action::Overflow { on }),
        4 => any::<u32>().prop_map(|budget| Action::Poll { budget }),
        2 => Just(Action::Complete),
        2 => any::<u16>().prop_map(|requester| Action::Lookup { requester }),
        1 => Just(Action::Reset),
    ]
}

/// What one call may do to the VM: forget everything twice over is the most a write may ask for.
const INVALIDATIONS_PER_WRITE: u64 = 8;

/// Commands whose end is asked for when the guest's tables are read: translation, root pointer.
const COMMANDS_THAT_READ: u64 = 2;

fn apply(unit: &mut Unit, action: &Action) {
    let mut buffer = [0u8; 16];
    match *action {
        Action::Write { offset, value, width } => {
            buffer[..8].copy_from_slice(&value.to_le_bytes());
            let _ = unit.model.write(offset, &buffer[..width]);
        }
        Action::Read { offset, width } => unit.model.read(offset, &mut buffer[..width]),
        Action::Aim { register, value } => {
            let layout = unit.model.caps().options().virtual_commands;
            let Some(register) = registers(layout).nth(register) else { return };
            let bytes = value.to_le_bytes();
            let width = usize::from(register.width.bytes());
            let _ = unit.model.write(register.offset.into(), &bytes[..width]);
        }
        Action::Memory { at, word } => drop(unit.vm.memory().store_u64(Gpa(at), word)),
        Action::Fault { page } => unit.inject(fault(page)),
        Action::Ask { group, requester, pasid, kind } => {
            let bit = |bit: u8| kind >> bit & 1 != 0;
            let request = PageRequest {
                requester: if bit(0) { device() } else { RequesterId::from_bits(requester) },
                pasid: pasid.map(Pasid::from_field),
                privileged: bit(1),
                execute: bit(2),
                read: bit(3),
                write: bit(4),
                last: bit(5),
                private_data: bit(6).then_some([u64::MAX; 2]),
                ..page_requests::request(group % 512)
            };
            unit.vm.state().asked_for.ask(request);
        }
        Action::AskHost { cookie, group } => {
            unit.vm.state().asked_for.ask_host(cookie, page_requests::request(group));
        }
        Action::Tick { seconds } => {
            let ticked = unit.model.tick(core::time::Duration::from_secs(seconds));
            for message in ticked.effects.messages() {
                assert_eq!(message.address.0 >> 20, 0xfee);
            }
        }
        Action::Overflow { on } => unit.model.inject_page_request_overflow(on),
        Action::Poll { budget } => {
            let polled = unit.model.poll(budget);
            // A message never goes to memory.
            for message in polled.effects.messages() {
                assert_eq!(message.address.0 >> 20, 0xfee);
            }
        }
        Action::Complete => unit.vm.complete(),
        Action::Lookup { requester } => {
            let source = unit.vm.state().contexts.clone();
            if let Some(source) = source {
                let memory = unit.vm.memory();
                let _ = source.lookup(&*memory, RequesterId::from_bits(requester));
            }
        }
        Action::Reset => drop(unit.model.reset()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_panics_and_every_call_is_bounded(
        late: bool,
        owing: bool,
        private_data: bool,
        host_owned: bool,
        layout in prop::sample::select(
            &[None, Some(VcmdLayout::Revision30), Some(VcmdLayout::Revision33)][..]
        ),
        quota in 0u32..4,
        actions in prop::collection::vec(action(), 1..120),
    ) {
        let options = if host_owned { Options::host_owned() } else { Options::default() };
        let mut unit = Unit::with(Options { virtual_commands: layout, private_data, ..options });
        unit.vm.state().owing = owing.then(device);
        unit.vm.state().quota = quota;
        let _ = unit.model.add_device(device());
        if late {
            unit.vm.complete_late();
        }
        for action in &actions {
            let before = (unit.model.counters(), unit.vm.state().issued);
            let calls = unit.vm.state().pasid_calls;
            unit.vm.state().objects.calls.clear();
            apply(&mut unit, action);
            let after = (unit.model.counters(), unit.vm.state().issued);
            let calls = unit.vm.state().pasid_calls - calls;
            let descriptors = after.0.descriptors - before.0.descriptors;
            let issued = after.1 - before.1;
            match action {
                Action::Poll { .. } => {
                    prop_assert!(descriptors <= DESCRIPTORS_PER_POLL.into());
                    let changes = unit.vm.state().objects.calls.len() as u64;
                    prop_assert!(issued <= descriptors + changes + COMMANDS_THAT_READ);
                    prop_assert!(calls <= 1 + changes);
                    prop_assert!(changes <= host_tables::MAX_CHANGES);
                    let requests = |counters: &Counters| {
                        counters.page_requests
                            + counters.page_requests_lost
                            + counters.page_requests_refused
                    };
                    let taken = requests(&after.0) - requests(&before.0);
                    prop_assert!(taken <= PAGE_REQUESTS_PER_POLL.into());
                }
                _ => {
                    prop_assert_eq!(descriptors, 0);
                    let reset = matches!(action, Action::Reset);
                    prop_assert!(reset || unit.vm.state().objects.calls.is_empty());
                    prop_assert!(calls == 0 || reset);
                    prop_assert!(issued <= INVALIDATIONS_PER_WRITE);
                }
            }
            let counters = unit.model.counters();
            let outcomes = counters.pasids_allocated
                + counters.pasids_unavailable
                + counters.pasids_freed
                + counters.pasid_frees_refused
                + counters.virtual_commands_invalid;
            prop_assert_eq!(outcomes, counters.virtual_commands);
            prop_assert!(counters.page_responses_unknown <= counters.page_responses);
            let head = unit.read64(0x80);
            prop_assert!(head < 4096 << (unit.read64(0x90) & 7));
        }
    }
}
