//! A TCP connection from the gateway to a machine, as a byte stream of tokio.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stack::Shared;

/// A connection to a machine, made by [`Fabric::connect`](super::Fabric::connect).
///
/// `shutdown` closes the half that is written to, and the other half can still be read to its end. A dropped stream
/// still sends what was written; if the machine sends on, it gets a reset. A reset from the machine, or its socket's
/// end, is the error `ConnectionReset`.
#[derive(Debug)]
pub struct FabricStream {
    stack: Shared,
    number: u64,
}

impl FabricStream {
    /// Begins a connection, to be waited for by [`FabricStream::established`].
    pub(super) fn open(stack: Shared, port: u16) -> io::Result<FabricStream> {
        let number = stack.lock().connect(port)?;
        Ok(FabricStream { stack, number })
    }

    pub(super) async fn established(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.stack.lock().poll_established(self.number, cx)).await
    }
}

impl AsyncRead for FabricStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stack.lock().poll_read(self.number, cx, buffer)
    }
}

impl AsyncWrite for FabricStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stack.lock().poll_write(self.number, cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stack.lock().shut_down(self.number);
        Poll::Ready(Ok(()))
    }
}

impl Drop for FabricStream {
    fn drop(&mut self) {
        self.stack.lock().release(self.number);
    }
}
