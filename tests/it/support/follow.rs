//! A program in the background, whose output is waited for.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::process;

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Follow {
    child: Child,
    chunks: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Follow {
    pub(crate) fn of(command: &mut Command) -> Follow {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (tell, chunks) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                if tell.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Follow {
            child,
            chunks,
            seen: Vec::new(),
        }
    }

    /// Waits until it has printed this, and gives all that it has printed.
    #[track_caller]
    pub(crate) fn until(&mut self, text: &str, within: Duration) -> String {
        let deadline = Instant::now() + within;
        while !process::contains(&self.seen, text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(error) => panic!(
                    "no `{text}` within {within:?} ({error}); seen was\n{}",
                    String::from_utf8_lossy(&self.seen)
                ),
            }
        }
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
