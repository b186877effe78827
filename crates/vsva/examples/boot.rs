//! Boots the lab's guest with no devices at all and runs scenarios in it by name: for work on the guest program and on
//! the lab itself.
//!
//! ```text
//! cargo run -p vsva --example boot -- [SCENARIO]...
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use vsva::cli;
use vsva::lab::{
    self, Check, EncodedCalls, GuestDevices, GuestId, LabServer, Options, PasidRecord, PasidSpace,
    ServerError,
};
use vsva::qemu::Devices;
use vsva::server::{GuestConfig, Injection};
use vsva::stop::Stop;
use vsva::term::Screen;

/// A server that has nothing to give.
struct Nothing(u32);

impl LabServer for Nothing {
    fn add_guest(
        &mut self,
        _dir: &Path,
        _config: GuestConfig,
    ) -> Result<GuestDevices, ServerError> {
        self.0 += 1;
        Ok(GuestDevices { guest: GuestId(self.0), devices: Devices::default() })
    }

    fn wait_gone(&mut self, _guest: GuestId, _limit: Duration) -> Result<Duration, ServerError> {
        Ok(Duration::ZERO)
    }

    fn counters(&self, _guest: GuestId) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn pasids(&self, guest: GuestId) -> Result<PasidRecord, ServerError> {
        Err(ServerError::UnknownGuest(guest))
    }

    fn space(&self) -> PasidSpace {
        PasidSpace::default()
    }

    fn encoded_calls(&self) -> Option<EncodedCalls> {
        None
    }

    fn inject(&mut self, _: GuestId, injection: Injection) -> Result<(), ServerError> {
        Err(ServerError::CannotInject(injection))
    }

    fn clear_injections(&mut self, _: GuestId) -> Result<(), ServerError> {
        Ok(())
    }

    fn sync(&mut self, _: GuestId, point: &str, _: &BTreeMap<String, u64>) -> Vec<Check> {
        let detail = "there is no server".to_owned();
        vec![Check { check: point.to_owned(), ok: false, detail }]
    }
}

fn main() -> ExitCode {
    let screen = Screen::stdout();
    let mut scenarios: Vec<String> = std::env::args().skip(1).collect();
    if scenarios.is_empty() {
        scenarios.push("sva-copy".to_owned());
    }
    let keep_logs = std::env::var_os("VSVA_KEEP_LOGS").map(Into::into);
    let options = Options { scenarios, keep_logs, ..Options::default() };
    let stop = match Stop::on_signals() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match lab::run(&options, &|_| Ok(Box::new(Nothing(0))), &screen, &stop) {
        Ok(report) => {
            cli::show(&screen, &report);
            ExitCode::from(u8::from(!report.ok()))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(cli::EXIT_IMPOSSIBLE)
        }
    }
}
