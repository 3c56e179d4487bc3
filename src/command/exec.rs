//! `kiln exec`: a command in a machine by its guest agent, without network and ssh.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use crate::agent::{Agent, AgentError};
use crate::cli::args::{DEFAULT_TIMEOUT, ExecArgs};
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::state::layout::Socket;
use crate::state::lock::Lock;

pub(super) fn run(session: &Session<'_>, args: &ExecArgs) -> Result<ExitCode, Error> {
    let mut words = Vec::new();
    for word in &args.command {
        let word = word.to_str().ok_or_else(|| {
            Error::new(Exit::Usage, "the guest agent takes only words of UTF-8")
                .hint("`kiln ssh` takes all")
        })?;
        words.push(word.to_owned());
    }
    let Some((program, words)) = words.split_first() else {
        return Err(Error::new(Exit::Usage, "there is no command to run"));
    };
    let made = session.made()?;
    let name = args.machine.as_str();
    made.known(name)?;
    super::ssh::refuse_dead(&made, name)?;
    let files = made.files.machine(name);
    // QEMU serves one at a time, and would leave a second one without a word.
    let _lock = Lock::try_take(&files.agent_lock(), "kiln exec")?;
    let failed = |error: &AgentError| {
        let exit = match error {
            AgentError::Silent | AgentError::Deadline { .. } => Exit::Timeout,
            AgentError::Connect { .. }
            | AgentError::Gone { .. }
            | AgentError::Nonsense { .. }
            | AgentError::Refused { .. } => Exit::Failed,
        };
        let told = Error::because(exit, format!("cannot run `{program}` in `{name}`"), error);
        match error {
            AgentError::Deadline { .. } => told,
            AgentError::Connect { .. }
            | AgentError::Silent
            | AgentError::Gone { .. }
            | AgentError::Nonsense { .. }
            | AgentError::Refused { .. } => told.hint(format!(
                "`kiln ssh {name} -- …` needs no agent; many images bring `qemu-guest-agent` as a package, Fedora CoreOS has none"
            )),
        }
    };
    let deadline = session.begun + args.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let mut agent = Agent::meet(&files.socket(Socket::Agent), id()).map_err(|it| failed(&it))?;
    let finished = agent
        .run(program, words, deadline.max(Instant::now()))
        .map_err(|error| failed(&error))?;
    if finished.is_cut {
        session
            .report
            .note("the guest agent kept only the beginning of what it printed");
    }
    session.report.write(&finished.stdout)?;
    std::io::stderr()
        .write_all(&finished.stderr)
        .map_err(|error| Error::because(Exit::Failed, "cannot write to stderr", &error))?;
    Ok(ExitCode::from(finished.code))
}

/// A number that no former client of the agent used.
fn id() -> i64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    // Agents read it as a number of JSON: some as one of 53 bits.
    i64::try_from(now.as_micros() & 0x000f_ffff_ffff_ffff).unwrap_or(1)
}
