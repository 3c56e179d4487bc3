//! placeholder until the crate lands
/// x
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    X86_64,
    Aarch64,
    I386,
    S390x,
    Ppc64le,
}
