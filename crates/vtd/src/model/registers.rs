//! Loading and storing registers; each is named once for each.

use iommu::Vm;

use super::{Effects, Model};
use crate::spec::{
    CompletionStatus, ContextCommand, FaultStatus, GlobalCommand, InvalidateAddress,
    IotlbInvalidate, PageRequestQueueAddress, PageRequestStatus, QueueAddress, Register,
    RegisterId, RootTableAddress, VERSION,
};

/// What a write does to one register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    /// The bytes written, in their places.
    pub(super) value: u64,
    /// All ones in the bytes written.
    pub(super) mask: u64,
}

impl Write {
    /// The part of a write of `data` at `offset` that falls into `register`.
    pub(super) fn of(register: &Register, offset: u64, data: &[u8]) -> Self {
        let mut write = Self { value: 0, mask: 0 };
        for byte in 0..register.width.bytes() {
            let at = u64::from(register.offset + byte).checked_sub(offset);
            let index = at.and_then(|at| usize::try_from(at).ok());
            if let Some(value) = index.and_then(|index| data.get(index)) {
                write.value |= u64::from(*value) << (8 * byte);
                write.mask |= 0xff << (8 * byte);
            }
        }
        write
    }

    /// The bits that are one in bytes that are written.
    pub(super) fn ones(&self) -> u64 {
        self.value & self.mask
    }

    /// Whether the top byte of a 64-bit register is written: there commands are given.
    pub(super) fn has_top_byte(&self) -> bool {
        self.mask >> 56 != 0
    }

    /// Whether the low byte of a register is written: there virtual commands are given.
    pub(super) fn has_low_byte(&self) -> bool {
        self.mask & 0xff != 0
    }

    /// `old` with what the write changes of the register's writable bits.
    pub(super) fn merge(&self, register: &Register, old: u64) -> u64 {
        let change = register.writable & self.mask;
        (old & !change) | (self.value & change)
    }
}

impl<V: Vm> Model<V> {
    pub(super) fn load(&self, id: RegisterId) -> u64 {
        match id {
            RegisterId::Version => VERSION.into(),
            RegisterId::Capability => self.caps.capability().into_bits(),
            RegisterId::ExtendedCapability => self.caps.extended().into_bits(),
            RegisterId::GlobalCommand | RegisterId::InvalidateAddress => 0,
            RegisterId::GlobalStatus => self.status.into_bits().into(),
            RegisterId::RootTableAddress => self.root_address.into_bits(),
            RegisterId::ContextCommand => self.context_command.into_bits(),
            RegisterId::FaultStatus => self.fault_status().into_bits().into(),
            RegisterId::FaultEventControl => self.fault_event.control().into_bits().into(),
            RegisterId::FaultEventData => self.fault_event.data.into(),
            RegisterId::FaultEventAddress => self.fault_event.address.into(),
            RegisterId::FaultEventUpperAddress
            | RegisterId::CompletionEventUpperAddress
            | RegisterId::PageRequestEventUpperAddress => 0,
            RegisterId::QueueHead => self.queue.head(),
            RegisterId::QueueTail => self.queue.tail(),
            RegisterId::QueueAddress => self.queue.address().into_bits(),
            RegisterId::CompletionStatus => {
                CompletionStatus::new().with_complete(self.wait_complete).into_bits().into()
            }
            RegisterId::CompletionEventControl => {
                self.completion_event.control().into_bits().into()
            }
            RegisterId::CompletionEventData => self.completion_event.data.into(),
            RegisterId::CompletionEventAddress => self.completion_event.address.into(),
            RegisterId::QueueErrorRecord => self.queue.error_record().into_bits(),
            RegisterId::PageRequestHead => self.page_requests.head,
            RegisterId::PageRequestTail => self.page_requests.tail,
            RegisterId::PageRequestAddress => self.page_requests.address.into_bits(),
            RegisterId::PageRequestStatus => self.page_requests.status.into_bits().into(),
            RegisterId::PageRequestEventControl => {
                self.page_requests.event.control().into_bits().into()
            }
            RegisterId::PageRequestEventData => self.page_requests.event.data.into(),
            RegisterId::PageRequestEventAddress => self.page_requests.event.address.into(),
            RegisterId::IotlbInvalidate => self.iotlb_invalidate.into_bits(),
            RegisterId::VirtualCommandCapability => self.caps.virtual_commands().into_bits(),
            RegisterId::VirtualCommand => self.virtual_commands.command(),
            RegisterId::VirtualCommandResponse => self.virtual_commands.response(),
            RegisterId::FaultRecordLow(record) => self.faults.low(record),
            RegisterId::FaultRecordHigh(record) => self.faults.high(record),
        }
    }

    fn fault_status(&self) -> FaultStatus {
        let pending = self.faults.pending();
        FaultStatus::new()
            .with_overflow(self.faults.overflow())
            .with_pending(pending)
            .with_queue_error(self.queue.error().is_some())
            .with_timeout_error(self.queue.timed_out().is_some())
            .with_page_request_overflow(self.page_requests.status.overflow())
            .with_record(if pending { self.faults.first() } else { 0 })
    }

    pub(super) fn store(&mut self, register: &Register, write: Write, effects: &mut Effects) {
        let merged = write.merge(register, self.load(register.id));
        let ones = write.ones() & register.clears;
        match register.id {
            RegisterId::Version
            | RegisterId::Capability
            | RegisterId::ExtendedCapability
            | RegisterId::GlobalStatus
            | RegisterId::FaultEventUpperAddress
            | RegisterId::QueueHead
            | RegisterId::CompletionEventUpperAddress
            | RegisterId::QueueErrorRecord
            | RegisterId::PageRequestEventUpperAddress
            | RegisterId::VirtualCommandCapability
            | RegisterId::VirtualCommandResponse
            | RegisterId::FaultRecordLow(_) => {}
            RegisterId::GlobalCommand => self.command(write, effects),
            RegisterId::RootTableAddress => {
                self.root_address = RootTableAddress::from_bits(merged);
            }
            RegisterId::ContextCommand => {
                self.context_command(ContextCommand::from_bits(merged), write);
            }
            RegisterId::FaultStatus => {
                self.clear_fault_status(FaultStatus::from_bits(ones as u32), effects);
            }
            RegisterId::FaultEventControl => {
                let raised = self.fault_event.set_masked(merged >> 31 != 0);
                effects.fault = self.sent(raised).or(effects.fault);
            }
            RegisterId::FaultEventData => self.fault_event.data = merged as u32,
            RegisterId::FaultEventAddress => self.fault_event.address = merged as u32,
            RegisterId::QueueTail => {
                self.queue.set_tail(merged);
                effects.schedule |= self.status.queued_invalidation();
            }
            RegisterId::QueueAddress => self.set_queue_address(QueueAddress::from_bits(merged)),
            RegisterId::CompletionStatus => {
                if ones != 0 {
                    self.wait_complete = false;
                    self.completion_event.serviced();
                }
            }
            RegisterId::CompletionEventControl => {
                let raised = self.completion_event.set_masked(merged >> 31 != 0);
                effects.completion = self.sent(raised).or(effects.completion);
            }
            RegisterId::CompletionEventData => self.completion_event.data = merged as u32,
            RegisterId::CompletionEventAddress => self.completion_event.address = merged as u32,
            RegisterId::PageRequestHead => self.page_requests.head = merged,
            RegisterId::PageRequestTail => self.page_requests.tail = merged,
            RegisterId::PageRequestAddress => {
                self.page_requests.address = PageRequestQueueAddress::from_bits(merged);
            }
            RegisterId::PageRequestStatus => {
                self.page_requests.clear(PageRequestStatus::from_bits(ones as u32));
            }
            RegisterId::PageRequestEventControl => {
                let raised = self.page_requests.event.set_masked(merged >> 31 != 0);
                effects.page_request = self.sent(raised).or(effects.page_request);
            }
            RegisterId::PageRequestEventData => self.page_requests.event.data = merged as u32,
            RegisterId::PageRequestEventAddress => {
                self.page_requests.event.address = merged as u32;
            }
            RegisterId::InvalidateAddress => {
                let old = self.invalidate_address.into_bits();
                self.invalidate_address = InvalidateAddress::from_bits(write.merge(register, old));
            }
            RegisterId::IotlbInvalidate => {
                self.iotlb_command(IotlbInvalidate::from_bits(merged), write);
            }
            RegisterId::VirtualCommand => self.virtual_command(register, write, effects),
            RegisterId::FaultRecordHigh(record) => {
                if ones != 0 {
                    self.faults.clear(record);
                    self.fault_status_serviced();
                }
            }
        }
    }

    fn set_queue_address(&mut self, address: QueueAddress) {
        if self.status.queued_invalidation() {
            // The specification asks software not to; a queue that moves under its head is not
            // worth having.
            self.counters.refused += 1;
        } else {
            self.queue.set_address(address);
        }
    }

    fn clear_fault_status(&mut self, ones: FaultStatus, effects: &mut Effects) {
        if ones.overflow() {
            self.faults.clear_overflow();
        }
        let error = ones.queue_error() && self.queue.clear_error();
        let timeout = ones.timeout_error() && self.queue.clear_timeout();
        if error || timeout {
            effects.schedule |= self.status.queued_invalidation();
        }
        self.fault_status_serviced();
    }

    fn fault_status_serviced(&mut self) {
        if !self.has_fault_status() {
            self.fault_event.serviced();
        }
    }

    /// Commands whose bits are set in a write of the global command register.
    pub(super) fn command(&mut self, write: Write, effects: &mut Effects) {
        let written = GlobalCommand::from_bits(write.mask as u32);
        let asked = GlobalCommand::from_bits(write.ones() as u32);
        if asked.set_root_pointer() {
            self.set_root_pointer();
        }
        if written.queued_invalidation() {
            self.enable_queue(asked.queued_invalidation(), effects);
        }
        if written.translation() {
            self.enable_translation(asked.translation());
        }
        let unsupported = asked.interrupt_remapping()
            || asked.set_interrupt_pointer()
            || asked.compatibility_interrupts()
            || asked.write_buffer_flush();
        self.counters.refused += u64::from(unsupported);
    }
}
