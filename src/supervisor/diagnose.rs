//! What a guest's console says about its boot: how far it came, and why it gave up.
//!
//! Pure: bytes in, [`Finding`]s out. How the bytes are cut makes no difference.
//! The console is hostile input, so a scanner holds one line of at most
//! `LINE` bytes, and within one boot each phase and each verdict is found at
//! most once, the phases in their order only:
//!
//! ```text
//!   firmware ─▶ kernel ─▶ Ignition (fetch-offline … umount) ─▶ userspace
//! ```
//!
//! That a new boot began is told by QEMU's RESET event ([`Scanner::restarted`]),
//! never by text. Whether a verdict counts (a machine that is ready may print
//! what it likes) is for others to judge.
//!
//! Most words count when their line ends. Programs that wait for somebody at the
//! console (`WAITING`) end no line, and are known by what stands there.
//!
//! The texts are those of Ignition 2 (`internal/main.go`, `internal/log`),
//! systemd and dracut, the Fedora CoreOS emergency shell, the kernel's `panic`,
//! SeaBIOS, OVMF, shim, GRUB, SLOF and QEMU's s390 firmware.

use crate::supervisor::console::sanitize;

/// So much of a line is looked at, in bytes; the rest of it is thrown away.
const LINE: usize = 4096;
/// So much of a line is shown, in characters.
const SHOWN: usize = 400;

/// Something that the console shows, and the line that proves it, fit for a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub line: String,
}

/// What a console can show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FindingKind {
    Firmware,
    Kernel,
    /// `stage` in Ignition's own word, or empty where it does not say.
    Ignition {
        stage: String,
    },
    Userspace,
    /// Ignition gave up; the line is its own message where it printed one.
    IgnitionFailed,
    /// systemd says that a stage of Ignition failed, and Ignition said nothing here.
    IgnitionUnitFailed,
    KernelPanic,
    /// A shell waits for somebody at the console.
    Emergency,
    /// The firmware found nothing to boot, or nothing that it is allowed to boot.
    NoBoot,
}

/// Reads the console of one machine.
#[derive(Debug, Default)]
pub struct Scanner {
    line: Vec<u8>,
    reached: Option<Phase>,
    found: Vec<FindingKind>,
    /// What Ignition complained about first in its present stage: the cause, while
    /// its last words may be no more than "config is not valid".
    complaint: Option<String>,
    /// What systemd could not do last.
    failure: Option<String>,
    /// What UEFI could not boot first.
    unbooted: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Firmware,
    Kernel,
    /// The place of the stage in [`STAGES`], 0 when unknown.
    Ignition(usize),
    Userspace,
}

/// Ignition's stages in the order in which they run.
const STAGES: [&str; 8] = [
    "",
    "fetch-offline",
    "fetch",
    "kargs",
    "disks",
    "mount",
    "files",
    "umount",
];

const FIRMWARE: [&str; 8] = [
    "SeaBIOS (version",
    "BdsDxe:",
    "UEFI firmware",
    "UEFI Interactive Shell",
    "iPXE",
    "SLOF",
    "GNU GRUB",
    "Welcome to GRUB",
];
const KERNEL: [&str; 6] = [
    "Linux version ",
    "Booting Linux on physical CPU",
    "Decompressing Linux",
    "EFI stub:",
    "Booting paravirtualized kernel",
    "Run /init as init process",
];
const USERSPACE: [&str; 5] = [
    "Switching root",
    "Switching Root",
    "Reached target multi-user.target",
    "Reached target Multi-User System",
    "guest: second stage",
];
const EMERGENCY: [&str; 5] = [
    "You are in emergency mode",
    "Entering emergency mode",
    "Entering emergency shell",
    "Press Enter for emergency shell",
    "Give root password for maintenance",
];
/// What shim and UEFI's shell show while they wait for a key, and what it means.
const WAITING: [(&str, &str); 2] = [
    (
        "Verification failed: (0x1A) Security Violation",
        "shim refuses the boot loader, which nobody that it trusts has signed: Verification failed: (0x1A) Security Violation",
    ),
    ("Shell>", "UEFI's shell waits for a command"),
];
/// GRUB's words for a kernel that the machine's keys have not signed.
const UNSIGNED: [&str; 2] = ["bad shim signature", "has invalid signature"];
const NO_BOOT: [&str; 10] = [
    "No bootable device",
    "No bootable option or device was found",
    "No IPL device available",
    "no bootable device",
    "Entering rescue mode...",
    "grub rescue>",
    "Minimal BASH-like line editing is supported",
    "E3407: Load failed",
    // UEFI's own crash, as with too little memory.
    "!!!! X64 Exception Type",
    "!!!! AArch64 Exception",
];

impl Scanner {
    pub fn new() -> Scanner {
        Scanner::default()
    }

    /// Forgets how far the guest came: it begins anew.
    pub fn restarted(&mut self) {
        *self = Scanner::new();
    }

    /// What these bytes, together with those before, show for the first time.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for piece in bytes.split_inclusive(|&byte| is_end(byte)) {
            let (text, ends) = match piece.split_last() {
                Some((&last, text)) if is_end(last) => (text, true),
                _ => (piece, false),
            };
            let room = LINE - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if ends && !self.line.is_empty() {
                let line = std::mem::take(&mut self.line);
                self.read(sanitize(&line).trim(), &mut findings);
            }
        }
        if !self.line.is_empty() {
            let line = sanitize(&self.line);
            if let Some(sign) = waiting(line.trim()) {
                self.judge(FindingKind::NoBoot, sign, &mut findings);
            }
        }
        findings
    }

    fn read(&mut self, line: &str, findings: &mut Vec<Finding>) {
        if line.is_empty() {
            return;
        }
        if let Some(phase) = phase(line) {
            self.reach(phase, line, findings);
        }
        if ignition_stage(line).is_some_and(|stage| stage > 0) && !line.contains("ail") {
            self.complaint = None;
        }
        if self.complaint.is_none() {
            self.complaint =
                ignition_complaint(line).map(|text| format!("Ignition failed: {text}"));
        }
        if line.contains("[FAILED]")
            || line.contains("[ TIME ]")
            || line.contains("Initramfs unpacking failed")
        {
            self.failure = Some(shown(line));
        }
        if self.unbooted.is_none()
            && line.contains("BdsDxe: failed to ")
            && !line.contains("EFI Internal Shell")
        {
            self.unbooted = Some(shown(line));
        }
        if let Some(sign) = waiting(line) {
            self.judge(FindingKind::NoBoot, sign, findings);
        } else if let Some(verdict) = verdict(line) {
            self.judge(verdict, line, findings);
        }
    }

    fn judge(&mut self, verdict: FindingKind, line: &str, findings: &mut Vec<Finding>) {
        // systemd says it after Ignition, where that has a say on the console.
        let verdict = if verdict == FindingKind::IgnitionUnitFailed && self.complaint.is_some() {
            FindingKind::IgnitionFailed
        } else {
            verdict
        };
        if self.found.contains(&verdict) {
            return;
        }
        self.found.push(verdict.clone());
        let proof = match verdict {
            // What says that it failed seldom says why; what came before does.
            FindingKind::IgnitionFailed => self.complaint.clone().unwrap_or_else(|| shown(line)),
            FindingKind::Emergency | FindingKind::KernelPanic => match &self.failure {
                Some(failure) => format!("{} (before: {failure})", shown(line)),
                None => shown(line),
            },
            FindingKind::NoBoot => match &self.unbooted {
                Some(unbooted) if is_refusal(unbooted) => format!(
                    "the firmware refuses what it is to boot, which nobody that it trusts has signed: {unbooted}"
                ),
                Some(unbooted) => format!("{} (before: {unbooted})", shown(line)),
                None => shown(line),
            },
            FindingKind::Firmware
            | FindingKind::Kernel
            | FindingKind::Ignition { .. }
            | FindingKind::Userspace
            | FindingKind::IgnitionUnitFailed => shown(line),
        };
        findings.push(Finding {
            kind: verdict,
            line: proof,
        });
    }

    fn reach(&mut self, phase: Phase, line: &str, findings: &mut Vec<Finding>) {
        if self.reached.is_some_and(|reached| reached >= phase) {
            return;
        }
        self.reached = Some(phase);
        let kind = match phase {
            Phase::Firmware => FindingKind::Firmware,
            Phase::Kernel => FindingKind::Kernel,
            Phase::Ignition(stage) => FindingKind::Ignition {
                stage: STAGES[stage].to_owned(),
            },
            Phase::Userspace => FindingKind::Userspace,
        };
        findings.push(Finding {
            kind,
            line: shown(line),
        });
    }
}

fn is_end(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

fn shown(line: &str) -> String {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    words.join(" ").chars().take(SHOWN).collect()
}

fn has_one(line: &str, words: &[&str]) -> bool {
    words.iter().any(|word| line.contains(word))
}

/// What a line without an end says of a program that waits.
fn waiting(line: &str) -> Option<&'static str> {
    let [(shim, refusal), (shell, idle)] = WAITING;
    if line.contains(shim) {
        Some(refusal)
    } else {
        line.starts_with(shell).then_some(idle)
    }
}

/// UEFI's words, in a line of its own, for what its keys have not signed.
fn is_refusal(line: &str) -> bool {
    line.ends_with(": Access Denied") || line.ends_with(": Security Violation")
}

fn phase(line: &str) -> Option<Phase> {
    if has_one(line, &USERSPACE) || is_welcome(line) {
        Some(Phase::Userspace)
    } else if let Some(stage) = ignition_stage(line) {
        Some(Phase::Ignition(stage))
    } else if has_one(line, &KERNEL) || has_kernel_time(line) {
        Some(Phase::Kernel)
    } else if has_one(line, &FIRMWARE) {
        Some(Phase::Firmware)
    } else {
        None
    }
}

/// systemd greets by the system's name, in the initramfs too, which says so; GRUB by its own.
fn is_welcome(line: &str) -> bool {
    line.starts_with("Welcome to ")
        && !has_one(line, &FIRMWARE)
        && line.ends_with('!')
        && !line.to_ascii_lowercase().contains("initramfs")
}

/// `[    1.234567] …`
fn has_kernel_time(line: &str) -> bool {
    let Some((time, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    let time = time.trim_start();
    time.contains('.')
        && time
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// By Ignition's own log (`Stage: disks`), systemd's units (`Ignition (disks)`)
/// or the tiny guest (`guest: ignition disks`).
fn ignition_stage(line: &str) -> Option<usize> {
    let word = |text: &str| {
        let end = text
            .find(|it: char| !it.is_ascii_lowercase() && it != '-')
            .unwrap_or(text.len());
        STAGES
            .iter()
            .skip(1)
            .position(|&stage| stage == &text[..end])
            .map(|place| place + 1)
    };
    ["Stage: ", "Ignition (", "guest: ignition "]
        .iter()
        .find_map(|before| line.split_once(before).and_then(|(_, after)| word(after)))
        .or_else(|| (line.contains("ignition[") && line.contains("Ignition 2.")).then_some(0))
}

/// What Ignition says is wrong, without what stands before it, and without what
/// may be secret: the command line that failed (`useradd --password …`) and the
/// content of `data:` URLs.
fn ignition_complaint(line: &str) -> Option<String> {
    // `--log-to-stdout` names the level. The journal does not, and of what it
    // shows only these words are bad news.
    let leveled = ["CRITICAL : ", "ERROR    : "]
        .iter()
        .find_map(|level| line.split_once(level).map(|(_, text)| text));
    let text = leveled.or_else(|| {
        let (_, after) = line.split_once("ignition[")?;
        let (_, text) = after.split_once("]: ")?;
        let is_bad = text.contains("[failed]") || text.contains("rror") || text.contains("failed");
        (is_bad && !text.starts_with("failed to log")).then_some(text)
    })?;
    let text = text.strip_prefix("Ignition failed: ").unwrap_or(text);
    let (what, stderr) = match text.split_once(": Cmd: ") {
        Some((what, command)) => (
            what,
            command.split_once("Stderr: ").map(|(_, stderr)| stderr),
        ),
        None => (text, None),
    };
    let words = what.split_ascii_whitespace().chain(stderr);
    let words: Vec<&str> = words
        .map(|word| {
            if word.contains("data:") {
                "data:…"
            } else {
                word
            }
        })
        .collect();
    Some(shown(&words.join(" ")))
}

fn verdict(line: &str) -> Option<FindingKind> {
    if line.contains("Kernel panic - not syncing") {
        Some(FindingKind::KernelPanic)
    } else if line.contains("Ignition failed") || line.contains("Ignition has failed") {
        Some(FindingKind::IgnitionFailed)
    } else if line.contains("Failed to start") && ignition_stage(line).is_some() {
        Some(FindingKind::IgnitionUnitFailed)
    } else if has_one(line, &EMERGENCY) {
        Some(FindingKind::Emergency)
    } else if has_one(line, &NO_BOOT) || has_one(line, &UNSIGNED) {
        Some(FindingKind::NoBoot)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
