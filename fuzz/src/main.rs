//! The readers of what guests, servers and other users' files say, under libFuzzer.
//!
//! One program for all targets, since linking is what takes long: `KILN_FUZZ` names the target, and without one their
//! names are printed. `fuzz/run` builds it, with LLVM's coverage by flags that the stable compiler takes.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

mod targets;

use self::targets::{TARGETS, Target};

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
