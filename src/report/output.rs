//! The two output streams, and who may be spoken to on them.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Stderr, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::error::ErrorKind;
use serde::Serialize;
use terminal_size::{Height, Width, terminal_size_of};

use crate::cli::Global;
use crate::cli::refusal::Refusal;
use crate::error::{Error, Exit};
use crate::report::failure::{failure, note};
use crate::report::json::{json_error, json_line, json_ok};
use crate::report::progress::{Mode, Progress};
use crate::report::style::{Size, Style, allows_color, knows_escapes};

/// What the process finds around its output streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The environment's `NO_COLOR`.
    pub no_color: Option<OsString>,
    /// The environment's `TERM`.
    pub term: Option<OsString>,
    /// Of the terminal that stdout is, if it is one.
    pub stdout: Option<Size>,
    /// Of the terminal that stderr is, if it is one.
    pub stderr: Option<Size>,
}

impl Surroundings {
    /// Asks the two streams; the variables are the caller's to read.
    pub fn of_streams(no_color: Option<OsString>, term: Option<OsString>) -> Surroundings {
        Surroundings {
            no_color,
            term,
            stdout: size_of(&io::stdout()),
            stderr: size_of(&io::stderr()),
        }
    }
}

/// The size of a terminal, absent when the stream is none.
fn size_of(stream: &(impl IsTerminal + AsFd)) -> Option<Size> {
    if !stream.is_terminal() {
        return None;
    }
    // A serial line does not know its size.
    let (columns, lines) = terminal_size_of(stream)
        .map_or((80, 24), |(Width(columns), Height(lines))| (columns, lines));
    Some(Size {
        columns: columns.into(),
        lines: lines.into(),
    })
}

/// Prints what commands have to say.
#[derive(Debug)]
pub struct Report {
    json: bool,
    quiet: bool,
    stdout: Style,
    stderr: Style,
    progress: Mode,
    reader_gone: AtomicBool,
}

impl Report {
    pub fn new(global: &Global, around: &Surroundings) -> Report {
        let term = around.term.as_deref();
        let color = !global.no_color && allows_color(around.no_color.as_deref(), term);
        let progress = match around.stderr {
            _ if global.quiet => Mode::Quiet,
            // The log that was asked for would be written over by live lines.
            Some(size) if knows_escapes(term) && global.verbose == 0 => Mode::Live(size),
            _ => Mode::Plain,
        };
        Report {
            json: global.json,
            quiet: global.quiet,
            stdout: Style::new(around.stdout, color),
            stderr: Style::new(around.stderr, color),
            progress,
            reader_gone: AtomicBool::new(false),
        }
    }

    /// Whether programs read stdout.
    pub fn json(&self) -> bool {
        self.json
    }

    /// How tables on stdout may look.
    pub fn style(&self) -> Style {
        self.stdout
    }

    /// Whether the log on stderr may be colored.
    pub fn colors_stderr(&self) -> bool {
        self.stderr.color()
    }

    /// Whether whoever read stdout has gone away: a command that prints without end
    /// is then done.
    pub fn reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Relaxed)
    }

    /// The command's result: `value` for programs, or `text` for people.
    ///
    /// # Errors
    /// As [`Report::print`]; or JSON has no form for the value.
    pub fn result(
        &self,
        value: &impl Serialize,
        text: impl FnOnce(Style) -> String,
    ) -> Result<(), Error> {
        if self.json {
            self.print(&json_ok(value).map_err(|error| no_json(&error))?)
        } else {
            self.print(&text(self.stdout))
        }
    }

    /// One of many results: an object on a line of its own, or `text`.
    ///
    /// # Errors
    /// As [`Report::result`].
    pub fn item(
        &self,
        value: &impl Serialize,
        text: impl FnOnce(Style) -> String,
    ) -> Result<(), Error> {
        if self.json {
            self.print(&json_line(value).map_err(|error| no_json(&error))?)
        } else {
            self.print(&text(self.stdout))
        }
    }

    /// Writes to stdout, all of it before returning. Once its reader has gone away
    /// this does nothing and says so only by [`Report::reader_gone`].
    ///
    /// # Errors
    /// Stdout takes no more, for another reason.
    pub fn print(&self, text: &str) -> Result<(), Error> {
        self.write(text.as_bytes())
    }

    /// [`Report::print`] for what need not be text.
    ///
    /// # Errors
    /// As [`Report::print`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        if self.reader_gone() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.reader_gone.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(Error::because(
                Exit::Failed,
                "cannot write to standard output",
                &error,
            )),
            Ok(()) => Ok(()),
        }
    }

    /// A line on stderr for people who watch; none with `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            tell(&note(self.stderr, text));
        }
    }

    /// [`Report::note`] for another thread. What is drawn on a terminal is left where it is.
    pub fn noter(&self) -> impl Fn(&str) + Send + 'static {
        let Report { quiet, stderr, .. } = *self;
        let above = if self.is_live() { "\n" } else { "" };
        move |text| {
            if !quiet {
                tell(&format!("{above}{}", note(stderr, text)));
            }
        }
    }

    /// Whether progress is drawn over and over, rather than written line after line.
    pub fn is_live(&self) -> bool {
        matches!(self.progress, Mode::Live(_))
    }

    /// Shows how the machines come along, on stderr.
    pub fn progress<'a>(
        &self,
        now: Instant,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Progress<Stderr> {
        Progress::new(io::stderr(), self.progress, self.stderr, now, names)
    }

    /// Why the command failed: for people on stderr, and with `--json` for programs
    /// on stdout as well.
    pub fn error(&self, error: &Error) {
        if self.json {
            // The exit code tells too; there is nobody left to complain to.
            let _ = json_error(error).map(|line| self.print(&line));
        }
        tell(&failure(self.stderr, error));
    }

    /// What clap had to say instead of a command line; answers with the exit code.
    pub fn refusal(json: bool, refusal: &Refusal) -> u8 {
        match refusal {
            Refusal::Told(clap) => {
                let _ = clap.print();
                0
            }
            Refusal::Wrong(clap, error) => {
                if json {
                    let _ = json_error(error).map(|line| io::stdout().write_all(line.as_bytes()));
                }
                // Here clap's own text would list the hidden verbs.
                if clap.kind() == ErrorKind::MissingSubcommand {
                    tell(&failure(Style::PLAIN, error));
                } else {
                    let _ = clap.print();
                }
                Exit::Usage as u8
            }
        }
    }
}

fn no_json(source: &serde_json::Error) -> Error {
    Error::because(Exit::Failed, "cannot write the result as JSON", source)
}

/// Writes to stderr; where nobody reads it there is nobody to tell.
fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: Option<Size> = Some(Size {
        columns: 80,
        lines: 24,
    });

    fn report(options: &str, no_color: Option<&str>, term: &str) -> Report {
        let line = format!("kiln ps {options}");
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let around = Surroundings {
            no_color: no_color.map(OsString::from),
            term: Some(OsString::from(term)),
            stdout: None,
            stderr: TERMINAL,
        };
        Report::new(&crate::cli::parse(&args).unwrap().global, &around)
    }

    #[test]
    fn each_stream_has_its_own_style() {
        let report = report("", None, "xterm");
        assert!(!report.style().color());
        assert!(report.colors_stderr());
        assert!(matches!(report.progress, Mode::Live(_)));
    }

    #[test]
    fn colors_are_off_when_asked_but_the_cursor_still_moves() {
        for report in [
            report("", Some("1"), "xterm"),
            report("--no-color", None, "xterm"),
        ] {
            assert!(!report.colors_stderr());
            assert!(matches!(report.progress, Mode::Live(_)));
        }
    }

    #[test]
    fn a_dumb_terminal_and_a_log_get_plain_lines_and_quiet_gets_none() {
        assert_eq!(report("", None, "dumb").progress, Mode::Plain);
        assert_eq!(report("-v", None, "xterm").progress, Mode::Plain);
        assert_eq!(report("-q", None, "xterm").progress, Mode::Quiet);
    }
}
