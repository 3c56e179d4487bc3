//! What /proc says about processes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use nix::unistd::geteuid;

/// Longer command lines than ours ever are; so much of one is looked at.
const CMDLINE: u64 = 1024 * 1024;

/// Length of a UUID as text.
const UUID: usize = 36;

/// A process whose command line holds `-uuid`: a machine's QEMU, when no record
/// says which it is. To be adopted before anything is done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carrier {
    pub(super) uuid: String,
    pub(super) pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub(super) start_time: u64,
}

/// All of them, whoever's they are. A look at every process of the host, so to
/// be had once for all machines.
///
/// # Errors
/// When /proc cannot be listed.
pub(super) fn carriers() -> io::Result<Vec<Carrier>> {
    let ours = geteuid().as_raw();
    let root = ours == 0;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Processes come and go while we look. Another user's is not ours, whatever it calls itself:
        // our QEMUs run as we do, and as another user only where we are root.
        if (root || entry.metadata().is_ok_and(|found| found.uid() == ours))
            && let Ok(Some(uuid)) = uuid_of(pid)
            && let Ok(start_time) = start_time(pid)
        {
            found.push(Carrier {
                uuid,
                pid,
                start_time,
            });
        }
    }
    Ok(found)
}

/// The other processes of the group that `leader` leads: pid, start time, and command line, its
/// words ended by NUL.
pub(super) fn group(leader: u32) -> Vec<(u32, u64, Vec<u8>)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let member = |pid: u32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let group: u32 = fields(&stat)?.nth(5 - 3)?.parse().ok()?;
        if group != leader || pid == leader {
            return None;
        }
        Some((pid, parse_start_time(&stat)?, cmdline(pid).ok()?))
    };
    pids.filter_map(member).collect()
}

/// Field 52 of `/proc/PID/stat`, as wait(2) has it, of a process that has ended and that nobody has
/// reaped yet.
pub(super) fn exit_status(pid: u32, started: u64) -> Option<i32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = fields(&stat)?.collect();
    let same = fields.get(22 - 3)?.parse() == Ok(started);
    if same && *fields.first()? == "Z" {
        fields.get(52 - 3)?.parse().ok()
    } else {
        None
    }
}

/// Field 22 of `/proc/PID/stat`, in ticks since boot.
pub(super) fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "no start time in the process's stat",
        )
    })
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    fields(stat)?.nth(22 - 3)?.parse().ok()
}

/// The fields from the third on. The second is the program's name, which may hold anything, spaces
/// and parentheses too; the third comes after the last parenthesis.
fn fields(stat: &[u8]) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = str::from_utf8(&stat[name_end + 1..]).ok()?;
    Some(rest.split_ascii_whitespace())
}

pub(super) fn has_uuid(pid: u32, uuid: &str) -> io::Result<bool> {
    Ok(uuid_of(pid)?.is_some_and(|found| found == uuid))
}

fn uuid_of(pid: u32) -> io::Result<Option<String>> {
    Ok(named_uuid(&cmdline(pid)?).map(str::to_owned))
}

fn cmdline(pid: u32) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    File::open(format!("/proc/{pid}/cmdline"))?
        .take(CMDLINE)
        .read_to_end(&mut line)?;
    Ok(line)
}

/// Whether its arguments are those of a supervisor of this cluster.
pub(super) fn supervises(pid: u32, cluster: &str) -> io::Result<bool> {
    let line = cmdline(pid)?;
    let mut arguments = line.split(|&byte| byte == 0).skip(1);
    Ok(arguments.next() == Some(b"supervise") && arguments.next() == Some(cluster.as_bytes()))
}

/// Field 3 of `/proc/PID/stat`: what the process is doing, in one letter.
pub(super) fn state(pid: u32) -> io::Result<char> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let state = fields(&stat).and_then(|mut fields| fields.next()?.chars().next());
    state.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The argument after the first `-uuid`; or what follows the colon in the program's name, which is
/// kiln's own way of tagging.
fn named_uuid(cmdline: &[u8]) -> Option<&str> {
    let name = cmdline.split(|&byte| byte == 0).next()?;
    if let Some(colon) = name.iter().rposition(|&byte| byte == b':')
        && name.len() - colon - 1 == UUID
    {
        return str::from_utf8(&name[colon + 1..]).ok();
    }
    let mut arguments = cmdline.split(|&byte| byte == 0);
    arguments.find(|argument| *argument == b"-uuid")?;
    str::from_utf8(arguments.next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a) R 1 (b) S {}", fields.join(" "));
        assert_eq!(parse_start_time(stat.as_bytes()), Some(22));
        assert_eq!(parse_start_time(b"17 (a) S 4 5"), None);
        assert_eq!(parse_start_time(b""), None);
    }

    #[test]
    fn a_uuid_counts_only_as_the_whole_argument_after_its_option() {
        let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        let check = |line: &str, want| {
            assert_eq!(named_uuid(line.as_bytes()) == Some(uuid), want, "{line:?}");
        };
        check(&format!("qemu\0-uuid\0{uuid}\0-S\0"), true);
        check(&format!("qemu\0-name\0{uuid}\0-uuid\0"), false);
        check(&format!("qemu\0-uuid {uuid}\0"), false);
        check(&format!("qemu\0-uuid\0{uuid}0\0"), false);
        check("", false);
        check(&format!("pasta:{uuid}\0--foreground\0"), true);
        check(&format!("pasta\0x:{uuid}\0"), false);
        check(&format!("pasta:{uuid}0\0"), false);
    }

    #[test]
    fn our_own_start_time_can_be_read() {
        assert!(start_time(std::process::id()).unwrap() > 0);
    }
}
