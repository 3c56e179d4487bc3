//! The real binary, from outside.

mod bad_input;
mod command_line;
mod fake_support;
