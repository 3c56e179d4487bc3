//! QEMUs as a shell would start them: the machine's own command line, and nobody who looks after it.
//!
//! This program starts itself once more as the launcher. It opens the machine's descriptors in
//! order, so that each gets the number that the command line names, says so, waits for the word,
//! and becomes QEMU. Nothing before that word is in the time.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln::state::files;
use kiln::state::layout::{MachineFiles, Socket};
use kiln::state::record::{ClusterRecord, MachineRecord, ModeRecord};
use kiln::supervisor::launch::{self, Plug};
use kiln::supervisor::process::Identity;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::world::Cluster;
use crate::{Outcome, qmp};

/// The first word of a launcher's command line; the folder of the machine, and that of the raw
/// QEMU's own files and sockets, follow.
pub(crate) const LAUNCHER: &str = "--launch-raw";

/// A launcher that waits for the word. Dropped, it is killed, or the QEMU that it became.
#[derive(Debug)]
struct Staged {
    child: Child,
    qmp: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts all machines of the cluster at once, and gives the time until the last one is ready.
pub(crate) fn all(cluster: &Cluster<'_>) -> Outcome<Duration> {
    let mut staged = Vec::new();
    for name in cluster.machines() {
        staged.push(stage(cluster, &name)?);
    }
    cluster.world.settle();
    let begun = Instant::now();
    for staged in &mut staged {
        staged
            .child
            .stdin
            .take()
            .ok_or("no stdin")?
            .write_all(b"\n")?;
    }
    for staged in &staged {
        qmp::ready(&staged.qmp)?;
    }
    Ok(begun.elapsed())
}

fn stage(cluster: &Cluster<'_>, name: &str) -> Outcome<Staged> {
    let own = cluster.world.raw(name)?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(LAUNCHER)
        .arg(cluster.machine_folder(name))
        .arg(&own)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let said = child.stdout.take().ok_or("no stdout")?;
    let staged = Staged {
        child,
        qmp: files_of(own).socket(Socket::Qmp),
    };
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    if line != "staged\n" {
        return Err(format!("the launcher of {name} said {line:?}").into());
    }
    Ok(staged)
}

fn files_of(own: PathBuf) -> MachineFiles {
    MachineFiles {
        folder: own.clone(),
        sockets: own,
        disks: PathBuf::new(),
    }
}

/// The launcher's life; on success it does not return.
pub(crate) fn launch(mut words: impl Iterator<Item = OsString>) -> Outcome<()> {
    let mut folder = || words.next().map(PathBuf::from).ok_or("a folder is missing");
    let (made, own) = (folder()?, folder()?);
    let record: MachineRecord =
        files::load(&made.join("machine.json"))?.ok_or("the machine has no record")?;
    if record.disk.is_some() {
        return Err("the raw QEMU would share the machine's disk".into());
    }
    close_inherited()?;
    let own = files_of(own);
    std::fs::copy(made.join("config.ign"), own.ignition())?;
    // The machine's folder is two below its cluster's.
    let cluster = made.join("../../cluster.json");
    let cluster = ClusterRecord {
        name: "raw".to_owned(),
        mode: ModeRecord::Fabric,
        ..files::load(&cluster)?.ok_or("the machine has no cluster")?
    };
    let (machine, handles) = launch::supervised(&cluster, &record, &own)?;
    let command = kiln_arch::render(&machine)?;
    // Each takes the lowest free number, so they come in the order of the command line.
    let opened = launch::open(&handles, Plug::default(), &own, Identity::Same)?;
    for (fd, number) in &opened.fds {
        if std::os::fd::AsRawFd::as_raw_fd(fd) != *number {
            return Err(format!("descriptor {number} came out as {fd:?}").into());
        }
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let mut qemu = Command::new(&record.qemu);
    qemu.args(command.argv())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    std::io::stdout().write_all(b"staged\n")?;
    std::io::stdout().flush()?;
    if std::io::stdin().read(&mut [0])? == 0 {
        return Err("the benchmark went away".into());
    }
    Err(qemu.exec().into())
}

/// Closes what this program's own caller left open, so that the numbers from 3 on are free.
fn close_inherited() -> Outcome<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    for number in open.into_iter().filter(|number| *number > 2) {
        // The listing's own descriptor is among them, and gone already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}
