//! `kiln image`: what is in the cache, and what is to come and go.

mod remove;

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::args::{ImageVerb, PullArgs, SomeImagesArgs, VarArgs};
use crate::cluster::DiskFormat;
use crate::cluster::remote::{Address, RemoteImage, Source};
use crate::command::pulling::{self, Fresh, Pulled};
use crate::command::{Session, spec};
use crate::error::{Error, Exit};
use crate::image::cache::{Cache, ImageRecord, Verified};
use crate::inventory;
use crate::report::table::{Cell, table};
use crate::report::text::count;
use crate::report::transfer::size;

/// Digits of a digest that people are shown, and that they have to give at least.
const SHORT: usize = 12;
const LEAST: usize = 6;

pub(super) fn run(session: &Session<'_>, verb: &ImageVerb) -> Result<(), Error> {
    match verb {
        ImageVerb::Pull(args) => pull(session, args),
        ImageVerb::Update => update(session),
        ImageVerb::Ls => ls(session),
        ImageVerb::Rm(args) => remove::rm(session, args),
        ImageVerb::Prune => remove::prune(session),
        ImageVerb::Verify(args) => verify(session, args),
    }
}

#[derive(Serialize)]
struct PulledView {
    image: String,
    /// As the spec says it.
    asked: String,
    arch: String,
    path: PathBuf,
    sha256: String,
    verified: Verified,
    signer: Option<String>,
    moved_from: Option<String>,
}

#[derive(Serialize)]
struct PulledViews {
    images: Vec<PulledView>,
}

fn pull(session: &Session<'_>, args: &PullArgs) -> Result<(), Error> {
    let pulled = if args.images.is_empty() {
        let cluster = spec::load(session, &[], &VarArgs::default())?;
        let fresh = if args.force_download {
            Fresh::Download
        } else {
            Fresh::No
        };
        pulling::of_spec(session, &cluster, &[], fresh, None)?
    } else {
        let arch = match args.arch.or(session.host.arch) {
            Some(arch) => arch,
            None => return Err(Error::new(Exit::Usage, "say which architecture: `--arch`")),
        };
        let images: Vec<RemoteImage> = args
            .images
            .iter()
            .map(|text| said(text, args))
            .collect::<Result<_, _>>()?;
        pulling::named(session, &images, arch, args.force_download)?
    };
    show(
        session,
        &pulled,
        "the spec names no image that would have to be fetched",
    )
}

/// An image as the command line names it.
fn said(text: &str, args: &PullArgs) -> Result<RemoteImage, Error> {
    let usage = |message: String| Error::new(Exit::Usage, message);
    let wrong = |error| usage(format!("`{text}`: {error}"));
    let source = match Source::named(text) {
        Some(source) => {
            if args.sha256.is_some() {
                return Err(usage("`--sha256` belongs to an address".to_owned()));
            }
            source.map_err(wrong)?
        }
        None => {
            let url: Address = text.parse().map_err(wrong)?;
            let sha256 = args.sha256.as_deref().map(str::to_ascii_lowercase);
            match &sha256 {
                Some(digest) if digest.len() != 64 || !is_hex(digest) => {
                    return Err(usage(
                        "a SHA-256 digest is 64 hexadecimal digits".to_owned(),
                    ));
                }
                None if url.is_plain() || !args.insecure => {
                    return Err(usage(format!("`{text}` needs its digest: `--sha256`")));
                }
                Some(_) | None => {}
            }
            let ending = url.unpacked().extension().and_then(|it| it.to_str());
            let format = match ending {
                Some("qcow2") => DiskFormat::Qcow2,
                Some("raw" | "img") => DiskFormat::Raw,
                _ => {
                    return Err(usage(format!(
                        "`{text}` does not end in `.qcow2`, `.raw` or `.img`, compressed or not"
                    )));
                }
            };
            Source::Address {
                url,
                sha256,
                format,
            }
        }
    };
    Ok(RemoteImage {
        source,
        insecure: args.insecure,
    })
}

fn update(session: &Session<'_>) -> Result<(), Error> {
    let cluster = spec::load(session, &[], &VarArgs::default())?;
    let pulled = pulling::of_spec(session, &cluster, &[], Fresh::Release, None)?;
    show(
        session,
        &pulled,
        "the spec names no image that has releases",
    )
}

fn show(session: &Session<'_>, pulled: &[Pulled], nothing: &str) -> Result<(), Error> {
    let images = pulled.iter().map(|pulled| {
        let record = &pulled.kept.record;
        PulledView {
            image: record.image.clone(),
            asked: pulled.image.source.to_string(),
            arch: record.arch.clone(),
            path: pulled.kept.path.clone(),
            sha256: record.unpacked_sha256.clone(),
            verified: record.verified,
            signer: record.signer.clone(),
            moved_from: pulled.moved_from.clone(),
        }
    });
    let view = PulledViews {
        images: images.collect(),
    };
    session.report.result(&view, |_| {
        let mut text = String::new();
        for image in &view.images {
            let moved = match &image.moved_from {
                Some(from) => format!(", was {from}"),
                None => String::new(),
            };
            text.push_str(&format!(
                "{} {} ({}{moved})\n",
                image.image,
                image.arch,
                word(image.verified)
            ));
        }
        if text.is_empty() {
            text = format!("{nothing}\n");
        }
        text
    })
}

fn word(verified: Verified) -> &'static str {
    match verified {
        Verified::Signature => "signed",
        Verified::Digest => "digest",
        Verified::No => "not verified",
    }
}

#[derive(Serialize)]
struct ImageView {
    image: String,
    arch: String,
    sha256: String,
    path: PathBuf,
    /// Of the file, in bytes.
    length: u64,
    verified: Verified,
    signer: Option<String>,
    fetched_at: String,
    /// Machines, as `CLUSTER/MACHINE`.
    used_by: Vec<String>,
}

#[derive(Serialize)]
struct PartialView {
    image: String,
    url: String,
    done: u64,
    total: Option<u64>,
}

#[derive(Serialize)]
struct List {
    images: Vec<ImageView>,
    partial: Vec<PartialView>,
}

fn ls(session: &Session<'_>) -> Result<(), Error> {
    let cache = Cache::new(&session.roots.cache);
    let (mut users, _) = inventory::standing_on(&session.roots);
    let images = cache.records()?.into_iter().map(|record| {
        let path = cache.path(&record);
        ImageView {
            used_by: users.remove(&path).unwrap_or_default(),
            image: record.image,
            arch: record.arch,
            sha256: record.unpacked_sha256,
            length: record.length,
            verified: record.verified,
            signer: record.signer,
            fetched_at: record.fetched_at,
            path,
        }
    });
    let partial = cache.begun()?.into_iter().map(|begun| PartialView {
        image: begun.image,
        url: begun.url,
        done: begun.done,
        total: begun.total,
    });
    let list = List {
        images: images.collect(),
        partial: partial.collect(),
    };
    session.report.result(&list, |style| {
        let whole = list.images.iter().map(|image| {
            [
                Cell::new(&image.image),
                Cell::new(&image.arch),
                Cell::new(size(image.length)),
                Cell::new(word(image.verified)),
                Cell::new(&image.sha256[..SHORT.min(image.sha256.len())]),
                Cell::new(image.used_by.join(" ")),
            ]
        });
        let begun = list.partial.iter().map(|begun| {
            let text = match begun.total {
                Some(total) => format!("{} of {}", size(begun.done), size(total)),
                None => size(begun.done),
            };
            [&begun.image, "", &text, "not whole", "", ""].map(Cell::new)
        });
        let rows: Vec<_> = whole.chain(begun).collect();
        let headers = ["IMAGE", "ARCH", "SIZE", "VERIFIED", "SHA-256", "MACHINES"];
        table(style, headers, &rows)
    })
}

/// The images that a text means: by name, with or without the release, or by digest.
fn select(records: &[ImageRecord], text: &str) -> Result<Vec<ImageRecord>, Error> {
    let digest = text
        .strip_prefix("sha256:")
        .unwrap_or(text)
        .to_ascii_lowercase();
    let is_digest = digest.len() >= LEAST && is_hex(&digest);
    let found: Vec<ImageRecord> = records
        .iter()
        .filter(|record| {
            let name = record.image.split('@').next().unwrap_or_default();
            record.image == text
                || name == text
                || (is_digest && record.unpacked_sha256.starts_with(&digest))
        })
        .cloned()
        .collect();
    if found.is_empty() {
        return Err(Error::new(
            Exit::Unknown,
            format!("there is no image `{text}` in the cache"),
        )
        .hint("`kiln image ls` lists them"));
    }
    Ok(found)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[derive(Serialize)]
struct VerifiedView {
    image: String,
    arch: String,
    ok: bool,
    error: Option<String>,
}

#[derive(Serialize)]
struct VerifiedViews {
    images: Vec<VerifiedView>,
}

fn verify(session: &Session<'_>, args: &SomeImagesArgs) -> Result<(), Error> {
    let cache = Cache::new(&session.roots.cache);
    let records = cache.records()?;
    let mut chosen = Vec::new();
    for text in &args.images {
        chosen.extend(select(&records, text)?);
    }
    if args.images.is_empty() {
        chosen = records;
    }
    let mut view = VerifiedViews { images: Vec::new() };
    for record in &chosen {
        let error = cache.verify(record).err();
        view.images.push(VerifiedView {
            image: record.image.clone(),
            arch: record.arch.clone(),
            ok: error.is_none(),
            error: error.map(|error| crate::error::in_one_line(&error)),
        });
    }
    let bad: Vec<&VerifiedView> = view.images.iter().filter(|image| !image.ok).collect();
    if let Some(first) = bad.first() {
        let others = bad.len() - 1;
        let more = match others {
            0 => String::new(),
            _ => format!(", and so are {} more", count(others, "image")),
        };
        let mut error = Error::new(
            Exit::Unsafe,
            format!("`{} {}` is damaged{more}", first.image, first.arch),
        );
        for image in bad {
            error = error.cause(image.error.clone().unwrap_or_default());
        }
        return Err(error.hint("`kiln image rm` and `kiln image pull` replace an image"));
    }
    session.report.result(&view, |_| {
        format!(
            "{} good\n",
            match view.images.len() {
                1 => "1 image is".to_owned(),
                count => format!("{count} images are"),
            }
        )
    })
}
