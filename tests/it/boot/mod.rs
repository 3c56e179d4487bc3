//! Real QEMU, real kernels, the real Ignition, real ssh.
//!
//! The guests are emulated where there is no KVM, so each story boots few machines and asks
//! them much. `KILN_TEST_GUEST` names a folder with another guest for direct kernel boot.

mod alone;
mod at_once;
mod attack;
mod configs;
mod data;
mod disk;
mod fails;
mod fetched;
mod firmware;
mod five;
mod full;
mod life;
mod namespace;
mod nets;
mod run;
mod three;
mod user;
mod versions;
mod volumes;
