//! Root's way out: a pair of links between the cluster's namespace and the host, and the host's own NAT.
//!
//! The host's end has the subnet's second address and the route to the subnet, so the host reaches each machine by its
//! address. What is made on the host is marked as this cluster's and named after it; a link of somebody else's is left
//! alone. Routing is allowed on this link and on those of the default routes, and on no others, and packet rules keep
//! whoever is outside from using it: the host does not become a router for them.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use ipnet::Ipv4Net;

use super::{BRIDGE, Bridge, BridgeError, UPLINK, name};
use crate::address::Subnet;
use crate::link::{Present, Step};
use crate::name::IfName;
use crate::namespace;
use crate::nat;
use crate::netlink::NetlinkError;
use crate::netlink::nft::{Family, Rules};
use crate::netlink::route::{Route, Way};

/// Follows the mark of a link for whose sake another one forwards.
const FORWARDS: &str = " forwards=";

/// One cluster's end on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLink {
    /// The link's name: [`nat::HOST_LINK`] and what tells it from other clusters'.
    pub name: IfName,
    /// What marks it as this cluster's, and names the packet rules.
    pub mark: String,
    /// The cluster's subnet.
    pub subnet: Subnet,
}

impl HostLink {
    /// The links of the host that have to forward for the machines to get out, and do not by themselves: those of the
    /// default routes. None where the host is a router anyway. One that another cluster has set so counts, so that the
    /// last one sets it back.
    ///
    /// # Errors
    /// [`BridgeError`].
    pub fn to_forward(&self) -> Result<Vec<IfName>, BridgeError> {
        if is_router().map_err(BridgeError::Host)? {
            return Ok(Vec::new());
        }
        let mut route = Route::here().map_err(BridgeError::Netlink)?;
        let links = route.links().map_err(BridgeError::Netlink)?;
        let indices = route.default_links().map_err(BridgeError::Netlink)?;
        let by_kiln = |link: &Present| {
            let word = format!("{FORWARDS}{}", link.name);
            let mut marks = links.iter().filter_map(|other| other.alias.as_deref());
            marks.any(|mark| mark.starts_with(nat::HOST_LINK) && mark.contains(&word))
        };
        Ok(links
            .iter()
            .filter(|link| indices.contains(&link.index) && (!link.forwards || by_kiln(link)))
            .map(|link| link.name.clone())
            .collect())
    }

    /// Makes what is missing of the way out, and has `forward` forward.
    ///
    /// # Errors
    /// [`BridgeError::Foreign`] where the name is another's.
    pub fn make(&self, bridge: &Bridge, forward: &[IfName]) -> Result<(), BridgeError> {
        let netlink = BridgeError::Netlink;
        let mut outer = Route::here().map_err(netlink)?;
        let mut state = bridge.lock();
        let inner = &mut state.route;
        let (uplink, switch) = (name(UPLINK)?, name(BRIDGE)?);
        let has_inner = inner.link(&uplink).map_err(netlink)?.is_some();
        let found = outer.link(&self.name).map_err(netlink)?;
        let is_ours = |link: &Present| {
            link.alias
                .as_deref()
                .is_some_and(|alias| self.is_mark(alias))
        };
        if let Some(link) = &found
            && !is_ours(link)
        {
            return Err(BridgeError::Foreign {
                link: self.name.clone(),
            });
        }
        if !(has_inner && found.is_some()) {
            // Of a namespace that is on its way out, or a pair that was not finished.
            self.remove_link(&mut outer).map_err(netlink)?;
            if has_inner {
                inner.delete(&uplink).map_err(netlink)?;
            }
            let mut mark = self.mark.clone();
            for link in forward {
                mark.push_str(&format!("{FORWARDS}{link}"));
            }
            // The host's end is marked before it is there, so that no unmarked one is ever left.
            inner.pair(&uplink, &self.name, &mark).map_err(netlink)?;
            let here = namespace::here().map_err(BridgeError::Host)?;
            inner.relocate(&self.name, here.as_fd()).map_err(netlink)?;
        }
        let (gateway, host) = (self.subnet.gateway(), self.subnet.uplink_host());
        inner
            .perform(&Step::Silence(uplink.clone()))
            .map_err(netlink)?;
        inner.up(&uplink).map_err(netlink)?;
        for (to, by) in [
            (Ipv4Net::from(host), None),
            (Ipv4Net::default(), Some(host)),
        ] {
            let way = Way {
                to,
                gateway: by,
                link: uplink.clone(),
                source: gateway,
            };
            inner.route(&way).map_err(netlink)?;
        }
        // To the machines the host's address is one of their own subnet.
        inner.answer_for(&switch, host).map_err(netlink)?;
        drop(state);

        let mut rules = Rules::here().map_err(netlink)?;
        let table = nat::outside(&self.mark, self.subnet, &self.name, forward);
        rules.replace(&[table]).map_err(netlink)?;
        outer.host_address(&self.name, host).map_err(netlink)?;
        outer
            .perform(&Step::Silence(self.name.clone()))
            .map_err(netlink)?;
        outer.up(&self.name).map_err(netlink)?;
        let way = Way {
            to: self.subnet.net(),
            gateway: Some(gateway),
            link: self.name.clone(),
            source: host,
        };
        outer.route(&way).map_err(netlink)?;
        outer.forward(&self.name, true).map_err(netlink)?;
        for link in forward {
            outer.forward(link, true).map_err(netlink)?;
        }
        Ok(())
    }

    fn is_mark(&self, alias: &str) -> bool {
        let rest = alias.strip_prefix(self.mark.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }

    fn remove_link(&self, outer: &mut Route) -> Result<(), NetlinkError> {
        match outer.link(&self.name)? {
            Some(link)
                if link
                    .alias
                    .as_deref()
                    .is_some_and(|alias| self.is_mark(alias)) =>
            {
                outer.delete(&self.name)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Removes link and rules, where they are there and this cluster's. Twice is harmless.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn remove(&self) -> Result<(), NetlinkError> {
        self.remove_link(&mut Route::here()?)?;
        Rules::here()?.remove(Family::Ip, &self.mark)
    }
}

/// Has `link` not forward any more, which kiln had set: unless another cluster needs it, or the host has become a
/// router meanwhile, when it is not kiln's to say.
///
/// # Errors
/// [`BridgeError`].
pub fn stop_forwarding(link: &IfName) -> Result<(), BridgeError> {
    if is_router().map_err(BridgeError::Host)? {
        return Ok(());
    }
    let mut route = Route::here().map_err(BridgeError::Netlink)?;
    let links = route.links().map_err(BridgeError::Netlink)?;
    let ours = |link: &Present| {
        let mark = link.alias.as_deref().unwrap_or_default();
        link.name.as_str().starts_with(nat::HOST_LINK) && mark.starts_with(nat::HOST_LINK)
    };
    let is_there = links.iter().any(|present| present.name == *link);
    if is_there && !links.iter().any(ours) {
        route.forward(link, false).map_err(BridgeError::Netlink)?;
    }
    Ok(())
}

fn is_router() -> io::Result<bool> {
    Ok(fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() != "0")
}
