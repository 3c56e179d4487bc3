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
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use self::child::Step;

/// The namespaces of one cluster, held open.
#[derive(Debug)]
pub struct Namespace {
    /// The network namespace.
    pub net: OwnedFd,
    /// The user namespace that it belongs to; absent where root made it.
    pub user: Option<OwnedFd>,
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

    /// The namespaces that process `pid` has inherited; `None` when it has none.
    ///
    /// # Errors
    /// [`NamespaceError::TakeOver`] when the kernel does not let us look.
    pub fn of_process(pid: u32) -> Result<Option<Namespace>, NamespaceError> {
        let take_over = |source| NamespaceError::TakeOver { pid, source };
        let (mut net, mut user) = (None, None);
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).map_err(take_over)? {
            let path = entry.map_err(take_over)?.path();
            let target = fs::read_link(&path).unwrap_or_default();
            // How the kernel shows a namespace; no file of the disk has a relative name here.
            let found = match target.to_str() {
                Some(target) if target.starts_with("net:[") => &mut net,
                Some(target) if target.starts_with("user:[") => &mut user,
                _ => continue,
            };
            if found.is_none() {
                *found = Some(open(&path).map_err(take_over)?);
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
