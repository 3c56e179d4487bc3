//! The control socket, which is bound anew when its name is taken away.
//!
//! The kernel tells of it by inotify. A supervisor that nobody finds would be of no use, and the
//! machines that it starts need the folder as well.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;
use tokio::net::{UnixListener, UnixStream};

use crate::folder;
use crate::supervisor::{launch, regain};

/// Names that are taken away as fast as they are bound are given up after so many.
const TRIES: usize = 8;

/// The control socket.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    folder: PathBuf,
    path: PathBuf,
    /// Of the name that the listener was bound to.
    name: Option<(u64, u64)>,
    inotify: Inotify,
    /// The same inotify instance, for reading.
    changes: Receiver,
}

impl Door {
    /// Takes over the listener that was bound to `path`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the listener is none, or the kernel gives no inotify instance.
    pub(super) fn new(
        listener: std::os::unix::net::UnixListener,
        folder: PathBuf,
        path: PathBuf,
    ) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let same: OwnedFd = inotify.as_fd().try_clone_to_owned()?;
        let mut door = Door {
            listener: UnixListener::from_std(listener)?,
            // Nothing of it is special to pipes, and it knows no other type of descriptor without
            // unsafe code.
            changes: Receiver::from_owned_fd_unchecked(same)?,
            name: regain::identity(&path),
            inotify,
            folder,
            path,
        };
        if door.watch().is_err() || door.name.is_none() {
            door.rebind()?;
        }
        Ok(door)
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    /// Returns when something in the sockets' folder was taken away, or the folder itself.
    /// May be dropped and called again.
    pub(super) async fn disturbed(&self) {
        if self.changes.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
        let mut events = [0; 4096];
        while self
            .changes
            .try_read(&mut events)
            .is_ok_and(|read| read > 0)
        {}
    }

    /// Sees to it that the socket has its name.
    ///
    /// # Errors
    /// When it cannot be bound again: then the next command puts another supervisor in our place.
    pub(super) fn mend(&mut self) -> io::Result<()> {
        if self.has_its_name() {
            return Ok(());
        }
        self.rebind()
    }

    fn has_its_name(&self) -> bool {
        self.name.is_some() && self.name == regain::identity(&self.path)
    }

    fn rebind(&mut self) -> io::Result<()> {
        for _ in 0..TRIES {
            folder::make_private(&self.folder).map_err(io::Error::other)?;
            // First the watch: what happens to the name from now on is told.
            self.watch()?;
            let listener = launch::listen(&self.path).map_err(io::Error::other)?;
            listener.set_nonblocking(true)?;
            self.name = regain::identity(&self.path);
            self.listener = UnixListener::from_std(listener)?;
            if self.has_its_name() {
                return Ok(());
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Watches the folder that has the name now; the one before may be another.
    fn watch(&self) -> io::Result<()> {
        self.inotify.add_watch(
            &self.folder,
            AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR,
        )?;
        Ok(())
    }
}
