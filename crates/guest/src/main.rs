//! `guest-init`: the program inside the lab's guest.
//!
//! ```text
//!   PID 1 ── runs ──► scenario ── runs ──► workers (address spaces of their own)
//!     ▲  ◄─ checks ──     │  ◄─ checks ──      │
//!     │                   ├── /dev/dsa/wq0.N ──┴── portal, completion records
//!     │                   └── /dev/vsva_pasids ─── the kernel's ioasid (Linux 6.1, module/)
//!   /dev/ttyS1 ◄──► the lab
//! ```
//!
//! It is one static binary: as PID 1 it mounts file systems, loads kernel modules and serves the
//! lab's commands (`guest_protocol`); started again by itself it runs one scenario or a part of
//! one. What the accelerator does is judged against an independent software account ([`model`]),
//! which `guest-init --self-test` checks on any machine.

mod bare;
mod calls;
mod child;
mod disk;
mod dma;
mod failure;
mod init;
mod job;
mod kmsg;
mod model;
mod pagemap;
mod pasids;
mod portal;
mod pri;
mod queue;
mod registers;
mod report;
mod scenario;
mod setup;
mod smaps;

use std::process::ExitCode;

use report::Report;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--self-test"] => {
            return if model::self_test() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        ["modules"] => init::load_modules(&mut Report::on_stdio()),
        ["scenario", name, seed] => {
            let seed = seed.parse().unwrap_or_default();
            scenario::run(&mut Report::on_stdio(), name, seed);
        }
        ["worker", ..] => {
            scenario::work(&mut Report::on_stdio(), arguments.get(1..).unwrap_or_default());
        }
        _ => {
            eprintln!("guest-init runs as PID 1 of the lab's guest; elsewhere: --self-test");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
