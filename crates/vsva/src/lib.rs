//! `vsva`, the program: an unmodified Linux guest on this project's IOMMU and accelerator.
//!
//! A library besides, so that tests run the lab through the same code as the command line does.
//!
//! ```text
//!  cli ──► lab ──► assets      QEMU and a guest kernel, found or fetched
//!           │ ───► initramfs   the guest program and its kernel modules
//!           │ ───► qemu        QEMU's command line
//!           │ ───► supervise   children that cannot be left behind
//!           │ ───► private     directories that cannot be left behind
//!           │ ───► control     what the lab and the guest program say to each other
//!           └────► server      the devices, for the lab and for QEMUs of the user's (serve)
//!  cli ──► serve ► server
//!      ──► inspect             asks a running server what its guests have
//!  cli ──► demo               guests and their host in this process
//! ```

pub mod assets;
pub mod capture;
pub mod cli;
pub mod control;
pub mod demo;
pub mod guest_program;
pub mod initramfs;
pub mod inspect;
pub mod lab;
pub mod private;
pub mod qemu;
pub mod serve;
pub mod server;
pub mod shares;
pub mod stop;
pub mod supervise;
pub mod term;
