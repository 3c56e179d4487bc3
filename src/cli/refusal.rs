//! What clap refuses, in kiln's own words for errors.

use clap::error::ErrorKind;

use crate::error::{Error, Exit};

/// What came of a command line that gives no [`crate::cli::Cli`].
#[derive(Debug)]
pub enum Refusal {
    /// Help or the version was asked for: print it on stdout; all is well.
    Told(clap::Error),
    /// The command line is wrong; clap's own text is for people, the error for programs.
    Wrong(clap::Error, Error),
}

impl From<clap::Error> for Refusal {
    fn from(clap: clap::Error) -> Refusal {
        if clap.use_stderr() {
            let error = usage_error(&clap);
            Refusal::Wrong(clap, error)
        } else {
            Refusal::Told(clap)
        }
    }
}

fn usage_error(clap: &clap::Error) -> Error {
    if matches!(
        clap.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
    ) {
        return Error::new(Exit::Usage, "no verb was given").hint("`kiln help` lists the verbs");
    }
    // The first paragraph is the message; those that follow are tips and the usage.
    let text = clap.to_string();
    let paragraphs: Vec<String> = text.split("\n\n").map(one_line).collect();
    let after = |label: &str| {
        let paragraph = paragraphs.iter().find(|text| text.starts_with(label))?;
        Some(paragraph[label.len()..].to_owned())
    };
    let message = after("error: ").unwrap_or_else(|| one_line(&text));
    let hint = after("tip: ")
        .or_else(|| after("Usage: ").map(|usage| format!("usage: {usage}")))
        .unwrap_or_else(|| "`kiln help VERB` says what a verb takes".to_owned());
    Error::new(Exit::Usage, message).hint(hint)
}

fn one_line(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}
