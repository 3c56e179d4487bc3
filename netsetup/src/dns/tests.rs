use expect_test::{Expect, expect};
use proptest::prelude::{any, prop, prop_assert, proptest};

use super::*;

fn zone() -> Zone {
    let machine = |name: &str, last| Reservation {
        name: name.to_owned(),
        mac: macaddr::MacAddr6::nil(),
        ip: Ipv4Addr::new(10, 80, 1, last),
    };
    let subnet = Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap();
    Zone::new(
        &Settings::new("demo.internal"),
        subnet,
        &[machine("node-1", 10), machine("node-2", 11)],
    )
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend(wire_name(name));
    bytes.extend(kind.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    bytes
}

#[track_caller]
fn check(name: &str, kind: u16, want: &Expect) {
    want.assert_eq(&say(&zone().resolve(&query(name, kind))));
}

fn say(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Forward => "forward".to_owned(),
        Outcome::Drop => "drop".to_owned(),
        Outcome::Answer(answer) => {
            let hex: Vec<String> = answer.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("code {}: {}", answer[3] & 15, hex.join(""))
        }
    }
}

const AAAA: u16 = 28;

#[test]
fn a_machine_has_an_address_by_either_name() {
    check(
        "node-1",
        TYPE_A,
        &expect![
            "code 0: abcd85800001000100000000066e6f64652d310000010001c00c000100010000001e00040a50010a"
        ],
    );
    check(
        "NODE-2.demo.Internal",
        TYPE_A,
        &expect![
            "code 0: abcd85800001000100000000064e4f44452d320464656d6f08496e7465726e616c0000010001c00c000100010000001e00040a50010b"
        ],
    );
}

#[test]
fn a_machine_has_no_other_records() {
    check(
        "node-1",
        AAAA,
        &expect!["code 0: abcd85800001000000000000066e6f64652d3100001c0001"],
    );
    check(
        "demo.internal",
        TYPE_A,
        &expect!["code 0: abcd858000010000000000000464656d6f08696e7465726e616c0000010001"],
    );
}

#[test]
fn an_address_has_its_name() {
    check(
        "10.1.80.10.in-addr.arpa",
        TYPE_PTR,
        &expect![
            "code 0: abcd85800001000100000000023130013102383002313007696e2d61646472046172706100000c0001c00c000c00010000001e0016066e6f64652d310464656d6f08696e7465726e616c00"
        ],
    );
}

#[test]
fn unknown_names_of_ours_do_not_exist_and_are_asked_of_nobody() {
    for name in [
        "node-9.demo.internal",
        "a.node-1.demo.internal",
        "99.1.80.10.in-addr.arpa",
    ] {
        let Outcome::Answer(answer) = zone().resolve(&query(name, TYPE_A)) else {
            panic!("{name} was not answered");
        };
        assert_eq!(answer[3] & 15, Code::NxDomain as u8, "{name}");
    }
}

#[test]
fn names_of_others_are_forwarded() {
    for name in [
        "example.org",
        "notdemo.internal",
        "internal",
        "node-9",
        "",
        "1.1.1.1.in-addr.arpa",
    ] {
        assert_eq!(
            zone().resolve(&query(name, TYPE_A)),
            Outcome::Forward,
            "{name}"
        );
    }
}

#[test]
fn edns_is_answered_by_edns() {
    let mut bytes = query("node-1", TYPE_A);
    bytes[11] = 1;
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    let Outcome::Answer(answer) = zone().resolve(&bytes) else {
        panic!("no answer");
    };
    assert_eq!(answer[11], 1);
    assert!(answer.ends_with(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn what_is_no_query_is_refused_or_dropped() {
    let good = query("node-1", TYPE_A);
    let change = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        say(&zone().resolve(&bytes))
    };
    expect!["drop"].assert_eq(&change(2, 0x81));
    expect!["code 4: abcd91040000000000000000"].assert_eq(&change(2, 0x11));
    expect!["code 1: abcd81010000000000000000"].assert_eq(&change(5, 2));
    // A compression pointer to itself.
    expect!["code 1: abcd81010000000000000000"].assert_eq(&change(12, 0xc0));
    expect!["drop"].assert_eq(&say(&zone().resolve(&good[..11])));
    expect!["code 1: abcd81010000000000000000"].assert_eq(&say(&zone().resolve(&good[..20])));
}

#[test]
fn a_query_of_a_kilobyte_and_more_is_refused() {
    let mut long = query("example.org", TYPE_A);
    long.resize(1233, 0);
    expect!["code 1: abcd81010000000000000000"].assert_eq(&say(&zone().resolve(&long)));
}

#[test]
fn an_answer_is_matched_by_id_question_and_flag() {
    let asked = query("Example.org", TYPE_A);
    let mut answer = query("example.ORG", TYPE_A);
    assert!(!is_answer_to(&answer, &asked));
    answer[2] |= RESPONSE;
    assert!(is_answer_to(&answer, &asked));
    let mut other = query("example.com", TYPE_A);
    other[2] |= RESPONSE;
    assert!(!is_answer_to(&other, &asked));
    answer[0] ^= 1;
    assert!(!is_answer_to(&answer, &asked));
}

#[test]
fn a_cut_answer_asks_for_tcp() {
    let mut answer = failure(&query("example.org", TYPE_A), Code::ServFail);
    let whole = answer.clone();
    answer[7] = 9;
    answer.extend([7; 2000]);
    truncate(&mut answer);
    assert_eq!(answer[2], whole[2] | TRUNCATED);
    assert_eq!(answer[3..], whole[3..]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = zone().resolve(&bytes);
        let _ = failure(&bytes, Code::ServFail);
        let _ = is_answer_to(&bytes, &bytes);
        let mut cut = bytes;
        truncate(&mut cut);
    }

    #[test]
    fn any_question_gets_an_answer_to_it_or_is_forwarded(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..5),
        ours in any::<bool>(),
        tail in prop::collection::vec(any::<u8>(), 4..30),
    ) {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in labels {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label);
        }
        bytes.extend(if ours { wire_name("demo.internal") } else { vec![0] });
        bytes.extend(tail);
        match zone().resolve(&bytes) {
            Outcome::Answer(answer) if answer[5] == 1 => prop_assert!(is_answer_to(&answer, &bytes)),
            Outcome::Answer(answer) => prop_assert!(answer.len() == HEADER && answer[3] != 0),
            Outcome::Forward => {}
            Outcome::Drop => prop_assert!(false),
        }
    }
}

#[test]
fn added_names_stand_for_what_the_spec_says() {
    let subnet = Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap();
    let machine = Reservation {
        name: "node-1".to_owned(),
        mac: macaddr::MacAddr6::nil(),
        ip: Ipv4Addr::new(10, 80, 1, 10),
    };
    let hosts = [
        ("registry", vec!["10.0.0.5"]),
        (
            "mirror.example.com",
            vec!["10.0.0.6", "fd00::6", "10.0.0.7"],
        ),
        ("*.apps", vec!["10.80.1.10"]),
        ("own.apps", vec!["10.80.1.99"]),
    ];
    let parsed = |ips: Vec<&str>| ips.iter().map(|ip| ip.parse().unwrap()).collect();
    let settings = Settings {
        hosts: hosts
            .into_iter()
            .map(|(name, ips)| (name.to_owned(), parsed(ips)))
            .collect(),
        ..Settings::new("demo.internal")
    };
    let zone = Zone::new(&settings, subnet, &[machine]);
    let told = |name: &str, kind| -> String {
        let Outcome::Answer(answer) = zone.resolve(&query(name, kind)) else {
            return "forward".to_owned();
        };
        let mut rest = &answer[HEADER + wire_name(name).len() + 4..];
        let mut told = vec![format!("{}", answer[3] & 15)];
        for _ in 0..answer[7] {
            let length = usize::from(rest[11]);
            let data = &rest[12..12 + length];
            told.push(match length {
                4 => IpAddr::from(*data.first_chunk::<4>().unwrap()).to_string(),
                16 => IpAddr::from(*data.first_chunk::<16>().unwrap()).to_string(),
                _ => String::from_utf8_lossy(data).into_owned(),
            });
            rest = &rest[12 + length..];
        }
        told.join(" ")
    };
    for (name, kind, want) in [
        ("registry", TYPE_A, "0 10.0.0.5"),
        ("REGISTRY.demo.internal", TYPE_A, "0 10.0.0.5"),
        ("registry", AAAA, "0"),
        ("mirror.example.com", TYPE_A, "0 10.0.0.6 10.0.0.7"),
        ("mirror.example.com", AAAA, "0 fd00::6"),
        (
            "mirror.example.com",
            TYPE_ANY,
            "0 10.0.0.6 fd00::6 10.0.0.7",
        ),
        ("other.example.com", TYPE_A, "forward"),
        ("a.apps", TYPE_A, "0 10.80.1.10"),
        ("b.a.apps.demo.internal", TYPE_A, "0 10.80.1.10"),
        ("own.apps.demo.internal", TYPE_A, "0 10.80.1.99"),
        ("apps", TYPE_A, "forward"),
        ("apps.demo.internal", TYPE_A, "3"),
        (
            "5.0.0.10.in-addr.arpa",
            TYPE_PTR,
            "0 \u{8}registry\u{4}demo\u{8}internal\0",
        ),
        (
            "10.1.80.10.in-addr.arpa",
            TYPE_PTR,
            "0 \u{6}node-1\u{4}demo\u{8}internal\0",
        ),
        ("98.1.80.10.in-addr.arpa", TYPE_PTR, "3"),
        ("9.0.0.10.in-addr.arpa", TYPE_PTR, "forward"),
    ] {
        assert_eq!(told(name, kind), want, "{name} {kind}");
    }
}

#[test]
fn where_no_way_leads_out_no_foreign_name_exists() {
    let subnet = Subnet::new("10.80.1.0/24".parse().unwrap()).unwrap();
    let settings = Settings {
        isolated: true,
        ..Settings::new("demo.internal")
    };
    let zone = Zone::new(&settings, subnet, &[]);
    for name in ["example.com", "8.8.8.8.in-addr.arpa", "com"] {
        let told = say(&zone.resolve(&query(name, TYPE_A)));
        assert!(told.starts_with("code 3"), "{name}: {told}");
    }
}
