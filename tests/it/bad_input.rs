//! Input that is wrong: the documented exit code, one clear message with its place, nothing made.

use std::fs;
use std::net::TcpListener;

use expect_test::{Expect, expect};
use serde_json::Value;

use crate::fake_support::{QEMU, World};

/// `kiln ARGS` fails with this code and these words on stderr, and makes nothing.
#[track_caller]
fn check(world: &World, args: &[&str], code: i32, want: &Expect) {
    let before = world.tree();
    let ended = world.kiln(args);
    want.assert_eq(&ended.stderr);
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    let lock_free = |tree: Vec<String>| -> Vec<String> {
        // Folders and locks that any command makes and all clusters share.
        let shared = [
            "0700 state",
            "0700 state/clusters",
            "0600 state/reservations.lock",
        ];
        let mut tree = tree;
        tree.retain(|line| !shared.contains(&line.as_str()));
        tree
    };
    assert_eq!(lock_free(world.tree()), lock_free(before));
    // What programs are told is the same.
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let ended = world.kiln(&args);
    assert_eq!(ended.code, Some(code));
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told["schema"], 1);
    assert_eq!(told["ok"], false);
    let words = [
        "done", "failed", "usage", "spec", "host", "timeout", "boot", "unknown", "busy", "unsafe",
    ];
    let error = &told["error"];
    assert_eq!(error["code"], words[usize::try_from(code).unwrap()]);
    let message = error["message"].as_str().unwrap();
    let first = message.lines().next().unwrap();
    assert!(
        ended.stderr.contains(first),
        "{message} is not in {}",
        ended.stderr
    );
    assert!(error["causes"].is_array());
    assert!(error["hint"].is_string() || error["hint"].is_null());
}

/// A spec that `up`, `plan` and `validate` alike refuse.
#[track_caller]
fn check_spec(spec: &str, want: &Expect) {
    let world = World::new();
    world.spec(spec);
    for verb in ["up", "plan", "validate"] {
        check(&world, &[verb], 3, want);
    }
}

#[test]
fn an_unknown_key_is_refused_with_a_suggestion() {
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node:\n    memroy: 1GiB\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:5:5: unknown key `memroy` in group `node`
              5 |     memroy: 1GiB
                |     ^

            hint: did you mean `memory`?
        "#]],
    );
}

#[test]
fn a_wrong_type_is_refused() {
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node:\n    cpus: [1]\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:5:11: `cpus` has to be a whole number, not a list
              5 |     cpus: [1]
                |           ^
        "#]],
    );
}

#[test]
fn a_number_that_is_none_is_refused() {
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node:\n    memory: lots\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:5:13: `memory`: `lots` is not a size: write a number and a unit, such as `512MiB` or `2GiB`
              5 |     memory: lots
                |             ^
        "#]],
    );
}

#[test]
fn two_machines_of_one_name_are_refused() {
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node: {count: 2}\n  other: {names: [a, node-2]}\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:5:22: a second machine is called `node-2`; the first is in line 4
              5 |   other: {names: [a, node-2]}
                |                      ^
        "#]],
    );
}

#[test]
fn a_key_that_stands_twice_is_refused() {
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node: {}\n  node: {}\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:5:3: the key `node` stands here a second time
              5 |   node: {}
                |   ^
        "#]],
    );
}

#[test]
fn a_feature_that_is_not_built_is_refused_with_words() {
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node: {graphics: vnc}\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:4:20: `graphics: vnc` is not built yet
              4 |   node: {graphics: vnc}
                |                    ^

            hint: this kiln knows `none`
        "#]],
    );
}

#[test]
fn a_fixed_host_port_in_a_group_is_refused() {
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node:\n    count: 2\n    ports: [\"8080:80\"]\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:6:13: `ports`: the 2 machines of group `node` cannot share one host port
              6 |     ports: ["8080:80"]
                |             ^

            hint: write ":80" for a free host port for each
        "#]],
    );
}

#[test]
fn what_is_no_yaml_is_refused() {
    check_spec(
        "cluster: [demo\nmachines: }\n",
        &expect![[r#"
        error: TMP/spec/kiln.yaml:2:9: this is not a spec: illegal placement of ':' indicator
          2 | machines: }
            |         ^
    "#]],
    );
    check_spec(
        "",
        &expect![[r#"
        error: TMP/spec/kiln.yaml: this is not a spec: the file is empty

        hint: `kiln init` writes one to begin with
    "#]],
    );
}

#[test]
fn a_name_that_cannot_be_one_is_refused() {
    check_spec(
        "cluster: ../demo\nimage: {kernel: vmlinuz}\nmachines:\n  node: {}\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:1:10: `cluster`: `../demo` is not a DNS label: use a-z, 0-9 and `-`, beginning and ending with a letter or digit
              1 | cluster: ../demo
                |          ^
        "#]],
    );
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  \"a,b\": {}\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:4:3: `machines`: `a,b` is not a DNS label: use a-z, 0-9 and `-`, beginning and ending with a letter or digit
              4 |   "a,b": {}
                |   ^
        "#]],
    );
}

#[test]
fn a_missing_ignition_file_is_refused() {
    check_spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node:\n    ignition: absent.ign\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:5:15: `ignition`: `TMP/spec/absent.ign` does not exist
              5 |     ignition: absent.ign
                |               ^
        "#]],
    );
}

#[test]
fn a_missing_image_is_refused() {
    check_spec(
        "cluster: demo\nimage: ./absent.qcow2\nmachines:\n  node: {}\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:2:8: `image`: `TMP/spec/absent.qcow2` does not exist
              2 | image: ./absent.qcow2
                |        ^
        "#]],
    );
    check_spec(
        "cluster: demo\nimage: {kernel: absent}\nmachines:\n  node: {}\n",
        &expect![[r#"
            error: TMP/spec/kiln.yaml:2:17: `kernel`: `TMP/spec/absent` does not exist
              2 | image: {kernel: absent}
                |                 ^
        "#]],
    );
    check_spec(
        "cluster: demo\nmachines:\n  node: {}\n",
        &expect![[r#"
        error: TMP/spec/kiln.yaml:3:3: group `node` has no `image`
          3 |   node: {}
            |   ^

        hint: give the cluster an `image`, or each group its own
    "#]],
    );
}

/// As [`check_spec`], with this Ignition config.
#[track_caller]
fn check_ignition(config: &str, want: &Expect) {
    let world = World::new();
    world.nodes(2, "");
    world.write("spec/node.ign", config);
    for verb in ["up", "plan", "validate"] {
        check(&world, &[verb], 3, want);
    }
}

#[test]
fn ignition_that_is_no_json_is_refused_with_its_place() {
    check_ignition(
        "{\n  \"ignition\": {\"version\": \"3.3.0\"},\n  \"storage\": {\"files\": [}\n}\n",
        &expect![[r#"
            error: cannot make the Ignition config of machine `node-1`
              caused by: TMP/spec/node.ign:3:25: this is not JSON: expected value
        "#]],
    );
}

#[test]
fn ignition_of_another_shape_is_refused_with_its_place() {
    check_ignition(
        "{\n  \"ignition\": {\"version\": \"3.3.0\"},\n  \"storage\": {\"files\": 7}\n}\n",
        &expect![[r#"
            error: cannot make the Ignition config of machine `node-1`
              caused by: TMP/spec/node.ign:3:24: this is JSON, but not an Ignition config: expected a list
        "#]],
    );
}

#[test]
fn ignition_of_spec_2_is_refused_with_the_way_to_translate_it() {
    check_ignition(
        r#"{"ignition": {"version": "2.3.0"}}"#,
        &expect![[r#"
        error: cannot make the Ignition config of machine `node-1`
          caused by: TMP/spec/node.ign: this is an Ignition config of spec 2.x; kiln takes 3.0.0 to 3.6.0

        hint: translate it with ign-converter (github.com/coreos/ign-converter): `ign-converter -input OLD.ign -output NEW.ign`
    "#]],
    );
}

#[test]
fn a_template_that_names_nothing_is_refused_with_its_place() {
    let world = World::new();
    world.spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nmachines:\n  node:\n    accel: tcg\n    ignition: node.ign.j2\n",
    );
    world.write(
        "spec/node.ign.j2",
        "{\"ignition\": {\"version\": \"3.3.0\"}}\n{{ vars.role }}\n",
    );
    check(
        &world,
        &["up"],
        3,
        &expect![[r#"
            error: cannot make the Ignition config of machine `node`
              caused by: TMP/spec/node.ign.j2:2: the template fails: `vars.role` is undefined

            hint: a template knows `cluster`, `machine`, `index`, `peers`, `groups` and `vars`
        "#]],
    );
}

#[test]
fn keys_that_ignition_does_not_know_are_only_told() {
    let world = World::new();
    world.nodes(1, "");
    world.write(
        "spec/node.ign",
        r#"{"ignition": {"version": "3.3.0"}, "storage": {"flies": []}}"#,
    );
    let ended = world.kiln(&["validate"]);
    assert_eq!(ended.code, Some(0));
    expect![[r#"
        note: node-1: TMP/spec/node.ign: Ignition does not know the key `$.storage.flies` and will ignore it
    "#]].assert_eq(&ended.stderr);
    expect![[r#"
        TMP/spec/kiln.yaml is right: cluster demo, 1 machine
    "#]]
    .assert_eq(&ended.stdout);
}

#[test]
fn a_file_called_qcow2_that_is_none_is_refused() {
    let world = World::new();
    world.write("spec/disk.qcow2", [0; 4096]);
    world.spec("cluster: demo\nimage: ./disk.qcow2\nmachines:\n  node: {accel: tcg}\n");
    check(
        &world,
        &["up"],
        3,
        &expect![[r#"
        error: TMP/spec/kiln.yaml:2:8: `image`: `TMP/spec/disk.qcow2` is not a qcow2 image: its first bytes are not `QFI\xfb`
          2 | image: ./disk.qcow2
            |        ^

        hint: a raw image needs `format: raw` or a name that ends in `.raw` or `.img`
    "#]],
    );
}

#[test]
fn an_image_that_names_a_file_of_the_host_is_refused() {
    let world = World::new();
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-u"])
        .args(["-b", "/etc/shadow", "-F", "raw", "disk.qcow2", "1M"])
        .current_dir(world.path("spec"))
        .status();
    assert!(made.unwrap().success());
    world.spec("cluster: demo\nimage: ./disk.qcow2\nmachines:\n  node: {accel: tcg}\n");
    check(
        &world,
        &["up"],
        9,
        &expect![[r#"
        error: cannot use the image of machine `node`
          caused by: refused to use `TMP/spec/disk.qcow2` as qcow2
          caused by: it has a backing file
    "#]],
    );
    check(
        &world,
        &["plan"],
        9,
        &expect![[r#"
        error: cannot use the image of machine `node`
          caused by: refused to use `TMP/spec/disk.qcow2` as qcow2
          caused by: it has a backing file
    "#]],
    );
}

#[test]
fn an_image_of_another_digest_is_refused() {
    let world = World::new();
    world.write("spec/disk.raw", [7; 4096]);
    world.spec(
        "cluster: demo\nimage: {disk: disk.raw, sha256: \"00000000000000000000000000000000000000000000000000000000000000ff\"}\nmachines:\n  node: {accel: tcg}\n",
    );
    check(
        &world,
        &["up"],
        9,
        &expect![[r#"
            error: cannot use the image of machine `node`
              caused by: image `TMP/spec/disk.raw` has the SHA-256 c9ac7b0624824f844f6c7f3d50fab9741a8914e878467e8daaedca143a34d90b, and the spec says 00000000000000000000000000000000000000000000000000000000000000ff
        "#]],
    );
}

#[test]
fn a_host_port_that_someone_listens_on_is_refused() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    world.spec(&format!(
        "cluster: demo\nimage: {{kernel: vmlinuz}}\nmachines:\n  node:\n    accel: tcg\n    ports: [\"{port}:80\"]\n"
    ));
    let ended = world.kiln(&["up"]);
    assert_eq!(ended.code, Some(4));
    expect![[r#"
        error: host port PORT of machine `node` is taken

        hint: stop what listens on port PORT, or give `node` another one, or write `":GUEST"` for a free one
    "#]].assert_eq(&ended.stderr.replace(&port.to_string(), "PORT"));
    assert!(!world.tree().iter().any(|line| line.contains("demo")));
}

#[test]
fn a_host_without_qemu_is_told_what_is_missing() {
    let world = World::new();
    world.nodes(1, "");
    fs::remove_file(world.path("bin").join(QEMU)).unwrap();
    for (arch, program) in [
        ("i386", "qemu-system-i386"),
        ("x86_64", QEMU),
        ("aarch64", "qemu-system-aarch64"),
        ("s390x", "qemu-system-s390x"),
        ("ppc64", "qemu-system-ppc64"),
    ] {
        world.spec(&format!(
            "cluster: demo\nimage: {{kernel: vmlinuz}}\nmachines:\n  node: {{arch: {arch}}}\n"
        ));
        let ended = world.kiln(&["up"]);
        assert_eq!(ended.code, Some(4));
        let remedy = remedy(&world, program);
        assert!(remedy.starts_with("apt-get install "), "{remedy}");
        assert_eq!(
            ended.stderr,
            format!(
                "error: machine `node` needs `{program}`, which is not installed\n\n\
                 hint: as root: {remedy}\n"
            )
        );
        assert!(!world.tree().iter().any(|line| line.contains("demo")));
    }
    world.nodes(1, "");
    // Nothing is wrong with the spec.
    let ended = world.kiln(&["validate"]);
    assert_eq!(ended.code, Some(0));
    expect![[r#"
        note: machine `node-1` needs `qemu-system-x86_64`, which is not installed
    "#]]
    .assert_eq(&ended.stderr);
}

/// The command by which `kiln doctor` would have this installed.
fn remedy(world: &World, name: &str) -> String {
    let ended = world.kiln(&["--json", "doctor"]);
    let told: serde_json::Value =
        serde_json::from_str(ended.stdout.lines().next().unwrap()).unwrap();
    let checks = told["result"]["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name).unwrap();
    assert_ne!(check["status"], "ok", "{check}");
    check["remedy"].as_str().unwrap().to_owned()
}

#[test]
fn a_disk_asks_for_qemu_img() {
    let world = World::new();
    world.write("spec/disk.raw", [7; 4096]);
    world.spec("cluster: demo\nimage: ./disk.raw\nmachines:\n  node: {accel: tcg}\n");
    fs::remove_file(world.path("bin/qemu-img")).unwrap();
    let ended = world.kiln(&["up"]);
    assert_eq!(ended.code, Some(4));
    assert_eq!(
        ended.stderr,
        format!(
            "error: machine `node` has a disk, and `qemu-img`, which makes it, is not installed\n\n\
             hint: as root: {}\n",
            remedy(&world, "qemu-img")
        )
    );
}

#[test]
fn a_cluster_that_is_not_there_is_unknown() {
    let world = World::new();
    for verb in ["ps", "stop", "down", "inspect", "ip", "events"] {
        let ended = world.kiln(&["-c", "absent", verb]);
        assert_eq!(ended.code, Some(7), "{verb}: {}", ended.stderr);
        assert!(
            ended
                .stderr
                .starts_with("error: there is no cluster `absent`\n"),
            "{verb}: {}",
            ended.stderr
        );
    }
    check(
        &world,
        &["-c", "absent", "ps"],
        7,
        &expect![[r#"
        error: there is no cluster `absent`

        hint: `kiln ls` lists the clusters; `kiln up` makes the one of your spec
    "#]],
    );
    // The spec's own, before `up`.
    world.nodes(1, "");
    check(
        &world,
        &["ps"],
        7,
        &expect![[r#"
        error: there is no cluster `demo`

        hint: `kiln ls` lists the clusters; `kiln up` makes the one of your spec
    "#]],
    );
    let down = world.kiln(&["down"]);
    assert_eq!(
        (down.code, down.stdout.as_str(), down.stderr.as_str()),
        (Some(0), "cluster demo: nothing is there\n", "")
    );
}

#[test]
fn a_machine_that_is_not_there_is_unknown() {
    let world = World::new();
    world.nodes(2, "");
    check(
        &world,
        &["up", "node-3"],
        7,
        &expect![[r#"
            error: there is no machine `node-3` in the spec

            hint: it has: node-1, node-2
        "#]],
    );
    check(
        &world,
        &["render", "node-3"],
        7,
        &expect![[r#"
            error: there is no machine `node-3` in the spec

            hint: it has: node-1, node-2
        "#]],
    );
    check(
        &world,
        &["explain", "node-3"],
        7,
        &expect![[r#"
        error: there is no machine `node-3` in the spec
    "#]],
    );
    world.ok(&["up", "--wait", "none"]);
    for verb in [
        "start", "stop", "restart", "kill", "pause", "resume", "ip", "inspect", "logs", "wait",
    ] {
        let ended = world.kiln(&[verb, "node-3"]);
        assert_eq!(ended.code, Some(7), "{verb}: {}", ended.stderr);
        assert_eq!(
            ended.stderr,
            "error: there is no machine `node-3` in cluster `demo`\n\nhint: it has: node-1, node-2\n",
            "{verb}"
        );
    }
}

#[test]
fn a_spec_of_another_folder_cannot_touch_a_cluster_of_its_name() {
    let world = World::new();
    world.nodes(1, "");
    world.ok(&["up", "--wait", "running"]);
    let pids = world.pids();
    fs::create_dir(world.path("other")).unwrap();
    for file in ["kiln.yaml", "vmlinuz", "node.ign"] {
        fs::copy(
            world.path("spec").join(file),
            world.path("other").join(file),
        )
        .unwrap();
    }
    for verb in ["up", "plan", "down", "ps", "stop", "kill"] {
        let ended = world.kiln(&["-f", "../other/kiln.yaml", verb]);
        assert_eq!(ended.code, Some(9), "{verb}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{verb}");
    }
    expect![[r#"
        error: there is a cluster `demo` already, made from `TMP/spec/kiln.yaml`

        hint: give this one another name, or `kiln down` the other from its folder
    "#]]
    .assert_eq(&world.kiln(&["-f", "../other/kiln.yaml", "up"]).stderr);
    expect![[r#"
        error: cluster `demo` was made from `TMP/spec/kiln.yaml`, not from `TMP/other/kiln.yaml`

        hint: give this cluster another name, or say `-c demo` if you mean that one
    "#]]
    .assert_eq(&world.kiln(&["-f", "../other/kiln.yaml", "down"]).stderr);
    assert_eq!(world.pids(), pids);
}

#[test]
fn no_spec_at_all_is_told_with_a_way_on() {
    let world = World::new();
    check(
        &world,
        &["up"],
        3,
        &expect![[r#"
        error: there is no `kiln.yaml` in `TMP/spec` or above

        hint: `kiln init` writes one; `-f FILE` and `-c CLUSTER` say which one is meant
    "#]],
    );
    check(
        &world,
        &["-f", "absent.yaml", "up"],
        3,
        &expect![[r#"
        error: absent.yaml: cannot read the spec: `absent.yaml` does not exist
    "#]],
    );
}

#[test]
fn huge_and_bomb_specs_are_refused_at_once() {
    let world = World::new();
    let line =
        "# nothing at all, a hundred times over and over again, so that this grows quickly\n";
    world.spec(&line.repeat(100 * 1024 * 1024 / line.len()));
    let ended = world.kiln(&["validate"]);
    assert_eq!(ended.code, Some(3));
    expect![[r#"
        error: TMP/spec/kiln.yaml: cannot read the spec: `TMP/spec/kiln.yaml` is larger than 1MiB
    "#]]
    .assert_eq(&ended.stderr);
    world.spec(&format!(
        "cluster: {}{}\n",
        "[".repeat(100_000),
        "]".repeat(100_000)
    ));
    assert_eq!(world.kiln(&["validate"]).code, Some(3));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let one = format!("*a{}, ", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", one.repeat(10)));
    }
    world.spec(&bomb);
    assert_eq!(world.kiln(&["validate"]).code, Some(3));
}
