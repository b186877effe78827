//! The command line.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::assets::Sources;
use crate::demo;
use crate::inspect::{self, Form, Look, Watch};
use crate::lab::{self, LabError, Options, Report, SCENARIOS};
use crate::serve;
use crate::server::{Commands, HostCalls, Injection, PageTimeout, PasidTable, StageTwo};
use crate::shares::{NumberingWord, Setting, Shares};
use crate::stop::{Stop, EXIT_STOPPED};
use crate::term::Screen;

/// The exit code of a run in which a check failed.
pub const EXIT_FAILED: u8 = 1;

/// The exit code of a run that is not possible on this machine (also clap's for a bad command line).
pub const EXIT_IMPOSSIBLE: u8 = 2;

/// How the value of `--inject` is called in help texts.
const INJECTION: &str = "NAME[=VALUE]";

/// PASIDs and shared virtual addressing for virtual machines.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot an unmodified Linux guest on our IOMMU and accelerator, and check what they do.
    ///
    /// Exit code: 0 all checks hold, 1 a check failed, 2 the lab cannot run here, 130 stopped by a signal.
    Lab(Box<LabArgs>),
    /// Serve the IOMMU and the accelerator to a QEMU of your own.
    ///
    /// Prints the arguments that give each guest its devices, then a line whenever a guest comes or goes or does
    /// something that its user should know. A guest may end in any way and be started again with the same arguments,
    /// without notice to the others. Ctrl-C ends the server and removes what it made in DIR.
    ///
    /// All guests share one PASID space. A guest whose IOMMU has virtual commands (--vcmd) asks the host for its
    /// PASIDs, up to its quota, and is refused others; one whose IOMMU has none numbers its PASIDs itself. The guests
    /// are called guest0, guest1 and so on. Options that say what a guest may have take a value for all guests, or
    /// NAME=VALUE for one, and can be given several times: --vcmd 3.3 --vcmd guest1=off --quota 500 --quota guest0=16
    Serve(ServeArgs),
    /// Show what a running server's guests have and do: quotas, PASIDs, counters.
    ///
    /// Without further options a view that is taken anew every second, in place if standard output is a terminal
    /// (else one view). PASIDs are live (granted to the guest), parked (given back, but something can still name
    /// them), or the guest's own (numbered by itself, and met by its IOMMU).
    Inspect(InspectArgs),
    /// Show PASIDs on bare metal and in guests of every kind, in this process: each hop of a request, and what happens
    /// when guests want too much, forge numbers or die.
    ///
    /// Takes less than two seconds and needs nothing. Exit code: 0 all checks hold, 1 a check failed.
    Demo(DemoArgs),
}

/// Options of `vsva demo`.
#[derive(Clone, Debug, Default, Args)]
pub struct DemoArgs {
    /// Print one JSON object as the last line of standard output; lines for people go to standard error.
    #[arg(long)]
    pub json: bool,
}

/// Options of `vsva lab`.
#[derive(Clone, Debug, Default, Args)]
pub struct LabArgs {
    /// Print one JSON object as the last line of standard output; lines for people go to standard error.
    #[arg(long)]
    pub json: bool,
    /// Run only this scenario (can be given several times).
    #[arg(long, value_name = "NAME")]
    pub scenario: Vec<String>,
    /// List the scenarios and end.
    #[arg(long)]
    pub list: bool,
    /// Keep guests' consoles and control transcripts in this directory.
    #[arg(long, value_name = "DIR")]
    pub keep_logs: Option<PathBuf>,
    /// Use this qemu-system-x86_64 (10.1 or newer) [default: the one on PATH if new enough, else one is fetched].
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Use this x86-64 boot image (vmlinuz) instead of fetching one. Its modules come from --modules, or are looked
    /// for beside it and in /lib/modules.
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Take the modules of --kernel from this directory (as /lib/modules/RELEASE).
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub modules: Option<PathBuf>,
    /// Use this x86-64 boot image where a kernel that uses virtual commands is wanted (Linux 5.15 to 6.3) instead of
    /// fetching Linux 6.1. A module is built for it with make and gcc in --vcmd-headers.
    #[arg(long, value_name = "PATH", requires = "vcmd_headers")]
    pub vcmd_kernel: Option<PathBuf>,
    /// Build the module of --vcmd-kernel in this directory (as /lib/modules/RELEASE/build).
    #[arg(long, value_name = "DIR", requires = "vcmd_kernel")]
    pub vcmd_headers: Option<PathBuf>,
    /// Fetch from this Debian archive instead of the one in this machine's apt configuration.
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Fetch nothing: use what is on the machine or in the cache.
    #[arg(long)]
    pub offline: bool,
    /// How devices call the host: direct (functions) or bytes (VFIO's user API, encoded and decoded)
    /// [default: as the scenario says].
    #[arg(long, value_name = "direct|bytes")]
    pub host: Option<HostCalls>,
    /// Who owns the PASID tables: guest (the host walks the guests' own tables) or host (each PASID is bound in a table
    /// in host memory) [default: both in turn for scenarios with one guest, as the scenario says for others].
    #[arg(long, value_name = "guest|host")]
    pub pasid_table: Option<PasidTable>,
    /// The host's second stage, below what guests call physical memory: none, identity (each address maps to itself)
    /// or shuffled (4 KiB and 2 MiB frames in random order) [default: as the scenario says, mostly shuffled].
    #[arg(long, value_name = "none|identity|shuffled")]
    pub stage_two: Option<StageTwo>,
    /// Let something go wrong for every guest from its beginning, as for serve; can be given several times. What
    /// scenarios then find is reported as usual.
    #[arg(long, value_name = INJECTION)]
    pub inject: Vec<Injection>,
    /// Repeat the guest's random choices of an earlier run.
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Break the server in the named way, to see a scenario notice.
    #[arg(long, value_name = "NAME", hide = true)]
    pub sabotage: Option<String>,
}

/// Options of `vsva serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Make the sockets and ACPI tables in this directory, which nobody else may be able to write to; it is made if it
    /// is not there.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// How many guests can be connected at a time, 1 to 64.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub guests: u32,
    /// PASIDs that a guest can have at a time; they are set aside for it [default: 1000].
    #[arg(long, value_name = "[NAME=]N")]
    pub quota: Vec<Setting<u32>>,
    /// How a guest's PASID numbers relate to the host's: identity (they are the same, so that no two guests have the
    /// same one) or private (each guest has numbers of its own) [default: identity].
    #[arg(long, value_name = "[NAME=]identity|private")]
    pub pasids: Vec<Setting<NumberingWord>>,
    /// Give a guest's IOMMU virtual commands, with the registers of this revision of the specification: 3.0 for Linux
    /// 5.7 to 5.14, 3.3 for Linux 5.15 to 6.3. Later ones do not look for them [default: off].
    #[arg(long, value_name = "[NAME=]3.0|3.3|off")]
    pub vcmd: Vec<Setting<Commands>>,
    /// Who owns the PASID table of a guest's devices: guest (the host walks the guest's own) or host (each PASID is
    /// bound in a table in host memory when the guest announces it). Guests without --vcmd then have private numbers
    /// [default: guest].
    #[arg(long, value_name = "[NAME=]guest|host")]
    pub pasid_table: Vec<Setting<PasidTable>>,
    /// The host's second stage, below what a guest calls physical memory: none, identity (each address maps to itself)
    /// or shuffled (4 KiB and 2 MiB frames in random order) [default: none].
    #[arg(long, value_name = "[NAME=]none|identity|shuffled")]
    pub stage_two: Vec<Setting<StageTwo>>,
    /// How long a guest may leave a page request unanswered, in milliseconds; then the host answers in its place that
    /// the page cannot be had [default: 30000].
    #[arg(long, value_name = "[NAME=]MS|never")]
    pub page_request_timeout: Vec<Setting<PageTimeout>>,
    /// How guests' devices call the host: direct (functions) or bytes (VFIO's user API, encoded and decoded).
    #[arg(long, value_name = "direct|bytes", default_value_t)]
    pub host: HostCalls,
    /// Let something go wrong for every guest, to see what it makes of it; can be given several times. Page requests:
    /// drop-response[=ONE_IN] loses one answer in so many (all), delay-response=MS makes them late, answer-twice gives
    /// each a second time, overflow-queue[=MS] has the guest's queue full (for so long from the first request on).
    /// Invalidations: delay-invalidation=MS has the device answer late. Tables: fail-walk=N hides the N-th word that a
    /// walk fetches, once.
    #[arg(long, value_name = INJECTION)]
    pub inject: Vec<Injection>,
    /// Take guest memory from files that are not sealed against shrinking (F_SEAL_SHRINK), too. Whoever shrinks such
    /// a file kills the server, and with it every guest's devices.
    #[arg(long)]
    pub allow_unsealed: bool,
}

/// Options of `vsva inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// The server's directory, as given to serve.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Show this guest only, with everything that is counted for it.
    #[arg(long, value_name = "NAME")]
    pub guest: Option<String>,
    /// Print one view and end.
    #[arg(long)]
    pub once: bool,
    /// Go on until Ctrl-C or the server's end, also where standard output is no terminal.
    #[arg(long, conflicts_with = "once")]
    pub watch: bool,
    /// Print one JSON object; with --watch one a second, each in a line.
    #[arg(long)]
    pub json: bool,
    /// Print what Prometheus takes (OpenMetrics text).
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub metrics: bool,
}

impl From<&LabArgs> for Options {
    fn from(args: &LabArgs) -> Self {
        Self {
            sources: Sources {
                qemu: args.qemu.clone(),
                kernel: args.kernel.clone(),
                modules: args.modules.clone(),
                vcmd_kernel: args.vcmd_kernel.clone(),
                vcmd_headers: args.vcmd_headers.clone(),
                mirror: args.mirror.clone(),
                offline: args.offline,
            },
            scenarios: args.scenario.clone(),
            keep_logs: args.keep_logs.clone(),
            seed: args.seed,
            sabotage: args.sabotage.clone(),
            calls: args.host,
            pasid_table: args.pasid_table,
            stage_two: args.stage_two,
            injections: args.inject.clone(),
        }
    }
}

/// Runs `vsva lab`.
pub fn lab(args: &LabArgs) -> ExitCode {
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    let screen = if args.json { Screen::stderr() } else { Screen::stdout() };
    let outcome = Stop::on_signals()
        .map_err(LabError::Signals)
        .and_then(|stop| lab::run(&Options::from(args), &crate::server::start, &screen, &stop));
    match outcome {
        Ok(report) => finish(args, &screen, &report),
        Err(error) => {
            eprintln!("vsva lab: {error}");
            if args.json {
                let error = error.to_string();
                print_line(
                    &json!({"ok": false, "checks": [], "counters": {}, "error": error}).to_string(),
                );
            }
            let stopped = matches!(error, LabError::Stopped(_));
            ExitCode::from(if stopped { EXIT_STOPPED } else { EXIT_IMPOSSIBLE })
        }
    }
}

fn finish(args: &LabArgs, screen: &Screen, report: &Report) -> ExitCode {
    show(screen, report);
    if args.json {
        print_line(&report.json().to_string());
    }
    if report.ok() {
        return ExitCode::SUCCESS;
    }
    if args.keep_logs.is_none() {
        let seed = report.seed;
        screen.line(&format!(
            "to look closer: --seed {seed} --keep-logs DIR keeps consoles and transcripts"
        ));
    }
    ExitCode::from(EXIT_FAILED)
}

/// Shows what a finished run found.
pub fn show(screen: &Screen, report: &Report) {
    screen.line("");
    screen.line(&report.table(screen.width()));
    screen.line(&report.counters());
    screen.line("");
    screen.line(&report.verdict());
}

/// Runs `vsva serve`.
pub fn serve(args: &ServeArgs) -> ExitCode {
    let options = serve::Options {
        dir: args.dir.clone(),
        guests: args.guests,
        shares: Shares {
            quota: args.quota.clone(),
            numbering: args.pasids.clone(),
            commands: args.vcmd.clone(),
            pasid_table: args.pasid_table.clone(),
            stage_two: args.stage_two.clone(),
            page_request_timeout: args.page_request_timeout.clone(),
        },
        calls: args.host,
        injections: args.inject.clone(),
        allow_unsealed: args.allow_unsealed,
    };
    let say: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(print_line);
    match serve::run(&options, &say) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsva serve: {error}");
            ExitCode::from(EXIT_IMPOSSIBLE)
        }
    }
}

/// Runs `vsva inspect`.
pub fn inspect(args: &InspectArgs) -> ExitCode {
    let mut out = std::io::stdout();
    let outcome = Stop::on_signals().map_err(inspect::Error::Signals).and_then(|stop| {
        let look = || look(args, &Screen::stdout());
        inspect::run(&args.dir, args.guest.as_deref(), look, &stop, &mut out)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read it has seen enough.
        Err(inspect::Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("vsva inspect: {error}");
            ExitCode::from(EXIT_IMPOSSIBLE)
        }
    }
}

/// What the options ask for on this screen.
fn look(args: &InspectArgs, screen: &Screen) -> Look {
    let form = match (args.json, args.metrics) {
        (true, _) => Form::Json,
        (_, true) => Form::Metrics,
        _ => Form::Text { width: screen.width() },
    };
    let text = matches!(form, Form::Text { .. });
    let height = screen.height().filter(|_| text && !args.once);
    let watch = match height {
        Some(height) => Some(Watch::Screen { height }),
        None => args.watch.then_some(Watch::Stream),
    };
    Look { form, watch }
}

/// Runs `vsva demo`.
pub fn demo(args: &DemoArgs) -> ExitCode {
    let screen = if args.json { Screen::stderr() } else { Screen::stdout() };
    let report = demo::run(&screen);
    screen.line("");
    screen.line(&report.verdict());
    if args.json {
        print_line(&report.json().to_string());
    }
    ExitCode::from(if report.ok() { 0 } else { EXIT_FAILED })
}

fn list() {
    for scenario in &SCENARIOS {
        print_line(&format!("{:<16}{}", scenario.name, scenario.shows));
    }
}

/// Prints to standard output; unlike `println!`, not being read to the end is no reason to panic.
fn print_line(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use iommu::{Numbering, DEFAULT_QUOTA};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_of_the_lab_arrives() {
        let line = "vsva lab --json --scenario rebind --scenario kill --keep-logs logs --qemu q --kernel k \
                    --modules m --vcmd-kernel v --vcmd-headers h --mirror http://a.example/ --offline --host bytes \
                    --pasid-table host --stage-two identity --inject answer-twice --inject fail-walk=9 --seed 7 \
                    --sabotage s";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Lab(args) = cli.command else { panic!("another command") };
        let options = Options::from(&*args);
        assert!(args.json && options.sources.offline);
        assert_eq!(options.scenarios, ["rebind", "kill"]);
        assert_eq!(options.sources.modules.as_deref(), Some("m".as_ref()));
        assert_eq!(options.sources.vcmd_kernel.as_deref(), Some("v".as_ref()));
        assert_eq!(options.sources.vcmd_headers.as_deref(), Some("h".as_ref()));
        assert_eq!((options.seed, options.sabotage.as_deref()), (Some(7), Some("s")));
        assert_eq!(options.calls, Some(HostCalls::Bytes));
        assert_eq!(options.pasid_table, Some(PasidTable::Host));
        assert_eq!(options.stage_two, Some(StageTwo::Identity));
        let wanted = ["answer-twice", "fail-walk=9"].map(|text| text.parse::<Injection>().unwrap());
        assert_eq!(options.injections, wanted);
    }

    #[test]
    fn a_kernel_or_its_modules_alone_are_refused() {
        for alone in ["--modules", "--vcmd-kernel", "--vcmd-headers"] {
            assert!(Cli::try_parse_from(["vsva", "lab", alone, "m"]).is_err(), "{alone}");
        }
    }

    #[test]
    fn what_guests_may_have_is_said_for_all_or_by_name() {
        let line = "vsva serve --dir d --guests 2 --quota 9 --quota guest1=3 --pasids private --vcmd guest0=3.0 \
                    --vcmd 3.3 --pasid-table guest0=host --stage-two shuffled";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Serve(args) = cli.command else { panic!("another command") };
        fn of<T>(guest: &str, value: T) -> Setting<T> {
            Setting { guest: Some(guest.to_owned()), value }
        }
        fn all<T>(value: T) -> Setting<T> {
            Setting { guest: None, value }
        }
        assert_eq!(args.quota, [all(9), of("guest1", 3)]);
        assert_eq!(args.pasids, [all(NumberingWord(Numbering::Private))]);
        assert_eq!(args.vcmd, [of("guest0", Commands::Revision30), all(Commands::Revision33)]);
        assert_eq!(args.pasid_table, [of("guest0", PasidTable::Host)]);
        assert_eq!(args.stage_two, [all(StageTwo::Shuffled)]);
    }

    #[test]
    fn the_help_names_every_injection() {
        let mut cli = Cli::command();
        let serve = cli.find_subcommand_mut("serve").unwrap();
        let help = serve.render_long_help().to_string();
        let help: Vec<_> = help.split_whitespace().collect();
        for form in Injection::FORMS {
            assert!(help.contains(&form), "{form}");
        }
    }

    #[test]
    fn an_injection_that_there_is_not_is_refused_with_those_that_there_are() {
        let line = ["vsva", "serve", "--dir", "d", "--inject", "drop-request"];
        let refused = Cli::try_parse_from(line).unwrap_err().to_string();
        assert!(refused.contains("there are drop-response[=ONE_IN], "), "{refused}");
    }

    #[test]
    fn the_help_names_what_guests_get_otherwise() {
        let mut cli = Cli::command();
        let serve = cli.find_subcommand_mut("serve").unwrap();
        let help = serve.render_long_help().to_string();
        assert!(help.contains(&format!("set aside for it [default: {DEFAULT_QUOTA}]")), "{help}");
        let patience = iommu::PAGE_REQUEST_TIMEOUT.as_millis();
        assert!(help.contains(&format!("cannot be had [default: {patience}]")), "{help}");
    }

    #[test]
    fn a_view_is_as_its_options_and_its_screen_say() {
        let of = |options: &str| {
            let line = format!("vsva inspect --dir d {options}");
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            let Command::Inspect(args) = cli.command else { panic!("another command") };
            look(&args, &Screen::none())
        };
        let text = Form::Text { width: Screen::none().width() };
        assert_eq!(of(""), Look { form: text, watch: None }, "no terminal");
        assert_eq!(of("--watch"), Look { form: text, watch: Some(Watch::Stream) });
        assert_eq!(of("--json"), Look { form: Form::Json, watch: None });
        let stream = Look { form: Form::Json, watch: Some(Watch::Stream) };
        assert_eq!(of("--json --watch"), stream);
        assert_eq!(of("--metrics"), Look { form: Form::Metrics, watch: None });
        for refused in ["--once --watch", "--metrics --json", "--metrics --watch"] {
            let line = format!("vsva inspect --dir d {refused}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{refused}");
        }
    }
}
