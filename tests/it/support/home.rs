//! A home for kiln that is a test's own, and is empty again when the test is over.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kiln::state::layout::{ClusterFiles, Roots};
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::events::Events;
use crate::support::process;
use crate::support::run::{Ran, run};

/// For commands that wait for nothing.
pub(crate) const PROMPT: Duration = Duration::from_secs(20);
/// For a boot on a slow and busy host, where guests are emulated.
pub(crate) const BOOT: Duration = Duration::from_secs(150);

/// Tests whose guests are many take turns, and so do those with few: at most six guests run
/// at a time, however many tests do. The turns are files, because tests may be processes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lane {
    /// Up to five guests.
    Wide,
    /// One guest.
    Narrow,
}

/// Who runs kiln.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever runs the tests.
    Myself,
    /// No root, no capability, no group: `nobody` when root runs the tests, who else does
    /// otherwise. ssh wants a user that has a name.
    Ordinary,
}

/// One cluster's spec, files and processes.
#[derive(Debug)]
pub(crate) struct Home {
    folder: TempDir,
    kiln: PathBuf,
    user: User,
    cluster: ClusterFiles,
    machines: Vec<String>,
    path: OsString,
    _turn: File,
}

impl Home {
    /// A home for the cluster `name` of the spec `spec`, with these machines.
    pub(crate) fn new(lane: Lane, user: User, name: &str, machines: &[&str]) -> Home {
        let turn = Path::new(env!("CARGO_TARGET_TMPDIR")).join(match lane {
            Lane::Wide => "boot-wide.lock",
            Lane::Narrow => "boot-narrow.lock",
        });
        let turn = File::create(turn).unwrap();
        turn.lock().unwrap();
        let folder = tempfile::Builder::new()
            .prefix("kiln-it.")
            .tempdir()
            .unwrap();
        let mut kiln = PathBuf::from(env!("CARGO_BIN_EXE_kiln"));
        let user = match user {
            User::Ordinary if Uid::effective().is_root() => {
                // Where the tests were built others may not look.
                let copy = folder.path().join("kiln");
                fs::copy(&kiln, &copy).unwrap();
                kiln = copy;
                fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
                chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
                User::Ordinary
            }
            User::Ordinary | User::Myself => User::Myself,
        };
        let home = folder.path().join("home");
        let roots = Roots {
            state: home.join("state"),
            cache: home.join("cache"),
            runtime: home.join("run"),
        };
        Home {
            kiln,
            user,
            cluster: roots.cluster(name),
            machines: machines.iter().map(|name| (*name).to_owned()).collect(),
            path: std::env::var_os("PATH").unwrap(),
            folder,
            _turn: turn,
        }
    }

    /// From here on kiln looks for programs in this folder first; `None`: where the tests do.
    pub(crate) fn look_in(&mut self, folder: Option<&Path>) {
        let path = std::env::var_os("PATH").unwrap();
        let folders = folder.map(Path::to_owned).into_iter();
        self.path = std::env::join_paths(folders.chain(std::env::split_paths(&path))).unwrap();
    }

    /// Where the spec and its files lie, and where kiln is run.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `KILN_HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// The paths of the cluster, by the same rules as kiln's.
    pub(crate) fn cluster(&self) -> &ClusterFiles {
        &self.cluster
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// The spec, whose text may be JSON because that is YAML too.
    pub(crate) fn write_spec(&self, image: &Value, machines: &Value) {
        // The tests leave the host's network alone.
        self.write_spec_in("fabric", image, machines);
    }

    /// The same with another network than the fabric, for tests in a [`crate::support::world`].
    pub(crate) fn write_spec_in(&self, mode: &str, image: &Value, machines: &Value) {
        let spec = serde_json::json!({
            "cluster": self.cluster.name(),
            "image": image,
            "network": {"mode": mode},
            "machines": machines,
        });
        self.write("kiln.yaml", spec.to_string());
    }

    /// A copy that everybody may read, beside the spec.
    pub(crate) fn copy(&self, from: &Path) -> PathBuf {
        let to = self.folder.path().join(from.file_name().unwrap());
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
        to
    }

    /// kiln as the home's user, under the worst umask there is, with nothing of the environment
    /// but the search path.
    pub(crate) fn command(&self) -> Command {
        let mut command = match self.user {
            User::Myself => Command::new("sh"),
            User::Ordinary => {
                let mut command = Command::new("setpriv");
                command
                    .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")])
                    .args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
                    .arg("sh");
                command
            }
        };
        command
            .args(["-c", "umask 0; exec \"$@\"", "sh"])
            .arg(&self.kiln)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.folder.path())
            .env("KILN_HOME", self.home())
            .current_dir(self.folder.path());
        command
    }

    #[track_caller]
    pub(crate) fn kiln(&self, args: &[&str]) -> Ran {
        self.within(PROMPT, args)
    }

    /// For commands that may wait for guests.
    #[track_caller]
    pub(crate) fn within(&self, within: Duration, args: &[&str]) -> Ran {
        run(self.command().args(args), within)
    }

    /// The `result` of a command that has to succeed.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        self.kiln(&[&["--json"], args].concat()).ok().result()
    }

    /// A machine as `ps` shows it.
    #[track_caller]
    pub(crate) fn machine(&self, name: &str) -> Value {
        let ps = self.json(&["ps"]);
        machine_of(&ps, name)
    }

    #[track_caller]
    pub(crate) fn pid(&self, name: &str) -> u32 {
        let machine = self.machine(name);
        pid_of(&machine).unwrap_or_else(|| panic!("{name} has no process: {machine}"))
    }

    /// What a command in a guest prints; it has to succeed.
    #[track_caller]
    pub(crate) fn ssh(&self, machine: &str, command: &str) -> String {
        self.within(Duration::from_secs(60), &["ssh", machine, "--", command])
            .ok()
            .stdout
    }

    pub(crate) fn events(&self) -> Events {
        Events::of(&mut self.command())
    }

    pub(crate) fn supervisor(&self) -> u32 {
        pid_of(&self.json(&["ps"])["supervisor"]).unwrap()
    }

    /// `kiln down`, after which nothing may be left.
    #[track_caller]
    pub(crate) fn down(&self) {
        self.within(BOOT, &["down"]).ok();
        self.assert_clean();
    }

    /// No process, no socket, no file of the cluster.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let left = self.processes();
        assert!(left.is_empty(), "left running: {}", told(&left));
        let home = self.home();
        let files: Vec<PathBuf> = process::tree(&home)
            .into_keys()
            .map(|path| path.strip_prefix(&home).unwrap().to_owned())
            .filter(|path| !path.starts_with("cache"))
            .collect();
        // The folders stand; the lock is held while a subnet is chosen, for all clusters.
        let stay = ["run", "state", "state/clusters", "state/reservations.lock"];
        let left: Vec<&PathBuf> = files
            .iter()
            .filter(|path| !stay.iter().any(|stays| Path::new(stays) == *path))
            .collect();
        assert!(left.is_empty(), "left on the disk: {left:?}");
    }

    /// All of kiln's but the machines: the supervisor, and who leads out.
    pub(crate) fn helpers(&self) -> Vec<u32> {
        let machines = self.machines.iter().map(|name| self.cluster.uuid(name));
        let machines: Vec<u32> = machines
            .flat_map(|uuid| process::with_uuid(&uuid))
            .collect();
        let mut helpers = self.processes();
        helpers.retain(|pid| !machines.contains(pid));
        helpers.dedup();
        helpers
    }

    /// QEMUs by their uuids, all else of kiln's by the home in its environment.
    fn processes(&self) -> Vec<u32> {
        let mut pids = process::with("environ", &format!("KILN_HOME={}\0", self.home().display()));
        let uplink = self.cluster.uplink_uuid();
        pids.extend(process::with_uuid(&uplink));
        // A helper that takes no uuid has it behind its name.
        pids.extend(process::with("cmdline", &format!(":{uplink}\0")));
        for name in &self.machines {
            pids.extend(process::with_uuid(&self.cluster.uuid(name)));
        }
        pids
    }

    /// What a person would look at first when a test has failed.
    fn tell_logs(&self) {
        let logs = self.machines.iter().flat_map(|name| {
            let machine = self.cluster.machine(name);
            [machine.console_log(), machine.qemu_log()]
        });
        for log in logs.chain([self.cluster.supervisor_log()]) {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(25)..];
            eprintln!("--- the end of {}\n{}", log.display(), last.join("\n"));
        }
    }
}

/// Has a name and owns nothing.
const NOBODY: u32 = 65534;

impl Drop for Home {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.tell_logs();
        }
        let left = self.processes();
        if !left.is_empty() {
            let mut down = self.command();
            // It may fail: the test may have broken what it needs.
            let _ = down.args(["down", "--timeout", "0s"]).output();
        }
        for pid in self.processes() {
            eprintln!("had to kill {}", told(&[pid]));
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                Signal::SIGKILL,
            );
        }
        if !failed {
            assert!(left.is_empty(), "the test left processes behind: {left:?}");
            if self.home().exists() {
                self.assert_clean();
            }
        }
    }
}

fn told(pids: &[u32]) -> String {
    let command = |pid: &u32| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        format!("{pid}: {cmdline}")
    };
    pids.iter().map(command).collect::<Vec<_>>().join("\n")
}

/// One of `machines` in a result.
#[track_caller]
pub(crate) fn machine_of(result: &Value, name: &str) -> Value {
    let machines = result["machines"].as_array().unwrap();
    let found = machines.iter().find(|machine| machine["name"] == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {result}"))
        .clone()
}

pub(crate) fn pid_of(value: &Value) -> Option<u32> {
    value["pid"].as_u64()?.try_into().ok()
}
