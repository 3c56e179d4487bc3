//! Which names a zone has, and what each stands for: machines, and what the spec adds. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::address::Reservation;
use crate::settings::Settings;

/// Names in lower case, without a dot at the end.
#[derive(Debug, Clone)]
pub(super) struct Table {
    domain: String,
    /// Bare names of machines, and added names as they were said.
    addresses: BTreeMap<String, Vec<IpAddr>>,
    names: BTreeMap<IpAddr, String>,
}

impl Table {
    pub(super) fn new(settings: &Settings, machines: &[Reservation]) -> Table {
        let domain = settings.domain.to_ascii_lowercase();
        let mut table = Table {
            domain,
            addresses: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        for machine in machines {
            table.add(&machine.name, &[IpAddr::V4(machine.ip)]);
        }
        // A machine's address is the machine's, whatever else is called by it.
        for (name, addresses) in &settings.hosts {
            table.add(name, addresses);
        }
        table
    }

    fn add(&mut self, name: &str, addresses: &[IpAddr]) {
        let name = name.to_ascii_lowercase();
        let full = match name.contains('.') {
            true => name.clone(),
            false => format!("{name}.{}", self.domain),
        };
        if !name.starts_with('*') {
            for address in addresses {
                self.names.entry(*address).or_insert_with(|| full.clone());
            }
        }
        let known = self.addresses.entry(name).or_default();
        known.extend(addresses);
    }

    /// The cluster's domain.
    pub(super) fn domain(&self) -> &str {
        &self.domain
    }

    /// What `name`, below the domain or as it stands, is an address of.
    pub(super) fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        let below = name
            .strip_suffix(self.domain.as_str())
            .and_then(|name| name.strip_suffix('.'));
        let mut ways = below.into_iter().chain([name]);
        ways.find_map(|name| self.exact(name).or_else(|| self.wild(name)))
    }

    /// The name of an address.
    pub(super) fn name(&self, ip: IpAddr) -> Option<&str> {
        self.names.get(&ip).map(String::as_str)
    }

    fn exact(&self, name: &str) -> Option<&[IpAddr]> {
        self.addresses.get(name).map(Vec::as_slice)
    }

    /// By `*.` and what follows the first label, or the second, and so on: the longest that there is.
    fn wild(&self, name: &str) -> Option<&[IpAddr]> {
        let mut rest = name;
        while let Some((_, above)) = rest.split_once('.') {
            if let Some(found) = self.exact(&format!("*.{above}")) {
                return Some(found);
            }
            rest = above;
        }
        None
    }
}
