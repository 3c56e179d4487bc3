//! Where the benchmark takes place: a home of its own, with specs that boot the tiny guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Outcome;

/// Lets the kernel finish with the processes of the last turn.
const SETTLE: Duration = Duration::from_millis(50);

/// Dropped, it takes all its files along.
#[derive(Debug)]
pub(crate) struct World {
    folder: TempDir,
    kiln: PathBuf,
    guest: PathBuf,
}

/// A spec with `count` machines and what kiln makes of it. Dropped, it is taken down.
#[derive(Debug)]
pub(crate) struct Cluster<'a> {
    pub(crate) world: &'a World,
    name: String,
    count: usize,
}

impl World {
    pub(crate) fn new(guest: Option<&Path>, kiln: Option<&Path>) -> Outcome<World> {
        let guest = match guest {
            Some(guest) => std::path::absolute(guest)?,
            None => build_guest()?,
        };
        let kiln = match kiln {
            Some(kiln) => std::path::absolute(kiln)?,
            // This is target/release/examples/bench.
            None => std::env::current_exe()?
                .parent()
                .and_then(Path::parent)
                .ok_or("this program lies nowhere")?
                .join("kiln"),
        };
        if !kiln.is_file() {
            return Err(format!("there is no `{}`: build it first", kiln.display()).into());
        }
        Ok(World {
            folder: TempDir::with_prefix("kiln-bench-")?,
            kiln,
            guest,
        })
    }

    pub(crate) fn cluster(&self, name: &str, count: usize) -> Outcome<Cluster<'_>> {
        self.cluster_on(name, count, None)
    }

    /// A cluster whose machines have their disks over this image.
    pub(crate) fn cluster_on(
        &self,
        name: &str,
        count: usize,
        base: Option<&Path>,
    ) -> Outcome<Cluster<'_>> {
        let cluster = Cluster {
            world: self,
            name: name.to_owned(),
            count,
        };
        let guest = |file: &str| self.guest.join(file);
        let spec = format!(
            "cluster: {name}\n\
             image: {{kernel: {:?}, initrd: {:?}, cmdline: {:?}{}}}\n\
             network: {{mode: fabric, subnet: 10.{}.0.0/16}}\n\
             machines:\n  node: {{count: {count}, accel: tcg, memory: 256MiB}}\n",
            guest("kernel"),
            guest("initrd"),
            std::fs::read_to_string(guest("cmdline"))?.trim_end(),
            base.map_or_else(String::new, |base| format!(", disk: {base:?}")),
            // Apart from each other: two clusters may be there at once.
            200 + name.len(),
        );
        std::fs::create_dir_all(cluster.folder())?;
        std::fs::write(cluster.folder().join("kiln.yaml"), spec)?;
        Ok(cluster)
    }

    /// An empty folder for a raw QEMU's files.
    pub(crate) fn raw(&self, name: &str) -> Outcome<PathBuf> {
        let folder = self.folder.path().join("raw").join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    pub(crate) fn settle(&self) {
        std::thread::sleep(SETTLE);
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }
}

impl Cluster<'_> {
    fn folder(&self) -> PathBuf {
        self.world.folder.path().join(&self.name)
    }

    /// The machine's folder in kiln's state.
    pub(crate) fn machine_folder(&self, machine: &str) -> PathBuf {
        let clusters = self.world.home().join("state/clusters");
        clusters.join(&self.name).join("machines").join(machine)
    }

    pub(crate) fn machines(&self) -> Vec<String> {
        (1..=self.count)
            .map(|index| format!("node-{index}"))
            .collect()
    }

    /// Runs kiln to its end and gives the time that it took.
    pub(crate) fn kiln(&self, words: &[&str]) -> Outcome<Duration> {
        self.run(words).map(|(_, took)| took)
    }

    /// The supervisor's process.
    pub(crate) fn supervisor(&self) -> Outcome<u64> {
        let (output, _) = self.run(&["ps", "--json"])?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let pid = answer.pointer("/result/supervisor/pid");
        let pid = pid.and_then(serde_json::Value::as_u64);
        Ok(pid.ok_or("`kiln ps` names no supervisor")?)
    }

    fn run(&self, words: &[&str]) -> Outcome<(Output, Duration)> {
        let mut command = Command::new(&self.world.kiln);
        command
            .args(words)
            .current_dir(self.folder())
            .env("KILN_HOME", self.world.home())
            .stdin(Stdio::null());
        let begun = Instant::now();
        let output = command.output()?;
        let took = begun.elapsed();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`kiln {}` failed: {said}", words.join(" ")).into());
        }
        Ok((output, took))
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // After a failure this is the way down; after success there is nothing to do.
        let _ = self.run(&["kill"]);
        let _ = self.run(&["down"]);
    }
}

/// Built once from the distribution's packages, and cached.
fn build_guest() -> Outcome<PathBuf> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build");
    let output = Command::new(build)
        .args(["tiny", "x86_64"])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("the tiny guest cannot be built; name one by --guest".into());
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
}
