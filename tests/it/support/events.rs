//! `kiln events` in the background: the tests wait for what happens, and never for time to pass.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running `kiln events`.
#[derive(Debug)]
pub(crate) struct Events {
    child: Child,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Events {
    pub(crate) fn of(command: &mut Command) -> Events {
        let mut child = command
            .args(["events", "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let Ok(value) = serde_json::from_str(&line) else {
                    panic!("no JSON object a line: {line}");
                };
                if tell.send(value).is_err() {
                    return;
                }
            }
        });
        let mut events = Events {
            child,
            lines,
            seen: Vec::new(),
        };
        // It begins with the machines as they are: from here on nothing is missed.
        events.until("the first line", Duration::from_secs(10), |_| true);
        events
    }

    /// The next event of this machine with this name. What comes before it is passed over.
    #[track_caller]
    pub(crate) fn next(&mut self, machine: &str, event: &str, within: Duration) -> Value {
        self.until(&format!("`{event}` of {machine}"), within, |value| {
            value["machine"] == machine && value["event"] == event
        })
    }

    #[track_caller]
    pub(crate) fn until(
        &mut self,
        what: &str,
        within: Duration,
        is_it: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(value) if is_it(&value) => return value,
                Ok(value) => self.seen.push(value),
                Err(error) => {
                    let seen: Vec<String> = self.seen.iter().map(Value::to_string).collect();
                    panic!(
                        "{what} did not come within {within:?} ({error}); seen were\n{}",
                        seen.join("\n")
                    );
                }
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
