//! Frames of one tap for who wants to see all of them: a packet socket that was made elsewhere, handed over, and read at
//! one's own pace.
//!
//! The kernel keeps what waits for a slow reader, up to a limit, and counts what it drops beyond.

#![expect(
    unsafe_code,
    reason = "a packet socket's counters, and descriptors that are handed over, have no safe wrappers"
)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use crate::lease::book::Way;
use crate::pcapng::Direction;
use crate::sniff;

/// Longer frames than the largest that the kernel hands over in one piece are cut.
const LONGEST: usize = 256 * 1024;
/// What the kernel keeps for a slow reader, in bytes.
const WAITING: usize = 8 * 1024 * 1024;

/// A reader of one tap's frames.
#[derive(Debug)]
pub struct Tapped {
    socket: OwnedFd,
    buffer: Vec<u8>,
    dropped: u64,
}

impl Tapped {
    /// Reads from `socket`, which hears all of one tap ([`sniff::hear_all`]).
    ///
    /// # Errors
    /// It is no socket.
    pub fn new(socket: OwnedFd) -> io::Result<Tapped> {
        // Root may have more than the host's limit.
        setsockopt(&socket, sockopt::RcvBufForce, &WAITING)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &WAITING))?;
        Ok(Tapped {
            socket,
            buffer: vec![0; LONGEST],
            dropped: 0,
        })
    }

    /// The next frame that is there: its way, its whole length, and what of it fits. Does not wait.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none, `ENETDOWN` when the tap is gone.
    pub fn take(&mut self) -> io::Result<(Direction, usize, &[u8])> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let (way, length) = sniff::receive(&self.socket, &mut self.buffer, flags)?;
        let direction = match way {
            Way::From => Direction::Out,
            Way::To => Direction::In,
        };
        let there = length.min(self.buffer.len());
        Ok((direction, length, &self.buffer[..there]))
    }

    /// How many frames were dropped because they were not read in time.
    ///
    /// # Errors
    /// It is no packet socket.
    pub fn dropped(&mut self) -> io::Result<u64> {
        // `tpacket_stats`: frames heard, and those of them that were dropped, since it was asked last.
        let mut counts = [0u32; 2];
        let mut length = libc::socklen_t::try_from(size_of_val(&counts)).unwrap_or(0);
        // SAFETY: the counters are there, with this length.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                counts.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(got)?;
        self.dropped += u64::from(counts[1]);
        Ok(self.dropped)
    }
}

/// One byte of a connection, and the descriptor that came with it, if one did. `None` at the end.
///
/// # Errors
/// As of `recvmsg`.
pub fn receive_byte(stream: &UnixStream, handed: &mut Option<OwnedFd>) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let read = message.bytes;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            for number in numbers {
                // SAFETY: the kernel just made it for us, and nobody else has it.
                *handed = Some(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    Ok((read > 0).then_some(byte[0]))
}

impl AsFd for Tapped {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
