//! What a link needs that becomes a port of a bridge which is not kiln's, and what that bridge is.
//!
//! A bridge takes its own MAC and MTU from its ports, unless somebody has set them: the lowest of each. So a port must
//! come with the bridge's own, or it would change a bridge that is not kiln's to change.

use ipnet::Ipv4Net;
use macaddr::MacAddr6;

use super::{
    AF_INET, DO, IFLA_ADDRESS, IFLA_IFALIAS, IFLA_INFO_KIND, IFLA_LINKINFO, RTA_DST, RTA_OIF,
    RTM_GETROUTE, RTM_NEWLINK, RTM_NEWROUTE, RTM_SETLINK, Route, ifinfo,
};
use crate::ether::{ip_at, mac_at};
use crate::name::IfName;
use crate::netlink::message::{Attributes, Message, Received, u32_at};
use crate::netlink::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkError};

const IFLA_MTU: u16 = 4;
/// The kernel's table of the host's own addresses, whose routes are none to others.
const RT_TABLE_LOCAL: u8 = 255;
const RTN_UNICAST: u8 = 1;
const IFF_UP: u32 = 1;

/// A link of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// What it is: `bridge`, say; empty for a device.
    pub kind: String,
    /// Whether it is set up.
    pub up: bool,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its MAC, if it has one.
    pub mac: Option<MacAddr6>,
}

/// A way to a network that the host knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Where to; never a default route.
    pub net: Ipv4Net,
    /// The number of the link that leads there; absent where several do.
    pub link: Option<u32>,
}

impl Route {
    /// What the link called `name` is, if there is one.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn describe(&mut self, name: &IfName) -> Result<Option<Link>, NetlinkError> {
        self.find(name, parse_link)
    }

    /// Makes `name` fit to be a port: its MAC, its MTU, and the text that says whose it is.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn fit(
        &mut self,
        name: &IfName,
        mac: MacAddr6,
        mtu: u32,
        alias: &str,
    ) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = Message::new(RTM_SETLINK, DO)
            .fixed(&ifinfo(0, index, 0, 0))
            .with(IFLA_ADDRESS, mac.as_bytes())
            .with(IFLA_MTU, &mtu.to_ne_bytes())
            .with(IFLA_IFALIAS, alias.as_bytes());
        self.0.ask(|| format!("mark link `{name}`"), message)
    }

    /// The networks that IPv4 routes of the host lead to, in all tables but for its own addresses'.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn destinations(&mut self) -> Result<Vec<Destination>, NetlinkError> {
        let mut found = Vec::new();
        let mut fixed = [0; 12];
        fixed[0] = AF_INET;
        let message = Message::new(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP).fixed(&fixed);
        self.0.dump(
            || "list routes".to_owned(),
            message,
            |answer| found.extend(destination(answer.kind, answer.payload)),
        )?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// What a message of type `kind` says of a route, unless it is a default route or leads nowhere else.
pub(super) fn destination(kind: u16, payload: &[u8]) -> Option<Destination> {
    const RTM_DELROUTE: u16 = RTM_NEWROUTE + 1;
    let fixed = payload.first_chunk::<12>()?;
    let [family, prefix, _, _, table, _, _, way, ..] = *fixed;
    let is_one = matches!(kind, RTM_NEWROUTE | RTM_DELROUTE)
        && (family, way) == (AF_INET, RTN_UNICAST)
        && table != RT_TABLE_LOCAL
        && prefix > 0;
    let attributes = Attributes(payload.get(12..)?);
    let to = attributes.find(RTA_DST).filter(|_| is_one)?;
    Some(Destination {
        net: Ipv4Net::new(ip_at(to, 0)?, prefix).ok()?.trunc(),
        link: attributes.find(RTA_OIF).and_then(|index| u32_at(index, 0)),
    })
}

fn parse_link(answer: &Received<'_>) -> Option<Link> {
    if answer.kind != RTM_NEWLINK {
        return None;
    }
    let attributes = Attributes(answer.payload.get(16..)?);
    let kind = attributes
        .find(IFLA_LINKINFO)
        .and_then(|info| Attributes(info).find(IFLA_INFO_KIND))
        .unwrap_or_default();
    Some(Link {
        index: u32_at(answer.payload, 4)?,
        kind: String::from_utf8_lossy(kind)
            .trim_end_matches('\0')
            .to_owned(),
        up: u32_at(answer.payload, 8)? & IFF_UP != 0,
        mtu: attributes.find(IFLA_MTU).and_then(|mtu| u32_at(mtu, 0))?,
        mac: attributes.find(IFLA_ADDRESS).and_then(|mac| mac_at(mac, 0)),
    })
}
