//! What loads, what is warned of, and properties of all specs.

mod refused;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use expect_test::{expect, expect_file};
use kiln_arch::Arch;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use proptest::prelude::{any, prop, proptest};

use super::{Context, Loaded, Scale, SpecError, find, init_template, load};
use crate::cluster::{Image, MachineName, NetworkMode, Size};

/// A folder of its own for each test, with what the specs below name.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = std::env::temp_dir().join(format!(
            "kiln-spec-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&path).unwrap();
        let folder = Folder(fs::canonicalize(path).unwrap());
        folder.write("disk.qcow2", b"QFI\xfb\x00\x00\x00\x03");
        folder.write("disk.raw", b"\x00");
        folder.write("fake.qcow2", b"MZ");
        folder.write("disk.iso", b"");
        folder.write("vmlinuz", b"");
        folder.write("initrd", b"");
        folder.write("node.ign", b"{}");
        folder.write("node.ign.j2", b"{}");
        folder.write("latin1.ign", b"\xe4");
        folder.write(
            "id.pub",
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDHGpvhsN/9FOdsCrrk2ctYV7HKVBM3/KNdj6ySpvNnp me\n",
        );
        folder.write("id", b"-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n");
        folder.write("bad.pub", b"# mine\nssh-ed25519 hunter2\n");
        folder
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    fn load(&self, text: &[u8], said: &[(&str, u16)]) -> Result<Loaded, SpecError> {
        self.load_scaled(text, said, &[])
    }

    fn load_scaled(
        &self,
        text: &[u8],
        said: &[(&str, u16)],
        remembered: &[(&str, u16)],
    ) -> Result<Loaded, SpecError> {
        self.write("kiln.yaml", text);
        let counts = |scale: &[(&str, u16)]| -> BTreeMap<MachineName, u16> {
            scale
                .iter()
                .map(|(name, count)| (name.parse().unwrap(), *count))
                .collect()
        };
        load(
            &self.0.join("kiln.yaml"),
            Context {
                host_arch: Arch::X86_64,
                home: Some(&self.0),
                config: None,
                scale: Scale {
                    said: &counts(said),
                    remembered: &counts(remembered),
                },
                set: &super::Vars::new(),
            },
        )
    }

    /// The text without this folder's name.
    fn anonymous(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder left behind harms no test.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn shown(folder: &Folder, error: &SpecError) -> String {
    let mut text = format!("{error} [{}]\n", error.code());
    for part in [error.snippet(), error.hint()].into_iter().flatten() {
        text.push_str(part);
        text.push('\n');
    }
    folder.anonymous(&text)
}

#[track_caller]
fn loaded(text: &str) -> Loaded {
    let folder = Folder::new();
    match folder.load(text.as_bytes(), &[]) {
        Ok(loaded) => loaded,
        Err(error) => panic!("{}", shown(&folder, &error)),
    }
}

/// A spec with this image.
fn with_image(image: &str) -> String {
    format!("cluster: demo\nimage: {image}\nmachines: {{node: }}\n")
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded
        .cluster
        .machines
        .iter()
        .map(|machine| machine.name.as_str())
        .collect()
}

#[test]
fn machines_have_the_places_that_the_spec_names() {
    let folder = Folder::new();
    let spec = |said: &[(&str, u16)]| {
        let text = "cluster: demo\nimage: disk.qcow2\n\
            network: {subnet: 10.80.1.0/24, uplink: false}\nmachines:\n  \
            alone: {address: 10.80.1.20, mac: \"52:54:00:AA:00:01\"}\n  \
            node: {count: 2, address: {node-1: 10.80.1.4, node-2: 10.80.1.5}}\n  \
            other: {names: [x, y], mac: {y: \"52:54:00:aa:00:02\"}}\n";
        folder.load(text.as_bytes(), said).unwrap().cluster
    };
    let cluster = spec(&[]);
    assert!(!cluster.network.uplink);
    let told: Vec<String> = cluster
        .network
        .fixed
        .iter()
        .map(|(name, fixed)| format!("{name} {:?} {:?}", fixed.ip, fixed.mac))
        .collect();
    expect![[r#"
        alone Some(10.80.1.20) Some(MacAddr6([82, 84, 0, 170, 0, 1]))
        node-1 Some(10.80.1.4) None
        node-2 Some(10.80.1.5) None
        y None Some(MacAddr6([82, 84, 0, 170, 0, 2]))"#]]
    .assert_eq(&told.join("\n"));
    // A machine that scaling leaves out keeps its place.
    assert_eq!(spec(&[("node", 1)]).network.fixed.len(), 4);
}

#[test]
fn a_full_group_is_read() {
    let loaded = loaded(
        "cluster: demo
network: {mode: fabric, subnet: 10.80.1.0/24}
ssh: {key: [id.pub, ~/id.pub]}
machines:
  node:
    count: 2
    image: {kernel: ./vmlinuz, initrd: initrd, cmdline: console=ttyS0, disk: disk.raw}
    arch: arm64
    accel: tcg
    cpus: 2
    memory: 2GiB
    disk: {size: 20GiB, bus: nvme}
    disks: [{size: 5GiB, serial: db, keep: true}, {size: 1GiB, bus: scsi, sector: 4096}, {file: disk.iso, format: raw, readonly: true}]
    shares: [{from: ./, to: //var/mnt/src/, readonly: true}, {from: ~/, to: '/var/my out'}]
    ignition: node.ign.j2
    vars: {role: worker, deep: [1, {a: yes}]}
    profile: none
    ports: [:80, 127.0.0.2::22/tcp]
    firmware: auto
    graphics: none
    restart: no
  web:
    image: {disk: disk.qcow2, sha256: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA}
    ignition: node.ign
    ports: ['0.0.0.0:8080:80', '127.0.0.1:2222:22']
",
    );
    assert_eq!(loaded.warnings, []);
    let text = format!("{:#?}\n", loaded.cluster);
    let folder = loaded.cluster.folder.display().to_string();
    expect_file!["golden/a_full_group_is_read.txt"].assert_eq(&text.replace(&folder, "FOLDER"));
}

#[test]
fn a_group_alone_is_one_machine_with_defaults() {
    let loaded = loaded(&with_image("disk.qcow2"));
    let machine = &loaded.cluster.machines[0];
    assert_eq!(names(&loaded), ["node"]);
    assert_eq!(machine.memory, Size::from_mib(1024));
    assert_eq!(machine.cpus.get(), 1);
    assert_eq!(machine.arch, Arch::X86_64);
}

#[test]
fn counts_and_names_make_machines() {
    let spec = "cluster: demo
image: disk.qcow2
machines:
  none: {count: 0}
  one: {count: 1}
  node: {count: 3}
  greek: {names: [alpha, beta]}
";
    assert_eq!(
        names(&loaded(spec)),
        ["one-1", "node-1", "node-2", "node-3", "alpha", "beta"]
    );
}

#[test]
fn scaling_replaces_counts() {
    let folder = Folder::new();
    let spec = b"cluster: demo
image: disk.qcow2
machines: {node: {count: 3}, alone: }
";
    let loaded = folder.load(spec, &[("node", 1)]).unwrap();
    assert_eq!(names(&loaded), ["node-1", "alone"]);
    let unknown = folder.load(spec, &[("nod", 1)]).unwrap_err();
    expect![[r#"
        kiln.yaml: there is no group `nod` to scale [unknown-group]
        did you mean `node`?
    "#]]
    .assert_eq(&shown(&folder, &unknown));
    let alone = folder.load(spec, &[("alone", 2)]).unwrap_err();
    expect![[r#"
        kiln.yaml:3:30: `machines`: group `alone` has no `count`, so it cannot be scaled [bad-value]
          3 | machines: {node: {count: 3}, alone: }
            |                              ^
        write `count: 1` in the group
    "#]]
    .assert_eq(&shown(&folder, &alone));
}

#[test]
fn an_earlier_scale_holds_until_the_spec_says_the_same() {
    let folder = Folder::new();
    let spec = b"cluster: demo
image: disk.qcow2
machines: {node: {count: 3}, alone: }
";
    let remembered = [("node", 2), ("gone", 4), ("alone", 5)];
    let loaded = folder.load_scaled(spec, &[], &remembered).unwrap();
    assert_eq!(names(&loaded), ["node-1", "node-2", "alone"]);
    let scale = |loaded: &Loaded| -> Vec<(String, u16)> {
        let scale = &loaded.cluster.scale;
        scale
            .iter()
            .map(|(name, count)| (name.to_string(), *count))
            .collect()
    };
    assert_eq!(scale(&loaded), [("node".to_owned(), 2)]);
    expect!["group `node` is of 2 by an earlier `--scale`, not of 3 as the spec says; `kiln up --scale node=3` goes back"]
        .assert_eq(&loaded.warnings[0].to_string());

    let back = folder
        .load_scaled(spec, &[("node", 3)], &remembered)
        .unwrap();
    assert_eq!(names(&back), ["node-1", "node-2", "node-3", "alone"]);
    assert_eq!((scale(&back), back.warnings), (vec![], vec![]));
}

#[test]
fn anchors_and_merge_keys_work() {
    let loaded = loaded(
        "cluster: demo
image: &image disk.qcow2
machines:
  a: &a {memory: 2GiB, image: *image}
  b: {<<: *a, cpus: 2}
",
    );
    assert_eq!(loaded.cluster.machines[1].memory, Size::from_mib(2048));
    assert_eq!(loaded.cluster.machines[1].cpus.get(), 2);
}

#[test]
fn what_looks_like_a_mistake_is_warned_of() {
    let folder = Folder::new();
    folder.write("odd.raw", b"QFI\xfb");
    let loaded = folder
        .load(
            b"cluster: demo
image: odd.raw
network: {subnet: 8.8.8.0/24}
machines:
  a: {ignition: node.ign, vars: {a: 1}}
  b: {image: {disk: disk.qcow2, insecure: true}}
",
            &[],
        )
        .unwrap();
    let lines: Vec<String> = loaded
        .warnings
        .iter()
        .map(|warning| format!("{}: {warning}", warning.place().line))
        .collect();
    expect![[r#"
        2: `odd.raw` is taken as raw, but begins like a qcow2 image; the machine will see those bytes
        3: `subnet` is not a private one: the machines cannot reach the hosts that own these addresses
        5: group `a` has `vars`, but its Ignition config is not a template: say `template: true` or end its name in `.j2`
        6: `insecure: true` changes nothing for a local file: only downloads carry signatures"#]].assert_eq(&folder.anonymous(&lines.join("\n")));
}

#[test]
fn images_from_elsewhere_are_read() {
    let zeros = "0".repeat(64);
    for (image, want) in [
        ("fedora-coreos:stable".to_owned(), "fedora-coreos:stable"),
        (
            "{disk: 'flatcar:beta@4230.1.0', insecure: true}".to_owned(),
            "flatcar:beta@4230.1.0",
        ),
        ("rhcos:4.18".to_owned(), "rhcos:4.18"),
        (
            format!("{{disk: 'http://a.example/x.raw.xz', sha256: '{zeros}'}}"),
            "http://a.example/x.raw.xz",
        ),
        (
            "{disk: 'https://a.example/x', format: raw, insecure: true}".to_owned(),
            "https://a.example/x",
        ),
    ] {
        let loaded = loaded(&format!(
            "cluster: demo\nimage: {image}\nmachines: {{node: }}"
        ));
        let remote = loaded.cluster.machines[0].remote_image().unwrap();
        assert_eq!(remote.source.to_string(), want);
        assert_eq!(remote.insecure, image.contains("insecure"), "{image}");
    }
}

#[test]
fn what_init_writes_loads() {
    let loaded = loaded(&init_template(&"fresh".parse().unwrap()));
    assert_eq!(loaded.cluster.name.as_str(), "fresh");
    assert_eq!(names(&loaded), ["node-1", "node-2", "node-3"]);
    assert!(matches!(loaded.cluster.machines[0].image, Image::Disk(_)));
}

/// Every key that `init` shows in a comment is one that loads.
#[test]
fn what_init_comments_out_loads_too() {
    let text: String = init_template(&"fresh".parse().unwrap())
        .lines()
        // Other images than the one that is there.
        .filter(|line| !line.contains("vmlinuz") && !line.contains("fedora-coreos"))
        .map(|line| match line.split_once("# ") {
            Some((indent, rest))
                if indent.trim().is_empty()
                    && rest.split_once(':').is_some_and(|(key, value)| {
                        !key.trim().contains(' ') && !value.contains("`kiln")
                    }) =>
            {
                format!("{indent}{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let text = text.replace("~/.ssh/id_ed25519.pub", "id.pub");
    let loaded = loaded(&text);
    assert!(loaded.cluster.network.subnet.is_some(), "{text}");
    assert_eq!(loaded.cluster.authorized_keys.len(), 1, "{text}");
    assert_eq!(loaded.cluster.machines[0].ports.len(), 1, "{text}");
}

#[test]
fn the_example_loads() {
    let folder = Folder::new();
    let example = folder.0.join("examples/three");
    let guest = folder.0.join("target/guests/current");
    fs::create_dir_all(&example).unwrap();
    fs::create_dir_all(&guest).unwrap();
    folder.write("target/guests/current/kernel", b"");
    folder.write("target/guests/current/initrd", b"");
    folder.write(
        "examples/three/node.ign.j2",
        include_bytes!("../../examples/three/node.ign.j2"),
    );
    folder.write(
        "examples/three/kiln.yaml",
        include_bytes!("../../examples/three/kiln.yaml"),
    );
    let context = Context {
        host_arch: Arch::X86_64,
        home: None,
        config: None,
        scale: Scale::NONE,
        set: &super::Vars::new(),
    };
    let loaded = load(&example.join("kiln.yaml"), context).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(names(&loaded), ["node-1", "node-2", "node-3"]);
    assert_eq!(loaded.cluster.folder, example);
}

#[test]
fn a_spec_is_found_from_below() {
    let folder = Folder::new();
    let below = folder.0.join("a/b");
    fs::create_dir_all(&below).unwrap();
    // A folder of that name is no spec.
    fs::create_dir(folder.0.join("a/kiln.yaml")).unwrap();
    folder.write("kiln.yaml", b"");
    assert_eq!(find(&below).unwrap(), folder.0.join("kiln.yaml"));
    fs::remove_file(folder.0.join("kiln.yaml")).unwrap();
    assert_eq!(
        find(&below).unwrap_err().to_string(),
        format!("there is no `kiln.yaml` in `{}` or above", below.display())
    );
}

#[test]
fn files_that_are_no_specs() {
    let folder = Folder::new();
    let context = Context {
        host_arch: Arch::X86_64,
        home: None,
        config: None,
        scale: Scale::NONE,
        set: &super::Vars::new(),
    };
    let mut lines = Vec::new();
    for path in [
        folder.0.join("missing.yaml"),
        folder.0.clone(),
        folder.0.join("latin1.ign"),
        Path::new("/dev/zero").to_owned(),
    ] {
        lines.push(load(&path, context).unwrap_err().to_string());
    }
    expect![[r#"
        missing.yaml: cannot read the spec: `missing.yaml` does not exist
        FOLDER: cannot read the spec: `FOLDER` is not a regular file
        latin1.ign: cannot read the spec: `latin1.ign` is not UTF-8 text
        /dev/zero: cannot read the spec: `/dev/zero` is not a regular file"#]]
    .assert_eq(
        &folder
            .anonymous(&lines.join("\n"))
            .replace(&folder.0.display().to_string(), "FOLDER"),
    );
}

/// The largest file that passes the first cap.
const FULL: usize = 1 << 20;

/// Within a second each, in an unoptimized build too.
#[test]
fn bombs_are_refused_at_once() {
    let folder = Folder::new();
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = format!("*a{}", level - 1);
        laughs.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            vec![below; 9].join(", ")
        ));
    }
    let bombs = [
        "a".repeat(2 << 20),
        "[".repeat(FULL),
        "[[],".repeat(FULL / 4),
        "{a: ".repeat(FULL / 4),
        "- ".repeat(FULL / 2),
        "? ".repeat(FULL / 2),
        "&a ".repeat(FULL / 3),
        format!("a: [{}]", "x,".repeat(FULL / 2 - 4)),
        (0..70_000).map(|key| format!("k{key}: 1\n")).collect(),
        format!("a: {}1", "!x ".repeat(FULL / 3 - 4)),
        format!("# {}\nä: 1", "#".repeat(FULL - 10)),
        format!("a: \"{}", "\\n".repeat(FULL / 2 - 4)),
        format!("a: |\n{}", " x\n".repeat(FULL / 3 - 4)),
        format!("a: >\n{}", " x\n\n".repeat(FULL / 4 - 4)),
        "a\n".repeat(FULL / 2),
        "a:\n".repeat(FULL / 3),
        format!("cluster: {}", "a".repeat(FULL - 20)),
        format!("machines: {{{}: }}", "a".repeat(FULL - 20)),
        format!("cluster: a\nvars: {}", "{<<: ".repeat(100)),
        "%TAG ! a\n".repeat(FULL / 9),
        "---\n".repeat(FULL / 4),
        format!("{{{}", "\"a\": {".repeat(FULL / 7 - 4)),
        laughs,
    ];
    for bomb in bombs {
        let before = cpu_time();
        let result = folder.load(bomb.as_bytes(), &[]);
        let took = cpu_time() - before;
        let head: String = bomb.chars().take(20).collect();
        match result {
            Ok(_) => panic!("this loads: {head}"),
            Err(error) => assert!(error.to_string().len() < 500, "{head}: {error}"),
        }
        assert!(took < Duration::from_secs(1), "{head}: {took:?}");
    }
}

/// What this thread has computed, whatever else the machine does.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap())
}

#[test]
fn no_bytes_panic() {
    let folder = Folder::new();
    proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..200))| {
        let _ = folder.load(&bytes, &[]);
    });
}

/// Words of the format in any arrangement: deeper than random bytes reach.
#[test]
fn no_words_panic() {
    let folder = Folder::new();
    let words = prop::collection::vec(prop::sample::select(WORDS), 0..60);
    proptest!(|(words in words)| {
        let _ = folder.load(words.concat().as_bytes(), &[]);
    });
}

const WORDS: &[&str] = &[
    "cluster: ",
    "demo",
    "image: ",
    "disk.qcow2",
    "machines:",
    "node",
    ":",
    " ",
    "\n",
    "\n  ",
    "\n    ",
    "count: ",
    "3",
    "names: ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "- ",
    "a",
    "memory: ",
    "1GiB",
    "ports: ",
    "\":80\"",
    "80",
    "vars: ",
    "&x ",
    "*x",
    "<<: ",
    "!t ",
    "\"",
    "'",
    "#",
    "~",
    "null",
    "network: ",
    "mode: ",
    "ssh: ",
    "key: ",
    "id.pub",
    "kernel: ",
    "vmlinuz",
    "ä",
    "\t",
    "---\n",
];

#[test]
fn a_bridge_of_the_host_s_is_a_mode() {
    let folder = Folder::new();
    let network = |network: &str| {
        let text = format!(
            "cluster: demo\nimage: disk.qcow2\nnetwork: {network}\nmachines:\n  node: {{}}\n"
        );
        folder.load(text.as_bytes(), &[]).unwrap().cluster.network
    };
    assert_eq!(
        network("{mode: {attach: br0}, leases: ./leases}").mode,
        NetworkMode::Attach {
            bridge: "br0".parse().unwrap(),
            leases: Some(folder.0.join("leases")),
        }
    );
    assert_eq!(network("{mode: user}").mode, NetworkMode::User);
}
