//! One machine's lease watcher: the frames of its tap, read into its [`Book`].
//!
//! It hears every frame that tells of an address, whoever serves them, and needs nothing in the machine. It changes
//! nothing: the only frames that it sends are questions to the machine itself.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use macaddr::MacAddr6;
use tokio::sync::mpsc;

use crate::fabric::FabricEvent;
use crate::lease;
use crate::lease::book::{Act, Book};
use crate::sniff::Sniffer;

/// After an error of the socket, until it is read again. It errs once each time that the link is set down.
const PAUSE: Duration = Duration::from_millis(100);
/// With nothing due it still turns now and then.
const IDLE: Duration = Duration::from_secs(3600);

/// What is watched, and for whom.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) machine: String,
    pub(super) mac: MacAddr6,
    /// In whose name the machine is asked.
    pub(super) asker: MacAddr6,
    /// The tap's number.
    pub(super) index: u32,
    pub(super) sniffer: Sniffer,
    pub(super) book: Book,
    /// Leases that are written down elsewhere.
    pub(super) read: mpsc::UnboundedReceiver<(IpAddr, Option<Duration>)>,
    pub(super) events: mpsc::UnboundedSender<FabricEvent>,
}

impl Watcher {
    /// Runs until it is aborted, or nobody listens.
    pub(super) async fn run(mut self) {
        let mut resume = Instant::now();
        loop {
            let due = self
                .book
                .deadline()
                .unwrap_or_else(|| Instant::now() + IDLE);
            let now = Instant::now();
            let acts = tokio::select! {
                () = tokio::time::sleep_until(resume.into()), if resume > now => continue,
                () = tokio::time::sleep_until(due.into()) => self.book.tick(Instant::now()),
                Some((ip, time)) = self.read.recv() => {
                    self.book.on_record(Instant::now(), ip, time)
                }
                heard = self.sniffer.next_of_tap(), if resume <= now => match heard {
                    Ok((way, frame)) => match lease::sight(frame) {
                        Some(sighting) => self.book.on(Instant::now(), way, sighting),
                        None => continue,
                    },
                    Err(error) => {
                        tracing::debug!(machine = self.machine, %error, "the tap is not heard");
                        resume = Instant::now() + PAUSE;
                        continue;
                    }
                },
            };
            if self.events.is_closed() {
                return;
            }
            acts.into_iter().for_each(|act| self.perform(act));
        }
    }

    fn perform(&self, act: Act) {
        match act {
            Act::Tell(change) => {
                let machine = self.machine.clone();
                // Who does not listen does not want to know.
                let _ = self.events.send(FabricEvent::Address { machine, change });
            }
            Act::Ask(ip) => {
                let question = lease::question(self.asker, self.mac, ip);
                if let Err(error) = self.sniffer.send(self.index, &question) {
                    tracing::debug!(machine = self.machine, %error, "it cannot be asked");
                }
            }
        }
    }
}
