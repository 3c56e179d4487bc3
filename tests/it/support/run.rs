//! Programs that are run to their end, with a deadline, and what they said.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Between a program's end and the end of its output: what holds that longer is a process
/// that was left behind with it, such as a daemon that did not let go of its caller's stdout.
const LET_GO: Duration = Duration::from_secs(2);

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) command: String,
    /// Absent when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

/// Runs it to its end, without input. At the deadline it is killed and the test fails.
#[track_caller]
pub(crate) fn run(command: &mut Command, within: Duration) -> Ran {
    let told = format!("{command:?}");
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {told}: {error}"));
    let pid = Pid::from_raw(child.id().cast_signed());
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let (tell, ended) = channel();
    thread::spawn(move || tell.send(child.wait()));
    let Ok(status) = ended.recv_timeout(within) else {
        // Nobody has waited for it yet, so the number is still its own.
        let _ = kill(pid, Signal::SIGKILL);
        let said = |stream: &Receiver<String>| stream.recv_timeout(LET_GO).unwrap_or_default();
        panic!(
            "{told} did not end within {within:?}\n--- stdout\n{}\n--- stderr\n{}",
            said(&stdout),
            said(&stderr)
        );
    };
    let took = begun.elapsed();
    let said = |stream: &Receiver<String>, name| {
        stream
            .recv_timeout(LET_GO)
            .unwrap_or_else(|_| panic!("{told} ended, and something still holds its {name}"))
    };
    Ran {
        code: status.unwrap().code(),
        stdout: said(&stdout, "stdout"),
        stderr: said(&stderr, "stderr"),
        took,
        command: told,
    }
}

fn read_all(mut stream: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, text) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth showing.
        let _ = stream.read_to_end(&mut bytes);
        tell.send(String::from_utf8_lossy(&bytes).into_owned())
    });
    text
}

impl Ran {
    /// It ended with this exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        self.exits(0)
    }

    /// It took no longer than this, which is the promise under test.
    #[track_caller]
    pub(crate) fn took_at_most(self, limit: Duration) -> Ran {
        assert!(self.took <= limit, "it took too long\n{self}");
        self
    }

    /// Its stderr has this text.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Ran {
        assert!(
            self.stderr.contains(text),
            "it does not say `{text}`\n{self}"
        );
        self
    }

    /// The `result` of the one JSON object that it printed.
    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        let mut object = self.object();
        assert_eq!(object["schema"], 1, "{self}");
        assert_eq!(object["ok"], true, "{self}");
        object["result"].take()
    }

    /// The `error` of the one JSON object that it printed.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let mut object = self.object();
        assert_eq!(object["schema"], 1, "{self}");
        assert_eq!(object["ok"], false, "{self}");
        object["error"].take()
    }

    #[track_caller]
    fn object(&self) -> Value {
        assert_eq!(
            self.stdout.lines().count(),
            1,
            "one object, one line\n{self}"
        );
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}\n{self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\nended with {:?} after {:?}\n--- stdout\n{}--- stderr\n{}---",
            self.command, self.code, self.took, self.stdout, self.stderr
        )
    }
}
