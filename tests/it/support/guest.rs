//! The tiny guests, out of the builder in `tests/guest`, built once and cached by it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    static BUILT: Mutex<BTreeMap<&str, Guest>> = Mutex::new(BTreeMap::new());
    // One that failed to build fails for the next test as well, with the same words.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built
        .entry(arch)
        .or_insert_with(|| match std::env::var_os("KILN_TEST_GUEST") {
            Some(folder) if arch == "x86_64" => Guest::in_folder(Path::new(&folder)),
            _ => build(arch),
        })
        .clone()
}

fn build(arch: &str) -> Guest {
    let builder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build");
    let built = run(Command::new(builder).args(["tiny", arch]), BUILD).ok();
    Guest::in_folder(Path::new(built.stdout.trim_end()))
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

    /// The spec's `image:`, with `more` of its keys.
    pub(crate) fn image(&self, more: &[(&str, &str)]) -> String {
        let mut image = serde_json::json!({
            "kernel": self.kernel,
            "initrd": self.initrd,
            "cmdline": self.cmdline,
        });
        for (key, value) in more {
            let before = image[key].as_str().unwrap_or_default();
            // More of the kernel's arguments; all else is a value of its own.
            image[key] = if *key == "cmdline" {
                format!("{before} {value}").into()
            } else {
                (*value).into()
            };
        }
        image.to_string()
    }
}
