//! The real binary, from outside.

mod command_line;
