//! Published ports: a listener on the host for each, spliced to the guest through the network.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::state::record::PortRecord;
use crate::supervisor::network::{Network, Peer};

/// How long a guest may take to answer a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Connections of one port at a time; more wait in the kernel's backlog.
const CONNECTIONS: usize = 256;

/// Why a port is not published.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the guest's port {guest}")]
pub(super) struct PortError {
    address: SocketAddrV4,
    guest: u16,
    #[source]
    source: io::Error,
}

/// Listens on every host port and forwards to the machine; the tasks end when they are aborted.
///
/// # Errors
/// The first port that cannot be listened on; none is then.
pub(super) fn publish(
    ports: &[PortRecord],
    peer: &Peer,
    network: &Arc<Network>,
) -> Result<Vec<JoinHandle<()>>, PortError> {
    let mut listeners = Vec::with_capacity(ports.len());
    for port in ports {
        let address = SocketAddrV4::new(port.bind, port.host);
        let listener = listen(address).map_err(|source| PortError {
            address,
            guest: port.guest,
            source,
        })?;
        listeners.push((listener, port.guest));
    }
    Ok(listeners
        .into_iter()
        .map(|(listener, guest)| {
            tokio::spawn(forward(listener, peer.clone(), guest, network.clone()))
        })
        .collect())
}

/// `std`'s listener sets SO_REUSEADDR, so that a restarted machine has its port at once.
fn listen(address: SocketAddrV4) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn forward(listener: TcpListener, peer: Peer, guest: u16, network: Arc<Network>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(splice(stream, peer.clone(), guest, network.clone()));
                }
                // Out of descriptors: wait for a connection to end before the next try.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for port {guest}");
                    if connections.join_next().await.is_none() {
                        return;
                    }
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn splice(mut outside: TcpStream, peer: Peer, port: u16, network: Arc<Network>) {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    let mut inside = match network.connect(&peer, port, deadline).await {
        Ok(stream) => stream,
        Err(error) => {
            let machine = peer.machine;
            tracing::debug!(machine, %error, "no connection to port {port}");
            // A reset, not an orderly end: the client shall see that nobody answered.
            let _ = outside.set_zero_linger();
            return;
        }
    };
    // Either side may go away at any time; that is how connections end.
    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
}
