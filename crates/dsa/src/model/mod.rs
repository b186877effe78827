//! The accelerator: a PCI function whose engines work through an IOMMU.
//!
//! ```text
//!   transport                                                     worker threads
//!      │ Function: configuration space, registers, portals             │ Engine::run
//!      ▼                                                               ▼
//!   Device ── lock ──► State ── queues ──► dispatch ──► Engine ──► iommu::Channel ──► memory
//!      │                 ▲ ▲                              │ │
//!      │ Device::submit  │ └── page requests ◄── block ───┘ │
//!      │                 └──── commands, SWERROR ◄── done ──┘
//!      ▼
//!   InterruptSink, Waker (after the lock is released)
//! ```
//!
//! There are no threads, sockets or clocks in here. Register accesses return at once. The embedder
//! takes each [`Engine`] once and calls [`Engine::run`] when the waker says that it has work, from
//! whatever thread it likes; all engines can run at the same time. A descriptor that has to wait for
//! a page is set aside, and its engine goes on with others; it is woken when the answer comes.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dsa::model::{Config, Device, Ran};
//! use mem::{Gpa, MemoryMap};
//! use pci::{Function, RequesterId};
//!
//! let memory = Arc::new(MemoryMap::anonymous(&[(Gpa(0), 0x10_0000)])?);
//! let requester = RequesterId::from_bits(0x80);
//! let device = Device::new(Config::default(), iommu::Endpoint::identity(requester, memory))?;
//! let mut engine = device.engine(0).expect("nobody has it yet");
//!
//! let mut version = [0; 4];
//! device.bar_read(0, 0, &mut version);
//! assert_eq!(u32::from_le_bytes(version), 0x100);
//! assert_eq!(engine.run(1), Ran::Idle);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod caps;
mod commands;
mod counters;
mod device;
mod effects;
mod enable;
mod engine;
mod function;
mod ops;
mod paging;
mod portal;
mod queue;
mod registers;
#[cfg(feature = "sabotage")]
pub mod sabotage;
#[cfg(not(feature = "sabotage"))]
mod sabotage;
mod schedule;
mod state;

pub use caps::{Config, ConfigError, MAX_ENGINES, MAX_ENTRIES, MAX_GROUPS, MAX_QUEUES};
pub use counters::Counters;
pub use device::{Device, Waker};
pub use engine::{Engine, Ran};
pub use ops::CHUNK;
pub use paging::{RETRY_LIMIT, SET_ASIDE};
pub use portal::ASSEMBLIES;
pub use queue::Submission;
