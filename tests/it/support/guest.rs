//! The tiny guests, out of the builder in `tests/guest`, built once and cached by it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::support::run::run;

/// The first build downloads packages; later ones are a look into the cache.
const BUILD: Duration = Duration::from_secs(600);

/// A guest for direct kernel boot.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) cmdline: String,
}

/// The guest of this architecture: the folder that `KILN_TEST_GUEST` names (x86_64 only),
/// or the builder's.
pub(crate) fn tiny(arch: &'static str) -> Guest {
    direct("tiny", arch)
}

/// The same with etcd in it.
pub(crate) fn etcd(arch: &'static str) -> Guest {
    direct("etcd", arch)
}

/// A guest for direct kernel boot, of any kind that the builder has.
pub(crate) fn direct(kind: &'static str, arch: &'static str) -> Guest {
    static BUILT: Mutex<BTreeMap<(&str, &str), Guest>> = Mutex::new(BTreeMap::new());
    // One that failed to build fails for the next test as well, with the same words.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built
        .entry((kind, arch))
        .or_insert_with(|| match std::env::var_os("KILN_TEST_GUEST") {
            Some(folder) if (kind, arch) == ("tiny", "x86_64") => {
                Guest::in_folder(Path::new(&folder))
            }
            _ => Guest::in_folder(&build(kind, arch)),
        })
        .clone()
}

/// The folder of the tiny guest on a disk: `disk.raw`, and `foreign.raw`, which secure boot refuses.
pub(crate) fn disk(arch: &'static str) -> PathBuf {
    build("disk", arch)
}

/// The full guest: a disk that boots by any firmware of its architecture.
pub(crate) fn full(arch: &'static str) -> PathBuf {
    build("full", arch).join("disk.qcow2")
}

/// The folder of any guest that the builder has.
pub(crate) fn build(kind: &str, arch: &str) -> PathBuf {
    let builder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build");
    let built = run(Command::new(builder).args([kind, arch]), BUILD).ok();
    PathBuf::from(built.stdout.trim_end())
}

impl Guest {
    fn in_folder(folder: &Path) -> Guest {
        let cmdline = std::fs::read_to_string(folder.join("cmdline"))
            .unwrap_or_else(|error| panic!("no guest in {}: {error}", folder.display()));
        Guest {
            kernel: folder.join("kernel"),
            initrd: folder.join("initrd"),
            cmdline: cmdline.trim_end().to_owned(),
        }
    }

    /// The spec's `image:`, with these words at the end of the kernel's command line.
    pub(crate) fn image(&self, more: &str) -> Value {
        serde_json::json!({
            "kernel": self.kernel,
            "initrd": self.initrd,
            "cmdline": format!("{} {more}", self.cmdline).trim_end(),
        })
    }
}
