//! The name server of a cluster: a query in, and out comes an answer or the word that others have to be asked.
//!
//! It owns the names of the machines and those that the spec adds, bare and in the cluster's domain (by convention `CLUSTER.internal`: ICANN keeps
//! `internal` out of the public tree for uses like this), and the reverse names of the cluster's subnet. What a name has
//! no record of is an empty answer, so that a client does not wait for it. What is
//! unknown below the cluster's domain or in its reverse zone does not exist and is never asked of others, so no such
//! name leaks. In a network without a way out no other name exists either. Queries are hostile input: this module must not panic, follow no compression pointer, and answer at
//! most once.

use std::net::{IpAddr, Ipv4Addr};

use crate::address::{Reservation, Subnet};
use crate::ether::u16_at;
use crate::settings::Settings;
use table::Table;

mod table;

/// Port of a name server.
pub const PORT: u16 = 53;

/// Length of the header of a DNS message, in bytes.
const HEADER: usize = 12;
/// Seconds that an answer may be kept: short, since a scaled cluster has new names.
const TTL: u32 = 30;
/// The longest message that kiln takes, as it says by EDNS. Queries are far shorter.
const EDNS_SIZE: u16 = 1232;

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;

const RESPONSE: u8 = 0x80;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;

/// What to do about a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Send this message back.
    Answer(Vec<u8>),
    /// The name is not ours: ask a resolver, with the query as it is but for its id.
    Forward,
    /// Not a query at all; an answer could start a loop.
    Drop,
}

/// How a query ended (RFC 1035, 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Answered, be it by nothing.
    NoError = 0,
    /// Not understood.
    FormErr = 1,
    /// Nobody could be asked, or nobody answered in time.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// Not a kind of query that is served.
    NotImp = 4,
}

/// The names of one cluster.
#[derive(Debug, Clone)]
pub struct Zone {
    subnet: Subnet,
    isolated: bool,
    table: Table,
}

impl Zone {
    /// The zone of `machines` in the domain of `settings`.
    pub fn new(settings: &Settings, subnet: Subnet, machines: &[Reservation]) -> Zone {
        Zone {
            subnet,
            isolated: settings.isolated,
            table: Table::new(settings, machines),
        }
    }

    /// Says what to do about `query`, the data of one UDP datagram.
    pub fn resolve(&self, query: &[u8]) -> Outcome {
        if query.len() < HEADER || query[2] & RESPONSE != 0 {
            return Outcome::Drop;
        }
        if query[2] & 0x78 != 0 {
            return Outcome::Answer(bare(query, Code::NotImp));
        }
        if query.len() > usize::from(EDNS_SIZE) {
            return Outcome::Answer(bare(query, Code::FormErr));
        }
        let Some(question) = Question::parse(query) else {
            return Outcome::Answer(bare(query, Code::FormErr));
        };
        if question.class != CLASS_IN {
            return Outcome::Forward;
        }
        match self.look_up(&question.name) {
            Found::Addresses(ips) => question.addresses(query, ips),
            Found::Name(name) if matches!(question.kind, TYPE_PTR | TYPE_ANY) => {
                question.end(query, Code::NoError, &[(TYPE_PTR, wire_name(name))])
            }
            Found::Name(_) | Found::Empty => question.end(query, Code::NoError, &[]),
            Found::Nothing => question.end(query, Code::NxDomain, &[]),
            Found::Foreign if self.isolated => question.end(query, Code::NxDomain, &[]),
            Found::Foreign => Outcome::Forward,
        }
    }

    fn look_up(&self, name: &str) -> Found<'_> {
        if let Some(ips) = self.table.addresses(name) {
            return Found::Addresses(ips);
        }
        match name.strip_suffix(self.table.domain()) {
            Some("") => return Found::Empty,
            Some(host) if host.ends_with('.') => return Found::Nothing,
            Some(_) | None => {}
        }
        let Some(ip) = reversed(name) else {
            return Found::Foreign;
        };
        match self.table.name(ip.into()) {
            Some(name) => Found::Name(name),
            None if self.subnet.contains(ip) => Found::Nothing,
            None => Found::Foreign,
        }
    }
}

/// The message that ends `query` without an answer: its header and question, and `code`. Whoever forwards uses it
/// with [`Code::ServFail`]. Empty where `query` is no message.
pub fn failure(query: &[u8], code: Code) -> Vec<u8> {
    match Question::parse(query) {
        Some(question) => match question.end(query, code, &[]) {
            Outcome::Answer(answer) => answer,
            Outcome::Forward | Outcome::Drop => Vec::new(),
        },
        None => bare(query, code),
    }
}

/// Whether `answer` is a response to `query` (which has the same id): the same question, names compared as DNS does.
pub fn is_answer_to(answer: &[u8], query: &[u8]) -> bool {
    let (Some(one), Some(other)) = (Question::parse(answer), Question::parse(query)) else {
        return false;
    };
    answer[..2] == query[..2]
        && answer[2] & RESPONSE != 0
        && (one.name, one.kind, one.class) == (other.name, other.kind, other.class)
}

/// Cuts `answer` to its header and question with the bit that asks for another try over TCP.
pub fn truncate(answer: &mut Vec<u8>) {
    let Some(end) = Question::parse(answer).map(|question| question.end) else {
        return answer.clear();
    };
    answer.truncate(end);
    answer[2] |= TRUNCATED;
    answer[6..HEADER].fill(0);
}

enum Found<'a> {
    Addresses(&'a [IpAddr]),
    Name(&'a str),
    /// The name exists and has no records.
    Empty,
    /// Ours to know, and there is none.
    Nothing,
    /// Not ours.
    Foreign,
}

/// The one question of a message.
#[derive(Debug)]
struct Question {
    /// Lower case, labels joined by dots.
    name: String,
    kind: u16,
    class: u16,
    /// Where the question ends in the message.
    end: usize,
}

impl Question {
    fn parse(message: &[u8]) -> Option<Question> {
        if u16_at(message, 4)? != 1 {
            return None;
        }
        let mut name = String::new();
        let mut at = HEADER;
        loop {
            let length = usize::from(*message.get(at)?);
            // Above 63 it is a compression pointer, which has nothing to point at in the first name.
            if length > 63 {
                return None;
            }
            let label = message.get(at + 1..at + 1 + length)?;
            at += 1 + length;
            if length == 0 {
                break;
            }
            if at - HEADER > 255 {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            // A dot inside a label would read as two labels; such a name is nobody's, and neither is other binary.
            name.extend(label.iter().map(|byte| match byte {
                b'.' | 0x80.. => '\u{fffd}',
                byte => char::from(byte.to_ascii_lowercase()),
            }));
        }
        Some(Question {
            name,
            kind: u16_at(message, at)?,
            class: u16_at(message, at + 2)?,
            end: at + 4,
        })
    }

    /// The response with those of `ips` that are asked for.
    fn addresses(&self, query: &[u8], ips: &[IpAddr]) -> Outcome {
        let record = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => (TYPE_A, ip.octets().to_vec()),
            IpAddr::V6(ip) => (TYPE_AAAA, ip.octets().to_vec()),
        };
        let asked = |(kind, _): &(u16, Vec<u8>)| [*kind, TYPE_ANY].contains(&self.kind);
        let records: Vec<_> = ips.iter().map(record).filter(asked).collect();
        self.end(query, Code::NoError, &records)
    }

    /// The response with these records, at most 255, and EDNS where the query spoke it: a client that misses it in the
    /// answer would ask all its later questions in 512 bytes.
    fn end(&self, query: &[u8], code: Code, records: &[(u16, Vec<u8>)]) -> Outcome {
        let (Some(asked), Some(flags)) = (query.get(HEADER..self.end), query.get(2)) else {
            return Outcome::Drop;
        };
        let edns = self.has_edns(query);
        let mut answer = query[..2].to_vec();
        let aa = if code == Code::ServFail {
            0
        } else {
            AUTHORITATIVE
        };
        answer.push(RESPONSE | aa | (flags & RECURSION_DESIRED));
        answer.push(RECURSION_AVAILABLE | code as u8);
        let count = u8::try_from(records.len()).unwrap_or(u8::MAX);
        answer.extend([0, 1, 0, count, 0, 0, 0, u8::from(edns)]);
        answer.extend(asked);
        for (kind, data) in records.iter().take(usize::from(count)) {
            // The name is a pointer to the question's.
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend(CLASS_IN.to_be_bytes());
            answer.extend(TTL.to_be_bytes());
            answer.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
            answer.extend(data);
        }
        if edns {
            answer.push(0);
            answer.extend(TYPE_OPT.to_be_bytes());
            answer.extend(EDNS_SIZE.to_be_bytes());
            answer.extend([0; 6]);
        }
        Outcome::Answer(answer)
    }

    /// Whether the first record behind the question is EDNS's, as clients write it.
    fn has_edns(&self, query: &[u8]) -> bool {
        u16_at(query, 6) == Some(0)
            && u16_at(query, 8) == Some(0)
            && u16_at(query, 10).is_some_and(|count| count > 0)
            && query.get(self.end) == Some(&0)
            && u16_at(query, self.end + 1) == Some(TYPE_OPT)
    }
}

/// A response of a header alone.
fn bare(query: &[u8], code: Code) -> Vec<u8> {
    let Some(head) = query.get(..3) else {
        return Vec::new();
    };
    let mut answer = head.to_vec();
    answer[2] = RESPONSE | (answer[2] & (0x78 | RECURSION_DESIRED));
    answer.push(code as u8);
    answer.resize(HEADER, 0);
    answer
}

/// The address in a name like `7.1.80.10.in-addr.arpa`.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let mut octets = name.strip_suffix(".in-addr.arpa")?.split('.');
    let mut next = || octets.next()?.parse::<u8>().ok();
    let (d, c, b, a) = (next()?, next()?, next()?, next()?);
    octets.next().is_none().then(|| Ipv4Addr::new(a, b, c, d))
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests;
