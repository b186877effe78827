//! BAR 0: the register file.
//!
//! Accesses are 1, 2, 4 or 8 bytes, aligned. Each is taken as a part of the aligned quadword that
//! it lies in: reads pick their bytes of it, writes say which bits of it they carry.

use super::caps::{GRPCFG, MSIXPERM, WQCFG};
use super::effects::Effects;
use super::state::State;
use crate::spec::{
    offset, Cmd, DeviceState, GenCfg, GenCtrl, GenSts, GroupFlags, IntCause, MsixPerm, Register,
    RegisterAccess, SwError, WqConfig, WqLimits, WqMode, WqOccupancyHandle, WqOccupancyLimit,
    WqState, GRPCFG_ENGINES, GRPCFG_FLAGS, GRPCFG_SIZE, GRPCFG_WQS, MSIXPERM_STRIDE, REGISTERS,
    VERSION_1_0,
};

/// A write to an aligned quadword: a value, and which of its bits are written.
#[derive(Clone, Copy, Debug)]
struct Write {
    value: u64,
    mask: u64,
}

impl Write {
    /// What becomes of `old`.
    fn merge(self, old: u64) -> u64 {
        old & !self.mask | self.value & self.mask
    }

    /// What becomes of the 32 bits of `old` in the low half of the quadword.
    fn merge_low(self, old: u32) -> u32 {
        self.merge(old.into()) as u32
    }

    /// The bits that are written as one.
    fn ones(self) -> u64 {
        self.value & self.mask
    }
}

/// Where an access lies.
enum Place {
    Register(&'static Register),
    /// MSI-X table entry.
    Permission(usize),
    /// Group, and offset in its GRPCFG.
    Group(usize, u32),
    /// Work queue, and first dword of its WQCFG.
    Wq(usize, usize),
    /// Nothing is there: reads as zero.
    Nowhere,
}

impl State {
    /// Reads `data.len()` bytes at `at`; all ones if the access is malformed.
    pub(super) fn register_read(&self, at: u64, data: &mut [u8]) {
        let Some((quadword, first)) = split(at, data.len()) else {
            self.tally.bad_accesses.add(1);
            return data.fill(0xff);
        };
        let bytes = self.read_quadword(quadword).to_le_bytes();
        data.copy_from_slice(&bytes[first..first + data.len()]);
    }

    /// Writes `data` at `at`; nothing if the access is malformed.
    pub(super) fn register_write(&mut self, at: u64, data: &[u8], fx: &mut Effects) {
        let Some((quadword, first)) = split(at, data.len()) else {
            return self.tally.bad_accesses.add(1);
        };
        let (mut value, mut mask) = ([0; 8], [0; 8]);
        value[first..first + data.len()].copy_from_slice(data);
        mask[first..first + data.len()].fill(0xff);
        let write = Write { value: u64::from_le_bytes(value), mask: u64::from_le_bytes(mask) };
        match self.place(quadword) {
            Place::Register(register) => self.write_register(register, quadword, write, fx),
            Place::Permission(index) => self.write_permission(index, write),
            Place::Group(index, at) => self.write_group(index, at, write),
            Place::Wq(index, dword) => self.write_wq(index, dword, write),
            Place::Nowhere => {}
        }
    }

    fn place(&self, at: u32) -> Place {
        let table = |start: u32, stride: u32, count: usize| {
            let offset = at.checked_sub(start)?;
            let index = (offset / stride) as usize;
            (index < count).then_some((index, offset % stride))
        };
        let holds = |register: &&Register| {
            // A register shorter than a quadword has the quadword to itself.
            at.checked_sub(register.offset).is_some_and(|offset| offset < register.size)
        };
        if let Some(register) = REGISTERS.iter().find(holds) {
            return Place::Register(register);
        }
        if let Some((index, _)) = table(MSIXPERM, MSIXPERM_STRIDE, self.permissions.len()) {
            return Place::Permission(index);
        }
        if let Some((index, offset)) = table(GRPCFG, GRPCFG_SIZE, self.groups.len()) {
            return Place::Group(index, offset);
        }
        if let Some((index, offset)) = table(WQCFG, WqConfig::SIZE as u32, self.wqs.len()) {
            return Place::Wq(index, (offset / 4) as usize);
        }
        Place::Nowhere
    }

    fn read_quadword(&self, at: u32) -> u64 {
        match self.place(at) {
            Place::Register(register) => self.read_register(register, at),
            Place::Permission(index) => {
                self.permissions.get(index).map_or(0, |entry| entry.into_bits().into())
            }
            Place::Group(index, offset) => self.read_group(index, offset),
            Place::Wq(index, dword) => {
                let dwords = self.wqs.get(index).map(|wq| wq.registers().to_dwords());
                dwords.map_or(0, |d| u64::from(d[dword]) | u64::from(d[dword + 1]) << 32)
            }
            Place::Nowhere => 0,
        }
    }

    fn read_register(&self, register: &Register, at: u32) -> u64 {
        let index = ((at - register.offset) / 8) as usize;
        let sts = GenSts::new().with_state(self.device).with_reset(self.reset_needed);
        match register.offset {
            offset::VERSION => VERSION_1_0.into(),
            offset::GENCAP => self.caps.gencap().into_bits(),
            offset::WQCAP => self.caps.wqcap().into_bits(),
            offset::GRPCAP => self.caps.grpcap().into_bits(),
            offset::ENGCAP => self.caps.engcap().into_bits(),
            offset::OPCAP => self.caps.opcap()[index],
            offset::OFFSETS => (self.caps.offsets().into_bits() >> (64 * index)) as u64,
            offset::GENCFG => self.gencfg.into_bits().into(),
            offset::GENCTRL => self.genctrl.into_bits().into(),
            offset::GENSTS => sts.into_bits().into(),
            offset::INTCAUSE => self.intcause.into_bits().into(),
            offset::CMDSTATUS => self.cmdstatus.into_bits().into(),
            offset::CMDCAP => self.caps.cmdcap(),
            offset::SWERROR => self.swerror.to_qwords()[index],
            // CMD is write-only.
            _ => 0,
        }
    }

    fn write_register(&mut self, register: &Register, at: u32, write: Write, fx: &mut Effects) {
        let locked = match register.access {
            RegisterAccess::ReadOnly => true,
            RegisterAccess::WhileDisabled => self.device != DeviceState::Disabled,
            _ => false,
        };
        if locked {
            return;
        }
        match register.offset {
            offset::GENCFG => {
                let new = GenCfg::from_bits(write.merge_low(self.gencfg.into_bits()));
                self.gencfg = GenCfg::new()
                    .with_read_buffer_limit(new.read_buffer_limit())
                    .with_user_interrupts(new.user_interrupts());
            }
            offset::GENCTRL => {
                let new = GenCtrl::from_bits(write.merge_low(self.genctrl.into_bits()));
                self.genctrl = GenCtrl::new()
                    .with_software_error_interrupt(new.software_error_interrupt())
                    .with_halt_interrupt(new.halt_interrupt());
            }
            offset::INTCAUSE => {
                let left = self.intcause.into_bits() & !(write.ones() as u32);
                self.intcause = IntCause::from_bits(left);
            }
            // A command is one write of all of its bits.
            offset::CMD if write.mask as u32 == u32::MAX => {
                self.command(Cmd::from_bits(write.value as u32), fx);
            }
            offset::CMD => self.tally.bad_accesses.add(1),
            offset::SWERROR if at == offset::SWERROR => self.clear_software_error(write),
            _ => {}
        }
    }

    /// Clears "valid" and "overflow" where they are written as one; the rest is read-only.
    fn clear_software_error(&mut self, write: Write) {
        let ones = SwError::from_qwords([write.ones(), 0, 0, 0]).head;
        let head = &mut self.swerror.head;
        head.set_valid(head.valid() && !ones.valid());
        head.set_overflow(head.overflow() && !ones.overflow());
    }

    fn write_permission(&mut self, index: usize, write: Write) {
        if let Some(entry) = self.permissions.get_mut(index) {
            let new = MsixPerm::from_bits(write.merge_low(entry.into_bits()));
            *entry = MsixPerm::new()
                .with_ignore(new.ignore())
                .with_pasid_enable(new.pasid_enable())
                .with_pasid(new.pasid());
        }
    }

    fn read_group(&self, index: usize, at: u32) -> u64 {
        let Some(group) = self.groups.get(index) else { return 0 };
        match at {
            GRPCFG_ENGINES => group.engines,
            GRPCFG_FLAGS => group.flags.into_bits(),
            _ => group.wqs.get(((at - GRPCFG_WQS) / 8) as usize).copied().unwrap_or(0),
        }
    }

    /// GRPCFG is writable while the device is disabled.
    fn write_group(&mut self, index: usize, at: u32, write: Write) {
        if self.device != DeviceState::Disabled {
            return;
        }
        let Some(group) = self.groups.get_mut(index) else { return };
        match at {
            GRPCFG_ENGINES => group.engines = write.merge(group.engines),
            GRPCFG_FLAGS => {
                let new = GroupFlags::from_bits(write.merge(group.flags.into_bits()));
                group.flags = GroupFlags::new()
                    .with_tc_a(new.tc_a())
                    .with_tc_b(new.tc_b())
                    .with_use_global_limit(new.use_global_limit())
                    .with_buffers_reserved(new.buffers_reserved())
                    .with_buffers_allowed(new.buffers_allowed());
            }
            _ => {
                if let Some(word) = group.wqs.get_mut(((at - GRPCFG_WQS) / 8) as usize) {
                    *word = write.merge(*word);
                }
            }
        }
    }

    /// WQCFG: size while the device is disabled; threshold and occupancy limit always; mode,
    /// limits and occupancy handle while the queue is disabled. Drivers rewrite the whole table
    /// with stale contents while queues are enabled, so what is locked keeps its value silently.
    fn write_wq(&mut self, index: usize, dword: usize, write: Write) {
        let configurable = self.device == DeviceState::Disabled;
        let Some(wq) = self.wqs.get_mut(index) else { return };
        let old = wq.config;
        let mut dwords = old.to_dwords();
        let pair = u64::from(dwords[dword]) | u64::from(dwords[dword + 1]) << 32;
        let merged = write.merge(pair);
        dwords[dword] = merged as u32;
        dwords[dword + 1] = (merged >> 32) as u32;
        let new = WqConfig::from_dwords(dwords);
        let disabled = wq.state() == WqState::Disabled;
        wq.config = WqConfig {
            size: if configurable { new.size } else { old.size },
            threshold: new.threshold,
            mode: if disabled { defined_mode(new.mode) } else { old.mode },
            limits: if disabled { defined_limits(new.limits) } else { old.limits },
            occupancy_handle: if disabled {
                defined_handle(new.occupancy_handle)
            } else {
                old.occupancy_handle
            },
            occupancy_limit: WqOccupancyLimit::new()
                .with_limit(new.occupancy_limit.limit())
                .with_interrupt_enable(new.occupancy_limit.interrupt_enable()),
            occupancy: old.occupancy,
        };
    }
}

/// The aligned quadword of an access and the first byte in it, if the access is well formed.
fn split(at: u64, len: usize) -> Option<(u32, usize)> {
    let aligned = matches!(len, 1 | 2 | 4 | 8) && at % len as u64 == 0;
    let at = u32::try_from(at).ok().filter(|_| aligned)?;
    Some((at & !7, (at & 7) as usize))
}

/// Without the reserved bits.
fn defined_mode(mode: WqMode) -> WqMode {
    WqMode::new()
        .with_dedicated(mode.dedicated())
        .with_block_on_fault(mode.block_on_fault())
        .with_ats_disable(mode.ats_disable())
        .with_prs_disable(mode.prs_disable())
        .with_priority(mode.priority())
        .with_pasid(mode.pasid())
        .with_pasid_enable(mode.pasid_enable())
        .with_privileged(mode.privileged())
}

/// Without the reserved bits.
fn defined_limits(limits: WqLimits) -> WqLimits {
    WqLimits::new()
        .with_max_transfer_shift(limits.max_transfer_shift())
        .with_max_batch_shift(limits.max_batch_shift())
}

/// Without the reserved bits.
fn defined_handle(handle: WqOccupancyHandle) -> WqOccupancyHandle {
    WqOccupancyHandle::new().with_handle(handle.handle()).with_ims(handle.ims())
}
