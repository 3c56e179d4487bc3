//! Parse, run, and tell how it went.

use std::env;
use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use kiln::cli::refusal::Refusal;
use kiln::cli::{self, Cli};
use kiln::command;
use kiln::report::output::{Report, Surroundings};

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().collect();
    let cli = match cli::parse(&args).map_err(Refusal::from) {
        Ok(cli) => cli,
        Err(refusal) => return Report::refusal(cli::said(&args, "--json"), &refusal).into(),
    };
    let around = Surroundings::of_streams(env::var_os("NO_COLOR"), env::var_os("TERM"));
    let report = Report::new(&cli.global, &around);
    trace(&cli, &report);
    match command::run(&cli, &report) {
        Ok(code) => code,
        Err(error) => {
            report.error(&error);
            error.exit.into()
        }
    }
}

fn trace(cli: &Cli, report: &Report) {
    tracing_subscriber::fmt()
        .with_max_level(cli.verbosity())
        .with_ansi(report.colors_stderr())
        .with_writer(io::stderr)
        .init();
}
