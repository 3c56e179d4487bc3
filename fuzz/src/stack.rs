//! The gateway's end of a TCP connection to a machine that answers as it likes.
//!
//! A random segment is thrown away at the first look, so the guest here keeps count of what was said and the input says
//! only by how much its segments are beside it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kiln_netsetup::ether::{self, ETHERNET_HEADER, Ipv4};
use kiln_netsetup::fabric::Fabric;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::fabric::{RUNTIME, config};
use crate::frames::{gateway, machine, subnet};

const SYN: u8 = 2;
const ACK: u8 = 16;

/// What the guest knows of the connection.
#[derive(Default)]
struct Connection {
    port: u16,
    /// What the gateway is to send next, and what the guest sends next.
    theirs: u32,
    ours: u32,
}

pub fn stack(bytes: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (fabric, _events) = Fabric::start(config());
            let machine = machine(10);
            let (ours, theirs) = UnixStream::pair().unwrap();
            fabric.attach(&machine.name, theirs);
            let deadline = Instant::now() + Duration::from_secs(5);
            let connecting = fabric.connect(machine.ip, 22, deadline);
            let (_, counters) = tokio::join!(
                async {
                    // Refused, reset or dropped, as the guest says.
                    let Ok(Ok(mut stream)) = timeout(Duration::from_millis(20), connecting).await
                    else {
                        return;
                    };
                    let _ = stream.write_all(&[b'x'; 3000]).await;
                    let mut back = [0; 512];
                    while let Ok(Ok(1..)) =
                        timeout(Duration::from_millis(1), stream.read(&mut back)).await
                    {
                    }
                    let _ = stream.shutdown().await;
                },
                async {
                    guest(ours, bytes).await;
                    fabric.counters().await
                }
            );
            counters.expect("the fabric has ended");
            fabric.stop().await;
        });
    });
}

async fn guest(mut stream: UnixStream, script: &[u8]) {
    let mut script: VecDeque<u8> = script.to_vec().into();
    let mut connection = Connection::default();
    while let Some(flags) = script.pop_front() {
        tokio::task::yield_now().await;
        while let Ok(Ok(length)) = timeout(Duration::ZERO, stream.read_u32()).await {
            let mut frame = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut frame).await.unwrap();
            connection.hear(&frame);
        }
        let mut next = || script.pop_front().unwrap_or(0);
        let segment = connection.say(flags, [next(), next(), next(), next()], &mut next);
        let path = ether::Path {
            source_mac: machine(10).mac,
            source: machine(10).ip,
            destination_mac: gateway(),
            destination: subnet().gateway(),
        };
        // The frame of a datagram, made one of TCP. Nobody looks at checksums here.
        let mut frame = ether::icmp_frame(path, &segment).unwrap();
        frame[ETHERNET_HEADER + 9] = ether::TCP;
        frame[ETHERNET_HEADER + 20..].copy_from_slice(&segment);
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        if stream
            .write_all(&[&length, &frame[..]].concat())
            .await
            .is_err()
        {
            return;
        }
    }
}

impl Connection {
    fn hear(&mut self, frame: &[u8]) {
        let Some(packet) = Ipv4::parse(&frame[ETHERNET_HEADER..]) else {
            return;
        };
        let tcp = packet.payload;
        if packet.protocol != ether::TCP || tcp.len() < 20 {
            return;
        }
        let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        let header = usize::from(tcp[12] >> 4) * 4;
        let data = u32::try_from(tcp.len() - header).unwrap();
        self.port = u16::from_be_bytes([tcp[0], tcp[1]]);
        // SYN and FIN count for one each.
        self.theirs = word(4)
            .wrapping_add(data)
            .wrapping_add(u32::from(tcp[13] & 1) + u32::from(tcp[13] >> 1 & 1));
    }

    /// A segment with these flags; `beside` says how far from the truth its numbers are.
    fn say(&mut self, flags: u8, beside: [u8; 4], next: &mut dyn FnMut() -> u8) -> Vec<u8> {
        let [sequence, acknowledged, window, shape] = beside;
        // The low values are the truth, the high ones anything.
        let off = |by: u8| match by {
            0..128 => 0,
            128..192 => u32::from(by & 63).wrapping_sub(32),
            _ => u32::from(by & 63) << 26,
        };
        let flags = if flags & 0x80 != 0 {
            flags & 0x3f
        } else {
            flags & 0x3f | ACK
        };
        let options = usize::from(shape & 7) * 4;
        let data = match shape >> 3 & 7 {
            0..4 => 0,
            4 => 1,
            5 => 100,
            6 => 1400,
            _ => 40_000,
        };
        let mut segment = Vec::new();
        segment.extend(22_u16.to_be_bytes());
        segment.extend(self.port.to_be_bytes());
        segment.extend(self.ours.wrapping_add(off(sequence)).to_be_bytes());
        segment.extend(self.theirs.wrapping_add(off(acknowledged)).to_be_bytes());
        segment.push(u8::try_from(5 + options / 4).unwrap() << 4);
        segment.push(flags);
        segment.extend((u16::from(window) << (window & 8)).to_be_bytes());
        segment.extend([0, 0, 0, 0]);
        segment.extend((0..options).map(|_| next()));
        segment.resize(segment.len() + data, b'y');
        if sequence < 128 {
            let counts = u32::from(flags & 1) + u32::from(flags & SYN != 0);
            let sent = u32::try_from(data).unwrap() + counts;
            self.ours = self.ours.wrapping_add(sent);
        }
        segment
    }
}
