//! The lease file of a network's own DHCP server, a further source of addresses: dnsmasq's, or libvirt's `.status`.
//!
//! Such a file is rewritten in place, so a reader may find it empty, cut or old at any moment. A lease that it names is
//! taken; one that it does not name any more is not taken away, for its own time ends it, or what is seen on the tap.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use macaddr::MacAddr6;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Deserialize;
use tokio::net::unix::pipe::Receiver;

/// A longer file has leases of other networks, or is none.
const LIMIT: u64 = 4 << 20;

/// One line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) mac: MacAddr6,
    pub(super) ip: IpAddr,
    /// In seconds since 1970; absent: it does not end.
    pub(super) until: Option<u64>,
}

impl Lease {
    /// How much of it is left; `None` when it is over.
    pub(super) fn left(&self, now: SystemTime) -> Option<Option<Duration>> {
        let Some(until) = self.until else {
            return Some(None);
        };
        let until = UNIX_EPOCH.checked_add(Duration::from_secs(until))?;
        let left = until.duration_since(now).ok()?;
        (!left.is_zero()).then_some(Some(left))
    }
}

/// Reads the file now and whenever it changes, and tells what is new in it, for as long as `tell` says so.
pub(super) async fn follow(path: &Path, mut tell: impl FnMut(Lease) -> bool) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    // The folder, since the file may be replaced, or not be there yet.
    inotify.add_watch(
        folder,
        AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR,
    )?;
    let same: OwnedFd = inotify.as_fd().try_clone_to_owned()?;
    let changes = Receiver::from_owned_fd_unchecked(same)?;
    let mut known = HashSet::new();
    loop {
        let leases = read(path);
        // A file that was caught empty is not forgotten for.
        if !leases.is_empty() {
            for lease in &leases {
                if !known.contains(lease) && !tell(*lease) {
                    return Ok(());
                }
            }
            known = leases.into_iter().collect();
        }
        loop {
            changes.readable().await?;
            let mut ours = false;
            while let Ok(events) = inotify.read_events() {
                ours |= events
                    .iter()
                    .any(|event| event.name.as_deref() == path.file_name());
            }
            // The descriptor beside it forgets that it was ready.
            let _ = changes.try_read(&mut [0; 1]);
            if ours {
                break;
            }
        }
    }
}

fn read(path: &Path) -> Vec<Lease> {
    let text = std::fs::metadata(path)
        .ok()
        .filter(|found| found.is_file() && found.len() <= LIMIT)
        .and_then(|_| std::fs::read(path).ok());
    text.map_or_else(Vec::new, |text| parse(&String::from_utf8_lossy(&text)))
}

/// Whichever of the two it is; what cannot be read of it is passed over.
fn parse(text: &str) -> Vec<Lease> {
    if text.trim_start().starts_with('[') {
        return of_libvirt(text);
    }
    text.lines().filter_map(of_dnsmasq).collect()
}

/// `EXPIRY MAC IP NAME ID`; an expiry of 0 is none.
fn of_dnsmasq(line: &str) -> Option<Lease> {
    let mut words = line.split_ascii_whitespace();
    let until: u64 = words.next()?.parse().ok()?;
    Some(Lease {
        mac: words.next()?.parse().ok()?,
        ip: words.next()?.parse().ok()?,
        until: (until > 0).then_some(until),
    })
}

fn of_libvirt(text: &str) -> Vec<Lease> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Entry {
        ip_address: IpAddr,
        mac_address: String,
        #[serde(default)]
        expiry_time: Option<u64>,
    }
    let entries: Vec<serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
    let lease = |entry| {
        let entry: Entry = serde_json::from_value(entry).ok()?;
        Some(Lease {
            mac: entry.mac_address.parse().ok()?,
            ip: entry.ip_address,
            until: entry.expiry_time.filter(|until| *until > 0),
        })
    };
    entries.into_iter().filter_map(lease).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lease(last: u8, until: Option<u64>) -> Lease {
        Lease {
            mac: MacAddr6::new(0xb2, 0x6b, 0, 0, 0, last),
            ip: IpAddr::from([192, 0, 2, last]),
            until,
        }
    }

    #[test]
    fn dnsmasq_s_file_is_read() {
        let text = "1700000000 b2:6b:00:00:00:05 192.0.2.5 node-1 01:b2:6b:00:00:00:05\n\
            0 b2:6b:00:00:00:06 192.0.2.6 * *\n\
            duid 00:01:00:01:2a\n\
            1700000000 torn";
        assert_eq!(parse(text), [lease(5, Some(1_700_000_000)), lease(6, None)]);
    }

    #[test]
    fn libvirt_s_file_is_read() {
        let text = r#"[
            {"ip-address": "192.0.2.5", "mac-address": "b2:6b:00:00:00:05", "hostname": "a", "expiry-time": 1700000000},
            {"ip-address": "none", "mac-address": "b2:6b:00:00:00:07"},
            {"ip-address": "192.0.2.6", "mac-address": "b2:6b:00:00:00:06"}
        ]"#;
        assert_eq!(parse(text), [lease(5, Some(1_700_000_000)), lease(6, None)]);
        assert!(parse(&text[..100]).is_empty());
    }

    #[test]
    fn a_lease_has_what_is_left_of_its_time() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let five = lease(5, Some(100));
        assert_eq!(five.left(at(40)), Some(Some(Duration::from_secs(60))));
        assert_eq!(five.left(at(100)), None);
        assert_eq!(lease(5, None).left(at(100)), Some(None));
    }

    #[tokio::test]
    async fn a_file_that_is_rewritten_in_place_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases");
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let file = path.clone();
        let task =
            tokio::spawn(async move { follow(&file, |lease| tell.send(lease.ip).is_ok()).await });
        let line = |last| format!("0 b2:6b:00:00:00:0{last} 192.0.2.{last} * *\n");
        let mut next = async |last: u8| {
            let ip = tokio::time::timeout(Duration::from_secs(10), told.recv());
            assert_eq!(ip.await.unwrap(), Some(IpAddr::from([192, 0, 2, last])));
        };
        std::fs::write(&path, line(5)).unwrap();
        next(5).await;
        for _ in 0..20 {
            std::fs::write(&path, "").unwrap();
            std::fs::write(&path, line(5)).unwrap();
        }
        std::fs::write(&path, line(5) + &line(6)).unwrap();
        // Not the first one again.
        next(6).await;
        task.abort();
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(?s)\\[?.{0,200}") {
            parse(&text);
        }
    }
}
