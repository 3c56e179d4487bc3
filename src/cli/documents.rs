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
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
    script
}

/// The pages of kiln itself and of each verb that users call, kiln's own first.
///
/// # Errors
/// None in practice: the pages are written to memory.
pub fn pages() -> io::Result<Vec<Page>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let verbs = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .cloned()
        .collect::<Vec<_>>();
    let mut pages = vec![page(command)?];
    for verb in verbs {
        pages.push(page(verb)?);
    }
    Ok(pages)
}

fn page(command: Command) -> io::Result<Page> {
    let man = Man::new(command).manual("kiln");
    let mut text = Vec::new();
    man.render(&mut text)?;
    Ok(Page {
        file: man.get_filename(),
        text,
    })
}
