//! `ignition-validate`, where it is installed: what to run and what its words mean.
//!
//! It knows rules that the schema does not (paths are absolute, no file twice).
//! Running it is the caller's business: the user's config goes to its standard
//! input, and its standard output and error come here.

use std::fmt;

use crate::spec::Place;

/// The program and its arguments; it reads the config from standard input.
pub const COMMAND: [&str; 2] = ["ignition-validate", "-"];

/// One line of the validator's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// Such as `$.storage.files.0.path`; absent when the text is no JSON.
    pub key: Option<String>,
    pub place: Option<Place>,
    /// The validator's words, without the values that it may quote.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Warning,
    Error,
}

/// Reads a report: lines such as `error at $.storage.files.0.path, line 1 col 61: path not absolute`.
///
/// Other lines are not shown: they may hold parts of the config.
pub fn findings(report: &str) -> Vec<Finding> {
    report.lines().filter_map(finding).collect()
}

fn finding(line: &str) -> Option<Finding> {
    let (severity, rest) = match line.split_once(" at ")? {
        ("error", rest) => (Severity::Error, rest),
        ("warning", rest) => (Severity::Warning, rest),
        _ => return None,
    };
    let (whereabouts, message) = rest.split_once(": ")?;
    let (key, place) = match whereabouts.rsplit_once("line ") {
        Some((key, numbers)) => (key.trim_end_matches(", "), place(numbers)),
        None => (whereabouts, None),
    };
    Some(Finding {
        severity,
        key: key.starts_with('$').then(|| key.to_owned()),
        place,
        message: unquoted(message),
    })
}

/// `1 col 61`; zeros mean that the validator does not know.
fn place(numbers: &str) -> Option<Place> {
    let (line, column) = numbers.split_once(" col ")?;
    let place = Place {
        line: line.parse().ok()?,
        column: column.parse().ok()?,
    };
    (place.line > 0 && place.column > 0).then_some(place)
}

/// Go's `%q` and `%v` put values behind quotes; what is behind the first one stays out.
fn unquoted(message: &str) -> String {
    match message.split_once(['"', '`', '\'']) {
        Some((before, _)) => format!("{}…", before.trim_end()),
        None => message.to_owned(),
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { line, column }) = self.place {
            write!(f, "{line}:{column}: ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "`{key}`: ")?;
        }
        f.write_str(&self.message)
    }
}
