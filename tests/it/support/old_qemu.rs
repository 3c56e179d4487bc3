//! The oldest QEMU that kiln takes, beside the installed one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::run::run;

/// The first time it downloads packages.
const FETCH: Duration = Duration::from_secs(300);

/// The folder with its programs.
pub(crate) fn folder() -> PathBuf {
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu-7.2");
    let fetched = run(&mut Command::new(fetch), FETCH).ok();
    PathBuf::from(fetched.stdout.trim_end())
}
