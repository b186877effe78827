//! The lab as tests: every scenario in a real guest against the broken server that it must notice, and some scenarios
//! that must hold, with the checks of this profile (overflow, assertions) in the server.
//!
//! All scenarios that must hold are one command of the README's (`cargo run --release -- lab`), which takes minutes and
//! is not run here again; `VSVA_LAB_ALL=1` has it run here, too.
//!
//! Not under libtest's harness, because a machine that cannot run them (no packages to be had, no network) must say so:
//! a test then counts as ignored, with the reason, unless `CI` is set, where it is a failure.

use std::process::ExitCode;
use std::time::Instant;

use vsva::cli;
use vsva::lab::{self, LabError, Options, Plan, Report, Scenario, SCENARIOS};
use vsva::stop::{Stop, EXIT_STOPPED};
use vsva::term::Screen;

/// libtest's exit code for failed tests.
const EXIT_TESTS_FAILED: u8 = 101;

/// Has every scenario that must hold run here.
const ALL: &str = "VSVA_LAB_ALL";
/// What must hold here in any case: pages that are there and pages that are not, with both owners of the PASID tables.
const QUICK: [&str; 2] = ["sva-copy", "lazy-anon"];

/// One test.
enum Case {
    /// Scenarios hold.
    Holds(&'static [&'static str]),
    /// Each of the scenarios fails on the server that is broken in their way.
    Notice { sabotage: &'static str, scenarios: Vec<&'static Scenario> },
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let holds = if std::env::var_os(ALL).is_some() { &[] } else { &QUICK[..] };
        std::iter::once(Self::Holds(holds)).chain(Self::sabotages())
    }

    /// A case for each sabotage. Scenarios that can share a guest are run one after the other on the same server.
    fn sabotages() -> impl Iterator<Item = Self> {
        let mut groups: Vec<(&str, Vec<&Scenario>)> = Vec::new();
        let each = SCENARIOS.iter().flat_map(|scenario| {
            scenario.sabotages.iter().map(move |&sabotage| (sabotage, scenario))
        });
        for (sabotage, scenario) in each {
            let group = groups.iter_mut().find(|(broken, group)| {
                *broken == sabotage
                    && group[0].tables.first() == scenario.tables.first()
                    && group[0].plan == Plan::Shared
                    && scenario.plan == Plan::Shared
            });
            match group {
                Some((_, group)) => group.push(scenario),
                None => groups.push((sabotage, vec![scenario])),
            }
        }
        groups.into_iter().map(|(sabotage, scenarios)| Self::Notice { sabotage, scenarios })
    }

    fn name(&self) -> String {
        match self {
            Self::Holds(_) => "real_guest".to_owned(),
            Self::Notice { sabotage, scenarios } => {
                let names: Vec<_> = scenarios.iter().map(|scenario| scenario.name).collect();
                format!("{}::notice::{sabotage}", names.join("+"))
            }
        }
    }

    fn options(&self) -> Options {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        match self {
            Self::Holds(names) => Options { scenarios: owned(names), ..Options::default() },
            Self::Notice { sabotage, scenarios } => Options {
                scenarios: scenarios.iter().map(|scenario| scenario.name.to_owned()).collect(),
                sabotage: Some((*sabotage).to_owned()),
                // With one owner of the PASID tables it has to be noticed already.
                pasid_table: scenarios[0].tables.first().copied(),
                ..Options::default()
            },
        }
    }

    fn passed(&self, report: &Report) -> bool {
        let failed = |scenario: &Scenario| {
            report.records.iter().any(|record| !record.ok && record.scenario == scenario.name)
        };
        match self {
            Self::Holds(_) => report.ok(),
            Self::Notice { scenarios, .. } => {
                let unnoticed = scenarios.iter().filter(|scenario| !failed(scenario));
                let unnoticed: Vec<_> = unnoticed.map(|scenario| scenario.name).collect();
                if !unnoticed.is_empty() {
                    println!("not noticed by: {}", unnoticed.join(", "));
                }
                unnoticed.is_empty()
            }
        }
    }

    fn run(&self, screen: &Screen, stop: &Stop) -> Outcome {
        match lab::run(&self.options(), &vsva::server::start, screen, stop) {
            Ok(report) => {
                cli::show(screen, &report);
                if self.passed(&report) {
                    Outcome::Passed
                } else {
                    Outcome::Failed
                }
            }
            Err(LabError::Stopped(_)) => Outcome::Stopped,
            Err(error) if std::env::var_os("CI").is_some() => {
                println!("{error}");
                Outcome::Failed
            }
            Err(error) => Outcome::Ignored(error.to_string()),
        }
    }
}

enum Outcome {
    Passed,
    Failed,
    Ignored(String),
    Stopped,
}

/// What libtest's command line asks for, as far as it makes a difference here.
#[derive(Debug, Default)]
struct Arguments {
    list: bool,
    exact: bool,
    only_ignored: bool,
    filters: Vec<String>,
    skips: Vec<String>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut parsed = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => parsed.list = true,
                "--exact" => parsed.exact = true,
                "--ignored" => parsed.only_ignored = true,
                "--skip" => parsed.skips.extend(arguments.next()),
                // Options with a value of their own, which is no filter.
                "--format" | "--color" | "--test-threads" | "--logfile" | "--shuffle-seed"
                | "-Z" => {
                    arguments.next();
                }
                option if option.starts_with('-') => {}
                filter => parsed.filters.push(filter.to_owned()),
            }
        }
        parsed
    }

    fn selects(&self, case: &Case) -> bool {
        let name = case.name();
        let matches =
            |filter: &String| if self.exact { *filter == name } else { name.contains(&**filter) };
        !self.only_ignored
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skips.iter().any(matches)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let (cases, others): (Vec<_>, Vec<_>) = Case::all().partition(|case| arguments.selects(case));
    if arguments.list {
        cases.iter().for_each(|case| println!("{}: test", case.name()));
        return ExitCode::SUCCESS;
    }
    let stop = match Stop::on_signals() {
        Ok(stop) => stop,
        Err(error) => {
            println!("signals cannot be handled: {error}");
            return ExitCode::from(EXIT_TESTS_FAILED);
        }
    };
    let (screen, begun) = (Screen::stdout(), Instant::now());
    println!("\nrunning {} test{}", cases.len(), if cases.len() == 1 { "" } else { "s" });
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    let mut impossible = None;
    for case in &cases {
        // What the machine lacks for one it lacks for all, and finding out may have taken minutes.
        let outcome = match &impossible {
            Some(reason) => Outcome::Ignored(String::clone(reason)),
            None => case.run(&screen, &stop),
        };
        let word = match outcome {
            Outcome::Passed => "ok".to_owned(),
            Outcome::Failed => "FAILED".to_owned(),
            Outcome::Ignored(ref reason) => {
                let words: Vec<_> = reason.split_whitespace().collect();
                format!("ignored, {}", words.join(" "))
            }
            Outcome::Stopped => return ExitCode::from(EXIT_STOPPED),
        };
        println!("test {} ... {word}", case.name());
        match outcome {
            Outcome::Passed => passed += 1,
            Outcome::Ignored(reason) => {
                ignored += 1;
                impossible = Some(reason);
            }
            Outcome::Failed | Outcome::Stopped => failed += 1,
        }
    }
    println!(
        "\ntest result: {}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {} filtered \
         out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        others.len(),
        begun.elapsed().as_secs_f64()
    );
    ExitCode::from(if failed == 0 { 0 } else { EXIT_TESTS_FAILED })
}
