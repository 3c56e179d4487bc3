//! `network.mode`: one word, or the bridge of the host's that machines are attached to.

use kiln_netsetup::name::IfName;

use super::document::{Node, Value};
use super::error::Fault;
use super::fields::{self, Fields, Keys};
use super::files::Folders;
use crate::cluster::NetworkMode;

const KEYS: Keys = Keys {
    known: &["attach"],
    not_built: &[],
};

pub(super) fn mode(node: Node, key: &str) -> Result<NetworkMode, Fault> {
    if matches!(node.value, Value::Map(_)) {
        let mut fields = Fields::new(node, format!("`{key}`"), KEYS)?;
        return match fields.take("attach") {
            Some(node) => attach(node),
            None => Err(fields.missing("attach")),
        };
    }
    let place = node.place;
    let words = [
        ("auto", Word::Auto),
        ("namespace", Word::Namespace),
        ("fabric", Word::Fabric),
        ("user", Word::User),
        ("attach", Word::Attach),
    ];
    Ok(match fields::choice(node, key, &words, &[])? {
        Word::Auto => NetworkMode::Auto,
        Word::Namespace => NetworkMode::Namespace,
        Word::Fabric => NetworkMode::Fabric,
        Word::User => NetworkMode::User,
        Word::Attach => {
            let why = "`attach` needs the bridge's name";
            return Err(Fault::bad_value(place, key, why).hint("write `mode: {attach: br0}`"));
        }
    })
}

#[derive(Clone, Copy)]
enum Word {
    Auto,
    Namespace,
    Fabric,
    User,
    Attach,
}

fn attach(node: Node) -> Result<NetworkMode, Fault> {
    let place = node.place;
    let bridge: IfName = fields::text(node, "attach")?
        .parse()
        .map_err(|error| Fault::bad_value(place, "attach", error))?;
    Ok(NetworkMode::Attach {
        bridge,
        leases: None,
    })
}

/// `network.leases`, which only means something beside a bridge.
pub(super) fn with_leases(
    mode: NetworkMode,
    leases: Option<Node>,
    folders: Folders<'_>,
) -> Result<NetworkMode, Fault> {
    let Some(node) = leases else { return Ok(mode) };
    let place = node.place;
    let NetworkMode::Attach { bridge, .. } = mode else {
        let why = "only with `mode: {attach: BRIDGE}` does another DHCP server give addresses";
        return Err(Fault::bad_value(place, "leases", why).hint("leave it out"));
    };
    // It need not be there yet: a server makes it with its first lease.
    let path = folders.resolve(place, "leases", &fields::text(node, "leases")?)?;
    Ok(NetworkMode::Attach {
        bridge,
        leases: Some(path),
    })
}

/// Where kiln serves no DHCP, DNS or way out, nothing of it can be said.
pub(super) fn refuse_what_is_not_told(
    mode: &NetworkMode,
    fields: &mut Fields,
) -> Result<(), Fault> {
    let who = match mode {
        NetworkMode::Auto | NetworkMode::Namespace | NetworkMode::Fabric => return Ok(()),
        NetworkMode::User => "QEMU",
        NetworkMode::Attach { .. } => "whoever owns the bridge",
    };
    for key in ["uplink", "mtu", "dns", "hosts", "routes"] {
        if let Some(node) = fields.take(key) {
            let why = format!("{who} says that in this `mode`, and not kiln");
            return Err(Fault::bad_value(node.place, key, why).hint("leave it out"));
        }
    }
    Ok(())
}
