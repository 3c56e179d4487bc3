//! A folder of its own for each test: a spec, kiln's home, and a PATH with the fake QEMU.
//!
//! Nothing of the test's own environment reaches kiln. When the test ends, however it ends,
//! its clusters are taken down and what still runs of it is killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::process;

/// No command of these tests takes longer, however loaded the machine is.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// The smallest Ignition config.
pub(crate) const EMPTY_CONFIG: &str = r#"{"ignition":{"version":"3.3.0"}}"#;

pub(crate) struct World {
    temp: TempDir,
}

/// How a command ended; the test's own folder is called `TMP` in both texts.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Absent when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    pub(crate) argv: Vec<String>,
}

impl Running {
    pub(crate) fn is_qemu(&self) -> bool {
        self.argv[0].ends_with(QEMU)
    }

    /// `CLUSTER/MACHINE`, as QEMU was told.
    pub(crate) fn name(&self) -> String {
        let told = self
            .argv
            .iter()
            .find_map(|word| word.strip_prefix("guest="));
        told.unwrap_or("uplink").to_owned()
    }

    pub(crate) fn kill(&self) {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).unwrap();
    }
}

impl World {
    /// With the fake QEMU, a real qemu-img, and an image for direct kernel boot.
    pub(crate) fn new() -> World {
        let world = World::without_qemu();
        let fake = Path::new(env!("CARGO_BIN_EXE_kiln"))
            .with_file_name("examples")
            .join("fake-qemu");
        assert!(
            fake.exists(),
            "{} is missing: `cargo build --example fake-qemu` makes it",
            fake.display()
        );
        world.install(&fake);
        world.link_tool("qemu-img");
        world.write("spec/vmlinuz", "a kernel");
        world.write("spec/node.ign", EMPTY_CONFIG);
        world
    }

    /// Puts another file in the QEMU's place.
    ///
    /// Copied by another process: a descriptor of ours that is open for writing could be inherited
    /// by a child of another test, and the program could not be started meanwhile.
    fn install(&self, fake: &Path) {
        let qemu = self.path("bin").join(QEMU);
        let copied = Command::new("cp")
            .arg("--remove-destination")
            .args([fake, &qemu])
            .status();
        assert!(copied.unwrap().success());
    }

    /// The QEMU is exchanged for one of this version, as an upgrade of packages does it.
    pub(crate) fn becomes(&self, version: &str) {
        self.write("bin/VERSION", version);
        let copy = self.path("fake");
        fs::copy(self.path("bin").join(QEMU), &copy).unwrap();
        self.install(&copy);
    }

    /// With nothing on the PATH.
    pub(crate) fn without_qemu() -> World {
        let temp = tempfile::Builder::new()
            .prefix("kiln-it-")
            .tempdir()
            .unwrap();
        let world = World { temp };
        // As root, QEMU runs as another user, who has to get at the program.
        fs::set_permissions(world.temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["bin", "spec"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        world
    }

    pub(crate) fn link_tool(&self, name: &str) {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|folder| folder.join(name))
            .find(|file| file.exists());
        let found = found.unwrap_or_else(|| panic!("`{name}` is not installed"));
        symlink(found, self.path("bin").join(name)).unwrap();
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// The folder of a machine's files.
    pub(crate) fn machine(&self, cluster: &str, machine: &str) -> PathBuf {
        self.home()
            .join("state/clusters")
            .join(cluster)
            .join("machines")
            .join(machine)
    }

    /// A spec that does not say how its machines are joined is completed: in the fabric, because the tests leave the
    /// host's network alone.
    pub(crate) fn write(&self, below: &str, text: impl AsRef<[u8]>) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut text = text.as_ref().to_vec();
        let has = |words: &str| process::contains(&text, words);
        if below.ends_with(".yaml")
            && has("\nmachines:")
            && !has("\nnetwork:")
            && text.ends_with(b"\n")
        {
            text.extend(b"network: {mode: fabric}\n");
        }
        fs::write(path, text).unwrap();
    }

    pub(crate) fn spec(&self, text: &str) {
        self.write("spec/kiln.yaml", text);
    }

    /// A cluster `demo` of `count` machines `node-1`…, with further lines for the group.
    pub(crate) fn nodes(&self, count: u32, more: &str) {
        let mut text = format!(
            "cluster: demo\n\
             image: {{kernel: vmlinuz}}\n\
             network: {{mode: fabric, subnet: 10.213.7.0/24}}\n\
             machines:\n  node:\n    count: {count}\n    accel: tcg\n    ignition: node.ign\n"
        );
        for line in more.lines() {
            text.push_str(&format!("    {line}\n"));
        }
        self.spec(&text);
    }

    /// What goes wrong: see the head of the fake QEMU.
    pub(crate) fn behave(&self, behaviors: &Value) {
        self.write("bin/FAKE.json", behaviors.to_string());
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(args)
            .env_clear()
            .env("KILN_HOME", self.home())
            .env("HOME", self.temp.path())
            .env("PATH", self.path("bin"))
            .current_dir(self.path("spec"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, args: &[&str]) -> Going<'_> {
        Going {
            world: self,
            begun: Instant::now(),
            what: format!("kiln {}", args.join(" ")),
            child: self.command(args).spawn().unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn kiln(&self, args: &[&str]) -> Ended {
        self.start(args).end()
    }

    /// What a command printed that has to succeed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ended = self.kiln(args);
        assert_eq!(ended.code, Some(0), "kiln {args:?}: {}", ended.stderr);
        ended.stdout
    }

    /// `result` of a command with `--json` that has to succeed.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let text = self.ok(&args);
        let mut value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], 1);
        assert_eq!(value["ok"], true);
        value["result"].take()
    }

    /// The pid of each machine that has one.
    #[track_caller]
    pub(crate) fn pids(&self) -> BTreeMap<String, i32> {
        self.ps()
            .into_iter()
            .filter_map(|(name, machine)| Some((name, machine["pid"].as_i64()?.try_into().ok()?)))
            .collect()
    }

    /// `name: state (reason)` of each machine.
    #[track_caller]
    pub(crate) fn states(&self) -> Vec<String> {
        let told = |(name, machine): (String, Value)| {
            let state = machine["state"].as_str().unwrap().to_owned();
            match machine["reason"].as_str().unwrap() {
                "" => format!("{name}: {state}"),
                reason => format!("{name}: {state} ({})", self.plain(reason)),
            }
        };
        self.ps().into_iter().map(told).collect()
    }

    /// The machines of `demo` by their names.
    #[track_caller]
    pub(crate) fn ps(&self) -> BTreeMap<String, Value> {
        let result = self.json(&["-c", "demo", "ps"]);
        let machines = result["machines"].as_array().unwrap();
        machines
            .iter()
            .map(|machine| {
                (
                    machine["name"].as_str().unwrap().to_owned(),
                    machine.clone(),
                )
            })
            .collect()
    }

    pub(crate) fn plain(&self, text: &str) -> String {
        text.replace(self.temp.path().to_str().unwrap(), "TMP")
    }

    /// All below kiln's home: mode, kind, length of files, path. The cache is left out: it
    /// holds facts that may be thrown away at any time. So is what the user has put there.
    pub(crate) fn tree(&self) -> Vec<String> {
        let mut lines = Vec::new();
        walk(&self.home(), &mut |path, metadata| {
            let below = path.strip_prefix(self.home()).unwrap();
            let told = !below.starts_with("cache") && !below.starts_with("config");
            if told && !below.as_os_str().is_empty() {
                let mode = metadata.mode() & 0o7777;
                lines.push(format!("{mode:04o} {}", below.display()));
            }
        });
        lines.sort();
        lines
    }

    /// All processes that this test's kiln started and that still run, in the order of their pids.
    pub(crate) fn processes(&self) -> Vec<Running> {
        let home = format!("KILN_HOME={}", self.home().display());
        let bin = self.path("bin");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let words = |file: &str| -> Vec<String> {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                bytes
                    .split(|byte| *byte == 0)
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .collect()
            };
            let argv = words("cmdline");
            let ours = Path::new(&argv[0]).starts_with(&bin)
                || (argv[0] == "kiln" && words("environ").contains(&home));
            if ours {
                found.push(Running { pid, argv });
            }
        }
        found.sort();
        found
    }

    pub(crate) fn qemus(&self) -> Vec<Running> {
        let mut found = self.processes();
        found.retain(Running::is_qemu);
        found
    }

    /// Waits until so many QEMUs run. The uplink, which is one, comes after the machines.
    #[track_caller]
    pub(crate) fn settle(&self, qemus: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.qemus().len() != qemus {
            let names: Vec<String> = self.qemus().iter().map(Running::name).collect();
            assert!(Instant::now() < deadline, "not {qemus} but {names:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn supervisors(&self) -> Vec<Running> {
        let mut found = self.processes();
        found.retain(|process| !process.is_qemu());
        found
    }

    /// Nothing of kiln is left but its cache, nor does anything run.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        wait_until("all processes are gone", || self.processes().is_empty());
        let left: Vec<String> = self
            .tree()
            .into_iter()
            .filter(|line| !EMPTY_HOME.contains(&line.as_str()))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

/// What stays of a home in which there is no cluster.
const EMPTY_HOME: [&str; 4] = [
    "0700 run",
    "0700 state",
    "0700 state/clusters",
    "0600 state/reservations.lock",
];

impl Drop for World {
    fn drop(&mut self) {
        let clusters = fs::read_dir(self.home().join("state/clusters"));
        for entry in clusters.into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".ledger") {
                let _ = self
                    .command(&["-c", name, "down", "--timeout", "0s"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
        for process in self.processes() {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

/// A command that was started.
pub(crate) struct Going<'a> {
    world: &'a World,
    begun: Instant,
    what: String,
    child: Child,
}

impl Going<'_> {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let stdout = read(self.child.stdout.take().unwrap());
        let stderr = read(self.child.stderr.take().unwrap());
        let (Ok(stdout), Ok(stderr)) =
            (stdout.recv_timeout(DEADLINE), stderr.recv_timeout(DEADLINE))
        else {
            self.child.kill().unwrap();
            panic!("`{}` takes longer than {DEADLINE:?}", self.what);
        };
        let status = self.child.wait().unwrap();
        Ended {
            code: status.code(),
            signal: status.signal(),
            stdout: self.world.plain(&stdout),
            stderr: self.world.plain(&stderr),
            took: self.begun.elapsed(),
        }
    }

    /// Ctrl-C.
    #[track_caller]
    pub(crate) fn interrupted(self) -> Ended {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        self.end()
    }

    /// SIGKILL, unless it ends within `delay`.
    pub(crate) fn killed_after(mut self, delay: Duration) -> Ended {
        thread::sleep(delay);
        self.child.kill().unwrap();
        self.end()
    }
}

fn read(mut stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// For what only `/proc` and the file system show, which tell nobody when they change.
#[track_caller]
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn walk(folder: &Path, see: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let Ok(metadata) = fs::symlink_metadata(folder) else {
        return;
    };
    see(folder, &metadata);
    if metadata.is_dir() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            walk(&entry.path(), see);
        }
    }
}

/// Whether a file holds these bytes.
pub(crate) fn holds(path: &Path, marker: &str) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    bytes
        .windows(marker.len())
        .any(|window| window == marker.as_bytes())
}
