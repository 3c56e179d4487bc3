//! The real binary, from outside.

mod bad_input;
mod command_line;
mod fake_crash;
mod fake_faults;
mod fake_life;
mod fake_support;
