//! What is to be done once the device's lock is released.

/// Effects of a change of state, collected under the lock and carried out after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub(super) struct Effects {
    /// Bit n: raise MSI-X vector n.
    vectors: u32,
    /// Bit n: engine n may have work.
    engines: u32,
    /// Whether translation requests are enabled now, if that changed.
    pub(super) ats: Option<bool>,
}

impl Effects {
    pub(super) fn raise(&mut self, vector: u16) {
        self.vectors |= 1u32.checked_shl(vector.into()).unwrap_or(0);
    }

    pub(super) fn wake(&mut self, engine: usize) {
        self.engines |=
            u32::try_from(engine).ok().and_then(|bit| 1u32.checked_shl(bit)).unwrap_or(0);
    }

    pub(super) fn vectors(&self) -> impl Iterator<Item = u16> {
        bits(self.vectors).map(|bit| bit as u16)
    }

    pub(super) fn engines(&self) -> impl Iterator<Item = usize> {
        bits(self.engines).map(|bit| bit as usize)
    }
}

/// The bits that are set, lowest first.
fn bits(word: u32) -> impl Iterator<Item = u32> {
    (0..u32::BITS).filter(move |bit| word >> bit & 1 != 0)
}
