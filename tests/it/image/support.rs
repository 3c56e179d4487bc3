//! A world with servers in it: Fedora's, Flatcar's and Red Hat's, all in one, and images for them.

use std::fs;
use std::io::Write;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fake_support::World;
use crate::image::server::{Manners, Server};
use crate::image::signer::Signer;

pub(crate) const FEDORA: &str = "/fedora/streams/stable.json";

/// Servers that stand for the official ones, and the key that their images are signed with.
pub(crate) struct Vendors {
    pub(crate) server: Server,
    pub(crate) signer: Signer,
}

impl Vendors {
    pub(crate) fn new() -> Vendors {
        Vendors {
            server: Server::new(),
            signer: Signer::new("Test <test@example>", 7),
        }
    }

    /// What is to lie in kiln's folder `config`, so that it asks and trusts these.
    pub(crate) fn config(&self) -> Vec<(String, Vec<u8>)> {
        let mirrors = [
            ("https://builds.coreos.fedoraproject.org", "/fedora"),
            ("https://stable.release.flatcar-linux.net", "/flatcar"),
            ("https://mirror.openshift.com/pub/openshift-v4", "/rhcos"),
        ];
        let lines: String = mirrors
            .iter()
            .map(|(from, to)| format!("{from} {}\n", self.server.url(to)))
            .collect();
        let key = self.signer.certificate();
        let keyring = |vendor| (format!("keyrings/{vendor}.gpg"), key.clone());
        let mut files = vec![("mirrors".to_owned(), lines.into_bytes())];
        files.extend(["fedora-coreos", "flatcar"].map(keyring));
        files
    }

    /// Puts a release into Fedora's stream: `packed` is `content` by `xz`; gives its path.
    pub(crate) fn fedora(&self, release: &str, packed: &[u8], content: &[u8]) -> String {
        let path = format!("/fedora/prod/streams/stable/builds/{release}/x86_64/image.qcow2.xz");
        let signature = format!("{path}.sig");
        self.server.put(&path, packed);
        self.server.put(&signature, self.signer.sign(packed));
        let official = |path: &str| {
            let below = path.strip_prefix("/fedora").unwrap();
            format!("https://builds.coreos.fedoraproject.org{below}")
        };
        let disk = json!({"disk": {
            "location": official(&path),
            "signature": official(&signature),
            "sha256": sha256(packed),
            "uncompressed-sha256": sha256(content),
        }});
        let stream = json!({"stream": "stable", "architectures": {"x86_64": {"artifacts": {
            "qemu": {"release": release, "formats": {"qcow2.xz": disk}}}}}});
        self.server.put(FEDORA, stream.to_string());
        let own = json!({"release": release, "architectures": {"x86_64": {"media": {
            "qemu": {"artifacts": {"qcow2.xz": disk}}}}}});
        let builds = format!("/fedora/prod/streams/stable/builds/{release}/release.json");
        self.server.put(&builds, own.to_string());
        path
    }
}

/// [`Vendors`], and a kiln that asks these instead of the official ones.
pub(crate) struct Net {
    vendors: Vendors,
    pub(crate) world: World,
}

impl Deref for Net {
    type Target = Vendors;

    fn deref(&self) -> &Vendors {
        &self.vendors
    }
}

impl Net {
    pub(crate) fn new() -> Net {
        let net = Net {
            vendors: Vendors::new(),
            world: World::new(),
        };
        for (name, content) in net.config() {
            net.world.write(&format!("home/config/{name}"), content);
        }
        net
    }

    /// Puts a release into Fedora's stream, packed by `xz`; gives the path of the packed image.
    pub(crate) fn fedora(&self, release: &str, content: &[u8]) -> String {
        let packed = pack("xz", &["-0"], content);
        self.vendors.fedora(release, &packed, content)
    }

    pub(crate) fn fedora_packed(&self, release: &str, packed: &[u8], content: &[u8]) -> String {
        self.vendors.fedora(release, packed, content)
    }

    /// The spec of one machine with this image.
    pub(crate) fn spec(&self, image: &Value) {
        let spec = json!({
            "cluster": "demo",
            "image": image,
            "network": {"mode": "fabric", "subnet": "10.213.9.0/24"},
            "machines": {"node": {"accel": "tcg", "ignition": "node.ign", "arch": "x86_64"}},
        });
        self.world.spec(&spec.to_string());
    }

    /// A path as it is; what kiln prints has `TMP` in it.
    pub(crate) fn real(&self, path: &Value) -> PathBuf {
        let below = path.as_str().unwrap().strip_prefix("TMP/").unwrap();
        self.world.path(below)
    }

    /// What is in the cache of images but for locks.
    pub(crate) fn cached(&self) -> Vec<String> {
        let folder = self.world.home().join("cache/images");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        names.sort();
        names
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> Value {
        serde_json::from_slice(&fs::read(self.world.path("spec/kiln.lock")).unwrap()).unwrap()
    }

    /// `kiln ARGS` fails with this code and says this; nothing but a partial file is left.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], code: i32, says: &str) {
        let ended = self.world.kiln(args);
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(says),
            "no `{says}` in {}",
            ended.stderr
        );
        let left: Vec<String> = self
            .cached()
            .into_iter()
            .filter(|name| !name.starts_with("partial-"))
            .collect();
        assert_eq!(left, Vec::<String>::new(), "{}", ended.stderr);
    }

    pub(crate) fn behave(&self, path: &str, manners: Manners) {
        self.server.behave(path, manners);
    }
}

/// A qcow2 image whose content is noise: it does not become smaller by packing.
pub(crate) fn image(mebibytes: usize, seed: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (raw, qcow2) = (folder.path().join("raw"), folder.path().join("qcow2"));
    fs::write(&raw, noise(mebibytes << 20, seed)).unwrap();
    let made = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &qcow2])
        .status();
    assert!(made.unwrap().success());
    fs::read(qcow2).unwrap()
}

/// Pseudo-random bytes (xorshift64).
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn pack(tool: &str, args: &[&str], content: &[u8]) -> Vec<u8> {
    let mut child = Command::new(tool)
        .args(args)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("`{tool}` is needed: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let content = content.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&content).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
