//! What the tasks tell the loop. Tasks share no state; they send these.

use tokio::sync::mpsc;

use crate::supervisor::machine::{Event, RunStatus};
use crate::supervisor::network::Peer;
use crate::supervisor::network::capture::Member;
use crate::supervisor::protocol::{Answer, Request};
use crate::supervisor::qmp::Qmp;
use crate::supervisor::routes::Overlap;

/// Something for the loop.
#[derive(Debug)]
pub(super) enum Message {
    /// Of the QEMU that was launched as this `generation`; one of a former life is stale.
    Machine {
        name: String,
        generation: u64,
        news: News,
    },
    /// Of a connection to the control socket.
    Asked {
        request: Request,
        replies: mpsc::Sender<Reply>,
    },
    /// The routes of the host that overlap the cluster's subnet are now these.
    Routes(Vec<Overlap>),
    /// The uplink's process is gone.
    UplinkExited { generation: u64, how: String },
}

/// News of one machine.
#[derive(Debug)]
pub(super) enum News {
    Event(Event),
    /// QMP is up; `status` is absent when the vCPUs still wait for their first `cont`.
    Qmp {
        qmp: Qmp,
        status: Option<RunStatus>,
    },
}

/// What the loop answers a connection.
#[derive(Debug)]
pub(super) enum Reply {
    Line(Answer),
    /// Tell what went through the cluster's network.
    Traffic,
    /// Give all frames of this machine.
    Capture {
        machine: Member,
    },
    /// Become a stream to this machine of the cluster's network.
    Stream {
        peer: Peer,
        port: u16,
    },
}
