//! A cluster's own network namespace: made, found again, and worked from outside.
//!
//! Nobody lives in it. A short-lived child makes it, or steps into it, opens what is wanted and passes the descriptors
//! out: a socket belongs to the namespace that it was made in, whoever uses it. So this process stays where it is, with
//! all its threads. The namespace lives as long as a descriptor of it, or a tap in it, is open somewhere.
//!
//! Root makes a network namespace. Everybody else makes a user namespace around it, whose owner they are: that is the
//! whole of the right over it, and it reaches nothing outside.

mod child;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open as open_file};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

pub use self::child::Step;

/// The namespaces of one cluster, held open.
#[derive(Debug)]
pub struct Namespace {
    /// The network namespace.
    pub net: OwnedFd,
    /// The user namespace that it belongs to; absent where root made it.
    pub user: Option<OwnedFd>,
}

/// Which network namespace one is: as long as it lives, no other has these numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetId {
    /// The device of its file.
    pub device: u64,
    /// The file's number there.
    pub inode: u64,
}

/// What can be opened inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inside {
    /// A `NETLINK_ROUTE` socket.
    Route,
    /// A `NETLINK_NETFILTER` socket.
    Netfilter,
    /// `/dev/net/tun`, of which one tap can be made.
    Tun,
    /// A UDP socket, not bound.
    Udp,
    /// A TCP socket, not connected.
    Tcp,
    /// A packet socket that hears nothing yet.
    Packet,
}

/// Who makes a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// A process with the right to.
    Root,
    /// Anyone else, by a user namespace.
    User {
        /// Who is root inside.
        uid: u32,
        /// Which group that is.
        gid: u32,
    },
}

/// Why there is no namespace, or nothing could be opened in it.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// No child could be made for it.
    #[error("cannot start a process for the network namespace")]
    Start(#[source] io::Error),
    /// A step of the child's failed.
    #[error("cannot {step}")]
    Step {
        /// Which one.
        step: Step,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The child ended without a word.
    #[error("the process that was to set up the network namespace died")]
    Died,
    /// A process holds a namespace that cannot be had from it.
    #[error("cannot take over the network namespace of process {pid}")]
    TakeOver {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl NamespaceError {
    /// The step that failed, if one did.
    pub fn step(&self) -> Option<Step> {
        match self {
            NamespaceError::Step { step, .. } => Some(*step),
            NamespaceError::Start(_) | NamespaceError::Died | NamespaceError::TakeOver { .. } => {
                None
            }
        }
    }
}

impl Namespace {
    /// Makes one, in which IPv4 packets are routed on.
    ///
    /// # Errors
    /// [`NamespaceError::Step`] where this host does not allow it.
    pub fn create(maker: Maker) -> Result<Namespace, NamespaceError> {
        let mut fds = child::run(child::Way::Make(maker), &[])?.into_iter();
        let net = fds.next().ok_or(NamespaceError::Died)?;
        Ok(Namespace {
            net,
            user: fds.next(),
        })
    }

    /// Which one its network namespace is.
    ///
    /// # Errors
    /// As of `fstat`.
    pub fn id(&self) -> io::Result<NetId> {
        id_of(&self.net)
    }

    /// The namespaces that `maker` made and process `pid` has inherited; `None` when it does not have network namespace
    /// `known`.
    ///
    /// The process is not trusted, for a guest may have broken out into it: whatever else it holds is not entered, this
    /// process's own network namespace least of all, and where root made the namespace, no user namespace either.
    ///
    /// # Errors
    /// [`NamespaceError::TakeOver`] when the kernel does not let us look.
    pub fn of_process(
        pid: u32,
        known: NetId,
        maker: Maker,
    ) -> Result<Option<Namespace>, NamespaceError> {
        let take_over = |source| NamespaceError::TakeOver { pid, source };
        let own = here().and_then(|own| id_of(&own)).map_err(take_over)?;
        let (mut net, mut user) = (None, None);
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).map_err(take_over)? {
            let path = entry.map_err(take_over)?.path();
            match inherited(&path).map_err(take_over)? {
                Some((Kind::Net, fd)) if net.is_none() => {
                    let id = id_of(&fd).map_err(take_over)?;
                    net = (id == known && id != own).then_some(fd);
                }
                Some((Kind::User, fd)) if user.is_none() && maker != Maker::Root => user = Some(fd),
                Some(_) | None => {}
            }
        }
        Ok(net.map(|net| Namespace { net, user }))
    }

    /// Opens these inside, and gives them in order.
    ///
    /// # Errors
    /// [`NamespaceError`]; nothing is open then.
    pub fn open(&self, wanted: &[Inside]) -> Result<Vec<OwnedFd>, NamespaceError> {
        let fds = child::run(child::Way::Enter(self), wanted)?;
        if fds.len() == wanted.len() {
            Ok(fds)
        } else {
            Err(NamespaceError::Died)
        }
    }

    /// Opens one thing inside.
    ///
    /// # Errors
    /// As [`Namespace::open`].
    pub fn open_one(&self, wanted: Inside) -> Result<OwnedFd, NamespaceError> {
        self.open(&[wanted])?.pop().ok_or(NamespaceError::Died)
    }

    /// Further descriptors of the same namespaces, to be handed on.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn handles(&self) -> io::Result<Vec<OwnedFd>> {
        let user = self.user.as_ref();
        let fds = std::iter::once(&self.net).chain(user);
        fds.map(OwnedFd::try_clone).collect()
    }
}

/// The kinds of namespaces that a cluster has.
enum Kind {
    Net,
    User,
}

fn kind_of(link: &Path) -> Option<Kind> {
    let target = fs::read_link(link).ok()?;
    // How the kernel shows a namespace.
    match target.to_str()? {
        target if target.starts_with("net:[") => Some(Kind::Net),
        target if target.starts_with("user:[") => Some(Kind::User),
        _ => None,
    }
}

/// The namespace behind a link of `/proc/PID/fd`, if one is.
fn inherited(link: &Path) -> io::Result<Option<(Kind, OwnedFd)>> {
    if kind_of(link).is_none() {
        return Ok(None);
    }
    // The process may have put something else there meanwhile, whose opening may block or do something: so it is not
    // opened before it is known what it is.
    let held = match open_file(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(held) => held,
        Err(nix::errno::Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if fstatfs(&held)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    match kind_of(&path) {
        Some(kind) => Ok(Some((kind, open(&path)?))),
        None => Ok(None),
    }
}

fn id_of(fd: &OwnedFd) -> io::Result<NetId> {
    let stat = fstat(fd)?;
    Ok(NetId {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

fn open(path: &PathBuf) -> io::Result<OwnedFd> {
    fs::File::open(path).map(OwnedFd::from)
}

/// The network namespace of this thread, to move links to.
///
/// # Errors
/// There is no /proc.
pub fn here() -> io::Result<OwnedFd> {
    open(&PathBuf::from("/proc/thread-self/ns/net"))
}
