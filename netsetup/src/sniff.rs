//! Packet sockets: the few frames that tell who has which address, out of all that pass a link.
//!
//! A filter in the kernel lets ARP, DHCP and IPv6's neighbor discovery through and nothing else, so that the traffic of
//! the machines costs nothing here. Frames are hostile input; what they mean is for [`crate::lease`] and
//! [`crate::dhcp`].

#![expect(
    unsafe_code,
    reason = "packet sockets' addresses and filters have no safe wrappers"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::lease::book::Way;

/// A frame of interest fits; a longer one is cut.
const LONGEST: usize = 2048;

/// A packet socket on one link.
#[derive(Debug)]
pub struct Sniffer {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Sniffer {
    /// Listens on the link with the number `index` by `socket`, a fresh one of that link's namespace. To be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// There is no such link.
    pub fn new(socket: OwnedFd, index: u32) -> io::Result<Sniffer> {
        // In this order: what a socket without a filter hears in between would stay in its queue.
        bind(&socket, index, 0)?;
        attach(&socket)?;
        bind(&socket, index, libc::ETH_P_ALL)?;
        Ok(Sniffer {
            socket: readable(socket)?,
            buffer: vec![0; LONGEST],
        })
    }

    /// The next frame.
    ///
    /// # Errors
    /// The link is gone or down (`ENETDOWN`), or is no more a link of this kind.
    pub async fn next(&mut self) -> io::Result<&mut [u8]> {
        // A machine may send faster than this is read, and readiness alone never lets another task have its turn.
        tokio::task::consume_budget().await;
        let length = loop {
            let mut ready = self.socket.readable().await?;
            let fd = ready.get_ref().as_raw_fd();
            let buffer = &mut self.buffer;
            if let Ok(read) =
                ready.try_io(|_| recv(fd, buffer, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from))
            {
                break read?;
            }
        };
        Ok(&mut self.buffer[..length])
    }

    /// The next frame of a machine's tap, and whether the machine sent it.
    ///
    /// # Errors
    /// As [`Sniffer::next`].
    pub async fn next_of_tap(&mut self) -> io::Result<(Way, &[u8])> {
        // As in [`Sniffer::next`].
        tokio::task::consume_budget().await;
        let (way, length) = loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            if let Ok(read) =
                ready.try_io(|socket| receive(socket.get_ref(), buffer, libc::MSG_DONTWAIT))
            {
                let (way, length) = read?;
                break (way, length.min(buffer.len()));
            }
        };
        Ok((way, &self.buffer[..length]))
    }

    /// Sends a frame out by the link with the number `index`. One that finds no room is lost, as on any wire.
    ///
    /// # Errors
    /// There is no such link.
    pub fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        let address = address(index, 0);
        // SAFETY: the frame and the address are there, with these lengths.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                length_of(&address),
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A socket whose readiness to be read can be waited for.
pub(crate) fn readable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is made of it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Receives one frame of a tap: whether the machine behind it sent it, and how long it was, with
/// [`libc::MSG_TRUNC`] also of one that did not fit.
pub(crate) fn receive(socket: &OwnedFd, buffer: &mut [u8], flags: i32) -> io::Result<(Way, usize)> {
    let mut from = address(0, 0);
    let mut length = length_of(&from);
    // SAFETY: the buffer and the address are there, with these lengths.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    let length = Errno::result(received)?;
    let way = match from.sll_pkttype {
        libc::PACKET_OUTGOING => Way::To,
        _ => Way::From,
    };
    Ok((way, usize::try_from(length).unwrap_or(0)))
}

/// Has `socket`, a fresh packet socket, hear all frames of the link with the number `index`.
///
/// # Errors
/// There is no such link.
pub fn hear_all(socket: &OwnedFd, index: u32) -> io::Result<()> {
    bind(socket, index, libc::ETH_P_ALL)
}

fn address(index: u32, protocol: i32) -> libc::sockaddr_ll {
    // SAFETY: all zero is an address of no link.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    address.sll_protocol = u16::try_from(protocol).unwrap_or(0).to_be();
    address.sll_ifindex = i32::try_from(index).unwrap_or(0);
    address.sll_halen = 6;
    address
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of_val(value)).unwrap_or(0)
}

fn bind(socket: &OwnedFd, index: u32, protocol: i32) -> io::Result<()> {
    let address = address(index, protocol);
    // SAFETY: the address is there, with this length.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            length_of(&address),
        )
    };
    Errno::result(bound).map(drop).map_err(io::Error::from)
}

fn attach(socket: &OwnedFd) -> io::Result<()> {
    let mut program = filter();
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions are there until the call is over; the kernel copies and checks them.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length_of(&program),
        )
    };
    Errno::result(attached).map(drop).map_err(io::Error::from)
}

/// The filter, in the instructions of `linux/filter.h`. Jumps count the instructions that are passed over.
fn filter() -> Vec<libc::sock_filter> {
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LOAD_HALF_AT: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
    const LOAD_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const ACCEPT: u32 = 20;
    const DROP: u32 = 19;
    // Where to, as a distance from the instruction after `at`.
    let to = |at: u32, target: u32| u8::try_from(target - at - 1).unwrap_or(0);
    [
        (LOAD_HALF, 0, 0, 12),
        (EQUAL, to(1, ACCEPT), 0, 0x0806),
        (EQUAL, to(2, 13), 0, 0x86dd),
        (EQUAL, 0, to(3, DROP), 0x0800),
        (LOAD_BYTE, 0, 0, 23),
        (EQUAL, 0, to(5, DROP), 17),
        (LOAD_HALF, 0, 0, 20),
        (ANY_BIT, to(7, DROP), 0, 0x1fff),
        (LOAD_LENGTH, 0, 0, 14),
        (LOAD_HALF_AT, 0, 0, 14),
        (EQUAL, to(10, ACCEPT), 0, 67),
        (LOAD_HALF_AT, 0, 0, 16),
        (EQUAL, to(12, ACCEPT), to(12, DROP), 67),
        // Router and neighbor solicitations, and neighbor advertisements.
        (LOAD_BYTE, 0, 0, 20),
        (EQUAL, 0, to(14, DROP), 58),
        (LOAD_BYTE, 0, 0, 54),
        (EQUAL, to(16, ACCEPT), 0, 133),
        (EQUAL, to(17, ACCEPT), 0, 135),
        (EQUAL, to(18, ACCEPT), to(18, DROP), 136),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, 0x4_0000),
    ]
    .into_iter()
    .map(|(code, jt, jf, k)| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    })
    .collect()
}
