//! The real binary, from outside.
#![cfg(test)]

mod bad_input;
mod boot;
mod command_line;
mod fake_board;
mod fake_crash;
mod fake_disks;
mod fake_faults;
mod fake_firmware;
mod fake_gone;
mod fake_hostile;
mod fake_hung;
mod fake_life;
mod fake_network;
mod fake_places;
mod fake_roll;
mod fake_run;
mod fake_secrets;
mod fake_support;
mod fake_tpm;
mod fake_volumes;
mod image;
mod qemu_takes;
mod support;
