//! Puts frames on a guest's wire as they are: `send-frames LINK < FRAMES`, each frame behind two numbers of two bytes:
//! how often it is sent, and its length.
//!
//! A program of its own, without crates: `rustc -C target-feature=+crt-static` makes of it what runs in any guest.

use std::io::{self, Read};

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn sendto(
        fd: i32,
        bytes: *const u8,
        length: usize,
        flags: i32,
        to: *const u8,
        size: u32,
    ) -> isize;
    fn if_nametoindex(name: *const u8) -> u32;
}

const AF_PACKET: i32 = 17;
const SOCK_RAW: i32 = 3;

fn main() -> io::Result<()> {
    let link = std::env::args().nth(1).expect("a link's name");
    let mut frames = Vec::new();
    io::stdin().read_to_end(&mut frames)?;
    // SAFETY: the name ends in a zero.
    let index = unsafe { if_nametoindex(format!("{link}\0").as_ptr()) };
    // A `sockaddr_ll`: family, protocol, the link's number, and what sending does not look at.
    let mut address = [0; 20];
    address[..2].copy_from_slice(&(AF_PACKET as u16).to_ne_bytes());
    address[4..8].copy_from_slice(&index.to_ne_bytes());
    // SAFETY: numbers alone.
    let fd = unsafe { socket(AF_PACKET, SOCK_RAW, 0) };
    let mut sent = 0_u32;
    let mut rest = &frames[..];
    while let [a, b, c, d, more @ ..] = rest {
        let times = u16::from_be_bytes([*a, *b]);
        let (frame, next) = more.split_at(usize::from(u16::from_be_bytes([*c, *d])));
        rest = next;
        for _ in 0..times {
            // SAFETY: frame and address are there, with these lengths.
            let done = unsafe { sendto(fd, frame.as_ptr(), frame.len(), 0, address.as_ptr(), 20) };
            if done < 0 {
                return Err(io::Error::last_os_error());
            }
            sent += 1;
        }
    }
    println!("sent {sent} frames");
    Ok(())
}
