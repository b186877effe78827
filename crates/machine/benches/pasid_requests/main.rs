//! `cargo bench -p machine`: PASID requests through the whole path, from a guest's driver to the
//! host's ID space and back, for each interface; with the host called directly and through the
//! bytes of VFIO's API; by the host's numbers and by the VM's own.
//!
//! What is measured is the code: there is no guest that leaves its processor for each request.
//! `-- --quick` measures next to nothing, to see that it runs.

mod guests;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guests::{Failure, Interface, Pair};
use iommu::{Host, Numbering, PasidRange, SoftwareHost, Vm, VmConfig, DEFAULT_QUOTA};
use vfio::{Client, Dispatcher, Revision};

/// PASIDs that the guest has out besides: none, and all that its quota leaves.
const OUT: [u32; 2] = [0, DEFAULT_QUOTA - 1];

/// How long to measure.
#[derive(Clone, Copy)]
struct Effort {
    round: Duration,
    rounds: u32,
}

impl Effort {
    /// Nanoseconds for a pair of requests: of the best round, as the machine may be shared and
    /// what disturbs only ever makes it longer.
    fn measure(self, pair: &Pair) -> Result<f64, Failure> {
        let pairs = self.pairs(pair)?;
        let mut least = f64::INFINITY;
        for _ in 0..self.rounds {
            least = least.min(time(pair, pairs)?.as_nanos() as f64 / f64::from(pairs));
        }
        Ok(least)
    }

    /// How many pairs take about a round.
    fn pairs(self, pair: &Pair) -> Result<u32, Failure> {
        let mut pairs = 1;
        while time(pair, pairs)? < self.round {
            pairs *= 2;
        }
        Ok(pairs)
    }
}

fn time(pair: &Pair, pairs: u32) -> Result<Duration, Failure> {
    let begin = Instant::now();
    for _ in 0..pairs {
        black_box(pair)()?;
    }
    Ok(begin.elapsed())
}

/// A row of the table: the same guest with few and with many PASIDs out.
fn row<H: Host>(
    effort: Effort,
    host: &H,
    way: &str,
    interface: Interface,
    numbering: Numbering,
) -> Result<(), Failure> {
    let name = interface.name();
    print!("{name:<18} {way:<7} {:<9}", format!("{numbering:?}").to_lowercase());
    for out in OUT {
        let vm = host.create_vm(VmConfig { numbering, ..VmConfig::named("guest") })?;
        let pair = interface.pair(vm.clone())?;
        // After the guest's driver has reset the device, which takes back what is out.
        for _ in 0..out {
            let _ = vm.alloc_pasid(PasidRange::ALL)?;
        }
        let ns = effort.measure(&pair)?;
        if vm.pasid_usage().live != out {
            return Err(format!("{name}: what was freed is still out").into());
        }
        // An allocation and a free are two requests.
        print!(" {ns:>9.0} {:>11.0}", 2e9 / ns);
        let _ = vm.close();
    }
    println!();
    Ok(())
}

fn run(effort: Effort) -> Result<(), Failure> {
    let direct = SoftwareHost::new();
    let bytes = Client::new(Dispatcher::new(direct.clone(), Revision::Own));
    println!(
        "Least of {} rounds of {:?}; ns a pair, requests a second.",
        effort.rounds, effort.round
    );
    let [few, many] = OUT.map(|out| format!("{out} out"));
    println!("{:<36} {few:>21} {many:>21}", "interface          host    numbers");
    for interface in Interface::ALL {
        for numbering in [Numbering::Identity, Numbering::Private] {
            row(effort, &direct, "called", interface, numbering)?;
            row(effort, &bytes, "bytes", interface, numbering)?;
        }
    }
    Ok(direct.check_books()?)
}

fn main() -> ExitCode {
    // `cargo test --benches` runs it with `--test`.
    let quick = std::env::args().any(|argument| argument == "--quick" || argument == "--test");
    let effort = if quick {
        Effort { round: Duration::from_micros(50), rounds: 1 }
    } else {
        Effort { round: Duration::from_millis(2), rounds: 20 }
    };
    match run(effort) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pasid_requests: {error}");
            ExitCode::FAILURE
        }
    }
}
