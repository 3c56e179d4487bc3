//! The shortest talk that shows that a QEMU is there: its greeting, and one answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::Outcome;

const DEADLINE: Duration = Duration::from_secs(60);

/// Returns when QEMU greeted and answered `qmp_capabilities`.
pub(crate) fn ready(socket: &Path) -> Outcome<()> {
    // The launcher listens already; the connection waits for QEMU in the kernel.
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut next = || lines.next().ok_or("QEMU closed the QMP connection");
    let greeting = next()??;
    if !greeting.starts_with("{\"QMP\"") {
        return Err(format!("that is no greeting: {greeting}").into());
    }
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    let answer = next()??;
    if !answer.starts_with("{\"return\"") {
        return Err(format!("QEMU refused the capabilities: {answer}").into());
    }
    Ok(())
}
