use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::function::{Bar, BarKind};
use crate::spec::{
    AtsCapabilities, ClassCode, DeviceCapabilities, DeviceCapabilities2, DeviceControl,
    PasidCapabilities,
};

const HEADER: Header = Header {
    vendor: 0x8086,
    device: 0x0b25,
    class: ClassCode::SYSTEM_PERIPHERAL,
    revision: 3,
    subsystem_vendor: 0x1234,
    subsystem: 0x5678,
};
const BAR0: Bar = Bar { index: 0, kind: BarKind::Memory64, prefetchable: true, size: 0x1_0000 };
const BAR2: Bar = Bar { index: 2, kind: BarKind::Memory64, prefetchable: true, size: 0x2_0000 };
const BAR4: Bar = Bar { index: 4, kind: BarKind::Memory32, prefetchable: false, size: 0x1000_0000 };
const MSIX: MsiXCapability = MsiXCapability {
    vectors: 9,
    table: BarOffset { bar: 0, offset: 0x2000 },
    pending: BarOffset { bar: 0, offset: 0x3000 },
};

/// The accelerator's configuration space, as dsa.md §1 gives it.
fn accelerator() -> ConfigSpace {
    let express = ExpressCapability {
        device: DeviceCapabilities::from_bits(0x1000_8022),
        device2: DeviceCapabilities2::from_bits(0x1073_0810),
        control: DeviceControl::from_bits(0x2910),
    };
    ConfigSpace::builder(HEADER)
        .bars(&[BAR0, BAR2, BAR4])
        .express(0x40, express)
        .msix(0x80, MSIX)
        .power(0x90)
        .serial_number(0x100, SerialNumber(0x1122_3344_5566_7788))
        .ats(0x220, AtsCapability(AtsCapabilities::from_bits(0x0060)))
        .pasid(0x230, PasidCapability(PasidCapabilities::from_bits(0x1404)))
        .pri(0x240, PriCapability { capacity: 0x200, response_pasid_required: true })
        .build()
        .unwrap()
}

fn read<const N: usize>(config: &ConfigSpace, offset: u16) -> [u8; N] {
    let mut data = [0; N];
    config.read(offset, &mut data);
    data
}

fn read16(config: &ConfigSpace, offset: u16) -> u16 {
    u16::from_le_bytes(read(config, offset))
}

fn read32(config: &ConfigSpace, offset: u16) -> u32 {
    u32::from_le_bytes(read(config, offset))
}

fn write16(config: &mut ConfigSpace, offset: u16, value: u16) -> ConfigEffects {
    config.write(offset, &value.to_le_bytes())
}

fn write32(config: &mut ConfigSpace, offset: u16, value: u32) -> ConfigEffects {
    config.write(offset, &value.to_le_bytes())
}

/// Typed from the specification and dsa.md §1.
#[test]
fn golden_registers() {
    let config = accelerator();
    let golden: [(u16, u32); 24] = [
        (0x00, 0x0b25_8086),
        (0x04, 0x0010_0000),
        (0x08, 0x0880_0003),
        (0x10, 0x0000_000c),
        (0x14, 0),
        (0x20, 0),
        (0x2c, 0x5678_1234),
        (0x34, 0x40),
        (0x3c, 0),
        (0x40, 0x0092_8010),
        (0x44, 0x1000_8022),
        (0x48, 0x0000_2910),
        (0x64, 0x1073_0810),
        (0x80, 0x0008_9011),
        (0x84, 0x2000),
        (0x88, 0x3000),
        (0x90, 0x0003_0001),
        (0x94, 0x0000_0008),
        (0x100, 0x2201_0003),
        (0x220, 0x2301_000f),
        (0x224, 0x0000_0060),
        (0x230, 0x2401_001b),
        (0x234, 0x0000_1404),
        (0x240, 0x0001_0013),
    ];
    for (offset, value) in golden {
        assert_eq!(read32(&config, offset), value, "at {offset:#x}");
    }
    assert_eq!(read32(&config, 0x244), 0x8100_0000);
    assert_eq!(read32(&config, 0x248), 0x200);
    assert_eq!(read32(&config, 0x104), 0x5566_7788);
    assert_eq!(read32(&config, 0x108), 0x1122_3344);
}

#[test]
fn both_lists_reach_every_capability() {
    let config = accelerator();
    let mut found = Vec::new();
    let mut at = u16::from(read::<1>(&config, 0x34)[0]);
    while at != 0 {
        let [id, next] = read(&config, at);
        found.push(u16::from(id));
        at = u16::from(next);
    }
    assert_eq!(found, [0x10, 0x11, 0x01]);
    found.clear();
    let mut at = 0x100;
    while at != 0 {
        let header = read32(&config, at);
        found.push(header as u16);
        at = (header >> 20) as u16;
    }
    assert_eq!(found, [0x03, 0x0f, 0x1b, 0x13]);
}

/// What Linux's `pci_read_bases` and SeaBIOS do.
#[test]
fn bars_are_sized_by_writing_all_ones() {
    let mut config = accelerator();
    let effects = config.write(0x10, &[0xff; 24]);
    assert!(effects.bars);
    let sized: [u32; 6] = core::array::from_fn(|i| read32(&config, 0x10 + 4 * i as u16));
    assert_eq!(sized, [0xffff_000c, u32::MAX, 0xfffe_000c, u32::MAX, 0xf000_0000, 0]);

    let _ = write32(&mut config, 0x10, 0xe000_ffff);
    let _ = write32(&mut config, 0x14, 0x38);
    assert_eq!(config.bar_address(0), Some(0x38_e000_0000));
    assert_eq!(read32(&config, 0x10), 0xe000_000c);
    let _ = write32(&mut config, 0x20, 0xe123_4567);
    assert_eq!(config.bar_address(4), Some(0xe000_0000));
    assert_eq!((config.bar_address(1), config.bar_address(6)), (None, None));
    assert!(!write32(&mut config, 0x20, 0xe000_0000).bars, "the same address again");
}

/// Linux reads COMMAND back before it sets bus master; a lost bit would unmap the BARs.
#[test]
fn command_is_stored_as_written() {
    let mut config = accelerator();
    let effects = write16(&mut config, 0x04, 0x0002);
    assert_eq!((effects.memory_space(), effects.bus_master()), (Some(true), None));
    let command = read16(&config, 0x04);
    let effects = write16(&mut config, 0x04, command | 0x0004);
    assert_eq!((effects.memory_space(), effects.bus_master()), (None, Some(true)));
    assert_eq!(read16(&config, 0x04), 0x0006);
    assert_eq!(write16(&mut config, 0x04, 0x0006), ConfigEffects::default());
    let _ = write16(&mut config, 0x04, 0xffff);
    assert_eq!(read16(&config, 0x04), 0x0546, "I/O space and the reserved bits stay clear");
    let effects = config.write(0x04, &[0]);
    assert_eq!(effects.bus_master(), Some(false), "one byte is enough");
}

/// The order in which Linux 6.1 enables them, and what it checks on the way.
#[test]
fn pasid_page_requests_and_ats_are_enabled_in_turn() {
    let mut config = accelerator();
    let effects = write16(&mut config, 0x236, 0x0001);
    assert!(effects.pasid.is_some_and(|change| change.to.enable()));

    let effects = write16(&mut config, 0x244, 0x0002);
    assert!(effects.pri_reset && effects.pri.is_none());
    assert_eq!(read16(&config, 0x244), 0, "the reset bit reads as zero");
    assert_eq!(read16(&config, 0x246), 0x8100, "stopped, PASID required");
    let effects = write32(&mut config, 0x24c, 32);
    assert_eq!(effects.pri_allocation, Some(Change { from: 0, to: 32 }));
    let effects = write16(&mut config, 0x244, 0x0001);
    assert!(effects.pri.is_some_and(|change| change.to.enable()));
    assert_eq!(read16(&config, 0x246), 0x8000);

    let effects = write16(&mut config, 0x226, 0x8000);
    assert!(effects.ats.is_some_and(|change| change.to.enable()));
    assert_eq!((read16(&config, 0x226), read16(&config, 0x236)), (0x8000, 1));

    let effects = write16(&mut config, 0x244, 0x0000);
    assert!(effects.pri.is_some_and(|change| !change.to.enable()));
    assert_eq!(read16(&config, 0x246), 0x8100);
    // A function with requests still out says so until they are answered.
    config.set_page_requests_stopped(false);
    assert_eq!(read16(&config, 0x246), 0x8000);
}

#[test]
fn resetting_page_requests_needs_them_disabled() {
    let mut config = accelerator();
    let _ = write16(&mut config, 0x244, 0x0001);
    assert!(!write16(&mut config, 0x244, 0x0003).pri_reset);
    let effects = write16(&mut config, 0x244, 0x0002);
    assert!(effects.pri_reset && effects.pri.is_some(), "disabled by the same write");
}

#[test]
fn page_request_errors_stay_until_one_is_written() {
    let mut config = accelerator();
    config.page_response_failed();
    config.unexpected_page_response();
    assert_eq!(read16(&config, 0x246), 0x8103);
    let _ = write16(&mut config, 0x246, 0x0001);
    assert_eq!(read16(&config, 0x246), 0x8102);
    let _ = write16(&mut config, 0x246, 0);
    assert_eq!(read16(&config, 0x246), 0x8102);
}

#[test]
fn enabling_page_requests_clears_their_errors() {
    let mut config = accelerator();
    let _ = write16(&mut config, 0x244, 0x0001);
    config.page_response_failed();
    config.unexpected_page_response();
    let _ = write16(&mut config, 0x244, 0x0001);
    assert_eq!(read16(&config, 0x246), 0x8003, "it was enabled already");
    let _ = write16(&mut config, 0x244, 0x0000);
    assert_eq!(read16(&config, 0x246), 0x8103);
    let _ = write16(&mut config, 0x244, 0x0001);
    assert_eq!(read16(&config, 0x246), 0x8000);
}

#[test]
fn unsupported_pasid_permissions_cannot_be_enabled() {
    let mut config = accelerator();
    let _ = write16(&mut config, 0x236, 0xffff);
    assert_eq!(read16(&config, 0x236), 0x0005, "enable and privileged, no execute");
}

#[test]
fn function_reset_is_asked_for_and_reads_as_zero() {
    let mut config = accelerator();
    let control = read16(&config, 0x48);
    let effects = write16(&mut config, 0x48, control | 0x8000);
    assert!(effects.function_reset && effects.device_control.is_none());
    assert_eq!(read16(&config, 0x48), 0x2910);
    assert!(!write16(&mut config, 0x48, control).function_reset);

    let without =
        ExpressCapability { device: DeviceCapabilities::new(), ..ExpressCapability::new() };
    let mut config = ConfigSpace::builder(HEADER).express(0x40, without).build().unwrap();
    assert!(!write16(&mut config, 0x48, 0x8000).function_reset);
}

#[test]
fn pending_transactions_show_in_device_status() {
    let mut config = accelerator();
    config.set_transactions_pending(true);
    let _ = write16(&mut config, 0x4a, 0xffff);
    assert_eq!(read16(&config, 0x4a), 0x0020);
    config.set_transactions_pending(false);
    assert_eq!(read16(&config, 0x4a), 0);
}

#[test]
fn states_between_d0_and_d3_do_not_exist() {
    let mut config = accelerator();
    assert_eq!(write16(&mut config, 0x94, 0x0001), ConfigEffects::default());
    assert_eq!(read16(&config, 0x94), 0x0008);
    assert_eq!(write16(&mut config, 0x94, 0x0003).power, Some(Change { from: 0, to: 3 }));
    assert_eq!(read16(&config, 0x94), 0x000b);
    assert_eq!(write16(&mut config, 0x94, 0x0002), ConfigEffects::default());
    assert_eq!(write16(&mut config, 0x94, 0x0000).power, Some(Change { from: 3, to: 0 }));
}

#[test]
fn msix_control_keeps_its_size() {
    let mut config = accelerator();
    let effects = write16(&mut config, 0x82, 0xffff);
    assert!(effects.msix.is_some_and(|change| change.to.enable() && change.to.function_mask()));
    assert_eq!(read16(&config, 0x82), 0xc008);
}

#[test]
fn reset_restores_every_register() {
    let mut config = accelerator();
    let _ = config.write(0, &[0x55; 4096]);
    let _ = config.write(0x24c, &[1]);
    config.page_response_failed();
    config.set_page_requests_stopped(false);
    config.set_transactions_pending(true);
    config.reset();
    let pristine = accelerator();
    assert_eq!(read::<4096>(&config, 0), read::<4096>(&pristine, 0));
}

#[test]
fn accesses_past_the_end_read_ones_and_write_nothing() {
    let mut config = accelerator();
    assert_eq!(read::<4>(&config, 4094), [0, 0, 0xff, 0xff]);
    assert_eq!(read::<4>(&config, 4096), [0xff; 4]);
    assert_eq!(read::<4>(&config, u16::MAX), [0xff; 4]);
    assert_eq!(config.write(4094, &[0xff; 64]), ConfigEffects::default());
    assert_eq!(config.write(u16::MAX, &[0xff; 4]), ConfigEffects::default());
}

#[test]
fn layouts_that_no_guest_could_use_are_refused() {
    let build = |builder: Builder| builder.build().map(|_| ());
    let new = || ConfigSpace::builder(HEADER);
    let express = ExpressCapability::new();

    for bar in [
        Bar { size: 0x800, ..BAR0 },
        Bar { size: 0x1800, ..BAR0 },
        Bar { size: 0, ..BAR0 },
        Bar { size: 1 << 32, ..BAR4 },
        Bar { index: 5, ..BAR0 },
        Bar { index: 6, ..BAR4 },
        Bar { index: 255, ..BAR4 },
        Bar { index: 3, ..BAR4 },
    ] {
        let refused = LayoutError::Bar { index: bar.index, size: bar.size };
        assert_eq!(build(new().bars(&[BAR2, bar])), Err(refused));
    }
    for offset in [0x3c, 0x42, 0xf0, 0x100, 0xfffc] {
        let refused = LayoutError::Place { id: CapabilityId::Standard(0x10), offset };
        assert_eq!(build(new().express(offset, express)), Err(refused));
    }
    let collision = LayoutError::Collision {
        first: CapabilityId::Standard(0x10),
        second: CapabilityId::Standard(0x01),
    };
    assert_eq!(build(new().express(0x40, express).power(0x78)), Err(collision));
    let twice = new().power(0x40).power(0x60);
    assert!(matches!(build(twice), Err(LayoutError::Collision { .. })));
    let headless = new().ats(0x220, AtsCapability(AtsCapabilities::new()));
    assert_eq!(build(headless), Err(LayoutError::NoExtendedHead));
    let outside = new().serial_number(0xff8, SerialNumber(0));
    assert!(matches!(build(outside), Err(LayoutError::Place { .. })));
    for width in [0, 21] {
        let wide = PasidCapability(PasidCapabilities::new().with_width(width));
        assert_eq!(build(new().pasid(0x100, wide)), Err(LayoutError::PasidWidth(width)));
    }
    for msix in [
        MsiXCapability { vectors: 0, ..MSIX },
        MsiXCapability { vectors: 2049, ..MSIX },
        MsiXCapability { table: BarOffset { bar: 1, offset: 0x2000 }, ..MSIX },
        MsiXCapability { table: BarOffset { bar: 0, offset: 0x2004 }, ..MSIX },
        MsiXCapability { table: BarOffset { bar: 0, offset: 0xff78 }, ..MSIX },
        MsiXCapability { pending: BarOffset { bar: 0, offset: 0x2088 }, ..MSIX },
        MsiXCapability { pending: BarOffset { bar: 0, offset: u32::MAX - 7 }, ..MSIX },
    ] {
        assert_eq!(build(new().bars(&[BAR0]).msix(0x80, msix)), Err(LayoutError::MsiX), "{msix:?}");
    }
    assert_eq!(build(new().bars(&[BAR0]).msix(0x80, MSIX)), Ok(()));
}

/// Every register of the table, by the table: it resets to its value, takes exactly its writable
/// bits, and no other register is touched.
#[test]
fn the_table_says_what_each_register_does() {
    let pristine = accelerator();
    for register in pristine.registers() {
        let mut config = accelerator();
        let width = usize::from(register.width);
        let value = |config: &ConfigSpace| {
            let mut bytes = [0; 4];
            config.read(register.offset, &mut bytes[..width]);
            u32::from_le_bytes(bytes)
        };
        assert_eq!(value(&config), register.reset, "{}", register.name);
        let _ = config.write(register.offset, &[0xff; 4][..width]);
        let all = register.reset & !register.write_one_clears | register.writable;
        // "Stopped" follows "enable"; it has a test of its own.
        if register.name != "Page Request Control" {
            assert_eq!(value(&config), all, "{} after all ones", register.name);
        }
        let _ = config.write(register.offset, &[0; 4][..width]);
        assert_eq!(value(&config), register.reset & !register.writable, "{}", register.name);
        assert_eq!(register.writable & (register.write_one_clears | register.action), 0);
    }
    let mut used = [false; 4096];
    for register in pristine.registers() {
        let at = usize::from(register.offset);
        for byte in &mut used[at..at + usize::from(register.width)] {
            assert!(!core::mem::replace(byte, true), "{} overlaps", register.name);
        }
    }
}

/// What writes may never change: everything but the writable bits, and "stopped".
fn read_only(config: &ConfigSpace) -> Vec<u8> {
    let mut mask = alloc::vec![0xffu8; 4096];
    for register in config.registers() {
        for (index, byte) in register.writable.to_le_bytes().iter().enumerate().take(4) {
            if index < usize::from(register.width) {
                mask[usize::from(register.offset) + index] &= !byte;
            }
        }
    }
    mask[0x247] &= !1;
    mask
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_write_changes_a_read_only_bit(
        writes in proptest::collection::vec(
            (prop_oneof![0u16..0x100, 0x220u16..0x260, any::<u16>()],
             proptest::collection::vec(any::<u8>(), 0..20)),
            1..20,
        )
    ) {
        let mut config = accelerator();
        let pristine: [u8; 4096] = read(&config, 0);
        let mask = read_only(&config);
        for (offset, data) in writes {
            let before: [u8; 4096] = read(&config, 0);
            let effects = config.write(offset, &data);
            let now: [u8; 4096] = read(&config, 0);
            for (at, mask) in mask.iter().enumerate() {
                prop_assert_eq!(now[at] & mask, pristine[at] & mask, "byte {:#x}", at);
            }
            if before != now {
                let touched = usize::from(offset)..usize::from(offset) + data.len();
                let changed = (0..4096).filter(|&at| before[at] != now[at]);
                for at in changed.filter(|&at| at != 0x247) {
                    prop_assert!(touched.contains(&at), "byte {:#x} was not written", at);
                }
            } else {
                prop_assert!(effects.command.is_none() && !effects.bars && effects.ats.is_none());
            }
        }
    }
}
