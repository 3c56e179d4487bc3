//! Places in the network that the spec names: they are given, they move with a restart, and nobody's are taken away.

use crate::fake_support::World;

/// A cluster in a folder of its own.
fn write(world: &World, cluster: &str, subnet: &str, machines: &str) {
    world.write(
        &format!("{cluster}/kiln.yaml"),
        format!(
            "cluster: {cluster}\nimage: {{kernel: ../spec/vmlinuz}}\n\
             network: {{mode: fabric, subnet: {subnet}}}\nmachines: {machines}\n"
        ),
    );
}

fn spec_of(world: &World, cluster: &str) -> String {
    world
        .path(&format!("{cluster}/kiln.yaml"))
        .to_string_lossy()
        .into_owned()
}

#[test]
fn a_named_place_is_given_and_moves_with_a_restart() {
    let world = World::new();
    let spec = spec_of(&world, "one");
    let kiln = |args: &[&str]| world.kiln(&[&["-f", &spec], args].concat());
    write(&world, "one", "10.213.8.0/24", "{a: {}, b: {}}");
    assert_eq!(kiln(&["up"]).code, Some(0));
    let machines = "{a: {address: 10.213.8.20, mac: \"52:54:00:00:00:01\"}, b: {}}";
    write(&world, "one", "10.213.8.0/24", machines);
    let planned = kiln(&["plan"]).stdout;
    assert!(
        planned.contains("restart   a (x86_64, 10.213.8.20)"),
        "{planned}"
    );
    assert!(
        planned.contains("-> 52:54:00:00:00:01 (needs a restart)"),
        "{planned}"
    );
    assert!(
        planned.contains("-> 10.213.8.20 (needs a restart)"),
        "{planned}"
    );
    assert!(planned.contains("keep      b"), "{planned}");
    // While only the other one is asked for, it keeps its place.
    assert_eq!(kiln(&["up", "b"]).code, Some(0));
    assert!(kiln(&["plan"]).stdout.contains("restart   a"));
    assert_eq!(kiln(&["up"]).code, Some(0));
    let ips = kiln(&["ip"]).stdout;
    assert!(ips.contains("10.213.8.20"), "{ips}");
    // It stays there when the spec says nothing of it any more, and nobody else gets it.
    write(&world, "one", "10.213.8.0/24", "{a: {}, b: {}}");
    assert!(
        kiln(&["plan"])
            .stdout
            .contains("keep      a (x86_64, 10.213.8.20)")
    );
    write(
        &world,
        "one",
        "10.213.8.0/24",
        "{a: {}, b: {address: 10.213.8.20}}",
    );
    let refused = kiln(&["up"]);
    assert_eq!(refused.code, Some(3));
    let told = "`b` cannot have 10.213.8.20, which `a` has";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);

    // Nor does a machine of another cluster get its MAC.
    let other = spec_of(&world, "two");
    write(
        &world,
        "two",
        "10.213.9.0/24",
        "{c: {mac: \"52:54:00:00:00:01\"}}",
    );
    let refused = world.kiln(&["-f", &other, "up"]);
    assert_eq!(refused.code, Some(3));
    let told =
        "machine `c` cannot have the MAC 52:54:00:00:00:01, which a machine of cluster `one` has";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    assert_eq!(kiln(&["down"]).code, Some(0));
    assert_eq!(world.kiln(&["-f", &other, "up"]).code, Some(0));
    assert_eq!(world.kiln(&["-f", &other, "down"]).code, Some(0));
}
