//! A talk over a unix socket, with a deadline.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::support::process;

/// For an answer of a guest that is up, on a busy host.
const ANSWER: Duration = Duration::from_secs(20);

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Talk(UnixStream);

impl Talk {
    #[track_caller]
    pub(crate) fn to(socket: &Path) -> Talk {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        Talk(stream)
    }

    #[track_caller]
    pub(crate) fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// All that is heard until this text is in it.
    #[track_caller]
    pub(crate) fn hear(&mut self, text: &str) -> String {
        let mut heard = Vec::new();
        let mut buffer = [0; 1024];
        while !process::contains(&heard, text) {
            match self.0.read(&mut buffer) {
                Ok(0) => panic!("it ended: {}", String::from_utf8_lossy(&heard)),
                Ok(read) => heard.extend(&buffer[..read]),
                Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&heard)),
            }
        }
        String::from_utf8_lossy(&heard).into_owned()
    }
}
