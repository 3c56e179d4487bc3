//! A virtiofsd of the tests' own, which the host need not have.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::run::run;

/// The first time it downloads packages.
const FETCH: Duration = Duration::from_secs(300);

/// The folder with the program.
fn folder() -> PathBuf {
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/virtiofsd");
    let fetched = run(&mut Command::new(fetch), FETCH).ok();
    PathBuf::from(fetched.stdout.trim_end())
}

/// A copy that everybody can run: as root, it runs as another user, who may not look where the
/// tests were built. The program is in `bin`.
pub(crate) fn public_copy() -> TempDir {
    let copy = tempfile::Builder::new().prefix("kiln-fs.").tempdir();
    let copy = copy.unwrap();
    let from = folder().join("../.");
    run(
        Command::new("cp").arg("-R").arg(from).arg(copy.path()),
        FETCH,
    )
    .ok();
    fs::set_permissions(copy.path(), Permissions::from_mode(0o755)).unwrap();
    copy
}
