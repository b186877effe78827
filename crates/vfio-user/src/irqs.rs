//! Interrupt kinds of a function, as a client numbers them, and what it does with them.

use std::os::fd::OwnedFd;

use pci::{Function, InterruptSink};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_IRQ_SET_DATA_TYPE_MASK, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS,
};

use crate::error::ProtocolError;
use crate::interrupts::Interrupts;
use crate::session::{check_argsz, exactly, prefix};
use crate::wire::{Command, IrqInfo, IrqSet};

/// Number of interrupts of kind `index`: MSI-X vectors, and none of any other kind; `None` if a PCI
/// device has no such kind.
fn count(function: &dyn Function, index: u32) -> Option<u32> {
    match index {
        VFIO_PCI_MSIX_IRQ_INDEX => Some(function.vectors().into()),
        _ if index < VFIO_PCI_NUM_IRQS => Some(0),
        _ => None,
    }
}

/// Replies to [`Command::DeviceGetIrqInfo`].
pub(crate) fn info(function: &dyn Function, payload: &[u8]) -> Result<IrqInfo, ProtocolError> {
    const SIZE: u32 = size_of::<IrqInfo>() as u32;
    let request: IrqInfo = exactly(Command::DeviceGetIrqInfo, payload)?;
    check_argsz(Command::DeviceGetIrqInfo, request.argsz, SIZE)?;
    let index = request.index;
    let refused = ProtocolError::Irq { index, start: 0, count: 0 };
    let count = count(function, index).ok_or(refused)?;
    let flags = match count {
        0 => 0,
        _ => VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE,
    };
    Ok(IrqInfo { argsz: SIZE, flags, index, count })
}

/// Does what a [`Command::DeviceSetIrqs`] says.
///
/// | data | mask, unmask | trigger |
/// |---|---|---|
/// | none | the vectors | the vectors; all of the kind are disabled if there are none |
/// | a byte each | those not 0 | those not 0 |
/// | eventfds | refused | binds them; unbinds the vectors if there are no descriptors |
pub(crate) fn set(
    function: &dyn Function,
    interrupts: &Interrupts,
    payload: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<(), ProtocolError> {
    let command = Command::DeviceSetIrqs;
    let (request, data) = prefix::<IrqSet>(command, payload)?;
    let IrqSet { argsz, flags, index, start, count } = request;
    check_argsz(command, argsz, size_of::<IrqSet>() as u32)?;

    let refused = ProtocolError::Irq { index, start, count };
    let end = start.checked_add(count).ok_or(refused)?;
    if end > self::count(function, index).ok_or(refused)? {
        return Err(refused);
    }
    let bad_flags = ProtocolError::RequestFlags { command, flags };
    let action = flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    if flags & !(VFIO_IRQ_SET_ACTION_TYPE_MASK | VFIO_IRQ_SET_DATA_TYPE_MASK) != 0 {
        return Err(bad_flags);
    }
    let kind = flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    let bytes = if kind == VFIO_IRQ_SET_DATA_BOOL { count as usize } else { 0 };
    if data.len() != bytes {
        return Err(ProtocolError::PayloadSize { command, got: payload.len() });
    }
    if !fds.is_empty() && (kind != VFIO_IRQ_SET_DATA_EVENTFD || fds.len() != count as usize) {
        return Err(ProtocolError::Descriptors { command, got: fds.len() });
    }
    match (kind, action) {
        (VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_ACTION_TRIGGER) if count == 0 => {
            // Only MSI-X is ever bound.
            if index == VFIO_PCI_MSIX_IRQ_INDEX {
                interrupts.disable();
            }
            Ok(())
        }
        (VFIO_IRQ_SET_DATA_NONE, _) => act(interrupts, action, start, count).ok_or(bad_flags),
        (VFIO_IRQ_SET_DATA_BOOL, _) => (start..)
            .zip(data)
            .filter(|&(_, &byte)| byte != 0)
            .try_for_each(|(vector, _)| act(interrupts, action, vector, 1))
            .ok_or(bad_flags),
        (VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER) if fds.is_empty() => {
            interrupts.unbind(start, count);
            Ok(())
        }
        (VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER) => interrupts.bind(start, fds),
        _ => Err(bad_flags),
    }
}

/// Masks, unmasks or triggers vectors; `None` if `action` is not exactly one of these.
fn act(interrupts: &Interrupts, action: u32, start: u32, count: u32) -> Option<()> {
    match action {
        VFIO_IRQ_SET_ACTION_MASK => interrupts.mask(start, count),
        VFIO_IRQ_SET_ACTION_UNMASK => interrupts.unmask(start, count),
        // Vectors have 11 bits, and the caller checked the range.
        VFIO_IRQ_SET_ACTION_TRIGGER => {
            (start..start + count).for_each(|vector| interrupts.raise(vector as u16));
        }
        _ => return None,
    }
    Some(())
}
