//! A guest of the tests: a second TCP stack behind the frame protocol, with an echo service.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::address::Reservation;
use crate::fabric::Fabric;

/// The port of the echo service.
pub(super) const ECHO: u16 = 7;

/// Runs until it is dropped, which closes its socket.
pub(super) struct Guest(JoinHandle<()>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Card {
    inbound: VecDeque<Vec<u8>>,
    outbound: Vec<u8>,
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut Vec<u8>);

impl Device for Card {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Instant) -> Option<(In, Out<'_>)> {
        Some((In(self.inbound.pop_front()?), Out(&mut self.outbound)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        Some(Out(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.0.extend(u32::try_from(length).unwrap().to_be_bytes());
        let start = self.0.len();
        self.0.resize(start + length, 0);
        f(&mut self.0[start..])
    }
}

impl Guest {
    /// Attaches a guest with as many echo sockets.
    pub(super) fn join(fabric: &Fabric, machine: &Reservation, sockets: usize) -> Guest {
        let (ours, theirs) = UnixStream::pair().unwrap();
        fabric.attach(&machine.name, theirs);
        Guest(tokio::spawn(run(ours, machine.clone(), sockets)))
    }
}

async fn run(mut stream: UnixStream, machine: Reservation, count: usize) {
    let mut card = Card::default();
    let mac = EthernetAddress(machine.mac.into_array());
    let mut interface = Interface::new(
        Config::new(HardwareAddress::Ethernet(mac)),
        &mut card,
        Instant::now(),
    );
    interface.update_ip_addrs(|list| list.push(IpCidr::new(machine.ip.into(), 24)).unwrap());
    let mut sockets = SocketSet::new(Vec::new());
    for _ in 0..count {
        let buffer = || SocketBuffer::new(vec![0; 100_000]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.listen(ECHO).unwrap();
        sockets.add(socket);
    }
    let mut bytes = Vec::new();
    loop {
        interface.poll(Instant::now(), &mut card, &mut sockets);
        let mut again = false;
        for (_, socket) in sockets.iter_mut() {
            let smoltcp::socket::Socket::Tcp(socket) = socket;
            let room = socket.send_capacity() - socket.send_queue();
            if socket.can_recv() && room > 0 {
                let data = socket.recv(|data| {
                    let data = &data[..data.len().min(room)];
                    (data.len(), data.to_vec())
                });
                socket.send_slice(&data.unwrap()).unwrap();
                again = true;
            } else if socket.state() == State::CloseWait && !socket.can_recv() {
                socket.close();
                again = true;
            }
        }
        if !card.outbound.is_empty() {
            stream.write_all(&card.outbound).await.unwrap();
            card.outbound.clear();
            again = true;
        }
        if again {
            continue;
        }
        let wait = interface.poll_delay(Instant::now(), &sockets);
        let wait = wait.map_or(std::time::Duration::from_secs(60), Into::into);
        let mut piece = [0; 65536];
        match tokio::time::timeout(wait, stream.read(&mut piece)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(length)) => bytes.extend(&piece[..length]),
            Err(_) => {}
        }
        while let Some(prefix) = bytes.first_chunk::<4>() {
            let length = u32::from_be_bytes(*prefix) as usize;
            if bytes.len() < 4 + length {
                break;
            }
            card.inbound.push_back(bytes[4..4 + length].to_vec());
            bytes.drain(..4 + length);
        }
    }
}
