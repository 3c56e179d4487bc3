//! What can be wrong with a user's Ignition config, said without showing it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::cluster::{MachineName, Size};
use crate::spec::Place;

/// Why a machine has no config: `FILE:LINE:COLUMN: what is wrong`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnitionError {
    path: PathBuf,
    /// The machine whose rendered text the place is in; none for the file itself.
    rendered_for: Option<MachineName>,
    line: Option<u64>,
    column: Option<u64>,
    problem: IgnitionProblem,
}

/// What is wrong, without the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnitionProblem {
    #[error("the template fails: {reason}")]
    Template { reason: String },
    #[error("the template fails: {expression}")]
    Undefined {
        /// "`vars.rol` is undefined".
        expression: String,
    },
    #[error("the template's result is larger than {limit}")]
    TooLarge { limit: Size },
    #[error("the template takes too many steps; does a loop run too often?")]
    TooSlow,
    #[error("this is not JSON: {reason}")]
    NotJson { reason: String },
    #[error("this is JSON, but not an Ignition config: {reason}")]
    WrongShape { reason: String },
    #[error("this is an Ignition config of spec {major}.x; kiln takes 3.0.0 to 3.6.0")]
    OldVersion { major: u32 },
    #[error("kiln does not know this Ignition spec version; it takes 3.0.0 to 3.6.0")]
    UnknownVersion,
    #[error("an Ignition config says its version: {{\"ignition\": {{\"version\": \"3.3.0\"}}}}")]
    NoVersion,
    #[error(
        "cloud-init knows a user-data by its first line, such as `#cloud-config` or `#!/bin/sh`"
    )]
    NotUserData,
}

/// Legal, and yet it looks like a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IgnitionWarning {
    /// A key that Ignition will ignore; the path is such as `$.storage.files.0.contnets`.
    UnknownKey { path: PathBuf, key: String },
    /// Firmware tables are read slowly: quadratic in the size.
    Large { size: usize },
}

impl IgnitionError {
    /// An error in the file as the user wrote it.
    pub(super) fn in_file(path: &Path, problem: IgnitionProblem) -> IgnitionError {
        IgnitionError {
            path: path.to_owned(),
            rendered_for: None,
            line: None,
            column: None,
            problem,
        }
    }

    pub(super) fn at_line(mut self, line: Option<u64>) -> IgnitionError {
        self.line = line;
        self
    }

    pub(super) fn at(mut self, place: Place) -> IgnitionError {
        self.line = Some(place.line);
        self.column = Some(place.column);
        self
    }

    /// Says that the place is in the text that the template gave for a machine.
    pub(super) fn rendered_for(mut self, machine: &MachineName) -> IgnitionError {
        self.rendered_for = Some(machine.clone());
        self
    }

    /// The user's Ignition file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From 1.
    pub fn line(&self) -> Option<u64> {
        self.line
    }

    /// From 1, in bytes.
    pub fn column(&self) -> Option<u64> {
        self.column
    }

    pub fn problem(&self) -> &IgnitionProblem {
        &self.problem
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match &self.problem {
            IgnitionProblem::OldVersion { major: 2 } => Some(
                "translate it with ign-converter (github.com/coreos/ign-converter): `ign-converter -input OLD.ign -output NEW.ign`"
                    .to_owned(),
            ),
            IgnitionProblem::OldVersion { .. } => {
                Some("write it anew as spec 3.x; nothing translates that version".to_owned())
            }
            IgnitionProblem::Undefined { .. } => Some(
                "a template knows `cluster`, `machine`, `index`, `peers`, `groups` and `vars`".to_owned(),
            ),
            IgnitionProblem::NotJson { .. }
                if self.rendered_for.is_none() && (self.line, self.column) == (Some(1), Some(1)) =>
                Some(
                "Butane (YAML) has to be translated first: `butane --strict FILE`; a template is named `….j2`, or has `template: true` beside it"
                    .to_owned(),
            ),
            IgnitionProblem::NotJson { .. } | IgnitionProblem::WrongShape { .. } => self
                .rendered_for
                .as_ref()
                .map(|machine| format!("`kiln render {machine}` shows what the template gives")),
            IgnitionProblem::Template { .. }
            | IgnitionProblem::TooLarge { .. }
            | IgnitionProblem::TooSlow
            | IgnitionProblem::UnknownVersion
            | IgnitionProblem::NotUserData
            | IgnitionProblem::NoVersion => None,
        }
    }

    /// A stable word for `--json`.
    pub fn code(&self) -> &'static str {
        match self.problem {
            IgnitionProblem::Template { .. }
            | IgnitionProblem::Undefined { .. }
            | IgnitionProblem::TooSlow => "ignition-template",
            IgnitionProblem::TooLarge { .. } => "ignition-too-large",
            IgnitionProblem::NotJson { .. } => "ignition-syntax",
            IgnitionProblem::WrongShape { .. } => "ignition-shape",
            IgnitionProblem::OldVersion { .. }
            | IgnitionProblem::UnknownVersion
            | IgnitionProblem::NoVersion => "ignition-version",
            IgnitionProblem::NotUserData => "user-data",
        }
    }
}

impl fmt::Display for IgnitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(machine) = &self.rendered_for {
            write!(f, " (rendered for `{machine}`)")?;
        }
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for IgnitionError {}

impl fmt::Display for IgnitionWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IgnitionWarning::UnknownKey { path, key } => write!(
                f,
                "{}: Ignition does not know the key `{key}` and will ignore it",
                path.display()
            ),
            IgnitionWarning::Large { size } => write!(
                f,
                "the config has {} KiB; the machine reads it slowly, four times as long for twice the size: fetch large files over the network instead",
                size / 1024
            ),
        }
    }
}
