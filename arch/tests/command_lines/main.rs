//! What the crate promises, tested by its public face.
//!
//! `golden` pins whole command lines; `refused` pins every refusal's words; `roundtrip` takes what
//! was rendered apart again, by parsers of its own.

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod roundtrip;
