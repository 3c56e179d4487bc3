//! Images that would have QEMU do something else than boot a disk.

use serde_json::json;

use crate::image::support::{Net, image, sha256};

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn a_hostile_header_is_refused_before_anything_sees_it() {
    // Where the header's fields are: QEMU, docs/interop/qcow2.rst.
    let sound = image(1, 21);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound.clone();
        change(&mut bytes);
        bytes
    };
    let backing = |name: &'static [u8]| {
        changed(&|bytes| {
            put(bytes, 8, &0x300_u64.to_be_bytes());
            put(bytes, 16, &u32::try_from(name.len()).unwrap().to_be_bytes());
            put(bytes, 0x300, name);
        })
    };
    let net = Net::new();
    for (what, bytes) in [
        ("/etc/passwd", backing(b"/etc/passwd")),
        (
            "json:",
            backing(b"json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}"),
        ),
        (
            "data-file",
            changed(&|bytes| put(bytes, 72, &4_u64.to_be_bytes())),
        ),
        (
            "unknown feature",
            changed(&|bytes| put(bytes, 72, &(1_u64 << 40).to_be_bytes())),
        ),
        (
            "1 PiB",
            changed(&|bytes| put(bytes, 24, &(1_u64 << 50).to_be_bytes())),
        ),
        ("vmdk", [b"KDMV".as_slice(), &[0; 70_000]].concat()),
        ("raw", vec![7; 70_000]),
        ("empty", Vec::new()),
    ] {
        net.server.put("/x.qcow2", bytes.clone());
        let url = net.server.url("/x.qcow2");
        net.spec(&json!({"disk": url, "sha256": sha256(&bytes)}));
        net.fails(&["image", "pull"], 9, "refused");
        assert_eq!(net.cached(), Vec::<String>::new(), "{what}");
        net.fails(&["up"], 9, "refused");
        net.world.assert_clean();
    }
    // What is said to be raw, and is a qcow2 image that names other files.
    let bytes = backing(b"/etc/passwd");
    net.server.put("/x.raw", bytes.clone());
    let url = net.server.url("/x.raw");
    net.spec(&json!({"disk": url, "sha256": sha256(&bytes)}));
    net.fails(&["image", "pull"], 9, "the spec says that it is raw");
}
