//! What this host has left for machines: memory, processors, room on the disk.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

/// What is left now. Absent what the kernel does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Room {
    /// In bytes: what the kernel could give without swapping, or the control group that kiln is in,
    /// whichever is less.
    pub memory: Option<u64>,
    pub processors: Option<usize>,
    /// In bytes, where disks are made.
    pub disk: Option<u64>,
}

impl Room {
    /// Looks; `disks` is the folder where disks are made, or will be.
    pub fn look(disks: &Path) -> Room {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let host = meminfo(&read("/proc/meminfo"));
        let group = left_in_group(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
        Room {
            memory: host.into_iter().chain(group).min(),
            processors: std::thread::available_parallelism().ok().map(Into::into),
            disk: disks.ancestors().find_map(|path| {
                let found = statvfs(path).ok()?;
                Some(found.blocks_available() * found.fragment_size())
            }),
        }
    }
}

/// The memory that a process has of its own now, in bytes.
pub fn held_by(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // A guest's memory that others share lies in a memfd.
    Some(kib_of(&status, "RssAnon:")? + kib_of(&status, "RssShmem:").unwrap_or(0))
}

/// `MemAvailable` (proc_meminfo(5)).
fn meminfo(text: &str) -> Option<u64> {
    kib_of(text, "MemAvailable:")
}

fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the control groups of `/proc/self/cgroup` leave, the strictest of all above too. `root` is
/// where they are mounted: version 2 there or in `unified`, version 1 in `memory`.
fn left_in_group(memberships: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (mounts, limit, usage, cache) = match controllers {
            "" => (
                [root.to_owned(), root.join("unified")],
                "memory.max",
                "memory.current",
                "inactive_file ",
            ),
            it if it.split(',').any(|it| it == "memory") => (
                [root.join("memory"), root.join(controllers)],
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file ",
            ),
            _ => continue,
        };
        for mount in mounts {
            // In a container the path may be one of outside: what is mounted is the group itself.
            let own = mount.join(path.trim_start_matches('/'));
            let groups = own.ancestors().take_while(|it| it.starts_with(&mount));
            for group in groups.map(PathBuf::from) {
                let number = |name: &str| -> Option<u64> {
                    fs::read_to_string(group.join(name))
                        .ok()?
                        .trim()
                        .parse()
                        .ok()
                };
                let (Some(limit), Some(used)) = (number(limit), number(usage)) else {
                    continue;
                };
                let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
                let given_back = stat.lines().find_map(|line| line.strip_prefix(cache));
                let given_back: u64 = given_back.and_then(|it| it.parse().ok()).unwrap_or(0);
                let left = limit.saturating_sub(used.saturating_sub(given_back));
                least = Some(least.map_or(left, |least: u64| least.min(left)));
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_it_could_give() {
        let text = "MemTotal:       24684096 kB\nMemAvailable:   23268864 kB\n";
        assert_eq!(meminfo(text), Some(23268864 * 1024));
        assert_eq!(meminfo("MemTotal: 1 kB\n"), None);
        assert!(held_by(std::process::id()).is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn the_strictest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let left = |text: &str| left_in_group(text, root.path());
        assert_eq!(left("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "10\n");
        assert_eq!(left("0::/a/b\n"), None);
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 5\ninactive_file 100\n");
        assert_eq!(left("0::/a/b\n"), Some(400));
        // Version 1, and a path that is not to be seen from inside.
        write("memory/memory.limit_in_bytes", "300\n");
        write("memory/memory.usage_in_bytes", "50\n");
        assert_eq!(left("4:memory:/outside\n0::/a/b\n"), Some(250));
    }
}
