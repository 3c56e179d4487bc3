//! The whole spec: the top-level keys, and what holds between machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ipnet::Ipv4Net;
use kiln_arch::Arch;
use kiln_netsetup::address6::Subnet6;

use super::disks;
use super::document::{self, Node, Value};
use super::error::{Fault, Place, Problem, SpecError};
use super::fields::{self, Fields, Keys};
use super::files::{self, FileError, Folders};
use super::fixed;
use super::group::{self, Defaults};
use super::image;
use super::network;
use super::port;
use super::profile;
use super::storage;
use super::suggest;
use super::told;
use super::vars::{self, Vars};
use super::warning::SpecWarning;
use crate::cluster::told::Told;
use crate::cluster::{
    Cluster, ClusterName, DOMAIN, Ipv6Wish, MachineName, Network, NetworkMode, Size,
};
use crate::keys;

/// More than any spec has; hostile files end here.
const SPEC_LIMIT: Size = Size::from_mib(1);
/// A file of public keys has a few hundred bytes for each.
const KEY_FILE_LIMIT: Size = Size::from_mib(1);
/// The smallest subnet that holds a gateway and a machine, and the largest private one.
const PREFIX_LENGTHS: std::ops::RangeInclusive<u8> = 8..=29;

const KEYS: Keys = Keys {
    known: &[
        "cluster",
        "image",
        "network",
        "storage",
        "ssh",
        "vars",
        "vars_files",
        "machines",
    ],
    not_built: &[],
};
const NETWORK_KEYS: Keys = Keys {
    known: &[
        "mode", "subnet", "ipv6", "leases", "uplink", "domain", "mtu", "dns", "hosts", "routes",
    ],
    not_built: &[],
};
const SSH_KEYS: Keys = Keys {
    known: &["key"],
    not_built: &[],
};

/// What the spec cannot know by itself.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// `arch` where a group names none.
    pub host_arch: Arch,
    /// What `~` means in paths.
    pub home: Option<&'a Path>,
    /// Where the user's own profiles are, in `profiles/`, besides those beside the spec.
    pub config: Option<&'a Path>,
    /// Counts that replace those of the spec's groups.
    pub scale: Scale<'a>,
    /// What `--set` said, now and before, by paths with dots.
    pub set: &'a Vars,
}

/// Counts that replace those of the spec's groups.
#[derive(Debug, Clone, Copy)]
pub struct Scale<'a> {
    /// By `--scale` now: a group that is none is an error.
    pub said: &'a BTreeMap<MachineName, u16>,
    /// By an earlier `--scale`: holds for the groups that still have a count.
    pub remembered: &'a BTreeMap<MachineName, u16>,
}

impl Scale<'static> {
    /// As the spec has it.
    pub const NONE: Scale<'static> = Scale {
        said: &BTreeMap::new(),
        remembered: &BTreeMap::new(),
    };
}

/// A cluster, and what looks like a mistake in its spec.
#[derive(Debug)]
pub struct Loaded {
    pub cluster: Cluster,
    pub warnings: Vec<SpecWarning>,
}

/// Reads a spec and the files that it names.
///
/// Costs at most a second and a few MiB whatever the file holds.
///
/// # Errors
/// [`SpecError`], for the first thing that is wrong.
pub fn load(path: &Path, context: Context<'_>) -> Result<Loaded, SpecError> {
    let unreadable = |problem| unreadable(path, problem);
    let text = files::text(path, SPEC_LIMIT).map_err(unreadable)?;
    // The real folder, so that a cluster is the same by whatever link it is reached.
    let spec = fs::canonicalize(path).map_err(|source| {
        unreadable(FileError::Read {
            path: path.to_owned(),
            source,
        })
    })?;
    read(&text, &spec, context).map_err(|fault| fault.in_file(path, &text))
}

/// The name of the spec's cluster, whatever else in it may be wrong by now: a cluster has to be
/// found, and taken down, when its image is long gone.
///
/// # Errors
/// [`SpecError`] when there is no spec, or no name in it.
pub fn cluster_name(path: &Path) -> Result<ClusterName, SpecError> {
    let text = files::text(path, SPEC_LIMIT).map_err(|problem| unreadable(path, problem))?;
    let name = || {
        let root = root(&text)?;
        name(&mut Fields::new(root, "the spec".to_owned(), KEYS)?)
    };
    name().map_err(|fault: Fault| fault.in_file(path, &text))
}

fn unreadable(path: &Path, problem: FileError) -> SpecError {
    Fault {
        place: None,
        problem: Problem::Spec(problem),
        hint: None,
    }
    .in_file(path, "")
}

/// The spec's tree, which has something in it.
fn root(text: &str) -> Result<Node, Fault> {
    let root = document::parse(text)?;
    if root.value == Value::Nothing {
        return Err(Fault {
            place: None,
            problem: Problem::Syntax {
                message: "the file is empty".to_owned(),
            },
            hint: Some("`kiln init` writes one to begin with".to_owned()),
        });
    }
    Ok(root)
}

fn name(fields: &mut Fields) -> Result<ClusterName, Fault> {
    match fields.take("cluster") {
        None => Err(fields.missing("cluster")),
        Some(node) => {
            let place = node.place;
            fields::text(node, "cluster")?
                .parse()
                .map_err(|error| Fault::bad_value(place, "cluster", error))
        }
    }
}

/// The spec's text to a cluster; `spec` is the file, absolute.
fn read(text: &str, spec: &Path, context: Context<'_>) -> Result<Loaded, Fault> {
    let folder = spec.parent().unwrap_or(Path::new("/"));
    let folders = Folders {
        spec: folder,
        home: context.home,
        config: context.config,
    };
    let mut warnings = Vec::new();
    let mut fields = Fields::new(root(text)?, "the spec".to_owned(), KEYS)?;
    let name = name(&mut fields)?;
    let image = fields.take_as("image", |node, key| {
        image::image(node, key, "the spec", folders, &mut warnings)
    })?;
    let mut named = Vec::new();
    let mut network = match fields.take("network") {
        Some(node) => network(node, folders, &mut named, &mut warnings)?,
        None => Network {
            mode: NetworkMode::Auto,
            subnet: None,
            ipv6: Ipv6Wish::Chosen,
            uplink: true,
            domain: DOMAIN.to_owned(),
            told: Told::default(),
            fixed: BTreeMap::new(),
        },
    };
    let volume_group = match fields.take("storage") {
        Some(node) => Some(storage::storage(node)?),
        None => None,
    };
    let authorized_keys = match fields.take("ssh") {
        Some(node) => public_keys(node, folders)?,
        None => Vec::new(),
    };
    let (vars, _) = vars::take(&mut fields, folders)?;
    let groups = match fields.take("machines") {
        None => return Err(fields.missing("machines")),
        Some(node) => {
            let place = node.place;
            let groups = fields::map(node, "machines")?;
            if groups.is_empty() {
                return Err(Fault::bad_value(place, "machines", "there is no group"));
            }
            groups
        }
    };
    if let Some(group) = context
        .scale
        .said
        .keys()
        .find(|name| !groups.iter().any(|(key, _)| key.text == name.as_str()))
    {
        return Err(unknown_group(group, &groups));
    }
    let defaults = Defaults {
        image: image.as_ref(),
        arch: context.host_arch,
        folders,
        scale: context.scale,
        vars: &vars,
        set: context.set,
    };
    let mut machines = Vec::new();
    let mut scale = BTreeMap::new();
    let mut fixed = Vec::new();
    for (key, node) in groups {
        let group = group::group(&key, node, defaults, &mut warnings)?;
        scale.extend(group.scaled.map(|count| (group.name, count)));
        fixed.extend(group.fixed);
        machines.extend(group.machines);
    }
    group::refuse_duplicates(&machines)?;
    network.fixed = fixed::settle(fixed, &network)?;
    told::settle(&network, name.as_str(), &named, &machines)?;
    port::refuse_clashes(&machines)?;
    disks::refuse_shared_files(&machines)?;
    profile::refuse_different(&machines)?;
    profile::refuse_apart(&machines, &network.mode)?;
    Ok(Loaded {
        cluster: Cluster {
            name,
            spec: spec.to_owned(),
            folder: folder.to_owned(),
            network,
            volume_group,
            authorized_keys,
            scale,
            set: context.set.clone(),
            machines: machines.into_iter().map(|placed| placed.machine).collect(),
        },
        warnings,
    })
}

fn unknown_group(group: &MachineName, groups: &[(document::Key, Node)]) -> Fault {
    let names: Vec<&str> = groups.iter().map(|(key, _)| key.text.as_str()).collect();
    Fault {
        place: None,
        problem: Problem::UnknownGroup {
            group: group.to_string(),
        },
        hint: Some(match suggest::nearest(group.as_str(), &names) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("the spec has {}", suggest::list(&names)),
        }),
    }
}

/// `named` gets the places of the names of `hosts`.
fn network(
    node: Node,
    folders: Folders<'_>,
    named: &mut Vec<Place>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<Network, Fault> {
    let place = node.place;
    let mut fields = Fields::new(node, "`network`".to_owned(), NETWORK_KEYS)?;
    let leases = fields.take("leases");
    let mode = fields.take_as("mode", network::mode)?;
    let mode = network::with_leases(mode.unwrap_or(NetworkMode::Auto), leases, folders)?;
    let subnet = fields.take_as("subnet", |node, key| {
        let place = node.place;
        if matches!(mode, NetworkMode::Attach { .. }) {
            let why = "whoever owns the bridge gives the addresses there";
            return Err(Fault::bad_value(place, key, why).hint("leave it out"));
        }
        let text = fields::text(node, key)?;
        let subnet = subnet(place, &text)?;
        if !subnet.addr().is_private() {
            warnings.push(SpecWarning::PublicSubnet { place });
        }
        Ok(subnet)
    })?;
    network::refuse_what_is_not_told(&mode, &mut fields)?;
    let ipv6 = fields.take_as("ipv6", |node, key| {
        let place = node.place;
        let wish = ipv6(node, key)?;
        let ours = matches!(
            mode,
            NetworkMode::Auto | NetworkMode::Namespace | NetworkMode::Fabric
        );
        if matches!(wish, Ipv6Wish::Fixed(_)) && !ours {
            let why = "kiln gives no IPv6 addresses in this `mode`";
            return Err(Fault::bad_value(place, key, why).hint("leave it out"));
        }
        Ok(wish)
    })?;
    let uplink = fields.take_as("uplink", |node, key| fields::boolean(&node, key))?;
    let domain = fields.take_as("domain", told::domain)?;
    let (told, names) = told::told(&mut fields, uplink == Some(false))?;
    told::refuse_far_routes(place, &told.routes, subnet)?;
    named.extend(names);
    Ok(Network {
        mode,
        subnet,
        ipv6: ipv6.unwrap_or(Ipv6Wish::Chosen),
        uplink: uplink.unwrap_or(true),
        domain: domain.unwrap_or_else(|| DOMAIN.to_owned()),
        told,
        fixed: BTreeMap::new(),
    })
}

/// `true`, `false`, or a network.
fn ipv6(node: Node, key: &str) -> Result<Ipv6Wish, Fault> {
    match node.value {
        Value::Bool(true) => return Ok(Ipv6Wish::Chosen),
        Value::Bool(false) => return Ok(Ipv6Wish::Off),
        Value::Text(_) => {}
        Value::Nothing | Value::Number(_) | Value::List(_) | Value::Map(_) => {
            return Err(fields::wrong_type(
                &node,
                key,
                "`true`, `false` or a network",
            ));
        }
    }
    let place = node.place;
    let text = fields::text(node, key)?;
    let shown: String = text.chars().take(80).collect();
    let net = text
        .parse()
        .ok()
        .and_then(|net| Some(Subnet6::new(net).ok()?.net()));
    net.map(Ipv6Wish::Fixed).ok_or_else(|| {
        let why = format!(
            "`{shown}` is not a /64 of unique local addresses, such as `fd12:3456:789a::/64`"
        );
        Fault::bad_value(place, key, why)
    })
}

fn subnet(place: Place, text: &str) -> Result<Ipv4Net, Fault> {
    let wrong = |reason: String| Fault::bad_value(place, "subnet", reason);
    let shown: String = text.chars().take(80).collect();
    let subnet: Ipv4Net = text.parse().map_err(|_| {
        wrong(format!(
            "`{shown}` is not an IPv4 network such as `10.80.1.0/24`"
        ))
    })?;
    if !PREFIX_LENGTHS.contains(&subnet.prefix_len()) {
        return Err(wrong(format!(
            "the prefix has to be between /{} and /{}, not /{}",
            PREFIX_LENGTHS.start(),
            PREFIX_LENGTHS.end(),
            subnet.prefix_len()
        )));
    }
    if subnet.addr() != subnet.network() {
        return Err(wrong(format!(
            "`{shown}` is an address in a network; the network is `{}`",
            subnet.trunc()
        )));
    }
    let address = subnet.addr();
    let first = address.octets()[0];
    if first == 0 || first >= 224 || address.is_loopback() || address.is_link_local() {
        return Err(wrong(format!("`{shown}` cannot be a network of machines")));
    }
    Ok(subnet)
}

/// `ssh.key`: one file of public keys, or a list of such files.
fn public_keys(node: Node, folders: Folders<'_>) -> Result<Vec<String>, Fault> {
    let mut fields = Fields::new(node, "`ssh`".to_owned(), SSH_KEYS)?;
    let Some(node) = fields.take("key") else {
        return Ok(Vec::new());
    };
    let files = if matches!(node.value, Value::List(_)) {
        fields::list(node, "key")?
    } else {
        vec![node]
    };
    let mut lines: Vec<String> = Vec::new();
    for node in files {
        let place = node.place;
        let path = folders.resolve(place, "key", &fields::text(node, "key")?)?;
        let text = files::text(&path, KEY_FILE_LIMIT).map_err(files::fault(place, "key"))?;
        for line in key_lines(place, &path, &text)? {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    Ok(lines)
}

fn key_lines(place: Place, path: &Path, text: &str) -> Result<Vec<String>, Fault> {
    let wrong = |reason: String| Fault::bad_value(place, "key", reason);
    if text.contains("PRIVATE KEY-----") {
        return Err(wrong(format!(
            "`{}` is a private key; a machine gets only public ones",
            path.display()
        ))
        .hint(format!("did you mean `{}.pub`?", path.display())));
    }
    let lines: Vec<String> = text
        .lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(index, line)| {
            keys::check_public(line).map_err(|error| {
                wrong(format!(
                    "line {} of `{}`: {error}",
                    index + 1,
                    path.display()
                ))
            })
        })
        .collect::<Result<_, _>>()?;
    if lines.is_empty() {
        return Err(wrong(format!("`{}` holds no key", path.display())));
    }
    Ok(lines)
}
