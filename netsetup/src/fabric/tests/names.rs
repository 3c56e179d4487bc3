//! Names that are not the cluster's.

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;

fn query(name: &[u8]) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(name);
    query.extend([0, 0, 1, 0, 1]);
    query
}

#[tokio::test]
async fn foreign_names_are_asked_of_the_resolvers_under_another_id() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (fabric, _events) = start(vec![resolver.local_addr().unwrap()]);
    let mut a = Nic::join(&fabric, 10);
    let mut ids = Vec::new();
    for round in 0..8u8 {
        a.send(&a.datagram(&gateway(), 53, &query(b"\x07example")))
            .await;
        let mut asked = vec![0; 512];
        let (length, from) = timeout(PATIENCE, resolver.recv_from(&mut asked))
            .await
            .unwrap()
            .unwrap();
        asked.truncate(length);
        assert_eq!(asked[2..], query(b"\x07example")[2..]);
        ids.push([asked[0], asked[1]]);
        // Another server's answer, an answer to another id, and the one to be taken.
        asked[2] |= 0x80;
        asked.push(99);
        silent.send_to(&asked, from).await.unwrap();
        asked[0] ^= 1;
        resolver.send_to(&asked, from).await.unwrap();
        asked[0] ^= 1;
        *asked.last_mut().unwrap() = round;
        resolver.send_to(&asked, from).await.unwrap();
        let answer = a.next_data().await;
        assert_eq!(
            (&answer[..2], answer.last()),
            (&[0x12, 0x34][..], Some(&round))
        );
    }
    assert!(
        ids.iter().any(|id| *id != ids[0]) && !ids.contains(&[0x12, 0x34]),
        "{ids:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn silent_resolvers_end_in_servfail_and_the_next_one_is_asked() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (fabric, _events) = start(vec![silent.local_addr().unwrap(); 2]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    fabric.attach("node-10", theirs);
    let mut a = Nic {
        stream: ours,
        machine: machine(10),
    };
    let began = tokio::time::Instant::now();
    a.send(&a.datagram(&gateway(), 53, &query(b"\x07example")))
        .await;
    let answer = a.next_data().await;
    assert_eq!(answer[3] & 15, 2);
    assert_eq!(began.elapsed().as_secs(), 5);
    let mut asked = [0; 512];
    for _ in 0..2 {
        silent.try_recv(&mut asked).unwrap();
    }
}

#[tokio::test]
async fn a_long_answer_is_cut_and_too_many_questions_are_refused() {
    let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (fabric, _events) = start(vec![resolver.local_addr().unwrap()]);
    let mut a = Nic::join(&fabric, 10);
    a.send(&a.datagram(&gateway(), 53, &query(b"\x07example")))
        .await;
    let mut answer = vec![0; 512];
    let (length, from) = timeout(PATIENCE, resolver.recv_from(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer.truncate(length);
    answer[2] |= 0x80;
    answer.resize(1473, 0);
    resolver.send_to(&answer, from).await.unwrap();
    let cut = a.next_data().await;
    assert_eq!((cut.len(), cut[2] & 2), (query(b"\x07example").len(), 2));
    for _ in 0..33 {
        a.send(&a.datagram(&gateway(), 53, &query(b"\x07example")))
            .await;
    }
    assert_eq!(a.next_data().await[3] & 15, 2);
}
