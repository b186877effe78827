//! What is counted.

/// What a unit with host-owned PASID tables counts; all zero for one without.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BindingCounters {
    /// Entries bound now: PASIDs of devices, and requests without PASID.
    pub bound: u64,
    /// Entries bound where nothing was.
    pub made: u64,
    /// Entries bound in the place of another.
    pub replaced: u64,
    /// Entries unbound since the guest's table asked for it.
    pub ended: u64,
    /// Entries that the host refused, and invalidations: what they are about is blocked.
    pub refused: u64,
    /// Invalidations of what is not bound, which complete as with hardware. A guest that forgets
    /// the translations of an entry after the entry itself causes one each time.
    pub unknown_invalidations: u64,
    /// Entries of the guest's PASID directories and tables read.
    pub entries_read: u64,
}
