//! A small server of etcd's discovery protocol, version 2: `/new?size=N` gives a token, members
//! register below it, and each is told of those that came before and after it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// No member waits longer for another.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the server knows.
#[derive(Debug, Default, Clone)]
pub(crate) struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    tokens: Mutex<BTreeMap<String, Token>>,
    changed: Condvar,
}

/// One cluster.
#[derive(Debug, Default, Clone)]
pub(crate) struct Token {
    /// How many members it is for.
    pub(crate) size: String,
    /// `NAME=URL` of each member, in the order in which they came, below its id.
    pub(crate) members: Vec<(String, String)>,
}

impl Discovery {
    /// Serves until the test's process ends.
    pub(crate) fn serve(&self, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let own = self.clone();
            // One that breaks off is its own loss.
            thread::spawn(move || own.answer(&stream));
        }
    }

    pub(crate) fn tokens(&self) -> BTreeMap<String, Token> {
        self.shared.tokens.lock().unwrap().clone()
    }

    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream);
        let mut request = String::new();
        lines.read_line(&mut request)?;
        let (mut host, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            lines.read_line(&mut line)?;
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap_or((line, ""));
            match name.to_lowercase().as_str() {
                "host" => host = value.to_owned(),
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        lines.read_exact(&mut body)?;
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (status, index, text) = match (method, path) {
            ("GET", "/new") => (200, 1, self.new_token(&host, query)),
            ("PUT", _) => self.register(path, &String::from_utf8_lossy(&body)),
            _ => self.tell(path, query),
        };
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nX-Etcd-Index: {index}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        )
    }

    fn new_token(&self, host: &str, query: &str) -> String {
        let mut tokens = self.shared.tokens.lock().unwrap();
        let token = format!("token-{}", tokens.len() + 1);
        let size = query.strip_prefix("size=").unwrap_or("").to_owned();
        let members = Vec::new();
        tokens.insert(token.clone(), Token { size, members });
        format!("http://{host}/{token}\n")
    }

    /// `PUT /TOKEN/ID` with `value=NAME%3DURL`.
    fn register(&self, path: &str, body: &str) -> (u16, usize, String) {
        let mut tokens = self.shared.tokens.lock().unwrap();
        let (token, id) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        let Some(found) = tokens.get_mut(token) else {
            return missing();
        };
        if found.members.iter().any(|(known, _)| known == id) {
            return (
                412,
                1,
                json!({"errorCode": 105, "message": "Key already exists", "index": 1}).to_string(),
            );
        }
        let value = body.strip_prefix("value=").unwrap_or(body);
        let value = value
            .replace("%3D", "=")
            .replace("%3A", ":")
            .replace("%2F", "/");
        found.members.push((id.to_owned(), value));
        let index = found.members.len() + 1;
        let node = node(token, &found.members, index - 2);
        self.shared.changed.notify_all();
        (
            201,
            index,
            json!({"action": "create", "node": node}).to_string(),
        )
    }

    /// A token's size, its members, or, for `wait=true`, the next member.
    fn tell(&self, path: &str, query: &str) -> (u16, usize, String) {
        let tokens = self.shared.tokens.lock().unwrap();
        let token = path[1..].split('/').next().unwrap_or("").to_owned();
        let Some(found) = tokens.get(&token) else {
            return missing();
        };
        let index = found.members.len() + 1;
        if path.ends_with("/_config/size") {
            let node =
                json!({"key": path, "value": found.size, "createdIndex": 1, "modifiedIndex": 1});
            return (
                200,
                index,
                json!({"action": "get", "node": node}).to_string(),
            );
        }
        if query.contains("wait=true") {
            let from = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("waitIndex=")?.parse().ok())
                .unwrap_or(index + 1);
            let is_there =
                |tokens: &mut BTreeMap<String, Token>| tokens[&token].members.len() + 1 < from;
            let (tokens, _) = self
                .shared
                .changed
                .wait_timeout_while(tokens, PATIENCE, is_there)
                .unwrap();
            let node = node(&token, &tokens[&token].members, from - 2);
            return (
                200,
                from,
                json!({"action": "create", "node": node}).to_string(),
            );
        }
        let nodes: Vec<Value> = (0..found.members.len())
            .map(|place| node(&token, &found.members, place))
            .collect();
        let node = json!({"key": path, "dir": true, "nodes": nodes, "createdIndex": 1, "modifiedIndex": 1});
        (
            200,
            index,
            json!({"action": "get", "node": node}).to_string(),
        )
    }
}

fn node(token: &str, members: &[(String, String)], place: usize) -> Value {
    let (id, value) = &members[place];
    let index = place + 2;
    json!({"key": format!("/{token}/{id}"), "value": value, "createdIndex": index, "modifiedIndex": index})
}

fn missing() -> (u16, usize, String) {
    (
        404,
        1,
        json!({"errorCode": 100, "message": "Key not found", "index": 1}).to_string(),
    )
}
