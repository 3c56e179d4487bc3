//! One file for each verb.

use crate::cli::Cli;
use crate::error::{Error, Exit};
use crate::report::output::Report;

/// Does what was said.
///
/// # Errors
/// Whatever the verb fails with.
pub fn run(cli: &Cli, _report: &Report) -> Result<(), Error> {
    Err(Error::new(
        Exit::Failed,
        format!("not built: {:?}", cli.verb),
    ))
}
