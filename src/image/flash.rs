//! A machine's own UEFI variables: a copy of the firmware's template, which the host's packages
//! bring. The copy is sparse, since a template for Arm has 64 MiB and says little in them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::base::ImageError;
use super::data;
use super::sparse::Sparse;
use crate::cluster::{DataFormat, DiskFormat};
use crate::folder::Incoming;

/// The largest template that is taken; the largest known has 64 MiB.
const LARGEST: u64 = 256 * 1024 * 1024;
/// Read at once, in bytes.
const STEP: usize = 64 * 1024;

/// Why a machine gets no variables.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    #[error("cannot read the template `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the variables `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("its template cannot be used")]
    Template(#[from] ImageError),
    #[error("the template `{}` has {length} bytes, which is more than any flash chip", path.display())]
    TooLarge { path: PathBuf, length: u64 },
}

/// Makes `vars` anew from `template`, all but the name; its folder has to be private.
///
/// # Errors
/// [`FlashError`]; a template in qcow2 is judged as any image is.
pub fn make_vars(template: &Path, format: DiskFormat, vars: &Path) -> Result<Incoming, FlashError> {
    let read = |source| FlashError::Read {
        path: template.to_owned(),
        source,
    };
    let write = |source| FlashError::Write {
        path: vars.to_owned(),
        source,
    };
    let mut from = match format {
        DiskFormat::Raw => File::open(template).map_err(read)?,
        DiskFormat::Qcow2 => data::open(template, DataFormat::Qcow2, true)?.0,
    };
    let length = from.metadata().map_err(read)?.len();
    if length > LARGEST {
        return Err(FlashError::TooLarge {
            path: template.to_owned(),
            length,
        });
    }
    let mut to = Incoming::beside(vars).map_err(write)?;
    let mut bytes = vec![0; STEP];
    let mut sparse = Sparse::new(&mut to.file);
    loop {
        let count = from.read(&mut bytes).map_err(read)?;
        if count == 0 {
            break;
        }
        sparse.write_all(&bytes[..count]).map_err(write)?;
    }
    sparse.finish().map_err(write)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::image::qcow2::tests::{put64, sound};

    #[test]
    fn a_copy_is_the_same_private_and_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let (template, vars) = (folder.path().join("template"), folder.path().join("vars"));
        let mut bytes = vec![0; 10 * STEP + 7];
        bytes[3 * STEP + 5] = 1;
        *bytes.last_mut().unwrap() = 2;
        std::fs::write(&template, &bytes).unwrap();
        std::fs::write(&vars, "an older one").unwrap();
        let made = make_vars(&template, DiskFormat::Raw, &vars).unwrap();
        assert_eq!(std::fs::read(&vars).unwrap(), b"an older one");
        made.keep_as(&vars).unwrap();
        assert_eq!(std::fs::read(&vars).unwrap(), bytes);
        let found = vars.metadata().unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert!(found.blocks() * 512 < found.len(), "{found:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_template_in_qcow2_is_judged() {
        let folder = tempfile::tempdir().unwrap();
        let (template, vars) = (folder.path().join("template"), folder.path().join("vars"));
        let mut bytes = sound();
        std::fs::write(&template, &bytes).unwrap();
        let made = make_vars(&template, DiskFormat::Qcow2, &vars).unwrap();
        assert_eq!(std::fs::read(made.path()).unwrap(), bytes);
        drop(made);
        // The feature bit of a data file.
        put64(&mut bytes, 72, 1 << 2);
        std::fs::write(&template, &bytes).unwrap();
        let error = make_vars(&template, DiskFormat::Qcow2, &vars).unwrap_err();
        assert!(matches!(error, FlashError::Template(_)), "{error:?}");
        make_vars(&template, DiskFormat::Raw, &vars).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_template_that_is_gone_is_named_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (template, vars) = (folder.path().join("gone"), folder.path().join("vars"));
        let error = make_vars(&template, DiskFormat::Raw, &vars);
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("cannot read the template `"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
