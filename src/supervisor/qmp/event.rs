//! What QEMU says unasked, and the queue in which it waits for the owner.

use std::collections::VecDeque;

use qapi::Enum;
use qapi::qmp::{BlockErrorAction, GuestPanicAction, IoOperationType, ShutdownCause};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{QUEUE_BYTES, QUEUE_EVENTS};

/// An event. Values of closed sets are absent where QEMU has one that this
/// version of kiln does not know.
#[derive(Debug, Clone, PartialEq)]
pub enum QmpEvent {
    /// The machine is about to go, or with `-action shutdown=pause` stays for
    /// us to look at; `guest` when the guest asked for it.
    Shutdown {
        guest: bool,
        reason: Option<ShutdownCause>,
    },
    /// The machine starts again, which is normal for guests that update.
    Reset {
        guest: bool,
        reason: Option<ShutdownCause>,
    },
    /// The power button was pressed.
    Powerdown,
    /// The virtual CPUs stand still.
    Stop,
    /// The virtual CPUs run.
    Resume,
    GuestPanicked {
        action: Option<GuestPanicAction>,
    },
    BlockIoError(BlockIoError),
    /// The guest opened or closed a virtio-serial port, named by its device id.
    VserportChange {
        id: String,
        open: bool,
    },
    /// What kiln has no use for yet, or what came in an unknown form.
    Unknown {
        name: String,
        data: Value,
    },
    /// So many events that came before the next one were given up; whoever
    /// relies on them asks QEMU.
    Lost {
        count: u64,
    },
}

/// A read or write of the guest that the host could not do.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockIoError {
    /// The device's id, or empty.
    pub device: String,
    pub node_name: Option<String>,
    pub operation: Option<IoOperationType>,
    pub action: Option<BlockErrorAction>,
    /// The host's disk is full; `cont` after room was made.
    pub nospace: bool,
    /// QEMU's words, for people.
    pub reason: String,
}

/// Events that wait for the owner; bounded in number and in bytes.
#[derive(Default)]
pub(super) struct Queue {
    events: VecDeque<(usize, QmpEvent)>,
    bytes: usize,
    lost: u64,
}

impl Queue {
    /// Appends the event in this line, and gives up others where there is no
    /// room: unknown ones first, then the oldest.
    pub(super) fn push(&mut self, line: &[u8]) {
        let event = match line.len() {
            0..=QUEUE_BYTES => parse(line),
            _ => None,
        };
        let Some(event) = event else {
            self.lost += 1;
            return;
        };
        while self.events.len() >= QUEUE_EVENTS || self.bytes + line.len() > QUEUE_BYTES {
            let unknown = self.events.iter().position(|(_, event)| is_unknown(event));
            self.lost += 1;
            match unknown {
                None if is_unknown(&event) => return,
                place => {
                    if let Some((size, _)) = self.events.remove(place.unwrap_or(0)) {
                        self.bytes -= size;
                    }
                }
            }
        }
        self.bytes += line.len();
        self.events.push_back((line.len(), event));
    }

    pub(super) fn pop(&mut self) -> Option<QmpEvent> {
        match std::mem::take(&mut self.lost) {
            0 => {
                let (size, event) = self.events.pop_front()?;
                self.bytes -= size;
                Some(event)
            }
            count => Some(QmpEvent::Lost { count }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lost == 0
    }
}

fn is_unknown(event: &QmpEvent) -> bool {
    matches!(event, QmpEvent::Unknown { .. })
}

fn parse(line: &[u8]) -> Option<QmpEvent> {
    #[derive(Deserialize)]
    struct Line {
        event: String,
        #[serde(default)]
        data: Value,
    }
    let Line { event: name, data } = serde_json::from_slice(line).ok()?;
    let known = match name.as_str() {
        "SHUTDOWN" => read(&data).map(|Cause { guest, reason }| QmpEvent::Shutdown {
            guest,
            reason: one_of(&reason),
        }),
        "RESET" => read(&data).map(|Cause { guest, reason }| QmpEvent::Reset {
            guest,
            reason: one_of(&reason),
        }),
        "POWERDOWN" => Some(QmpEvent::Powerdown),
        "STOP" => Some(QmpEvent::Stop),
        "RESUME" => Some(QmpEvent::Resume),
        "GUEST_PANICKED" => read(&data).map(|Panic { action }| QmpEvent::GuestPanicked {
            action: one_of(&action),
        }),
        "BLOCK_IO_ERROR" => read(&data).map(|error: IoError| {
            QmpEvent::BlockIoError(BlockIoError {
                device: error.device,
                node_name: error.node_name,
                operation: one_of(&error.operation),
                action: one_of(&error.action),
                nospace: error.nospace,
                reason: error.reason,
            })
        }),
        "VSERPORT_CHANGE" => {
            read(&data).map(|Port { id, open }| QmpEvent::VserportChange { id, open })
        }
        _ => None,
    };
    Some(known.unwrap_or(QmpEvent::Unknown { name, data }))
}

fn read<T: DeserializeOwned>(data: &Value) -> Option<T> {
    T::deserialize(data).ok()
}

fn one_of<E: Enum>(name: &str) -> Option<E> {
    E::from_name(name)
}

#[derive(Deserialize)]
struct Cause {
    guest: bool,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Panic {
    #[serde(default)]
    action: String,
}

#[derive(Deserialize)]
struct Port {
    id: String,
    open: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct IoError {
    device: String,
    node_name: Option<String>,
    operation: String,
    action: String,
    nospace: bool,
    reason: String,
}
