//! What can be wrong with a spec, said with its place.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use super::files::FileError;

/// Characters of a line that a snippet shows at most.
const SNIPPET_WIDTH: usize = 100;

/// A place in a text file; both numbers count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

/// Why a file is not a spec: `FILE:LINE:COLUMN: what is wrong`.
///
/// The cause below it, if any, is in [`Error::source`]; what the user can do is
/// in [`SpecError::hint`], the line with a caret in [`SpecError::snippet`].
#[derive(Debug)]
pub struct SpecError {
    path: PathBuf,
    place: Option<Place>,
    problem: Box<Problem>,
    hint: Option<String>,
    snippet: Option<String>,
}

/// What is wrong, without the place.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read the spec: {0}")]
    Spec(FileError),
    #[error("this is not a spec: {message}")]
    Syntax { message: String },
    #[error(
        "this is more than a spec may hold: {nodes} values with aliases expanded, nested {depth} deep"
    )]
    TooComplex { nodes: usize, depth: usize },
    #[error("the key `{key}` stands here a second time")]
    DuplicateKey { key: String },
    #[error("unknown key `{key}` in {owner}")]
    UnknownKey { key: String, owner: String },
    #[error("{owner} has no `{key}`")]
    MissingKey { key: &'static str, owner: String },
    #[error("{what} has to be {want}, not {found}")]
    WrongType {
        what: String,
        want: &'static str,
        found: &'static str,
    },
    #[error("`{key}`: {reason}")]
    BadValue { key: String, reason: String },
    #[error("{feature} is not built yet")]
    NotBuilt { feature: String },
    #[error("a second machine is called `{name}`; the first is in line {line}")]
    DuplicateMachine { name: String, line: u64 },
    #[error(
        "machine `{machine}` publishes host port {port}, and so does machine `{other}` of the group in line {line}"
    )]
    PortClash {
        port: u16,
        machine: String,
        other: String,
        line: u64,
    },
    #[error("`{key}`: {problem}")]
    File { key: String, problem: FileError },
    #[error("`--set {path}`: `vars.{at}` is no map")]
    NoSuchVar { path: String, at: String },
    #[error("there is no group `{group}` to scale")]
    UnknownGroup { group: String },
}

/// A problem on its way up, before the file's name and text are added.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) place: Option<Place>,
    pub(super) problem: Problem,
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn new(place: Place, problem: Problem) -> Fault {
        Fault {
            place: Some(place),
            problem,
            hint: None,
        }
    }

    pub(super) fn bad_value(place: Place, key: &str, reason: impl fmt::Display) -> Fault {
        Fault::new(
            place,
            Problem::BadValue {
                key: key.to_owned(),
                reason: reason.to_string(),
            },
        )
    }

    pub(super) fn not_built(place: Place, feature: impl Into<String>) -> Fault {
        Fault::new(
            place,
            Problem::NotBuilt {
                feature: feature.into(),
            },
        )
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Fault {
        self.hint = Some(hint.into());
        self
    }

    /// The finished error; `text` is the spec's, for the snippet.
    pub(super) fn in_file(self, path: &Path, text: &str) -> SpecError {
        SpecError {
            path: path.to_owned(),
            snippet: self.place.and_then(|place| snippet(text, place)),
            place: self.place,
            problem: Box::new(self.problem),
            hint: self.hint,
        }
    }
}

impl SpecError {
    /// The spec file, as the caller named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn place(&self) -> Option<Place> {
        self.place
    }

    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The line with a caret below the column; two lines, without a final newline.
    pub fn snippet(&self) -> Option<&str> {
        self.snippet.as_deref()
    }

    /// A stable word for `--json`.
    pub fn code(&self) -> &'static str {
        match *self.problem {
            Problem::Spec(_) => "spec-unreadable",
            Problem::Syntax { .. } => "spec-syntax",
            Problem::TooComplex { .. } => "spec-too-complex",
            Problem::DuplicateKey { .. } => "duplicate-key",
            Problem::UnknownKey { .. } => "unknown-key",
            Problem::MissingKey { .. } => "missing-key",
            Problem::WrongType { .. } => "wrong-type",
            Problem::BadValue { .. } => "bad-value",
            Problem::NotBuilt { .. } => "not-built",
            Problem::DuplicateMachine { .. } => "duplicate-machine",
            Problem::PortClash { .. } => "port-clash",
            Problem::File { .. } => "bad-file",
            Problem::UnknownGroup { .. } => "unknown-group",
            Problem::NoSuchVar { .. } => "no-such-var",
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl Error for SpecError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &*self.problem {
            Problem::Spec(problem) | Problem::File { problem, .. } => problem.source(),
            Problem::Syntax { .. }
            | Problem::TooComplex { .. }
            | Problem::DuplicateKey { .. }
            | Problem::UnknownKey { .. }
            | Problem::MissingKey { .. }
            | Problem::WrongType { .. }
            | Problem::BadValue { .. }
            | Problem::NotBuilt { .. }
            | Problem::DuplicateMachine { .. }
            | Problem::PortClash { .. }
            | Problem::NoSuchVar { .. }
            | Problem::UnknownGroup { .. } => None,
        }
    }
}

/// The line at `place`, cut to a window and stripped of control characters.
fn snippet(text: &str, place: Place) -> Option<String> {
    let line = text
        .lines()
        .nth(usize::try_from(place.line.checked_sub(1)?).ok()?)?;
    let column = usize::try_from(place.column.checked_sub(1)?).ok()?;
    let start = (column + 1).saturating_sub(SNIPPET_WIDTH * 3 / 4);
    let shown: String = line
        .chars()
        .skip(start)
        .take(SNIPPET_WIDTH)
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect();
    let number = place.line.to_string();
    Some(format!(
        "  {number} | {}\n  {blank} | {:indent$}^",
        shown.trim_end(),
        "",
        blank = " ".repeat(number.len()),
        indent = column - start,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_around_the_column() {
        let text = format!("a\n{}", "0123456789".repeat(50));
        let place = Place {
            line: 2,
            column: 301,
        };
        let shown = snippet(&text, place).unwrap();
        let lines: Vec<&str> = shown.lines().collect();
        let caret = lines[1].find('^').unwrap();
        assert_eq!(lines[0].len(), "  2 | ".len() + SNIPPET_WIDTH);
        // Column 301 is the digit after thirty times all of them.
        assert_eq!(&lines[0][caret..=caret], "0");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let shown = snippet("a: \u{1b}[31m\tb", Place { line: 1, column: 1 }).unwrap();
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }

    #[test]
    fn a_place_outside_the_text_has_no_snippet() {
        assert_eq!(snippet("a", Place { line: 2, column: 1 }), None);
        assert_eq!(snippet("a", Place { line: 0, column: 0 }), None);
    }
}
