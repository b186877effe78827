//! Tests generated from the register table, and accesses of every shape.

use std::format;
use std::string::String;

use super::*;
use crate::spec::{registers, AccessClass, Register, Reset, VcmdLayout, PAGE_SIZE};

fn reset_value(register: &Register, caps: &Caps) -> u64 {
    match (register.reset, register.id) {
        (Reset::Value(value), _) => value,
        (Reset::Capabilities, RegisterId::Capability) => caps.capability().into_bits(),
        (Reset::Capabilities, RegisterId::VirtualCommandCapability) => 1,
        (Reset::Capabilities, _) => caps.extended().into_bits(),
    }
}

fn read(unit: &mut Unit, register: &Register) -> u64 {
    match register.width.bytes() {
        4 => unit.read32(register.offset.into()).into(),
        _ => unit.read64(register.offset.into()),
    }
}

fn write(unit: &mut Unit, register: &Register, value: u64) -> Effects {
    match register.width.bytes() {
        4 => unit.write32(register.offset.into(), value as u32),
        _ => unit.write64(register.offset.into(), value),
    }
}

/// Runs `test` on a unit without virtual commands and on one with each layout.
fn with_each_layout(test: impl Fn(Option<VcmdLayout>, fn(Option<VcmdLayout>) -> Unit)) {
    for layout in [None, Some(VcmdLayout::Revision30), Some(VcmdLayout::Revision33)] {
        test(layout, |virtual_commands| {
            Unit::with(Options { virtual_commands, ..Options::default() })
        });
    }
}

#[test]
fn every_register_comes_up_and_comes_back_with_its_reset_value() {
    with_each_layout(|layout, unit| registers_come_up_and_come_back(unit(layout), layout));
}

fn registers_come_up_and_come_back(mut unit: Unit, layout: Option<VcmdLayout>) {
    let caps = *unit.model.caps();
    for register in registers(layout) {
        assert_eq!(read(&mut unit, register), reset_value(register, &caps), "{}", register.name);
    }
    for register in registers(layout) {
        let _ = write(&mut unit, register, 0x5a5a_5a5a_5a5a_5a5a);
    }
    unit.inject(fault(1));
    let _ = unit.poll();
    unit.inject(fault(2));
    let _ = unit.model.reset();
    let _ = unit.poll();
    for register in registers(layout) {
        assert_eq!(read(&mut unit, register), reset_value(register, &caps), "{}", register.name);
    }
    assert!(unit.vm.state().contexts.is_none());
}

#[test]
fn no_write_changes_a_bit_that_is_not_writable() {
    with_each_layout(|layout, unit| only_writable_bits_change(layout, || unit(layout)));
}

fn only_writable_bits_change(layout: Option<VcmdLayout>, unit: impl Fn() -> Unit) {
    for register in registers(layout) {
        for value in [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa] {
            let mut unit = unit();
            let before = read(&mut unit, register);
            let _ = write(&mut unit, register, value);
            let after = read(&mut unit, register);
            // What a command register shows of its outcome is for the tests of the commands.
            let status = match register.id {
                RegisterId::ContextCommand => 0b11 << 59,
                RegisterId::IotlbInvalidate => 0b11 << 57,
                _ => 0,
            };
            let fixed = !register.writable & !register.clears & !status;
            assert_eq!((before ^ after) & fixed, 0, "{} <- {value:#x}", register.name);
            if register.access == AccessClass::WriteOnly {
                assert_eq!(after, 0, "{}", register.name);
            }
        }
    }
}

#[test]
fn writable_bits_read_back_unless_they_are_commands() {
    with_each_layout(|layout, unit| writable_bits_read_back(layout, || unit(layout)));
}

fn writable_bits_read_back(layout: Option<VcmdLayout>, unit: impl Fn() -> Unit) {
    for register in registers(layout).filter(|r| r.access == AccessClass::ReadWrite) {
        let command = match register.id {
            RegisterId::ContextCommand | RegisterId::IotlbInvalidate => 1 << 63,
            _ => 0,
        };
        let mut unit = unit();
        let value = 0xa5a5_5a5a_3c3c_c3c3 & !command;
        let before = read(&mut unit, register);
        let _ = write(&mut unit, register, value);
        let expected = (before & !register.writable) | (value & register.writable);
        assert_eq!(read(&mut unit, register), expected, "{}", register.name);
    }
}

#[test]
fn an_access_of_any_width_and_place_moves_its_bytes() {
    // RTADDR (0x20) and its neighbours: GSTS before it reads zero, CCMD after it takes bytes.
    let mut unit = Unit::new();
    let _ = unit.write64(0x20, 0x0123_4567_89ab_cc00);
    for offset in 0x1cu64..0x2c {
        for width in [1, 2, 4, 8] {
            let mut data = [0xee; 8];
            unit.model.read(offset, &mut data[..width]);
            for (at, byte) in (offset..).zip(&data[..width]) {
                let word = 0x0123_4567_89ab_cc00u64.to_le_bytes();
                let expected = match at {
                    0x20..=0x27 => word[at as usize - 0x20],
                    _ => 0,
                };
                assert_eq!(*byte, expected, "{offset:#x} {width}");
            }
        }
    }
    for width in [1usize, 2, 4, 8] {
        for offset in 0x1cu64..0x2c {
            let mut unit = Unit::new();
            let _ = unit.model.write(offset, &[0xff; 8][..width]);
            let mut expected = 0u64;
            for at in offset..offset + width as u64 {
                if (0x20..0x28).contains(&at) {
                    expected |= 0xff << (8 * (at - 0x20));
                }
            }
            expected &= !0x3ff;
            assert_eq!(unit.read64(0x20), expected, "{offset:#x} {width}");
        }
    }
}

#[test]
fn accesses_of_other_lengths_are_counted_and_do_nothing() {
    let mut unit = Unit::new();
    for (count, len) in (1..).zip([0, 3, 5, 6, 7, 9, 16, 4096]) {
        let mut data = std::vec![0xff; len];
        let before = unit.model.counters().bad_accesses;
        unit.model.read(0, &mut data);
        assert!(data.iter().all(|byte| *byte == 0));
        assert_eq!(unit.model.write(0x20, &std::vec![0xff; len]), Effects::default());
        assert_eq!(unit.model.counters().bad_accesses, before + 2);
        assert_eq!(unit.model.counters().bad_accesses, 2 * count);
    }
    assert_eq!(unit.read64(0x20), 0);
}

#[test]
fn what_is_no_register_reads_zero() {
    let mut unit = Unit::new();
    for offset in [0x04, 0x30, 0x58, 0x64, 0x70, 0xb8, 0xd8, 0x100, 0xe00, 0xe30] {
        let _ = unit.write32(offset, u32::MAX);
        assert_eq!(unit.read32(offset), 0, "{offset:#x}");
    }
    for offset in [PAGE_SIZE, PAGE_SIZE - 4, 1 << 28, u64::MAX, u64::MAX - 7] {
        let _ = unit.write64(offset, u64::MAX);
        assert_eq!(unit.read64(offset), 0, "{offset:#x}");
    }
}

/// The device page.
const PAGE: &str = include_str!("../../../../../docs/devices/vtd.md");

/// A row of the page's register table.
fn row(register: &Register) -> String {
    let Register { offset, name, width, access, writable, clears, section, .. } = register;
    let bits = 8 * width.bytes();
    let access = match access {
        AccessClass::ReadOnly => "RO",
        AccessClass::ReadWrite => "RW",
        AccessClass::WriteOneToClear => "RW1C",
        AccessClass::WriteOnly => "WO",
    };
    let mask = |mask: u64| if mask == 0 { "–".into() } else { format!("`{mask:#x}`") };
    let reset = match register.reset {
        Reset::Value(value) => format!("`{value:#x}`"),
        Reset::Capabilities => "above".into(),
    };
    let (writable, clears) = (mask(*writable), mask(*clears));
    format!("| {offset:#05x} | {name} | {bits} | {access} | {writable} | {clears} | {reset} | {section} |")
}

#[test]
fn the_device_page_has_the_register_table_and_the_capabilities() {
    let virtual_registers = VcmdLayout::ALL.iter().flat_map(|layout| layout.registers());
    let rows: Vec<String> = REGISTERS.iter().chain(virtual_registers).map(row).collect();
    let missing: Vec<&String> = rows.iter().filter(|row| !PAGE.contains(*row)).collect();
    assert!(missing.is_empty(), "the page lacks these rows:\n{missing:#?}");
    assert_eq!(PAGE.lines().filter(|line| line.starts_with("| 0x")).count(), rows.len());
    let caps = Caps::new(Options::default()).unwrap();
    let offered = Options { virtual_commands: Some(VcmdLayout::Revision33), ..Options::default() };
    let offered = Caps::new(offered).unwrap().extended();
    for value in [caps.capability().into_bits(), caps.extended().into_bits(), offered.into_bits()] {
        assert!(PAGE.contains(&format!("`{value:#018x}`")), "{value:#018x}");
    }
}
