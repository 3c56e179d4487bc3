//! What the kernel tells unasked of links and routes: rtnetlink's multicast groups.
//!
//! It tells what changed and not why. Words that were lost, because more came than the socket holds, are said to be: who
//! listens then looks anew.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

use super::foreign::{Destination, destination};
use super::{RTM_DELLINK, RTM_NEWLINK, parse_link};
use crate::link::Present;
use crate::netlink::message::{Messages, u32_at};
use crate::sniff::readable;

/// The bits of `RTNLGRP_LINK` and `RTNLGRP_IPV4_ROUTE` (`linux/rtnetlink.h`).
const LINKS: u32 = 1;
const ROUTES: u32 = 1 << 6;
const BUFFER: usize = 32 * 1024;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Changes of links.
    Links,
    /// The same and changes of IPv4 routes. Those that go with their link are not told of.
    LinksAndRoutes,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// A link is there, or is otherwise than before.
    Link(Box<Present>),
    /// The link with this number is gone.
    LinkGone(u32),
    /// A route came or went.
    Route(Destination),
    /// Words were lost.
    Missed,
}

/// A listening socket.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// By a socket of `NETLINK_ROUTE` that was made in the namespace. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// It is no such socket.
    pub fn new(socket: OwnedFd, group: Group) -> io::Result<Monitor> {
        let groups = match group {
            Group::Links => LINKS,
            Group::LinksAndRoutes => LINKS | ROUTES,
        };
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Monitor {
            // It is read without waiting, whatever mode the socket is in.
            socket: readable(socket)?,
            buffer: vec![0; BUFFER],
        })
    }

    /// The namespace of this process.
    ///
    /// # Errors
    /// No socket can be had.
    pub fn here(group: Group) -> io::Result<Monitor> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Monitor::new(fd, group)
    }

    /// What is told next; at least one word.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn next(&mut self) -> io::Result<Vec<Word>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            let Ok(read) = ready.try_io(|socket| {
                recv(socket.get_ref().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)
                    .map_err(io::Error::from)
            }) else {
                continue;
            };
            let words = match read {
                Ok(length) => words(&self.buffer[..length]),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    vec![Word::Missed]
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if !words.is_empty() {
                return Ok(words);
            }
        }
    }
}

fn words(bytes: &[u8]) -> Vec<Word> {
    /// What the bridge says of its port, in a form of its own, is no word of the link itself.
    const AF_BRIDGE: u8 = super::AF_BRIDGE;
    Messages(bytes)
        .filter_map(|message| match message.kind {
            RTM_NEWLINK | RTM_DELLINK if message.payload.first() == Some(&AF_BRIDGE) => None,
            RTM_NEWLINK => Some(Word::Link(Box::new(parse_link(&message)?))),
            RTM_DELLINK => Some(Word::LinkGone(u32_at(message.payload, 4)?)),
            kind => destination(kind, message.payload).map(Word::Route),
        })
        .collect()
}
