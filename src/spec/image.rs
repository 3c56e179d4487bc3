//! `image:` in its forms: a path, a stream's name, an address, `{disk: …}`, or
//! `{kernel: …, initrd: …, cmdline: …}`.
//!
//! A file's format is what the user says or what its name ends in, never what
//! its bytes look like; the bytes are only asked whether they contradict.

use std::path::Path;

use kiln_arch::machine::IgnitionTransport;

use super::document::{Node, Value};
use super::error::{Fault, Place};
use super::fields::{self, Fields, Keys};
use super::files::{self, Folders};
use super::stream;
use super::suggest;
use super::warning::SpecWarning;
use crate::cluster::remote::{Address, RemoteImage, Source};
use crate::cluster::{DiskFormat, DiskImage, DiskSource, Image};

/// The first bytes of every qcow2 file (QEMU, docs/interop/qcow2.txt).
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
/// What the kernel takes as its command line, on the most generous architecture.
const CMDLINE_LIMIT: usize = 4096;

const DISK_KEYS: Keys = Keys {
    known: &["disk", "format", "sha256", "insecure"],
    not_built: &[],
};
const IMAGE_KEYS: Keys = Keys {
    known: &[
        "disk",
        "format",
        "sha256",
        "insecure",
        "kernel",
        "initrd",
        "cmdline",
        "ignition_transport",
    ],
    not_built: &[],
};

/// An `image:` with what it says of Ignition, which has to fit each machine's architecture.
#[derive(Debug, Clone)]
pub(super) struct PlacedImage {
    pub(super) image: Image,
    pub(super) place: Place,
    pub(super) transport: Option<(Place, IgnitionTransport)>,
}

/// Reads an `image:` and looks whether its files are there.
pub(super) fn image(
    node: Node,
    key: &str,
    owner: &str,
    folders: Folders<'_>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<PlacedImage, Fault> {
    let place = node.place;
    if !matches!(node.value, Value::Map(_)) {
        return Ok(PlacedImage {
            place,
            image: Image::Disk(disk(node, key, owner, folders, warnings)?),
            transport: None,
        });
    }
    let mut fields = Fields::new(node, format!("`image` of {owner}"), IMAGE_KEYS)?;
    let transport = fields.take_as("ignition_transport", |node, key| {
        let words = [
            ("fw_cfg", IgnitionTransport::FwCfg),
            ("virtio-blk", IgnitionTransport::VirtioBlk),
        ];
        let place = node.place;
        fields::choice(node, key, &words, &[]).map(|transport| (place, transport))
    })?;
    Ok(PlacedImage {
        place,
        image: described(fields, key, folders, warnings)?,
        transport,
    })
}

/// The image that a map describes.
fn described(
    mut fields: Fields,
    key: &str,
    folders: Folders<'_>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<Image, Fault> {
    let initrd = fields.take("initrd");
    let cmdline = fields.take("cmdline");
    let Some(kernel) = fields.take("kernel") else {
        if let Some(node) = initrd.or(cmdline) {
            return Err(Fault::bad_value(
                node.place,
                key,
                "`initrd` and `cmdline` mean something only beside `kernel`",
            ));
        }
        return disk_fields(fields, folders, warnings)?.map_or_else(
            |fields| {
                Err(fields
                    .missing("disk")
                    .hint("an image has a `disk`, or a `kernel`, or both"))
            },
            |disk| Ok(Image::Disk(disk)),
        );
    };
    let file = |node: Node, key: &str| {
        let place = node.place;
        let path = folders.resolve(place, key, &fields::text(node, key)?)?;
        files::open(&path).map_err(files::fault(place, key))?;
        Ok(path)
    };
    let kernel = file(kernel, "kernel")?;
    let initrd = initrd.map(|node| file(node, "initrd")).transpose()?;
    let cmdline = cmdline.map(command_line).transpose()?.unwrap_or_default();
    let disk = disk_fields(fields, folders, warnings)?.ok();
    Ok(Image::Kernel {
        kernel,
        initrd,
        cmdline,
        disk,
    })
}

/// What a map says of its disk besides where it is.
#[derive(Debug, Default)]
struct Said {
    format: Option<DiskFormat>,
    sha256: Option<String>,
    /// `insecure: true`, and where it stands.
    insecure: Option<Place>,
}

/// The disk that a map describes; the fields again when they say nothing of one.
fn disk_fields(
    mut fields: Fields,
    folders: Folders<'_>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<Result<DiskSource, Fields>, Fault> {
    let format = fields.take_as("format", |node, key| {
        fields::choice(
            node,
            key,
            &[("qcow2", DiskFormat::Qcow2), ("raw", DiskFormat::Raw)],
            &[],
        )
    })?;
    let sha256 = fields.take_as("sha256", digest)?;
    let insecure = fields.take("insecure");
    let Some(node) = fields.take("disk") else {
        if format.is_some() || sha256.is_some() || insecure.is_some() {
            return Err(fields
                .missing("disk")
                .hint("`format`, `sha256` and `insecure` describe a `disk`"));
        }
        return Ok(Err(fields));
    };
    if matches!(node.value, Value::Map(_)) {
        if format.is_some() || sha256.is_some() || insecure.is_some() {
            return Err(Fault::bad_value(
                node.place,
                "disk",
                "a disk that is a map says `format`, `sha256` and `insecure` itself",
            ));
        }
        let owner = fields.owner.clone();
        return disk(node, "disk", &owner, folders, warnings).map(Ok);
    }
    let mut said = Said {
        format,
        sha256,
        insecure: None,
    };
    if let Some(node) = insecure {
        let place = node.place;
        if fields::boolean(&node, "insecure")? {
            if said.sha256.is_some() {
                return Err(Fault::bad_value(
                    place,
                    "insecure",
                    "`insecure: true` and `sha256` contradict each other",
                ));
            }
            said.insecure = Some(place);
        }
    }
    located(node, "disk", said, folders, warnings).map(Ok)
}

/// A disk image: where it is, or a map with `disk` and what is to be known of it.
fn disk(
    node: Node,
    key: &str,
    owner: &str,
    folders: Folders<'_>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<DiskSource, Fault> {
    match node.value {
        Value::Map(_) => {
            let fields = Fields::new(node, format!("`{key}` of {owner}"), DISK_KEYS)?;
            disk_fields(fields, folders, warnings)?.map_err(|fields| fields.missing("disk"))
        }
        Value::Text(_) => located(node, key, Said::default(), folders, warnings),
        Value::Nothing | Value::Bool(_) | Value::Number(_) | Value::List(_) => {
            Err(fields::wrong_type(&node, key, "a path or a map"))
        }
    }
}

/// A stream's name, an address, or a path.
fn located(
    node: Node,
    key: &str,
    said: Said,
    folders: Folders<'_>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<DiskSource, Fault> {
    let place = node.place;
    let text = fields::text(node, key)?;
    if let Some(source) = Source::named(&text) {
        let source = source.map_err(|error| Fault::bad_value(place, key, error))?;
        stream::refuse_misspelled(&source, place, key)?;
        return named(source, place, key, &said).map(DiskSource::Remote);
    }
    if ["https:", "http:"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
    {
        return address(&text, place, key, said).map(DiskSource::Remote);
    }
    stream::refuse_slip(&text, place, key)?;
    let path = folders.resolve(place, key, &text)?;
    let image = DiskImage {
        format: known_format(place, key, &path, said.format)?,
        path,
        sha256: said.sha256,
    };
    if let Some(place) = said.insecure {
        warnings.push(SpecWarning::InsecureLocalImage { place });
    }
    look(&image, place, key, warnings)?;
    Ok(DiskSource::Local(image))
}

fn named(source: Source, place: Place, key: &str, said: &Said) -> Result<RemoteImage, Fault> {
    if said.format.is_some() || said.sha256.is_some() {
        return Err(Fault::bad_value(
            place,
            key,
            "a release comes with its own `format` and digest",
        )
        .hint("`kiln.lock` keeps the digest of the release that is used"));
    }
    if let (Source::Rhcos { .. }, Some(place)) = (&source, said.insecure) {
        return Err(Fault::bad_value(
            place,
            "insecure",
            "it changes nothing for `rhcos`, whose images have a digest and no signature",
        ));
    }
    Ok(RemoteImage {
        source,
        insecure: said.insecure.is_some(),
    })
}

fn address(text: &str, place: Place, key: &str, said: Said) -> Result<RemoteImage, Fault> {
    let url: Address = text
        .parse()
        .map_err(|error| Fault::bad_value(place, key, error))?;
    if said.sha256.is_none() && (url.is_plain() || said.insecure.is_none()) {
        let fault = Fault::bad_value(place, key, "an image from an address needs its digest");
        return Err(if url.is_plain() {
            fault.hint(format!(
                "anyone on the way can change what `http` carries; write `{{disk: \"{url}\", sha256: …}}`"
            ))
        } else {
            fault.hint(format!(
                "write `{{disk: \"{url}\", sha256: …}}` with the digest of the file as it lies there, or `insecure: true` to take whatever is sent"
            ))
        });
    }
    let format = format_of(place, key, url.unpacked(), said.format)?;
    Ok(RemoteImage {
        source: Source::Address {
            url,
            sha256: said.sha256,
            format,
        },
        insecure: said.insecure.is_some(),
    })
}

pub(super) fn known_format(
    place: Place,
    key: &str,
    path: &Path,
    said: Option<DiskFormat>,
) -> Result<DiskFormat, Fault> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    if said.is_none()
        && let Some("xz" | "gz" | "zst" | "bz2") = ending
    {
        return Err(
            Fault::bad_value(place, key, format!("`{}` is compressed", path.display()))
                .hint("unpack it first; only what is downloaded is unpacked on the way"),
        );
    }
    format_of(place, key, path, said)
}

/// What the user says, or what the name ends in.
fn format_of(
    place: Place,
    key: &str,
    path: &Path,
    said: Option<DiskFormat>,
) -> Result<DiskFormat, Fault> {
    if let Some(format) = said {
        return Ok(format);
    }
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("qcow2") => Ok(DiskFormat::Qcow2),
        Some("raw" | "img") => Ok(DiskFormat::Raw),
        _ => Err(Fault::bad_value(
            place,
            key,
            format!(
                "`{}` does not end in {}",
                path.display(),
                suggest::list(&[".qcow2", ".raw", ".img"])
            ),
        )
        .hint("say the format beside it: `format: qcow2` or `format: raw`")),
    }
}

/// Looks whether the file is there and does not contradict its format.
fn look(
    image: &DiskImage,
    place: Place,
    key: &str,
    warnings: &mut Vec<SpecWarning>,
) -> Result<(), Fault> {
    let head =
        files::head(&image.path, QCOW2_MAGIC.len() as u64).map_err(files::fault(place, key))?;
    match (image.format, head == QCOW2_MAGIC) {
        (DiskFormat::Qcow2, true) | (DiskFormat::Raw, false) => Ok(()),
        (DiskFormat::Qcow2, false) => Err(Fault::bad_value(
            place,
            key,
            format!(
                "`{}` is not a qcow2 image: its first bytes are not `QFI\\xfb`",
                image.path.display()
            ),
        )
        .hint("a raw image needs `format: raw` or a name that ends in `.raw` or `.img`")),
        (DiskFormat::Raw, true) => {
            warnings.push(SpecWarning::RawLooksLikeQcow2 {
                place,
                path: image.path.clone(),
            });
            Ok(())
        }
    }
}

fn digest(node: Node, key: &str) -> Result<String, Fault> {
    let place = node.place;
    let text = fields::text(node, key)?.to_ascii_lowercase();
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text);
    }
    Err(Fault::bad_value(
        place,
        key,
        "a SHA-256 digest is 64 hexadecimal digits",
    ))
}

fn command_line(node: Node) -> Result<String, Fault> {
    let place = node.place;
    let text = fields::text(node, "cmdline")?;
    if text.len() > CMDLINE_LIMIT {
        return Err(Fault::bad_value(
            place,
            "cmdline",
            format!("a kernel takes at most {CMDLINE_LIMIT} bytes"),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::bad_value(
            place,
            "cmdline",
            "a command line is one line without control characters",
        )
        .hint("YAML's `>-` folds several lines into one"));
    }
    Ok(text)
}
