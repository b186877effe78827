//! A processor's table of PASIDs: which host PASID stands behind a VM's own when one of its
//! processors submits work to a shared queue (ENQCMD, ENQCMDS; Intel SDM, PASID translation).
//!
//! ```text
//!  guest's IA32_PASID ─► Vcpu::enqcmd ─► table ─► command with the host's PASID ─► device
//!                           │ marked       ▲
//!                           ▼              │ opens after the IOMMU's entry, closes before it
//!                   unbind waits for it ── PasidTranslation ◄─ bind, unbind, free of the VM's PASIDs
//! ```
//!
//! A VM has one if its VMM asks for it ([`SoftwareVm::translate_pasids`]): one subscriber for each
//! VM, told of its PASIDs and no others. So nothing finds a VM's table by a name or a number, a VM
//! without shared queues costs nothing, and what is the VM's ends with its handle.
//!
//! * An entry opens when the host's table has its own, and holds a reference to the host's PASID:
//!   that number is not granted again while the table can name it.
//! * An entry closes before the host's is cleared. [`PasidSubscriber::unbind`] returns when no
//!   submission is under way that was translated by it: those that come later are refused, those
//!   of before are with the device. One that takes longer than [`Patience`] allows is counted
//!   ([`TranslationCounters::late`]), and its number stays parked until it is over
//!   ([`PasidTranslation::settle`]).
//! * A PASID that is freed while bound is closed by that. Whatever ends the VM frees them all.
//!
//! What is bound already when the table is made is not in it until it is bound again.
//!
//! ```
//! use iommu::pasid::translation::{DeferrableWrite, Enqueued, Ia32Pasid, TranslationConfig};
//! use iommu::{GuestPasid, Host, Pasid, SoftwareHost, VmConfig};
//!
//! let vm = SoftwareHost::new().create_vm(VmConfig::named("guest"))?;
//! let translation = vm.translate_pasids(TranslationConfig { vcpus: 1, ..Default::default() })?;
//! let mut vcpu = translation.vcpu().unwrap();
//!
//! // Nothing is bound: the device does not even see the command.
//! let pasid = Ia32Pasid::of(GuestPasid(Pasid::new(5).unwrap()));
//! let answer = vcpu.enqcmd(pasid, &[0; 64], |_| DeferrableWrite::Accepted)?;
//! assert_eq!(answer, Enqueued::Untranslatable);
//! assert!(answer.zero_flag());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`SoftwareVm::translate_pasids`]: crate::SoftwareVm::translate_pasids
//! [`PasidSubscriber::unbind`]: crate::PasidSubscriber::unbind

mod books;
mod layout;
mod marks;
mod patience;
mod subscriber;
mod table;
mod vcpu;

use alloc::sync::Arc;
use core::fmt;

use ioasid::SubscribeError;
use mem::HostAddr;

use self::books::Books;
pub use self::layout::{
    CommandWord, Directory, DirectoryEntry, Ia32Pasid, TranslationEntry, COMMAND_SIZE, PAGE_SIZE,
    TABLES, TABLE_BITS,
};
use self::marks::Marks;
pub use self::patience::Patience;
use self::table::{NoMemory, Table};
pub use self::vcpu::{DeferrableWrite, Enqueued, GeneralProtection, Vcpu};
use crate::sync::Mutex;
use crate::{GuestPasid, HostPasid, Pasid, PasidSubscription};

/// Processors that one VM may have at most.
pub const MAX_VCPUS: usize = 1024;

/// How a VM's table is made.
#[derive(Clone, Copy, Debug)]
pub struct TranslationConfig {
    /// Processors that submit.
    pub vcpus: usize,
    /// log2 of how many of the lowest PASIDs are looked up by one load, of four bytes each; the
    /// others take the two levels, as hardware does. At most [`Pasid::BITS`].
    pub flat_bits: u32,
    /// Tables of the two levels at most, of a page each.
    pub tables: usize,
    /// How long to wait for a processor.
    pub patience: Patience,
}

impl TranslationConfig {
    /// The flat part by default: 256 KiB.
    pub const FLAT_BITS: u32 = 16;
}

impl Default for TranslationConfig {
    fn default() -> Self {
        let patience = Patience::default();
        Self { vcpus: 64, flat_bits: Self::FLAT_BITS, tables: TABLES, patience }
    }
}

/// Why a VM gets no table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TranslationError {
    /// More processors than a VM may have.
    #[error("{vcpus} processors; a VM has {MAX_VCPUS} at most")]
    TooManyVcpus {
        /// What was asked for.
        vcpus: usize,
    },
    /// A flat part of more PASIDs than there are.
    #[error("a flat part of 2^{bits} PASIDs; there are 2^{}", Pasid::BITS)]
    TooFlat {
        /// What was asked for.
        bits: u32,
    },
    /// The VM is closed.
    #[error("the VM is closed")]
    Closed,
    /// There is no memory for it.
    #[error("no memory for a table of PASIDs")]
    NoMemory,
}

impl From<NoMemory> for TranslationError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl From<SubscribeError> for TranslationError {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Closed => Self::Closed,
            _ => Self::NoMemory,
        }
    }
}

/// A processor has been submitting for longer than it may. The entry is closed all the same; the
/// host's number stays parked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("processor {vcpu} is in the middle of a submission, maybe as {guest} (the host's {host})")]
pub struct StuckSubmission {
    /// Which one.
    pub vcpu: usize,
    /// The PASID that is closed.
    pub guest: GuestPasid,
    /// The host's PASID that cannot be given up yet.
    pub host: HostPasid,
}

/// The table of a VM's processors. Dropping it closes every entry; what is submitted then is
/// untranslatable.
pub struct PasidTranslation {
    /// `None` of a VM that can have no PASIDs.
    subscription: Option<PasidSubscription>,
    shared: Arc<Shared>,
}

/// What the table, its processors and whoever tells it of events share.
pub(crate) struct Shared {
    table: Table,
    marks: Marks,
    /// Held for a few instructions; taken by events, never by a submission.
    books: Mutex<Books>,
    tables: usize,
    patience: Patience,
}

impl PasidTranslation {
    pub(crate) fn new(
        config: TranslationConfig,
        subscribe: impl FnOnce(Arc<Shared>) -> Result<Option<PasidSubscription>, SubscribeError>,
    ) -> Result<Self, TranslationError> {
        let TranslationConfig { vcpus, flat_bits, tables, patience } = config;
        if vcpus > MAX_VCPUS {
            return Err(TranslationError::TooManyVcpus { vcpus });
        }
        if flat_bits > Pasid::BITS {
            return Err(TranslationError::TooFlat { bits: flat_bits });
        }
        let (table, marks) = (Table::new(flat_bits)?, Marks::new(vcpus)?);
        let books = Mutex::new(Books::default());
        let shared = Arc::new(Shared { table, marks, books, tables, patience });
        let subscription = subscribe(shared.clone())?;
        Ok(Self { subscription, shared })
    }

    /// A processor; `None` if as many as the table is for have theirs.
    pub fn vcpu(&self) -> Option<Vcpu> {
        Vcpu::new(self.shared.clone())
    }

    /// The host's number of a PASID, at this moment: one that nobody waits for. Whoever does
    /// something with it is a [`Vcpu`].
    #[inline]
    pub fn peek(&self, guest: GuestPasid) -> Option<HostPasid> {
        self.shared.table.load(guest).host()
    }

    /// The same by way of the two levels.
    #[inline]
    pub fn walk(&self, guest: GuestPasid) -> Option<HostPasid> {
        self.shared.table.walk(guest).host()
    }

    /// The bytes of a directory, for an embedder that gives it to hardware; `at` says where it has
    /// put each table. The tables of a VM become more, and never fewer.
    pub fn directory(
        &self,
        which: Directory,
        mut at: impl FnMut(usize) -> HostAddr,
    ) -> [u8; PAGE_SIZE] {
        let mut bytes = [0; PAGE_SIZE];
        for (index, entry) in bytes.chunks_exact_mut(size_of::<DirectoryEntry>()).enumerate() {
            let table = which.table(index);
            if self.shared.table.words(table).is_some() {
                entry.copy_from_slice(
                    &DirectoryEntry::to_table(at(table)).into_bits().to_le_bytes(),
                );
            }
        }
        bytes
    }

    /// The bytes of a table, as they are at this moment; `None` if there is no such table.
    pub fn table(&self, table: usize) -> Option<[u8; PAGE_SIZE]> {
        let words = self.shared.table.words(table)?;
        let mut bytes = [0; PAGE_SIZE];
        for (entry, word) in bytes.chunks_exact_mut(size_of::<TranslationEntry>()).zip(words) {
            entry.copy_from_slice(&word.to_le_bytes());
        }
        Some(bytes)
    }

    /// Ends what was late and is over now.
    ///
    /// # Errors
    ///
    /// [`StuckSubmission`]: one of those that are not.
    pub fn settle(&self) -> Result<(), StuckSubmission> {
        self.shared.settle();
        let stuck = self.shared.books.lock().stuck();
        match stuck {
            None => Ok(()),
            Some((guest, host, vcpu)) => Err(StuckSubmission { vcpu, guest, host }),
        }
    }

    /// What has happened, and how it is now.
    pub fn counters(&self) -> TranslationCounters {
        self.shared.counters()
    }
}

impl Drop for PasidTranslation {
    fn drop(&mut self) {
        drop(self.subscription.take());
        self.shared.end();
    }
}

impl Shared {
    /// Closes everything, for good.
    fn end(&self) {
        self.books.lock().closed = true;
        loop {
            let any = self.books.lock().any_open();
            let Some((guest, tag)) = any else { return self.settle() };
            self.close(guest, tag);
            // One that was not open yet is given up.
            let _dropped = self.books.lock().remove_unless_closing(guest, tag);
        }
    }

    fn counters(&self) -> TranslationCounters {
        let mut sum = TranslationCounters::default();
        for counts in self.marks.iter().map(|mark| &mark.counts) {
            sum.accepted += counts.accepted.get();
            sum.retried += counts.retried.get();
            sum.untranslatable += counts.untranslatable.get();
            sum.protection += counts.protection.get();
        }
        let books = self.books.lock();
        let books::Counts { opened, closed, refused, conflicts, unmatched, late } = books.counts;
        let (open, closing) = (books.open() as u64, books.closing() as u64);
        let tables = self.table.pages() as u64;
        TranslationCounters {
            opened,
            closed,
            refused,
            conflicts,
            unmatched,
            late,
            open,
            closing,
            tables,
            ..sum
        }
    }
}

/// Counts of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TranslationCounters {
    /// Commands that a device has taken.
    pub accepted: u64,
    /// Commands that a device has not taken.
    pub retried: u64,
    /// Commands whose PASID has no translation.
    pub untranslatable: u64,
    /// Commands that were a program's error.
    pub protection: u64,
    /// Entries that were opened.
    pub opened: u64,
    /// Entries that were closed.
    pub closed: u64,
    /// PASIDs that were not let be bound.
    pub refused: u64,
    /// … because the VM's number has an entry.
    pub conflicts: u64,
    /// Events of PASIDs without an entry, or with another's. They changed nothing.
    pub unmatched: u64,
    /// Entries whose submissions took longer than they may.
    pub late: u64,
    /// Entries that are open now.
    pub open: u64,
    /// Entries that are closed and have submissions under way.
    pub closing: u64,
    /// Tables now.
    pub tables: u64,
}

impl fmt::Debug for PasidTranslation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasidTranslation")
            .field("vcpus", &self.shared.marks.slots())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
