//! The server side of the control socket: one task a connection, one request each.
//!
//! Only root and the supervisor's own uid are served, whatever the socket's mode says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::error::in_one_line;
use crate::supervisor::dispatcher::WATCHER;
use crate::supervisor::message::{Message, Reply};
use crate::supervisor::network::{Network, capture};
use crate::supervisor::protocol::{Answer, LINE_LIMIT, Request};

/// How long a client may take to say what it wants, and a guest to take a connection.
const DEADLINE: Duration = Duration::from_secs(10);

/// Serves one connection until either side ends it.
pub(super) fn serve(
    stream: UnixStream,
    uid: u32,
    inbox: mpsc::Sender<Message>,
    network: Arc<Network>,
) {
    drop(tokio::spawn(async move {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer.uid(),
            Err(error) => {
                tracing::warn!(%error, "a client without credentials was turned away");
                return;
            }
        };
        if peer != uid && peer != 0 {
            tracing::warn!(peer, "a client of another user was turned away");
            return;
        }
        if let Err(error) = converse(stream, inbox, network).await {
            tracing::debug!(%error, "a client went away");
        }
    }));
}

async fn converse(
    mut stream: UnixStream,
    inbox: mpsc::Sender<Message>,
    network: Arc<Network>,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::with_capacity(512, reader);
    let mut line = Vec::new();
    let mut limited = (&mut reader).take(LINE_LIMIT as u64);
    let read = tokio::time::timeout(DEADLINE, limited.read_until(b'\n', &mut line));
    read.await??;
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let why = format!("that is no request: {error}");
            return write(&mut writer, &Answer::Refused { why }).await;
        }
    };
    let room = match request {
        Request::Watch => WATCHER,
        Request::Status
        | Request::Reload
        | Request::Start { .. }
        | Request::Stop { .. }
        | Request::Kill { .. }
        | Request::Pause { .. }
        | Request::Resume { .. }
        | Request::Grow { .. }
        | Request::Forget { .. }
        | Request::Traffic
        | Request::Capture { .. }
        | Request::Connect { .. }
        | Request::Shutdown => 1,
    };
    let (replies, mut answers) = mpsc::channel(room);
    if inbox
        .send(Message::Asked { request, replies })
        .await
        .is_err()
    {
        return Ok(());
    }
    let mut scratch = [0; 64];
    loop {
        let reply = tokio::select! {
            reply = answers.recv() => reply,
            // A client says nothing more; that it can be read means that it went away.
            read = reader.read(&mut scratch) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        match reply {
            None => return Ok(()),
            Some(Reply::Line(answer)) => write(&mut writer, &answer).await?,
            Some(Reply::Traffic) => {
                let answer = match network.traffic().await {
                    Ok(ports) => Answer::Traffic { ports },
                    Err(error) => Answer::Refused {
                        why: in_one_line(&error),
                    },
                };
                return write(&mut writer, &answer).await;
            }
            Some(Reply::Capture { machine }) => {
                return capture::serve(stream, &machine, &network).await;
            }
            Some(Reply::Stream { peer, port }) => {
                let deadline = Instant::now() + DEADLINE;
                let mut inside = match network.connect(&peer, port, deadline).await {
                    Ok(inside) => inside,
                    Err(error) => {
                        let why = format!(
                            "no connection to port {port} of machine `{}`: {error}",
                            peer.machine
                        );
                        return write(&mut writer, &Answer::Refused { why }).await;
                    }
                };
                write(&mut writer, &Answer::Done).await?;
                tokio::io::copy_bidirectional(&mut stream, &mut inside).await?;
                return Ok(());
            }
        }
    }
}

pub(super) async fn write(
    writer: &mut (impl AsyncWriteExt + Unpin),
    answer: &Answer,
) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
