//! Fetched images, each by the digest of its unpacked content, shared by all clusters of a user.
//!
//! ```text
//! images/sha256-DIGEST.qcow2   the image, 0444, whole and verified
//! images/sha256-DIGEST.json    what it is and how it was verified
//! images/partial-KEY, .json    what a broken-off download received
//! images/KEY.lock              held while that download goes on
//! ```
//! Whoever is about to use an image holds a shared lock on its file until a machine's record names it;
//! who removes one needs the exclusive lock, and looks at the records after that. So nothing goes that
//! is needed, and nobody waits.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::base::{self, FileFacts, ImageError};
use super::digest;
use super::fetch::partial;
use crate::cluster::DiskFormat;
use crate::folder::{self, FolderError, Incoming};
use crate::state::files::{self, StateError};
use crate::state::lock::{Lock, LockError};

/// A download ends with its file, or after some time without a byte; whoever waits for another's
/// waits no longer than this.
pub const LONGEST_DOWNLOAD: Duration = Duration::from_secs(24 * 60 * 60);

/// How an image is known to be its maker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// Not at all.
    No,
    /// By a digest that came from elsewhere than the image.
    Digest,
    Signature,
}

/// What is known of an image in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub schema: u32,
    /// As a spec may say it, with the release: `fedora-coreos:stable@42.20250901.3.0`.
    pub image: String,
    pub arch: String,
    /// Its official address.
    pub url: String,
    /// Of the file as it is sent.
    pub sha256: String,
    /// Of the file as it is sent, in bytes.
    pub size: u64,
    pub unpacked_sha256: String,
    /// By QEMU's name of its driver.
    pub format: String,
    /// Of the unpacked file, in bytes.
    pub length: u64,
    /// Of the disk in it, in bytes.
    pub virtual_size: u64,
    pub verified: Verified,
    /// Who signed it.
    pub signer: Option<String>,
    /// RFC 3339.
    pub fetched_at: String,
    pub file: Option<FileFacts>,
}

/// Which image is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    pub url: String,
    pub sha256: Option<String>,
    pub unpacked_sha256: Option<String>,
    /// At least so.
    pub verified: Verified,
}

/// An image that stays as long as this is held.
#[derive(Debug)]
pub struct Kept {
    pub record: ImageRecord,
    pub path: PathBuf,
    /// With a shared lock.
    _held: File,
}

/// A broken-off download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    pub path: PathBuf,
    pub image: String,
    pub url: String,
    /// Received, in bytes.
    pub done: u64,
    pub total: Option<u64>,
}

/// What became of an image that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// A command is at it.
    Busy,
    /// A machine stands on it.
    Needed,
}

/// The cache's folder of images.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("cannot use the cache of images")]
    Folder {
        #[source]
        source: FolderError,
    },
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the record of an image")]
    Record {
        #[source]
        source: StateError,
    },
    #[error("the image `{}` in the cache was changed since it was fetched", path.display())]
    Changed { path: PathBuf },
    #[error("the image `{}` in the cache is not what it was", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: ImageError,
    },
    #[error("cannot lock a download")]
    Lock {
        #[source]
        source: LockError,
    },
}

impl Cache {
    /// Makes nothing; the folder comes into being with the first image.
    pub fn new(cache: &Path) -> Cache {
        Cache {
            folder: cache.join("images"),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder, and removes what killed downloads left that is of no use.
    pub fn open(&self) -> Result<(), CacheError> {
        folder::make_private(&self.folder).map_err(|source| CacheError::Folder { source })?;
        folder::sweep(&self.folder).map_err(|source| self.write(source))
    }

    /// Held while a file is downloaded. `waiting` hears who else is at it, before that is waited for,
    /// at most `patience` where there is a limit.
    pub fn lock(
        &self,
        key: &str,
        patience: Option<Duration>,
        waiting: impl FnOnce(&str),
    ) -> Result<Lock, CacheError> {
        let path = self.folder.join(format!("{key}.lock"));
        let failed = |source| CacheError::Lock { source };
        match Lock::try_take(&path, "kiln image pull") {
            Err(LockError::Held { holder }) => {
                waiting(&holder);
                let patience = patience.unwrap_or(LONGEST_DOWNLOAD);
                Lock::take_within(&path, "kiln image pull", patience).map_err(failed)
            }
            taken => taken.map_err(failed),
        }
    }

    /// The image that is meant, if it is here, whole, and verified well enough.
    pub fn find(&self, need: &Need) -> Result<Option<Kept>, CacheError> {
        for record in self.records()? {
            if record.serves(need)
                && let Some(kept) = self.hold(record)?
            {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    /// All that is here, in the order of names; what cannot be read is left out.
    pub fn records(&self) -> Result<Vec<ImageRecord>, CacheError> {
        let mut records = Vec::new();
        for name in self.names()? {
            let Some(stem) = name.strip_suffix(".json") else {
                continue;
            };
            if !stem.starts_with("sha256-") {
                continue;
            }
            match files::load::<ImageRecord>(&self.folder.join(&name)) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => {}
                Err(source) if source.is_newer() => return Err(CacheError::Record { source }),
                // Its image can be fetched again.
                Err(error) => tracing::warn!(%error, "an image's record is passed over"),
            }
        }
        records.sort_by(|a, b| (&a.image, &a.arch).cmp(&(&b.image, &b.arch)));
        Ok(records)
    }

    /// Downloads that were broken off, and those that go on now.
    pub fn begun(&self) -> Result<Vec<Begun>, CacheError> {
        let mut begun = Vec::new();
        for name in self.names()? {
            if !name.starts_with(partial::PREFIX) || name.ends_with(".json") {
                continue;
            }
            let path = self.folder.join(name);
            let known = partial::record_of(&path);
            begun.push(Begun {
                done: fs::metadata(&path).map_or(0, |metadata| metadata.len()),
                image: known.as_ref().map_or(String::new(), |it| it.image.clone()),
                url: known.as_ref().map_or(String::new(), |it| it.url.clone()),
                total: known.and_then(|it| it.total),
                path,
            });
        }
        Ok(begun)
    }

    /// Where the image lies.
    pub fn path(&self, record: &ImageRecord) -> PathBuf {
        let ImageRecord {
            unpacked_sha256,
            format,
            ..
        } = record;
        self.folder
            .join(format!("sha256-{unpacked_sha256}.{format}"))
    }

    fn record_path(&self, record: &ImageRecord) -> PathBuf {
        self.path(record).with_extension("json")
    }

    /// Puts a whole, verified file into the cache. One of the same content that is here already stays,
    /// because machines may stand on it.
    pub fn keep(&self, incoming: Incoming, mut record: ImageRecord) -> Result<Kept, CacheError> {
        let path = self.path(&record);
        let write = |source| CacheError::Write {
            path: path.clone(),
            source,
        };
        let old: Option<ImageRecord> = files::load(&self.record_path(&record)).ok().flatten();
        if let Some(old) = old
            && let Ok(Some(kept)) = self.hold(old)
        {
            record.file = kept.record.file;
            // What was once verified better is still the same file.
            if kept.record.verified > record.verified {
                return Ok(kept);
            }
        } else {
            let file = &incoming.file;
            file.set_permissions(Permissions::from_mode(0o444))
                .map_err(write)?;
            record.file = FileFacts::of(&file.metadata().map_err(write)?);
            incoming.keep_as(&path).map_err(write)?;
        }
        files::save(&self.record_path(&record), &record)
            .map_err(|source| CacheError::Record { source })?;
        let changed = || CacheError::Changed { path: path.clone() };
        self.hold(record)?.ok_or_else(changed)
    }

    /// Locks the image, and looks whether it is the one of the record. `None` when it is gone.
    fn hold(&self, mut record: ImageRecord) -> Result<Option<Kept>, CacheError> {
        let path = self.path(&record);
        let read = |source| CacheError::Read {
            path: path.clone(),
            source,
        };
        let file = match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(read)?,
        };
        match file.try_lock_shared() {
            Ok(()) => {}
            // It is being removed at this moment.
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(read(source)),
        }
        let found = file.metadata().map_err(read)?;
        let named = fs::symlink_metadata(&path).ok();
        if named.is_none_or(|named| (named.dev(), named.ino()) != (found.dev(), found.ino())) {
            return Ok(None);
        }
        let facts = FileFacts::of(&found);
        let changed = || CacheError::Changed { path: path.clone() };
        if facts.is_none() || found.uid() != geteuid().as_raw() || found.len() != record.length {
            return Err(changed());
        }
        if facts != record.file {
            // Copied with the whole cache, or touched: the content tells.
            if hash(&file).map_err(read)? != record.unpacked_sha256 {
                return Err(changed());
            }
            record.file = facts;
            files::save(&self.record_path(&record), &record)
                .map_err(|source| CacheError::Record { source })?;
        }
        Ok(Some(Kept {
            record,
            path,
            _held: file,
        }))
    }

    /// Reads the image again, all of it.
    pub fn verify(&self, record: &ImageRecord) -> Result<(), CacheError> {
        let path = self.path(record);
        let read = |source| CacheError::Read {
            path: path.clone(),
            source,
        };
        let mut file = open(&path).map_err(read)?;
        if hash(&file).map_err(read)? != record.unpacked_sha256 {
            return Err(CacheError::Changed { path });
        }
        base::examine(&path, &mut file, format(record))
            .map(drop)
            .map_err(|source| CacheError::Damaged { path, source })
    }

    /// Removes the image, unless a command holds it or `is_needed` says, after it is locked, that a
    /// machine stands on it.
    pub fn remove(
        &self,
        record: &ImageRecord,
        is_needed: impl FnOnce(&Path) -> bool,
    ) -> Result<Removal, CacheError> {
        let path = self.path(record);
        let write = |source| CacheError::Write {
            path: path.clone(),
            source,
        };
        match open(&path) {
            Ok(file) => {
                match file.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => return Ok(Removal::Busy),
                    Err(TryLockError::Error(source)) => return Err(write(source)),
                }
                if is_needed(&path) {
                    return Ok(Removal::Needed);
                }
                fs::remove_file(&path).map_err(write)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // What is in its place is no image, and can go.
            Err(_) => fs::remove_file(&path).map_err(write)?,
        }
        files::remove_file(&self.record_path(record))
            .map_err(|source| CacheError::Record { source })?;
        Ok(Removal::Removed)
    }

    /// Removes a broken-off download, unless it goes on at this moment.
    pub fn remove_begun(&self, begun: &Begun) -> Result<Removal, CacheError> {
        let name = begun.path.file_name().unwrap_or_default().to_string_lossy();
        let key = name.strip_prefix(partial::PREFIX).unwrap_or(&name);
        let path = self.folder.join(format!("{key}.lock"));
        match Lock::try_take(&path, "kiln image prune") {
            Ok(lock) => {
                partial::remove(&begun.path);
                lock.remove();
                Ok(Removal::Removed)
            }
            Err(LockError::Held { .. }) => Ok(Removal::Busy),
            Err(source) => Err(CacheError::Lock { source }),
        }
    }

    fn names(&self) -> Result<Vec<String>, CacheError> {
        let read = |source| CacheError::Read {
            path: self.folder.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(read)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(read)?.file_name();
            names.extend(name.to_str().map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    fn write(&self, source: io::Error) -> CacheError {
        CacheError::Write {
            path: self.folder.clone(),
            source,
        }
    }
}

impl ImageRecord {
    fn serves(&self, need: &Need) -> bool {
        let same =
            |want: &Option<String>, found: &str| want.as_deref().is_none_or(|want| want == found);
        let known = need.sha256.is_some() || need.unpacked_sha256.is_some();
        self.verified >= need.verified
            && same(&need.sha256, &self.sha256)
            && same(&need.unpacked_sha256, &self.unpacked_sha256)
            && (known || self.url == need.url)
    }

    pub fn format(&self) -> DiskFormat {
        format(self)
    }
}

fn format(record: &ImageRecord) -> DiskFormat {
    if record.format == DiskFormat::Raw.driver() {
        DiskFormat::Raw
    } else {
        DiskFormat::Qcow2
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    Ok(file)
}

fn hash(mut file: &File) -> io::Result<String> {
    let (digest, _) = digest::copy(&mut file, &mut io::sink(), &mut |_| {})?;
    Ok(digest)
}
