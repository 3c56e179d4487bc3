//! Where the spec is when nobody says.

use std::io;
use std::path::{Path, PathBuf};

pub const SPEC_FILE_NAME: &str = "kiln.yaml";

/// Why no spec was found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("there is no `{SPEC_FILE_NAME}` in `{}` or above", from.display())]
    None { from: PathBuf },
    #[error("cannot look for `{SPEC_FILE_NAME}` in `{}`", folder.display())]
    Look {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The nearest `kiln.yaml` in `from` or a folder above it. `from` is absolute.
pub fn find(from: &Path) -> Result<PathBuf, FindError> {
    for folder in from.ancestors() {
        let path = folder.join(SPEC_FILE_NAME);
        match path.metadata() {
            Ok(metadata) if metadata.is_file() => return Ok(path),
            Ok(_) => {}
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(FindError::Look {
                    folder: folder.to_owned(),
                    source,
                });
            }
        }
    }
    Err(FindError::None {
        from: from.to_owned(),
    })
}
