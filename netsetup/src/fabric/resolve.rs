//! Asking the host's resolvers for names that are not the cluster's.
//!
//! Each query has a socket of its own, so its source port is as random as the kernel makes it, and an id that the
//! guest did not choose. Queries in flight are bounded, for all machines and for each. Answers are not kept.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::dns::{self, Code};
use crate::switch::{DnsQuery, PortId};

/// Queries in flight, for all machines and for one.
const MOST: usize = 128;
const MOST_EACH: usize = 32;

/// How long a query may take in all, however many resolvers there are.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long one resolver may take while there is another one to ask.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest answer that is taken. Longer ones are cut by the kernel and no longer parse in the guest, but no
/// resolver sends them, since no query announces more.
const LONGEST: usize = 4096;

/// The resolvers, and what they are being asked.
#[derive(Debug)]
pub(crate) struct Resolver {
    addresses: Arc<[SocketAddr]>,
    asking: JoinSet<(DnsQuery, Vec<u8>)>,
    each: HashMap<PortId, usize>,
}

impl Resolver {
    pub(crate) fn new(addresses: Vec<SocketAddr>) -> Resolver {
        Resolver {
            addresses: addresses.into(),
            asking: JoinSet::new(),
            each: HashMap::new(),
        }
    }

    /// Asks these from now on.
    pub(crate) fn ask_others(&mut self, addresses: Vec<SocketAddr>) {
        self.addresses = addresses.into();
    }

    /// Asks for `query`, whose answer comes out of [`Resolver::poll_answer`]; or gives it back, when there is nobody
    /// to ask or too much is asked already.
    pub(crate) fn ask(&mut self, query: DnsQuery) -> Result<(), DnsQuery> {
        let each = self.each.entry(query.from).or_default();
        if self.addresses.is_empty() || *each >= MOST_EACH || self.asking.len() >= MOST {
            return Err(query);
        }
        *each += 1;
        let addresses = Arc::clone(&self.addresses);
        self.asking.spawn(async move {
            let answer = ask(&addresses, &query.message).await;
            (query, answer)
        });
        Ok(())
    }

    /// The next query that is answered, be it by a failure; `None` when there is none yet.
    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Option<(DnsQuery, Vec<u8>)> {
        while let Poll::Ready(Some(result)) = self.asking.poll_join_next(cx) {
            // An error is a panic, which has been said, and has to be no more than one answer less.
            if let Ok((query, answer)) = result {
                if let Some(each) = self.each.get_mut(&query.from) {
                    *each -= 1;
                }
                return Some((query, answer));
            }
        }
        None
    }

    /// As [`Resolver::poll_answer`], for who has nothing else to do until then.
    pub(crate) fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<(DnsQuery, Vec<u8>)> {
        self.poll_answer(cx).map_or(Poll::Pending, Poll::Ready)
    }
}

/// Asks `resolvers` in turn and returns the first answer, or the message that says that there was none. The answer
/// has the query's own id.
async fn ask(resolvers: &[SocketAddr], query: &[u8]) -> Vec<u8> {
    let end = Instant::now() + DEADLINE;
    for (index, resolver) in resolvers.iter().enumerate() {
        let until = match index + 1 < resolvers.len() {
            true => end.min(Instant::now() + PATIENCE),
            false => end,
        };
        match timeout_at(until, ask_one(*resolver, query)).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => tracing::debug!(%resolver, %error, "cannot ask resolver"),
            Err(_) => tracing::debug!(%resolver, "resolver is silent"),
        }
    }
    dns::failure(query, Code::ServFail)
}

async fn ask_one(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let local: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    // Connected, the socket takes datagrams from the resolver alone.
    socket.connect(resolver).await?;

    let [first, second, ..] = random().to_be_bytes();
    let mut asked = query.to_vec();
    asked[..2].copy_from_slice(&[first, second]);
    socket.send(&asked).await?;
    let mut answer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut answer).await?;
        if dns::is_answer_to(&answer[..length], &asked) {
            answer.truncate(length);
            answer[..2].copy_from_slice(&query[..2]);
            return Ok(answer);
        }
    }
}

/// A number that an outsider cannot guess: the standard library seeds its hash keys from the kernel, and its SipHash
/// is what keeps them secret.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0u8)
}
