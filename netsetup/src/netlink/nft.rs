//! Tables of packet rules: nfnetlink's nftables part, in the few expressions that kiln's rules are made of.
//!
//! A table is put in place instead of whatever was there under its name, in one transaction: either all of it holds or
//! what held before. (Only that of more than some fifty machines takes several.) The numbers are those of the kernel's `linux/netfilter/nf_tables.h`.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockProtocol, recv};

use super::message::{Attributes, Message, Messages};
use super::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR, Netlink, NetlinkError, talk,
    verdict,
};
use crate::name::IfName;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const GETTABLE: u16 = SUBSYSTEM << 8 | 1;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const NLM_F_APPEND: u16 = 0x800;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// Messages of one transaction, which has to fit a socket's buffer (200 KiB) with some 300 bytes each.
const MOST: usize = 500;
/// The one register of sixteen bytes that all rules use, and that of verdicts.
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Those that are routed, or for this host: IPv4.
    Ip,
    /// Frames on bridges.
    Bridge,
}

/// A table with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it sees.
    pub family: Family,
    /// Its name in its namespace.
    pub name: String,
    /// Its chains; one is before those that go to it.
    pub chains: Vec<Chain>,
}

/// A list of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name in its table.
    pub name: String,
    /// Where packets enter it; absent for one that others go to.
    pub hook: Option<Hook>,
    /// What is asked of a packet, one after the other.
    pub rules: Vec<Vec<Expression>>,
}

/// Where packets enter a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Frames as they come in from a port; what no rule lets through is dropped.
    Arriving,
    /// The same on a bridge that is not kiln's alone: what no rule drops is let through.
    Watching,
    /// Frames and packets on their way from one link to another.
    Passing,
    /// Packets about to leave, where their sender's address can be changed.
    Leaving,
}

/// Part of a rule: one that does not hold ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// It came in by this link.
    From(IfName),
    /// It goes out by this link.
    To(IfName),
    /// It goes out by a link whose name begins so.
    ToAny(&'static str),
    /// It goes out by another link than this one.
    NotTo(IfName),
    /// It goes out by a link whose name does not begin so.
    NotToAny(&'static str),
    /// It belongs to no connection that has been let through, nor is it word of an error in one.
    Begins,
    /// The IP protocol of it.
    Protocol(u8),
    /// At most 16 bytes at an offset of a header are these.
    Is(Header, u32, Vec<u8>),
    /// They are others.
    IsNot(Header, u32, Vec<u8>),
    /// Of the bytes, those bits that are set in the first list are as in the second.
    Bits(Header, u32, Vec<u8>, Vec<u8>),
    /// They are not.
    NotBits(Header, u32, Vec<u8>, Vec<u8>),
    /// There were more than `rate` in a second, and more than `burst` at once.
    Above {
        /// In a second.
        rate: u64,
        /// At once, after a silence.
        burst: u32,
    },
    /// Let it through.
    Accept,
    /// Drop it.
    Drop,
    /// Drop it and tell its sender that this is forbidden.
    Prohibit,
    /// Go on in this chain, and do not come back.
    GoTo(String),
    /// Make the outgoing link's address its sender.
    Masquerade,
}

/// A header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Ethernet's.
    Link,
    /// ARP's or IP's.
    Network,
    /// UDP's or TCP's; of a fragment that has none, nothing holds.
    Transport,
}

/// The rules of one network namespace.
#[derive(Debug)]
pub struct Rules(Netlink);

impl Rules {
    /// By a socket of `NETLINK_NETFILTER` that was made in the namespace.
    ///
    /// # Errors
    /// It is no socket.
    pub fn new(socket: OwnedFd) -> Result<Rules, NetlinkError> {
        Netlink::new(socket).map(Rules)
    }

    /// The namespace of this process.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn here() -> Result<Rules, NetlinkError> {
        Netlink::open(SockProtocol::NetlinkNetFilter).map(Rules)
    }

    /// Puts the tables in place of those of their names: all at once, or, where they are too large for that, their chains
    /// and then their rules, a few hundred at a time and in order.
    ///
    /// # Errors
    /// [`NetlinkError`]; what held before holds on, if it was the first step that failed.
    pub fn replace(&mut self, tables: &[Table]) -> Result<(), NetlinkError> {
        let mut messages = Vec::new();
        for table in tables {
            // Only what is there can be deleted.
            messages.extend([
                new_table(table),
                delete_table(table.family, &table.name),
                new_table(table),
            ]);
            messages.extend(table.chains.iter().map(|chain| new_chain(table, chain)));
        }
        for table in tables {
            for chain in &table.chains {
                messages.extend(chain.rules.iter().map(|rule| new_rule(table, chain, rule)));
            }
        }
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let act = || format!("put packet rules `{}` in place", names.join("`, `"));
        for part in messages.chunks(MOST) {
            self.transact(act, part.to_vec())?;
        }
        Ok(())
    }

    /// The names of all tables, of whatever family.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn tables(&mut self) -> Result<Vec<String>, NetlinkError> {
        let mut names = Vec::new();
        let message = Message::new(GETTABLE, NLM_F_REQUEST | NLM_F_DUMP).fixed(&[0; 4]);
        self.0.dump(
            || "list packet rules".to_owned(),
            message,
            |answer| {
                let attributes = Attributes(answer.payload.get(4..).unwrap_or_default());
                if let Some(name) = attributes.find(TABLE_NAME) {
                    names.push(
                        String::from_utf8_lossy(name)
                            .trim_end_matches('\0')
                            .to_owned(),
                    );
                }
            },
        )?;
        Ok(names)
    }

    /// Removes a table, if it is there.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn remove(&mut self, family: Family, name: &str) -> Result<(), NetlinkError> {
        let act = || format!("remove packet rules `{name}`");
        match self.transact(act, vec![delete_table(family, name)]) {
            Err(error) if error.is(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn transact(
        &mut self,
        act: impl FnOnce() -> String,
        mut messages: Vec<Message>,
    ) -> Result<(), NetlinkError> {
        // The first is answered in any case, the others only where they are wrong: so many answers would find no room.
        if let Some(first) = messages.first_mut() {
            first.flag(NLM_F_ACK);
        }
        messages.insert(0, batch(BATCH_BEGIN));
        messages.push(batch(BATCH_END));
        self.0.send(&messages)?;
        // All answers are there, in order, before `send` is back. The first error is the telling one.
        let mut answered = 0;
        let socket = self.0.fd.as_raw_fd();
        loop {
            let length = match recv(socket, &mut self.0.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) if answered > 0 => return Ok(()),
                Err(errno) => return Err(talk(errno)),
            };
            for answer in Messages(&self.0.buffer[..length]) {
                if answer.kind == NLMSG_ERROR {
                    answered += 1;
                    if super::u32_at(answer.payload, 0) != Some(0) {
                        let refused = verdict(act, &answer);
                        self.drain();
                        return refused;
                    }
                }
            }
        }
    }

    /// Reads what else was answered, so that no later transaction takes it for its own.
    fn drain(&mut self) {
        let socket = self.0.fd.as_raw_fd();
        while recv(socket, &mut self.0.buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
}

fn batch(kind: u16) -> Message {
    Message::new(kind, NLM_F_REQUEST).fixed(&[0, 0, 0, SUBSYSTEM.to_be_bytes()[1]])
}

fn message(kind: u16, flags: u16, family: Family) -> Message {
    let family = match family {
        Family::Ip => 2,
        Family::Bridge => 7,
    };
    Message::new(kind, NLM_F_REQUEST | flags).fixed(&[family, 0, 0, 0])
}

fn new_table(table: &Table) -> Message {
    message(NEWTABLE, NLM_F_CREATE, table.family).with(TABLE_NAME, &nul(&table.name))
}

fn delete_table(family: Family, name: &str) -> Message {
    message(DELTABLE, 0, family).with(TABLE_NAME, &nul(name))
}

fn new_chain(table: &Table, chain: &Chain) -> Message {
    let message = message(NEWCHAIN, NLM_F_CREATE, table.family)
        .with(CHAIN_TABLE, &nul(&table.name))
        .with(CHAIN_NAME, &nul(&chain.name));
    let Some(hook) = chain.hook else {
        return message;
    };
    // Hook number, priority, policy, type. On a bridge, -300 is before all that others may do: where the host has
    // `br_netfilter`, frames on their way come to no rules of the bridge's at 0. For packets 0 is the filter's place and
    // 100 that of source NAT.
    let (number, priority, policy, kind): (u32, i32, u32, &str) = match (hook, table.family) {
        (Hook::Arriving, _) => (0, -300, 0, "filter"),
        (Hook::Watching, _) => (0, -300, 1, "filter"),
        (Hook::Passing, Family::Bridge) => (2, -300, 1, "filter"),
        (Hook::Passing, Family::Ip) => (2, 0, 1, "filter"),
        (Hook::Leaving, _) => (4, 100, 1, "nat"),
    };
    message
        .nest(CHAIN_HOOK, |hook| {
            hook.with(HOOK_NUMBER, &number.to_be_bytes())
                .with(HOOK_PRIORITY, &priority.to_be_bytes())
        })
        .with(CHAIN_POLICY, &policy.to_be_bytes())
        .with(CHAIN_TYPE, &nul(kind))
}

fn new_rule(table: &Table, chain: &Chain, rule: &[Expression]) -> Message {
    message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, table.family)
        .with(RULE_TABLE, &nul(&table.name))
        .with(RULE_CHAIN, &nul(&chain.name))
        .nest(RULE_EXPRESSIONS, |list| rule.iter().fold(list, expression))
}

fn nul(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Appends one of kiln's expressions, in those of the kernel.
fn expression(list: Message, expression: &Expression) -> Message {
    const IIFNAME: u32 = 6;
    const OIFNAME: u32 = 7;
    const L4PROTO: u32 = 16;
    const CT_STATE: u32 = 0;
    /// Of the bits of the state, those of "established" and "related".
    const KNOWN: u32 = 0b110;
    const EQUAL: u32 = 0;
    const UNEQUAL: u32 = 1;
    const DROP: i32 = 0;
    const ACCEPT: i32 = 1;
    const GOTO: i32 = -4;
    match expression {
        Expression::From(link) => compare(meta(list, IIFNAME), EQUAL, &link.padded()),
        Expression::To(link) => compare(meta(list, OIFNAME), EQUAL, &link.padded()),
        Expression::ToAny(start) => compare(meta(list, OIFNAME), EQUAL, start.as_bytes()),
        Expression::NotTo(link) => compare(meta(list, OIFNAME), UNEQUAL, &link.padded()),
        Expression::NotToAny(start) => compare(meta(list, OIFNAME), UNEQUAL, start.as_bytes()),
        Expression::Begins => {
            let state = one(list, "ct", |data| {
                data.with(1, &REGISTER.to_be_bytes())
                    .with(2, &CT_STATE.to_be_bytes())
            });
            // The register has the state in the host's own order.
            compare(bitwise(state, &KNOWN.to_ne_bytes()), EQUAL, &[0; 4])
        }
        Expression::Protocol(number) => compare(meta(list, L4PROTO), EQUAL, &[*number]),
        Expression::Is(header, offset, bytes) => {
            compare(payload(list, *header, *offset, bytes), EQUAL, bytes)
        }
        Expression::IsNot(header, offset, bytes) => {
            compare(payload(list, *header, *offset, bytes), UNEQUAL, bytes)
        }
        Expression::Bits(header, offset, mask, bytes) => {
            let masked = bitwise(payload(list, *header, *offset, mask), mask);
            compare(masked, EQUAL, bytes)
        }
        Expression::NotBits(header, offset, mask, bytes) => {
            let masked = bitwise(payload(list, *header, *offset, mask), mask);
            compare(masked, UNEQUAL, bytes)
        }
        Expression::Above { rate, burst } => one(list, "limit", |data| {
            let second = 1u64;
            data.with(1, &rate.to_be_bytes())
                .with(2, &second.to_be_bytes())
                .with(3, &burst.to_be_bytes())
                // Packets and not bytes; holds above the limit and not below.
                .with(4, &0u32.to_be_bytes())
                .with(5, &1u32.to_be_bytes())
        }),
        Expression::Accept => immediate(list, ACCEPT, None),
        Expression::Drop => immediate(list, DROP, None),
        Expression::GoTo(chain) => immediate(list, GOTO, Some(chain)),
        // "Unreachable" of ICMP, with the code "communication administratively prohibited".
        Expression::Prohibit => one(list, "reject", |data| {
            data.with(1, &0u32.to_be_bytes()).with(2, &[13])
        }),
        Expression::Masquerade => one(list, "masq", |data| data),
    }
}

fn one(list: Message, name: &str, fill: impl FnOnce(Message) -> Message) -> Message {
    list.nest(LIST_ELEM, |element| {
        element.with(EXPR_NAME, &nul(name)).nest(EXPR_DATA, fill)
    })
}

fn meta(list: Message, key: u32) -> Message {
    one(list, "meta", |data| {
        data.with(1, &REGISTER.to_be_bytes())
            .with(2, &key.to_be_bytes())
    })
}

fn payload(list: Message, header: Header, offset: u32, bytes: &[u8]) -> Message {
    let base: u32 = match header {
        Header::Link => 0,
        Header::Network => 1,
        Header::Transport => 2,
    };
    one(list, "payload", |data| {
        data.with(1, &REGISTER.to_be_bytes())
            .with(2, &base.to_be_bytes())
            .with(3, &offset.to_be_bytes())
            .with(4, &length(bytes))
    })
}

fn bitwise(list: Message, mask: &[u8]) -> Message {
    one(list, "bitwise", |data| {
        data.with(1, &REGISTER.to_be_bytes())
            .with(2, &REGISTER.to_be_bytes())
            .with(3, &length(mask))
            .nest(4, |value| value.with(DATA_VALUE, mask))
            .nest(5, |value| value.with(DATA_VALUE, &vec![0; mask.len()]))
    })
}

fn compare(list: Message, how: u32, bytes: &[u8]) -> Message {
    one(list, "cmp", |data| {
        data.with(1, &REGISTER.to_be_bytes())
            .with(2, &how.to_be_bytes())
            .nest(3, |value| value.with(DATA_VALUE, bytes))
    })
}

fn immediate(list: Message, code: i32, chain: Option<&str>) -> Message {
    one(list, "immediate", |data| {
        data.with(1, &REGISTER_VERDICT.to_be_bytes())
            .nest(2, |value| {
                value.nest(DATA_VERDICT, |verdict| {
                    let verdict = verdict.with(VERDICT_CODE, &code.to_be_bytes());
                    match chain {
                        Some(chain) => verdict.with(VERDICT_CHAIN, &nul(chain)),
                        None => verdict,
                    }
                })
            })
    })
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes()
}
