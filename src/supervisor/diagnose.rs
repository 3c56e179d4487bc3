//! stub
#[derive(Debug)]
pub struct Finding {
    pub kind: FindingKind,
    pub line: String,
}
#[derive(Debug)]
pub enum FindingKind {
    Firmware,
    Kernel,
    Ignition { stage: String },
    Userspace,
    KernelPanic,
    IgnitionFailed,
    Emergency,
    NoBoot,
}
