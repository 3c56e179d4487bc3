//! The helpers that lead out of a namespace without root: how each is called. Pure.
//!
//! All take the same link-local network for the wire between them and the namespace: machines cannot send to it, so
//! what a helper takes for the host's own address there is out of their reach.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use kiln_netsetup::bridge::UPLINK;

/// The wire's network, and on it the namespace's own address, the helper's, and the helper's name server.
pub(in crate::supervisor) const WIRE: Ipv4Net =
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 77, 0), 24);
pub(in crate::supervisor) const OWN: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 15);
pub(in crate::supervisor) const HOST: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 2);
pub(in crate::supervisor) const DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 3);

/// The numbers of the namespaces' descriptors in a helper.
pub(in crate::supervisor) const NET: RawFd = 3;
pub(in crate::supervisor) const USER: RawFd = 4;

/// A program that leads out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::supervisor) enum Helper {
    Pasta(PathBuf),
    Slirp4netns(PathBuf),
    /// The QEMU of a machine, on its own user-mode network.
    Qemu,
}

impl Helper {
    /// Those that there are, the fastest first.
    pub(in crate::supervisor) fn all(
        pasta: Option<&PathBuf>,
        slirp4netns: Option<&PathBuf>,
    ) -> Vec<Helper> {
        pasta
            .cloned()
            .map(Helper::Pasta)
            .into_iter()
            .chain(slirp4netns.cloned().map(Helper::Slirp4netns))
            .chain([Helper::Qemu])
            .collect()
    }

    pub(in crate::supervisor) fn name(&self) -> &'static str {
        match self {
            Helper::Pasta(_) => "pasta",
            Helper::Slirp4netns(_) => "slirp4netns",
            Helper::Qemu => "QEMU's user network",
        }
    }
}

/// What pasta or slirp4netns is called with: the program, and its arguments. Both find the namespaces by their inherited
/// descriptors.
pub(in crate::supervisor) fn command(helper: &Helper) -> Option<(&Path, Vec<OsString>)> {
    let (program, args) = match helper {
        Helper::Pasta(program) => (
            program,
            vec![
                "--foreground".to_owned(),
                "--quiet".to_owned(),
                "--stderr".to_owned(),
                "--ipv4-only".to_owned(),
                "--config-net".to_owned(),
                "--ns-ifname".to_owned(),
                UPLINK.to_owned(),
                "--address".to_owned(),
                OWN.to_string(),
                "--netmask".to_owned(),
                WIRE.prefix_len().to_string(),
                "--gateway".to_owned(),
                HOST.to_string(),
                // Nothing of the host's loopback, and no ports of anybody's.
                "--no-map-gw".to_owned(),
                "--tcp-ports".to_owned(),
                "none".to_owned(),
                "--udp-ports".to_owned(),
                "none".to_owned(),
                "--tcp-ns".to_owned(),
                "none".to_owned(),
                "--udp-ns".to_owned(),
                "none".to_owned(),
                "--netns".to_owned(),
                format!("/proc/self/fd/{NET}"),
                "--userns".to_owned(),
                format!("/proc/self/fd/{USER}"),
            ],
        ),
        Helper::Slirp4netns(program) => (
            program,
            vec![
                "--configure".to_owned(),
                "--mtu=1500".to_owned(),
                "--disable-host-loopback".to_owned(),
                "--disable-dns".to_owned(),
                // Not its sandbox, for which it would have to be root inside; it has no rights to lose anyway.
                "--enable-seccomp".to_owned(),
                format!("--cidr={WIRE}"),
                "--netns-type=path".to_owned(),
                format!("--userns-path=/proc/self/fd/{USER}"),
                format!("/proc/self/fd/{NET}"),
                UPLINK.to_owned(),
            ],
        ),
        Helper::Qemu => return None,
    };
    Some((program, args.into_iter().map(OsString::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_a_way_out_and_the_fastest_comes_first() {
        let (pasta, slirp) = (
            PathBuf::from("/bin/pasta"),
            PathBuf::from("/bin/slirp4netns"),
        );
        let names = |helpers: Vec<Helper>| helpers.iter().map(Helper::name).collect::<Vec<_>>();
        assert_eq!(
            names(Helper::all(Some(&pasta), Some(&slirp))),
            ["pasta", "slirp4netns", "QEMU's user network"]
        );
        assert_eq!(names(Helper::all(None, None)), ["QEMU's user network"]);
    }

    #[test]
    fn no_helper_lets_machines_at_the_host_s_loopback() {
        for (helper, word) in [
            (Helper::Pasta("/bin/pasta".into()), "--no-map-gw"),
            (
                Helper::Slirp4netns("/bin/slirp4netns".into()),
                "--disable-host-loopback",
            ),
        ] {
            let (_, args) = command(&helper).unwrap();
            assert!(args.iter().any(|arg| arg == word), "{args:?}");
        }
        assert_eq!(command(&Helper::Qemu), None);
        assert!(
            [OWN, HOST, DNS]
                .iter()
                .all(|ip| WIRE.contains(ip) && ip.is_link_local())
        );
    }
}
