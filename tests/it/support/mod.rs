//! What the tests from outside stand on: a home of kiln's own, the real binary with
//! deadlines, guests, and looks into `/proc` that do not go through kiln.

pub(crate) mod configs;
pub(crate) mod discovery;
pub(crate) mod etcd;
pub(crate) mod events;
pub(crate) mod follow;
pub(crate) mod full;
pub(crate) mod guest;
pub(crate) mod home;
pub(crate) mod net_tools;
pub(crate) mod old_qemu;
pub(crate) mod process;
pub(crate) mod run;
pub(crate) mod socket;
pub(crate) mod virtiofsd;
pub(crate) mod volumes;
pub(crate) mod world;
