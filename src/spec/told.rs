//! What `network:` has DHCP and DNS tell the machines.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use kiln_netsetup::dns;
use kiln_netsetup::settings::Route;

use super::document::{Node, Value};
use super::error::{Fault, Place};
use super::fields::{self, Fields, Keys};
use super::group::PlacedMachine;
use crate::cluster::Network;
use crate::cluster::told::Told;

/// Below the least, IPv6 does not work (RFC 8200, section 5); above the most, no switch of a real network carries it.
const MTU: std::ops::RangeInclusive<u16> = 1280..=9000;
/// Addresses of one name: so many fit an answer.
const ADDRESSES: usize = 8;
/// Names at most.
const HOSTS: usize = 1000;
/// Routes fit one option of DHCP (255 bytes), with the default one and at most 9 bytes each.
const ROUTES: usize = 16;
/// A domain's labels, each with its dot, come to this (RFC 1035, 2.3.4), with room for a machine's and the cluster's.
const DOMAIN_LIMIT: usize = 128;
const NAME_LIMIT: usize = 200;

const ROUTE_KEYS: Keys = Keys {
    known: &["to", "via"],
    not_built: &[],
};

/// Takes the keys that are of this; `isolated` is whether the network has no way out.
pub(super) fn told(fields: &mut Fields, isolated: bool) -> Result<(Told, Vec<Place>), Fault> {
    let mtu = fields.take_as("mtu", |node, key| {
        fields::integer(&node, key, *MTU.start(), *MTU.end())
    })?;
    let dns = fields.take_as("dns", |node, key| {
        if isolated {
            let why = "in a network without an uplink nobody is asked";
            return Err(Fault::bad_value(node.place, key, why));
        }
        servers(node, key)
    })?;
    let mut places = Vec::new();
    let hosts = fields.take_as("hosts", |node, key| hosts(node, key, &mut places))?;
    let routes = fields.take_as("routes", routes)?;
    let told = Told {
        mtu,
        dns: dns.unwrap_or_default(),
        hosts: hosts.unwrap_or_default(),
        routes: routes.unwrap_or_default(),
    };
    Ok((told, places))
}

/// The domain that clusters lie in.
pub(super) fn domain(node: Node, key: &str) -> Result<String, Fault> {
    let place = node.place;
    name(place, key, &fields::text(node, key)?, DOMAIN_LIMIT)
}

fn name(place: Place, key: &str, text: &str, limit: usize) -> Result<String, Fault> {
    let shown: String = text.chars().take(80).collect();
    let wrong = |why: &str| Fault::bad_value(place, key, format!("`{shown}` {why}"));
    if text.len() > limit {
        return Err(wrong("is too long"));
    }
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(allowed)
    };
    if !text.split('.').all(is_label) {
        return Err(wrong("is not a name in DNS"));
    }
    Ok(text.to_ascii_lowercase())
}

/// One or a list; each is an address, or an address and a port.
fn servers(node: Node, key: &str) -> Result<Vec<SocketAddr>, Fault> {
    let server = |node: Node| {
        let place = node.place;
        let text = fields::text(node, key)?;
        let shown: String = text.chars().take(80).collect();
        let bare = text.parse::<IpAddr>().map(|ip| (ip, dns::PORT).into());
        let server: SocketAddr = bare.or_else(|_| text.parse()).map_err(|_| {
            let why = format!("`{shown}` is no address of a name server");
            Fault::bad_value(place, key, why)
        })?;
        if server.ip().is_unspecified() || server.ip().is_multicast() || server.port() == 0 {
            let why = format!("`{shown}` is no name server's");
            return Err(Fault::bad_value(place, key, why));
        }
        Ok(server)
    };
    one_or_more(node, key)?.into_iter().map(server).collect()
}

fn one_or_more(node: Node, key: &str) -> Result<Vec<Node>, Fault> {
    match node.value {
        Value::List(_) => fields::list(node, key),
        Value::Nothing | Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::Map(_) => {
            Ok(vec![node])
        }
    }
}

/// `NAME: ADDRESS` or a list of addresses; `places` gets where each name stands, in the order of the names.
fn hosts(
    node: Node,
    key: &str,
    places: &mut Vec<Place>,
) -> Result<BTreeMap<String, Vec<IpAddr>>, Fault> {
    let place = node.place;
    let mut hosts = BTreeMap::new();
    for (said, node) in fields::map(node, key)? {
        let bare = said.text.strip_prefix("*.").unwrap_or(&said.text);
        let mut host = name(said.place, key, bare, NAME_LIMIT)?;
        if bare != said.text {
            host.insert_str(0, "*.");
        }
        let own = node.place;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for node in one_or_more(node, key)? {
            let address = host_address(node, key)?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if !(1..=ADDRESSES).contains(&addresses.len()) {
            let why = format!("a name has 1 to {ADDRESSES} addresses");
            return Err(Fault::bad_value(own, key, why));
        }
        if hosts.insert(host, (said.place, addresses)).is_some() {
            let why = format!("`{}` stands here a second time", said.text);
            return Err(Fault::bad_value(said.place, key, why));
        }
    }
    if hosts.len() > HOSTS {
        let why = format!("there are {} names, {HOSTS} are the most", hosts.len());
        return Err(Fault::bad_value(place, key, why));
    }
    places.extend(hosts.values().map(|(place, _)| *place));
    let bare = hosts.into_iter().map(|(name, (_, ips))| (name, ips));
    Ok(bare.collect())
}

fn host_address(node: Node, key: &str) -> Result<IpAddr, Fault> {
    let place = node.place;
    let text = fields::text(node, key)?;
    let shown: String = text.chars().take(80).collect();
    let ip: IpAddr = text
        .parse()
        .map_err(|_| Fault::bad_value(place, key, format!("`{shown}` is not an IP address")))?;
    Ok(ip)
}

fn routes(node: Node, key: &str) -> Result<Vec<Route>, Fault> {
    let place = node.place;
    let mut routes: Vec<Route> = Vec::new();
    for node in fields::list(node, key)? {
        let place = node.place;
        let mut fields = Fields::new(node, "a route".to_owned(), ROUTE_KEYS)?;
        let to = fields.take("to").ok_or_else(|| fields.missing("to"))?;
        let via = fields.take("via").ok_or_else(|| fields.missing("via"))?;
        let route = Route {
            to: parsed(to, "to", "an IPv4 network such as `10.1.0.0/16`")?,
            via: parsed(via, "via", "an IPv4 address")?,
        };
        if route.to.addr() != route.to.network() {
            let meant = route.to.trunc();
            let why = format!("`{}` is an address in a network, `{meant}`", route.to);
            return Err(Fault::bad_value(place, key, why));
        }
        if route.to.prefix_len() == 0 {
            return Err(Fault::bad_value(
                place,
                key,
                "the default route is kiln's, or with `uplink: false` nobody's",
            ));
        }
        if routes.iter().any(|other| other.to == route.to) {
            let why = format!("`{}` has a route already", route.to);
            return Err(Fault::bad_value(place, key, why));
        }
        routes.push(route);
    }
    if routes.len() > ROUTES {
        let why = format!("there are {} routes, {ROUTES} are the most", routes.len());
        return Err(Fault::bad_value(place, key, why));
    }
    Ok(routes)
}

fn parsed<T: std::str::FromStr>(node: Node, key: &str, want: &str) -> Result<T, Fault> {
    let place = node.place;
    let text = fields::text(node, key)?;
    let shown: String = text.chars().take(80).collect();
    text.parse()
        .map_err(|_| Fault::bad_value(place, key, format!("`{shown}` is not {want}")))
}

/// What holds between the network and its machines: no name stands for two things, and a route leads by somebody who
/// can be reached. `places` are those of the names.
pub(super) fn settle(
    network: &Network,
    cluster: &str,
    places: &[Place],
    machines: &[PlacedMachine],
) -> Result<(), Fault> {
    for (host, place) in network.told.hosts.keys().zip(places) {
        let below = host.strip_suffix(&format!(".{cluster}.{}", network.domain));
        let bare = below.unwrap_or(host);
        if machines.iter().any(|it| it.machine.name.as_str() == bare) {
            let why = format!("`{host}` is a machine's name");
            return Err(Fault::bad_value(*place, "hosts", why));
        }
    }
    Ok(())
}

/// Whether a route's `via` is in the subnet that the spec names. One that kiln chooses nobody can know.
pub(super) fn refuse_far_routes(
    place: Place,
    routes: &[Route],
    subnet: Option<Ipv4Net>,
) -> Result<(), Fault> {
    let Some(route) = routes.first() else {
        return Ok(());
    };
    let Some(subnet) = subnet else {
        let why = format!("`via: {}` needs a `subnet` that it lies in", route.via);
        return Err(Fault::bad_value(place, "routes", why).hint("else kiln chooses one"));
    };
    let is_near = |via: Ipv4Addr| {
        subnet.contains(&via) && via != subnet.network() && via != subnet.broadcast()
    };
    match routes.iter().find(|route| !is_near(route.via)) {
        None => Ok(()),
        Some(route) => {
            let why = format!("`via: {}` is no host's in `subnet` {subnet}", route.via);
            Err(Fault::bad_value(place, "routes", why))
        }
    }
}
