//! What the user sees: tables, JSON, errors, notes and progress.
//!
//! stdout is for data and stderr for people. With `main` this is the only printer,
//! and [`output::Report`] the only part of it that prints; the rest makes texts. It decides
//! nothing but how a thing looks. Texts that came from a guest go through
//! [`text::printable`] before they reach a terminal.

pub mod failure;
pub mod json;
pub mod output;
pub mod progress;
pub mod style;
pub mod table;
pub mod text;
pub mod transfer;
pub mod view;
