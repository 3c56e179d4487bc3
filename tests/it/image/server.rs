//! A web server of the test's own: it behaves like those of the vendors, or misbehaves as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

/// A held answer waits no longer, lest a failed test hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server does with a file.
#[derive(Debug, Clone, Default)]
pub(crate) enum Manners {
    #[default]
    Good,
    /// Closes the connection when the file's first so many bytes are out, over however many requests.
    Cut(usize),
    /// Sends so many bytes of the first answer, and then nothing for a while.
    StallOnce(usize),
    /// Says a length that is longer than the file, and closes.
    TooLong,
    /// Says a length that is shorter.
    TooShort,
    /// Knows no ranges.
    Whole,
    /// Names no version of the file, and closes like [`Manners::Cut`].
    Nameless(usize),
    /// Sends elsewhere.
    Elsewhere(String),
    /// Says nothing before [`Server::release`].
    Held,
    Status(u16),
    /// Is too busy for so many questions.
    Busy(usize),
}

#[derive(Debug, Clone)]
struct File {
    content: Arc<Vec<u8>>,
    manners: Manners,
}

/// A request, as the server got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// Where the asked range begins.
    pub(crate) from: Option<usize>,
}

#[derive(Debug, Default)]
struct State {
    files: Mutex<BTreeMap<String, File>>,
    asked: Mutex<Vec<Asked>>,
    released: Mutex<bool>,
    release: Condvar,
}

#[derive(Debug)]
pub(crate) struct Server {
    address: String,
    state: Arc<State>,
}

impl Server {
    pub(crate) fn new() -> Server {
        Server::speaking(None)
    }

    /// By HTTPS, with the certificate of an authority that nobody knows.
    pub(crate) fn secure() -> Server {
        let chain = CertificateDer::from_pem_slice(include_bytes!("tls/server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server-key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        Server::speaking(Some(Arc::new(config)))
    }

    fn speaking(tls: Option<Arc<ServerConfig>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(PATIENCE));
                    // A client that has gone away is no fault of the server's.
                    let _ = match tls {
                        None => answer(&state, &mut &stream),
                        Some(config) => {
                            let connection = ServerConnection::new(config).unwrap();
                            let mut stream = StreamOwned::new(connection, stream);
                            answer(&state, &mut stream).and_then(|()| {
                                stream.conn.send_close_notify();
                                stream.flush()
                            })
                        }
                    };
                });
            }
        });
        Server { address, state }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    pub(crate) fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.put_with(path, content, Manners::Good);
    }

    pub(crate) fn put_with(&self, path: &str, content: impl Into<Vec<u8>>, manners: Manners) {
        let content = Arc::new(content.into());
        let file = File { content, manners };
        lock(&self.state.files).insert(path.to_owned(), file);
    }

    pub(crate) fn remove(&self, path: &str) {
        lock(&self.state.files).remove(path);
    }

    pub(crate) fn behave(&self, path: &str, manners: Manners) {
        lock(&self.state.files).get_mut(path).unwrap().manners = manners;
    }

    /// Lets those go on that are held.
    pub(crate) fn release(&self) {
        *lock(&self.state.released) = true;
        self.state.release.notify_all();
    }

    /// What was asked for at this path, and forgets it.
    pub(crate) fn asked(&self, path: &str) -> Vec<Asked> {
        let mut asked = lock(&self.state.asked);
        let (of_path, others) = asked.drain(..).partition(|asked| asked.path == path);
        *asked = others;
        of_path
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer<S: Read + Write>(state: &State, stream: &mut S) -> std::io::Result<()> {
    let mut head = Vec::new();
    for line in BufReader::new(&mut *stream).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let mut words = head.first().map_or("", String::as_str).split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let from: Option<usize> = header("range").and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    lock(&state.asked).push(Asked {
        path: path.clone(),
        from,
    });
    let Some(file) = lock(&state.files).get(&path).cloned() else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    if let Manners::Held = file.manners {
        let released = lock(&state.released);
        let wait = state
            .release
            .wait_timeout_while(released, PATIENCE, |released| !*released);
        drop(wait);
    }
    let tag = format!("\"{:x}\"", Sha256::digest(&*file.content)[0]);
    let same = header("if-range").is_none_or(|wanted| wanted == tag);
    let all = file.content.len();
    let start = match (from, &file.manners) {
        (_, Manners::Whole) | (None, _) => 0,
        (Some(from), _) if same => from,
        (Some(_), _) => 0,
    };
    let (status, range) = match (&file.manners, start) {
        (Manners::Elsewhere(to), _) => {
            let text = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
            return stream.write_all(text.as_bytes());
        }
        (Manners::Busy(left), _) if *left > 0 => {
            if let Some(file) = lock(&state.files).get_mut(&path) {
                file.manners = Manners::Busy(left - 1);
            }
            let text = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return stream.write_all(text.as_bytes());
        }
        (Manners::Status(code), _) => {
            let text =
                format!("HTTP/1.1 {code} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return stream.write_all(text.as_bytes());
        }
        (_, 0) => ("200 OK", String::new()),
        (_, start) if start >= all => {
            return stream.write_all(
                format!(
                    "HTTP/1.1 416 No\r\nContent-Range: bytes */{all}\r\nContent-Length: 0\r\n\r\n"
                )
                .as_bytes(),
            );
        }
        (_, start) => (
            "206 Partial Content",
            format!("Content-Range: bytes {start}-{}/{all}\r\n", all - 1),
        ),
    };
    let name = if matches!(file.manners, Manners::Nameless(_)) {
        String::new()
    } else {
        format!("ETag: {tag}\r\n")
    };
    let mut length = all - start;
    if matches!(file.manners, Manners::TooLong) {
        length += 1000;
    } else if matches!(file.manners, Manners::TooShort) {
        length -= 1000;
    }
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{range}{name}Connection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    let mut end = all;
    if let Manners::Cut(at) | Manners::Nameless(at) = file.manners {
        end = at.clamp(start, all);
    } else if let Manners::StallOnce(at) = file.manners
        && start == 0
    {
        end = at.min(all);
    }
    stream.write_all(&file.content[start..end])?;
    stream.flush()?;
    if let Manners::StallOnce(_) = file.manners
        && start == 0
    {
        // Until the client goes.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

/// A proxy: passes connections on to where it is asked to, and tells whither.
pub(crate) fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let told = Arc::clone(&told);
            thread::spawn(move || {
                let mut head = String::new();
                let mut reader = BufReader::new(&stream);
                while !head.ends_with("\r\n\r\n") {
                    if reader.read_line(&mut head).unwrap_or(0) == 0 {
                        return;
                    }
                }
                let to = head.split(' ').nth(1).unwrap_or_default().to_owned();
                lock(&told).push(head.lines().next().unwrap_or_default().to_owned());
                let there = std::net::TcpStream::connect(&to).unwrap();
                let _ = (&stream).write_all(b"HTTP/1.1 200 Go on\r\n\r\n");
                thread::scope(|scope| {
                    scope.spawn(|| {
                        let _ = std::io::copy(&mut &stream, &mut &there);
                        let _ = there.shutdown(std::net::Shutdown::Write);
                    });
                    let _ = std::io::copy(&mut &there, &mut &stream);
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            });
        }
    });
    (address, asked)
}
