//! etcd's HTTP API (its JSON gateway, `/v3/cluster/member/…`, and `/health`) over one stream each.
//!
//! The other end is a guest's: an answer has a longest length, and is of the promised shape or an
//! error. HTTP 1.0, so that the answer ends where the stream does.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// How long one question may take. A change of members waits for a majority to have it.
const ANSWER: Duration = Duration::from_secs(20);
/// The longest answer that is read; a list of members is some hundred bytes for each.
const ANSWER_LIMIT: u64 = 1 << 20;

/// Why a member did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("etcd did not answer")]
    Silent {
        #[source]
        source: io::Error,
    },
    #[error("what answers there is no etcd: {what}")]
    Nonsense { what: &'static str },
    #[error("etcd refused: {why}")]
    Refused { why: String },
}

/// A member as etcd lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// A number of 64 bits, as text.
    #[serde(rename = "ID")]
    pub id: String,
    /// Empty until it has started.
    #[serde(default)]
    pub name: String,
    #[serde(rename = "peerURLs", default)]
    pub peer_urls: Vec<String>,
}

impl Member {
    /// Whether its etcd has ever run.
    pub fn has_started(&self) -> bool {
        !self.name.is_empty()
    }
}

#[derive(Deserialize)]
struct Members {
    #[serde(rename = "header")]
    _header: IgnoredAny,
    #[serde(default)]
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Health {
    health: Value,
}

/// All members.
pub fn list(stream: UnixStream) -> Result<Vec<Member>, ApiError> {
    let body = ask(stream, "POST", "/v3/cluster/member/list", Some(&json!({})))?;
    let members: Members = parse(&body)?;
    Ok(members.members)
}

/// Takes in a member that is to start at this address next.
pub fn add(stream: UnixStream, peer_url: &str) -> Result<(), ApiError> {
    let body = json!({"peerURLs": [peer_url]});
    ask(stream, "POST", "/v3/cluster/member/add", Some(&body)).map(drop)
}

/// Takes a member out for good.
pub fn remove(stream: UnixStream, id: &str) -> Result<(), ApiError> {
    let body = json!({"ID": id});
    ask(stream, "POST", "/v3/cluster/member/remove", Some(&body)).map(drop)
}

/// Whether this member knows a leader, and what it is told is kept by a majority.
pub fn is_healthy(stream: UnixStream) -> Result<bool, ApiError> {
    let body = match ask(stream, "GET", "/health", None) {
        Ok(body) => body,
        // It says so with a status of its own.
        Err(ApiError::Refused { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let health: Health = parse(&body)?;
    Ok(health.health == "true" || health.health == true)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|_| ApiError::Nonsense {
        what: "an answer of another shape",
    })
}

fn ask(
    mut stream: UnixStream,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Vec<u8>, ApiError> {
    let silent = |source| ApiError::Silent { source };
    let deadline = Instant::now() + ANSWER;
    let body = body.map_or_else(String::new, Value::to_string);
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream
        .set_write_timeout(Some(ANSWER))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .map_err(silent)?;
    let mut answer = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(silent(io::ErrorKind::TimedOut.into()));
        }
        stream.set_read_timeout(Some(left)).map_err(silent)?;
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).map_err(silent)? {
            0 => break,
            read => answer.extend_from_slice(&chunk[..read]),
        }
        if answer.len() as u64 > ANSWER_LIMIT {
            return Err(ApiError::Nonsense {
                what: "an answer without an end",
            });
        }
    }
    let (status, body) = parts(&answer)?;
    match status {
        200 => Ok(body.to_vec()),
        _ => Err(ApiError::Refused {
            why: reason(status, body),
        }),
    }
}

/// The status and the body of an answer.
fn parts(answer: &[u8]) -> Result<(u16, &[u8]), ApiError> {
    let nonsense = |what| ApiError::Nonsense { what };
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or(nonsense("an answer that breaks off"))?;
    let status = std::str::from_utf8(&answer[..end])
        .ok()
        .and_then(|head| {
            let mut words = head.lines().next()?.split(' ');
            let version = words.next()?;
            let status = words.next()?.parse().ok()?;
            version.starts_with("HTTP/1.").then_some(status)
        })
        .ok_or(nonsense("no HTTP"))?;
    Ok((status, &answer[end + 4..]))
}

/// The reason in a refusal, fit for a terminal.
fn reason(status: u16, body: &[u8]) -> String {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    let text = said
        .as_ref()
        .and_then(|said| said["error"].as_str().or(said["message"].as_str()))
        .unwrap_or("no reason given");
    let text: String = text
        .chars()
        .filter(|character| !character.is_control())
        .take(300)
        .collect();
    format!("{text} (status {status})")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of this answer.
    fn told<T>(
        answer: &str,
        ask: impl FnOnce(UnixStream) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(answer.as_bytes()).unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        ask(near)
    }

    #[test]
    fn answers_are_read() {
        let body = r#"{"header":{},"members":[{"ID":"1","name":"a","peerURLs":["http://10.0.0.1:2380"]},{"ID":"2"}]}"#;
        let members = told(&format!("HTTP/1.0 200 OK\r\nA: b\r\n\r\n{body}"), list).unwrap();
        assert_eq!((members.len(), members[0].has_started()), (2, true));
        assert!(!members[1].has_started());
        assert!(told("HTTP/1.0 200 OK\r\n\r\n{\"health\":\"true\"}", is_healthy).unwrap());
        assert!(!told("HTTP/1.0 503 No\r\n\r\n{\"health\":\"false\"}", is_healthy).unwrap());
    }

    #[test]
    fn hostile_answers_are_errors() {
        let refused = "HTTP/1.1 500 No\r\n\r\n{\"error\":\"etcdserver: \\u001b[2Junhealthy\"}";
        let error = told(refused, |stream| remove(stream, "1")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "etcd refused: etcdserver: [2Junhealthy (status 500)"
        );
        let long = format!("HTTP/1.0 200 OK\r\n\r\n{}", "[".repeat(100_000));
        for answer in [
            "",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n",
            "HTTP/1.0 200 OK\r\n\r\n[]",
            &long,
        ] {
            let error = told(answer, list).unwrap_err();
            assert!(
                matches!(error, ApiError::Nonsense { .. }),
                "{answer:.20}: {error}"
            );
        }
    }
}
