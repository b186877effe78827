//! Page-table formats, and one walker and one builder over all of them.
//!
//! ```text
//!   Format: what an entry's bits mean          Tables: where entries are loaded from
//!   ├── FirstStage   x86-64, 4 or 5 levels     (guest memory, guest memory behind a
//!   ├── SecondStage  VT-d, 3 to 5 levels        second stage, host memory, a test's map)
//!   ├── ArmStageOne  VMSAv8-64, 4, 16, 64 KiB           │
//!   └── ArmStageTwo  the same, concatenated roots       │
//!                 └───────────────┬─────────────────────┘
//!   walk(format, root, address, request, tables) ──► Leaf or WalkFault
//! ```
//!
//! # Words
//!
//! * **level**: 1 is the table whose entries map the smallest pages; the root is at the format's
//!   [`levels`](Format::levels). Arm counts the other way: its level 3 is 1 here, its level 0 is 4.
//! * **table entry**: an entry that points at the table one level down.
//! * **leaf**: an entry that maps a page (Arm calls the larger ones blocks). With pages of 4 KiB,
//!   one at level 2 has 2 MiB and one at level 3 has 1 GiB.
//! * **rights**: what an entry lets through; those of a page are what all entries on the way to
//!   it agree on.
//!
//! # What a walk costs
//!
//! No allocation, no recursion: at most [`MAX_ATTEMPTS`] times one load and one atomic update per
//! level, whatever the tables contain.
//!
//! ```
//! use core::cell::Cell;
//! use core::convert::Infallible;
//! use pgtable::{walk, Access, FirstStage, Request, Tables};
//!
//! /// Tables at addresses 0x1000 to 0x4fff.
//! struct Memory([Cell<u64>; 0x800]);
//!
//! impl Tables for Memory {
//!     type Error = Infallible;
//!     fn load(&self, entry: u64) -> Result<u64, Infallible> {
//!         Ok(self.0[(entry - 0x1000) as usize / 8].get())
//!     }
//!     fn compare_exchange(
//!         &self, entry: u64, current: u64, new: u64,
//!     ) -> Result<Result<u64, u64>, Infallible> {
//!         let cell = &self.0[(entry - 0x1000) as usize / 8];
//!         let found = cell.get();
//!         if found == current {
//!             cell.set(new);
//!         }
//!         Ok(if found == current { Ok(found) } else { Err(found) })
//!     }
//! }
//!
//! let memory = Memory([const { Cell::new(0) }; 0x800]);
//! memory.0[0x000].set(0x2007); // level 4 at 0x1000: present, writable, user
//! memory.0[0x200].set(0x3007); // level 3 at 0x2000
//! memory.0[0x400].set(0x8000_0087); // level 2 at 0x3000: a page of 2 MiB at 0x8000_0000
//!
//! let format = FirstStage::FOUR_LEVEL;
//! let leaf = walk(&format, 0x1000, 0x1234, &Request::user(Access::Write), &memory).unwrap();
//! assert_eq!(leaf.translate(0x1234), 0x8000_1234);
//! assert_eq!(memory.0[0x400].get(), 0x8000_00e7); // now accessed and dirty
//! ```
//!
//! # Arm
//!
//! A stage 1 has a table for each half of the address space, which [`ArmRegime`] tells apart; a
//! stage 2 is one table, whose root may be several in a row. Both exist for every [`Granule`].
//!
//! ```
//! use pgtable::{ArmFlags, ArmRegime, ArmStageOne, ArmStageTwo, ArmTable, Format, Granule, Vtcr};
//!
//! // T0SZ = 16, IPS = 5, HA and HD, as a context descriptor says.
//! let format = ArmStageOne::new(Granule::Kib64, 48, 48).unwrap();
//! let format = format.with_flags(ArmFlags::AccessDirty);
//! let low = Some(ArmTable { root: 0x10_0000, format });
//! let regime = ArmRegime { low, high: None, top_byte_ignore: [true, false] };
//! let (table, address) = regime.select(0x7f00_8000_1234_5678).unwrap();
//! assert_eq!((table.root, address), (0x10_0000, 0x8000_1234_5678));
//!
//! // 40 bits in three levels: the root is two tables in a row, and starts at Arm's level 1.
//! let stage_two = ArmStageTwo::new(Granule::Kib4, 40, 40).unwrap();
//! assert_eq!((stage_two.levels(), stage_two.table_bits(3)), (3, 13));
//! assert_eq!(stage_two.vtcr(), Vtcr { t0sz: 24, sl0: 1, tg0: 0, ps: 2, wide: false });
//! ```
#![no_std]

extern crate alloc;

mod arm;
mod build;
mod first_stage;
mod format;
mod second_stage;
mod walk;

pub use arm::{
    arm_output_bits, arm_output_field, ArmFlags, ArmFormatError, ArmRegime, ArmSizes, ArmStageOne,
    ArmStageOneEntry, ArmStageTwo, ArmStageTwoEntry, ArmTable, Granule, SelectError, Vtcr,
    MAX_CONCATENATED,
};
pub use build::{Flush, Map, MapError, PageTable, Pages, UnmapError, MIN_TABLE_BITS};
pub use first_stage::{FirstStage, FirstStageEntry};
pub use format::{Access, LeafEntry, TableEntry};
pub use format::{Denied, Entry, Format, InvalidAddress, Request, ReservedBits, Rights};
pub use second_stage::{SecondStage, SecondStageEntry, SecondStageLevels};
pub use walk::{walk, Leaf, Tables, WalkFault, MAX_ATTEMPTS, MAX_LEVELS};
