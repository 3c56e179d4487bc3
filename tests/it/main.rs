//! The real binary, from outside.

mod boot;
mod command_line;
mod support;
