//! One child after the other, under signals that are passed on and never end kiln itself: it has to
//! clean up behind them.

use std::io;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// What a child gets to end by itself, once it has been asked to.
const GRACE: Duration = Duration::from_secs(5);

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Code(u8),
    /// A signal ended it, or came to kiln and was passed on.
    Signal(Signal),
}

/// What a Ctrl-C means for a child; it may have heard of it itself, from the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manners {
    EndAtOnce,
    /// It may have something to clean up.
    Wait,
}

/// SIGINT, SIGTERM and SIGHUP, which from now on end nothing by themselves.
#[derive(Debug)]
pub(super) struct Signals {
    runtime: Runtime,
    heard: std::cell::RefCell<mpsc::Receiver<Signal>>,
}

impl From<Ended> for ExitCode {
    /// As shells have it.
    fn from(ended: Ended) -> ExitCode {
        match ended {
            Ended::Code(code) => ExitCode::from(code),
            Ended::Signal(signal) => {
                ExitCode::from(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX))
            }
        }
    }
}

impl Signals {
    pub(super) fn listen() -> io::Result<Signals> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (tell, heard) = mpsc::channel(8);
        let _inside = runtime.enter();
        for (kind, name) in [
            (SignalKind::interrupt(), Signal::SIGINT),
            (SignalKind::terminate(), Signal::SIGTERM),
            (SignalKind::hangup(), Signal::SIGHUP),
        ] {
            let mut stream = signal(kind)?;
            let tell = tell.clone();
            runtime.spawn(async move {
                while stream.recv().await.is_some() && tell.send(name).await.is_ok() {}
            });
        }
        drop(_inside);
        Ok(Signals {
            runtime,
            heard: heard.into(),
        })
    }
}

/// Runs `command` to its end. A signal that comes is passed on; a second one kills it.
pub(super) fn run(mut command: Command, signals: &Signals, manners: Manners) -> io::Result<Ended> {
    let mut heard = signals.heard.borrow_mut();
    // One that came between two children.
    if let Ok(signal) = heard.try_recv() {
        return Ok(Ended::Signal(signal));
    }
    let mut child = command.spawn()?;
    let ended = signals
        .runtime
        .block_on(until_ended(&child, &mut heard, manners));
    // It has ended, or a thread for it could not be made.
    let status = child.wait()?;
    use std::os::unix::process::ExitStatusExt;
    Ok(match (ended, status.code(), status.signal()) {
        (Some(signal), _, _) => Ended::Signal(signal),
        (None, Some(code), _) => Ended::Code(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, None, signal) => Ended::Signal(
            signal
                .and_then(|signal| Signal::try_from(signal).ok())
                .unwrap_or(Signal::SIGKILL),
        ),
    })
}

/// Returns when the child has ended, with the signal that came before.
async fn until_ended(
    child: &Child,
    heard: &mut mpsc::Receiver<Signal>,
    manners: Manners,
) -> Option<Signal> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let (tell, mut ended) = oneshot::channel();
    // Not reaped, so that the number stays its own until the caller has seen it.
    std::thread::spawn(move || {
        let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), how) == Err(nix::errno::Errno::EINTR) {}
        tell.send(())
    });
    let send = |signal| {
        // One that has just ended needs no signal.
        let _ = kill(pid, signal);
    };
    let mut first: Option<Signal> = None;
    // What is sent next when it does not end.
    let mut next: Option<(Instant, Signal)> = None;
    loop {
        let at = next.map(|(at, _)| at);
        let overdue = async {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = &mut ended => return first,
            Some(signal) = heard.recv() => {
                let again = Instant::now() + GRACE;
                match (first, signal, manners) {
                    (Some(_), _, _) => send(Signal::SIGKILL),
                    (None, Signal::SIGINT, Manners::Wait) => next = Some((again, Signal::SIGTERM)),
                    (None, signal, _) => {
                        send(signal);
                        next = Some((again, Signal::SIGKILL));
                    }
                }
                first.get_or_insert(signal);
            }
            () = overdue => {
                if let Some((_, signal)) = next {
                    send(signal);
                    next = Some((Instant::now() + GRACE, Signal::SIGKILL));
                }
            }
        }
    }
}
