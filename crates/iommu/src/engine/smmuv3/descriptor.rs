//! From a substream to its context descriptor.

use mem::{Gpa, GuestMemory, MemError};

use crate::cache::DescriptorState;
use crate::engine::{walk, Engine, Stop};
use crate::format::smmuv3::{Descriptor, DescriptorError, DescriptorPointer};
use crate::stage_two::GuestPhysical;
use crate::{DescriptorForm, DescriptorTable, FaultReason, Pasid, SmmuStageTwo, StreamContext};

impl<M: GuestMemory> Engine<'_, M> {
    /// The context descriptor of `substream`, from the cache or from the table; `requested` if
    /// the request named it. Then it has to be granted, where grants are enforced: to a request
    /// that it was not granted for, a descriptor is not there.
    pub(super) fn descriptor_state(
        &mut self,
        stream: &StreamContext,
        (table, two): (&DescriptorTable, Option<&SmmuStageTwo>),
        substream: Pasid,
        requested: bool,
    ) -> Result<DescriptorState, Stop> {
        let cached = self.caches.descriptors.get(substream);
        if let Some(state) = cached.filter(|state| state.granted || !requested) {
            return Ok(*state);
        }
        let granted = self.grants.is_none_or(|grants| requested && grants.is_granted(substream));
        if requested && !granted {
            self.counters.ungranted.add(1);
            return Err(FaultReason::PasidEntryNotPresent.into());
        }
        self.counters.pasid_entry_reads.add(1);
        let fetch = Fetch { memory: self.memory, two };
        let descriptor = fetch.descriptor(table, substream)?;
        let regime = descriptor.decode(&stream.caps).map_err(|error| match error {
            DescriptorError::NotValid => FaultReason::PasidEntryNotPresent,
            _ => FaultReason::PasidEntryInvalid,
        })?;
        let state = DescriptorState { vmid: stream.vmid, granted, regime };
        self.caches.descriptors.open();
        self.caches.descriptors.insert(substream, state);
        self.caches.publish(self.counters);
        Ok(state)
    }
}

/// Loads from a table whose addresses a guest's stage 2 translates, if there is one.
struct Fetch<'a, M> {
    memory: &'a GuestPhysical<'a, M>,
    two: Option<&'a SmmuStageTwo>,
}

impl<M: GuestMemory> Fetch<'_, M> {
    fn descriptor(&self, table: &DescriptorTable, substream: Pasid) -> Result<Descriptor, Stop> {
        let unreachable = FaultReason::PasidEntryAccess;
        let array = match table.form {
            DescriptorForm::Linear => table.root,
            DescriptorForm::Leaves4K | DescriptorForm::Leaves64K => self.leaf(table, substream)?,
        };
        let at = Descriptor::address(array, table.form, substream).ok_or(unreachable)?;
        // No descriptor crosses a page: it has 64 bytes and lies at a multiple of that.
        let at = self.translate(at)?;
        let mut words = [0; 8];
        // The word with V comes first: a guest that sets V last is never seen half way.
        for (index, word) in (0..).zip(&mut words) {
            let at = at.checked_add(8 * index).ok_or(unreachable)?;
            *word = self.memory.load_u64(at).map_err(|error| self.stop(unreachable, error))?;
        }
        Ok(Descriptor::from_words(words))
    }

    /// The leaf that has the descriptor of `substream`, by the table's first level.
    fn leaf(&self, table: &DescriptorTable, substream: Pasid) -> Result<Gpa, Stop> {
        let unreachable = FaultReason::PasidDirectoryAccess;
        let at = DescriptorPointer::address(table.root, table.form, substream);
        let at = self.translate(at.ok_or(unreachable)?)?;
        let pointer = self.memory.load_u64(at).map_err(|error| self.stop(unreachable, error))?;
        let pointer = DescriptorPointer::from_bits(pointer);
        if !pointer.valid() {
            return Err(FaultReason::PasidDirectoryNotPresent.into());
        }
        Ok(pointer.leaf(table.form))
    }

    fn translate(&self, at: Gpa) -> Result<Gpa, Stop> {
        let Some(two) = self.two else { return Ok(at) };
        walk::for_descriptor(self.memory, (two.root, &two.format), at)
    }

    /// Why there is nothing to load: the host's stage 2, if it was that.
    fn stop(&self, unreachable: FaultReason, _: MemError) -> Stop {
        match self.memory.take_stop() {
            Some(stop) => Stop::at(unreachable, &stop, true),
            None => unreachable.into(),
        }
    }
}
