//! Is this text an Ignition config? Asked before a machine boots into an
//! emergency shell over it.

use std::path::Path;

use ignition_config::{Config, Warning};
use serde::Deserialize;
use serde_json::error::Category;

use super::error::{IgnitionError, IgnitionProblem, IgnitionWarning};
use crate::spec::Place;

/// What every config begins with, whatever its version.
#[derive(Deserialize)]
struct Head {
    ignition: Option<HeadIgnition>,
    /// Spec 1 said its version here.
    #[serde(rename = "ignitionVersion")]
    ignition_version: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct HeadIgnition {
    version: Option<String>,
}

/// Checks a config of spec 3.0 to 3.6; unknown keys come back as warnings.
pub(super) fn lint(path: &Path, text: &str) -> Result<Vec<IgnitionWarning>, IgnitionError> {
    let head: Head = serde_json::from_str(text).map_err(|error| explain(path, &error))?;
    let error = |problem| Err(IgnitionError::in_file(path, problem));
    if head.ignition_version.is_some() {
        return error(IgnitionProblem::OldVersion { major: 1 });
    }
    let Some(version) = head.ignition.and_then(|ignition| ignition.version) else {
        return error(IgnitionProblem::NoVersion);
    };
    if version.starts_with("2.") {
        return error(IgnitionProblem::OldVersion { major: 2 });
    }
    match Config::parse_str(text) {
        Ok((_, warnings)) => Ok(warnings
            .into_iter()
            .filter_map(|warning| unknown_key(path, &warning))
            .collect()),
        Err(ignition_config::Error::Serialization(error)) => Err(explain(path, &error)),
        // Not a version, or not one of those that the crate knows.
        Err(_) => error(IgnitionProblem::UnknownVersion),
    }
}

fn unknown_key(path: &Path, warning: &Warning) -> Option<IgnitionWarning> {
    let Warning::UnusedKey(key) = warning else {
        return None;
    };
    Some(IgnitionWarning::UnknownKey {
        path: path.to_owned(),
        key: key
            .chars()
            .filter(|char| !char.is_control())
            .take(200)
            .collect(),
    })
}

/// A JSON error with its place, and without the values that serde quotes.
fn explain(path: &Path, error: &serde_json::Error) -> IgnitionError {
    let text = error.to_string();
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    let message = text.strip_suffix(&suffix).unwrap_or(&text);
    let problem = match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => IgnitionProblem::NotJson {
            reason: message.to_owned(),
        },
        Category::Data => IgnitionProblem::WrongShape {
            reason: without_values(message),
        },
    };
    let error_at = IgnitionError::in_file(path, problem);
    match (u64::try_from(error.line()), u64::try_from(error.column())) {
        (Ok(line @ 1..), Ok(column)) => error_at.at(Place {
            line,
            column: column.max(1),
        }),
        _ => error_at,
    }
}

/// serde's words about data, cut down to what comes from the schema.
fn without_values(message: &str) -> String {
    // These name fields of the schema; any other message begins with the value.
    for safe in ["missing field `", "duplicate field `"] {
        if message.starts_with(safe) {
            return message.to_owned();
        }
    }
    // The value stands before the last `, expected`, whatever it contains.
    match message.rsplit_once(", expected ") {
        // Rust's names for JSON's kinds.
        Some((_, expected)) if expected.starts_with("struct ") => "expected a map".to_owned(),
        Some((_, "i64")) => "expected a whole number".to_owned(),
        Some((_, "a sequence")) => "expected a list".to_owned(),
        Some((_, expected)) => format!("expected {expected}"),
        None => "a value does not fit the schema".to_owned(),
    }
}
