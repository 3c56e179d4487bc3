//! Files that others wrote: images, signatures, keys, metadata, specs.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::SystemTime;

use kiln::image::qcow2;
use kiln::image::source::{fedora, flatcar, mirror::Mirrors, rhcos};
use kiln::image::trust::{Check, Keyring, keyring::Vendor};
use kiln::spec::{Context, Scale, load};
use kiln_arch::Arch;

use crate::switch::pieces;

pub fn qcow2(bytes: &[u8]) {
    judge(bytes);
    // A header of version 2 or 3 with 64 KiB clusters and a gigabyte, and the input's where it says something.
    let mut header = vec![0; 4096];
    header[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, 3]);
    header[20..24].copy_from_slice(&16_u32.to_be_bytes());
    header[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
    header[36..40].copy_from_slice(&2_u32.to_be_bytes());
    header[40..48].copy_from_slice(&(1_u64 << 17).to_be_bytes());
    header[48..56].copy_from_slice(&(1_u64 << 16).to_be_bytes());
    header[56..60].copy_from_slice(&1_u32.to_be_bytes());
    header[96..104].copy_from_slice(&[0, 0, 0, 4, 0, 0, 0, 104]);
    for (choice, piece) in pieces(bytes) {
        let at = usize::from(choice) * 4;
        if let Some(field) = header.get_mut(at..at + piece.len()) {
            field.copy_from_slice(piece);
        }
    }
    judge(&header);
}

fn judge(bytes: &[u8]) {
    for length in [bytes.len() as u64, 1 << 16, 1 << 30] {
        if let Ok(header) = qcow2::parse(bytes, length) {
            assert!(header.virtual_size <= qcow2::LARGEST_DISK);
            assert!(qcow2::parse_overlay(bytes, length).is_ok());
        }
        let _ = qcow2::parse_overlay(bytes, length);
    }
}

pub fn openpgp(bytes: &[u8]) {
    static SHIPPED: LazyLock<Keyring> =
        LazyLock::new(|| Keyring::parse(Vendor::Flatcar.shipped()).unwrap());
    let own = Keyring::parse(bytes);
    for keyring in [Ok(SHIPPED.clone()), own].into_iter().flatten() {
        if let Ok(mut check) = Check::new(bytes) {
            check.update(b"content");
            // Nobody has the key that could have signed this.
            if let Ok(signer) = check.finish(&keyring, SystemTime::now()) {
                assert!(keyring != *SHIPPED, "{signer:?}");
            }
        }
    }
}

pub fn metadata(bytes: &[u8]) {
    let _ = fedora::newest(bytes, Arch::X86_64);
    let _ = fedora::of_release(bytes, "42.20250101.3.0", Arch::X86_64);
    let _ = flatcar::version(bytes);
    let _ = rhcos::image(bytes, "4.18", None, Arch::X86_64);
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(mirrors) = Mirrors::parse(text)
    {
        mirrors.of("https://builds.coreos.fedoraproject.org/streams/stable.json");
    }
}

pub fn spec(bytes: &[u8]) {
    static FILE: LazyLock<PathBuf> =
        LazyLock::new(|| format!("/dev/shm/kiln-fuzz-{}.yaml", std::process::id()).into());
    std::fs::write(&*FILE, bytes).unwrap();
    let context = Context {
        host_arch: Arch::X86_64,
        home: None,
        scale: Scale::NONE,
    };
    if let Err(error) = load(&FILE, context) {
        let _ = error.to_string();
    }
}
