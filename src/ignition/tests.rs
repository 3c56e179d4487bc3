//! Whole configs, every message, and what holds for any machine.

mod profiles;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use expect_test::{Expect, expect, expect_file};
use kiln_arch::Arch;
use kiln_arch::machine::DiskBus;
use macaddr::MacAddr6;
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert_eq, proptest};
use serde_json::{Value, json};
use ssh_key::private::Ed25519Keypair;
use ssh_key::{LineEnding, PrivateKey};

use super::{Facts, IgnitionError, Peer, REPORT_SCRIPT, Rendered, identity, render, validator};
use crate::cluster::{
    AccelWish, ClusterName, DiskFormat, DiskImage, DiskSource, IgnitionSource, Image, Machine,
    Profile, RestartPolicy, Size,
};
use crate::keys::KeyPair;

/// A key pair that is always the same.
static HOST_KEY: LazyLock<KeyPair> = LazyLock::new(|| {
    let pair = Ed25519Keypair::from_seed(&[7; 32]);
    let key = PrivateKey::new(pair.into(), "host").unwrap();
    KeyPair::from_private(&key.to_openssh(LineEnding::LF).unwrap()).unwrap()
});

fn machine(file: &str, text: &str) -> Machine {
    Machine {
        name: "node-1".parse().unwrap(),
        group: "node".parse().unwrap(),
        index: 1,
        line: 3,
        arch: Arch::X86_64,
        accel: AccelWish::Auto,
        cpus: NonZeroU16::MIN,
        memory: Size::from_mib(256),
        image: Image::Disk(DiskSource::Local(DiskImage {
            path: "/disk.qcow2".into(),
            format: DiskFormat::Qcow2,
            sha256: None,
        })),
        disk: None,
        root_bus: DiskBus::Virtio,
        disks: Vec::new(),
        ignition: Some(IgnitionSource {
            path: PathBuf::from(file),
            text: text.to_owned(),
            template: file.ends_with(".j2"),
        }),
        cloud_init: false,
        vars: BTreeMap::from([
            ("role".to_owned(), json!("worker")),
            ("secret".to_owned(), json!("hunter2")),
            ("list".to_owned(), json!([1, "zwei"])),
        ]),
        profile: Profile::Basic,
        ports: Vec::new(),
        restart: RestartPolicy::OnFailure,
        firmware: crate::cluster::FirmwareWish::Auto,
        tpm: false,
        shares: Vec::new(),
        ignition_transport: None,
    }
}

fn peers() -> Vec<Peer> {
    (1..=2)
        .map(|index: u8| Peer {
            name: format!("node-{index}").parse().unwrap(),
            ip: Some(Ipv4Addr::new(10, 80, 1, index + 9)),
            ip6: None,
            group: "node".parse().unwrap(),
            index: index.into(),
        })
        .collect()
}

fn rendered(machine: &Machine) -> Result<Rendered, IgnitionError> {
    let cluster: ClusterName = "demo".parse().unwrap();
    let key = "ssh-ed25519 AAAA cluster".to_owned();
    render(
        machine,
        &Facts {
            shares: &[],
            cluster: &cluster,
            domain: "demo.kiln.internal",
            subnet: "10.80.1.0/24".parse().ok(),
            gateway: Some(Ipv4Addr::new(10, 80, 1, 1)),
            ip: Some(Ipv4Addr::new(10, 80, 1, 10)),
            ip6: None,
            mac: MacAddr6::new(0x52, 0x54, 0, 0xAB, 0, 1),
            peers: &peers(),
            authorized_keys: &[key.clone(), "ssh-rsa BBBB me".to_owned(), key],
            host_key: &HOST_KEY,
            etcd: &profiles::membership(),
        },
    )
}

/// The user's config as the machine finds it inside kiln's.
fn child(config: &str) -> String {
    let config: Value = serde_json::from_str(config).unwrap();
    let source = config["ignition"]["config"]["merge"][0]["source"]
        .as_str()
        .unwrap();
    let encoded = source.strip_prefix("data:;base64,").unwrap();
    String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
}

#[track_caller]
fn refused(file: &str, texts: &[&str], want: &Expect) {
    let mut told = String::new();
    for text in texts {
        let error = match rendered(&machine(file, text)) {
            Ok(config) => panic!("this renders: {text}: {config:?}"),
            Err(error) => error,
        };
        told.push_str(&format!("{error} [{}]\n", error.code()));
        if let Some(hint) = error.hint() {
            told.push_str(&format!("  {hint}\n"));
        }
    }
    assert!(!told.contains("hunter2"), "a value is shown: {told}");
    want.assert_eq(&told);
}

#[test]
fn the_whole_config_of_a_machine() {
    let config = rendered(&machine("node.ign", r#"{"ignition":{"version":"3.4.0"}}"#)).unwrap();
    assert_eq!(config.warnings, []);
    let value: Value = serde_json::from_str(&config.config).unwrap();
    let mut text = serde_json::to_string_pretty(&value).unwrap();
    // Golden files are for reading: these two are compared by themselves.
    for (long, short) in [
        (STANDARD.encode(REPORT_SCRIPT), "REPORT_SCRIPT"),
        (STANDARD.encode(HOST_KEY.private()), "HOST_KEY"),
    ] {
        assert!(text.contains(&long));
        text = text.replace(&long, short);
    }
    text.push('\n');
    expect_file!["golden/basic.json"].assert_eq(&text);
}

#[test]
fn the_child_is_the_users_text() {
    let text = " {\"ignition\": {\"version\": \"3.6.0\"}}\n";
    let config = rendered(&machine("node.ign", text)).unwrap();
    assert_eq!(child(&config.config), text);
}

#[test]
fn profile_none_is_the_users_config_alone() {
    let text = " {\"ignition\": {\"version\": \"3.0.0\"}}\n";
    let mut machine = machine("node.ign", text);
    machine.profile = Profile::None;
    assert_eq!(rendered(&machine).unwrap().config, text);
    machine.ignition = None;
    assert_eq!(
        rendered(&machine).unwrap().config,
        r#"{"ignition":{"version":"3.0.0"}}"#
    );
}

#[test]
fn a_template_sees_its_machine_and_its_peers() {
    let text = r#"{"ignition": {"version": "3.3.0"}, "storage": {"files": [{"path": "/x",
"contents": {"source": "{{ cluster.name }} {{ cluster.domain }} {{ cluster.subnet }} {{ cluster.gateway }} {{ groups.node | map(attribute='ip') | join(',') }} {{ machine.name }} {{ machine.ip }}
{{ machine.mac }} {{ machine.group }} {{ machine.arch }} {{ machine.memory_mib }} {{ index }}
{% for peer in peers %}{{ peer.name }}={{ peer.ip }}/{{ peer.group }}/{{ peer.index }} {% endfor %}
{{ vars.role }} {{ vars.list[1] }} <&> {{ 'a b/ä' | urlencode }} {{ 'abc' | b64encode }}"}}]},
"x": {{ 'a"b' | tojson }} }"#;
    let mut machine = machine("node.ign.j2", &text.replace('\n', " "));
    machine.profile = Profile::None;
    let config = rendered(&machine).unwrap();
    let value: Value = serde_json::from_str(&config.config).unwrap();
    expect!["demo demo.kiln.internal 10.80.1.0/24 10.80.1.1 10.80.1.10,10.80.1.11 node-1 10.80.1.10 52:54:00:ab:00:01 node x86_64 256 1 node-1=10.80.1.10/node/1 node-2=10.80.1.11/node/2  worker zwei <&> a%20b%2F%C3%A4 YWJj"]
        .assert_eq(
            value["storage"]["files"][0]["contents"]["source"]
                .as_str()
                .unwrap(),
        );
    assert_eq!(value["x"], "a\"b");
}

#[test]
fn templates_that_fail_say_where() {
    refused(
        "node.ign.j2",
        &[
            "{\n{{ vars.rol }}",
            "\n\n{{ rule }}",
            "{{ machine.disk.size }}",
            "{% if vars.absent %}{% endif %}",
            "{{ 'hunter2' 'x' }}",
            "{{ machine 'hunter2' }}",
            "{% set 'hunter2' %}",
            "{{ 'hunter2",
            "{{ \"\\uhunter2\" }}",
            "{{ vars.secret | int }}",
            "{{ vars.secret + 1 }}",
            "{{ vars.secret | nofilter }}",
            "{{ vars.secret.foo() }}",
            "{{ vars.secret is notest }}",
            "{{ nofunction(vars.secret) }}",
            "{% include 'hunter2' %}",
            "{% for",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% for a in range(1000) %}{{ 'xxxxxxxxxx' * 1000 }}{% endfor %}",
            "{\n \"ignition\": {{ vars.secret }}",
            "{\"ignition\": {\"version\": 33}}",
        ],
        &expect![[r#"
            node.ign.j2:2: the template fails: `vars.rol` is undefined [ignition-template]
              a template knows `cluster`, `machine`, `index`, `peers`, `groups` and `vars`
            node.ign.j2:3: the template fails: `rule` is undefined [ignition-template]
              a template knows `cluster`, `machine`, `index`, `peers`, `groups` and `vars`
            node.ign.j2:1: the template fails: `machine.disk` is undefined [ignition-template]
              a template knows `cluster`, `machine`, `index`, `peers`, `groups` and `vars`
            node.ign.j2:1: the template fails: `vars.absent` is undefined [ignition-template]
              a template knows `cluster`, `machine`, `index`, `peers`, `groups` and `vars`
            node.ign.j2 (rendered for `node-1`):1:1: this is not JSON: expected value [ignition-syntax]
              `kiln render node-1` shows what the template gives
            node.ign.j2:1: the template fails: syntax error: unexpected string, expected end of variable block [ignition-template]
            node.ign.j2:1: the template fails: syntax error: unexpected string, expected identifier [ignition-template]
            node.ign.j2:1: the template fails: syntax error: unexpected end of string [ignition-template]
            node.ign.j2:1: the template fails: bad string escape [ignition-template]
            node.ign.j2:1: the template fails: invalid operation [ignition-template]
            node.ign.j2:1: the template fails: invalid operation [ignition-template]
            node.ign.j2:1: the template fails: unknown filter: filter nofilter is unknown [ignition-template]
            node.ign.j2:1: the template fails: unknown method: string has no method named foo [ignition-template]
            node.ign.j2:1: the template fails: unknown test: test notest is unknown [ignition-template]
            node.ign.j2:1: the template fails: unknown function: nofunction is unknown [ignition-template]
            node.ign.j2:1: the template fails: template not found [ignition-template]
            node.ign.j2:1: the template fails: syntax error: unexpected end of input, expected identifier [ignition-template]
            node.ign.j2:1: the template takes too many steps; does a loop run too often? [ignition-template]
            node.ign.j2: the template's result is larger than 8MiB [ignition-too-large]
            node.ign.j2 (rendered for `node-1`):2:14: this is not JSON: expected value [ignition-syntax]
              `kiln render node-1` shows what the template gives
            node.ign.j2 (rendered for `node-1`):1:27: this is JSON, but not an Ignition config: expected a string [ignition-shape]
              `kiln render node-1` shows what the template gives
        "#]],
    );
}

#[test]
fn configs_that_are_none_say_where() {
    refused(
        "node.ign",
        &[
            "",
            "{\n  \"ignition\": {\"version\": \"3.0.0\"},\n}",
            "hunter2",
            "variant: fcos\nversion: 1.5.0\n",
            "[]",
            "{}",
            r#"{"ignition": "hunter2"}"#,
            r#"{"ignition": {"version": "2.3.0"}}"#,
            r#"{"ignitionVersion": 1}"#,
            r#"{"ignition": {"version": "3.7.0"}}"#,
            r#"{"ignition": {"version": "hunter2"}}"#,
            r#"{"ignition": {"version": "3.3.0-experimental"}}"#,
            r#"{"ignition": {"version": "3.3.0"}, "storage": "hunter2"}"#,
            "{\"ignition\": {\"version\": \"3.3.0\"}, \"storage\": {\"files\": [\n  {\"path\": \"/a\", \"mode\": \"hunter2, expected nothing\"}]}}",
            r#"{"ignition": {"version": "3.3.0"}, "storage": {"files": [{"mode": 1}]}}"#,
            r#"{"ignition": {"version": "3.3.0"}, "storage": {}, "storage": {}}"#,
            "{\"ignition\": {\"version\": \"3.3.0\"}, \"passwd\": {\"users\": [{\"name\": \"a\", \"passwordHash\": \"hunter2\n\"}]}}",
        ],
        &expect![[r#"
            node.ign:1:1: this is not JSON: EOF while parsing a value [ignition-syntax]
              Butane (YAML) has to be translated first: `butane --strict FILE`; a template is named `….j2`, or has `template: true` beside it
            node.ign:3:1: this is not JSON: trailing comma [ignition-syntax]
            node.ign:1:1: this is not JSON: expected value [ignition-syntax]
              Butane (YAML) has to be translated first: `butane --strict FILE`; a template is named `….j2`, or has `template: true` beside it
            node.ign:1:1: this is not JSON: expected value [ignition-syntax]
              Butane (YAML) has to be translated first: `butane --strict FILE`; a template is named `….j2`, or has `template: true` beside it
            node.ign:1:2: this is JSON, but not an Ignition config: expected a map [ignition-shape]
            node.ign: an Ignition config says its version: {"ignition": {"version": "3.3.0"}} [ignition-version]
            node.ign:1:22: this is JSON, but not an Ignition config: expected a map [ignition-shape]
            node.ign: this is an Ignition config of spec 2.x; kiln takes 3.0.0 to 3.6.0 [ignition-version]
              translate it with ign-converter (github.com/coreos/ign-converter): `ign-converter -input OLD.ign -output NEW.ign`
            node.ign: this is an Ignition config of spec 1.x; kiln takes 3.0.0 to 3.6.0 [ignition-version]
              write it anew as spec 3.x; nothing translates that version
            node.ign: kiln does not know this Ignition spec version; it takes 3.0.0 to 3.6.0 [ignition-version]
            node.ign: kiln does not know this Ignition spec version; it takes 3.0.0 to 3.6.0 [ignition-version]
            node.ign: kiln does not know this Ignition spec version; it takes 3.0.0 to 3.6.0 [ignition-version]
            node.ign:1:55: this is JSON, but not an Ignition config: expected a map [ignition-shape]
            node.ign:2:52: this is JSON, but not an Ignition config: expected a whole number [ignition-shape]
            node.ign:1:68: this is JSON, but not an Ignition config: missing field `path` [ignition-shape]
            node.ign:1:59: this is JSON, but not an Ignition config: duplicate field `storage` [ignition-shape]
            node.ign:1:94: this is not JSON: control character (\u0000-\u001F) found while parsing a string [ignition-syntax]
        "#]],
    );
}

#[test]
fn unknown_keys_and_size_are_warned_of() {
    let text = format!(
        r#"{{"ignition": {{"version": "3.3.0"}}, "storage": {{"files": [{{"path": "/x", "contnets": "hunter2"}}]}}, "x": "{}"}}"#,
        "x".repeat(900_000)
    );
    let mut machine = machine("node.ign", &text);
    let told = |machine: &Machine| -> Vec<String> {
        rendered(machine)
            .unwrap()
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    expect![[r#"
        node.ign: Ignition does not know the key `$.storage.files.0.contnets` and will ignore it
        node.ign: Ignition does not know the key `$.x` and will ignore it
        the config has 1174 KiB; the machine reads it slowly, four times as long for twice the size: fetch large files over the network instead"#]].assert_eq(&told(&machine).join("\n"));
    machine.arch = Arch::S390x;
    assert_eq!(told(&machine).len(), 2);
}

#[test]
fn secrets_stay_out_of_debug() {
    let machine = machine(
        "node.ign",
        r#"{"ignition": {"version": "3.3.0"}, "passwd": {"users": [{"name": "hunter3"}]}}"#,
    );
    let config = rendered(&machine).unwrap();
    let shown = format!("{machine:?} {config:?}");
    assert!(!shown.contains("hunter3"), "{shown}");
}

#[test]
fn a_disk_belongs_to_what_the_user_wrote() {
    let before = machine("node.ign", "{}");
    let same = identity(&before, "disk");
    assert_eq!(same.len(), 64);
    let changes: [fn(&mut Machine); 5] = [
        |machine| machine.ignition = None,
        |machine| machine.vars.clear(),
        |machine| machine.profile = Profile::None,
        |machine| machine.ignition.as_mut().unwrap().text.push(' '),
        |machine| machine.ignition.as_mut().unwrap().template = true,
    ];
    for change in changes {
        let mut after = before.clone();
        change(&mut after);
        assert_ne!(identity(&after, "disk"), same);
    }
    assert_ne!(identity(&before, "other disk"), same);
    let keeps: [fn(&mut Machine); 4] = [
        |machine| machine.index = 2,
        |machine| machine.memory = Size::from_mib(512),
        |machine| machine.name = "node-2".parse().unwrap(),
        |machine| machine.ignition.as_mut().unwrap().path = "/moved.ign".into(),
    ];
    for keep in keeps {
        let mut after = before.clone();
        keep(&mut after);
        assert_eq!(identity(&after, "disk"), same);
    }
}

/// Reports as `ignition-validate` 2.14 prints them.
#[test]
fn the_validators_words_are_understood() {
    let report = "\
error at $.storage.files.0.path, line 1 col 61: path not absolute
warning at $.foo, line 1 col 71: Unused key foo
error at line 0 col 0: unexpected end of JSON input
error at $.a, line 2 col 3: cannot parse \"hunter2\" as a mode
hunter2
";
    let findings = validator::findings(report);
    let lines: Vec<String> = findings
        .iter()
        .map(|finding| format!("{:?} {finding}", finding.severity))
        .collect();
    expect![[r#"
        Error 1:61: `$.storage.files.0.path`: path not absolute
        Warning 1:71: `$.foo`: Unused key foo
        Error unexpected end of JSON input
        Error 2:3: `$.a`: cannot parse…"#]]
    .assert_eq(&lines.join("\n"));
}

/// The example's template gives a config without warnings.
#[test]
fn the_example_renders() {
    let mut machine = machine(
        "node.ign.j2",
        include_str!("../../examples/three/node.ign.j2"),
    );
    machine.profile = Profile::None;
    machine.vars = BTreeMap::from([("greeting".to_owned(), json!("Hello"))]);
    let config = rendered(&machine).unwrap();
    assert_eq!(config.warnings, []);
    let value: Value = serde_json::from_str(&config.config).unwrap();
    let sources: Vec<&str> = value["storage"]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["contents"]["source"].as_str().unwrap())
        .collect();
    expect![[r#"
        data:,Hello%20from%20node-1.%0A
        data:,10.80.1.10%20node-1%0A10.80.1.11%20node-2%0A
        data:,Hello%20from%20node-1%2C%201%20of%202%2C%20at%2010.80.1.10.%0A"#]]
    .assert_eq(&sources.join("\n"));
}

/// Valid configs of any shape that the schema allows for files and users.
fn configs() -> impl Strategy<Value = Value> {
    let version = prop::sample::select(vec![
        "3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.4.0", "3.5.0", "3.6.0",
    ]);
    let files = prop::collection::vec((any::<String>(), any::<String>()), 0..4);
    (version, files, any::<Option<String>>()).prop_map(|(version, files, hash)| {
        let files: Vec<Value> = files
            .into_iter()
            .map(|(path, source)| json!({"path": path, "contents": {"source": source}}))
            .collect();
        json!({
            "ignition": {"version": version},
            "storage": {"files": files},
            "passwd": {"users": [{"name": "core", "passwordHash": hash}]},
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_config_becomes_one_with_that_child(config in configs(), pretty in any::<bool>()) {
        let text = if pretty {
            serde_json::to_string_pretty(&config).unwrap()
        } else {
            config.to_string()
        };
        let rendered = rendered(&machine("node.ign", &text)).unwrap();
        let (_, warnings) = ignition_config::Config::parse_str(&rendered.config).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        prop_assert_eq!(child(&rendered.config), text);
    }

    #[test]
    fn no_text_panics_and_no_error_quotes_it(text in "[ -~\n]{0,80}", template in any::<bool>()) {
        let file = if template { "node.ign.j2" } else { "node.ign" };
        let text = format!("{text} {{\"hunter2\": \"hunter2\"}}");
        if let Err(error) = rendered(&machine(file, &text)) {
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn no_report_panics(report in "(error|warning| at |\\$\\.a|, line |1| col |: |\"|\n){0,20}") {
        let _ = validator::findings(&report);
    }
}
