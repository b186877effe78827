//! Interrupt kinds of a function, as a client numbers them, and what it does with them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pci::InterruptSink;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_IRQ_SET_DATA_TYPE_MASK, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_NUM_IRQS,
};

use crate::error::ProtocolError;
use crate::interrupts::Interrupts;
use crate::session::{check_argsz, exactly, prefix};
use crate::stats::Stats;
use crate::wire::{Command, IrqInfo, IrqSet};

/// The interrupts of one connection, by their kind.
pub(crate) struct Irqs {
    msix: Arc<Interrupts>,
    /// The notification of unrecoverable errors. A function here never has one, but QEMU warns its
    /// user of a device that could not tell.
    error: Interrupts,
    /// INTx, MSI and the request to unplug: kinds that no function here has.
    none: Interrupts,
}

impl Irqs {
    /// Those of a function with this many MSI-X vectors, none of them bound.
    pub(crate) fn new(vectors: u16, stats: &Arc<Stats>) -> Self {
        let kind = |count| Interrupts::new(count, stats.clone());
        Self { msix: Arc::new(kind(vectors)), error: kind(1), none: kind(0) }
    }

    /// Where the function's vectors go.
    pub(crate) fn sink(&self) -> Arc<dyn InterruptSink> {
        self.msix.clone()
    }

    /// Those of kind `index`; `None` if a PCI device has no such kind.
    fn of_kind(&self, index: u32) -> Option<&Interrupts> {
        match index {
            VFIO_PCI_MSIX_IRQ_INDEX => Some(&self.msix),
            VFIO_PCI_ERR_IRQ_INDEX => Some(&self.error),
            _ if index < VFIO_PCI_NUM_IRQS => Some(&self.none),
            _ => None,
        }
    }
}

/// Replies to [`Command::DeviceGetIrqInfo`].
pub(crate) fn info(irqs: &Irqs, payload: &[u8]) -> Result<IrqInfo, ProtocolError> {
    const SIZE: u32 = size_of::<IrqInfo>() as u32;
    let request: IrqInfo = exactly(Command::DeviceGetIrqInfo, payload)?;
    check_argsz(Command::DeviceGetIrqInfo, request.argsz, SIZE)?;
    let index = request.index;
    let refused = ProtocolError::Irq { index, start: 0, count: 0 };
    let count = irqs.of_kind(index).ok_or(refused)?.count();
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
pub(crate) fn set(irqs: &Irqs, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), ProtocolError> {
    let command = Command::DeviceSetIrqs;
    let (request, data) = prefix::<IrqSet>(command, payload)?;
    let IrqSet { argsz, flags, index, start, count } = request;
    check_argsz(command, argsz, size_of::<IrqSet>() as u32)?;

    let refused = ProtocolError::Irq { index, start, count };
    let end = start.checked_add(count).ok_or(refused)?;
    let interrupts = irqs.of_kind(index).ok_or(refused)?;
    if end > interrupts.count() {
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
            interrupts.disable();
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
