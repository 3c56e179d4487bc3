//! Things that look real enough to QEMU.

#![expect(unsafe_code, reason = "a tap is made by an ioctl")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use kiln_arch::Arch;
use nix::sched::{CloneFlags, unshare};

/// Where the program of that name lies on this host.
pub(crate) fn installed(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("`{program}` is not installed; `./setup packages` does it"))
}

/// A kernel that QEMU's loader takes, with nothing in it to run.
pub(crate) fn kernel_for(arch: Arch) -> Vec<u8> {
    match arch {
        // The setup header of Linux's boot protocol 2.12, one sector of setup, one of code.
        Arch::I386 | Arch::X86_64 => {
            let mut image = vec![0; 8192];
            image[0x1f1] = 1;
            image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            image[0x202..0x206].copy_from_slice(b"HdrS");
            image[0x206..0x208].copy_from_slice(&0x020c_u16.to_le_bytes());
            // Loaded high, with an initrd anywhere below 896 MiB.
            image[0x211] = 1;
            image[0x22c..0x230].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes());
            image
        }
        // An ELF file of one segment of eight bytes.
        Arch::Ppc64le => {
            let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
            for half in [2_u16, 21] {
                image.extend(half.to_le_bytes());
            }
            image.extend(1_u32.to_le_bytes());
            for word in [0_u64, 64, 0] {
                image.extend(word.to_le_bytes());
            }
            image.extend(0_u32.to_le_bytes());
            for half in [64_u16, 56, 1, 0, 0, 0] {
                image.extend(half.to_le_bytes());
            }
            for word in [1_u32, 5] {
                image.extend(word.to_le_bytes());
            }
            for word in [120_u64, 0, 0, 8, 8, 8] {
                image.extend(word.to_le_bytes());
            }
            image.extend([0; 8]);
            image
        }
        // Taken as it is.
        Arch::Aarch64 | Arch::S390x => vec![0; 4096],
    }
}

/// A tap in a network namespace of its own, so that the host has no new link.
pub(crate) fn new_tap() -> io::Result<OwnedFd> {
    use nix::libc::{IFF_NO_PI, IFF_TAP, TUNSETIFF, c_short, ifreq, ioctl};
    unshare(CloneFlags::CLONE_NEWNET)?;
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all zeros are an `ifreq`.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = c_short::try_from(IFF_TAP | IFF_NO_PI).unwrap();
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`.
    let made = unsafe { ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun.into())
}
