//! The `vsva` program; see its library for what it does.

use std::process::ExitCode;

use clap::Parser as _;
use vsva::cli::{self, Cli, Command};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Lab(args) => cli::lab(&args),
        Command::Serve(args) => cli::serve(&args),
        Command::Inspect(args) => cli::inspect(&args),
        Command::Demo(args) => cli::demo(&args),
    }
}
