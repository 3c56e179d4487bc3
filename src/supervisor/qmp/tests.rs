//! The client against peers that behave and peers that do not.

use std::time::Duration;

use proptest::prelude::*;
use qapi::qmp;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "#,
    r#""capabilities": ["oob"]}}"#,
    "\r\n"
);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn at_once() -> Instant {
    Instant::now() + Duration::from_millis(30)
}

/// A peer that greets, negotiates, and then runs `script` on the rest.
fn peer<F, R>(script: F) -> (DuplexStream, JoinHandle<()>)
where
    F: FnOnce(BufReader<DuplexStream>) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let (ours, theirs) = duplex(4096);
    let task = tokio::spawn(async move {
        let mut stream = BufReader::new(theirs);
        stream.write_all(GREETING.as_bytes()).await.unwrap();
        let id = asked(&mut stream, "qmp_capabilities").await;
        answer(&mut stream, &id, json!({})).await;
        script(stream).await;
    });
    (ours, task)
}

async fn asked(stream: &mut BufReader<DuplexStream>, command: &str) -> Value {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let message: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(message["execute"], command);
    message["id"].clone()
}

async fn answer(stream: &mut BufReader<DuplexStream>, id: &Value, value: Value) {
    say(stream, &json!({"return": value, "id": id})).await;
}

async fn say(stream: &mut BufReader<DuplexStream>, message: &Value) {
    stream
        .write_all(format!("{message}\r\n").as_bytes())
        .await
        .unwrap();
}

fn status(status: &str) -> Value {
    json!({"running": status == "running", "status": status})
}

/// What the client makes of a peer that says this after the greeting, and ends.
async fn end_after(bytes: &'static [u8]) -> QmpError {
    let (ours, _peer) = peer(move |mut stream| async move {
        stream.write_all(bytes).await.unwrap();
    });
    let (_qmp, mut events) = Qmp::connect(ours, soon()).await.unwrap();
    loop {
        if let Err(error) = events.next().await {
            return error;
        }
    }
}

#[tokio::test]
async fn answers_find_their_askers_in_any_order() {
    let (ours, _peer) = peer(|mut stream| async move {
        let first = asked(&mut stream, "query-status").await;
        let second = asked(&mut stream, "query-name").await;
        answer(&mut stream, &json!(4711), json!({})).await;
        answer(&mut stream, &json!("foreign"), json!({})).await;
        say(&mut stream, &json!({"return": {}})).await;
        say(
            &mut stream,
            &json!({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}),
        )
        .await;
        answer(&mut stream, &second, json!({"name": "node-1"})).await;
        answer(&mut stream, &first, status("paused")).await;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    });
    let (qmp, mut events) = Qmp::connect(ours, soon()).await.unwrap();
    let (state, name) = tokio::join!(
        qmp.execute(qmp::query_status {}, soon()),
        qmp.execute(qmp::query_name {}, soon())
    );
    assert_eq!(state.unwrap().status, qmp::RunState::paused);
    assert_eq!(name.unwrap().name.as_deref(), Some("node-1"));
    assert_eq!(events.next().await.unwrap(), QmpEvent::Stop);
}

#[tokio::test]
async fn a_refusal_carries_qemus_words() {
    let (ours, _peer) = peer(|mut stream| async move {
        let id = asked(&mut stream, "cont").await;
        say(
            &mut stream,
            &json!({"id": id, "error": {"class": "FromTheFuture", "desc": "no\u{1b}[2J"}}),
        )
        .await;
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let (qmp, _events) = Qmp::connect(ours, soon()).await.unwrap();
    let error = qmp.execute(qmp::cont {}, soon()).await.unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused `cont`: no\u{fffd}[2J");
}

#[tokio::test]
async fn events_are_typed_where_known_and_passed_on_where_not() {
    let events = [
        (
            r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}"#,
            QmpEvent::Shutdown {
                guest: true,
                reason: Some(qmp::ShutdownCause::guest_shutdown),
            },
        ),
        (
            r#"{"event":"SHUTDOWN","data":{"guest":false,"reason":"of-tomorrow"}}"#,
            QmpEvent::Shutdown {
                guest: false,
                reason: None,
            },
        ),
        (
            r#"{"event":"RESET","data":{"guest":true,"reason":"guest-reset"}}"#,
            QmpEvent::Reset {
                guest: true,
                reason: Some(qmp::ShutdownCause::guest_reset),
            },
        ),
        (
            r#"{"event":"GUEST_PANICKED","data":{"action":"pause","info":{"type":"of-tomorrow"}}}"#,
            QmpEvent::GuestPanicked {
                action: Some(qmp::GuestPanicAction::pause),
            },
        ),
        (r#"{"event":"POWERDOWN"}"#, QmpEvent::Powerdown),
        (
            r#"{"event":"RESUME","timestamp":{"seconds":1,"microseconds":2}}"#,
            QmpEvent::Resume,
        ),
        (
            r#"{"event":"VSERPORT_CHANGE","data":{"id":"report","open":true}}"#,
            QmpEvent::VserportChange {
                id: "report".into(),
                open: true,
            },
        ),
        (
            r#"{"event":"NIC_OF_TOMORROW","data":{"x":[1]}}"#,
            QmpEvent::Unknown {
                name: "NIC_OF_TOMORROW".into(),
                data: json!({"x": [1]}),
            },
        ),
        (
            r#"{"event":"RESET","data":"nonsense"}"#,
            QmpEvent::Unknown {
                name: "RESET".into(),
                data: json!("nonsense"),
            },
        ),
        (
            r#"{"event":"BLOCK_IO_ERROR","data":{"device":"","node-name":"root","operation":"write","action":"stop","nospace":true,"reason":"No space left on device"}}"#,
            QmpEvent::BlockIoError(BlockIoError {
                device: String::new(),
                node_name: Some("root".into()),
                operation: Some(qmp::IoOperationType::write),
                action: Some(qmp::BlockErrorAction::stop),
                nospace: true,
                reason: "No space left on device".into(),
            }),
        ),
    ];
    let (ours, _peer) = peer({
        let lines: Vec<&str> = events.iter().map(|(line, _)| *line).collect();
        move |mut stream| async move {
            for line in lines {
                stream
                    .write_all(format!("{line}\r\n").as_bytes())
                    .await
                    .unwrap();
            }
        }
    });
    let (_qmp, mut stream) = Qmp::connect(ours, soon()).await.unwrap();
    for (line, want) in events {
        assert_eq!(stream.next().await.unwrap(), want, "{line}");
    }
    assert!(matches!(stream.next().await, Err(QmpError::Closed)));
    assert!(matches!(stream.next().await, Err(QmpError::Closed)));
}

#[tokio::test]
async fn each_kind_of_nonsense_has_its_name() {
    assert!(matches!(end_after(b"").await, QmpError::Closed));
    assert!(matches!(
        end_after(b"{\"event\": \"ST").await,
        QmpError::HalfLine { .. }
    ));
    assert!(matches!(
        end_after(b"{\"event\"}\n").await,
        QmpError::NotJson { .. }
    ));
    assert!(matches!(
        end_after(b"HTTP/1.1 400 Bad Request\r\n").await,
        QmpError::NotJson { .. }
    ));
    assert!(matches!(
        end_after(b"{\"event\": \"\xff\"}\n").await,
        QmpError::NotUtf8 { .. }
    ));
    assert!(matches!(
        end_after(b"{}\n").await,
        QmpError::NotAMessage { .. }
    ));
    assert!(matches!(
        end_after(b"[1,2]\n").await,
        QmpError::NotJson { .. }
    ));
    assert!(matches!(
        end_after("[".repeat(900_000).leak().as_bytes()).await,
        QmpError::HalfLine { .. }
    ));
    let deep = format!("{{\"x\":{}\n", "[".repeat(900_000));
    assert!(matches!(
        end_after(deep.leak().as_bytes()).await,
        QmpError::NotJson { .. }
    ));
}

#[tokio::test]
async fn a_deep_event_is_counted_as_lost() {
    let (ours, _peer) = peer(|mut stream| async move {
        let deep = format!(
            "{{\"event\":\"X\",\"data\":{}{}}}\n",
            "[".repeat(5_000),
            "]".repeat(5_000)
        );
        stream.write_all(deep.as_bytes()).await.unwrap();
        say(&mut stream, &json!({"event": "STOP"})).await;
    });
    let (_qmp, mut events) = Qmp::connect(ours, soon()).await.unwrap();
    assert_eq!(events.next().await.unwrap(), QmpEvent::Lost { count: 1 });
    assert_eq!(events.next().await.unwrap(), QmpEvent::Stop);
}

#[tokio::test]
async fn a_line_without_an_end_is_cut_off_at_the_cap() {
    let (ours, _peer) = peer(|mut stream| async move {
        // The client goes away in the middle of it.
        while stream.write_all(&[b' '; 4096]).await.is_ok() {}
    });
    let (qmp, mut events) = Qmp::connect(ours, soon()).await.unwrap();
    assert!(matches!(events.next().await, Err(QmpError::LineTooLong)));
    let error = qmp.execute(qmp::cont {}, soon()).await.unwrap_err();
    assert!(matches!(error, QmpError::LineTooLong), "{error}");
}

#[tokio::test]
async fn a_reply_as_long_as_the_schema_comes_through() {
    let (ours, _peer) = peer(|mut stream| async move {
        let id = asked(&mut stream, "query-name").await;
        answer(&mut stream, &id, json!({"name": "n".repeat(240_000)})).await;
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let (qmp, _events) = Qmp::connect(ours, soon()).await.unwrap();
    let name = qmp
        .execute(qmp::query_name {}, soon())
        .await
        .unwrap()
        .name
        .unwrap();
    assert_eq!(name.len(), 240_000);
}

#[tokio::test]
async fn an_answer_of_another_shape_fails_that_command_only() {
    let (ours, _peer) = peer(|mut stream| async move {
        let id = asked(&mut stream, "query-status").await;
        answer(&mut stream, &id, json!({"running": "perhaps"})).await;
        let id = asked(&mut stream, "query-status").await;
        answer(&mut stream, &id, status("running")).await;
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let (qmp, _events) = Qmp::connect(ours, soon()).await.unwrap();
    let error = qmp.execute(qmp::query_status {}, soon()).await.unwrap_err();
    assert!(
        matches!(
            error,
            QmpError::Reply {
                command: "query-status",
                ..
            }
        ),
        "{error}"
    );
    assert!(
        qmp.execute(qmp::query_status {}, soon())
            .await
            .unwrap()
            .running
    );
}

#[tokio::test]
async fn a_flood_of_events_costs_no_memory_and_stops_no_answer() {
    const FLOOD: u64 = 20_000;
    let (ours, _peer) = peer(|mut stream| async move {
        for event in ["STOP", "RESUME", "STOP"] {
            say(&mut stream, &json!({"event": event})).await;
        }
        say(
            &mut stream,
            &json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}),
        )
        .await;
        for number in 0..FLOOD {
            say(
                &mut stream,
                &json!({"event": "RTC_CHANGE", "data": {"offset": number}}),
            )
            .await;
        }
        let id = asked(&mut stream, "query-status").await;
        answer(&mut stream, &id, status("shutdown")).await;
    });
    let (qmp, mut events) = Qmp::connect(ours, soon()).await.unwrap();
    let state = qmp.execute(qmp::query_status {}, soon()).await.unwrap();
    assert_eq!(state.status, qmp::RunState::shutdown);
    let (mut kept, mut lost, mut shutdown) = (0, 0, false);
    while let Ok(event) = events.next().await {
        match event {
            QmpEvent::Lost { count } => lost += count,
            QmpEvent::Unknown { .. } => kept += 1,
            QmpEvent::Shutdown { .. } => shutdown = true,
            QmpEvent::Reset { .. }
            | QmpEvent::Powerdown
            | QmpEvent::Stop
            | QmpEvent::Resume
            | QmpEvent::GuestPanicked { .. }
            | QmpEvent::BlockIoError(_)
            | QmpEvent::VserportChange { .. } => {}
        }
    }
    assert!(
        shutdown,
        "the one that matters was given up for those that do not"
    );
    assert_eq!(kept + lost, FLOOD);
    assert!(kept <= QUEUE_EVENTS as u64 + 2, "{kept}");
}

#[tokio::test]
async fn a_silent_peer_meets_the_deadline() {
    let (ours, _theirs) = duplex(64);
    let error = Qmp::connect(ours, at_once()).await.unwrap_err();
    assert!(matches!(error, QmpError::NoGreeting));

    let (ours, mut theirs) = duplex(4096);
    theirs.write_all(GREETING.as_bytes()).await.unwrap();
    let error = Qmp::connect(ours, at_once()).await.unwrap_err();
    assert!(matches!(
        error,
        QmpError::Timeout {
            command: "qmp_capabilities"
        }
    ));
    // And the connection is let go of.
    theirs.read_to_end(&mut Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_stranger_is_recognized_by_its_greeting() {
    let (ours, mut theirs) = duplex(4096);
    theirs.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    let error = Qmp::connect(ours, soon()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the peer of the QMP socket greeted with `SSH-2.0-OpenSSH_9.2`, which is not QMP"
    );
}

#[tokio::test]
async fn a_stalled_peer_is_given_few_commands_and_no_dead_ones() {
    let (ours, peer) = peer(|mut stream| async move {
        let mut taken = 0;
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap() > 0 {
            assert!(
                !line.contains("\"quit\""),
                "a command that timed out was sent later"
            );
            if taken == 0 {
                // Long enough for all of the client's deadlines to pass.
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            taken += 1;
            line.clear();
        }
        assert_eq!(taken, OUTSTANDING);
    });
    let (qmp, _events) = Qmp::connect(ours, soon()).await.unwrap();
    let deadline = at_once();
    let heartbeats: Vec<_> = (0..OUTSTANDING)
        .map(|_| {
            let qmp = qmp.clone();
            tokio::spawn(async move { qmp.execute(qmp::query_status {}, deadline).await })
        })
        .collect();
    for heartbeat in heartbeats {
        let error = heartbeat.await.unwrap().unwrap_err();
        assert!(matches!(error, QmpError::Timeout { .. }), "{error}");
    }
    let error = qmp.execute(qmp::quit {}, at_once()).await.unwrap_err();
    assert!(matches!(error, QmpError::Timeout { command: "quit" }));
    drop(qmp);
    peer.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_dies_fails_what_is_under_way_and_later() {
    let (ours, _peer) = peer(|mut stream| async move {
        asked(&mut stream, "query-status").await;
        say(&mut stream, &json!({"event": "STOP"})).await;
    });
    let (qmp, mut events) = Qmp::connect(ours, soon()).await.unwrap();
    let error = qmp.execute(qmp::query_status {}, soon()).await.unwrap_err();
    assert!(matches!(error, QmpError::Closed), "{error}");
    let error = qmp.execute(qmp::query_status {}, soon()).await.unwrap_err();
    assert!(matches!(error, QmpError::Closed), "{error}");
    assert_eq!(events.next().await.unwrap(), QmpEvent::Stop);
    assert!(matches!(events.next().await, Err(QmpError::Closed)));
}

#[tokio::test]
async fn dropping_the_client_ends_the_connection() {
    let (ours, peer) = peer(|mut stream| async move {
        assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    });
    let (qmp, _events) = Qmp::connect(ours, soon()).await.unwrap();
    drop(qmp);
    peer.await.unwrap();
}

/// Everything the client makes of these bytes, given to it in these pieces.
async fn outcome(bytes: &[u8], pieces: &[usize]) -> String {
    let (ours, mut theirs) = duplex(64);
    let bytes = bytes.to_vec();
    let pieces = pieces.to_vec();
    let feeder = tokio::spawn(async move {
        let mut sizes = pieces.iter().copied().cycle();
        theirs.write_all(GREETING.as_bytes()).await.unwrap();
        while theirs.read_u8().await.unwrap() != b'\n' {}
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let size = sizes.next().unwrap_or(1).min(rest.len());
            if theirs.write_all(&rest[..size]).await.is_err() {
                return;
            }
            rest = &rest[size..];
            tokio::task::yield_now().await;
        }
        theirs.shutdown().await.unwrap();
        theirs.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let mut seen = Vec::new();
    match Qmp::connect(ours, soon()).await {
        Err(error) => seen.push(format!("{error:?}")),
        Ok((qmp, mut events)) => loop {
            match events.next().await {
                Ok(event) => seen.push(format!("{event:?}")),
                Err(error) => {
                    seen.push(format!("{error:?}"));
                    drop(qmp);
                    break;
                }
            }
        },
    }
    feeder.await.unwrap();
    seen.join("\n")
}

fn spoken() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        4 => Just(r#"{"event":"STOP"}"#.as_bytes().to_vec()),
        4 => Just(r#"{"event":"RESET","data":{"guest":true,"reason":"guest-reset"}}"#.as_bytes().to_vec()),
        2 => Just(r#"{"return":{},"id":99}"#.as_bytes().to_vec()),
        2 => "[a-zäöü]{0,40}".prop_map(|word| format!(r#"{{"event":"{word}","data":"{word}"}}"#).into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(
        (
            line,
            prop_oneof![Just("\r\n"), Just("\n"), Just("\r\n\r\n")],
        ),
        0..12,
    )
    .prop_map(|lines| {
        let mut bytes = b"{\"return\":{},\"id\":1}\r\n".to_vec();
        for (line, end) in lines {
            bytes.extend(line);
            bytes.extend(end.as_bytes());
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn how_the_bytes_are_cut_changes_nothing(
        bytes in spoken(),
        pieces in proptest::collection::vec(1usize..40, 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let whole = runtime.block_on(outcome(&bytes, &[usize::MAX]));
        prop_assert_eq!(&runtime.block_on(outcome(&bytes, &pieces)), &whole);
        prop_assert_eq!(&runtime.block_on(outcome(&bytes, &[1])), &whole);
    }
}
