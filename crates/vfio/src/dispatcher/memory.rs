//! What a VM has mapped, and how that changes.

use alloc::collections::BTreeMap;
use alloc::vec;

use mem::{Gpa, MemoryMap, Range, Segment};

use crate::Refusal;

/// Mappings that a VM has at most: as many as Linux lets a container have.
pub const MAX_MAPPINGS: usize = 65535;

/// Mappings by their first address, without overlaps.
#[derive(Clone, Debug, Default)]
struct Mappings(BTreeMap<Gpa, Segment>);

impl Mappings {
    fn insert(&mut self, segment: Segment) -> Result<(), Refusal> {
        let range = segment.range;
        let below = self.0.range(..=range.last).next_back();
        if let Some((&gpa, _)) = below.filter(|(_, other)| other.range.overlaps(&range)) {
            return Err(Refusal::Mapped { gpa });
        }
        if self.0.len() >= MAX_MAPPINGS {
            return Err(Refusal::TooManyMappings { limit: MAX_MAPPINGS });
        }
        // Refuses what does not fit its memory.
        MemoryMap::new(vec![segment.clone()])?;
        self.0.insert(range.start, segment);
        Ok(())
    }

    /// Removes what lies in `range`, which may have gaps between mappings, but not cut one; gives
    /// how many bytes that was.
    fn remove(&mut self, range: Range<Gpa>) -> Result<u64, Refusal> {
        // What begins before the range and reaches into it, and what reaches past its end.
        let before = self.0.range(..range.start).next_back();
        let past = self.0.range(range.start..=range.last).next_back();
        let cut = before
            .filter(|(_, mapping)| mapping.range.last >= range.start)
            .or(past.filter(|(_, mapping)| mapping.range.last > range.last));
        if let Some((&gpa, _)) = cut {
            return Err(Refusal::Cuts { gpa });
        }
        let mut bytes = 0u64;
        while let Some((&gpa, mapping)) = self.0.range(range.start..=range.last).next() {
            bytes = bytes.wrapping_add(mapping.range.len_minus_one()).wrapping_add(1);
            self.0.remove(&gpa);
        }
        Ok(bytes)
    }

    fn build(&self) -> Result<MemoryMap, Refusal> {
        Ok(MemoryMap::new(self.0.values().cloned().collect())?)
    }
}

/// The mappings of a VM, and the change of them that is open, if one is.
#[derive(Debug, Default)]
pub(super) struct Memory {
    published: Mappings,
    draft: Option<Mappings>,
    closed: bool,
}

/// A map to publish, if the change takes effect at once.
pub(super) type Publish = Option<MemoryMap>;

impl Memory {
    /// Adds a mapping.
    pub(super) fn map(&mut self, segment: Segment) -> Result<Publish, Refusal> {
        self.change(|mappings| mappings.insert(segment)).map(|((), publish)| publish)
    }

    /// Removes mappings; gives how many bytes were mapped.
    pub(super) fn unmap(&mut self, range: Range<Gpa>) -> Result<(u64, Publish), Refusal> {
        self.change(|mappings| mappings.remove(range))
    }

    fn change<R>(
        &mut self,
        change: impl FnOnce(&mut Mappings) -> Result<R, Refusal>,
    ) -> Result<(R, Publish), Refusal> {
        if self.closed {
            return Err(Refusal::Closed);
        }
        if let Some(draft) = &mut self.draft {
            return Ok((change(draft)?, None));
        }
        // Neither change leaves anything behind when it fails.
        let result = change(&mut self.published)?;
        Ok((result, Some(self.published.build()?)))
    }

    /// How many mappings there are, or would be if the open change took effect.
    pub(super) fn mappings(&self) -> usize {
        self.draft.as_ref().unwrap_or(&self.published).0.len()
    }

    /// Opens a change that begins with what is mapped.
    pub(super) fn begin(&mut self) -> Result<(), Refusal> {
        if self.draft.is_some() {
            return Err(Refusal::UpdateOpen);
        }
        self.draft = Some(self.published.clone());
        Ok(())
    }

    /// Ends the change; gives the map as it has it.
    pub(super) fn commit(&mut self) -> Result<MemoryMap, Refusal> {
        let map = self.draft.as_ref().ok_or(Refusal::NoUpdate)?.build()?;
        self.published = self.draft.take().unwrap_or_default();
        Ok(map)
    }

    /// Forgets the change.
    pub(super) fn abandon(&mut self) -> Result<(), Refusal> {
        self.draft.take().map(|_| ()).ok_or(Refusal::NoUpdate)
    }

    /// Drops everything; from now on there is nothing to map for.
    pub(super) fn close(&mut self) {
        *self = Self {
            closed: true,
            draft: self.draft.is_some().then(Mappings::default),
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests;
