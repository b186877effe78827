//! Golden encodings, typed from the specification's tables.

use super::*;

extern crate std;
use std::vec::Vec;

/// The bytes of a descriptor from `(offset, bytes)` pieces.
fn bytes(pieces: &[(usize, &[u8])]) -> [u8; 64] {
    let mut all = [0; 64];
    for (at, piece) in pieces {
        all[*at..at + piece.len()].copy_from_slice(piece);
    }
    all
}

const A: Iova = Iova(0x1122_3344_5566_7788);
const A_BYTES: &[u8] = &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
const B: Iova = Iova(0xa1a2_a3a4_a5a6_a7a8);
const B_BYTES: &[u8] = &[0xa8, 0xa7, 0xa6, 0xa5, 0xa4, 0xa3, 0xa2, 0xa1];
const C: Iova = Iova(0xc1c2_c3c4_c5c6_c7c8);
const C_BYTES: &[u8] = &[0xc8, 0xc7, 0xc6, 0xc5, 0xc4, 0xc3, 0xc2, 0xc1];
const SIZE: u32 = 0xdead_4321;
const SIZE_BYTES: &[u8] = &[0x21, 0x43, 0xad, 0xde];
const TAGS: DifTags = DifTags { reference: 0x1020_3040, app_mask: 0x5060, app: 0x7080 };
const TAG_BYTES: &[u8] = &[0x40, 0x30, 0x20, 0x10, 0x60, 0x50, 0x80, 0x70];
const OTHER_TAGS: DifTags = DifTags { reference: 0xabba, app_mask: 1, app: 0xface };
const OTHER_TAG_BYTES: &[u8] = &[0xba, 0xab, 0, 0, 1, 0, 0xce, 0xfa];

/// Every operation, with what its descriptor looks like from byte 7 on.
fn goldens() -> Vec<(Operation, [u8; 64])> {
    let source_flags = SourceFlags::from_bits(0x91);
    let destination_flags = DestinationFlags::from_bits(0xa8);
    let flags = DifFlags::from_bits(0x06);
    std::vec![
        (Operation::Noop, bytes(&[])),
        (
            Operation::Batch { list: A, count: SIZE },
            bytes(&[(7, &[1]), (16, A_BYTES), (32, SIZE_BYTES)]),
        ),
        (
            Operation::Drain { readback1: A, readback2: B },
            bytes(&[(7, &[2]), (16, A_BYTES), (24, B_BYTES)]),
        ),
        (
            Operation::MemoryMove { source: A, destination: B, size: SIZE },
            bytes(&[(7, &[3]), (16, A_BYTES), (24, B_BYTES), (32, SIZE_BYTES)]),
        ),
        (
            Operation::Fill { pattern: A.0, destination: B, size: SIZE },
            bytes(&[(7, &[4]), (16, A_BYTES), (24, B_BYTES), (32, SIZE_BYTES)]),
        ),
        (
            Operation::Compare { source1: A, source2: B, size: SIZE, expected: 1 },
            bytes(&[(7, &[5]), (16, A_BYTES), (24, B_BYTES), (32, SIZE_BYTES), (40, &[1])]),
        ),
        (
            Operation::ComparePattern { source: A, pattern: B.0, size: SIZE, expected: 1 },
            bytes(&[(7, &[6]), (16, A_BYTES), (24, B_BYTES), (32, SIZE_BYTES), (40, &[1])]),
        ),
        (
            Operation::CreateDelta {
                source1: A,
                source2: B,
                size: SIZE,
                delta: C,
                max_delta_size: 0x50,
                expected_mask: 6,
            },
            bytes(&[
                (7, &[7]),
                (16, A_BYTES),
                (24, B_BYTES),
                (32, SIZE_BYTES),
                (40, C_BYTES),
                (48, &[0x50]),
                (56, &[6]),
            ]),
        ),
        (
            Operation::ApplyDelta { delta: A, destination: B, size: SIZE, delta_size: 0x1234 },
            bytes(&[
                (7, &[8]),
                (16, A_BYTES),
                (24, B_BYTES),
                (32, SIZE_BYTES),
                (40, &[0x34, 0x12]),
            ]),
        ),
        (
            Operation::Dualcast { source: A, destination1: B, destination2: C, size: SIZE },
            bytes(&[(7, &[9]), (16, A_BYTES), (24, B_BYTES), (32, SIZE_BYTES), (40, C_BYTES),]),
        ),
        (
            Operation::Crc { source: A, size: SIZE, seed: 0x1234_5678, seed_address: C },
            bytes(&[
                (7, &[0x10]),
                (16, A_BYTES),
                (32, SIZE_BYTES),
                (40, &[0x78, 0x56, 0x34, 0x12]),
                (48, C_BYTES),
            ]),
        ),
        (
            Operation::CopyCrc {
                source: A,
                destination: B,
                size: SIZE,
                seed: 0x1234_5678,
                seed_address: C,
            },
            bytes(&[
                (7, &[0x11]),
                (16, A_BYTES),
                (24, B_BYTES),
                (32, SIZE_BYTES),
                (40, &[0x78, 0x56, 0x34, 0x12]),
                (48, C_BYTES),
            ]),
        ),
        (
            Operation::DifCheck { source: A, size: SIZE, source_flags, flags, source_tags: TAGS },
            bytes(&[
                (7, &[0x12]),
                (16, A_BYTES),
                (32, SIZE_BYTES),
                (40, &[0x91, 0, 0x06]),
                (48, TAG_BYTES),
            ]),
        ),
        (
            Operation::DifInsert {
                source: A,
                destination: B,
                size: SIZE,
                destination_flags,
                flags,
                destination_tags: TAGS,
            },
            bytes(&[
                (7, &[0x13]),
                (16, A_BYTES),
                (24, B_BYTES),
                (32, SIZE_BYTES),
                (40, &[0, 0xa8, 0x06]),
                (56, TAG_BYTES),
            ]),
        ),
        (
            Operation::DifStrip {
                source: A,
                destination: B,
                size: SIZE,
                source_flags,
                flags,
                source_tags: TAGS,
            },
            bytes(&[
                (7, &[0x14]),
                (16, A_BYTES),
                (24, B_BYTES),
                (32, SIZE_BYTES),
                (40, &[0x91, 0, 0x06]),
                (48, TAG_BYTES),
            ]),
        ),
        (
            Operation::DifUpdate {
                source: A,
                destination: B,
                size: SIZE,
                source_flags,
                destination_flags,
                flags,
                source_tags: TAGS,
                destination_tags: OTHER_TAGS,
            },
            bytes(&[
                (7, &[0x15]),
                (16, A_BYTES),
                (24, B_BYTES),
                (32, SIZE_BYTES),
                (40, &[0x91, 0xa8, 0x06]),
                (48, TAG_BYTES),
                (56, OTHER_TAG_BYTES),
            ]),
        ),
        (
            Operation::CacheFlush { destination: B, size: SIZE },
            bytes(&[(7, &[0x20]), (24, B_BYTES), (32, SIZE_BYTES)]),
        ),
    ]
}

#[test]
fn every_operation_encodes_as_specified_and_decodes_back() {
    let goldens = goldens();
    let codes: Vec<Opcode> = goldens.iter().map(|(operation, _)| operation.opcode()).collect();
    assert_eq!(codes, Opcode::ALL);
    for (operation, golden) in goldens {
        assert_eq!(Descriptor::new(operation).to_bytes(), golden, "{operation:?}");
        let descriptor = Descriptor::from_bytes(&golden);
        assert_eq!(descriptor.operation(), Ok(operation));
        assert!(!descriptor.has_reserved(&operation));
    }
}

#[test]
fn head_of_a_descriptor() {
    let descriptor = Descriptor::new(Operation::Noop)
        .with_record(A)
        .with_flags(Flags::REQUEST_RECORD | Flags::BLOCK_ON_FAULT)
        .with_interrupt(0x0304)
        .with_submitter(Submitter::new().with_pasid(0xabcde).with_privileged(true));
    let golden = bytes(&[
        (0, &[0xde, 0xbc, 0x0a, 0x80]),
        (4, &[0x1e, 0, 0, 0]),
        (8, A_BYTES),
        (36, &[0x04, 0x03]),
    ]);
    assert_eq!(descriptor.to_bytes(), golden);
    assert_eq!(Descriptor::from_bytes(&golden), descriptor);
    assert_eq!(descriptor.interrupt_handle(), 0x0304);
}

#[test]
fn any_bytes_survive_the_descriptor() {
    let all: [u8; 64] = core::array::from_fn(|i| (i * 37 + 11) as u8);
    assert_eq!(Descriptor::from_bytes(&all).to_bytes(), all);
    assert_eq!(Descriptor::from_bytes(&[0xff; 64]).to_bytes(), [0xff; 64]);
}

#[test]
fn reserved_fields_are_what_the_operation_does_not_use() {
    for (operation, golden) in goldens() {
        // Every operand byte that is zero in a golden with all fields set is reserved, but for
        // bytes that hold a field's high end.
        let used = Descriptor::new(operation).to_bytes();
        let mut reserved = 0;
        for at in 16..64 {
            let mut changed = golden;
            changed[at] ^= 0x80;
            let descriptor = Descriptor::from_bytes(&changed);
            let decoded = descriptor.operation().unwrap();
            if descriptor.has_reserved(&decoded) {
                assert_eq!(used[at], 0, "{operation:?} byte {at}");
                reserved += 1;
            } else {
                assert_ne!(decoded, operation, "{operation:?} byte {at}");
            }
        }
        assert!(reserved >= 3, "{operation:?}: the interrupt handle and the bytes after it");
    }
    let handle = Descriptor::new(Operation::Noop).with_interrupt(3);
    assert!(!handle.has_reserved(&Operation::Noop));
    let record = Descriptor { record: A, ..Descriptor::new(Operation::Noop) };
    assert!(record.has_reserved(&Operation::Noop));
    assert!(!record.with_record(A).has_reserved(&Operation::Noop));
}

#[test]
fn operation_codes() {
    let codes: Vec<u8> = Opcode::ALL.iter().map(|&opcode| opcode as u8).collect();
    let expected = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x20];
    assert_eq!(codes, expected);
    for code in 0..=255u8 {
        assert_eq!(Opcode::try_from(code).is_ok(), expected.contains(&code), "{code:#x}");
    }
}

#[test]
fn allowed_flags() {
    // Table "Descriptor flags", the columns BOF 0x2, check 0x80, CC/readback 0x4100, strict
    // 0x2000, TC1 0x200, TC2 0x400, TC3 0x800, over fence 0x1, CRAV 0x4, RCR 0x8, RCI 0x10 and
    // record TC 0x1000.
    const COMMON: u32 = 0x101d;
    let copy = 0x2 | 0x4100 | 0x2000 | 0x200 | 0x400;
    let expected = [
        (Opcode::Noop, 0),
        (Opcode::Batch, 0x200),
        (Opcode::Drain, 0x600 | 0xf_0000),
        (Opcode::MemoryMove, copy),
        (Opcode::Fill, 0x2 | 0x4100 | 0x2000 | 0x400),
        (Opcode::Compare, 0x2 | 0x80 | 0x200 | 0x400),
        (Opcode::ComparePattern, 0x2 | 0x80 | 0x200),
        (Opcode::CreateDelta, copy | 0x80 | 0x800),
        (Opcode::ApplyDelta, copy),
        (Opcode::Dualcast, copy | 0x800),
        (Opcode::Crc, 0x2 | 0x200 | 0x800 | 0x7_0000),
        (Opcode::CopyCrc, copy | 0x800 | 0x7_0000),
        (Opcode::DifCheck, 0x2 | 0x200),
        (Opcode::DifInsert, copy),
        (Opcode::DifStrip, copy),
        (Opcode::DifUpdate, copy),
        (Opcode::CacheFlush, 0x2 | 0x100 | 0x2000 | 0x400),
    ];
    for (opcode, own) in expected {
        assert_eq!(Flags::allowed(opcode).bits(), own | COMMON, "{opcode:?}");
    }
    let needs_record: Vec<Opcode> = Opcode::ALL
        .iter()
        .copied()
        .filter(|&opcode| Flags::required(opcode).bits() == 0xc)
        .collect();
    assert_eq!(
        needs_record,
        [
            Opcode::Compare,
            Opcode::ComparePattern,
            Opcode::CreateDelta,
            Opcode::Crc,
            Opcode::CopyCrc,
            Opcode::DifCheck
        ]
    );
}

#[test]
fn completion_record() {
    let golden: [u8; 32] = [
        0x83, 0x01, 0, 0, 0x21, 0x43, 0xad, 0xde, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
        0x40, 0x30, 0x20, 0x10, 0x60, 0x50, 0x80, 0x70, 0xba, 0xab, 0, 0, 1, 0, 0xce, 0xfa,
    ];
    let record = CompletionRecord::from_bytes(&golden);
    assert_eq!(record.status.status(), Ok(Status::PageFault));
    assert!(record.status.write());
    assert_eq!(record.result, 1);
    assert_eq!(record.bytes_completed, SIZE);
    assert_eq!(record.fault_address, A);
    assert_eq!(record.crc(), 0x1020_3040);
    assert_eq!(record.invalid_flags(), 0x20_3040);
    assert_eq!(record.source_tags(), TAGS);
    assert_eq!(record.destination_tags(), OTHER_TAGS);
    assert_eq!(record.to_bytes(), golden);
    assert_eq!(StatusByte::of(Status::RecordFault, true).into_bits(), 0x9a);
    assert!(CompletionRecord::default().status.is_pending());
}

#[test]
fn status_codes() {
    let known: Vec<u8> = Status::ALL.iter().map(|&status| status as u8).collect();
    let expected: Vec<u8> = (1..=9).chain(0x10..=0x22).collect();
    assert_eq!(known, expected);
    for code in 0..=255u8 {
        assert_eq!(Status::try_from(code).is_ok(), expected.contains(&code), "{code:#x}");
    }
}

#[test]
fn capabilities_seen_on_hardware() {
    let gencap = GenCap::from_bits(0x0000_0000_815f_0107);
    assert!(gencap.block_on_fault() && gencap.overlapping_copy());
    assert!(gencap.cache_control_memory() && gencap.destination_readback());
    assert!(gencap.configurable() && !gencap.command_capabilities() && !gencap.drain_readback());
    assert_eq!((gencap.max_transfer_shift(), gencap.max_batch_shift()), (31, 10));
    assert_eq!(gencap.ims_size(), 0);
    let wqcap = WqCap::from_bits(0x003b_0000_0008_0080);
    assert_eq!((wqcap.total_entries(), wqcap.queues(), wqcap.config_shift()), (128, 8, 0));
    assert!(wqcap.shared() && wqcap.dedicated() && !wqcap.ats_disable());
    assert!(wqcap.priority() && wqcap.occupancy() && wqcap.occupancy_interrupt());
    let grpcap = GrpCap::from_bits(0x3_6004);
    assert_eq!((grpcap.groups(), grpcap.read_buffers()), (4, 96));
    assert!(grpcap.read_buffer_controls() && grpcap.global_limit());
    let offsets = Offsets::from_bits(0x10 << 64 | 0x0040_0002_0004_0003);
    assert_eq!((offsets.grpcfg(), offsets.wqcfg(), offsets.msixperm()), (3, 4, 2));
    assert_eq!((offsets.ims(), offsets.perfmon()), (0x40, 0x10));
}

#[test]
fn registers_neither_overlap_nor_straddle() {
    for pair in REGISTERS.windows(2) {
        assert!(pair[0].offset + pair[0].size <= pair[1].offset, "{}", pair[1].name);
    }
    assert!(REGISTERS.iter().all(|register| register.offset % register.size.min(8) == 0));
    assert_eq!(offset::CMD, 0xa0);
    assert_eq!(offset::SWERROR, 0xc0);
}

#[test]
fn control_and_status_registers() {
    assert_eq!(GenCfg::from_bits(0x1060).read_buffer_limit(), 0x60);
    assert!(GenCfg::from_bits(0x1000).user_interrupts());
    assert_eq!(GenCtrl::new().with_halt_interrupt(true).into_bits(), 2);
    let halted = GenSts::new().with_state(DeviceState::Halted).with_reset(ResetType::FunctionLevel);
    assert_eq!(halted.into_bits(), 0b0111);
    let cause = IntCause::new().with_command(true).with_halt(true).with_handles_revoked(true);
    assert_eq!(cause.into_bits(), 0x8000_0012);
    let status = CmdStatus::new().with_error(0x10).with_result(0x1234).with_active(true);
    assert_eq!(status.into_bits(), 0x8012_3410);
    let perm = MsixPerm::new().with_ignore(true).with_pasid_enable(true).with_pasid(0xabcde);
    assert_eq!(perm.into_bits(), 0xabcd_e00c);
}

#[test]
fn work_queue_configuration_of_a_kernel_queue() {
    // Read back from an enabled kernel work queue.
    let dwords = [0x10, 0, 0x1000_0011, 0x15f, 0, 0, 0x4000_0000, 0];
    let config = WqConfig::from_dwords(dwords);
    assert_eq!(config.size, 16);
    assert!(config.mode.dedicated() && config.mode.pasid_enable() && !config.mode.privileged());
    assert_eq!((config.mode.priority(), config.mode.pasid()), (1, 0));
    assert_eq!(config.limits.max_transfer_shift(), 31);
    assert_eq!(config.limits.max_batch_shift(), 10);
    assert_eq!(config.occupancy.state(), WqState::Enabled);
    assert_eq!(config.to_dwords(), dwords);
    let mode = WqMode::new().with_pasid(0xabcde).with_privileged(true).with_block_on_fault(true);
    assert_eq!(mode.into_bits(), 0x2abc_de02);
}

#[test]
fn group_flags() {
    // Traffic classes 1, 8 read buffers allowed, 2 reserved, global limit.
    let flags = GroupFlags::from_bits(0x0080_0289);
    assert_eq!((flags.tc_a(), flags.tc_b()), (1, 1));
    assert!(flags.use_global_limit());
    assert_eq!((flags.buffers_reserved(), flags.buffers_allowed()), (2, 8));
}

#[test]
fn commands() {
    let decode = |bits| Command::decode(Cmd::from_bits(bits));
    assert_eq!(decode(0x0050_0000), Ok(Command::ResetDevice));
    assert_eq!(decode(0x8010_0000), Ok(Command::EnableDevice));
    assert_eq!(decode(0x8060_0007), Ok(Command::EnableWq(7)));
    assert_eq!(decode(0x80a0_0003), Ok(Command::ResetWq(WqSet::new().with_bitmap(3))));
    assert_eq!(decode(0x0081_0001), Ok(Command::DrainWq(WqSet::new().with_bitmap(1).with_base(1))));
    assert_eq!(decode(0x00ba_bcde), Ok(Command::DrainPasid(0xabcde)));
    assert_eq!(
        decode(0x00d1_0002),
        Ok(Command::RequestInterruptHandle(HandleOperand::new().with_index(2).with_ims(true)))
    );
    assert_eq!(decode(0), Err(CommandError::Unsupported));
    assert_eq!(decode(0x00f0_0000), Err(CommandError::Unsupported));
    assert_eq!(decode(0x0210_0000), Err(CommandError::Reserved));
    assert_eq!(decode(0x0010_0001), Err(CommandError::Reserved));
    assert_eq!(decode(0x0060_0107), Err(CommandError::Reserved));
    let codes: Vec<u8> = CommandCode::ALL.iter().map(|&code| code as u8).collect();
    assert_eq!(codes, (1..=14).collect::<Vec<u8>>());
}

#[test]
fn software_error() {
    let error = SwError {
        head: SwErrorHead::new()
            .with_valid(true)
            .with_descriptor_valid(true)
            .with_wq_valid(true)
            .with_batch(true)
            .with_write(true)
            .with_code(0x1a)
            .with_wq(3)
            .with_opcode(0x20)
            .with_pasid(0xabcde),
        batch_index: 0x0102,
        address: A,
    };
    let golden = [0x0abc_de20_0003_1a3d, 0x0102, 0x1122_3344_5566_7788, 0];
    assert_eq!(error.to_qwords(), golden);
    assert_eq!(SwError::from_qwords(golden), error);
}

#[test]
fn portals() {
    assert_eq!(Portal::at(0x1040), (0, Portal::LIMITED));
    assert_eq!(Portal::at(0x4000), (1, Portal::UNLIMITED));
    assert_eq!(Portal::at(0x1_fff8), (7, Portal { limited: true, ims: true }));
    assert_eq!(Portal::LIMITED.offset(3), 0xd000);
    assert_eq!(Portal { limited: false, ims: true }.offset(1), 0x6000);
}
