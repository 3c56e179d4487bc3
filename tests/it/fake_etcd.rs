//! The profile `etcd` where no etcd is: what the spec and the network say before anything boots.

use std::net::TcpListener;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::fake_support::World;
use crate::support::discovery::Discovery;

fn spec(world: &World, count: u32, discovery: &str) {
    world.spec(&format!(
        "cluster: demo\nimage: {{kernel: vmlinuz}}\nmachines:\n  node: {{count: {count}, accel: tcg, profile: etcd, discovery: \"{discovery}\"}}\n"
    ));
}

/// The file of settings in a machine's config.
fn settings(world: &World, machine: &str) -> String {
    let path = world.machine("demo", machine).join("config.ign");
    let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let decoded = |source: &Value| {
        let source = source.as_str().unwrap();
        let encoded = source.strip_prefix("data:;base64,").unwrap();
        String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
    };
    let child = decoded(&config["ignition"]["config"]["merge"][0]["source"]);
    let child: Value = serde_json::from_str(&child).unwrap();
    decoded(&child["storage"]["files"][0]["contents"]["source"])
}

#[test]
fn a_discovery_server_is_asked_once_for_as_many_members_as_there_are() {
    let server = Discovery::default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.clone();
    thread::spawn(move || serving.serve(&listener));
    for (count, token) in [(3, "token-1"), (5, "token-2")] {
        let world = World::new();
        spec(&world, count, &format!("http://{address}/new"));
        world.ok(&["plan"]);
        world.ok(&["validate"]);
        world.ok(&["up", "--wait", "running"]);
        assert_eq!(server.tokens()[token].size, count.to_string());
        let line = format!("ETCD_DISCOVERY=http://{address}/{token}\n");
        for index in 1..=count {
            let settings = settings(&world, &format!("node-{index}"));
            assert!(settings.contains(&line), "{settings}");
        }
        // Nothing is left to be discovered.
        world.ok(&["up", "--wait", "running"]);
        world.ok(&["down"]);
        world.assert_clean();
    }
    assert_eq!(server.tokens().len(), 2);
}

#[test]
fn a_discovery_server_that_gives_no_token_stops_up_before_anything_is_made() {
    let world = World::new();
    // Nobody listens there any more.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    spec(&world, 3, &format!("http://{address}/new"));
    let ended = world.kiln(&["up"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let told = format!("error: `http://{address}/new?size=3` gave no discovery token\n");
    assert!(ended.stderr.contains(&told), "{}", ended.stderr);
    world.assert_clean();
}
