//! Folders and files that are ours alone: 0700 and 0600 under any umask, never through a symlink.
//!
//! It must not know what the folders are for.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use nix::unistd::geteuid;

/// How the names of files begin that are not whole yet.
const INCOMING: &str = ".incoming-";
/// Files that a [`Batch`] holds open at most: few beside a process's usual limit of 1024.
const OPEN_FILES: usize = 64;

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

/// Opens a file to read and write, and makes it, 0600, when it is not there; what it holds stays.
///
/// # Errors
/// A symlink in its place is refused.
pub fn open_own(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
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

/// Reads a file that only we can have written; that of another user, or a symlink, is an error.
pub fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes the whole file or nothing: temporary file, fsync, rename, fsync of the folder.
///
/// Several writers may be at it; the last one wins.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut incoming = Incoming::beside(path)?;
    incoming.file.write_all(bytes)?;
    incoming.keep_as(path)
}

/// Files of which many are written at once: each whole or not at all, as by [`write_whole`], and
/// all of them on the disk when [`Batch::keep`] returns.
///
/// One by one, each file and its folder wait for a commit of the file system's journal; together
/// they share a few.
#[derive(Debug, Default)]
pub struct Batch {
    files: Vec<(Incoming, PathBuf)>,
}

/// Which file of a batch could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{}`", path.display())]
pub struct BatchError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Batch {
    /// Writes the file, but for its name.
    ///
    /// Where that would leave too many files open, those before it are kept first.
    pub fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<(), BatchError> {
        let incoming = Incoming::beside(path).and_then(|mut incoming| {
            incoming.file.write_all(bytes)?;
            Ok(incoming)
        });
        match incoming {
            Ok(incoming) => self.add_written(path, incoming),
            Err(source) => Err(BatchError::of(path, source)),
        }
    }

    /// As [`Batch::add`], with what is written already.
    pub fn add_written(&mut self, path: &Path, incoming: Incoming) -> Result<(), BatchError> {
        if self.files.len() >= OPEN_FILES {
            std::mem::take(self).keep()?;
        }
        self.files.push((incoming, path.to_owned()));
        Ok(())
    }

    /// Gives the files their names, in the order in which they were added.
    pub fn keep(self) -> Result<(), BatchError> {
        for (incoming, _) in &self.files {
            // Advice only: it has the kernel begin to write all of them before the first is
            // waited for, so that they find room on the disk in one and the same commit.
            let _ = posix_fadvise(
                &incoming.file,
                0,
                0,
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            );
        }
        for (incoming, path) in &self.files {
            let synced = incoming.file.sync_all();
            synced.map_err(|source| BatchError::of(path, source))?;
        }
        let mut folders = BTreeMap::new();
        for (incoming, path) in self.files {
            incoming
                .rename(&path)
                .map_err(|source| BatchError::of(&path, source))?;
            folders.insert(path.parent().map(Path::to_owned), path);
        }
        for path in folders.into_values() {
            sync_folder_of(&path).map_err(|source| BatchError::of(&path, source))?;
        }
        Ok(())
    }
}

impl BatchError {
    fn of(path: &Path, source: io::Error) -> BatchError {
        BatchError {
            path: path.to_owned(),
            source,
        }
    }
}

/// A file on its way to its name in the same folder; dropped before, it leaves nothing.
///
/// It is locked for as long as it is written, so that one without a holder of its lock is known
/// to be a killed process's. Those go when the next file is made in that folder.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    /// Open for reading and writing; 0600 until somebody says otherwise.
    pub file: File,
}

impl Incoming {
    /// In the folder of `path`, which has to be private.
    pub fn beside(path: &Path) -> io::Result<Incoming> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        sweep(folder)?;
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{INCOMING}{}-{count}", std::process::id()));
            let file = match create_new(&path) {
                // Another process with our pid, in another container, is at it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result?,
            };
            let incoming = Incoming { path, file };
            // A sweep may have come between making and locking it; then it has another turn.
            if incoming.file.try_lock().is_ok() && incoming.file.metadata()?.nlink() == 1 {
                return Ok(incoming);
            }
        }
    }

    /// The name that it has until then.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name, over what had it, for good: it is on the disk when this returns.
    pub fn keep_as(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        self.rename(path)?;
        sync_folder_of(path)
    }

    fn rename(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        // The old name is free for others from now on.
        self.path.clear();
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // What cannot be removed now, a sweep removes.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the temporary files that killed processes left in a private folder.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(INCOMING.as_bytes()) {
            continue;
        }
        // One that is gone by now, or is being written, is none of ours.
        if let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Makes a rename or removal in the file's folder last through a power cut.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
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
    fn only_files_that_nobody_else_can_write_are_read_as_ours() {
        let home = tempdir().unwrap();
        let (path, link) = (home.path().join("file"), home.path().join("link"));
        write_whole(&path, b"ours").unwrap();
        symlink(&path, &link).unwrap();
        assert_eq!(read_own(&path).unwrap(), b"ours");
        assert!(read_own(&link).is_err());
        assert!(read_own(home.path()).is_err());
        fs::set_permissions(&path, Permissions::from_mode(0o620)).unwrap();
        assert!(read_own(&path).is_err());
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
    fn a_batch_has_all_its_files_or_leaves_none_unfinished() {
        let home = tempdir().unwrap();
        let file = |number: usize| home.path().join(format!("{number}"));
        let count = OPEN_FILES + 3;
        let mut batch = Batch::default();
        for number in 0..count {
            batch
                .add(&file(number), number.to_string().as_bytes())
                .unwrap();
        }
        batch.keep().unwrap();
        for number in 0..count {
            assert_eq!(
                fs::read_to_string(file(number)).unwrap(),
                number.to_string()
            );
            assert_eq!(mode(&file(number)), 0o600);
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), count);

        let mut batch = Batch::default();
        batch.add(&file(0), b"new").unwrap();
        fs::remove_file(file(1)).unwrap();
        fs::create_dir(file(1)).unwrap();
        batch.add(&file(1), b"a folder is in the way").unwrap();
        let error = batch.keep().unwrap_err().to_string();
        assert_eq!(error, format!("cannot write `{}`", file(1).display()));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), count);
    }

    #[test]
    fn what_killed_writers_left_is_swept_and_what_is_being_written_is_not() {
        let home = tempdir().unwrap();
        let path = home.path().join("file");
        fs::write(home.path().join(".incoming-1-1"), "left over").unwrap();
        let busy = Incoming::beside(&path).unwrap();
        write_whole(&path, b"x").unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
        busy.keep_as(&home.path().join("other")).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }

    #[test]
    fn many_writers_at_once_leave_one_whole_file() {
        let home = tempdir().unwrap();
        let path = home.path().join("file");
        std::thread::scope(|scope| {
            for writer in 0..20_u8 {
                let path = &path;
                scope.spawn(move || write_whole(path, &vec![writer; 10_000]).unwrap());
            }
        });
        let content = fs::read(&path).unwrap();
        assert_eq!(content, vec![content[0]; 10_000]);
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
