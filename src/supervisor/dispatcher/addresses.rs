//! What was seen of machines' addresses and wires: kept with the machine, and told.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use kiln_netsetup::lease::Source;
use kiln_netsetup::lease::book::{Change, Loss};
use kiln_netsetup::link::watch::LinkNews;

use super::Dispatcher;
use crate::state::record::{SeenRecord, SourceRecord};
use crate::supervisor::machine::Event;
use crate::supervisor::routes::Overlap;

/// Between two leases of one machine that are told.
const LEASE_PAUSE: Duration = Duration::from_secs(1);
/// Addresses that a machine has left and that are remembered: no report names as many.
const LOST: usize = 64;

impl Dispatcher {
    /// kiln's own DHCP gave the machine its address, for the first time or again.
    pub(super) fn leased(&mut self, name: &str, ip: IpAddr) {
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        let now = Instant::now();
        let recent = |at: Instant| now.duration_since(at) < LEASE_PAUSE;
        if !slot.leased.is_some_and(recent) {
            let word = match slot.leased.replace(now) {
                None => "gained",
                Some(_) => "renewed",
            };
            self.tell("lease", Some(name), format!("{word} {ip} (lease)"));
        }
        self.seen(name, ip, SourceRecord::Lease);
    }

    /// A machine's addresses changed, on a network where another one gives them.
    pub(super) fn of_address(&mut self, name: &str, change: Change) {
        let Some(slot) = self.slots.get_mut(name) else {
            return;
        };
        let (ip, seen) = match change {
            Change::Gained {
                ip, source, time, ..
            } => (ip, Some((source, time))),
            Change::Renewed { ip, time } => (ip, Some((Source::Lease, time))),
            Change::Lost { ip, .. } => (ip, None),
        };
        slot.seen.retain(|seen| seen.ip != ip);
        slot.lost.retain(|lost| *lost != ip);
        match seen {
            Some((source, time)) => {
                let seen = SeenRecord {
                    ip,
                    source: match source {
                        Source::Lease => SourceRecord::Lease,
                        Source::Frames => SourceRecord::Frames,
                    },
                    expires: time.and_then(expiry),
                };
                // IPv4 first.
                let at = match ip {
                    IpAddr::V4(_) => slot.seen.iter().filter(|seen| seen.ip.is_ipv4()).count(),
                    IpAddr::V6(_) => slot.seen.len(),
                };
                slot.seen.insert(at, seen);
            }
            // What the machine reported once is not true any more.
            None => {
                slot.lost.push(ip);
                // A machine may lose as many as it likes.
                if slot.lost.len() > LOST {
                    slot.lost.remove(0);
                }
            }
        }
        self.tell("lease", Some(name), told(&change));
        match change {
            Change::Renewed { .. } => self.write_soon(name),
            Change::Gained { .. } | Change::Lost { .. } => self.feed(name, Event::AddressSeen),
        }
    }

    /// A wire was plugged in, or out.
    pub(super) fn of_link(&mut self, news: &LinkNews) {
        let link = news.link.as_ref();
        let detail = match link {
            Some(link) => format!("{link} is {}", news.how),
            None => news.how.to_string(),
        };
        self.tell("link", news.machine.as_deref(), detail);
    }

    /// The routes of the host that overlap the cluster's subnet are now these.
    pub(super) fn of_routes(&mut self, overlaps: Vec<Overlap>) {
        let before = std::mem::replace(&mut self.overlaps, overlaps);
        for overlap in self.overlaps.clone() {
            if !before.contains(&overlap) {
                let detail = format!("{overlap} overlaps {}", self.record.subnet);
                tracing::warn!("a route of the host's, {detail}");
                self.tell("route", None, detail);
            }
        }
        for overlap in before {
            if !self.overlaps.contains(&overlap) {
                self.tell("route", None, format!("{overlap} is gone"));
            }
        }
    }

    /// What is wrong with the cluster's network as a whole, a sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let subnet = self.record.subnet;
        let note = |overlap: &Overlap| {
            format!(
                "the host's route to {overlap} overlaps the cluster's subnet {subnet}: what is behind it is out of the machines' reach, or they out of the host's"
            )
        };
        self.overlaps.iter().map(note).collect()
    }

    /// Where the machine is to be reached, as far as that is learned.
    pub(super) fn reach(&mut self, name: &str) {
        let Some(slot) = self.slots.get(name) else {
            return;
        };
        let ip = SeenRecord::newest(&slot.status().addresses);
        self.network
            .learned(name, ip.filter(|_| slot.machine.is_alive()));
    }
}

fn expiry(time: Duration) -> Option<String> {
    let at = SystemTime::now().checked_add(time)?;
    Some(humantime::format_rfc3339_seconds(at).to_string())
}

/// In words; the first one is always one of three.
fn told(change: &Change) -> String {
    let span = |time: &Option<Duration>| match time {
        Some(time) => format!(" for {}", humantime::format_duration(*time)),
        None => String::new(),
    };
    match change {
        Change::Gained {
            ip,
            source: Source::Lease,
            time,
            server,
        } => {
            let by = server.map_or_else(String::new, |server| format!(", from {server}"));
            format!("gained {ip} (lease{}{by})", span(time))
        }
        Change::Gained {
            ip,
            source: Source::Frames,
            ..
        } => format!("gained {ip} (frames)"),
        Change::Renewed { ip, time } => format!("renewed {ip} (lease{})", span(time)),
        Change::Lost { ip, why } => format!("lost {ip} ({})", Loss::word(*why)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn changes_are_told_in_words_that_begin_alike() {
        let ip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 5));
        let minutes = Some(Duration::from_secs(120));
        let server = Some(Ipv4Addr::new(192, 0, 2, 1));
        let gained = |source, time, server| Change::Gained {
            ip,
            source,
            time,
            server,
        };
        for (change, want) in [
            (
                gained(Source::Lease, minutes, server),
                "gained 192.0.2.5 (lease for 2m, from 192.0.2.1)",
            ),
            (
                gained(Source::Lease, None, None),
                "gained 192.0.2.5 (lease)",
            ),
            (
                gained(Source::Frames, None, None),
                "gained 192.0.2.5 (frames)",
            ),
            (
                Change::Renewed { ip, time: minutes },
                "renewed 192.0.2.5 (lease for 2m)",
            ),
            (
                Change::Lost {
                    ip,
                    why: Loss::Released,
                },
                "lost 192.0.2.5 (released)",
            ),
        ] {
            assert_eq!(told(&change), want);
        }
    }
}
