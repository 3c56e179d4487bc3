//! Taps: the network cards of machines, seen from the host.
//!
//! A tap is in the namespace that its `/dev/net/tun` was opened in, and is there as long as that descriptor is open
//! anywhere. QEMU is handed it and needs no right to the device.

#![expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

use crate::name::IfName;

/// Makes of `tun`, a fresh `/dev/net/tun`, the tap called `name`, whose frames carry virtio's header so that large
/// packets pass whole.
///
/// # Errors
/// `EBUSY` where there is a tap of that name with an owner.
pub fn make(tun: &OwnedFd, name: &IfName) -> io::Result<()> {
    // SAFETY: all zero is a request of an interface without name and flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.padded()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or(0);
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
