//! What can be made of the command line's own definition: completions and manual pages.

use std::io;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;

/// A manual page, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// `kiln.1`, `kiln-up.1` and so on.
    pub file: String,
    /// In roff.
    pub text: Vec<u8>,
}

/// The completion script of `shell`.
pub fn completions(shell: Shell) -> Vec<u8> {
    // clap's script for bash would offer hidden verbs too.
    let whole = Cli::command();
    let mut command = Command::new("kiln")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments())
        .subcommands(public_verbs(&whole));
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "kiln", &mut script);
    script
}

fn public_verbs(command: &Command) -> Vec<Command> {
    let verbs = command.get_subcommands();
    verbs.filter(|verb| !verb.is_hide_set()).cloned().collect()
}

/// The pages of kiln itself and of each verb that users call, kiln's own first.
///
/// # Errors
/// None in practice: the pages are written to memory.
pub fn pages() -> io::Result<Vec<Page>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(command, &mut pages)?;
    Ok(pages)
}

/// The page of a verb, and those of the verbs below it.
fn add(command: Command, pages: &mut Vec<Page>) -> io::Result<()> {
    let below = public_verbs(&command);
    pages.push(page(command)?);
    below.into_iter().try_for_each(|verb| add(verb, pages))
}

fn page(command: Command) -> io::Result<Page> {
    let man = Man::new(command)
        .manual("kiln")
        .source(concat!("kiln ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render(&mut text)?;
    Ok(Page {
        file: man.get_filename(),
        text,
    })
}
