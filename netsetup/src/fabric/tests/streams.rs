//! TCP from the host to a machine.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::guest::Guest;
use super::*;

#[tokio::test]
async fn a_connection_carries_much_in_both_directions_and_half_closes() {
    let (fabric, _events) = start(Vec::new());
    let guest = Guest::join(&fabric, &machine(10), 1);
    let stream = fabric
        .connect(machine(10).ip, guest::ECHO, soon())
        .await
        .unwrap();
    let sent: Vec<u8> = (0..3_000_000u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut back = Vec::new();
    timeout(PATIENCE, read.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert!(
        back == expected,
        "{} of {} bytes",
        back.len(),
        expected.len()
    );
    let mut write = writer.await.unwrap();
    assert_eq!(
        write.write(b"more").await.unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    drop(guest);
}

#[tokio::test]
async fn fifty_connections_at_once() {
    let (fabric, _events) = start(Vec::new());
    let _guest = Guest::join(&fabric, &machine(10), 50);
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(
            fabric
                .connect(machine(10).ip, guest::ECHO, soon())
                .await
                .unwrap(),
        );
    }
    for (number, stream) in (0u8..).zip(&mut streams) {
        stream.write_all(&[number; 1000]).await.unwrap();
    }
    for (number, stream) in (0u8..).zip(&mut streams) {
        let mut back = [0; 1000];
        timeout(PATIENCE, stream.read_exact(&mut back))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(back, [number; 1000]);
    }
}

#[tokio::test]
async fn a_connection_that_cannot_be_says_why() {
    let (fabric, _events) = start(Vec::new());
    let error = fabric.connect(machine(10).ip, 1, soon()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::HostUnreachable);
    let guest = Guest::join(&fabric, &machine(10), 1);
    let error = fabric.connect(machine(10).ip, 1, soon()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

    // A machine that is there and silent.
    let _silent = Nic::join(&fabric, 11);
    let deadline = Instant::now() + Duration::from_millis(50);
    let error = fabric
        .connect(machine(11).ip, 1, deadline)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);

    let mut stream = fabric
        .connect(machine(10).ip, guest::ECHO, soon())
        .await
        .unwrap();
    drop(guest);
    let error = timeout(PATIENCE, stream.read(&mut [0; 1]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    // The machine goes away while it is waited for, and the fabric ends under an open connection.
    let nic = Nic::join(&fabric, 11);
    let (result, ()) = tokio::join!(fabric.connect(machine(11).ip, 1, soon()), async {
        tokio::task::yield_now().await;
        drop(nic);
    });
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let _guest = Guest::join(&fabric, &machine(12), 1);
    let mut stream = fabric
        .connect(machine(12).ip, guest::ECHO, soon())
        .await
        .unwrap();
    fabric.stop().await;
    let error = timeout(PATIENCE, stream.read(&mut [0; 1]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
