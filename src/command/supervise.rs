//! `kiln supervise`: what kiln starts as the supervisor of a cluster. Not for people.

use std::time::Duration;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cli::args::SuperviseArgs;
use crate::command::Session;
use crate::error::{Error, Exit};
use crate::host::namespace;
use crate::state::lock::Lock;
use crate::supervisor::dispatcher::{self, Config};
use crate::supervisor::process;

/// How long a killed supervisor may take to be gone.
const DYING: Duration = Duration::from_secs(2);

pub(super) fn run(session: &Session<'_>, args: &SuperviseArgs) -> Result<(), Error> {
    // Started as /proc/self/exe, it would be called `exe` in process lists.
    prctl::set_name(c"kiln")
        .map_err(|error| Error::because(Exit::Failed, "cannot set the process's name", &error))?;
    raise_open_files();
    let files = session.roots.cluster(args.name.as_str());
    // Two supervisors of one cluster would fight; the lock goes with the process.
    // One that was killed may still hold it for a moment after its sockets are gone.
    let _lock = Lock::take_within(&files.supervisor_lock(), "supervisor", DYING)?;
    let control = process::inherited_listener().map_err(|error| {
        Error::because(
            Exit::Usage,
            "the control socket was not handed over",
            &error,
        )
        .hint("kiln starts this by itself: use `kiln up`")
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::because(Exit::Failed, "cannot start the event loop", &error))?;
    let config = Config {
        files,
        boot_id: session.host.boot_id.clone(),
        resolvers: session.host.resolvers.clone(),
        maker: namespace::maker(session.host.uid, session.host.gid),
        control,
        uid: session.host.uid,
    };
    runtime
        .block_on(dispatcher::run(config))
        .map_err(|error| Error::from_source(Exit::Failed, &error))
}

/// Each connection to a published port takes a descriptor; the usual soft limit of 1024 is for
/// programs that use select(2). Where it cannot be raised, the usual one has to do.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
