//! A client of etcd that writes and reads all the while, by the published ports of the members, and
//! tries again when one does not answer.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::home::Home;

/// One question; an emulated etcd syncs its disk and asks the others.
const PATIENCE: Duration = Duration::from_secs(15);
/// No write is tried for longer, whatever happens to the members.
const TOO_LONG: Duration = Duration::from_secs(180);

/// A writer in the background.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

/// What a writer has seen.
#[derive(Debug)]
pub(crate) struct Written {
    /// The numbers of the writes that etcd acknowledged.
    pub(crate) acknowledged: u32,
    /// The longest time from one acknowledgment to the next.
    pub(crate) longest: Duration,
}

/// Where etcd's clients reach the machines that there are now.
pub(crate) fn ports(home: &Home) -> Vec<u16> {
    let ps = home.json(&["ps"]);
    let machines = ps["machines"].as_array().unwrap().iter();
    machines
        .flat_map(|machine| machine["ports"].as_array().unwrap().clone())
        .filter(|port| port["guest"] == 2379)
        .map(|port| port["host"].as_u64().unwrap().try_into().unwrap())
        .collect()
}

/// The members: name and whether it has started; by any machine that answers.
pub(crate) fn members(ports: &[u16]) -> BTreeSet<(String, String)> {
    let list = any(ports, "/v3/cluster/member/list", &json!({})).expect("nobody answers");
    let members = list["members"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    members
        .map(|member| (text(&member["name"]), text(&member["ID"])))
        .collect()
}

impl Writer {
    pub(crate) fn begin(ports: &[u16]) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (ports, told) = (ports.to_vec(), stop.clone());
        let thread = std::thread::spawn(move || write_all(&ports, &told));
        Writer { stop, thread }
    }

    /// Ends the writing, and looks whether all that was acknowledged is there.
    #[track_caller]
    pub(crate) fn end(self, ports: &[u16]) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.thread.join().unwrap();
        let range =
            json!({"key": STANDARD.encode("write/"), "range_end": STANDARD.encode("write0")});
        let found = any(ports, "/v3/kv/range", &range).expect("nobody answers");
        let kept: BTreeSet<Vec<u8>> = found["kvs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|kv| STANDARD.decode(kv["key"].as_str().unwrap()).unwrap())
            .collect();
        for number in 0..written.acknowledged {
            let missing = format!("write {number} of {written:?} is missing");
            assert!(kept.contains(key(number).as_bytes()), "{missing}");
        }
        written
    }
}

fn key(number: u32) -> String {
    format!("write/{number:06}")
}

fn write_all(ports: &[u16], stop: &AtomicBool) -> Written {
    let mut written = Written {
        acknowledged: 0,
        longest: Duration::ZERO,
    };
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let key = STANDARD.encode(key(written.acknowledged));
        let put = json!({"key": key, "value": STANDARD.encode("x")});
        let begun = Instant::now();
        while any(ports, "/v3/kv/put", &put).is_none() {
            assert!(
                begun.elapsed() < TOO_LONG,
                "no write in {TOO_LONG:?}: {written:?}"
            );
            // Nobody tells when a member is there again.
            std::thread::sleep(Duration::from_millis(100));
        }
        written.acknowledged += 1;
        written.longest = written.longest.max(last.elapsed());
        last = Instant::now();
        // What was acknowledged is there for every reader, by whomever it asks.
        if let Some(read) = any(ports, "/v3/kv/range", &json!({"key": key})) {
            assert_eq!(read["count"], "1", "{written:?}: {read}");
        }
    }
    written
}

/// The first answer of one of them that is one.
fn any(ports: &[u16], path: &str, body: &Value) -> Option<Value> {
    ports.iter().find_map(|port| ask(*port, path, body))
}

fn ask(port: u16, path: &str, body: &Value) -> Option<Value> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then_some(())?;
    serde_json::from_str(body).ok()
}
