//! An image from a server: `kiln image pull` beside `curl | tee >(sha256sum) | xz -d`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::Outcome;
use crate::table::{Row, Target};
use crate::world::World;

/// Of the packed image, in bytes; the last block may go beyond.
const SIZE: u64 = 500_000_000;
/// Content is packed in pieces of this size, until it is enough.
const PIECE: usize = 1 << 20;

/// Receives, verifies and unpacks the same file both ways.
pub(crate) fn pull(world: &World, rounds: usize) -> Outcome<Vec<Row>> {
    let image = image()?;
    let digest = digest(&image)?;
    let url = serve(&image)?;
    let cluster = world.cluster("pull", 1)?;
    let folder = world.raw("pull")?;
    let (raws, kilns) = crate::by_turns(
        rounds,
        || raw(&url, &digest, &folder),
        || {
            let took = cluster.kiln(&["image", "pull", &url, "--sha256", &digest, "-q"])?;
            cluster.kiln(&["image", "prune"])?;
            Ok(took)
        },
    )?;
    Ok(vec![Row::pair(
        "pull of a 500 MB xz image",
        &raws,
        &kilns,
        Target::Ratio(1.0),
    )])
}

fn raw(url: &str, digest: &str, folder: &Path) -> Outcome<Duration> {
    let script =
        "set -o pipefail; curl -sS \"$1\" | tee >(sha256sum >sum) | xz -d >image; wait; cat sum";
    let begun = Instant::now();
    let output = Command::new("bash")
        .args(["-c", script, "bash", url])
        .current_dir(folder)
        .stderr(Stdio::inherit())
        .output()?;
    let took = begun.elapsed();
    if !output.status.success() || !output.stdout.starts_with(digest.as_bytes()) {
        return Err("curl, sha256sum or xz failed".into());
    }
    fs::remove_file(folder.join("image"))?;
    Ok(took)
}

/// A file that is as hard to unpack as an operating system's image; made once and kept.
fn image() -> Outcome<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    let path = folder.join("image.raw.xz");
    if path.exists() {
        return Ok(path);
    }
    let _ = writeln!(io::stderr(), "bench: packing the image to be pulled");
    fs::create_dir_all(&folder)?;
    let new = folder.join("image.new");
    let mut packer = Command::new("xz")
        .args(["-0", "-T0", "-c"])
        .stdin(Stdio::piped())
        .stdout(File::create(&new)?)
        .spawn()?;
    let mut input = BufWriter::new(packer.stdin.take().ok_or("xz has no input")?);
    let mut words = Words::new();
    while fs::metadata(&new)?.len() < SIZE {
        input.write_all(&words.piece())?;
    }
    drop(input.into_inner()?);
    if !packer.wait()?.success() {
        return Err("xz failed".into());
    }
    fs::rename(new, &path)?;
    Ok(path)
}

/// Text that packs to a third: words of a made-up language, in no order, with some noise.
struct Words {
    state: u64,
    words: Vec<Vec<u8>>,
}

impl Words {
    fn new() -> Words {
        let mut words = Words {
            state: 0x9e37_79b9_7f4a_7c15,
            words: Vec::new(),
        };
        words.words = (0..30_000)
            .map(|_| {
                let length = 3 + words.next() % 12;
                (0..length).map(|_| words.letter()).collect()
            })
            .collect();
        words
    }

    /// The next number (xorshift64).
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn letter(&mut self) -> u8 {
        b'a' + u8::try_from(self.next() % 26).unwrap_or(0)
    }

    fn piece(&mut self) -> Vec<u8> {
        let mut piece = Vec::with_capacity(PIECE + 16);
        while piece.len() < PIECE {
            let number = self.next();
            if number.is_multiple_of(16) {
                piece.extend(self.next().to_le_bytes());
            }
            let count = self.words.len() as u64;
            let word = usize::try_from(number / 16 % count).unwrap_or(0);
            piece.extend(&self.words[word]);
        }
        piece
    }
}

fn digest(path: &Path) -> Outcome<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => break,
            read => hasher.update(&block[..read]),
        }
    }
    let digest = hasher.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Sends the file to whoever asks, until this program ends.
fn serve(path: &Path) -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/image.raw.xz", listener.local_addr()?);
    let path = path.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let path = path.clone();
            // A client that has gone away is no fault of the server's.
            thread::spawn(move || send(&path, stream));
        }
    });
    Ok(url)
}

fn send(path: &Path, mut stream: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    io::copy(&mut file, &mut stream)?;
    Ok(())
}
