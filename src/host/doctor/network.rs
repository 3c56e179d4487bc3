//! How machines can be joined here, and how they get out.

use std::fs;

use super::{Check, Status};
use crate::host::distribution::{Distribution, Piece};
use crate::host::namespace;
use crate::host::probe::Host;

/// Where a range of groups stands whose members may ping without root.
const PING: &str = "net/ipv4/ping_group_range";

pub(super) fn examine(host: &Host) -> Vec<Check> {
    let mut checks = vec![joined(host)];
    if !host.is_root() {
        let found = [
            ("pasta", &host.tools.pasta),
            ("slirp4netns", &host.tools.slirp4netns),
        ];
        let found = found
            .into_iter()
            .find_map(|(name, path)| Some(format!("{name}, {}", path.as_ref()?.display())));
        checks.push(way_out(found, host.distribution));
    }
    if host.is_root() {
        checks.push(bridges(super::super::bridge::all()));
    }
    checks.push(ping(sysctl(PING).as_deref(), host.gid, host.is_root()));
    checks
}

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()
}

fn joined(host: &Host) -> Check {
    let name = "network namespace".to_owned();
    match namespace::try_out(host.uid, host.gid) {
        Ok(()) => Check {
            name,
            status: Status::Ok,
            found: "one was made, with a bridge, a tap and packet rules".to_owned(),
            remedy: None,
        },
        Err(refusal) => Check {
            name,
            status: Status::Warn,
            found: format!("{}; clusters are joined by the fabric", refusal.why()),
            remedy: refusal.remedy(sysctl),
        },
    }
}

fn way_out(found: Option<String>, distribution: Distribution) -> Check {
    let name = "way out".to_owned();
    match found {
        Some(found) => Check {
            name,
            status: Status::Ok,
            found,
            remedy: None,
        },
        None => Check {
            name,
            status: Status::Warn,
            found: "neither `pasta` nor `slirp4netns` is installed; QEMU's own user network does it, with 35 MB for each cluster".to_owned(),
            remedy: distribution.install(Piece::Pasta),
        },
    }
}

/// Those that machines can be attached to. None is no lack: few want one.
fn bridges(found: Result<Vec<String>, String>) -> Check {
    let (status, found) = match found {
        Ok(names) if names.is_empty() => (
            Status::Ok,
            "none on this host that machines could be attached to".to_owned(),
        ),
        Ok(names) => (
            Status::Ok,
            format!("machines can be attached to {}", names.join(", ")),
        ),
        Err(why) => (Status::Warn, why),
    };
    Check {
        name: "bridges".to_owned(),
        status,
        found,
        remedy: None,
    }
}

/// `range` is what the kernel says: the first group that may, and the last.
fn ping(range: Option<&str>, gid: u32, is_root: bool) -> Check {
    let name = "ping".to_owned();
    let mut ends = range
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|end| end.parse::<u32>().ok());
    let may = match (ends.next(), ends.next()) {
        (Some(first), Some(last)) => (first..=last).contains(&gid),
        _ => false,
    };
    if may {
        return Check {
            name,
            status: Status::Ok,
            found: "machines can ping the world".to_owned(),
            remedy: None,
        };
    }
    let only = if is_root { " of the fabric" } else { "" };
    Check {
        name,
        status: Status::Warn,
        found: format!("machines{only} cannot ping the world: the kernel lets group {gid} not"),
        remedy: Some("sysctl net.ipv4.ping_group_range=\"0 2147483647\"".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_within_the_range_may_ping() {
        for (range, status) in [
            (Some("0\t2147483647\n"), Status::Ok),
            (Some("1000\t1000\n"), Status::Ok),
            (Some("1\t0\n"), Status::Warn),
            (Some("garbage"), Status::Warn),
            (None, Status::Warn),
        ] {
            assert_eq!(ping(range, 1000, false).status, status, "{range:?}");
        }
    }

    #[test]
    fn bridges_are_named() {
        let of = |found| bridges(found).found;
        assert!(of(Ok(Vec::new())).starts_with("none"));
        assert!(of(Ok(vec!["br0".to_owned()])).ends_with("to br0"));
        assert_eq!(bridges(Err(String::new())).status, Status::Warn);
    }

    #[test]
    fn without_a_helper_the_way_out_is_qemu_s() {
        let check = way_out(None, Distribution::Debian);
        assert_eq!(check.status, Status::Warn);
        assert_eq!(check.remedy.as_deref(), Some("apt-get install passt"));
        assert_eq!(
            way_out(Some(String::new()), Distribution::Debian).status,
            Status::Ok
        );
    }
}
