//! What Linux's `idxd` and the user-space tests of accel-config do, register by register.

mod rig;

use dsa::spec::*;
use iommu::ResponseCode;
use pci::Function;
use rig::paged::*;
use rig::*;

use CommandCode as Code;

/// A driver's view of the device: it waits for interrupts as `idxd` does.
struct Driver {
    rig: Rig,
    /// What it last wrote to each WQCFG: it never forgets stale bits.
    shadow: [[u32; 8]; 8],
}

/// Portal that user space maps.
const USER_PORTAL: u64 = 0x1000;

impl Driver {
    fn probe(rig: Rig) -> Self {
        let device = &rig.device;
        // Enable memory, then bus master on top of what is read back.
        device.config_write(0x04, &2u16.to_le_bytes());
        let mut command = [0; 2];
        device.config_read(0x04, &mut command);
        device.config_write(0x04, &[command[0] | 4, command[1]]);
        assert_eq!(rig.read32(0x00), 0x100);
        assert_eq!(rig.state().state(), DeviceState::Disabled, "not halted");
        rig.write32(0xa0, 0x0050_0000);
        assert_eq!(rig.read32(0xa8) & 1 << 31, 0, "the first reset is polled");
        // SVA: PASID, page request reset and enable, ATS.
        device.config_write(0x236, &1u16.to_le_bytes());
        device.config_write(0x244, &2u16.to_le_bytes());
        let mut status = [0; 2];
        device.config_read(0x246, &mut status);
        assert_eq!(status, 0x8100u16.to_le_bytes(), "stopped, or Linux gives up");
        device.config_write(0x24c, &32u32.to_le_bytes());
        device.config_write(0x244, &1u16.to_le_bytes());
        device.config_write(0x226, &0x8000u16.to_le_bytes());
        rig.write32(0x80, rig.read32(0x80) | 0x1000);
        let gencap = GenCap::from_bits(rig.read64(0x10));
        assert!(!gencap.command_capabilities() && gencap.configurable());
        let (wqcap, grpcap) = (rig.read64(0x20), rig.read64(0x30));
        assert_eq!((WqCap::from_bits(wqcap).queues(), GrpCap::from_bits(grpcap).groups()), (8, 4));
        let offsets = u128::from(rig.read64(0x60)) | u128::from(rig.read64(0x68)) << 64;
        let offsets = Offsets::from_bits(offsets);
        assert_eq!(u64::from(offsets.wqcfg()) << 8, WQCFG);
        assert_eq!(u64::from(offsets.grpcfg()) << 8, GRPCFG);
        assert_eq!(offsets.perfmon(), 0, "no performance monitor");
        assert_eq!(usize::from(device.vectors()), 9, "one vector for each queue, and one");
        rig.write32(0x88, rig.read32(0x88) | 3);
        Self { rig, shadow: [[0; 8]; 8] }
    }

    /// A command with an interrupt. There is no timeout: without one it would hang forever.
    fn command(&mut self, code: Code, operand: u32) -> u32 {
        self.rig.write32(0xa0, 1 << 31 | (code as u32) << 20 | operand);
        self.rig.settle();
        assert_eq!(self.rig.interrupts.take(), [0], "{code:?}");
        let cause = self.rig.read32(0x98);
        assert_eq!(cause, 2, "{code:?}: an unknown cause would be warned of");
        self.rig.write32(0x98, cause);
        self.rig.read32(0xa8)
    }

    /// Writes the configuration of all queues and groups, stale as it is.
    fn write_configuration(&mut self, groups: &[(u64, u64)]) {
        for (wq, shadow) in self.shadow.iter_mut().enumerate() {
            if groups.iter().all(|(wqs, _)| wqs >> wq & 1 == 0) {
                continue;
            }
            let at = |i| WQCFG + wq as u64 * 32 + i as u64 * 4;
            for (i, dword) in shadow.iter_mut().enumerate() {
                *dword |= self.rig.read32(at(i));
            }
            for (i, dword) in shadow.iter().enumerate() {
                self.rig.write32(at(i), *dword);
            }
        }
        for (group, &(wqs, engines)) in groups.iter().enumerate() {
            let at = GRPCFG + group as u64 * 64;
            for (word, bits) in [wqs, 0, 0, 0].into_iter().enumerate() {
                self.rig.write64(at + word as u64 * 8, bits);
            }
            self.rig.write64(at + 32, engines);
            let flags = GroupFlags::new().with_tc_a(1).with_tc_b(1).with_buffers_allowed(8);
            self.rig.write64(at + 40, flags.into_bits());
        }
    }

    fn set_wq(&mut self, wq: usize, mode: WqMode) {
        let limits = WqLimits::new().with_max_transfer_shift(21).with_max_batch_shift(5);
        let config = WqConfig { size: 16, threshold: 15, mode, limits, ..WqConfig::default() };
        self.shadow[wq] = config.to_dwords();
    }

    /// `accel-config load-config`, then `enable-device` and `enable-wq` for two queues: 0 shared,
    /// 1 dedicated, block on fault on.
    fn two_groups_two_queues() -> Self {
        Self::set_up(Rig::new())
    }

    fn set_up(rig: Rig) -> Self {
        let groups = [(1, 3), (2, 0xc), (0, 0), (0, 0)];
        let mut driver = Self::probe(rig);
        driver.set_wq(0, blocking(false).with_pasid_enable(false));
        driver.set_wq(1, blocking(true).with_pasid_enable(false));
        driver.write_configuration(&groups);
        assert_eq!(driver.command(Code::EnableDevice, 0), 0);
        // Each queue is bound by itself, and all of it is written again each time.
        let shared = WqMode::from_bits(driver.shadow[0][2]).with_pasid_enable(true);
        driver.shadow[0][2] = shared.into_bits();
        driver.write_configuration(&groups);
        assert_eq!(driver.command(Code::EnableWq, 0), 0);
        driver.write_configuration(&groups);
        assert_eq!(driver.command(Code::EnableWq, 1), 0);
        driver
    }

    /// A process opens a dedicated queue: Linux 6.1 disables it, later ones drain and reset it.
    fn open(&mut self, wq: usize, pasid: u32, drain_and_reset: bool) {
        if drain_and_reset {
            assert_eq!(self.command(Code::DrainWq, 1 << wq), 0);
            assert_eq!(self.command(Code::ResetWq, 1 << wq), 0);
        } else {
            assert_eq!(self.command(Code::DisableWq, 1 << wq), 0);
        }
        let mode = WqMode::from_bits(self.shadow[wq][2]).with_pasid(pasid).with_pasid_enable(true);
        self.shadow[wq][2] = mode.into_bits();
        for (i, dword) in self.shadow[wq].into_iter().enumerate() {
            self.rig.write32(WQCFG + wq as u64 * 32 + i as u64 * 4, dword);
        }
        assert_eq!(self.command(Code::EnableWq, wq as u32), 0);
    }

    /// Submits to a queue as user space does, and gives the record.
    fn submit(&mut self, wq: usize, descriptor: Descriptor) -> CompletionRecord {
        self.rig.clear_records();
        let descriptor = descriptor
            .with_record(Rig::record_at(0))
            .with_flags(Flags::REQUEST_RECORD)
            .with_submitter(Submitter::new().with_pasid(PASID));
        let bytes = descriptor.to_bytes();
        if WqMode::from_bits(self.shadow[wq][2]).dedicated() {
            let at = wq as u64 * 0x4000 + USER_PORTAL + 0x40;
            for (piece, data) in bytes.chunks(8).enumerate() {
                self.rig.device.bar_write(2, at + piece as u64 * 8, data);
            }
        } else {
            let portal = Portal::at(USER_PORTAL).1;
            let accepted = self.rig.device.submit(wq, portal, &bytes);
            assert_eq!(accepted, dsa::model::Submission::Accepted);
        }
        self.rig.settle();
        self.rig.record(0)
    }
}

#[test]
fn probe_configure_enable_and_disable() {
    let mut driver = Driver::two_groups_two_queues();
    assert_eq!(driver.rig.wq(0).occupancy.state(), WqState::Enabled);
    assert!(!driver.rig.wq(0).mode.dedicated() && driver.rig.wq(1).mode.dedicated());
    assert_eq!(driver.command(Code::DrainWq, 3), 0);
    assert_eq!(driver.command(Code::ResetWq, 3), 0);
    assert_eq!(driver.command(Code::DisableDevice, 0), 0);
    assert_eq!(driver.command(Code::ResetDevice, 0), 0);
    driver.rig.write32(0x88, driver.rig.read32(0x88) | 3);
    assert_eq!(driver.rig.state(), GenSts::new());
    assert_eq!(driver.rig.swerror(), SwError::default());
}

#[test]
fn a_dedicated_queue_is_opened_and_closed_many_times() {
    for drain_and_reset in [false, true] {
        let mut driver = Driver::two_groups_two_queues();
        for pasid in 1..50 {
            driver.open(1, pasid, drain_and_reset);
            assert_eq!(driver.rig.wq(1).mode.pasid(), pasid);
            let record = driver.submit(1, Descriptor::new(memory_move(FLAT, FLAT + 99, 9)));
            assert_eq!(record.status.into_bits(), 1);
        }
        assert_eq!(driver.command(Code::DrainPasid, PASID), 0, "as on closing a shared queue");
        assert_eq!(driver.rig.wq(1).size, 16);
        assert_eq!(driver.rig.swerror(), SwError::default());
    }
}

/// `dsa_test -f 1`: memory that nobody has touched, with the flag to block. The process is gone in
/// the middle of the next copy.
#[test]
fn a_process_hands_over_fresh_memory() {
    for drain_and_reset in [false, true] {
        let mut paged = Paged::new(0);
        let mut driver = Driver::set_up(paged.rig);
        driver.open(1, PASID, drain_and_reset);
        let copy = recorded(memory_move(FLAT, FLAT + 0x10_0000, 0x8000), 0);
        driver.rig.post(1, &copy);
        paged.rig = driver.rig;
        assert_eq!(paged.settle(), 16);
        assert_eq!(status(&paged, 0), 1);
        paged.rig.clear_records();
        paged.rig.post(1, &recorded(memory_move(FLAT + 0x20_0000, FLAT, 0x8000), 0));
        paged.rig.settle();
        let request = paged.request();
        let code = if drain_and_reset { Code::DrainWq } else { Code::DisableWq };
        paged.rig.start(code, 2);
        assert!(paged.rig.command_status().active());
        // Its memory is gone by now.
        paged.answer(&request, ResponseCode::Invalid);
        assert_eq!(paged.settle_but(|request| request.address.0 == RECORDS), 0);
        assert_eq!((paged.rig.command_status(), status(&paged, 0)), (CmdStatus::new(), 4));
    }
}

/// Unbinding the driver leaves nothing; a function-level reset is survived.
#[test]
fn recovery_by_function_level_reset() {
    let driver = Driver::two_groups_two_queues();
    driver.rig.device.config_write(0x04, &2u16.to_le_bytes());
    assert_eq!(driver.rig.state().state(), DeviceState::Halted);
    assert_eq!(driver.rig.interrupts.take(), [0]);
    let cause = IntCause::new().with_software_error(true).with_halt(true);
    assert_eq!(driver.rig.read32(0x98), cause.into_bits());
    driver.rig.device.reset();
    let mut again = Driver::set_up(driver.rig);
    again.open(1, PASID, true);
    let record = again.submit(1, Descriptor::new(memory_move(FLAT, FLAT + 99, 9)));
    assert_eq!(record.status.into_bits(), 1);
}

/// The matrix of dsa_user_test_runner.sh: each operation, size and mode, alone and in batches.
#[test]
fn accel_config_matrix() {
    let mut driver = Driver::two_groups_two_queues();
    driver.open(1, PASID, true);
    let word = 0x0123_4567_89ab_cdef_u64.to_le_bytes();
    driver.rig.fill(FLAT, &word.repeat(0x20_0000 / 8));
    for wq in [0, 1] {
        for size in [1u32, 4096, 65536, 1 << 20, 2 << 20] {
            for operation in operations(size) {
                let [to, _] = destinations();
                driver.rig.fill(to, &0xfedc_ba98_7654_3210_u64.to_le_bytes());
                let record = driver.submit(wq, Descriptor::new(operation));
                assert_eq!(record.status.into_bits(), 1, "queue {wq}: {operation:?}");
                check(&driver.rig, &operation, &record);
                if wq == 1 && size <= 4096 {
                    batch(&mut driver, wq, operation);
                }
            }
        }
    }
    assert_eq!(driver.rig.swerror(), SwError::default());
}

fn destinations() -> [u64; 2] {
    [FLAT + 0x20_0000, FLAT + 0x40_0000]
}

/// The operations that the script runs, with the data that it uses.
fn operations(size: u32) -> Vec<Operation> {
    let source = Iova(FLAT);
    let [to, other] = destinations().map(Iova);
    vec![
        Operation::Noop,
        Operation::Drain { readback1: Iova(0), readback2: Iova(0) },
        Operation::MemoryMove { source, destination: to, size },
        Operation::Fill { pattern: 0x0123_4567_89ab_cdef, destination: to, size },
        Operation::Compare { source1: source, source2: to, size, expected: 0 },
        Operation::ComparePattern { source, pattern: 0x0123_4567_89ab_cdef, size, expected: 0 },
        Operation::Dualcast { source, destination1: to, destination2: other, size },
        Operation::Crc { source, size, seed: 0x1234_5678, seed_address: Iova(0) },
        Operation::CopyCrc {
            source,
            destination: to,
            size,
            seed: 0x1234_5678,
            seed_address: Iova(0),
        },
        Operation::CacheFlush { destination: to, size },
    ]
}

fn check(rig: &Rig, operation: &Operation, record: &CompletionRecord) {
    let same = |at, size| assert!(rig.bytes(FLAT, size) == rig.bytes(at, size), "{operation:?}");
    let [to, other] = destinations();
    let crc = |size| match size {
        1 => Some(0x140d_fffb),
        4096 => Some(0x1b6f_4410),
        65536 => Some(0xfc6e_b848),
        _ => None,
    };
    match *operation {
        Operation::MemoryMove { size, .. } | Operation::Fill { size, .. } => {
            same(to, size as usize)
        }
        Operation::Dualcast { size, .. } => {
            same(to, size as usize);
            same(other, size as usize);
        }
        Operation::Compare { size, .. } => {
            // The first eight bytes were changed after the copies before.
            let different = rig.bytes(FLAT, size as usize) != rig.bytes(to, size as usize);
            assert_eq!((record.result, record.bytes_completed), (different.into(), 0));
        }
        Operation::ComparePattern { .. } => assert_eq!(record.result, 0),
        Operation::Crc { size, .. } | Operation::CopyCrc { size, .. } => {
            assert!(crc(size).is_none_or(|crc| crc == record.crc()), "{:#x}", record.crc());
            assert_eq!(record.tail[4..], [0; 12], "the upper half of the field");
        }
        _ => assert_eq!((record.result, record.bytes_completed), (0, 0)),
    }
}

/// `-o 1 -b op -c 16`: sixteen of them (drains are not for batches).
fn batch(driver: &mut Driver, wq: usize, operation: Operation) {
    let list = FLAT + 0x70_0000;
    let member = Descriptor::new(operation).with_flags(Flags::REQUEST_RECORD);
    for index in 0..16 {
        let record = Iova(list + 0x1000 + index * 32);
        driver.rig.fill(list + index * 64, &member.with_record(record).to_bytes());
    }
    let record =
        driver.submit(wq, Descriptor::new(Operation::Batch { list: Iova(list), count: 16 }));
    let drain = operation.opcode() == Opcode::Drain;
    assert_eq!(record.status.into_bits(), if drain { 5 } else { 1 }, "{operation:?}");
    assert_eq!(record.bytes_completed, 16);
    for index in 0..16 {
        let status = driver.rig.bytes(list + 0x1000 + index * 32, 1)[0];
        assert_eq!(status, if drain { 0x10 } else { 1 });
    }
}

/// The DIF cases of the script: tags 0xface and 0xabba, fixed reference tags for updates.
#[test]
fn accel_config_dif() {
    let mut driver = Driver::two_groups_two_queues();
    driver.open(1, PASID, false);
    driver.rig.fill(FLAT, &0x0123_4567_89ab_cdef_u64.to_le_bytes().repeat(4104 / 8));
    let tags = DifTags { reference: 0xabba, app_mask: 0, app: 0xface };
    let guards = [0x03c7u16, 0xccb3, 0xa083, 0x85c9];
    for (block, guard) in [0, 1, 2, 3].into_iter().zip(guards) {
        let flags = DifFlags::from_bits(block);
        let data = flags.block().data();
        let (protected, out) = (FLAT + 0x4000, FLAT + 0x8000);
        let insert = Operation::DifInsert {
            source: Iova(FLAT),
            destination: Iova(protected),
            size: data as u32,
            destination_flags: DestinationFlags::new(),
            flags,
            destination_tags: tags,
        };
        let record = driver.submit(1, Descriptor::new(insert));
        assert_eq!(record.status.into_bits(), 1);
        assert_eq!(record.destination_tags(), DifTags { reference: 0xabbb, ..tags });
        let mut dif = guard.to_be_bytes().to_vec();
        dif.extend([0xfa, 0xce, 0x00, 0x00, 0xab, 0xba]);
        assert_eq!(driver.rig.bytes(protected + data as u64, 8), dif);
        let size = data as u32 + 8;
        let source_flags = SourceFlags::new();
        let check = Operation::DifCheck {
            source: Iova(protected),
            size,
            source_flags,
            flags,
            source_tags: tags,
        };
        assert_eq!(driver.submit(1, Descriptor::new(check)).status.into_bits(), 1);
        let strip = Operation::DifStrip {
            source: Iova(protected),
            destination: Iova(out),
            size,
            source_flags,
            flags,
            source_tags: tags,
        };
        assert_eq!(driver.submit(1, Descriptor::new(strip)).status.into_bits(), 1);
        assert_eq!(driver.rig.bytes(out, data), driver.rig.bytes(FLAT, data));
        let update = Operation::DifUpdate {
            source: Iova(protected),
            destination: Iova(out),
            size,
            source_flags: SourceFlags::from_bits(0x80),
            destination_flags: DestinationFlags::from_bits(0x80),
            flags,
            source_tags: tags,
            destination_tags: tags,
        };
        let record = driver.submit(1, Descriptor::new(update));
        assert_eq!(record.status.into_bits(), 1);
        assert_eq!((record.source_tags(), record.destination_tags()), (tags, tags));
    }
}

/// The VFIO self test of the kernel: no PASID, polled commands, the unlimited portal, all queue
/// space for queue 0, group flags as after reset, priv set in the descriptor.
#[test]
fn vfio_self_test() {
    let mut rig = Rig::new();
    rig.device.config_write(0x04, &6u16.to_le_bytes());
    rig.device.config_write(0x226, &0x8000u16.to_le_bytes());
    assert_eq!(rig.command(Code::ResetDevice, 0), 0);
    let limits = WqLimits::new().with_max_transfer_shift(31).with_max_batch_shift(10);
    let mode = WqMode::new().with_dedicated(true).with_priority(1);
    let config = WqConfig { size: 128, mode, limits, ..WqConfig::default() };
    for (i, dword) in config.to_dwords().into_iter().enumerate() {
        rig.write32(WQCFG + i as u64 * 4, dword);
    }
    rig.write64(GRPCFG, 1);
    rig.write64(GRPCFG + 32, 1);
    rig.enable(&[0]);
    let privileged = Submitter::new().with_privileged(true);
    let list = FLAT + 0x40_0000;
    rig.fill(FLAT, &noise(5, 1024 * 64));
    for index in 0..1024 {
        let offset = index * 64;
        let copy = Descriptor::new(memory_move(FLAT + offset, FLAT + 0x10_0000 + offset, 64));
        let record = Iova(list + 0x2_0000 + index * 32);
        let member = copy.with_submitter(privileged).with_record(record);
        rig.fill(list + offset, &member.to_bytes());
    }
    let batch = Descriptor::new(Operation::Batch { list: Iova(list), count: 1024 })
        .with_submitter(privileged)
        .with_record(Rig::record_at(0))
        .with_flags(Flags::REQUEST_RECORD)
        .with_interrupt(1);
    rig.device.bar_write(2, 0, &batch.to_bytes());
    rig.settle();
    assert_eq!(rig.record(0).status.into_bits(), 1);
    assert_eq!(rig.interrupts.take(), [1]);
    assert!(rig.bytes(FLAT + 0x10_0000, 1024 * 64) == rig.bytes(FLAT, 1024 * 64));
    let records = rig.bytes(list + 0x2_0000, 1024 * 32);
    assert!(records.iter().all(|&byte| byte == 0), "members write records only on errors");
}
