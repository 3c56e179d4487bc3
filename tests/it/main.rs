//! The real binary, from outside.
#![cfg(test)]

mod bad_input;
mod boot;
mod command_line;
mod fake_crash;
mod fake_faults;
mod fake_life;
mod fake_secrets;
mod fake_support;
mod image;
mod support;
