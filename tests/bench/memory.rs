//! What a process holds in memory, by the kernel's own account.

use crate::Outcome;

/// In KiB, from `/proc/PID/status`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    /// All of it: `VmRSS`.
    pub(crate) resident: u64,
    /// What it wrote itself: `RssAnon`.
    pub(crate) anonymous: u64,
    /// Pages of files, which processes of the same program share: `RssFile`.
    pub(crate) file: u64,
}

/// What process `pid` holds now.
pub(crate) fn of(pid: u64) -> Outcome<Held> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Outcome<u64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .ok_or_else(|| format!("/proc/{pid}/status has no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Held {
        resident: field("VmRSS")?,
        anonymous: field("RssAnon")?,
        file: field("RssFile")?,
    })
}
