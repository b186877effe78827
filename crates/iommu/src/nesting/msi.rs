//! Doorbells of message-signalled interrupts behind a guest's stage 1
//! (`VFIO_IOMMU_SET_MSI_BINDING`).
//!
//! On Arm an interrupt message is translated as any write is. The guest maps a doorbell of its own
//! at some IOVA; the host maps the guest physical address behind that to the real doorbell, and
//! has the device write to the guest's IOVA.

use alloc::vec::Vec;

use mem::{Gpa, HostAddr, Iova};

/// Bindings that a table holds at most: as a guest has doorbells, not as it has vectors.
pub const MAX_MSI_BINDINGS: usize = 256;

/// A doorbell as a guest's stage 1 maps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiBinding {
    /// Where devices find it, a multiple of `size`.
    pub iova: Iova,
    /// What stage 1 maps that to, a multiple of `size`.
    pub gpa: Gpa,
    /// Size of the stage-1 page in bytes.
    pub size: u64,
}

impl MsiBinding {
    /// The binding of the page of `size` bytes, a power of two, that holds both addresses.
    fn new(iova: Iova, gpa: Gpa, size: u64) -> Option<Self> {
        let bits = size.is_power_of_two().then(|| size.ilog2())?;
        Some(Self { iova: iova.align_down(bits), gpa: gpa.align_down(bits), size })
    }

    fn contains(&self, iova: Iova) -> bool {
        iova.0 >= self.iova.0 && iova.0 - self.iova.0 < self.size
    }
}

/// Why a binding is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MsiError {
    /// The size is no power of two.
    #[error("a page of {0} bytes")]
    Size(u64),
    /// The page is larger than stage 2's: one doorbell would not be all that it reaches.
    #[error("a page of {size} bytes; stage 2 has pages of {limit}")]
    TooLarge {
        /// What was asked for.
        size: u64,
        /// The page size of stage 2.
        limit: u64,
    },
    /// The table is full.
    #[error("there are {limit} bindings already")]
    TooMany {
        /// How many it takes.
        limit: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct Record {
    binding: MsiBinding,
    /// The real doorbell to which stage 2 maps it.
    doorbell: Option<HostAddr>,
}

/// The doorbells of a domain's guest, in the order they came.
#[derive(Clone, Debug)]
pub struct MsiBindings {
    granule: u64,
    records: Vec<Record>,
}

impl MsiBindings {
    /// None yet; stage 2 has pages of `granule` bytes.
    pub const fn new(granule: u64) -> Self {
        Self { granule, records: Vec::new() }
    }

    /// Records a doorbell; both addresses are rounded down to `size`. Whether it is new: an IOVA
    /// that is recorded keeps what it has.
    ///
    /// # Errors
    ///
    /// See [`MsiError`].
    pub fn bind(&mut self, iova: Iova, gpa: Gpa, size: u64) -> Result<bool, MsiError> {
        if size > self.granule {
            return Err(MsiError::TooLarge { size, limit: self.granule });
        }
        let binding = MsiBinding::new(iova, gpa, size).ok_or(MsiError::Size(size))?;
        if self.records.iter().any(|record| record.binding.iova == binding.iova) {
            return Ok(false);
        }
        if self.records.len() >= MAX_MSI_BINDINGS {
            return Err(MsiError::TooMany { limit: MAX_MSI_BINDINGS });
        }
        self.records.push(Record { binding, doorbell: None });
        Ok(true)
    }

    /// The same in several tables: in all, or as they were.
    ///
    /// # Errors
    ///
    /// The first.
    pub fn bind_in_all(
        tables: &mut [Self],
        iova: Iova,
        gpa: Gpa,
        size: u64,
    ) -> Result<(), MsiError> {
        let mut new = Vec::with_capacity(tables.len());
        for table in tables.iter_mut() {
            match table.bind(iova, gpa, size) {
                Ok(is_new) => new.push(is_new),
                Err(error) => {
                    for (table, _) in tables.iter_mut().zip(new).rev().filter(|(_, new)| *new) {
                        table.unbind(iova);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Drops the record of the page that holds `iova`: it, and the real doorbell if stage 2 maps it
    /// (to be unmapped now). `None` if there is no such record.
    pub fn unbind(&mut self, iova: Iova) -> Option<(MsiBinding, Option<HostAddr>)> {
        let index = self.records.iter().position(|record| record.binding.contains(iova))?;
        let Record { binding, doorbell } = self.records.remove(index);
        Some((binding, doorbell))
    }

    /// A place for an interrupt of the host's `doorbell`: the record that is mapped to it already,
    /// or else the first that is not mapped, which is recorded as mapped now. `None` if there is
    /// neither.
    pub fn assign(&mut self, doorbell: HostAddr) -> Option<MsiBinding> {
        let mapped = self.records.iter().position(|record| record.doorbell == Some(doorbell));
        let free = || self.records.iter().position(|record| record.doorbell.is_none());
        let index = mapped.or_else(free)?;
        let record = self.records.get_mut(index)?;
        record.doorbell = Some(doorbell);
        Some(record.binding)
    }

    /// What is bound, with the real doorbell if it has one.
    pub fn iter(&self) -> impl Iterator<Item = (MsiBinding, Option<HostAddr>)> + '_ {
        self.records.iter().map(|record| (record.binding, record.doorbell))
    }
}
