//! What is known of one machine's addresses, kept current by what is seen: a pure function of sightings and time.
//!
//! ```text
//!  ACK ─────────────▶ leased, until its time is over ──┐
//!  a frame of its ──▶ in use                           ├── given up, refused, replaced, over, or silent ──▶ lost
//!                                                      ┘
//! ```
//! A machine that shows a new address may have left the others or not. It is asked for those by ARP, each time with a
//! deadline, and what it does not answer for is lost. So nobody polls one whose addresses stay.
//!
//! The machine is hostile input: it can have as many addresses as it likes and say so as often. What that costs is
//! bounded: the book holds sixteen, and takes on a few new ones a second.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use macaddr::MacAddr6;

use super::{Sighting, Source};

/// Addresses of one machine that are kept.
const MOST: usize = 16;
/// Between two questions for an address that is in doubt.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// Questions without an answer after which it is lost.
const QUESTIONS: u8 = 3;
/// Addresses that a machine may show by frames at once, and after that one in each [`GAIN_PAUSE`].
const GAINS: u32 = 8;
const GAIN_PAUSE: Duration = Duration::from_secs(1);
/// Between two renewals that are told.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// One address in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The address.
    pub ip: IpAddr,
    /// How it is known.
    pub source: Source,
    /// When its lease is over.
    pub until: Option<Instant>,
    /// Questions that were asked without an answer, and when the next is due.
    doubt: Option<(u8, Instant)>,
    /// When its last renewal was told.
    told: Instant,
}

impl Entry {
    /// One that was known before.
    pub fn known(ip: IpAddr, source: Source, until: Option<Instant>, now: Instant) -> Entry {
        Entry {
            ip,
            source,
            until,
            doubt: None,
            told: now,
        }
    }
}

/// A change of a machine's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is in use now, or known by a better source than before.
    Gained {
        /// The address.
        ip: IpAddr,
        /// How it is known.
        source: Source,
        /// For how long it is leased, where it is and where that ends.
        time: Option<Duration>,
        /// Who leased it.
        server: Option<Ipv4Addr>,
    },
    /// Its lease begins anew.
    Renewed {
        /// The address.
        ip: IpAddr,
        /// For how long.
        time: Option<Duration>,
    },
    /// It is in use no more.
    Lost {
        /// The address.
        ip: IpAddr,
        /// Why.
        why: Loss,
    },
}

/// Why an address is no more a machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The machine gave its lease back.
    Released,
    /// The machine would not have it, since another one uses it.
    Declined,
    /// The DHCP server would not let it have it any longer.
    Refused,
    /// Its lease was not renewed in time.
    Expired,
    /// The machine has another lease.
    Replaced,
    /// The machine has another address, and does not answer for this one.
    Silent,
    /// There were too many.
    Crowded,
}

impl Loss {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Loss::Released => "released",
            Loss::Declined => "declined",
            Loss::Refused => "refused by the server",
            Loss::Expired => "expired",
            Loss::Replaced => "replaced",
            Loss::Silent => "not answered for",
            Loss::Crowded => "one of too many",
        }
    }
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Tell of it.
    Tell(Change),
    /// Ask the machine whether it has this address ([`super::question`]).
    Ask(Ipv4Addr),
}

/// Which way a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The machine sent it.
    From,
    /// It goes to the machine.
    To,
}

/// The addresses of one machine.
#[derive(Debug, Clone)]
pub struct Book {
    mac: MacAddr6,
    entries: Vec<Entry>,
    gains: u32,
    /// Up to when gains are counted.
    counted: Instant,
}

impl Book {
    /// What is known of the machine with the NIC `mac`.
    pub fn new(mac: MacAddr6, known: Vec<Entry>, now: Instant) -> Book {
        let mut entries = known;
        entries.truncate(MOST);
        Book {
            mac,
            entries,
            gains: GAINS,
            counted: now,
        }
    }

    /// What is known.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// When [`Book::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let due = |entry: &Entry| {
            let doubt = entry.doubt.map(|(_, at)| at);
            entry.until.into_iter().chain(doubt).min()
        };
        self.entries.iter().filter_map(due).min()
    }

    /// Takes note of what a frame told.
    pub fn on(&mut self, now: Instant, way: Way, sighting: Sighting) -> Vec<Act> {
        match (way, sighting) {
            (
                Way::To,
                Sighting::Leased {
                    mac,
                    ip,
                    time,
                    server,
                },
            ) if mac == self.mac => self.leased(now, ip, time, server),
            (Way::To, Sighting::Refused { mac }) if mac == self.mac => {
                self.lose(Loss::Refused, |entry| entry.source == Source::Lease)
            }
            (Way::From, Sighting::GivenUp { mac, ip, declined }) if mac == self.mac => {
                let why = match declined {
                    true => Loss::Declined,
                    false => Loss::Released,
                };
                self.lose(why, |entry| entry.ip == IpAddr::V4(ip))
            }
            (Way::From, Sighting::Used { mac, ip }) if mac == self.mac => self.used(now, ip),
            // What a machine says in another's name, a server's for one, and what others say to it.
            (
                Way::From | Way::To,
                Sighting::Leased { .. }
                | Sighting::Refused { .. }
                | Sighting::GivenUp { .. }
                | Sighting::Used { .. },
            ) => Vec::new(),
        }
    }

    /// Takes note of a lease that the server has written down, for so long from now or for ever. What was seen of it says
    /// more, and it is no sign that the machine has left its other addresses.
    pub fn on_record(&mut self, now: Instant, ip: IpAddr, time: Option<Duration>) -> Vec<Act> {
        let until = time.and_then(|time| now.checked_add(time));
        let source = Source::Lease;
        let gained = Act::Tell(Change::Gained {
            ip,
            source,
            time,
            server: None,
        });
        match self.entries.iter_mut().find(|entry| entry.ip == ip) {
            Some(entry) if entry.source == Source::Lease => {
                // The file may be older than what was seen.
                if entry.until.is_some() && until.is_none_or(|until| entry.until < Some(until)) {
                    entry.until = until;
                }
                Vec::new()
            }
            Some(entry) => {
                (entry.source, entry.until) = (source, until);
                vec![gained]
            }
            None => {
                let mut acts = self.take_on(Entry::known(ip, source, until, now));
                acts.push(gained);
                acts
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = self.lose(Loss::Expired, |entry| {
            entry.until.is_some_and(|until| until <= now)
        });
        acts.extend(self.lose(Loss::Silent, |entry| {
            entry
                .doubt
                .is_some_and(|(asked, at)| asked >= QUESTIONS && at <= now)
        }));
        for entry in &mut self.entries {
            if let Some((asked, at)) = entry.doubt
                && at <= now
                && let IpAddr::V4(ip) = entry.ip
            {
                entry.doubt = Some((asked + 1, now + ASK_PAUSE));
                acts.push(Act::Ask(ip));
            }
        }
        acts
    }

    fn leased(
        &mut self,
        now: Instant,
        ip: Ipv4Addr,
        time: Option<Duration>,
        server: Option<Ipv4Addr>,
    ) -> Vec<Act> {
        let address = IpAddr::V4(ip);
        let mut acts = self.lose(Loss::Replaced, |entry| {
            entry.source == Source::Lease && entry.ip != address
        });
        let until = time.and_then(|time| now.checked_add(time));
        let gained = Act::Tell(Change::Gained {
            ip: address,
            source: Source::Lease,
            time,
            server,
        });
        let before = self.entries.iter_mut().find(|entry| entry.ip == address);
        let is_new = before.is_none();
        match before {
            Some(entry) => {
                let was = std::mem::replace(&mut entry.source, Source::Lease);
                (entry.until, entry.doubt) = (until, None);
                let renewed = Act::Tell(Change::Renewed { ip: address, time });
                match was {
                    Source::Frames => acts.push(gained),
                    Source::Lease if now.duration_since(entry.told) >= RENEWAL_PAUSE => {
                        entry.told = now;
                        acts.push(renewed);
                    }
                    Source::Lease => {}
                }
            }
            None => {
                acts.extend(self.take_on(Entry::known(address, Source::Lease, until, now)));
                acts.push(gained);
            }
        }
        if is_new {
            self.doubt_others(now, address);
        }
        acts
    }

    fn used(&mut self, now: Instant, ip: IpAddr) -> Vec<Act> {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.ip == ip) {
            entry.doubt = None;
            return Vec::new();
        }
        if !self.may_gain(now) {
            return Vec::new();
        }
        let source = Source::Frames;
        let mut acts = self.take_on(Entry::known(ip, source, None, now));
        acts.push(Act::Tell(Change::Gained {
            ip,
            source,
            time: None,
            server: None,
        }));
        self.doubt_others(now, ip);
        acts
    }

    /// A machine that has a new address may have left the others.
    fn doubt_others(&mut self, now: Instant, ip: IpAddr) {
        for entry in &mut self.entries {
            if entry.ip != ip && entry.ip.is_ipv4() && ip.is_ipv4() {
                entry.doubt.get_or_insert((0, now));
            }
        }
    }

    fn may_gain(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.counted);
        let gained = u32::try_from(elapsed.as_secs() / GAIN_PAUSE.as_secs()).unwrap_or(GAINS);
        if gained > 0 {
            self.gains = self.gains.saturating_add(gained).min(GAINS);
            self.counted = now;
        }
        let may = self.gains > 0;
        self.gains = self.gains.saturating_sub(1);
        may
    }

    /// The oldest one goes where there is no room.
    fn take_on(&mut self, entry: Entry) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.entries.len() >= MOST {
            let ip = self.entries.remove(0).ip;
            let why = Loss::Crowded;
            acts.push(Act::Tell(Change::Lost { ip, why }));
        }
        self.entries.push(entry);
        acts
    }

    fn lose(&mut self, why: Loss, which: impl Fn(&Entry) -> bool) -> Vec<Act> {
        self.entries
            .extract_if(.., |entry| which(entry))
            .map(|entry| Act::Tell(Change::Lost { ip: entry.ip, why }))
            .collect()
    }
}

#[cfg(test)]
mod tests;
