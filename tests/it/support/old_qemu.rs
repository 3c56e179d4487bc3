//! The oldest QEMU that kiln takes, beside the installed one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::run::run;

/// The first time it downloads packages.
const FETCH: Duration = Duration::from_secs(300);

/// The folder with its programs.
fn folder() -> PathBuf {
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qemu-7.2");
    let fetched = run(&mut Command::new(fetch), FETCH).ok();
    PathBuf::from(fetched.stdout.trim_end())
}

/// A copy that everybody can run: as root, QEMU runs as another user, who may not look where the
/// tests were built. Its programs are in `bin`.
pub(crate) fn public_copy() -> TempDir {
    let copy = tempfile::Builder::new().prefix("kiln-qemu.").tempdir();
    let copy = copy.unwrap();
    fs::set_permissions(copy.path(), Permissions::from_mode(0o755)).unwrap();
    let mut cp = Command::new("cp");
    cp.args(["-R", "--reflink=auto"]).arg(folder().join("../."));
    run(cp.arg(copy.path()), FETCH).ok();
    copy
}
