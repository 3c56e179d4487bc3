use expect_test::{Expect, expect};
use proptest::prelude::{any, prop, proptest};

use super::*;

fn subnet(text: &str) -> Subnet {
    Subnet::new(text.parse().unwrap()).unwrap()
}

#[track_caller]
fn check(cluster: &str, names: &[&str], net: &str, want: &Expect) {
    let reserved = reserve(
        cluster,
        names.iter().copied(),
        &BTreeMap::new(),
        &BTreeMap::new(),
        subnet(net),
    )
    .unwrap();
    let lines: Vec<String> = reserved
        .iter()
        .map(|(name, (mac, ip))| format!("{name} {mac} {ip}"))
        .collect();
    want.assert_eq(&lines.join("\n"));
}

#[test]
fn names_alone_give_these_addresses_for_ever() {
    check(
        "demo",
        &["node-1", "node-2", "node-3"],
        "10.80.1.0/24",
        &expect![[r#"
            node-1 B2:6B:C6:E2:B7:B3 10.80.1.41
            node-2 B2:6B:B6:43:01:E0 10.80.1.93
            node-3 B2:6B:1F:CE:6F:6C 10.80.1.219"#]],
    );
    check(
        "other",
        &["node-1"],
        "10.80.0.0/16",
        &expect!["node-1 B2:6B:59:CA:8A:51 10.80.109.184"],
    );
    expect!["B2:6B:DC:A4:4E:D5 10.80.185.0/24"].assert_eq(&format!(
        "{} {}",
        gateway_mac("demo"),
        choose_subnet("demo", &[]).unwrap()
    ));
}

#[test]
fn a_full_subnet_is_an_error_and_its_last_address_is_used() {
    let net = subnet("10.0.0.0/28");
    let names = ["a", "b", "c", "d", "e"];
    let reserved = reserve("demo", names, &BTreeMap::new(), &BTreeMap::new(), net).unwrap();
    let ips: BTreeSet<Ipv4Addr> = reserved.values().map(|(_, ip)| *ip).collect();
    assert_eq!(
        ips,
        (10..=14)
            .map(|last| Ipv4Addr::new(10, 0, 0, last))
            .collect()
    );
    assert_eq!(
        reserve(
            "demo",
            names.into_iter().chain(["f"]),
            &BTreeMap::new(),
            &BTreeMap::new(),
            net
        ),
        Err(AddressError::Full {
            subnet: net,
            capacity: 5
        })
    );
}

#[test]
fn a_reservation_of_another_subnet_is_refused_by_name() {
    let old = reserve(
        "demo",
        ["a"],
        &BTreeMap::new(),
        &BTreeMap::new(),
        subnet("10.0.0.0/24"),
    )
    .unwrap();
    let error = reserve("demo", ["a"], &BTreeMap::new(), &old, subnet("10.0.1.0/24")).unwrap_err();
    assert!(matches!(error, AddressError::Outside { name, .. } if name == "a"));
}

#[test]
fn odd_subnets_are_refused() {
    for text in [
        "10.0.0.0/15",
        "10.0.0.0/29",
        "10.0.0.1/24",
        "127.0.0.0/24",
        "169.254.0.0/16",
        "224.0.0.0/24",
        "0.0.0.0/16",
        "240.0.0.0/16",
    ] {
        assert!(Subnet::new(text.parse().unwrap()).is_err(), "{text}");
    }
}

#[test]
fn a_host_that_routes_all_of_10_gets_another_pool() {
    let taken = ["10.0.0.0/8".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
    let net = choose_subnet("demo", &taken).unwrap();
    assert!(POOLS[1].contains(&net.net()), "{net}");
}

#[test]
fn twenty_clusters_get_twenty_subnets_and_then_there_is_an_end() {
    let mut taken: Vec<Ipv4Net> = POOLS[1..].to_vec();
    taken.push("10.80.0.0/17".parse().unwrap());
    taken.push("10.80.128.0/18".parse().unwrap());
    for number in 0..64 {
        let net = choose_subnet(&format!("c{number}"), &taken).unwrap().net();
        assert!(!taken.iter().any(|other| overlap(net, *other)));
        taken.push(net);
    }
    assert!(choose_subnet("one-more", &taken).is_err());
}

proptest! {
    #[test]
    fn scaling_moves_nobody(
        names in prop::collection::btree_set("[a-z]{1,6}(-[0-9]{1,3})?", 1..60),
        split in any::<prop::sample::Index>(),
        prefix in 22u8..=25,
    ) {
        let net = Subnet::new(Ipv4Net::new_assert(Ipv4Addr::new(10, 9, 0, 0), prefix)).unwrap();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let few = &names[..=split.index(names.len())];
        let before = reserve("c", few.iter().copied(), &BTreeMap::new(), &BTreeMap::new(), net).unwrap();
        let after = reserve("c", names.iter().copied(), &BTreeMap::new(), &before, net).unwrap();
        for (name, place) in &before {
            assert_eq!(after.get(name), Some(place));
        }
        let macs: BTreeSet<_> = after.values().map(|(mac, _)| *mac).collect();
        let ips: BTreeSet<_> = after.values().map(|(_, ip)| *ip).collect();
        assert_eq!((macs.len(), ips.len()), (names.len(), names.len()));
        for (mac, ip) in after.values() {
            assert!(mac.is_local() && mac.is_unicast() && *mac != gateway_mac("c"));
            assert!(net.is_for_machines(*ip));
        }
    }
}

fn wish(ip: Option<[u8; 4]>, mac: Option<[u8; 6]>) -> Fixed {
    Fixed {
        ip: ip.map(Ipv4Addr::from),
        mac: mac.map(MacAddr6::from),
    }
}

#[test]
fn what_a_user_names_is_given_and_nobody_else_gets_it() {
    let net = subnet("10.0.0.0/28");
    let mac = [0x52, 0x54, 0, 0, 0, 1];
    let fixed = BTreeMap::from([
        ("b".to_owned(), wish(Some([10, 0, 0, 12]), Some(mac))),
        // Not one of the cluster just now: its place is kept all the same.
        ("later".to_owned(), wish(Some([10, 0, 0, 4]), None)),
    ]);
    let names = ["a", "b", "c", "d", "e"];
    let reserved = reserve("demo", names, &fixed, &BTreeMap::new(), net).unwrap();
    assert_eq!(reserved["b"], (mac.into(), Ipv4Addr::new(10, 0, 0, 12)));
    assert_eq!(reserved["later"].1, Ipv4Addr::new(10, 0, 0, 4));
    let ips: BTreeSet<Ipv4Addr> = reserved.values().map(|(_, ip)| *ip).collect();
    assert_eq!(ips.len(), 6);
    // Without the wish it stays where it is.
    let again = reserve("demo", names, &BTreeMap::new(), &reserved, net).unwrap();
    assert_eq!(again["b"], reserved["b"]);
}

#[test]
fn what_somebody_has_is_given_to_nobody_else() {
    let net = subnet("10.0.0.0/24");
    let none = BTreeMap::new();
    let had = reserve("demo", ["a", "b"], &none, &none_reserved(), net).unwrap();
    let (mac, ip) = had["a"];
    let check = |fixed: &[(&str, Fixed)], want: Option<&str>| {
        let fixed = fixed
            .iter()
            .map(|(name, wish)| ((*name).to_owned(), *wish))
            .collect();
        let told = reserve("demo", ["a", "b"], &fixed, &had, net);
        match want {
            Some(want) => assert_eq!(told.unwrap_err().to_string(), want),
            None => assert_eq!(told.unwrap()["b"].1, ip),
        }
    };
    let same_ip = wish(Some(ip.octets()), None);
    let elsewhere = wish(Some([10, 0, 0, 99]), None);
    check(
        &[("b", same_ip)],
        Some(&format!("`b` cannot have {ip}, which `a` has")),
    );
    check(&[("b", same_ip), ("a", elsewhere)], None);
    check(
        &[("b", wish(None, Some(mac.as_bytes().try_into().unwrap())))],
        Some(&format!("`b` cannot have {}, which `a` has", mac_text(mac))),
    );
    let gateway = gateway_mac("demo");
    check(
        &[(
            "b",
            wish(None, Some(gateway.as_bytes().try_into().unwrap())),
        )],
        Some(&format!(
            "`b` cannot have {}, which kiln itself has",
            mac_text(gateway)
        )),
    );
    for outside in [[10, 0, 0, 1], [10, 0, 0, 3], [10, 0, 0, 255], [10, 0, 1, 9]] {
        let ip = Ipv4Addr::from(outside);
        let told =
            format!("`b` has {ip} reserved, which is no address for machines in `10.0.0.0/24`");
        check(&[("b", wish(Some(outside), None))], Some(&told));
    }
}

fn none_reserved() -> BTreeMap<String, (MacAddr6, Ipv4Addr)> {
    BTreeMap::new()
}
