//! Profiles: what each puts between kiln's part and the user's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use expect_test::expect_file;
use serde_json::Value;

use super::{machine, rendered};
use crate::cluster::{IgnitionSource, Machine, OwnProfile, Profile};
use crate::etcd::Membership;
use crate::ignition::identity;
use crate::state::record::EtcdRecord;

/// That of a machine that joins.
pub(super) fn membership() -> Membership {
    let record = EtcdRecord {
        token: "token-of-the-cluster".to_owned(),
        joins: true,
        members: vec!["node-2".to_owned(), "node-1".to_owned()],
        slow: true,
        discovery: Some("http://discovery.example/token".to_owned()),
        joined: false,
    };
    Membership::new(&record, |name| {
        Some(Ipv4Addr::new(
            10,
            80,
            1,
            if name == "node-1" { 10 } else { 11 },
        ))
    })
}

fn of(profile: Profile) -> Machine {
    let mut machine = machine("node.ign", r#"{"ignition":{"version":"3.4.0"}}"#);
    machine.profile = profile;
    machine
}

/// The configs that kiln's own merges, in their order.
fn merged(machine: &Machine) -> Vec<String> {
    let config: Value = serde_json::from_str(&rendered(machine).unwrap().config).unwrap();
    let merge = config["ignition"]["config"]["merge"].as_array().unwrap();
    merge
        .iter()
        .map(|child| decoded(&child["source"]))
        .collect()
}

fn decoded(source: &Value) -> String {
    let source = source.as_str().unwrap();
    let encoded = source.strip_prefix("data:;base64,").unwrap();
    String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
}

fn own(config: &str, others: &[(&str, &str)]) -> Profile {
    Profile::Own(OwnProfile {
        config: IgnitionSource {
            path: "/profiles/mine/config.ign.j2".into(),
            text: config.to_owned(),
            template: true,
        },
        others: others
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect::<BTreeMap<_, _>>(),
    })
}

#[test]
fn the_whole_profile_etcd() {
    let merged = merged(&of(Profile::Etcd { discovery: None }));
    let config: Value = serde_json::from_str(&merged[0]).unwrap();
    let mut text = String::new();
    for file in config["storage"]["files"].as_array().unwrap() {
        let source = &file["contents"]["source"];
        text.push_str(&format!(
            "=== {} {}\n{}\n",
            file["path"],
            file["mode"],
            decoded(source)
        ));
    }
    for unit in config["systemd"]["units"].as_array().unwrap() {
        let contents = unit["contents"].as_str();
        let contents = contents.or(unit["dropins"][0]["contents"].as_str());
        let contents = contents.unwrap_or("(masked)");
        text.push_str(&format!("=== {}\n{contents}\n", unit["name"]));
    }
    expect_file!["../golden/etcd.txt"].assert_eq(&text);
}

#[test]
fn the_users_config_comes_after_the_profiles() {
    let mine = own(
        r#"{"ignition":{"version":"3.0.0"},"storage":{"directories":[{"path":"{% include "where" %}"}]}}"#,
        &[("where", "/srv/{{ machine.name }}")],
    );
    let merged = merged(&of(mine));
    assert!(merged[0].contains(r#""path":"/srv/node-1""#), "{merged:?}");
    assert_eq!(merged[1], r#"{"ignition":{"version":"3.4.0"}}"#);
}

#[test]
fn an_error_in_a_profile_names_its_file() {
    for (config, want) in [
        ("{{ etcd.token }}", "config.ign.j2:1: "),
        ("{% include \"missing\" %}", "config.ign.j2:1: "),
        ("{\"ignition\":{}}", "(rendered for `node-1`)"),
    ] {
        let error = rendered(&of(own(config, &[]))).unwrap_err().to_string();
        assert!(error.starts_with("/profiles/mine/"), "{error}");
        assert!(error.contains(want), "{error}");
    }
}

/// A newer kiln, with other templates of its own, asks for no new disk; other templates of the
/// user's do.
#[test]
fn a_disk_belongs_to_the_users_templates_and_to_no_others() {
    let id = |profile| identity(&of(profile), "image");
    let etcd = id(Profile::Etcd { discovery: None });
    assert_ne!(etcd, id(Profile::Basic));
    assert_eq!(
        etcd,
        id(Profile::Etcd {
            discovery: Some(crate::cluster::Discovery::At("http://x/y".to_owned()))
        })
    );
    assert_ne!(id(own("a", &[])), id(own("b", &[])));
    assert_ne!(id(own("a", &[])), id(own("a", &[("x", "y")])));
}

#[test]
fn cloud_init_gets_the_users_text_as_it_is() {
    let mut machine = machine("user-data.j2", "#cloud-config\nname: {{ machine.name }}\n");
    machine.cloud_init = true;
    let cloud = rendered(&machine).unwrap();
    let disk = cloud.seed.unwrap();
    let seed = crate::nocloud::Seed::read(&disk).unwrap();
    assert_eq!(seed.shown(), cloud.config);
    assert!(
        cloud
            .config
            .ends_with("--- user-data\n#cloud-config\nname: node-1\n")
    );
    assert!(
        cloud.config.contains(r#""local-hostname":"node-1""#),
        "{}",
        cloud.config
    );
    assert!(cloud.config.contains("Content-Type: text/cloud-boothook"));
    // The same machine has the same instance; one of profile `none` has that alone.
    assert_eq!(rendered(&machine).unwrap().seed.unwrap(), disk);
    machine.profile = Profile::None;
    let bare = rendered(&machine).unwrap().config;
    assert!(
        bare.starts_with("--- meta-data\n{\"instance-id\":\"kiln-"),
        "{bare}"
    );
    assert!(
        !bare.contains("hostname") && !bare.contains("PRIVATE KEY"),
        "{bare}"
    );
    assert_ne!(identity(&machine, "i"), identity(&of(Profile::None), "i"));
}

#[test]
fn what_cloud_init_would_not_know_is_refused() {
    for (file, told) in [
        ("user-data", "user-data: "),
        ("user-data.j2", "(rendered for `node-1`)"),
    ] {
        let mut machine = machine(file, "name: node-1\n");
        machine.cloud_init = true;
        let error = rendered(&machine).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(error.code(), "user-data");
    }
}
