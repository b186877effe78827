//! `cargo bench -p ioasid`: what the ID space costs, against a plain array and against peers.
//!
//! `-- --json` prints all rows once more as the last line; `-- --check` ends with an error if a
//! goal is missed; `-- --quick` measures next to nothing, to see that it runs.

mod alloc;
mod find;
mod measure;
mod peers;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use measure::Effort;
use table::Table;

const POPULATIONS: [usize; 3] = [1_000, 65_536, 1_000_000];

#[derive(Clone, Copy, Default)]
struct Options {
    json: bool,
    check: bool,
    quick: bool,
}

impl Options {
    /// Cargo adds arguments of its own (`--bench`), and a filter is nothing to this table: what is
    /// not known is ignored.
    fn from_arguments() -> Self {
        std::env::args().skip(1).fold(Self::default(), |options, argument| match &*argument {
            "--json" => Self { json: true, ..options },
            "--check" => Self { check: true, ..options },
            // `cargo test --benches` runs it with `--test`.
            "--quick" | "--test" => Self { quick: true, ..options },
            _ => options,
        })
    }
}

fn main() -> ExitCode {
    let options = Options::from_arguments();
    let effort = if options.quick {
        Effort { round: Duration::from_micros(50), rounds: 1, warm: 0 }
    } else {
        Effort { round: Duration::from_millis(1), rounds: 40, warm: 0 }
    };
    let mut table = Table::default();
    let populations = if options.quick { &POPULATIONS[..1] } else { &POPULATIONS[..] };
    for &live in populations {
        // Once around, or what the second-level cache holds several times over.
        let warm = if options.quick { 0 } else { live.min(1 << 17) as u64 };
        find::find(&mut table, live, Effort { warm, ..effort });
        alloc::pairs(&mut table, live, effort);
    }
    alloc::nearly_full(&mut table, effort);
    alloc::iterate(&mut table, effort);
    println!("Least of {} rounds of {:?}.", effort.rounds, effort.round);
    table.print();
    if options.json && table.print_json().is_err() {
        return ExitCode::FAILURE;
    }
    let missed = table.missed();
    if options.check && missed > 0 {
        eprintln!("{missed} goals missed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
