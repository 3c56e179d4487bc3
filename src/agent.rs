//! The guest agent of a machine, asked over its serial port: one client at a time, a line each way.
//!
//! The types are those of the `qapi` crate. The other end is the guest's, so whatever it says is
//! hostile input: a reply has a longest line and a deadline, and is of the promised shape or an
//! error. Nothing here decides what is asked.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use qapi::qga;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The longest line that is taken: the agent keeps 16 MiB of each of a command's two streams, and
/// writes them in base64.
const LINE_LIMIT: usize = 48 << 20;
/// What there may be of old replies before the agent answers, in bytes.
const STALE_LIMIT: usize = 2 * LINE_LIMIT;
/// How long an agent that is there may take to answer; one of an emulated guest takes a second.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a command is asked after: often at first, for most end soon.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why the agent did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot reach the port of the guest agent")]
    Connect {
        #[source]
        source: io::Error,
    },
    #[error("no guest agent answers")]
    Silent,
    #[error("the guest agent went away")]
    Gone {
        #[source]
        source: io::Error,
    },
    #[error("the guest agent said what makes no sense: {what}")]
    Nonsense { what: &'static str },
    #[error("the guest agent refused `{command}`: {why}")]
    Refused { command: &'static str, why: String },
    #[error("the command did not end in time; it goes on in the guest as process {pid}")]
    Deadline { pid: i64 },
}

/// How a command ended in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// As a shell has it: 128 and the signal's number for one that a signal ended.
    pub code: u8,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Whether the agent kept only the beginning of what it printed.
    pub is_cut: bool,
}

/// A conversation with an agent that is there.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    /// What came behind the last line.
    rest: Vec<u8>,
}

impl Agent {
    /// Finds out whether an agent answers at `socket`, and throws away what it had said to others.
    ///
    /// `id` is any number that was not used before; the reply to it is the first one that is meant
    /// for us.
    ///
    /// # Errors
    /// [`AgentError::Silent`] after ten seconds.
    pub fn meet(socket: &Path, id: i64) -> Result<Agent, AgentError> {
        let stream =
            UnixStream::connect(socket).map_err(|source| AgentError::Connect { source })?;
        let mut agent = Agent {
            stream,
            rest: Vec::new(),
        };
        let deadline = Instant::now() + ANSWER;
        // The first byte ends whatever a former client had begun to say.
        agent.send(&[0xff], deadline)?;
        agent.say(qga::guest_sync_delimited { id }, deadline)?;
        let mut passed_over = 0;
        loop {
            passed_over += agent.line(0xff, deadline)?.len();
            let line = agent.line(b'\n', deadline)?;
            passed_over += line.len();
            if let Ok(reply) = serde_json::from_slice::<Reply<i64>>(&line)
                && reply.value == Some(id)
            {
                return Ok(agent);
            }
            if passed_over > STALE_LIMIT {
                return Err(AgentError::Nonsense {
                    what: "too much that is no answer",
                });
            }
        }
    }

    /// Runs a command to its end and gives what it printed.
    ///
    /// # Errors
    /// [`AgentError::Deadline`] when it runs on; [`AgentError::Refused`] when there is no such
    /// program, or the agent does not run any.
    pub fn run(
        &mut self,
        program: &str,
        words: &[String],
        deadline: Instant,
    ) -> Result<Finished, AgentError> {
        let started: qga::GuestExec = self.ask(qga::guest_exec {
            arg: Some(words.to_vec()),
            capture_output: Some(qga::GuestExecCaptureOutput::flag(true)),
            env: None,
            input_data: None,
            path: program.to_owned(),
        })?;
        let pid = started.pid;
        let mut pause = FIRST_PAUSE;
        loop {
            let status: qga::GuestExecStatus = self.ask(qga::guest_exec_status { pid })?;
            if status.exited {
                return finished(status);
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(AgentError::Deadline { pid });
            }
            // The agent does not tell of a command's end by itself, so it has to be asked.
            self.stay(pause.min(deadline - now))?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn ask<C: qga::QgaCommand, T: DeserializeOwned>(
        &mut self,
        command: C,
    ) -> Result<T, AgentError> {
        let deadline = Instant::now() + ANSWER;
        self.say(command, deadline)?;
        let line = self.line(b'\n', deadline)?;
        let reply: Reply<T> = serde_json::from_slice(&line).map_err(|_| AgentError::Nonsense {
            what: "a reply of another shape than the command's",
        })?;
        match (reply.value, reply.error) {
            (Some(value), None) => Ok(value),
            (_, Some(error)) => Err(AgentError::Refused {
                command: C::NAME,
                why: error
                    .desc
                    .chars()
                    .filter(|it| !it.is_control())
                    .take(300)
                    .collect(),
            }),
            (None, None) => Err(AgentError::Nonsense {
                what: "a reply with neither a value nor an error",
            }),
        }
    }

    fn say<C: qga::QgaCommand>(&mut self, command: C, deadline: Instant) -> Result<(), AgentError> {
        let mut line =
            serde_json::to_vec(&qapi::Execute::new(command, None::<()>)).map_err(|error| {
                AgentError::Gone {
                    source: error.into(),
                }
            })?;
        line.push(b'\n');
        self.send(&line, deadline)
    }

    fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), AgentError> {
        self.stream
            .set_write_timeout(Some(left(deadline)?))
            .and_then(|()| self.stream.write_all(bytes))
            .map_err(broken)
    }

    /// The bytes up to the next `end`, without it.
    fn line(&mut self, end: u8, deadline: Instant) -> Result<Vec<u8>, AgentError> {
        let mut searched = 0;
        loop {
            if let Some(found) = self.rest[searched..].iter().position(|byte| *byte == end) {
                let rest = self.rest.split_off(searched + found + 1);
                let mut line = std::mem::replace(&mut self.rest, rest);
                line.pop();
                return Ok(line);
            }
            searched = self.rest.len();
            if searched > LINE_LIMIT {
                return Err(AgentError::Nonsense {
                    what: "a line without an end",
                });
            }
            self.stream
                .set_read_timeout(Some(left(deadline)?))
                .map_err(broken)?;
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk).map_err(broken)? {
                0 => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                read => self.rest.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Passes time, in which an agent has nothing to say; one that goes away is noticed.
    fn stay(&mut self, pause: Duration) -> Result<(), AgentError> {
        self.stream
            .set_read_timeout(Some(pause.max(Duration::from_millis(1))))
            .map_err(broken)?;
        match self.stream.read(&mut [0]) {
            Ok(0) => Err(broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Err(AgentError::Nonsense {
                what: "words that nobody asked for",
            }),
            Err(error) if is_late(&error) => Ok(()),
            Err(error) => Err(broken(error)),
        }
    }
}

fn finished(status: qga::GuestExecStatus) -> Result<Finished, AgentError> {
    let code = match (status.exitcode, status.signal) {
        (Some(code), _) => u8::try_from(code).ok(),
        (None, Some(signal)) => signal
            .checked_add(128)
            .and_then(|code| u8::try_from(code).ok()),
        (None, None) => None,
    };
    Ok(Finished {
        code: code.ok_or(AgentError::Nonsense {
            what: "an end without an exit code",
        })?,
        stdout: status.out_data.unwrap_or_default(),
        stderr: status.err_data.unwrap_or_default(),
        is_cut: status.out_truncated == Some(true) || status.err_truncated == Some(true),
    })
}

fn left(deadline: Instant) -> Result<Duration, AgentError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(AgentError::Silent);
    }
    Ok(left)
}

fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn broken(source: io::Error) -> AgentError {
    match is_late(&source) {
        true => AgentError::Silent,
        false => AgentError::Gone { source },
    }
}

#[derive(Deserialize)]
struct Reply<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// What becomes of `true` in a guest whose agent says these lines, one to each command.
    fn told(replies: &'static [&'static [u8]]) -> Result<Finished, AgentError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let peer = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            for reply in replies {
                let mut line = Vec::new();
                if lines.read_until(b'\n', &mut line).unwrap() == 0 {
                    return;
                }
                let _ = (&stream).write_all(reply);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        let ended = Agent::meet(&path, 7).and_then(|mut agent| agent.run("true", &[], deadline));
        peer.join().unwrap();
        ended
    }

    const SYNC: &[u8] = b"\xff{\"return\": 7}\n";
    const STARTED: &[u8] = b"{\"return\": {\"pid\": 5}}\n";

    #[test]
    fn a_command_gives_its_output_and_exit_code() {
        let ended = told(&[
            b"old words\n\xff{\"return\": 6}\n\xff{\"return\": 7}\n",
            STARTED,
            b"{\"return\": {\"exited\": false}}\n",
            b"{\"return\": {\"exited\": true, \"exitcode\": 7, \"out-data\": \"aGk=\"}}\n",
        ]);
        let want = Finished {
            code: 7,
            stdout: b"hi".to_vec(),
            stderr: Vec::new(),
            is_cut: false,
        };
        assert_eq!(ended.unwrap(), want);
    }

    #[test]
    fn hostile_replies_are_errors() {
        const REFUSED: &[u8] =
            b"{\"error\": {\"class\": \"x\", \"desc\": \"no such \\u001b[2J\\u0007program\"}}\n";
        let error = told(&[SYNC, REFUSED]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest agent refused `guest-exec`: no such [2Jprogram"
        );
        for last in [
            &b"{\"return\": {\"exited\": true}}\n"[..],
            b"{\"return\": {\"exited\": true, \"exitcode\": 7000}}\n",
            b"{\"return\": {\"exited\": true, \"signal\": 9223372036854775807}}\n",
            b"{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \"%%\"}}\n",
            b"{}\n",
            b"[]\n",
            b"\xfe\n",
        ] {
            let replies: &'static [&'static [u8]] = Box::leak(Box::new([SYNC, STARTED, last]));
            let error = told(replies).unwrap_err();
            assert!(
                matches!(error, AgentError::Nonsense { .. }),
                "{last:?}: {error}"
            );
        }
        let error = told(&[SYNC, b"{\"ret"]).unwrap_err();
        assert!(matches!(error, AgentError::Gone { .. }), "{error}");
    }
}
