//! Routes of the host that overlap the cluster's subnet: none did when it was chosen, but a VPN may come later.
//!
//! The kernel tells of each change; what it means is then looked up anew, so that nothing is missed for long.

use ipnet::Ipv4Net;
use kiln_netsetup::netlink::NetlinkError;
use kiln_netsetup::netlink::route::Route;
use kiln_netsetup::netlink::route::monitor::{Group, Monitor, Word};
use tokio::sync::mpsc;

use crate::error::in_one_line;
use crate::state::record::{ClusterRecord, WayOutRecord};
use crate::supervisor::message::Message;

/// A route that is in the way of the cluster's subnet, or the other way round.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Overlap {
    net: Ipv4Net,
    /// By which link of the host's; absent where several lead there.
    link: Option<String>,
}

impl std::fmt::Display for Overlap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Overlap { net, link } = self;
        match link {
            Some(link) => write!(f, "{net} by link {link}"),
            None => write!(f, "{net}"),
        }
    }
}

/// Begins to watch for as long as the loop takes messages; a cluster without a subnet has nothing to fear.
pub(super) fn watch(record: &ClusterRecord, inbox: mpsc::Sender<Message>) {
    let Some(subnet) = record.own_subnet() else {
        return;
    };
    let own = match &record.way_out {
        WayOutRecord::Host { link } => Some(link.clone()),
        WayOutRecord::Qemu
        | WayOutRecord::Helper { .. }
        | WayOutRecord::Bridge { .. }
        | WayOutRecord::Nowhere
        | WayOutRecord::Own => None,
    };
    drop(tokio::spawn(async move {
        if let Err(error) = follow(subnet, own.as_deref(), &inbox).await {
            let error = in_one_line(&*error);
            tracing::warn!(error, "changes of the host's routes are not told");
        }
    }));
}

async fn follow(
    subnet: Ipv4Net,
    own: Option<&str>,
    inbox: &mpsc::Sender<Message>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // First it listens and then it looks, so that nothing comes in between.
    let mut monitor = Monitor::here(Group::LinksAndRoutes)?;
    let mut known = Vec::new();
    loop {
        let now = look(subnet, own)?;
        if now != known {
            known.clone_from(&now);
            if inbox.send(Message::Routes(now)).await.is_err() {
                return Ok(());
            }
        }
        loop {
            let matters = |word: &Word| match word {
                Word::Route(to) => overlaps(subnet, to.net),
                Word::Missed => true,
                // A link that is set down takes its routes with it, of which no word is said.
                Word::Link(_) | Word::LinkGone(_) => !known.is_empty(),
            };
            if monitor.next().await?.iter().any(matters) {
                break;
            }
        }
    }
}

fn look(subnet: Ipv4Net, own: Option<&str>) -> Result<Vec<Overlap>, NetlinkError> {
    let mut route = Route::here()?;
    let mut found = route.destinations()?;
    found.retain(|to| overlaps(subnet, to.net));
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let links = route.links()?;
    let name = |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        link.map(|link| link.name.to_string())
    };
    let mut overlaps: Vec<Overlap> = found
        .into_iter()
        .map(|to| Overlap {
            net: to.net,
            link: to.link.and_then(name),
        })
        .filter(|overlap| own.is_none() || overlap.link.as_deref() != own)
        .collect();
    overlaps.sort();
    overlaps.dedup();
    Ok(overlaps)
}

fn overlaps(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}
