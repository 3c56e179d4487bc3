//! The readers of what guests, servers and other users' files say, under libFuzzer.
//!
//! One program for all targets, since linking is what takes long: `KILN_FUZZ` names the target, and without one their
//! names are printed. `fuzz/run` builds it, with LLVM's coverage by flags that the stable compiler takes. A target panics
//! when the code under it does, and where what comes out is not what was promised.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

mod fabric;
mod files;
mod frames;
mod guests;
mod netlink;
mod stack;
mod switch;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 17] = [
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

static CHOSEN: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        let wanted = std::env::var("KILN_FUZZ").unwrap_or_default();
        match TARGETS.iter().find(|(name, _)| *name == wanted) {
            Some((_, target)) => CHOSEN.get_or_init(|| *target),
            None => {
                for (name, _) in TARGETS {
                    println!("{name}");
                }
                std::process::exit(if wanted.is_empty() { 0 } else { 2 });
            }
        };
    },
    |bytes: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            target(bytes);
        }
    }
);
