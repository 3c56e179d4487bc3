//! Every message of a bad spec, whole: the golden files hold what is told.

use expect_test::{ExpectFile, expect_file};

use super::{Folder, shown, with_image};

/// Each text is refused; the golden file holds what each is told.
#[track_caller]
fn refused(spec: fn(&str) -> String, texts: &[&str], want: &ExpectFile) {
    let folder = Folder::new();
    let mut told = String::new();
    for text in texts {
        match folder.load(spec(text).as_bytes(), &[]) {
            Ok(loaded) => panic!("this loads: {text}: {loaded:#?}"),
            Err(error) => {
                told.push_str(&shown(&folder, &error));
                told.push('\n');
            }
        }
    }
    want.assert_eq(&told);
}

/// The text is the whole spec.
fn whole(text: &str) -> String {
    text.to_owned()
}

/// A spec whose only group has these lines.
fn with_group(lines: &str) -> String {
    format!("cluster: demo\nimage: disk.qcow2\nmachines:\n  node:\n    {lines}\n")
}

#[test]
fn cloud_init_is_refused_beside_ignition() {
    refused(
        with_group,
        &[
            "{ignition: node.ign, cloud_init: node.ign}",
            "{cloud_init: node.ign, profile: etcd}",
            "{cloud_init: missing.yaml}",
            "{cloud_init: node.ign, image: {disk: disk.qcow2, ignition_transport: fw_cfg}}",
        ],
        &expect_file!["../golden/cloud_init_is_refused_beside_ignition.txt"],
    );
}

#[test]
fn profiles_are_refused_with_their_reasons() {
    refused(
        with_group,
        &[
            "profile: etcd_fleet",
            "profile: etdc",
            "profile: mine",
            "profile: ..",
            "profile: ./missing",
            "profile: ./",
            "discovery: new",
            "{profile: etcd, discovery: \"ftp://host/new\"}",
            "{profile: etcd, discovery: \"http://host/$(id)\"}",
            "{profile: etcd, discovery: \"http://host\"}",
        ],
        &expect_file!["../golden/profiles_are_refused_with_their_reasons.txt"],
    );
    refused(
        whole,
        &["cluster: demo
image: disk.qcow2
machines:
  a: {profile: etcd, discovery: new}
  b: {profile: etcd}
"],
        &expect_file!["../golden/two_ways_of_discovery_are_refused.txt"],
    );
}

#[test]
fn unknown_keys_get_a_suggestion() {
    refused(
        with_group,
        &["memroy: 1GiB", "volumes: []"],
        &expect_file!["../golden/unknown_keys_get_a_suggestion.txt"],
    );
}

#[test]
fn sizes_have_units_and_limits() {
    refused(
        with_group,
        &[
            "memory: 512",
            "memory: 512M",
            "memory: 1MiB",
            "memory: 65537KiB",
            "{arch: ppc64, memory: 640MiB}",
            "memory: 99999999999TiB",
            "disk: [1GiB]",
        ],
        &expect_file!["../golden/sizes_have_units_and_limits.txt"],
    );
}

#[test]
fn numbers_have_limits() {
    refused(
        with_group,
        &[
            "cpus: 0",
            "cpus: 256",
            "cpus: two",
            "cpus: 1.5",
            "count: -1",
            "count: 1001",
        ],
        &expect_file!["../golden/numbers_have_limits.txt"],
    );
}

#[test]
fn words_come_from_closed_sets() {
    refused(
        with_group,
        &[
            "accel: kwm",
            "restart: sometimes",
            "restart: true",
            "profile: bsaic",
            "arch: riscv64",
            "firmware: ''",
        ],
        &expect_file!["../golden/words_come_from_closed_sets.txt"],
    );
}

#[test]
fn what_is_not_built_is_said() {
    refused(
        with_group,
        &[
            "butane: node.bu",
            "ignition: node.bu",
            "graphics: vnc",
            "ports: [\"53:53/udp\"]",
            "ports: [\"[::1]:80:80\"]",
        ],
        &expect_file!["../golden/what_is_not_built_is_said.txt"],
    );
}

#[test]
fn shares_are_refused_with_their_reasons() {
    let many: Vec<String> = (0..9)
        .map(|index| format!("{{from: ., to: /mnt/{index}}}"))
        .collect();
    let many = format!("shares: [{}]", many.join(", "));
    refused(
        with_group,
        &[
            "shares: ./src",
            "shares: [./src]",
            "shares: [{}]",
            "shares: [{from: .}]",
            "shares: [{from: missing, to: /mnt}]",
            "shares: [{from: node.ign, to: /mnt}]",
            "shares: [{from: '', to: /mnt}]",
            "shares: [{from: ., to: mnt}]",
            "shares: [{from: ., to: /}]",
            "shares: [{from: ., to: /var/../etc}]",
            "shares: [{from: ., to: \"/a\\nb\"}]",
            "shares: [{from: ., to: /mnt, readonly: sure}]",
            "shares: [{from: ., to: /mnt, readonyl: true}]",
            "shares: [{from: ., to: /mnt}, {from: ., to: //mnt/}]",
            &many,
        ],
        &expect_file!["../golden/shares_are_refused_with_their_reasons.txt"],
    );
}

#[test]
fn disks_are_refused_with_their_reasons() {
    refused(
        with_group,
        &[
            "disks: {size: 1GiB}",
            "disks: [5GiB]",
            "disks: [{}]",
            "disks: [{size: 5}]",
            "disks: [{size: 5GiB, seriel: a}]",
            "disks: [{size: 5GiB, serial: \"a,b\"}]",
            "disks: [{size: 5GiB, serial: root}]",
            "disks: [{size: 5GiB, serial: a23456789012345678901}]",
            "disks: [{size: 5GiB, serial: 7}]",
            "disks: [{size: 5GiB, serial: data2}, {size: 5GiB}]",
            "disks: [{size: 5GiB, readonly: true}]",
            "disks: [{size: 5GiB, sector: 520}]",
            "disks: [{size: 5GiB, bus: ide}]",
            "{arch: s390x, disks: [{size: 5GiB, bus: nvme}]}",
            "{arch: ppc64le, disk: {size: 5GiB, bus: nvme}}",
            "disk: {size: 5GiB, buss: scsi}",
            "disk: [5GiB]",
            "disks: [{size: 1025KiB, sector: 4096}]",
            "disks: [{size: 5GiB, file: disk.raw}]",
            "disks: [{file: disk.raw, keep: true}]",
            "disks: [{file: gone.raw}]",
            "disks: [{file: disk.iso}]",
            "disks: [{file: /dev/null, format: raw}]",
            "{count: 2, disks: [{file: disk.raw}]}",
            "disks: [{file: disk.qcow2}]",
            "disks: [{file: disk.raw}, {file: disk.raw, serial: b, readonly: true}]",
        ],
        &expect_file!["../golden/disks_are_refused_with_their_reasons.txt"],
    );
    let many = vec!["{size: 1GiB}"; 17].join(", ");
    let folder = Folder::new();
    let text = with_group(&format!("disks: [{many}]"));
    let error = folder.load(text.as_bytes(), &[]).unwrap_err().to_string();
    assert!(
        error.contains("17 disks are too many; at most 16"),
        "{error}"
    );
}

#[test]
fn ports_are_refused_with_the_forms_that_work() {
    refused(
        with_group,
        &[
            "ports: [80]",
            "ports: [\"80\"]",
            "ports: [\"0:80\"]",
            "ports: [\"80:http\"]",
            "ports: [\"70000:80\"]",
            "ports: [\"300.0.0.1:80:80\"]",
            "ports: [\"1:2:3:4\"]",
            "ports: [\":80\", \":80\"]",
            "ports: \":80\"",
            "ports: [\":80/x\"]",
        ],
        &expect_file!["../golden/ports_are_refused_with_the_forms_that_work.txt"],
    );
}

#[test]
fn names_and_count() {
    refused(
        with_group,
        &[
            "{count: 1, names: [a]}",
            "names: [a, b, a]",
            "names: [A]",
            "names: [1]",
            "names: [localhost]",
        ],
        &expect_file!["../golden/names_and_count.txt"],
    );
}

#[test]
fn a_group_cannot_share_a_host_port() {
    refused(
        with_group,
        &["{count: 2, ports: ['80:80']}"],
        &expect_file!["../golden/a_group_cannot_share_a_host_port.txt"],
    );
}

#[test]
fn ignition_files() {
    refused(
        with_group,
        &[
            "ignition: missing.ign",
            "ignition: .",
            "ignition: latin1.ign",
            "ignition: ''",
            "ignition: \"a\\0b\"",
            "ignition: ~root/x",
            "template: true",
            "{ignition: node.ign, template: 1}",
            "vars: [1]",
        ],
        &expect_file!["../golden/ignition_files.txt"],
    );
}

#[test]
fn firmware_fits_the_architecture() {
    refused(
        with_group,
        &[
            "{arch: aarch64, firmware: bios}",
            "{arch: aarch64, firmware: uefi-secure}",
            "{arch: x86_64, firmware: uefi-secure, memory: 511MiB}",
            "{arch: s390x, firmware: uefi}",
            "{arch: ppc64le, firmware: bios}",
            "{arch: i386, firmware: uefi}",
            "firmware: ovmf",
            "{arch: s390x, tpm: true}",
            "tpm: 2.0",
            "{arch: ppc64le, image: {disk: disk.qcow2, ignition_transport: fw_cfg}}",
            "{arch: s390x, image: 'flatcar:stable'}",
            "{arch: i386, image: {disk: 'rhcos:4.18'}}",
        ],
        &expect_file!["../golden/firmware_fits_the_architecture.txt"],
    );
}

#[test]
fn images_that_cannot_be() {
    refused(
        with_image,
        &[
            "missing.qcow2",
            "fake.qcow2",
            "disk.iso",
            "disk.qcow2.xz",
            "fedora-coreos",
            "fedora-coreos:../x",
            "flatcar:stable@",
            "rhcos:latest",
            "fedora-coreo:stable",
            "ubuntu:24.04",
            "fedora-coreos:stabel",
            "flatcar:betta@4230.2.3",
            "{disk: 'flatcar:stable', format: raw}",
            "{disk: 'rhcos:4.16', insecure: true}",
            "https://example.org/a.qcow2",
            "{disk: 'http://example.org/a.qcow2', insecure: true}",
            "{disk: 'https://example.org/a', sha256: '0000000000000000000000000000000000000000000000000000000000000000'}",
            "'https://me:secret@example.org/a.qcow2'",
            "[]",
            ".",
            "{}",
            "{kernel: missing}",
            "{initrd: initrd}",
            "{kernel: vmlinuz, format: raw}",
            "{kernel: vmlinuz, cmdline: \"a\\nb\"}",
            "{disk: disk.qcow2, sha256: abc}",
            "{disk: disk.qcow2, insecure: true, sha256: '0000000000000000000000000000000000000000000000000000000000000000'}",
            "{disk: disk.raw, format: vmdk}",
            "{kernel: vmlinuz, disk: {disk: disk.raw}, format: raw}",
            "{kernel: vmlinuz, disk: {kernel: vmlinuz}}",
            "{disk: disk.qcow2, ignition_transport: network}",
            "{kernal: vmlinuz}",
        ],
        &expect_file!["../golden/images_that_cannot_be.txt"],
    );
}

#[test]
fn the_outline() {
    refused(
        whole,
        &[
            "",
            "[]",
            "cluster: demo",
            "machines: {}",
            "cluster: demo\nmachines: {}",
            "cluster: demo\nmachines: {node: }",
            "cluster: 7\nmachines: {node: }",
            "cluster: De_mo\nmachines: {node: }",
            "cluster: demo\nstorage: {}\nmachines: {node: }",
            "cluster: demo\nstorage: {vg: -a}\nmachines: {node: }",
            "cluster: demo\nstorage: {vg: vg0, thin: pool}\nmachines: {node: }",
            "cluster: demo\nimage: disk.qcow2\nmachines: {Node: }",
            "cluster: demo\nimage: disk.qcow2\nmachines: {node: 3}",
            "cluster: demo\nimagee: disk.qcow2\nmachines: {node: }",
        ],
        &expect_file!["../golden/the_outline.txt"],
    );
}

#[test]
fn machines_that_clash() {
    refused(
        whole,
        &[
            "cluster: demo\nimage: disk.qcow2\nmachines:\n  node: {count: 2}\n  other: {names: [node-2]}\n",
            "cluster: demo\nimage: disk.qcow2\nmachines:\n  a: {ports: ['80:80']}\n  b:\n    ports:\n      - '0.0.0.0:80:8080'\n",
            "cluster: demo\nimage: disk.qcow2\nmachines:\n  a:\n    cpus: 1\n    memory: 1GiB\n    cpus: 2\n",
            "cluster: demo\nimage: disk.qcow2\nmachines:\n  a:\n  a:\n",
        ],
        &expect_file!["../golden/machines_that_clash.txt"],
    );
}

#[test]
fn networks() {
    refused(
        whole,
        &[
            "cluster: demo\nnetwork: {mode: attach}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {}}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {attach: a bridge}}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {attach: sixteen-bytes-16}}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {attach: br0, dhcp: true}}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {attach: br0}, subnet: 10.80.1.0/24}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: user, leases: ./leases}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {attach: br0}, routes: []}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {attach: br0}, mtu: 9000}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {attach: br0}, ipv6: \"fd12:3456:789a::/64\"}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: {attach: br0}, uplink: false}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: user, dns: 10.0.0.53}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: user, hosts: {a: 10.0.0.5}}\nmachines: {}",
            "cluster: demo\nnetwork: {mode: fabrik}\nmachines: {}",
            "cluster: demo\nnetwork: {subnet: 10.0.0.0}\nmachines: {}",
            "cluster: demo\nnetwork: {subnet: 10.0.0.1/24}\nmachines: {}",
            "cluster: demo\nnetwork: {subnet: 10.0.0.0/30}\nmachines: {}",
            "cluster: demo\nnetwork: {subnet: 127.0.0.0/24}\nmachines: {}",
            "cluster: demo\nnetwork: {subnet: 224.0.0.0/24}\nmachines: {}",
            "cluster: demo\nnetwork: {subnet: fd00::/64}\nmachines: {}",
        ],
        &expect_file!["../golden/networks.txt"],
    );
}

#[test]
fn ssh_keys() {
    refused(
        whole,
        &[
            "cluster: demo\nssh: {key: missing.pub}\nmachines: {}",
            "cluster: demo\nssh: {key: id}\nmachines: {}",
            "cluster: demo\nssh: {key: bad.pub}\nmachines: {}",
            "cluster: demo\nssh: {key: node.ign}\nmachines: {}",
            "cluster: demo\nssh: {key: [id.pub, 7]}\nmachines: {}",
            "cluster: demo\nssh: {key: {}}\nmachines: {}",
            "cluster: demo\nssh: {keys: id.pub}\nmachines: {}",
        ],
        &expect_file!["../golden/ssh_keys.txt"],
    );
}

#[test]
fn yaml_that_is_none() {
    refused(
        whole,
        &[
            "cluster: [",
            "a: b: c",
            "cluster: demo\n\timage: x",
            "a: *b",
            "--- {}\n--- {}",
            "cluster: \"de\\xmo\"",
            "cluster: .inf",
            "? [a]\n: b",
            "a: &a [*a]",
            "cluster: 1e999",
        ],
        &expect_file!["../golden/yaml_that_is_none.txt"],
    );
}

#[test]
fn places_are_refused_with_their_reasons() {
    refused(
        |text| {
            format!(
                "cluster: demo\nimage: disk.qcow2\nnetwork: {{subnet: 10.80.1.0/24}}\nmachines: {text}\n"
            )
        },
        &[
            "{a: {address: 10.80.1}}",
            "{a: {address: 10}}",
            "{a: {address: 10.80.2.9}}",
            "{a: {address: 10.80.1.1}}",
            "{a: {address: 10.80.1.255}}",
            "{a: {address: \"fd00::9\"}}",
            "{a: {address: 10.80.1.9}, b: {address: 10.80.1.9}}",
            "{a: {count: 2, address: 10.80.1.9}}",
            "{a: {count: 2, address: {a-3: 10.80.1.9}}}",
            "{a: {mac: \"52:54:00:00:00\"}}",
            "{a: {mac: \"01:00:5e:00:00:01\"}}",
            "{a: {mac: \"00:00:00:00:00:00\"}}",
            "{a: {mac: \"52-54-00-00-00-01\"}}",
            "{a: {mac: \"52:54:00:AA:00:01\"}, b: {mac: \"52:54:00:aa:00:01\"}}",
        ],
        &expect_file!["../golden/places_are_refused_with_their_reasons.txt"],
    );
    refused(
        with_group,
        &["address: 10.80.1.9"],
        &expect_file!["../golden/an_address_needs_a_subnet.txt"],
    );
    refused(
        whole,
        &[
            "cluster: demo\nimage: disk.qcow2\nnetwork: {mode: {attach: br0}}\nmachines: {a: {address: 10.80.1.9}}",
            "cluster: demo\nimage: disk.qcow2\nnetwork: {mode: {attach: br0}}\nmachines: {a: {profile: etcd}}",
            "cluster: demo\nimage: disk.qcow2\nnetwork: {mode: user}\nmachines: {a: {profile: etcd}}",
        ],
        &expect_file!["../golden/machines_that_a_network_cannot_have.txt"],
    );
}

#[test]
fn what_machines_cannot_be_told_is_refused_with_its_reasons() {
    refused(
        |text| {
            format!("cluster: demo\nimage: disk.qcow2\nnetwork: {text}\nmachines: {{node: {{}}}}\n")
        },
        &[
            "{domian: x}",
            "{ipv6: 6}",
            "{ipv6: \"2001:db8::/64\"}",
            "{ipv6: \"fd00::/48\"}",
            "{domain: a..b}",
            "{domain: -a}",
            "{mtu: 1279}",
            "{mtu: 9001}",
            "{dns: nameserver}",
            "{dns: [0.0.0.0]}",
            "{dns: 10.0.0.1, uplink: false}",
            "{hosts: [a]}",
            "{hosts: {node: 10.0.0.1}}",
            "{hosts: {node.demo.internal: 10.0.0.1}}",
            "{hosts: {a b: 10.0.0.1}}",
            "{hosts: {a: somewhere}}",
            "{hosts: {a: []}}",
            "{hosts: {A: 10.0.0.1, a: 10.0.0.1}}",
            "{routes: {to: 10.0.0.0/8}}",
            "{routes: [{to: 10.0.0.0/8}]}",
            "{routes: [{to: 10.0.0.0/8, via: 10.80.1.9}]}",
            "{subnet: 10.80.1.0/24, routes: [{to: 10.0.0.0/8, via: 10.80.2.9}]}",
            "{subnet: 10.80.1.0/24, routes: [{to: 10.0.0.1/8, via: 10.80.1.9}]}",
            "{subnet: 10.80.1.0/24, routes: [{to: 0.0.0.0/0, via: 10.80.1.9}]}",
        ],
        &expect_file!["../golden/what_machines_cannot_be_told.txt"],
    );
}
