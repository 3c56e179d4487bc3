//! The file that says what a machine is to become: for Ignition, or for cloud-init.

use kiln_arch::machine::IgnitionTransport;

use super::error::{Fault, Place};
use super::fields::{self, Fields};
use super::files::{self, Folders};
use crate::cluster::{IgnitionSource, Size};

/// fw_cfg would take minutes to hand over more.
const LIMIT: Size = Size::from_mib(8);

/// The file of a group.
pub(super) struct Config {
    pub(super) source: Option<IgnitionSource>,
    /// Whether cloud-init is to read it.
    pub(super) cloud_init: bool,
}

/// The keys `ignition`, `cloud_init` and `template`.
pub(super) fn config(
    fields: &mut Fields,
    folders: Folders<'_>,
    transport: Option<(Place, IgnitionTransport)>,
) -> Result<Config, Fault> {
    let template = fields.take("template");
    let cloud_init = fields.take("cloud_init");
    let (node, key, cloud_init) = match (fields.take("ignition"), cloud_init) {
        (Some(node), None) => (node, "ignition", false),
        (None, Some(node)) => (node, "cloud_init", true),
        (Some(_), Some(node)) => {
            let why = "a group has `ignition` or `cloud_init`, not both";
            return Err(Fault::bad_value(node.place, "cloud_init", why)
                .hint("images of CoreOS and Flatcar know Ignition, others mostly cloud-init"));
        }
        (None, None) => {
            return match template {
                None => Ok(Config {
                    source: None,
                    cloud_init: false,
                }),
                Some(node) => Err(Fault::bad_value(
                    node.place,
                    "template",
                    "there is no `ignition` that could be a template",
                )),
            };
        }
    };
    let place = node.place;
    if let (true, Some((place, _))) = (cloud_init, transport) {
        let why = "cloud-init reads a disk, whatever is said for Ignition";
        return Err(Fault::bad_value(place, "ignition_transport", why).hint("leave it out"));
    }
    let path = folders.resolve(place, key, &fields::text(node, key)?)?;
    let ending = path.extension().and_then(|ending| ending.to_str());
    if matches!(ending, Some("bu" | "butane")) {
        return Err(Fault::not_built(place, "reading Butane")
            .hint("translate it with `butane --strict FILE` and name the result here"));
    }
    let template = match template {
        Some(node) => fields::boolean(&node, "template")?,
        None => ending == Some("j2"),
    };
    let text = files::text(&path, LIMIT).map_err(files::fault(place, key))?;
    Ok(Config {
        source: Some(IgnitionSource {
            path,
            text,
            template,
        }),
        cloud_init,
    })
}
