//! Every device command: its states, its errors, and its end while work is in flight.

mod rig;

use dsa::model::{Config, Ran, CHUNK};
use dsa::spec::*;
use mem::Gpa;
use pci::Function;
use rig::*;

use CommandCode as Code;
use CommandError as Error;

fn failed(error: Error) -> u32 {
    CmdStatus::new().with_error(error as u8).into_bits()
}

/// A device that can be enabled: queue 0 with 16 entries and all engines in group 0.
fn ready() -> Rig {
    let rig = Rig::new();
    rig.enable_function();
    rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
    rig.set_engines(0, 0xf);
    rig
}

/// A copy of many chunks under way on engine 0, and a no-op queued behind it.
fn busy() -> Rig {
    let mut rig = Rig::dedicated();
    // One engine only, so that the second descriptor waits.
    rig.engines.truncate(1);
    let copy = Descriptor::new(memory_move(FLAT, FLAT + 0x20_0000, 0x20_0000));
    rig.post(0, &copy.with_record(Rig::record_at(0)).with_flags(Flags::REQUEST_RECORD));
    let noop = Descriptor::new(Operation::Noop);
    rig.post(0, &noop.with_record(Rig::record_at(1)).with_flags(Flags::REQUEST_RECORD));
    rig.fill(FLAT, &noise(1, 0x20_0000));
    assert_eq!(rig.step(4), Ran::More, "taken up, and three chunks");
    assert_eq!(rig.bytes(FLAT + 0x20_0000, 3 * CHUNK), rig.bytes(FLAT, 3 * CHUNK));
    assert_eq!(rig.bytes(FLAT + 0x20_0000 + 3 * CHUNK as u64, 1), [0]);
    rig
}

/// Whether the two descriptors of `busy` were completed.
fn completed(rig: &Rig) -> [bool; 2] {
    [0, 1].map(|index| !rig.record(index).status.is_pending())
}

#[test]
fn completion_by_status_and_by_interrupt() {
    let rig = ready();
    rig.write32(0xa0, 0x8000_0000 | 1 << 20);
    assert_eq!(rig.read32(0xa8), 0, "success is exactly zero");
    assert_eq!(rig.read32(0x98), 2, "INTCAUSE: command");
    assert_eq!(rig.interrupts.take(), [0]);
    rig.write32(0x98, 2);
    assert_eq!(rig.read32(0x98), 0);
    rig.write32(0xa0, 1 << 20);
    assert_eq!(rig.read32(0xa8), failed(Error::DeviceNotDisabled));
    assert_eq!((rig.read32(0x98), rig.interrupts.take()), (0, vec![]), "no interrupt asked for");
}

#[test]
fn unknown_commands_and_reserved_bits() {
    let rig = ready();
    for code in [0u32, 13, 14, 15, 16, 17, 31] {
        rig.write32(0xa0, code << 20);
        assert_eq!(rig.read32(0xa8), failed(Error::Unsupported), "{code}");
    }
    assert_eq!(rig.command(Code::EnableDevice, 1), failed(Error::Reserved));
    assert_eq!(rig.command(Code::EnableWq, 0x100), failed(Error::Reserved));
    rig.write32(0xa0, 1 << 25 | 1 << 20);
    assert_eq!(rig.read32(0xa8), failed(Error::Reserved));
}

#[test]
fn interrupt_handles_are_given_out_only_by_devices_that_want_it() {
    let config = Config { interrupt_handles: true, ..Config::default() };
    let rig = Rig::with(config, &[(Gpa(FLAT), 0x1000)]);
    assert_eq!(rig.read64(0x10), 0x0000_0000_815f_0117, "GENCAP: CMDCAP is there");
    assert_eq!(rig.read64(0xb0), 0x7ffe, "CMDCAP: commands 1 to 14");
    for index in 0..9 {
        let status = CmdStatus::new().with_result(index as u16).into_bits();
        assert_eq!(rig.command(Code::RequestInterruptHandle, index), status);
        assert_eq!(rig.command(Code::ReleaseInterruptHandle, index), status);
    }
    for operand in [9, 0xffff, 0x1_0000] {
        assert_eq!(
            rig.command(Code::RequestInterruptHandle, operand),
            failed(Error::BadInterruptIndex)
        );
        assert_eq!(
            rig.command(Code::ReleaseInterruptHandle, operand),
            failed(Error::BadInterruptIndex)
        );
    }
}

#[test]
fn enable_device_checks_the_function() {
    let rig = ready();
    rig.device.config_write(0x04, &2u16.to_le_bytes());
    assert_eq!(rig.command(Code::EnableDevice, 0), failed(Error::BusMasterOff));
    rig.device.config_write(0x04, &6u16.to_le_bytes());
    // Page requests on, without an allocation, then with one above the capacity.
    rig.device.config_write(0x244, &1u16.to_le_bytes());
    assert_eq!(rig.command(Code::EnableDevice, 0), failed(Error::PageRequestAllocation));
    rig.device.config_write(0x24c, &0x201u32.to_le_bytes());
    assert_eq!(rig.command(Code::EnableDevice, 0), failed(Error::PageRequestAllocation));
    rig.device.config_write(0x24c, &0x200u32.to_le_bytes());
    assert_eq!(rig.command(Code::EnableDevice, 0), 0);
    assert_eq!(rig.state().state(), DeviceState::Enabled);
    assert_eq!(rig.command(Code::EnableDevice, 0), failed(Error::DeviceNotDisabled));
}

/// Breaks the configuration of `ready` in one way, and expects one error for it.
fn expect_refusal(what: &str, error: Error, breaks: impl Fn(&Rig)) {
    let rig = ready();
    breaks(&rig);
    assert_eq!(rig.command(Code::EnableDevice, 0), failed(error), "{what}");
    assert_eq!(rig.state().state(), DeviceState::Disabled, "{what}");
}

#[test]
fn enable_device_checks_queues_and_groups() {
    expect_refusal("sizes", Error::TotalWqSize, |rig| rig.write32(WQCFG, 129));
    expect_refusal("queues without engines", Error::GroupIncomplete, |rig| rig.set_engines(0, 0));
    expect_refusal("engines without queues", Error::GroupIncomplete, |rig| {
        rig.set_engines(0, 1);
        rig.set_engines(1, 2);
    });
    expect_refusal("queue in two groups", Error::GroupWqs, |rig| {
        rig.set_engines(0, 1);
        rig.set_engines(1, 2);
        rig.write64(GRPCFG + 64, 1);
    });
    expect_refusal("queue with a size and no group", Error::GroupWqs, |rig| {
        rig.write32(WQCFG + 32, 1);
    });
    expect_refusal("queue with a group and no size", Error::GroupWqs, |rig| {
        rig.write64(GRPCFG, 3);
    });
    for (word, bits) in [(0, 1 << 8 | 1), (1, 1), (3, 1 << 63)] {
        expect_refusal("queue that does not exist", Error::GroupWqs, |rig| {
            rig.write64(GRPCFG + word * 8, bits);
        });
    }
    expect_refusal("engine in two groups", Error::GroupEngines, |rig| {
        rig.configure(1, 1, 8, user_mode(true));
        rig.set_engines(1, 1);
    });
    for engine in [4, 63] {
        expect_refusal("engine that does not exist", Error::GroupEngines, |rig| {
            rig.set_engines(0, 1 << engine);
        });
    }
}

#[test]
fn enable_device_checks_read_buffers() {
    let flags = GroupFlags::new().with_buffers_allowed(96);
    let refuse = |what, flags: GroupFlags| {
        expect_refusal(what, Error::ReadBuffers, |rig| {
            rig.write64(GRPCFG + 40, flags.into_bits());
        });
    };
    refuse("fewer than four for each engine", flags.with_buffers_allowed(15));
    let few = flags.with_buffers_allowed(16);
    refuse("fewer than reserved", few.with_buffers_reserved(17));
    refuse("more than there are", flags.with_buffers_allowed(97));
    refuse("more reserved than there are", flags.with_buffers_reserved(97));
    expect_refusal("what another group reserves", Error::ReadBuffers, |rig| {
        rig.configure(1, 1, 8, user_mode(true));
        rig.set_engines(0, 3);
        rig.set_engines(1, 0xc);
        let other = GroupFlags::new().with_buffers_allowed(40).with_buffers_reserved(40);
        rig.write64(GRPCFG + 64 + 40, other.into_bits());
        rig.write64(GRPCFG + 40, flags.with_buffers_allowed(57).into_bits());
    });
    expect_refusal("the global limit", Error::ReadBuffers, |rig| {
        rig.write32(0x80, 15);
        rig.write64(GRPCFG + 40, flags.with_use_global_limit(true).into_bits());
    });
    // What accel-config sets up.
    let rig = ready();
    rig.configure(1, 1, 16, user_mode(true));
    for group in 0..2 {
        rig.set_engines(group, 3 << (2 * group));
        let flags = GroupFlags::new().with_tc_a(1).with_tc_b(1).with_buffers_allowed(8);
        rig.write64(GRPCFG + 64 * group + 40, flags.into_bits());
    }
    assert_eq!(rig.command(Code::EnableDevice, 0), 0);
}

/// Enables queue 0 with this mode and expects an error.
fn expect_wq_refusal(error: Error, breaks: impl Fn(WqConfig) -> WqConfig) {
    let rig = ready();
    let good = rig.wq(0);
    let bad = breaks(good);
    for (i, dword) in bad.to_dwords().into_iter().enumerate() {
        rig.write32(WQCFG + i as u64 * 4, dword);
    }
    rig.enable(&[]);
    assert_eq!(rig.command(Code::EnableWq, 0), failed(error), "{bad:?}");
    assert_eq!(rig.wq(0).occupancy.state(), WqState::Disabled);
}

#[test]
fn enable_wq_checks_its_configuration() {
    let mode = |change: fn(WqMode) -> WqMode| {
        move |config: WqConfig| WqConfig { mode: change(config.mode), ..config }
    };
    let limits = |change: fn(WqLimits) -> WqLimits| {
        move |config: WqConfig| WqConfig { limits: change(config.limits), ..config }
    };
    expect_wq_refusal(Error::WqPriorityZero, mode(|m| m.with_priority(0)));
    expect_wq_refusal(Error::WqBlockOnFault, mode(|m| m.with_block_on_fault(true)));
    let shared = mode(|m| m.with_dedicated(false).with_pasid_enable(false));
    expect_wq_refusal(Error::WqPasidEnable, shared);
    expect_wq_refusal(Error::WqMaxBatch, limits(|l| l.with_max_batch_shift(0)));
    expect_wq_refusal(Error::WqMaxBatch, limits(|l| l.with_max_batch_shift(11)));
    expect_wq_refusal(Error::WqPrivilege, mode(|m| m.with_privileged(true)));
    expect_wq_refusal(Error::WqOccupancyInterrupt, |config| WqConfig {
        occupancy_limit: WqOccupancyLimit::new().with_interrupt_enable(true),
        ..config
    });
    expect_wq_refusal(Error::WqAtsDisable, mode(|m| m.with_ats_disable(true)));
    expect_wq_refusal(Error::WqPrsDisable, mode(|m| m.with_prs_disable(true)));
}

#[test]
fn enable_wq_checks_states_and_the_function() {
    let rig = ready();
    assert_eq!(rig.command(Code::EnableWq, 0), failed(Error::DeviceNotEnabled));
    rig.enable(&[0]);
    assert_eq!(rig.wq(0).occupancy.state(), WqState::Enabled);
    assert_eq!(rig.command(Code::EnableWq, 0), failed(Error::WqNotDisabled));
    assert_eq!(rig.command(Code::EnableWq, 1), failed(Error::WqSizeZero));
    for index in [8, 255] {
        assert_eq!(rig.command(Code::EnableWq, index), failed(Error::BadWq));
    }
    // PASIDs off in the function.
    let rig = ready();
    rig.device.config_write(0x236, &0u16.to_le_bytes());
    rig.enable(&[]);
    assert_eq!(rig.command(Code::EnableWq, 0), failed(Error::WqPasidEnable));
    // Privileged mode on in the function.
    let rig = ready();
    rig.device.config_write(0x236, &5u16.to_le_bytes());
    let privileged = user_mode(true).with_privileged(true);
    rig.configure(0, 0, 16, privileged);
    rig.enable(&[0]);
}

#[test]
fn commands_on_several_queues_want_all_of_them_enabled() {
    let rig = ready();
    rig.configure(1, 0, 16, user_mode(false));
    rig.enable(&[0]);
    for code in [Code::DisableWq, Code::DrainWq, Code::AbortWq] {
        assert_eq!(rig.command(code, 0b11), failed(Error::WqNotEnabled), "{code:?}");
        assert_eq!(rig.command(code, 1 << 8), failed(Error::BadWq), "{code:?}");
        assert_eq!(rig.command(code, 1 << 16 | 1), failed(Error::BadWq), "{code:?}");
    }
    assert_eq!(rig.command(Code::ResetWq, 1 << 15), failed(Error::BadWq));
    assert_eq!(rig.command(Code::ResetWq, 0b11), 0, "a disabled queue is just cleared");
    assert_eq!(rig.command(Code::DisableDevice, 0), 0);
    assert_eq!(rig.command(Code::DisableDevice, 0), failed(Error::DisableNotEnabled));
    assert_eq!(rig.command(Code::DrainAll, 0), 0);
    assert_eq!(rig.command(Code::AbortAll, 0), 0);
}

#[test]
fn reset_wq_keeps_the_size() {
    let rig = Rig::dedicated();
    assert_eq!(rig.command(Code::ResetWq, 1), 0);
    assert_eq!(rig.wq(0), WqConfig { size: 16, ..WqConfig::default() });
    // As the driver does at each open: write everything again, but the size is locked now.
    rig.configure(0, 0, 16, user_mode(true).with_pasid(7));
    assert_eq!(rig.command(Code::EnableWq, 0), 0);
    assert_eq!(rig.wq(0).mode.pasid(), 7);
}

#[test]
fn reset_device_clears_what_it_should_and_nothing_else() {
    let rig = Rig::dedicated();
    rig.write32(0x88, 3);
    rig.write32(MSIXPERM + 8, 0x1234_500c);
    rig.write64(0x2010, 0xfee0_1000);
    // A command while a command is active leaves an error behind.
    rig.post(0, &Descriptor::new(Operation::Noop));
    rig.start(Code::DrainAll, 0);
    rig.start(Code::DrainAll, 0);
    assert_eq!(rig.swerror().head.code(), SwError::COMMAND_ACTIVE);
    let mut rig = rig;
    rig.settle();
    assert_eq!(rig.command(Code::ResetDevice, 0), 0);
    assert_eq!(rig.state(), GenSts::new());
    assert_eq!(rig.wq(0), WqConfig::default());
    assert_eq!([0, 32, 40].map(|at| rig.read64(GRPCFG + at)), [0, 0, 96 << 20]);
    assert_eq!((rig.read32(0x80), rig.read32(0x88), rig.read32(0x98)), (96, 0, 0));
    assert_eq!(rig.read32(MSIXPERM + 8), 0);
    assert_eq!(rig.read64(0x2010), 0xfee0_1000, "the MSI-X table stays");
    assert_eq!(rig.swerror().head.code(), SwError::COMMAND_ACTIVE, "SWERROR stays");
    assert_eq!(rig.command(Code::ResetDevice, 0), 0, "valid in any state");
}

#[test]
fn drains_wait_for_what_was_submitted_before_them() {
    for (code, operand) in [
        (Code::DrainAll, 0),
        (Code::DrainWq, 1),
        (Code::DrainPasid, PASID),
        (Code::DisableWq, 1),
        (Code::DisableDevice, 0),
    ] {
        let mut rig = busy();
        rig.write32(0xa0, 1 << 31 | (code as u32) << 20 | operand);
        assert!(rig.command_status().active(), "{code:?}");
        let disabling = match code {
            Code::DisableDevice => (DeviceState::Disabling, WqState::Disabling),
            Code::DisableWq => (DeviceState::Enabled, WqState::Disabling),
            _ => (DeviceState::Enabled, WqState::Enabled),
        };
        assert_eq!((rig.state().state(), rig.wq(0).occupancy.state()), disabling, "{code:?}");
        // What comes later does not hold it up, or is not taken at all.
        let late = Descriptor::new(memory_move(FLAT, FLAT + 0x40_0000, 0x20_0000));
        rig.post(0, &late);
        assert!(rig.interrupts.take().is_empty());
        while rig.command_status().active() {
            let _ = rig.step(1);
        }
        assert_eq!(rig.interrupts.take(), [0], "{code:?}");
        assert_eq!(completed(&rig), [true, true], "{code:?}");
        assert_eq!(rig.command_status(), CmdStatus::new());
        let after = match code {
            Code::DisableDevice => (DeviceState::Disabled, WqState::Disabled, 0),
            Code::DisableWq => (DeviceState::Enabled, WqState::Disabled, 0),
            _ => (DeviceState::Enabled, WqState::Enabled, 1),
        };
        let occupancy = rig.wq(0).occupancy;
        assert_eq!((rig.state().state(), occupancy.state(), occupancy.occupancy()), after);
    }
}

#[test]
fn a_drain_of_another_pasid_or_queue_does_not_wait() {
    let rig = busy();
    assert_eq!(rig.command(Code::DrainPasid, PASID + 1), 0);
    assert_eq!(rig.command(Code::AbortPasid, PASID + 1), 0);
    assert_eq!(rig.wq(0).occupancy.occupancy(), 1);
}

#[test]
fn aborts_and_resets_leave_no_trace_of_what_they_abandon() {
    for (code, operand) in [
        (Code::AbortAll, 0),
        (Code::AbortWq, 1),
        (Code::AbortPasid, PASID),
        (Code::ResetWq, 1),
        (Code::ResetDevice, 0),
    ] {
        let mut rig = busy();
        rig.start(code, operand);
        assert!(rig.command_status().active(), "{code:?}: a chunk may still be in flight");
        assert_eq!(rig.wq(0).occupancy.occupancy(), 0, "{code:?}: what is queued goes at once");
        let before = rig.bytes(FLAT + 0x20_0000, 0x20_0000);
        let _ = rig.step(1);
        assert_eq!(rig.command_status(), CmdStatus::new(), "{code:?}");
        rig.settle();
        assert_eq!(completed(&rig), [false, false], "{code:?}");
        assert!(rig.bytes(FLAT + 0x20_0000, 0x20_0000) == before, "{code:?} writes on");
        assert!(rig.interrupts.take().is_empty());
        assert_eq!(rig.device.counters().abandoned, 2);
        let state = match code {
            Code::ResetWq => (DeviceState::Enabled, WqState::Disabled),
            Code::ResetDevice => (DeviceState::Disabled, WqState::Disabled),
            _ => (DeviceState::Enabled, WqState::Enabled),
        };
        assert_eq!((rig.state().state(), rig.wq(0).occupancy.state()), state, "{code:?}");
    }
}

#[test]
fn a_command_while_one_is_active_is_dropped() {
    let mut rig = busy();
    rig.write32(0x88, 1);
    rig.start(Code::DrainAll, 0);
    rig.start(Code::ResetDevice, 0);
    let error = rig.swerror();
    assert_eq!(error.head.code(), SwError::COMMAND_ACTIVE);
    assert!(error.head.valid() && !error.head.wq_valid() && !error.head.descriptor_valid());
    assert_eq!((rig.read32(0x98), rig.interrupts.take()), (1, vec![0]), "software error interrupt");
    rig.settle();
    assert_eq!(completed(&rig), [true, true], "the drain goes on");
    assert_eq!(rig.state().state(), DeviceState::Enabled);
}

#[test]
fn function_level_reset_in_the_middle_of_a_copy() {
    for by_config in [false, true] {
        let mut rig = busy();
        rig.write32(0x88, 3);
        rig.start(Code::DrainAll, 0);
        if by_config {
            let mut control = [0; 2];
            rig.device.config_read(0x48, &mut control);
            rig.device.config_write(0x48, &[control[0], control[1] | 0x80]);
        } else {
            rig.device.reset();
        }
        assert_eq!(rig.state(), GenSts::new());
        assert_eq!([0x80, 0x88, 0x98, 0xa8].map(|at| rig.read32(at)), [96, 0, 0, 0]);
        assert_eq!(rig.wq(0), WqConfig::default());
        let mut command = [0; 2];
        rig.device.config_read(0x04, &mut command);
        assert_eq!(command, [0, 0], "configuration space too");
        let before = rig.bytes(FLAT + 0x20_0000, 0x20_0000);
        // A driver does not wait for the engine before it starts over.
        rig.enable_function();
        rig.configure(0, 0, 16, user_mode(true).with_pasid(9));
        rig.set_engines(0, 1);
        rig.enable(&[0]);
        rig.settle();
        assert_eq!(completed(&rig), [false, false]);
        assert!(rig.bytes(FLAT + 0x20_0000, 0x20_0000) == before);
        assert!(rig.interrupts.take().is_empty());
        rig.expect(memory_move(FLAT, FLAT + 0x40_0000, 64), Status::Success);
    }
}

#[test]
fn changing_the_function_under_an_enabled_device_halts_it() {
    let changes: [(&str, u16, u16); 4] = [
        ("bus master", 0x04, 0x0002),
        ("ATS", 0x226, 0),
        ("PASID", 0x236, 0),
        ("page requests", 0x244, 1),
    ];
    for (what, at, value) in changes {
        let mut rig = busy();
        rig.write32(0x88, 3);
        rig.device.config_write(at, &value.to_le_bytes());
        let halted = GenSts::new().with_state(DeviceState::Halted);
        assert_eq!(rig.state(), halted.with_reset(ResetType::FunctionLevel), "{what}");
        assert_eq!(rig.swerror().head.code(), SwError::CONFIG_CHANGE, "{what}");
        assert_eq!(rig.read32(0x98), 0x11, "{what}: software error and halt");
        assert!(rig.interrupts.take().iter().all(|&vector| vector == 0));
        rig.settle();
        assert_eq!(completed(&rig), [false, false], "{what}");
        for code in [Code::EnableDevice, Code::DrainAll, Code::DisableDevice] {
            assert_eq!(rig.command(code, 0), failed(Error::Halted), "{what}");
        }
        assert_eq!(rig.command(Code::ResetDevice, 0), failed(Error::Halted));
        assert_eq!(rig.state().state(), DeviceState::Halted, "{what}: only a function reset helps");
        rig.device.reset();
        assert_eq!(rig.state(), GenSts::new());
    }
    // While disabled the function may be changed freely.
    let rig = ready();
    for (_, at, value) in changes {
        rig.device.config_write(at, &value.to_le_bytes());
    }
    assert_eq!((rig.state(), rig.swerror()), (GenSts::new(), SwError::default()));
}

#[test]
fn a_halt_ends_the_command_that_waits() {
    let rig = busy();
    rig.write32(0xa0, 1 << 31 | (Code::DrainAll as u32) << 20);
    rig.device.config_write(0x226, &[0, 0]);
    assert_eq!(rig.read32(0xa8), failed(Error::Halted));
    assert_eq!(rig.read32(0x98) & 2, 2, "and says so by interrupt");
}

#[test]
fn an_engine_that_is_dropped_gives_up_its_work() {
    let mut rig = busy();
    rig.start(Code::DrainAll, 0);
    assert!(rig.device.engine(0).is_none(), "somebody has it");
    rig.engines.clear();
    assert!(rig.command_status().active(), "the no-op is still queued");
    rig.engines.push(rig.device.engine(0).unwrap());
    rig.settle();
    assert_eq!(completed(&rig), [false, true]);
    assert!(!rig.command_status().active());
    assert!(rig.device.engine(4).is_none());
}
