//! What the CLI and a supervisor say to each other over the control socket: JSON, one object a line.
//!
//! A connection carries one [`Request`]. The supervisor answers with [`Answer`]
//! lines; the last one is `Done` or `Refused`, but for `Watch`, which goes on until
//! either side closes, and for `Connect`, where after `Done` the connection is the
//! machine's TCP stream itself.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::state::record::{ReportRecord, SeenRecord, StateRecord};

/// A line longer than this ends the connection.
pub const LINE_LIMIT: usize = 1024 * 1024;

/// The reason of a machine that an `up` was to make which was broken off.
pub const NOT_MADE: &str = "not made yet; `kiln up` makes it";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// The state of all machines, once.
    Status,
    /// The state of all machines, then every change.
    Watch,
    /// Read the records again: machines that are new in them are known from then on,
    /// stopped ones take their changed record.
    Reload,
    /// Start these; those that run are left alone.
    Start {
        machines: Vec<String>,
    },
    /// Powerdown, deadline, quit, kill.
    Stop {
        machines: Vec<String>,
        grace_ms: u64,
    },
    Kill {
        machines: Vec<String>,
    },
    /// Stop the guests' vCPUs, or let them run again.
    Pause {
        machines: Vec<String>,
    },
    Resume {
        machines: Vec<String>,
    },
    /// Make a disk of a machine that runs larger; answered when QEMU has done it.
    Grow {
        machine: String,
        serial: String,
        /// In bytes.
        size: u64,
    },
    /// Know these no more; refused while one of them is alive.
    Forget {
        machines: Vec<String>,
    },
    /// What went through each machine's port, once.
    Traffic,
    /// All frames of the machine's NIC from now on: either the answer is `Handed`, with a packet socket of its tap, or
    /// after `Done` the connection is a stream of `capture::Record`s, until either side closes.
    Capture {
        machine: String,
    },
    /// Become a stream to this port of the machine.
    Connect {
        machine: String,
        port: u16,
    },
    /// End the supervisor; refused while a machine is alive. The answer is the end of the
    /// connection.
    Shutdown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Done,
    /// Done, and a descriptor came with the first byte of this line.
    Handed,
    Refused {
        why: String,
    },
    Status(ClusterStatus),
    Notice(Box<Notice>),
    Traffic {
        ports: Vec<PortTraffic>,
    },
}

/// What went through a machine's port since it was plugged in; what it sent has come out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortTraffic {
    pub machine: String,
    /// Its tap, where it has one.
    pub link: Option<String>,
    pub sent: u64,
    pub sent_bytes: u64,
    pub received: u64,
    pub received_bytes: u64,
    /// What got lost either way; in the fabric with what the machine was not allowed to send.
    pub dropped: u64,
}

/// What `ps` shows, but for what the records say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The supervisor's own.
    pub pid: u32,
    /// What the way out to the world is; empty when all is well.
    pub uplink: String,
    /// What is wrong with the network as a whole, a sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
    pub machines: Vec<MachineStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    pub name: String,
    pub state: StateRecord,
    pub reason: String,
    /// How far the boot has come: `start, firmware, kernel, ignition[: STAGE], userspace, ready`.
    pub phase: String,
    pub pid: Option<u32>,
    pub addresses: Vec<SeenRecord>,
    pub report: Option<ReportRecord>,
    /// RFC 3339.
    pub started_at: Option<String>,
    /// What does not work of it while it runs, a sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One thing that happened, as `kiln events` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// RFC 3339 with milliseconds.
    pub time: String,
    pub event: String,
    pub machine: Option<String>,
    pub detail: String,
    /// The machine as it is now.
    pub status: Option<MachineStatus>,
}

impl MachineStatus {
    /// The reserved address, once it was seen in use.
    pub fn has_address(&self, ip: Ipv4Addr) -> bool {
        self.addresses.iter().any(|seen| seen.ip == IpAddr::V4(ip))
    }
}
