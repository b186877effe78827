//! The MSI-X table and its pending bits (7.7.2).

use alloc::vec::Vec;

use crate::config::{BarOffset, MsiXCapability};
use crate::spec::{MsiXControl, VectorControl};

#[cfg(test)]
mod tests;

/// The memory write that a message-signalled interrupt is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    message: Message,
    control: VectorControl,
}

impl Entry {
    const RESET: Self = Self {
        message: Message { address: 0, data: 0 },
        control: VectorControl::new().with_mask(true),
    };

    /// Its double words in order of address.
    fn words(&self) -> [u32; 4] {
        let Message { address, data } = self.message;
        [address as u32, (address >> 32) as u32, data, self.control.into_bits()]
    }

    fn set_word(&mut self, index: u32, value: u32) {
        let Message { address, data } = &mut self.message;
        match index {
            // Messages are double words, so their lowest two address bits are zero (7.7.2.6).
            0 => *address = *address & !0xffff_ffff | u64::from(value & !3),
            1 => *address = *address & 0xffff_ffff | u64::from(value) << 32,
            2 => *data = value,
            // The reserved bits of vector control stay zero.
            _ => {
                let mask = VectorControl::from_bits(value).mask();
                self.control = VectorControl::new().with_mask(mask);
            }
        }
    }
}

/// The MSI-X state of a function that delivers its own messages, for embedders that route them in
/// process.
///
/// Behind vfio-user it is not used: there the client keeps the table, and a function raises vectors
/// through its [`InterruptSink`](crate::InterruptSink).
#[derive(Clone, Debug)]
pub struct MsiX {
    capability: MsiXCapability,
    control: MsiXControl,
    entries: Vec<Entry>,
    pending: Vec<u64>,
}

impl MsiX {
    /// The table of `capability`, every vector masked.
    pub fn new(capability: MsiXCapability) -> Self {
        let vectors = usize::from(capability.vectors);
        Self {
            capability,
            control: MsiXControl::new(),
            entries: alloc::vec![Entry::RESET; vectors],
            pending: alloc::vec![0; vectors.div_ceil(64)],
        }
    }

    /// Everything as after power-on.
    pub fn reset(&mut self) {
        let Self { capability: _, control, entries, pending } = self;
        *control = MsiXControl::new();
        entries.fill(Entry::RESET);
        pending.fill(0);
    }

    /// Takes over what a write to configuration space made of message control. Vectors may have
    /// become ready: see [`next_ready`](Self::next_ready).
    pub fn set_control(&mut self, control: MsiXControl) {
        self.control = control;
    }

    /// Reads the table or the pending bits, if `offset` of `bar` is in one of them; bytes past the
    /// end of it read as zero. `false` if it is elsewhere, and then nothing is read.
    pub fn read(&self, bar: u8, offset: u64, data: &mut [u8]) -> bool {
        let Some((area, start)) = self.area(bar, offset) else { return false };
        for (at, to) in (start..).zip(data) {
            *to = match area {
                Area::Table => self.table_byte(at),
                Area::Pending => self.pending_byte(at),
            };
        }
        true
    }

    /// Writes the table, if `offset` of `bar` is in it; only aligned double and quad words do
    /// anything, and the pending bits are read-only (7.7.2). `false` if it is elsewhere. Vectors may
    /// have become ready: see [`next_ready`](Self::next_ready).
    pub fn write(&mut self, bar: u8, offset: u64, data: &[u8]) -> bool {
        let Some((area, at)) = self.area(bar, offset) else { return false };
        let aligned = matches!(data.len(), 4 | 8) && offset % data.len() as u64 == 0;
        if area == Area::Pending || !aligned {
            return true;
        }
        for (index, word) in (at / 4..).zip(data.chunks_exact(4)) {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(word);
            if let Some(entry) = self.entries.get_mut((index / 4) as usize) {
                entry.set_word(index % 4, u32::from_le_bytes(bytes));
            }
        }
        true
    }

    /// The message to send now for `vector`. If the vector is masked it is remembered as pending
    /// instead; while MSI-X is disabled, or if there is no such vector, nothing happens.
    #[must_use]
    pub fn fire(&mut self, vector: u16) -> Option<Message> {
        let entry = self.entries.get(usize::from(vector))?;
        if !self.control.enable() {
            return None;
        }
        if self.control.function_mask() || entry.control.mask() {
            self.set_pending(vector, true);
            return None;
        }
        Some(entry.message)
    }

    /// The lowest vector that is pending and no longer masked, with the message to send for it now.
    /// To be called until it gives `None` after the table or message control was written.
    #[must_use]
    pub fn next_ready(&mut self) -> Option<(u16, Message)> {
        if !self.control.enable() || self.control.function_mask() {
            return None;
        }
        let ready = |vector: &u16| {
            let entry = self.entries.get(usize::from(*vector));
            self.is_pending(*vector) && entry.is_some_and(|entry| !entry.control.mask())
        };
        let vector = (0..self.capability.vectors).find(ready)?;
        let message = self.entries.get(usize::from(vector))?.message;
        self.set_pending(vector, false);
        Some((vector, message))
    }

    /// Whether `vector` waits to be unmasked.
    pub fn is_pending(&self, vector: u16) -> bool {
        let word = self.pending.get(usize::from(vector) / 64).copied().unwrap_or(0);
        word >> (vector % 64) & 1 != 0
    }

    fn set_pending(&mut self, vector: u16, pending: bool) {
        if let Some(word) = self.pending.get_mut(usize::from(vector) / 64) {
            let bit = 1 << (vector % 64);
            *word = if pending { *word | bit } else { *word & !bit };
        }
    }

    /// Which area `offset` of `bar` is in, and the offset from its start.
    fn area(&self, bar: u8, offset: u64) -> Option<(Area, u32)> {
        let within = |place: BarOffset, size: u32| {
            let at = offset.checked_sub(place.offset.into())?;
            (place.bar == bar && at < u64::from(size)).then_some(at as u32)
        };
        let MsiXCapability { table, pending, .. } = self.capability;
        if let Some(at) = within(table, self.capability.table_size()) {
            return Some((Area::Table, at));
        }
        within(pending, self.capability.pending_size()).map(|at| (Area::Pending, at))
    }

    fn table_byte(&self, at: u32) -> u8 {
        let Some(entry) = self.entries.get((at / MsiXCapability::ENTRY_SIZE) as usize) else {
            return 0;
        };
        let word = entry.words()[(at / 4 % 4) as usize];
        word.to_le_bytes()[(at % 4) as usize]
    }

    fn pending_byte(&self, at: u32) -> u8 {
        let word = self.pending.get((at / 8) as usize).copied().unwrap_or(0);
        word.to_le_bytes()[(at % 8) as usize]
    }
}

/// The two parts of a BAR that MSI-X takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Area {
    Table,
    Pending,
}
