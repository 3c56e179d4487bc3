//! The frames of a machine that is on QEMU's own user-mode network: QEMU copies them into a pipe.
//!
//! The filter that does so waits for its pipe, and the guest with it; so what comes is read at once, whoever reads it in
//! the end. It is set up and removed over the machine's spare QMP socket, and ends with the connection's last words or,
//! when this process is killed, with the pipe.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_netsetup::fabric::{Copies, Watchers};
use kiln_netsetup::pcapng::Direction;
use macaddr::MacAddr6;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe2;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;

use super::capture::Member;
use crate::supervisor::watch;

/// How long QEMU may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// What the pipe holds, in bytes, should this process be late.
const ROOM: i32 = 1 << 20;
/// A line of QMP that is longer ends the capture.
const LINE: u64 = 64 * 1024;
/// Longer frames are cut by QEMU.
const LONGEST: u32 = 128 * 1024;
/// The head of QEMU's file, and of each frame in it (libpcap's format, in the host's byte order).
const FILE_HEAD: usize = 24;
const FRAME_HEAD: usize = 16;

/// Has QEMU copy the machine's frames.
pub(super) async fn begin(machine: &Member) -> io::Result<Copies> {
    let mut monitor = tokio::time::timeout(DEADLINE, Monitor::open(machine))
        .await
        .map_err(|_| io::Error::other("its spare QMP socket is in use"))??;
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    // It opens the pipe anew, by a name in /proc.
    fchown(&theirs, machine.uid, None)?;
    // A smaller one does too.
    let _ = fcntl(&ours, FcntlArg::F_SETPIPE_SZ(ROOM));
    let set_up = monitor.set_up(theirs);
    tokio::time::timeout(DEADLINE, set_up)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let pipe = Receiver::from_owned_fd(ours)?;
    let mut watchers = Watchers::default();
    let copies = watchers.add();
    let mac = machine.mac;
    drop(tokio::spawn(async move {
        if let Err(error) = read(pipe, &mut watchers, mac).await {
            tracing::debug!(%error, "a capture ended");
        }
        // One that does not answer any more has no use for it either.
        let _ = tokio::time::timeout(DEADLINE, monitor.remove()).await;
    }));
    Ok(copies)
}

/// Takes apart what QEMU writes, until nobody wants it any more.
async fn read(mut pipe: Receiver, watchers: &mut Watchers, mac: MacAddr6) -> io::Result<()> {
    pipe.read_exact(&mut [0; FILE_HEAD]).await?;
    loop {
        let mut head = [0; FRAME_HEAD];
        let read = tokio::select! {
            read = pipe.read_exact(&mut head[..1]) => read,
            // A machine may be silent for long.
            () = watchers.gone() => return Ok(()),
        };
        read?;
        pipe.read_exact(&mut head[1..]).await?;
        let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; usize::try_from(length).unwrap_or(0)];
        pipe.read_exact(&mut frame).await?;
        let direction = match frame.get(6..12) == Some(mac.as_bytes()) {
            true => Direction::Out,
            false => Direction::In,
        };
        watchers.copy(direction, &frame);
        if watchers.is_empty() {
            return Ok(());
        }
    }
}

/// A connection to a QMP socket for these few commands, one of which carries a descriptor.
struct Monitor {
    stream: BufReader<UnixStream>,
    /// What the filter and its descriptor are called in QEMU.
    filter: String,
    set: Option<i64>,
}

impl Monitor {
    async fn open(machine: &Member) -> io::Result<Monitor> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut monitor = Monitor {
            stream: BufReader::new(watch::stream(&machine.monitor)?),
            filter: format!("capture-{}-{count}", std::process::id()),
            set: None,
        };
        monitor.line().await?;
        monitor.ask("qmp_capabilities", json!({}), None).await?;
        Ok(monitor)
    }

    async fn set_up(&mut self, pipe: OwnedFd) -> io::Result<()> {
        let added = self.ask("add-fd", json!({}), Some(&pipe)).await?;
        drop(pipe);
        self.set = added["fdset-id"].as_i64();
        let filter = json!({
            "qom-type": "filter-dump",
            "id": self.filter,
            "netdev": "net0",
            "maxlen": LONGEST,
            "file": format!("/proc/self/fd/{}", added["fd"]),
        });
        self.ask("object-add", filter, None).await?;
        Ok(())
    }

    async fn remove(&mut self) -> io::Result<()> {
        let id = json!({"id": self.filter});
        let removed = self.ask("object-del", id, None).await;
        if let Some(set) = self.set {
            self.ask("remove-fd", json!({"fdset-id": set}), None)
                .await?;
        }
        removed.map(drop)
    }

    async fn ask(&mut self, command: &str, with: Value, fd: Option<&OwnedFd>) -> io::Result<Value> {
        let line = json!({"execute": command, "arguments": with}).to_string() + "\n";
        match fd {
            None => self.stream.get_mut().write_all(line.as_bytes()).await?,
            Some(fd) => {
                let fds = [fd.as_raw_fd()];
                let stream = self.stream.get_ref();
                stream
                    .async_io(Interest::WRITABLE, || {
                        sendmsg::<()>(
                            stream.as_raw_fd(),
                            &[IoSlice::new(line.as_bytes())],
                            &[ControlMessage::ScmRights(&fds)],
                            MsgFlags::MSG_DONTWAIT,
                            None,
                        )
                        .map_err(io::Error::from)
                    })
                    .await?;
            }
        }
        loop {
            let mut answer = self.line().await?;
            if !answer["error"].is_null() {
                let why = answer["error"]["desc"].as_str().unwrap_or("no");
                return Err(io::Error::other(format!("QEMU refused `{command}`: {why}")));
            }
            if !answer["return"].is_null() {
                return Ok(answer["return"].take());
            }
        }
    }

    async fn line(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LINE);
        limited.read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}
