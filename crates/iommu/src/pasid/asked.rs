//! What a guest has from its host, whichever consumer has it.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ioasid::{Config, Lease, Set, SetType, Space};

use super::{AllocError, CommandError, Pasid, PasidCommands, PasidRange};

/// The PASIDs that a host gave. Their numbers are the host's; that none is in use twice is the word
/// of an ID space of the guest's own, in which each is leased by its number until the host has it
/// back.
pub(super) struct Asked {
    commands: Arc<dyn PasidCommands>,
    out: Set<()>,
}

impl Asked {
    /// # Panics
    ///
    /// If there is no memory for an empty space.
    pub(super) fn new(commands: Arc<dyn PasidCommands>) -> Self {
        // A host may give anything, zero too.
        let config = Config { width: Pasid::BITS, reserved: Vec::new(), ..Config::default() };
        let space = Space::new(config).expect("memory for an empty ID space");
        let all = space.usage().unreserved;
        let out = space.create_set("host", SetType::Native, all);
        Self { commands, out: out.expect("memory for a set of an empty ID space") }
    }

    pub(super) fn interface(&self) -> &'static str {
        self.commands.interface()
    }

    pub(super) fn alloc(&self, range: PasidRange) -> Result<Lease<()>, AllocError> {
        let pasid = self.commands.alloc(range)?;
        let lease = match self.enter(pasid) {
            Ok(lease) => lease,
            Err(ioasid::AllocError::NoMemory) => {
                // If it is not taken back, nobody here has it all the same.
                let _ = self.commands.free(pasid);
                return Err(AllocError::NoMemory);
            }
            // Nobody may trust a host: two users of one number would see each other's memory.
            // The first one's stays as it is, so the number is not given back.
            Err(_) => return Err(AllocError::InUse { pasid }),
        };
        if range.contains(pasid) {
            return Ok(lease);
        }
        if let Err((Some(lease), _)) = self.free(lease) {
            self.lose(lease);
        }
        Err(AllocError::Unasked { pasid, range })
    }

    /// Gives a PASID back; if the host does not take it, it is still held.
    pub(super) fn free(&self, lease: Lease<()>) -> Result<(), (Option<Lease<()>>, CommandError)> {
        let pasid = Pasid::from_field(lease.id().0);
        // First: the host may hand it out again before its answer to this is seen here.
        drop(lease);
        match self.commands.free(pasid) {
            Ok(()) => Ok(()),
            // Nothing to hold on to.
            Err(CommandError::NotGranted) => Err((None, CommandError::NotGranted)),
            // Nothing either if the host has handed it out after all, or there is no memory.
            Err(error) => Err((self.enter(pasid).ok(), error)),
        }
    }

    /// Leaves a PASID out for good: the host did not take it back, and may hand it out again.
    pub(super) fn lose(&self, lease: Lease<()>) {
        // It is of this set, so there is no error.
        let _ = self.out.keep(lease);
    }

    fn enter(&self, pasid: Pasid) -> Result<Lease<()>, ioasid::AllocError> {
        self.out.alloc(pasid.get()..=pasid.get(), ())
    }
}
