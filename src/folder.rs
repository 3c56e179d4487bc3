//! Folders and files that are ours alone: 0700 and 0600 under any umask, never through a symlink.
//!
//! It must not know what the folders are for.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;
use nix::unistd::geteuid;

/// Why a private folder is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("cannot make the folder `{}`", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is in the way: it is not a folder of uid {want}", path.display())]
    Foreign { path: PathBuf, want: u32 },
}

/// Makes the folder and those above it, each 0700, or takes an existing one that is ours.
///
/// The last one is set to 0700 when others could enter it. A symlink in its place, or a folder of
/// another user, is refused and left as it is; those above it may be anyone's.
pub fn make_private(path: &Path) -> Result<(), FolderError> {
    let fail = |source| FolderError::Make {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(fail)?;
        }
        Err(error) => return Err(fail(error)),
        Ok(_) => {}
    }
    let found = fs::symlink_metadata(path).map_err(fail)?;
    let want = geteuid().as_raw();
    if !found.is_dir() || found.uid() != want {
        return Err(FolderError::Foreign {
            path: path.to_owned(),
            want,
        });
    }
    if found.mode() & 0o7777 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(fail)?;
    }
    Ok(())
}

/// Makes a new file that only we can read; an existing one, a symlink too, is an error.
pub fn create_new(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    // The umask can only have taken bits away.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Writes the whole file or nothing: temporary file, fsync, rename, fsync of the folder.
///
/// Several writers may be at it; the last one wins.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path)?;
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let written = create_new(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder_of(path)
    });
    if written.is_err() {
        // It may not exist; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes a rename or removal in the file's folder last through a power cut.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A name for a temporary file that no other writer uses now; what has it is a dead one's.
fn beside(path: &Path) -> io::Result<PathBuf> {
    static WRITERS: AtomicU32 = AtomicU32::new(0);
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let mut name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_owned();
    name.push(format!(".new-{}-{writer}", std::process::id()));
    Ok(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, umask};
    use tempfile::tempdir;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn folders_and_files_are_private_under_umask_0() {
        let home = tempdir().unwrap();
        let folder = home.path().join("a/b");
        // Other tests of this process may make files meanwhile; all of them set modes themselves.
        let before = umask(Mode::empty());
        make_private(&folder).unwrap();
        write_whole(&folder.join("file"), b"x").unwrap();
        umask(before);
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&home.path().join("a")), 0o700);
        assert_eq!(mode(&folder.join("file")), 0o600);
    }

    #[test]
    fn an_open_folder_of_ours_is_closed() {
        let home = tempdir().unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        make_private(home.path()).unwrap();
        assert_eq!(mode(home.path()), 0o700);
    }

    #[test]
    fn a_symlink_or_a_file_in_the_way_is_refused() {
        let home = tempdir().unwrap();
        let (link, file) = (home.path().join("link"), home.path().join("file"));
        symlink(home.path(), &link).unwrap();
        fs::write(&file, "").unwrap();
        for path in [link, file] {
            let error = make_private(&path).unwrap_err();
            assert!(matches!(error, FolderError::Foreign { .. }), "{error}");
        }
    }

    #[test]
    fn a_new_file_never_follows_a_symlink() {
        let home = tempdir().unwrap();
        let link = home.path().join("link");
        symlink(home.path().join("victim"), &link).unwrap();
        assert!(create_new(&link).is_err());
        assert!(!home.path().join("victim").exists());
    }

    #[test]
    fn writing_replaces_the_whole_file_and_leaves_no_other() {
        let home = tempdir().unwrap();
        let path = home.path().join("file");
        write_whole(&path, b"a longer text").unwrap();
        write_whole(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let home = tempdir().unwrap();
        let path = home.path().join("file");
        fs::create_dir(&path).unwrap();
        assert!(write_whole(&path, b"x").is_err());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
