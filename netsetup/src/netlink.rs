//! Netlink: the one module that knows how the kernel is told of links, addresses, routes and rules.
//!
//! A socket belongs to the network namespace that it was made in, and may be used from any other; whoever uses it needs
//! the right over that namespace (its owner has it). The kernel does what it is asked before `send` returns, so the
//! answer lies there already and nothing here ever waits; all the same there is a deadline. Nothing here chooses
//! anything: what is to be made is said in [`crate::link`] and [`crate::nat`].

mod message;
pub mod nft;
pub mod route;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use self::message::{Message, Messages, Received, u32_at};

/// How long the kernel may take to answer, in seconds; it answers before it is asked for it.
const DEADLINE: i64 = 2;
/// The kernel writes no longer datagrams (`NLMSG_GOODSIZE` and dumps of 32 KiB).
const BUFFER: usize = 64 * 1024;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

/// Why the kernel did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket could be made.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The question did not get there, or the answer did not come.
    #[error("cannot talk to the kernel's network")]
    Talk(#[source] io::Error),
    /// It said no.
    #[error("the kernel refused to {act}")]
    Refused {
        /// What it was asked.
        act: String,
        /// Its error number.
        #[source]
        source: io::Error,
    },
}

impl NetlinkError {
    /// Whether it was refused for this reason.
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            NetlinkError::Refused { source, .. } => source.raw_os_error() == Some(errno as i32),
            NetlinkError::Open(_) | NetlinkError::Talk(_) => false,
        }
    }
}

/// A netlink socket.
#[derive(Debug)]
struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Uses a socket that was made elsewhere, most often in another namespace.
    fn new(fd: OwnedFd) -> Result<Netlink, NetlinkError> {
        let limit = TimeVal::seconds(DEADLINE);
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit).map_err(talk)?;
        Ok(Netlink {
            fd,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// A socket in the namespace of this process.
    fn open(protocol: SockProtocol) -> Result<Netlink, NetlinkError> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
            .map_err(|errno| NetlinkError::Open(errno.into()))?;
        Netlink::new(fd)
    }

    /// Asks for something that is done or refused.
    fn ask(&mut self, act: impl FnOnce() -> String, message: Message) -> Result<(), NetlinkError> {
        let sequence = self.send(&[message])?;
        loop {
            let length = self.receive()?;
            for answer in Messages(&self.buffer[..length]) {
                if answer.kind == NLMSG_ERROR && answer.sequence == sequence {
                    return verdict(act, &answer);
                }
            }
        }
    }

    /// Asks for a list, and hands `each` the messages of it.
    fn dump(
        &mut self,
        act: impl Fn() -> String,
        message: Message,
        mut each: impl FnMut(&Received<'_>),
    ) -> Result<(), NetlinkError> {
        let sequence = self.send(&[message])?;
        loop {
            let length = self.receive()?;
            for answer in Messages(&self.buffer[..length]) {
                match answer.kind {
                    _ if answer.sequence != sequence => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return verdict(&act, &answer),
                    _ => each(&answer),
                }
            }
        }
    }

    /// Sends messages in one datagram, whose sequence numbers go up by one; gives that of the last.
    fn send(&mut self, messages: &[Message]) -> Result<u32, NetlinkError> {
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(message.clone().finish(self.sequence));
        }
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(talk)?;
        Ok(self.sequence)
    }

    fn receive(&mut self) -> Result<usize, NetlinkError> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => return other.map_err(talk),
            }
        }
    }
}

fn talk(errno: Errno) -> NetlinkError {
    NetlinkError::Talk(errno.into())
}

/// What an `NLMSG_ERROR` says: zero is success.
fn verdict(act: impl FnOnce() -> String, answer: &Received<'_>) -> Result<(), NetlinkError> {
    let code = u32_at(answer.payload, 0).unwrap_or(0).cast_signed();
    if code == 0 {
        return Ok(());
    }
    Err(NetlinkError::Refused {
        act: act(),
        source: io::Error::from_raw_os_error(code.wrapping_neg()),
    })
}
