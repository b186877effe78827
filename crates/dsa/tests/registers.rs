//! The register file: reset values, access classes, locks, malformed accesses, random stimulus.

mod rig;

use dsa::model::{Config, ConfigError, Device, Ran, MAX_ENTRIES, MAX_QUEUES};
use dsa::spec::*;
use iommu::Endpoint;
use mem::MemoryMap;
use pci::{Function, RequesterId};
use rig::*;

#[test]
fn capabilities() {
    let rig = Rig::new();
    assert_eq!(rig.read32(0x00), 0x100, "VERSION");
    assert_eq!(rig.read64(0x10), 0x0000_0000_815f_0107, "GENCAP");
    assert_eq!(rig.read64(0x20), 0x001b_0000_0008_0080, "WQCAP");
    assert_eq!(rig.read64(0x30), 0x3_6004, "GRPCAP");
    assert_eq!(rig.read64(0x38), 4, "ENGCAP");
    let opcap = [0x40, 0x48, 0x50, 0x58].map(|at| rig.read64(at));
    assert_eq!(opcap, [0x0000_0001_003f_03ff, 0, 0, 0], "OPCAP");
    assert_eq!([rig.read64(0x60), rig.read64(0x68)], [0x0000_0002_0004_0003, 0], "OFFSETS");
    assert_eq!(rig.read64(0xb0), 0, "CMDCAP is not there, commands 1 to 12 are implied");
}

#[test]
fn reset_values() {
    let rig = Rig::new();
    assert_eq!(rig.read32(0x80), 96, "GENCFG: the limit is all read buffers");
    for at in [0x88, 0x90, 0x98, 0xa0, 0xa8] {
        assert_eq!(rig.read32(at), 0, "at {at:#x}");
    }
    assert_eq!(rig.swerror(), SwError::default());
    for vector in 0..9 {
        assert_eq!(rig.read64(MSIXPERM + vector * 8), 0);
    }
    for group in 0..4 {
        let words: Vec<u64> = (0..8).map(|i| rig.read64(GRPCFG + group * 64 + i * 8)).collect();
        assert_eq!(words, [0, 0, 0, 0, 0, 96 << 20, 0, 0], "all read buffers allowed");
    }
    for wq in 0..8 {
        assert_eq!(rig.wq(wq), WqConfig::default());
    }
    assert_eq!(rig.device.bars()[0].size, 0x1_0000);
    assert_eq!(rig.device.bars()[1].size, 0x2_0000);
    assert_eq!((rig.device.bars()[1].index, rig.device.vectors()), (2, 9));
}

#[test]
fn configuration_space_is_the_hardwares() {
    let rig = Rig::new();
    let golden: [(u16, u32); 12] = [
        (0x00, 0x0b25_8086),
        (0x08, 0x0880_0000),
        (0x10, 0x0000_000c),
        (0x40, 0x0092_8010),
        (0x44, 0x1000_8022),
        (0x64, 0x1073_0810),
        (0x80, 0x0008_9011),
        (0x84, 0x2000),
        (0x88, 0x3000),
        (0x224, 0x0060),
        (0x234, 0x1404),
        (0x244, 0x8100_0000),
    ];
    for (at, value) in golden {
        let mut data = [0; 4];
        rig.device.config_read(at, &mut data);
        assert_eq!(u32::from_le_bytes(data), value, "at {at:#x}");
    }
}

#[test]
fn read_only_registers_keep_their_values() {
    for rig in [Rig::new(), Rig::dedicated()] {
        let read_only = REGISTERS.iter().filter(|r| r.access == RegisterAccess::ReadOnly);
        for register in read_only {
            for at in (register.offset..register.offset + register.size).step_by(4) {
                let before = rig.read32(at.into());
                for value in [u32::MAX, 0, 0x5555_5555] {
                    rig.write32(at.into(), value);
                    assert_eq!(rig.read32(at.into()), before, "{}", register.name);
                }
            }
        }
    }
}

#[test]
fn every_width_reads_the_same_bytes() {
    let rig = Rig::dedicated();
    for quadword in (0..0x600u64).step_by(8) {
        let mut expected = [0; 8];
        rig.device.bar_read(0, quadword, &mut expected);
        for width in [1, 2, 4] {
            let mut pieces = [0; 8];
            for (index, piece) in pieces.chunks_mut(width).enumerate() {
                rig.device.bar_read(0, quadword + (index * width) as u64, piece);
            }
            assert_eq!(pieces, expected, "{width} bytes at {quadword:#x}");
        }
    }
}

#[test]
fn every_width_writes_its_bytes_only() {
    let rig = Rig::new();
    let at = GRPCFG + 8;
    rig.write64(at, 0x1122_3344_5566_7788);
    rig.device.bar_write(0, at + 1, &[0xaa]);
    assert_eq!(rig.read64(at), 0x1122_3344_5566_aa88);
    rig.device.bar_write(0, at + 6, &[0xbb, 0xcc]);
    assert_eq!(rig.read64(at), 0xccbb_3344_5566_aa88);
    rig.device.bar_write(0, at + 4, &[1, 2, 3, 4]);
    assert_eq!(rig.read64(at), 0x0403_0201_5566_aa88);
}

#[test]
fn malformed_accesses_read_ones_and_write_nothing() {
    let rig = Rig::new();
    let before = rig.device.counters().bad_accesses;
    let cases =
        [(0x80u64, 3usize), (0x81, 2), (0x82, 4), (0x84, 8), (0x80, 16), (0x80, 0), (0x7f, 2)];
    for (at, len) in cases {
        let mut data = vec![0; len];
        rig.device.bar_read(0, at, &mut data);
        assert_eq!(data, vec![0xff; len], "{len} bytes at {at:#x}");
        rig.device.bar_write(0, at, &vec![0x11; len]);
    }
    assert_eq!(rig.read32(0x80), 96);
    assert_eq!(rig.device.counters().bad_accesses - before, 2 * cases.len() as u64);
    for (bar, at) in [(0, 0x1_0000), (0, u64::MAX), (1, 0), (2, 0), (2, 0x2_0000), (7, 0)] {
        let mut data = [0; 4];
        rig.device.bar_read(bar, at, &mut data);
        assert_eq!(data, [0xff; 4], "BAR {bar} at {at:#x}");
        rig.device.bar_write(bar, at, &data);
    }
    // The dummy portal and everything unnamed.
    for at in [0xf000, 0xfff8, 0x08, 0x1000, 0x1010, 0x600, 0x8000] {
        assert_eq!(rig.read64(at), 0);
        rig.write64(at, u64::MAX);
        assert_eq!(rig.read64(at), 0);
    }
}

#[test]
fn reserved_bits_are_not_stored() {
    let rig = Rig::new();
    rig.write32(0x80, u32::MAX);
    assert_eq!(rig.read32(0x80), 0x10ff, "GENCFG");
    rig.write32(0x88, u32::MAX);
    assert_eq!(rig.read32(0x88), 0x3, "GENCTRL");
    rig.write64(MSIXPERM + 8, u64::MAX);
    assert_eq!(rig.read64(MSIXPERM + 8), 0xffff_f00c, "MSIXPERM");
    rig.write64(GRPCFG + 40, u64::MAX);
    assert_eq!(rig.read64(GRPCFG + 40), 0x0ff0_ffbf, "GRPFLAGS");
    for dword in 0..8 {
        rig.write32(WQCFG + 32 + dword * 4, u32::MAX);
    }
    let dwords = rig.wq(1).to_dwords();
    let expected = [0xffff, 0xffff, 0x3fff_ffff, 0x1ff, 0x1_ffff, 0x1_ffff, 0, 0];
    assert_eq!(dwords, expected, "WQCFG: state and occupancy are read-only");
}

/// A driver rewrites all of WQCFG with stale contents when it enables another queue.
#[test]
fn locked_fields_of_wqcfg_keep_their_values_silently() {
    let rig = Rig::dedicated();
    let enabled = rig.wq(0);
    let stale = [0x7f, 0x33, 0x1fff_ff01, 0x25, 5, 7, 0x8001_0000, u32::MAX];
    for (i, dword) in stale.into_iter().enumerate() {
        rig.write32(WQCFG + i as u64 * 4, dword);
    }
    let after = rig.wq(0);
    assert_eq!(after.size, enabled.size);
    assert_eq!((after.mode, after.limits), (enabled.mode, enabled.limits));
    assert_eq!(after.occupancy_handle, enabled.occupancy_handle);
    assert_eq!(after.occupancy, enabled.occupancy);
    assert_eq!(after.threshold, 0x33, "the threshold is writable always");
    assert_eq!(after.occupancy_limit.limit(), 7);

    // A disabled queue of an enabled device: everything but the size.
    for (i, dword) in stale.into_iter().enumerate() {
        rig.write32(WQCFG + 32 + i as u64 * 4, dword);
    }
    let other = rig.wq(1);
    assert_eq!((other.size, other.mode.into_bits()), (0, 0x1fff_ff01));
    assert_eq!(other.limits.into_bits(), 0x25);
}

#[test]
fn groups_and_general_configuration_are_locked_while_enabled() {
    let rig = Rig::dedicated();
    let before = [0, 32, 40].map(|at| rig.read64(GRPCFG + at));
    for at in [0, 32, 40] {
        rig.write64(GRPCFG + at, u64::MAX);
    }
    rig.write32(0x80, 0x1001);
    assert_eq!([0, 32, 40].map(|at| rig.read64(GRPCFG + at)), before);
    assert_eq!(rig.read32(0x80), 96);
    rig.write32(0x88, 3);
    assert_eq!(rig.read32(0x88), 3, "GENCTRL is writable always");
}

#[test]
fn a_command_is_one_write_of_all_its_bits() {
    let rig = Rig::new();
    rig.enable_function();
    for byte in 0..4 {
        rig.device.bar_write(0, 0xa0 + byte, &[0x10]);
    }
    rig.device.bar_write(0, 0xa2, &[0x10, 0x00]);
    assert_eq!(rig.state().state(), DeviceState::Disabled);
    assert_eq!(rig.device.counters().commands, 0);
    rig.write64(0xa0, 0x0010_0000);
    assert_eq!(rig.state().state(), DeviceState::Enabled, "eight bytes hold the whole register");
    assert_eq!(rig.read32(0xa0), 0, "CMD reads as zero");
}

#[test]
fn msix_table_reads_back_and_pending_bits_do_not_write() {
    let rig = Rig::new();
    assert_eq!(rig.read32(0x2000 + 8 * 16 + 12), 1, "masked");
    rig.write64(0x2010, 0xfee0_1000);
    rig.write32(0x2018, 0x4021);
    rig.write32(0x201c, 0);
    assert_eq!((rig.read64(0x2010), rig.read64(0x2018)), (0xfee0_1000, 0x4021));
    rig.write64(0x3000, u64::MAX);
    assert_eq!(rig.read64(0x3000), 0);
    assert_eq!(rig.device.message(1), None, "MSI-X is disabled");
    rig.device.config_write(0x82, &0x8000u16.to_le_bytes());
    let message = rig.device.message(1).unwrap();
    assert_eq!((message.address, message.data), (0xfee0_1000, 0x4021));
    assert_eq!(rig.device.message(2), None, "masked");
    assert_eq!(rig.read64(0x3000), 1 << 2, "and pending");
    assert!(rig.interrupts.take().is_empty());
    rig.write32(0x202c, 0);
    assert_eq!(rig.interrupts.take(), [2], "raised again when it is unmasked");
    assert_eq!(rig.read64(0x3000), 0);
}

#[test]
fn configurations_that_cannot_be() {
    let new = |config| {
        let memory = std::sync::Arc::new(MemoryMap::default());
        Device::new(config, Endpoint::identity(RequesterId::from_bits(8), memory)).map(drop)
    };
    let good = Config::default();
    assert_eq!(new(Config { queues: 4, engines: 2, ..good }), Ok(()));
    assert_eq!(new(Config { queues: 0, ..good }), Err(ConfigError::Queues { got: 0, max: 16 }));
    let got = MAX_QUEUES + 1;
    assert_eq!(new(Config { queues: got, ..good }), Err(ConfigError::Queues { got, max: 16 }));
    let got = MAX_ENTRIES + 1;
    let entries = ConfigError::Entries { got, max: MAX_ENTRIES };
    assert_eq!(new(Config { entries: got, ..good }), Err(entries));
    assert_eq!(new(Config { groups: 5, ..good }), Err(ConfigError::Groups { got: 5, max: 4 }));
    assert_eq!(new(Config { engines: 0, ..good }), Err(ConfigError::Engines { got: 0, max: 16 }));
    let buffers = ConfigError::ReadBuffers { got: 15, min: 16 };
    assert_eq!(new(Config { read_buffers: 15, ..good }), Err(buffers));
}

/// Numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let kind = self.next(4);
        (0..len)
            .map(|_| match kind {
                0 => 0,
                1 => 0xff,
                _ => self.next(256) as u8,
            })
            .collect()
    }
}

/// A driver gone mad: every register, table, portal and capability, any width, any value, with
/// engines running in between. Then a reset, and the device works as ever.
#[test]
fn random_stimulus() {
    let mut rig = Rig::dedicated();
    let mut random = Random(0x5eed);
    let widths = [0usize, 1, 2, 3, 4, 5, 7, 8, 8, 8, 16, 32, 64, 64, 65, 300];
    for round in 0..60_000u64 {
        let len = widths[random.next(widths.len() as u64) as usize];
        let data = random.bytes(len);
        match random.next(12) {
            0..=3 => rig.device.bar_write(0, random.next(0x600), &data),
            4 => rig.device.bar_write(0, random.next(0x1_0100), &data),
            5 => rig.device.bar_write(2, random.next(0x2_1000), &data),
            6 => {
                let code = random.next(32) as u32;
                let bits = random.next(21);
                let operand = random.next(1 << bits) as u32;
                rig.write32(0xa0, code << 20 | operand | (random.next(2) as u32) << 31);
            }
            7 => rig.device.config_write(random.next(4096) as u16, &data[..len.min(4)]),
            8 => {
                let bytes: [u8; 64] = random.bytes(64).try_into().unwrap();
                let portal = Portal { limited: random.next(2) == 0, ims: random.next(9) == 0 };
                let _ = rig.device.submit(random.next(9) as usize, portal, &bytes);
            }
            9 => {
                // A descriptor that may well be executed.
                let mut bytes = random.bytes(64);
                bytes[7] = random.next(0x22) as u8;
                bytes[4..7].copy_from_slice(&[random.next(256) as u8, random.next(4) as u8, 0]);
                let addresses = [FLAT, HOLE, RECORDS, u64::MAX - 9, FLAT + 4090];
                for at in [8, 16, 24, 40] {
                    let address = addresses[random.next(5) as usize] + random.next(8);
                    bytes[at..at + 8].copy_from_slice(&address.to_le_bytes());
                }
                let bits = random.next(32);
                let size = random.next(1 << bits);
                bytes[32..36].copy_from_slice(&(size as u32).to_le_bytes());
                rig.device.bar_write(2, Portal::LIMITED.offset(0), &bytes);
            }
            10 => {
                let engine = random.next(4) as usize;
                let _: Ran = rig.engines[engine].run(3);
            }
            _ => {
                let mut data = data;
                rig.device.bar_read(random.next(3) as u8, random.next(0x1_0100), &mut data);
                rig.device.config_read(random.next(4096) as u16, &mut data);
            }
        }
        // Back to work now and then: most of what is written stops the device at once.
        if round % 500 == 499 {
            rig.settle();
            rig.device.reset();
            rig.enable_function();
            rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
            rig.set_engines(0, 0xf);
            // What an engine still runs from before the reset does not keep it from enabling.
            rig.enable(&[0]);
        }
    }
    rig.device.reset();
    rig.settle();
    rig.interrupts.take();
    let counters = rig.device.counters();
    assert!(counters.commands > 1000 && counters.descriptors > 500, "{counters:?}");

    rig.enable_function();
    rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
    rig.set_engines(0, 1);
    rig.enable(&[0]);
    rig.fill(FLAT, b"as ever");
    rig.expect(memory_move(FLAT, FLAT + 0x1000, 7), Status::Success);
    assert_eq!(rig.bytes(FLAT + 0x1000, 7), b"as ever");
}

/// The device page has the same registers and capability values.
#[test]
fn the_device_page_is_right() {
    let page = include_str!("../../../docs/devices/dsa.md");
    let (_, table) =
        page.split_once("| offset | name | bytes | access |\n|---|---|---|---|\n").unwrap();
    let rows: Vec<String> = REGISTERS
        .iter()
        .map(|r| format!("| {:#04x} | {} | {} | {:?} |", r.offset, r.name, r.size, r.access))
        .collect();
    assert_eq!(table.trim_end().lines().collect::<Vec<_>>(), rows);
    let rig = Rig::new();
    for (name, at) in
        [("GENCAP", 0x10), ("WQCAP", 0x20), ("GRPCAP", 0x30), ("OPCAP", 0x40), ("OFFSETS", 0x60)]
    {
        let row = page.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap();
        let value = row.split('|').nth(2).unwrap().trim().trim_start_matches("0x");
        assert_eq!(u64::from_str_radix(value, 16), Ok(rig.read64(at)), "{name}");
    }
}
