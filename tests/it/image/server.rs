//! A web server of the test's own: it behaves like those of the vendors, or misbehaves as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

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
    /// Sends elsewhere.
    Elsewhere(String),
    /// Says nothing before [`Server::release`].
    Held,
    Status(u16),
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                thread::spawn(move || {
                    // A client that has gone away is no fault of the server's.
                    let _ = answer(&state, stream);
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

fn answer(state: &State, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    for line in BufReader::new(stream.try_clone()?).lines() {
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
    let mut length = all - start;
    if matches!(file.manners, Manners::TooLong) {
        length += 1000;
    } else if matches!(file.manners, Manners::TooShort) {
        length -= 1000;
    }
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{range}ETag: {tag}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    let mut end = all;
    if let Manners::Cut(at) = file.manners {
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
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    }
    Ok(())
}
