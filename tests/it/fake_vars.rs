//! Template variables: whose word counts, and what is remembered of `--set`.

use crate::fake_support::World;

/// What the template of the only machine came to.
fn shown(world: &World) -> String {
    let config: serde_json::Value = serde_json::from_str(&world.ok(&["render", "node"])).unwrap();
    config["storage"]["files"][0]["path"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn world(group: &str) -> World {
    let world = World::new();
    world.write(
        "spec/node.ign.j2",
        r#"{"ignition":{"version":"3.3.0"},"storage":{"files":[{"path":"/{{ vars.a }}-{{ vars.b }}-{{ vars.c }}-{{ vars.d.e }}/{{ groups.node[0].name }}/{{ cluster.gateway }}"}]}}"#,
    );
    world.write("spec/common.yaml", "b: file\nc: file\nd: {e: file}\n");
    world.spec(&format!(
        "cluster: demo\nimage: {{kernel: vmlinuz}}\nnetwork: {{mode: fabric, subnet: 10.213.7.0/24}}\n\
         vars: {{a: cluster, b: cluster, c: cluster}}\nvars_files: [common.yaml]\nmachines:\n  \
         node: {{accel: tcg, profile: none, ignition: node.ign.j2, vars: {group}}}\n"
    ));
    world
}

#[test]
fn the_nearer_word_counts_and_set_above_all() {
    let world = world("{c: group}");
    assert_eq!(shown(&world), "/cluster-file-group-file/node/10.213.7.1");
    world.ok(&["up", "--set", "a=said", "--set", "d.e=\"01\""]);
    let pids = world.pids();
    assert_eq!(shown(&world), "/said-file-group-01/node/10.213.7.1");
    // It holds from then on, and every command says so, but not what it is.
    let plan = world.kiln(&["plan"]);
    assert!(plan.stdout.ends_with("nothing to do\n"), "{plan:?}");
    assert!(
        plan.stderr.contains(
            "note: `vars.a` is what an earlier `--set` said; `kiln up --unset a` goes back\n"
        ),
        "{}",
        plan.stderr
    );
    assert!(!plan.stderr.contains("said-"), "{}", plan.stderr);
    let dry = world.kiln(&["up", "--dry-run"]);
    assert_eq!(dry.stderr.matches("`vars.a`").count(), 1, "{}", dry.stderr);
    // It may be a secret.
    let inspected = world.json(&["inspect"]);
    assert_eq!(
        inspected["cluster"]["set"],
        serde_json::json!({"a": null, "d.e": null})
    );
    world.ok(&["up"]);
    assert_eq!(world.pids(), pids);
    let back = world.ok(&["plan", "--unset", "a"]);
    assert!(
        back.contains("ignition config, vars or image changed"),
        "{back}"
    );
    assert_eq!(shown(&world), "/said-file-group-01/node/10.213.7.1");
    world.ok(&["up", "--unset", "a", "--unset", "d.e"]);
    assert_ne!(world.pids(), pids);
    assert_eq!(shown(&world), "/cluster-file-group-file/node/10.213.7.1");
    let none = world.kiln(&["up", "--unset", "a"]);
    assert_eq!(none.code, Some(2), "{}", none.stderr);
    for wrong in ["a", "=1", "a..b=1", "a={"] {
        assert_eq!(world.kiln(&["up", "--set", wrong]).code, Some(2), "{wrong}");
    }
    let deep = world.kiln(&["plan", "--set", "a.b=1"]);
    assert_eq!(deep.code, Some(3));
    assert!(
        deep.stderr.contains("`--set a.b`: `vars.a` is no map"),
        "{}",
        deep.stderr
    );
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn what_cloud_init_reads_is_rendered_before_and_after_it_is_made() {
    let world = World::new();
    world.write(
        "spec/user-data.j2",
        "#cloud-config\nhostname: {{ vars.a }}\n",
    );
    world.spec(
        "cluster: demo\nimage: {kernel: vmlinuz}\nnetwork: {mode: fabric, subnet: 10.213.7.0/24}\n\
         vars: {a: mine}\nmachines:\n  \
         node: {accel: tcg, profile: none, cloud_init: user-data.j2}\n",
    );
    let check = |verb: &[&str]| {
        let text = world.ok(verb);
        assert!(
            text.contains("--- user-data\n#cloud-config\nhostname: mine\n"),
            "{text}"
        );
        let json = world.json(verb);
        assert_eq!(json["user-data"], "#cloud-config\nhostname: mine");
    };
    check(&["render", "node"]);
    world.ok(&["up"]);
    check(&["render", "node"]);
    check(&["-c", "demo", "render", "node"]);
    world.ok(&["down"]);
    world.assert_clean();
}

#[test]
fn a_variable_that_is_missing_is_named_and_a_file_is_told_with_its_lines() {
    let world = world("{}");
    world.write("spec/common.yaml", "b: file\n");
    let missing = world.kiln(&["plan"]);
    assert_eq!(missing.code, Some(3));
    assert!(
        missing.stderr.contains("`vars.d` is undefined") || missing.stderr.contains("vars.d.e"),
        "{}",
        missing.stderr
    );
    assert!(
        missing.stderr.contains("node.ign.j2:1"),
        "{}",
        missing.stderr
    );
    world.write("spec/common.yaml", "b: file\nb: twice\n");
    let twice = world.kiln(&["plan"]);
    assert_eq!(twice.code, Some(3));
    assert!(
        twice.stderr.contains("kiln.yaml:5:14: `vars_files`: `TMP/spec/common.yaml:2:1`: the key `b` stands here a second time"),
        "{}",
        twice.stderr
    );
    world.write("spec/common.yaml", "- b\n");
    assert!(world.kiln(&["plan"]).stderr.contains("has to be a map"));
}
