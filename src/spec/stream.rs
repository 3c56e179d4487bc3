//! Names of streams: slips are found before any server is asked.
//!
//! Which streams there are is their makers' matter, so a word that is unlike every known one is
//! left to the server.

use kiln_arch::Arch;

use super::error::{Fault, Place};
use super::suggest;
use crate::cluster::remote::Source;
use crate::cluster::{DiskSource, Image};

const MAKERS: [&str; 3] = ["fedora-coreos", "flatcar", "rhcos"];
const FEDORA: [&str; 3] = ["stable", "testing", "next"];
const FLATCAR: [&str; 4] = ["stable", "beta", "alpha", "lts"];

/// Refuses a path that is plainly meant as a stream's name.
pub(super) fn refuse_slip(text: &str, place: Place, key: &str) -> Result<(), Fault> {
    let Some((name, rest)) = text.split_once(':') else {
        return Ok(());
    };
    if name.is_empty() || text.contains('/') || text.ends_with(".qcow2") {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    let why = format!("`{shown}` is not {}", suggest::list(&MAKERS));
    let fault = Fault::bad_value(place, key, why);
    Err(match suggest::nearest(name, &MAKERS) {
        Some(maker) => fault.hint(format!("did you mean `{maker}:{rest}`?")),
        None => fault.hint("a file of that name is written `./NAME`"),
    })
}

/// Refuses a stream that is a slip of a known one.
pub(super) fn refuse_misspelled(source: &Source, place: Place, key: &str) -> Result<(), Fault> {
    let (stream, known) = match source {
        Source::FedoraCoreos { stream, .. } => (stream, FEDORA.as_slice()),
        Source::Flatcar { channel, .. } => (channel, FLATCAR.as_slice()),
        Source::Rhcos { .. } | Source::Address { .. } => return Ok(()),
    };
    let word = stream.as_str();
    match suggest::nearest(word, known) {
        Some(meant) if meant != word => {
            let what = match source {
                Source::Flatcar { .. } => "channel of Flatcar",
                Source::FedoraCoreos { .. } | Source::Rhcos { .. } | Source::Address { .. } => {
                    "stream of Fedora CoreOS"
                }
            };
            let why = format!("`{word}` is no {what}");
            Err(Fault::bad_value(place, key, why).hint(format!("did you mean `{meant}`?")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses an image that its maker does not make for machines like this.
pub(super) fn refuse_arch(image: &Image, place: Place, arch: Arch) -> Result<(), Fault> {
    let Some(DiskSource::Remote(remote)) = image.disk() else {
        return Ok(());
    };
    let archs = remote.source.archs();
    if archs.contains(&arch) {
        return Ok(());
    }
    let names: Vec<&str> = archs.iter().map(|arch| arch.name()).collect();
    let why = format!("there is no `{}` for {arch}", remote.source);
    let hint = format!("its maker has it for {}", suggest::list(&names));
    Err(Fault::bad_value(place, "image", why).hint(hint))
}
