//! Lines out of a stream of bytes, in little memory.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{MAX_LINE, QmpError};

/// How much is asked of the socket at a time, and kept when idle, in bytes.
const CHUNK: usize = 2048;

/// Cuts a stream into lines. Holds one chunk, or one line as long as it grows.
pub(super) struct LineReader<R> {
    reader: R,
    buffer: Vec<u8>,
    /// So much of the buffer is known to hold no line feed.
    searched: usize,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub(super) fn new(reader: R) -> LineReader<R> {
        LineReader {
            reader,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    /// The next line that is not blank, without its end. Cancel-safe.
    pub(super) async fn next_line(&mut self) -> Result<Vec<u8>, QmpError> {
        loop {
            while let Some(line) = self.take_line() {
                if !line.is_empty() {
                    return Ok(line);
                }
            }
            if self.buffer.len() > MAX_LINE {
                return Err(QmpError::LineTooLong);
            }
            if self.buffer.capacity() - self.buffer.len() < CHUNK / 2 {
                self.buffer.reserve(CHUNK);
            }
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) if self.buffer.is_empty() => return Err(QmpError::Closed),
                Ok(0) => {
                    return Err(QmpError::HalfLine {
                        line: excerpt(&self.buffer),
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed);
                }
                Err(error) => {
                    return Err(QmpError::Read {
                        source: Arc::new(error),
                    });
                }
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let Some(length) = self.buffer[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n')
        else {
            self.searched = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.searched + length + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        self.searched = 0;
        line.truncate(line.trim_ascii_end().len());
        Some(line)
    }
}

/// The line as text.
pub(super) fn text(line: &[u8]) -> Result<&str, QmpError> {
    str::from_utf8(line).map_err(|_| QmpError::NotUtf8 {
        line: excerpt(line),
    })
}

/// The beginning of what the peer said, fit for a terminal and an error text.
pub(super) fn excerpt(line: &[u8]) -> String {
    const LENGTH: usize = 300;
    let start = &line[..line.len().min(LENGTH)];
    let mut shown: String = String::from_utf8_lossy(start)
        .chars()
        .map(|character| {
            if character.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            }
        })
        .collect();
    if start.len() < line.len() {
        shown.push('…');
    }
    shown
}
