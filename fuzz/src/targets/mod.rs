//! What is fuzzed, by name. A target panics when the code under it does, and where what comes out is not what was promised.

mod fabric;
mod files;
mod frames;
mod guests;
mod netlink;
mod stack;
mod switch;

pub(crate) type Target = fn(&[u8]);

pub(crate) const TARGETS: [(&str, Target); 17] = [
    ("ether", frames::ether),
    ("dhcp", frames::dhcp),
    ("dns", frames::dns),
    ("lease", frames::lease),
    ("switch", switch::switch),
    ("uplink", switch::uplink),
    ("fabric", fabric::fabric),
    ("stack", stack::stack),
    ("netlink", netlink::netlink),
    ("qmp", guests::qmp),
    ("report", guests::report),
    ("journal", guests::journal),
    ("console", guests::console),
    ("qcow2", files::qcow2),
    ("openpgp", files::openpgp),
    ("metadata", files::metadata),
    ("spec", files::spec),
];
