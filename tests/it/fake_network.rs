//! Many clusters on one host, and links of somebody else's that are called as kiln's are: as root, on a host of the
//! test's own.

use std::collections::BTreeSet;
use std::thread;

use ipnet::Ipv4Net;
use kiln_netsetup::link::Step;
use kiln_netsetup::nat::HOST_LINK;
use kiln_netsetup::netlink::route::Route;
use macaddr::MacAddr6;

use crate::fake_support::{World, wait_until};
use crate::support::world::World as Host;

const CLUSTERS: usize = 20;

fn spec_of(world: &World, cluster: &str) -> String {
    let file = format!("{cluster}/kiln.yaml");
    world.write(
        &format!("spec/{file}"),
        format!(
            "cluster: {cluster}\nimage: {{kernel: ../vmlinuz}}\nnetwork: {{mode: namespace}}\n\
             machines:\n  node: {{accel: tcg}}\n"
        ),
    );
    file
}

/// The host's ends of clusters' networks.
fn ends() -> Vec<String> {
    let links = Route::here().unwrap().links().unwrap().into_iter();
    let names = links.map(|link| link.name.to_string());
    names.filter(|name| name.starts_with(HOST_LINK)).collect()
}

#[test]
fn twenty_clusters_of_root_s_at_once_have_a_network_each() {
    let host = Host::enter();
    let before = host.traces();
    let world = World::new();
    let names: Vec<String> = (0..CLUSTERS).map(|number| format!("n{number}")).collect();
    thread::scope(|scope| {
        for name in &names {
            let world = &world;
            scope.spawn(move || world.ok(&["-f", &spec_of(world, name), "up"]));
        }
    });
    let listed = world.json(&["ls"]);
    let subnets: Vec<Ipv4Net> = listed["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cluster| cluster["subnet"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(subnets.len(), CLUSTERS);
    for (index, one) in subnets.iter().enumerate() {
        for other in &subnets[index + 1..] {
            assert!(
                !one.contains(other) && !other.contains(one),
                "{one}, {other}"
            );
        }
    }
    let mut addresses = BTreeSet::new();
    for name in &names {
        let ps = world.json(&["-c", name, "ps"]);
        assert_eq!(ps["network"]["mode"], "namespace", "{ps}");
        addresses.insert(ps["machines"][0]["reserved_ip"].to_string());
    }
    assert_eq!(addresses.len(), CLUSTERS);
    wait_until("each cluster has its way out", || ends().len() == CLUSTERS);
    thread::scope(|scope| {
        for name in &names {
            let world = &world;
            scope.spawn(move || world.ok(&["-c", name, "down"]));
        }
    });
    world.assert_clean();
    assert_eq!(host.traces(), before);
}

#[test]
fn links_of_somebody_else_s_stay_as_they_are_as_root() {
    let host = Host::enter();
    let world = World::new();
    let file = spec_of(&world, "own");
    world.ok(&["-f", &file, "up"]);
    wait_until("the cluster has its way out", || ends().len() == 1);
    let end = ends().remove(0);
    world.ok(&["-c", "own", "down"]);

    // A bridge as the clusters' own are called, and a link with the very name of this one's end.
    let mut route = Route::here().unwrap();
    for name in ["br0", &end] {
        let name: kiln_netsetup::name::IfName = name.parse().unwrap();
        let mac = MacAddr6::new(2, 0, 0, 0, 0, 1);
        for step in [
            Step::Bridge {
                name: name.clone(),
                mac,
            },
            Step::Up(name),
        ] {
            route.perform(&step).unwrap();
        }
    }
    let links = |route: &mut Route| {
        let mut links = route.links().unwrap();
        for link in &mut links {
            link.traffic = Default::default();
        }
        links
    };
    let (before, traces) = (links(&mut route), host.traces());
    world.ok(&["-f", &file, "up"]);
    wait_until("it is said", || {
        let ps = world.json(&["-c", "own", "ps"]).to_string();
        ps.contains(&format!("link `{end}` of the host is not this cluster's"))
    });
    assert_eq!(links(&mut route), before);
    world.ok(&["-c", "own", "down"]);
    world.assert_clean();
    assert_eq!(links(&mut route), before);
    assert_eq!(host.traces(), traces);
}
