//! `kiln image rm` and `prune`: nothing goes that a machine stands on or a command is about to use.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::select;
use crate::cli::args::RemoveArgs;
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::image::cache::{Cache, ImageRecord, Removal};
use crate::image::store::Store;
use crate::inventory;
use crate::report::transfer::size;

/// Whether a machine stands on an image; nobody knows while a record cannot be read.
fn refuse_damaged(damaged: &[String]) -> Result<(), Error> {
    match damaged.first() {
        None => Ok(()),
        Some(machine) => Err(Error::new(
            Exit::Failed,
            format!(
                "the record of machine `{machine}` cannot be read, so it may stand on any image"
            ),
        )
        .hint("`kiln down` removes its cluster; then try again")),
    }
}

#[derive(Default, Serialize)]
struct Removed {
    removed: Vec<String>,
    /// Images that stay, and why.
    left: BTreeMap<String, String>,
    /// On the disk, in bytes.
    freed: u64,
}

impl Removed {
    fn count(&mut self, session: &Session<'_>, record: &ImageRecord) -> Result<(), Error> {
        let cache = Cache::new(&session.roots.cache);
        let room = room(&cache.path(record));
        let mut users = Vec::new();
        let mut damaged = Vec::new();
        let removal = cache.remove(record, |path| {
            let (mut standing, broken) = inventory::standing_on(&session.roots);
            users = standing.remove(path).unwrap_or_default();
            damaged = broken;
            !users.is_empty() || !damaged.is_empty()
        })?;
        refuse_damaged(&damaged)?;
        let name = format!("{} {}", record.image, record.arch);
        match removal {
            Removal::Removed => {
                self.removed.push(name);
                self.freed += room;
            }
            Removal::Needed => {
                self.left
                    .insert(name, format!("needed by {}", users.join(", ")));
            }
            Removal::Busy => {
                self.left.insert(name, "in use by another kiln".to_owned());
            }
        }
        Ok(())
    }

    fn show(&self, session: &Session<'_>) -> Result<(), Error> {
        session.report.result(self, |_| {
            let mut text = String::new();
            for name in &self.removed {
                text.push_str(&format!("removed {name}\n"));
            }
            for (name, why) in &self.left {
                text.push_str(&format!("left {name}: {why}\n"));
            }
            if self.removed.is_empty() {
                text.push_str("nothing removed\n");
            } else {
                text.push_str(&format!("{} are free again\n", size(self.freed)));
            }
            text
        })
    }
}

/// What a file takes on the disk, in bytes.
fn room(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

pub(super) fn rm(session: &Session<'_>, args: &RemoveArgs) -> Result<(), Error> {
    let cache = Cache::new(&session.roots.cache);
    let records = cache.records()?;
    let mut chosen: Vec<ImageRecord> = Vec::new();
    for text in &args.images {
        for record in select(&records, text)? {
            if !chosen.contains(&record) {
                chosen.push(record);
            }
        }
    }
    let mut removed = Removed::default();
    for record in &chosen {
        removed.count(session, record)?;
    }
    if let Some((name, why)) = removed.left.first_key_value() {
        let exit = if why.starts_with("needed") {
            Exit::Unsafe
        } else {
            Exit::Busy
        };
        return Err(Error::new(exit, format!("`{name}` stays: it is {why}"))
            .hint("`kiln down` removes the machines that stand on an image"));
    }
    removed.show(session)
}

pub(super) fn prune(session: &Session<'_>) -> Result<(), Error> {
    let cache = Cache::new(&session.roots.cache);
    let mut removed = Removed::default();
    for record in cache.records()? {
        removed.count(session, &record)?;
    }
    for begun in cache.begun()? {
        let name = format!("the beginning of {}", begun.image);
        let room = room(&begun.path);
        match cache.remove_begun(&begun)? {
            Removal::Removed => {
                removed.removed.push(name);
                removed.freed += room;
            }
            Removal::Busy | Removal::Needed => {
                removed.left.insert(name, "being downloaded".to_owned());
            }
        }
    }
    let store = Store::new(&session.roots.cache, session.host.memo.clone());
    let mut damaged = Vec::new();
    let kernels = store.prune(|path| {
        let (standing, broken) = inventory::standing_on(&session.roots);
        damaged = broken;
        !damaged.is_empty() || standing.contains_key(path)
    });
    let kernels = kernels.map_err(|error| Error::from_source(Exit::Failed, &error))?;
    refuse_damaged(&damaged)?;
    for (name, room) in kernels {
        removed.removed.push(format!("the kernel or initrd {name}"));
        removed.freed += room;
    }
    if cache.folder().exists() {
        // Also what killed downloads left.
        cache.open()?;
    }
    removed.show(session)
}
