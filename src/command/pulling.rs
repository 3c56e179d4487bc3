//! Images that have to come from elsewhere: brought into the cache and pinned before they are used.

use std::time::{Duration, Instant};

use kiln_arch::Arch;

use crate::cluster::Cluster;
use crate::cluster::remote::{RemoteImage, Source};
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::image::cache::{Cache, Kept, LONGEST_DOWNLOAD};
use crate::image::fetch::http::Client;
use crate::image::fetch::{self};
use crate::image::pins::Pins;
use crate::image::pull::{self, PullError, Puller, Told};
use crate::image::source::Artifact;
use crate::image::source::mirror::Mirrors;
use crate::inventory;
use crate::report::progress::{Progress, Step};
use crate::report::transfer::{Transfer, size};
use crate::state::lock::Lock;

/// Between two lines of a log.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// Between two pictures of a terminal.
const LIVE_INTERVAL: Duration = Duration::from_millis(200);

/// What is to be done about images that are known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fresh {
    /// What is pinned is used, what is in the cache is not downloaded.
    No,
    /// What is pinned is used and downloaded anew.
    Download,
    /// The newest release is pinned.
    Release,
}

/// An image that is in the cache, and stays there as long as this lives.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) image: RemoteImage,
    pub(super) kept: Kept,
    /// The release that was pinned before, where that was another.
    pub(super) moved_from: Option<String>,
}

/// Brings the images of these machines of a spec into the cache (of all, when none is named), and
/// pins them beside the spec. At the deadline, if there is one, it gives up.
pub(super) fn of_spec(
    session: &Session<'_>,
    cluster: &Cluster,
    names: &[String],
    fresh: Fresh,
    deadline: Option<Instant>,
) -> Result<Vec<Pulled>, Error> {
    let mut wanted: Vec<(&RemoteImage, Arch)> = Vec::new();
    for machine in &cluster.machines {
        if !names.is_empty() && !names.iter().any(|name| name == machine.name.as_str()) {
            continue;
        }
        if let Some(image) = machine.remote_image()
            && !wanted.contains(&(image, machine.arch))
        {
            wanted.push((image, machine.arch));
        }
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let means = Means::of(session, deadline)?;
    let pins = Pins::load(&cluster.folder).map_err(spec_error)?;
    let mut pulled = Vec::new();
    let mut new = Vec::new();
    for (image, arch) in wanted {
        let pin = pins.get(&image.source, arch);
        let known = match fresh {
            Fresh::Release if !image.source.is_fixed() => None,
            Fresh::No | Fresh::Download | Fresh::Release => {
                inventory::images::known_file(&pins, pin, image)
                    .map_err(|source| inventory::InventoryError::Pin { source })?
            }
        };
        let artifact = match known {
            Some(artifact) => artifact,
            None => means.resolve(image, arch)?,
        };
        let kept = means.pull(session, image, arch, &artifact, fresh == Fresh::Download)?;
        let is_pinned_by_spec = matches!(
            &image.source,
            Source::Address {
                sha256: Some(_),
                ..
            }
        );
        if !is_pinned_by_spec {
            new.push(pull::pin(image, &artifact, &kept.record));
        }
        pulled.push(Pulled {
            moved_from: pin
                .filter(|pin| pin.release != artifact.release)
                .map(|pin| pin.release.clone()),
            image: image.clone(),
            kept,
        });
    }
    // Read again under the lock: another kiln may have pinned something meanwhile.
    let cache = Cache::new(&session.roots.cache);
    cache.open()?;
    let lock = Lock::take(&cache.folder().join("pins.lock"), "kiln image pull")?;
    let mut pins = Pins::load(&cluster.folder).map_err(spec_error)?;
    let changes: Vec<bool> = new.into_iter().map(|pin| pins.set(pin)).collect();
    if changes.contains(&true)
        && let Err(error) = pins.save()
    {
        session.report.note(&format!(
            "`{}` cannot be written, so the releases are not pinned: {error}",
            pins.path().display()
        ));
    }
    lock.remove();
    Ok(pulled)
}

/// Brings images into the cache that no spec names.
pub(super) fn named(
    session: &Session<'_>,
    images: &[RemoteImage],
    arch: Arch,
    anew: bool,
) -> Result<Vec<Pulled>, Error> {
    let means = Means::of(session, None)?;
    images
        .iter()
        .map(|image| {
            let artifact = means.resolve(image, arch)?;
            Ok(Pulled {
                kept: means.pull(session, image, arch, &artifact, anew)?,
                image: image.clone(),
                moved_from: None,
            })
        })
        .collect()
}

fn spec_error(error: crate::state::files::StateError) -> Error {
    inventory::InventoryError::Pins { source: error }.into()
}

/// What pulling takes.
struct Means {
    cache: Cache,
    client: Client,
    keyrings: std::path::PathBuf,
}

impl Means {
    /// Without a deadline of the user's, what takes longer than any download is given up.
    fn of(session: &Session<'_>, deadline: Option<Instant>) -> Result<Means, Error> {
        let deadline = deadline.unwrap_or_else(|| Instant::now() + LONGEST_DOWNLOAD);
        let host = &session.host;
        let path = host.folders.config.join("mirrors");
        let mirrors = match std::fs::read_to_string(&path) {
            Ok(text) => Mirrors::parse(&text).map_err(|error| {
                let message = format!("`{}` is no list of mirrors", path.display());
                Error::because(Exit::Spec, message, &error)
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Mirrors::default(),
            Err(error) => {
                let message = format!("cannot read `{}`", path.display());
                return Err(Error::because(Exit::Failed, message, &error));
            }
        };
        Ok(Means {
            cache: Cache::new(&session.roots.cache),
            client: Client::new(
                mirrors,
                host.proxy.as_ref(),
                &host.authorities(),
                Some(deadline),
            ),
            keyrings: host.folders.config.join("keyrings"),
        })
    }

    fn puller(&self) -> Puller<'_> {
        Puller {
            cache: &self.cache,
            client: &self.client,
            keyrings: &self.keyrings,
        }
    }

    /// Pulls one image and shows how it comes along.
    fn pull(
        &self,
        session: &Session<'_>,
        image: &RemoteImage,
        arch: Arch,
        artifact: &Artifact,
        anew: bool,
    ) -> Result<Kept, Error> {
        let mut shown = Shown::new(session);
        let pulled = self
            .puller()
            .pull(image, arch, artifact, anew, &mut |told| shown.tell(told));
        match &pulled {
            Ok(kept) => shown.done(kept),
            Err(_) => shown.failed(),
        }
        pulled.map_err(|error| self.in_time(error))
    }

    fn resolve(&self, image: &RemoteImage, arch: Arch) -> Result<Artifact, Error> {
        let resolved = self.puller().resolve(image, arch);
        resolved.map_err(|error| self.in_time(error))
    }

    /// What fails when no time is left fails for that reason.
    fn in_time(&self, error: PullError) -> Error {
        let mut error = Error::from(error);
        if self.client.left().is_some_and(|left| left.is_zero()) {
            error.exit = Exit::Timeout;
        }
        error
    }
}

/// One image's line of progress.
struct Shown<'a> {
    session: &'a Session<'a>,
    progress: Option<Progress<std::io::Stderr>>,
    name: String,
    transfer: Transfer,
    last: Option<Instant>,
    interval: Duration,
}

impl<'a> Shown<'a> {
    fn new(session: &'a Session<'a>) -> Shown<'a> {
        Shown {
            session,
            progress: None,
            name: String::new(),
            transfer: Transfer::default(),
            last: None,
            interval: if session.report.is_live() {
                LIVE_INTERVAL
            } else {
                PLAIN_INTERVAL
            },
        }
    }

    fn tell(&mut self, told: Told) {
        let now = Instant::now();
        match told {
            Told::Found { image } => self.name = image,
            Told::Waiting { holder } => {
                self.note(&format!(
                    "{}: waiting for {holder}, which downloads it",
                    self.name
                ));
            }
            Told::Anew => {
                self.transfer = Transfer::default();
                let name = &self.name;
                self.note(&format!(
                    "{name}: what was left of a former download was of no use; downloading anew"
                ));
            }
            Told::Unsigned => {
                self.note(&format!(
                    "{} has no signature and is taken unverified",
                    self.name
                ));
            }
            Told::Progress(fetch::Progress::Resumed { at }) => {
                self.note(&format!("{}: going on after {}", self.name, size(at)));
            }
            Told::Progress(fetch::Progress::Retry { why }) => {
                self.note(&format!("{}: {why}; trying again", self.name));
            }
            Told::Progress(fetch::Progress::Bytes { done, total }) => {
                if self.last.is_some_and(|last| now - last < self.interval) {
                    return;
                }
                self.last = Some(now);
                let text = self.transfer.text(now, done, total);
                self.update(now, &text, Step::Going);
            }
        }
    }

    fn update(&mut self, now: Instant, text: &str, step: Step) {
        let Shown { session, name, .. } = self;
        self.progress
            .get_or_insert_with(|| session.report.progress(now, [name.as_str()]))
            .update(now, name, text, step);
    }

    fn note(&mut self, text: &str) {
        match &mut self.progress {
            Some(progress) => progress.note(Instant::now(), text),
            None => self.session.report.note(text),
        }
    }

    fn done(&mut self, kept: &Kept) {
        // What was in the cache is not worth a line.
        if self.progress.is_some() {
            let how = match kept.record.verified {
                crate::image::cache::Verified::Signature => "downloaded, signature good",
                crate::image::cache::Verified::Digest => "downloaded, digest right",
                crate::image::cache::Verified::No => "downloaded, not verified",
            };
            self.update(Instant::now(), how, Step::Done);
        }
    }

    fn failed(&mut self) {
        if self.progress.is_some() {
            self.update(Instant::now(), "failed", Step::Failed);
        }
    }
}
