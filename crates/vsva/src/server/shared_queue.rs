//! Shared work queues, driven in process.
//!
//! A processor submits to a shared queue by a deferrable write, whose answer it needs: accepted or
//! retry. QEMU's processors have no such instruction and vfio-user no such message, so this is
//! shown on a device of its own, through the call that stands for the bus transaction.

use dsa::model::{Config, Device, Submission};
use dsa::spec::{
    offset, Cmd, CmdStatus, CommandCode, Descriptor, Offsets, Operation, Portal, WqConfig,
    WqLimits, WqMode, GRPCFG_ENGINES, GRPCFG_WQS,
};
use iommu::{Endpoint, Host as _, SoftwareHost, Vm as _, VmConfig};
use pci::{Function as _, RequesterId};

mod guest;
mod guests;

use super::ServeError;
use crate::lab::Check;

/// BAR of the registers.
const REGISTERS: u8 = 0;
/// BAR of the portals.
const PORTALS: u8 = 2;
/// Configuration space: command register, and its bus master and memory bits.
const COMMAND: (u16, u16) = (0x04, 0x0006);
/// Configuration space: the control registers of the capabilities for PASIDs, page requests and
/// translation requests, and their enable bits.
const PASID_CONTROL: (u16, u16) = (0x236, 0x0001);
const PAGE_REQUEST_CONTROL: (u16, u16) = (0x244, 0x0001);
const ATS_CONTROL: (u16, u16) = (0x226, 0x8000);
/// Configuration space: how many page requests there may be at a time, and how many there are.
const PAGE_REQUESTS: (u16, u32) = (0x24c, 16);
/// Units of the fields of OFFSETS, in bytes.
const OFFSET_UNIT: u64 = 0x100;

/// Entries of the queue.
const SIZE: u16 = 4;
/// Entries that its limited portals fill.
const THRESHOLD: u16 = 2;

/// What a shared queue answers, that plain stores to its portals do nothing, and what guests make
/// of one that is theirs together.
pub(super) fn checks() -> Vec<Check> {
    let device = match shared_queue() {
        Ok(device) => device,
        Err(error) => return vec![check("a shared queue is enabled", Err(error))],
    };
    let mut checks = vec![
        check("plain stores to a shared queue's portals are refused", plain_stores(&device)),
        check("a shared queue answers accepted or retry", answers(&device)),
    ];
    checks.extend(guests::checks());
    checks
}

fn check(what: &str, outcome: Result<String, String>) -> Check {
    Check {
        check: what.to_owned(),
        ok: outcome.is_ok(),
        detail: outcome.unwrap_or_else(|error| error),
    }
}

/// A device with a shared queue. None of its engines runs, so what is accepted stays in the queue.
fn shared_queue() -> Result<Device, String> {
    let endpoint = || -> Result<Endpoint, ServeError> {
        let vm = SoftwareHost::new().create_vm(VmConfig::named("shared queue"))?;
        Ok(vm.attach(RequesterId::from_bits(0))?)
    };
    enable(endpoint().map_err(|error| error.to_string())?)
}

/// A device with work queue 0 enabled as a shared queue, and page requests.
fn enable(endpoint: Endpoint) -> Result<Device, String> {
    let device = Device::new(Config::default(), endpoint).map_err(|error| error.to_string())?;
    let (at, credits) = PAGE_REQUESTS;
    device.config_write(at, &credits.to_le_bytes());
    for (at, bits) in [COMMAND, PASID_CONTROL, PAGE_REQUEST_CONTROL, ATS_CONTROL] {
        device.config_write(at, &bits.to_le_bytes());
    }
    // The longest access to a register is one of eight bytes.
    let mut offsets = [0; 16];
    for (at, part) in (u64::from(offset::OFFSETS)..).step_by(8).zip(offsets.chunks_mut(8)) {
        device.bar_read(REGISTERS, at, part);
    }
    let offsets = Offsets::from_bits(u128::from_le_bytes(offsets));
    let queue = WqConfig {
        size: SIZE,
        threshold: THRESHOLD,
        mode: WqMode::new().with_pasid_enable(true).with_priority(1).with_block_on_fault(true),
        limits: WqLimits::new().with_max_transfer_shift(12).with_max_batch_shift(4),
        ..WqConfig::default()
    };
    let table = u64::from(offsets.wqcfg()) * OFFSET_UNIT;
    for (index, dword) in (0u64..).zip(queue.to_dwords()) {
        device.bar_write(REGISTERS, table + 4 * index, &dword.to_le_bytes());
    }
    let group = u64::from(offsets.grpcfg()) * OFFSET_UNIT;
    for member in [GRPCFG_WQS, GRPCFG_ENGINES] {
        device.bar_write(REGISTERS, group + u64::from(member), &1u64.to_le_bytes());
    }
    command(&device, CommandCode::EnableDevice)?;
    command(&device, CommandCode::EnableWq)?;
    Ok(device)
}

fn command(device: &Device, code: CommandCode) -> Result<(), String> {
    let command = Cmd::new().with_code(code as u8).into_bits();
    device.bar_write(REGISTERS, offset::CMD.into(), &command.to_le_bytes());
    let mut status = [0; 4];
    device.bar_read(REGISTERS, offset::CMDSTATUS.into(), &mut status);
    match CmdStatus::from_bits(u32::from_le_bytes(status)) {
        status if status.into_bits() == 0 => Ok(()),
        status => Err(format!("{code:?}: {status:?}")),
    }
}

fn plain_stores(device: &Device) -> Result<String, String> {
    let before = device.counters();
    let descriptor = Descriptor::new(Operation::Noop).to_bytes();
    for portal in [Portal::LIMITED, Portal::UNLIMITED] {
        device.bar_write(PORTALS, portal.offset(0), &descriptor);
        for (at, store) in (0u64..).step_by(8).zip(descriptor.chunks(8)) {
            device.bar_write(PORTALS, portal.offset(0) + at, store);
        }
    }
    let after = device.counters();
    let ignored = after.portal_ignored - before.portal_ignored;
    let detail = format!("{ignored} stores ignored and counted");
    let queued = after.accepted - before.accepted;
    if ignored > 0 && queued == 0 {
        Ok(detail)
    } else {
        Err(format!("{detail}, {queued} taken"))
    }
}

fn answers(device: &Device) -> Result<String, String> {
    let descriptor = Descriptor::new(Operation::Noop).to_bytes();
    let mut accepted = [0u16; 2];
    for (portal, accepted) in [Portal::LIMITED, Portal::UNLIMITED].into_iter().zip(&mut accepted) {
        // One more than there can be room for.
        for _ in 0..=SIZE {
            match device.submit(0, portal, &descriptor) {
                Submission::Accepted => *accepted += 1,
                Submission::Retry => break,
            }
        }
    }
    let [limited, unlimited] = accepted;
    let detail = format!(
        "size {SIZE}, threshold {THRESHOLD}: limited portal took {limited}, then the unlimited \
         one {unlimited}, then retry"
    );
    let right = (limited, unlimited) == (THRESHOLD, SIZE - THRESHOLD);
    if right {
        Ok(detail)
    } else {
        Err(detail)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_shared_queue_holds() {
        for check in super::checks() {
            assert!(check.ok, "{}: {}", check.check, check.detail);
        }
    }
}
