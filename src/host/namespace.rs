//! Whether this host lets kiln join machines by the kernel: tried by doing, in some milliseconds.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use kiln_netsetup::address::{Subnet, gateway_mac};
use kiln_netsetup::bridge::{self, BridgeConfig, BridgeError};
use kiln_netsetup::namespace::{Maker, Step};
use kiln_netsetup::settings::Settings;
use nix::errno::Errno;

/// Nothing of the trial is seen outside it, so any subnet will do.
const TRIAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 80, 0, 0), 24);

/// Why the mode `namespace` does not work here.
#[derive(Debug)]
pub struct Refusal {
    error: BridgeError,
}

/// Who makes a cluster's namespace: root as root, everybody else as owner of a user namespace.
pub fn maker(uid: u32, gid: u32) -> Maker {
    match uid {
        0 => Maker::Root,
        _ => Maker::User { uid, gid },
    }
}

/// Makes a namespace with all that a cluster's has, which is gone again when this returns.
///
/// # Errors
/// [`Refusal`] says at what it failed.
pub fn try_out(uid: u32, gid: u32) -> Result<(), Refusal> {
    let Ok(subnet) = Subnet::new(TRIAL) else {
        return Ok(());
    };
    let config = BridgeConfig {
        subnet,
        gateway_mac: gateway_mac("trial"),
        settings: Settings::new("trial.internal"),
        machines: Vec::new(),
        masquerade: true,
    };
    bridge::try_out(maker(uid, gid), &config).map_err(|error| Refusal { error })
}

impl Refusal {
    /// What failed, as a clause for people.
    pub fn why(&self) -> String {
        let mut text = self.error.to_string();
        let mut source = std::error::Error::source(&self.error);
        // The outer words only say that it is about the network, which the reader knows.
        if let Some(inner) = source {
            text = inner.to_string();
            source = inner.source();
        }
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        text
    }

    fn step(&self) -> Option<Step> {
        match &self.error {
            BridgeError::Namespace(error) => error.step(),
            BridgeError::Netlink(_)
            | BridgeError::Serve { .. }
            | BridgeError::Tap { .. }
            | BridgeError::Unknown { .. }
            | BridgeError::Name(_)
            | BridgeError::Foreign { .. }
            | BridgeError::NoBridge { .. }
            | BridgeError::OtherKind { .. }
            | BridgeError::Lost
            | BridgeError::Record(_)
            | BridgeError::Host(_) => None,
        }
    }

    /// What the user can do about it; `read` gives the text of a file below `/proc/sys`, where there is one.
    pub fn remedy(&self, read: impl Fn(&str) -> Option<String>) -> Option<String> {
        let is = |name: &str, value: &str| read(name).is_some_and(|text| text.trim() == value);
        match self.step() {
            Some(Step::Tun) => Some(match self.errno() {
                Some(Errno::ENOENT) => "modprobe tun".to_owned(),
                _ => "chmod 0666 /dev/net/tun".to_owned(),
            }),
            Some(Step::UserNamespace | Step::NetworkNamespace | Step::Map | Step::Forwarding)
                if is("kernel/apparmor_restrict_unprivileged_userns", "1") =>
            {
                Some("sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for kiln that allows `userns`".to_owned())
            }
            Some(Step::UserNamespace) if is("kernel/unprivileged_userns_clone", "0") => {
                Some("sysctl kernel.unprivileged_userns_clone=1".to_owned())
            }
            Some(Step::UserNamespace) if is("user/max_user_namespaces", "0") => {
                Some("sysctl user.max_user_namespaces=15000".to_owned())
            }
            Some(Step::NetworkNamespace) if is("user/max_net_namespaces", "0") => {
                Some("sysctl user.max_net_namespaces=15000".to_owned())
            }
            Some(Step::UserNamespace | Step::NetworkNamespace) => Some(
                "in a container, run it with `--security-opt seccomp=unconfined` or `--privileged`"
                    .to_owned(),
            ),
            Some(
                Step::Map
                | Step::Forwarding
                | Step::Enter
                | Step::Socket
                | Step::Handles
                | Step::Pass,
            )
            | None => match self.errno() {
                Some(Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EPROTONOSUPPORT) => {
                    Some("modprobe -a bridge tun nf_tables nft_chain_nat nft_masq nft_limit nft_reject_ipv4".to_owned())
                }
                _ => None,
            },
        }
    }

    fn errno(&self) -> Option<Errno> {
        let mut error: &(dyn std::error::Error + 'static) = &self.error;
        loop {
            if let Some(error) = error.downcast_ref::<std::io::Error>() {
                return error.raw_os_error().map(Errno::from_raw);
            }
            error = error.source()?;
        }
    }
}
