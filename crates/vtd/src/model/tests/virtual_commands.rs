//! Virtual commands in both layouts, and guests that misuse them. Registers are written as bits.

use super::*;
use crate::spec::VcmdLayout;

/// What each layout looks like to a guest that knows its revision of the specification.
struct Wire {
    layout: VcmdLayout,
    command: u64,
    response: u64,
    /// Where operand and result begin.
    shift: u32,
    /// Status code of "no PASID available" and of "invalid PASID", in place.
    failure: u64,
}

const WIRES: [Wire; 2] = [
    Wire {
        layout: VcmdLayout::Revision30,
        command: 0xe10,
        response: 0xe20,
        shift: 8,
        failure: 2 << 1,
    },
    Wire {
        layout: VcmdLayout::Revision33,
        command: 0xe00,
        response: 0xe10,
        shift: 16,
        failure: 16 << 1,
    },
];
const ALLOCATE: u64 = 1;
const FREE: u64 = 2;
const IN_PROGRESS: u64 = 1;
/// Status code 1.
const UNDEFINED: u64 = 1 << 1;

impl Wire {
    fn unit(&self, quota: u32) -> Unit {
        let options = Options { virtual_commands: Some(self.layout), ..Options::default() };
        let unit = Unit::with(options);
        unit.vm.state().quota = quota;
        unit
    }

    fn free(&self, pasid: u64) -> u64 {
        pasid << self.shift | FREE
    }

    /// Gives a command and polls; what the response register says then.
    fn run(&self, unit: &mut Unit, command: u64) -> u64 {
        let effects = unit.write64(self.command, command);
        assert!(effects.schedule);
        assert_eq!(unit.read64(self.response), IN_PROGRESS);
        assert_eq!(unit.poll().progress, Progress::Idle);
        unit.read64(self.response)
    }
}

fn pasids(unit: &Unit) -> Vec<u32> {
    unit.vm.state().pasids.iter().map(|pasid| pasid.get()).collect()
}

#[test]
fn pasids_are_allocated_and_freed() {
    for wire in &WIRES {
        let mut unit = wire.unit(3);
        for number in 1..=3 {
            assert_eq!(wire.run(&mut unit, ALLOCATE), number << wire.shift);
        }
        assert_eq!(wire.run(&mut unit, ALLOCATE), wire.failure, "over quota");
        assert_eq!(wire.run(&mut unit, wire.free(2)), 0);
        assert_eq!(pasids(&unit), [1, 3]);
        assert_eq!(wire.run(&mut unit, ALLOCATE), 2 << wire.shift);
        let counters = unit.model.counters();
        assert_eq!((counters.pasids_allocated, counters.pasids_unavailable), (4, 1));
        assert_eq!((counters.pasids_freed, counters.pasid_frees_refused), (1, 0));
        assert_eq!(counters.virtual_commands, 6);
    }
}

#[test]
fn a_command_is_in_progress_until_the_next_poll() {
    for wire in &WIRES {
        let mut unit = wire.unit(3);
        assert!(unit.write64(wire.command, ALLOCATE).schedule);
        for _ in 0..3 {
            assert_eq!(unit.read64(wire.response), IN_PROGRESS);
            assert_eq!(unit.vm.state().pasid_calls, 0, "a register access does no work");
        }
        let _ = unit.model.poll(1);
        assert_eq!(unit.read64(wire.response), 1 << wire.shift);
        // Nothing is carried out twice.
        let _ = unit.poll();
        assert_eq!(unit.read64(wire.response), 1 << wire.shift);
        assert_eq!(unit.vm.state().pasid_calls, 1);
    }
}

#[test]
fn a_command_under_another_is_ignored_and_counted() {
    for wire in &WIRES {
        let mut unit = wire.unit(2);
        assert_eq!(wire.run(&mut unit, ALLOCATE), 1 << wire.shift);
        let _ = unit.write64(wire.command, ALLOCATE);
        for _ in 0..10_000 {
            // Neither the command nor its operand can be changed any more, not even in part.
            assert!(!unit.write64(wire.command, wire.free(1)).schedule);
            assert!(!unit.write32(wire.command, FREE as u32).schedule);
            assert!(!unit.write32(wire.command + 4, u32::MAX).schedule);
        }
        assert_eq!(unit.read64(wire.command), ALLOCATE);
        let _ = unit.poll();
        assert_eq!(unit.read64(wire.response), 2 << wire.shift);
        assert_eq!(pasids(&unit), [1, 2]);
        assert_eq!(unit.model.counters().virtual_commands_refused, 30_000);
        assert_eq!(unit.vm.state().pasid_calls, 2);
    }
}

#[test]
fn a_unit_that_offers_none_has_no_such_registers() {
    for wire in &WIRES {
        let mut unit = Unit::new();
        unit.vm.state().quota = 3;
        assert_eq!(unit.write64(wire.command, ALLOCATE), Effects::default());
        let _ = unit.poll();
        for offset in (0xe00..0xe40).step_by(8) {
            assert_eq!(unit.read64(offset), 0, "{offset:#x}");
        }
        assert_eq!(unit.vm.state().pasid_calls, 0);
        assert_eq!(unit.model.counters().virtual_commands_refused, 1);
    }
}

#[test]
fn the_capability_and_the_response_cannot_be_written() {
    for wire in &WIRES {
        let mut unit = wire.unit(3);
        let capability = wire.layout.capability_offset().into();
        assert_eq!(unit.read64(capability), 1);
        for offset in [capability, wire.response] {
            assert_eq!(unit.write64(offset, !1), Effects::default());
        }
        assert_eq!((unit.read64(capability), unit.read64(wire.response)), (1, 0));
    }
}

#[test]
fn what_is_not_the_guests_cannot_be_freed() {
    for wire in &WIRES {
        let mut unit = wire.unit(3);
        assert_eq!(wire.run(&mut unit, ALLOCATE), 1 << wire.shift);
        // Never granted, zero, the largest; then one that was freed already.
        for stranger in [2, 0, 0xf_ffff] {
            assert_eq!(wire.run(&mut unit, wire.free(stranger)), wire.failure);
        }
        assert_eq!(pasids(&unit), [1]);
        assert_eq!(wire.run(&mut unit, wire.free(1)), 0);
        assert_eq!(wire.run(&mut unit, wire.free(1)), wire.failure);
        let counters = unit.model.counters();
        assert_eq!((counters.pasids_freed, counters.pasid_frees_refused), (1, 4));
    }
}

#[test]
fn an_operand_is_never_cut_down_to_a_pasid() {
    for wire in &WIRES {
        let mut unit = wire.unit(1);
        assert_eq!(wire.run(&mut unit, ALLOCATE | !0xff), 1 << wire.shift, "does not count");
        for bit in wire.shift + 20..64 {
            let forged = wire.free(1) | 1 << bit;
            assert_eq!(wire.run(&mut unit, forged), wire.failure, "bit {bit}");
        }
        assert_eq!(pasids(&unit), [1]);
        assert_eq!(unit.vm.state().pasid_calls, 1, "the VM is not bothered");
        let invalid = u64::from(64 - wire.shift - 20);
        assert_eq!(unit.model.counters().virtual_commands_invalid, invalid);
    }
    // Bits 15:8 of the newer layout are reserved: they are not part of the operand.
    let wire = &WIRES[1];
    let mut unit = wire.unit(1);
    assert_eq!(wire.run(&mut unit, ALLOCATE | 0xff00), 1 << 16);
    assert_eq!(wire.run(&mut unit, wire.free(1) | 0xff00), 0);
    assert_eq!(unit.read64(wire.command), 0x0001_0002);
}

#[test]
fn unknown_opcodes_are_answered_as_such() {
    for wire in &WIRES {
        let mut unit = wire.unit(3);
        for opcode in (0..=255).filter(|opcode| ![ALLOCATE, FREE].contains(opcode)) {
            assert_eq!(wire.run(&mut unit, 1 << wire.shift | opcode), UNDEFINED, "{opcode}");
        }
        assert_eq!(unit.vm.state().pasid_calls, 0);
        assert_eq!(unit.model.counters().virtual_commands_invalid, 254);
        // The unit works on.
        assert_eq!(wire.run(&mut unit, ALLOCATE), 1 << wire.shift);
    }
}

#[test]
fn the_byte_of_the_opcode_gives_the_command() {
    for wire in &WIRES {
        let mut unit = wire.unit(0);
        let pasid = Pasid::new(0xabcde).unwrap();
        unit.vm.state().pasids.insert(pasid);
        let command = wire.free(0xabcde);
        // Upper half first; then the bytes of the lower one, downwards.
        assert!(!unit.write32(wire.command + 4, (command >> 32) as u32).schedule);
        for byte in (1..4).rev() {
            let value = [(command >> (8 * byte)) as u8];
            assert!(!unit.model.write(wire.command + byte, &value).schedule);
            assert_eq!(unit.read64(wire.response), 0);
        }
        assert!(unit.model.write(wire.command, &[command as u8]).schedule);
        let _ = unit.poll();
        assert_eq!(unit.read64(wire.response), 0);
        assert!(pasids(&unit).is_empty());
        assert_eq!(unit.model.counters().pasids_freed, 1);
    }
}

#[test]
fn the_host_is_asked_for_numbers_that_the_guests_tables_hold() {
    for (bits, last) in [(1, 1), (12, 0xfff), (20, 0xf_ffff)] {
        let options = Options {
            pasid_bits: Some(bits),
            virtual_commands: Some(VcmdLayout::Revision33),
            ..Options::default()
        };
        let mut unit = Unit::with(options);
        unit.vm.state().quota = 1;
        assert_eq!(WIRES[1].run(&mut unit, ALLOCATE), 1 << 16);
        let asked = unit.vm.state().asked.unwrap();
        assert_eq!((asked.first.get(), asked.last.get()), (1, last), "never PASID 0");
    }
}

#[test]
fn reset_drops_the_command_and_takes_every_pasid_back() {
    for wire in &WIRES {
        let mut unit = wire.unit(3);
        let _ = wire.run(&mut unit, ALLOCATE);
        let _ = wire.run(&mut unit, ALLOCATE);
        let _ = unit.write64(wire.command, ALLOCATE);
        unit.vm.complete_late();
        let ticket = unit.model.reset();
        assert!(!unit.vm.is_complete(ticket));
        assert_eq!(ticket, Ticket::new(unit.vm.state().issued), "not before the PASIDs are out");
        assert_eq!((unit.read64(wire.command), unit.read64(wire.response)), (0, 0));
        let _ = unit.poll();
        assert!(pasids(&unit).is_empty());
        assert_eq!(unit.read64(wire.response), 0);
        assert_eq!(unit.model.counters().virtual_commands, 2, "counters are the host's");
    }
}
