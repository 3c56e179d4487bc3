use std::net::Ipv6Addr;

use proptest::prelude::{any, prop, prop_assert, proptest};

use super::*;

const MAC: MacAddr6 = MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 10);
const OTHER: MacAddr6 = MacAddr6::new(0xb2, 0x6b, 0, 0, 0, 11);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn ack(last: u8, seconds: u64) -> Sighting {
    Sighting::Leased {
        mac: MAC,
        ip: ip(last),
        time: Some(Duration::from_secs(seconds)),
        server: Some(SERVER),
    }
}

fn used(last: u8) -> Sighting {
    Sighting::Used {
        mac: MAC,
        ip: ip(last).into(),
    }
}

fn book() -> (Book, Instant) {
    let now = Instant::now();
    (Book::new(MAC, Vec::new(), now), now)
}

fn after(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}

/// What is done, in short words.
fn told(acts: &[Act]) -> Vec<String> {
    let last = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[3].to_string(),
        IpAddr::V6(ip) => ip.to_string(),
    };
    let word = |act: &Act| match act {
        Act::Ask(ip) => format!("ask {}", ip.octets()[3]),
        Act::Tell(Change::Gained { ip, source, .. }) => format!("gained {} {source:?}", last(ip)),
        Act::Tell(Change::Renewed { ip, .. }) => format!("renewed {}", last(ip)),
        Act::Tell(Change::Lost { ip, why }) => format!("lost {} {why:?}", last(ip)),
    };
    acts.iter().map(word).collect()
}

fn addresses(book: &Book) -> Vec<IpAddr> {
    book.entries().iter().map(|entry| entry.ip).collect()
}

#[test]
fn a_lease_is_renewed_and_changes() {
    let (mut book, now) = book();
    assert_eq!(told(&book.on(now, Way::To, ack(5, 60))), ["gained 5 Lease"]);
    assert_eq!(book.deadline(), Some(after(now, 60)));
    assert_eq!(
        told(&book.on(after(now, 30), Way::To, ack(5, 60))),
        ["renewed 5"]
    );
    assert_eq!(book.deadline(), Some(after(now, 90)));
    // The machine's own frames say nothing that is not known.
    assert!(book.on(after(now, 31), Way::From, used(5)).is_empty());
    assert_eq!(
        told(&book.on(after(now, 40), Way::To, ack(6, 60))),
        ["lost 5 Replaced", "gained 6 Lease"]
    );
    assert!(book.tick(after(now, 99)).is_empty());
    assert_eq!(told(&book.tick(after(now, 100))), ["lost 6 Expired"]);
    assert_eq!(book.deadline(), None);
    // It goes on with it all the same.
    assert_eq!(
        told(&book.on(after(now, 101), Way::From, used(6))),
        ["gained 6 Frames"]
    );
}

#[test]
fn a_lease_ends_by_either_side_s_word() {
    let given_up = |declined| Sighting::GivenUp {
        mac: MAC,
        ip: ip(5),
        declined,
    };
    for (way, end, why) in [
        (Way::From, given_up(false), "Released"),
        (Way::From, given_up(true), "Declined"),
        (Way::To, Sighting::Refused { mac: MAC }, "Refused"),
    ] {
        let (mut book, now) = book();
        book.on(now, Way::To, ack(5, 60));
        assert_eq!(told(&book.on(now, way, end)), [format!("lost 5 {why}")]);
        assert!(book.entries().is_empty());
    }
}

#[test]
fn what_a_machine_says_as_a_server_or_of_others_is_nothing() {
    let (mut book, now) = book();
    assert!(book.on(now, Way::From, ack(5, 60)).is_empty());
    let of_other = Sighting::Used {
        mac: OTHER,
        ip: ip(9).into(),
    };
    assert!(book.on(now, Way::From, of_other).is_empty());
    assert!(book.on(now, Way::To, used(5)).is_empty());
    book.on(now, Way::To, ack(5, 60));
    let refused = Sighting::Refused { mac: OTHER };
    assert!(book.on(now, Way::To, refused).is_empty());
    assert_eq!(addresses(&book), [IpAddr::V4(ip(5))]);
}

#[test]
fn a_static_address_that_is_left_is_lost_and_one_that_is_kept_stays() {
    let (mut book, now) = book();
    assert_eq!(
        told(&book.on(now, Way::From, used(20))),
        ["gained 20 Frames"]
    );
    book.on(now, Way::From, used(21));
    assert_eq!(told(&book.tick(now)), ["ask 20"]);
    // It answers for the first one: it has both.
    assert!(book.on(now, Way::From, used(20)).is_empty());
    assert_eq!(book.deadline(), None);
    // It goes over to a third, and keeps the second.
    let later = after(now, 60);
    book.on(later, Way::From, used(22));
    let mut asked = told(&book.tick(later));
    book.on(later, Way::From, used(21));
    for second in 1..=3 {
        asked.extend(told(&book.tick(after(later, second))));
    }
    assert_eq!(
        asked,
        ["ask 20", "ask 21", "ask 20", "ask 20", "lost 20 Silent"]
    );
    assert_eq!(addresses(&book), [IpAddr::V4(ip(21)), IpAddr::V4(ip(22))]);
}

#[test]
fn a_lease_that_a_static_address_took_the_place_of_is_lost_before_it_is_over() {
    let (mut book, now) = book();
    book.on(now, Way::To, ack(5, 3600));
    book.on(now, Way::From, used(20));
    let ticks: Vec<String> = (0..=3)
        .flat_map(|second| told(&book.tick(after(now, second))))
        .collect();
    assert_eq!(ticks, ["ask 5", "ask 5", "ask 5", "lost 5 Silent"]);
}

#[test]
fn an_address_of_ipv6_stands_beside() {
    let (mut book, now) = book();
    book.on(now, Way::To, ack(5, 60));
    let own = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
    let used = Sighting::Used {
        mac: MAC,
        ip: own.into(),
    };
    assert_eq!(
        told(&book.on(now, Way::From, used)),
        ["gained fd00::7 Frames"]
    );
    assert!(book.tick(now).is_empty());
    assert_eq!(addresses(&book).len(), 2);
}

#[test]
fn what_a_former_watcher_knew_ends_in_its_time() {
    let now = Instant::now();
    let entry = Entry::known(ip(5).into(), Source::Lease, Some(after(now, 9)), now);
    let mut book = Book::new(MAC, vec![entry], now);
    assert_eq!(told(&book.tick(after(now, 9))), ["lost 5 Expired"]);
}

#[test]
fn what_the_server_wrote_down_is_a_lease_as_well() {
    let (mut book, now) = book();
    book.on(now, Way::From, used(5));
    let hour = Some(Duration::from_secs(3600));
    assert_eq!(
        told(&book.on_record(now, ip(5).into(), hour)),
        ["gained 5 Lease"]
    );
    assert!(
        book.on_record(now, ip(5).into(), Some(Duration::ZERO))
            .is_empty()
    );
    assert_eq!(book.deadline(), Some(after(now, 3600)));
    assert!(book.on_record(now, ip(5).into(), None).is_empty());
    assert_eq!(book.deadline(), None);
    assert_eq!(
        told(&book.on_record(now, ip(6).into(), hour)),
        ["gained 6 Lease"]
    );
}

#[test]
fn a_machine_that_claims_everything_costs_little() {
    let (mut book, now) = book();
    let mut told = 0;
    for last in 1..=250 {
        told += book.on(now, Way::From, used(last)).len();
    }
    assert!(told <= 8, "{told}");
    for second in 1..=250 {
        let claimed = used(u8::try_from(second).unwrap());
        book.on(after(now, second), Way::From, claimed);
        assert!(book.entries().len() <= MOST);
    }
}

proptest! {
    #[test]
    fn the_book_stays_small_and_says_when_it_is_due(
        steps in prop::collection::vec((any::<bool>(), 0u8..6, any::<u8>(), 0u64..9), 0..80),
    ) {
        let (mut book, mut now) = book();
        for (to, kind, last, pause) in steps {
            now = after(now, pause);
            let way = if to { Way::To } else { Way::From };
            let sighting = match kind {
                0 => ack(last, pause),
                1 => Sighting::Refused { mac: MAC },
                2 => Sighting::GivenUp { mac: MAC, ip: ip(last), declined: to },
                _ => used(last),
            };
            book.on(now, way, sighting);
            prop_assert!(book.entries().len() <= MOST);
            while book.deadline().is_some_and(|due| due <= now) {
                prop_assert!(!book.tick(now).is_empty());
            }
        }
    }
}
