//! All frames of one machine, for whoever asked: a packet socket of its tap where there is one, else copies.
//!
//! A reader that is slow loses frames and is told how many; nobody waits for it, the machine least of all.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use kiln_netsetup::fabric::Copies;
use macaddr::MacAddr6;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::{Network, dump};
use crate::supervisor::capture::Record;
use crate::supervisor::control;
use crate::supervisor::protocol::Answer;

/// The machine, and how its QEMU is asked for its frames.
#[derive(Debug, Clone)]
pub(in crate::supervisor) struct Member {
    pub(in crate::supervisor) name: String,
    pub(in crate::supervisor) mac: MacAddr6,
    /// Who its QEMU runs as, where that is not kiln's own user.
    pub(in crate::supervisor) uid: Option<u32>,
    /// A QMP socket of its that nobody uses.
    pub(in crate::supervisor) monitor: PathBuf,
}

/// Where the frames come from.
enum Source {
    Tap(OwnedFd),
    Copies(Copies),
}

/// Serves a connection that asked for the frames, until either side ends it.
pub(in crate::supervisor) async fn serve(
    mut stream: UnixStream,
    machine: &Member,
    network: &Network,
) -> io::Result<()> {
    match source(machine, network).await {
        Ok(Source::Tap(socket)) => hand(&stream, &socket).await,
        Ok(Source::Copies(copies)) => {
            control::write(&mut stream, &Answer::Done).await?;
            copy(stream, copies).await
        }
        Err(error) => {
            let why = if error.kind() == io::ErrorKind::NotFound {
                format!("machine `{}` is not plugged in", machine.name)
            } else {
                let name = &machine.name;
                format!("the frames of machine `{name}` cannot be had: {error}")
            };
            control::write(&mut stream, &Answer::Refused { why }).await
        }
    }
}

async fn source(machine: &Member, network: &Network) -> io::Result<Source> {
    Ok(match network {
        Network::Fabric(fabric) => Source::Copies(fabric.capture(&machine.name).await?),
        Network::Namespace(namespaced) => {
            let bridge = namespaced.found().ok_or(io::ErrorKind::NotFound)?;
            Source::Tap(bridge.capture(&machine.name)?)
        }
        Network::Attach(attached) => {
            let attach = attached.attach().map_err(io::Error::other)?;
            Source::Tap(attach.capture(&machine.name)?)
        }
        Network::User(_) => Source::Copies(dump::begin(machine).await?),
    })
}

/// Passes the socket with the answer.
async fn hand(stream: &UnixStream, socket: &OwnedFd) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Answer::Handed)?;
    line.push(b'\n');
    let fds = [socket.as_raw_fd()];
    stream
        .async_io(Interest::WRITABLE, || {
            let sent = sendmsg::<()>(
                stream.as_raw_fd(),
                &[IoSlice::new(&line)],
                &[ControlMessage::ScmRights(&fds)],
                MsgFlags::MSG_DONTWAIT,
                None,
            )?;
            // So short a line goes whole or not at all.
            if sent < line.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
            Ok(())
        })
        .await
}

async fn copy(mut stream: UnixStream, mut copies: Copies) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut scratch = [0; 64];
    loop {
        let copied = tokio::select! {
            copied = copies.next() => copied,
            // A reader says nothing; that it can be read means that it went away.
            read = reader.read(&mut scratch) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        let Some(copied) = copied else { return Ok(()) };
        let record = Record {
            time: copied.time,
            direction: copied.direction,
            dropped: copies.dropped(),
            frame: copied.frame,
        };
        writer.write_all(&record.to_bytes()).await?;
    }
}
