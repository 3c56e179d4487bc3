//! Machines that are alone, each on the user-mode network (slirp) of its own QEMU.
//!
//! A port of such a machine is reached by a forward of QEMU's: it listens on a port of the host's loopback that the
//! kernel chooses. One is made when the first connection asks for it, and stays for as long as QEMU does; a later
//! supervisor finds it in QEMU's own list.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kiln_netsetup::fabric::FabricEvent;
use qapi::qmp::human_monitor_command;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Peer;
use crate::supervisor::qmp::Qmp;

/// The machines whose QEMUs answer.
#[derive(Debug)]
pub(in crate::supervisor) struct Alone {
    /// One at a time asks a QEMU, so that none makes a forward twice.
    members: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Qmp>>>>,
    /// Nothing is seen of such machines; held so that nobody takes the silence for the end.
    _events: mpsc::UnboundedSender<FabricEvent>,
}

impl Alone {
    pub(super) fn new(events: mpsc::UnboundedSender<FabricEvent>) -> Alone {
        Alone {
            members: Mutex::new(HashMap::new()),
            _events: events,
        }
    }

    pub(super) fn met(&self, name: &str, qmp: Qmp) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.insert(name.to_owned(), Arc::new(tokio::sync::Mutex::new(qmp)));
    }

    pub(super) async fn connect(
        &self,
        peer: &Peer,
        port: u16,
        deadline: Instant,
    ) -> io::Result<TcpStream> {
        let member = {
            let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
            members.get(&peer.machine).cloned()
        };
        let member = member.ok_or(io::ErrorKind::HostUnreachable)?;
        let forward = async {
            let qmp = member.lock().await;
            if let Some(host) = forwarded(&qmp, peer.ip, port, deadline).await? {
                return Ok(host);
            }
            let ip = peer.ip;
            let add = format!("hostfwd_add net0 tcp:127.0.0.1:0-{ip}:{port}");
            let said = ask(&qmp, add, deadline).await?;
            let host = forwarded(&qmp, ip, port, deadline).await?;
            host.ok_or_else(|| io::Error::other(format!("QEMU forwards no port: {said}")))
        };
        let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
        let host = tokio::time::timeout_at(deadline.into(), forward)
            .await
            .map_err(|_| timed_out())??;
        let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, host));
        tokio::time::timeout_at(deadline.into(), connecting)
            .await
            .map_err(|_| timed_out())?
    }
}

async fn ask(qmp: &Qmp, command_line: String, deadline: Instant) -> io::Result<String> {
    let command = human_monitor_command {
        command_line,
        cpu_index: None,
    };
    qmp.execute(command, deadline.into())
        .await
        .map_err(io::Error::other)
}

/// The port of the host's that leads to `port` of the machine already.
async fn forwarded(
    qmp: &Qmp,
    ip: Ipv4Addr,
    port: u16,
    deadline: Instant,
) -> io::Result<Option<u16>> {
    let list = ask(qmp, "info usernet".to_owned(), deadline).await?;
    Ok(list.lines().find_map(|line| forward_to(line, ip, port)))
}

/// The host's port in a line of `info usernet`: protocol, state, descriptor, source, destination, queues.
fn forward_to(line: &str, ip: Ipv4Addr, port: u16) -> Option<u16> {
    let mut words = line.split_ascii_whitespace();
    let kind = words.next()? == "TCP[HOST_FORWARD]";
    let source = (words.nth(1)?, words.next()?);
    let destination = (words.next()?, words.next()?);
    let is_one = kind
        && source.0 == "127.0.0.1"
        && destination.0.parse() == Ok(ip)
        && destination.1.parse() == Ok(port);
    is_one.then(|| source.1.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_found_in_qemu_s_list() {
        let list = "Hub -1 (net0):\r\n\
            \x20 Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n\
            \x20 TCP[ESTABLISHED]   20       10.0.2.15 40000       1.2.3.4    22     0     0\r\n\
            \x20 TCP[HOST_FORWARD]  12       127.0.0.1 41234       10.0.2.15    22     0     0\r\n\
            \x20 TCP[HOST_FORWARD]  13               * 41235       10.0.2.15    80     0     0\r\n\
            \x20 TCP[HOST_FORWARD]\r\n";
        let find = |port| {
            let ip = Ipv4Addr::new(10, 0, 2, 15);
            list.lines().find_map(|line| forward_to(line, ip, port))
        };
        assert_eq!(find(22), Some(41234));
        // One that listens on all addresses is not kiln's.
        assert_eq!(find(80), None);
    }
}
