//! What commands ask of the supervisor, and its answers.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{Dispatcher, load_cluster, reservations};
use crate::error::in_one_line;
use crate::state::layout::Socket;
use crate::supervisor::machine::Event;
use crate::supervisor::message::Reply;
use crate::supervisor::network::Peer;
use crate::supervisor::network::capture::Member;
use crate::supervisor::process::Carriers;
use crate::supervisor::protocol::{Answer, ClusterStatus, MachineStatus, Request};
use crate::supervisor::slot::Slot;

impl Dispatcher {
    pub(super) fn asked(&mut self, request: Request, replies: mpsc::Sender<Reply>) {
        let answer = match request {
            Request::Status => Answer::Status(self.status()),
            Request::Watch => {
                let status = Reply::Line(Answer::Status(self.status()));
                if replies.try_send(status).is_ok() {
                    self.watchers.push(replies);
                }
                return;
            }
            Request::Reload => match self.reload() {
                Ok(()) => Answer::Done,
                Err(why) => Answer::Refused { why },
            },
            Request::Start { machines } => match self.reload() {
                Ok(()) => self.for_each(&machines, &Event::StartAsked),
                Err(why) => Answer::Refused { why },
            },
            Request::Stop { machines, grace_ms } => {
                let grace = Duration::from_millis(grace_ms);
                self.for_each(&machines, &Event::StopAsked { grace })
            }
            Request::Kill { machines } => self.for_each(&machines, &Event::KillAsked),
            Request::Pause { machines } => self.vcpus(&machines, Slot::send_stop),
            Request::Resume { machines } => self.vcpus(&machines, Slot::send_resume),
            Request::Grow {
                machine,
                serial,
                size,
            } => {
                let Some(slot) = self.slots.get(&machine) else {
                    let _ = replies.try_send(Reply::Line(unknown(&machine)));
                    return;
                };
                slot.send_grow(&serial, size, replies);
                return;
            }
            Request::Forget { machines } => self.forget(&machines),
            Request::Traffic => {
                let _ = replies.try_send(Reply::Traffic);
                return;
            }
            Request::Capture { machine } => match self.slots.get(&machine) {
                Some(slot) if slot.machine.is_alive() => {
                    let machine = Member {
                        uid: self.record.qemu_uid,
                        mac: slot
                            .record
                            .as_ref()
                            .and_then(|record| record.mac.parse().ok())
                            .unwrap_or_default(),
                        monitor: slot.files.socket(Socket::Spare),
                        name: machine,
                    };
                    let _ = replies.try_send(Reply::Capture { machine });
                    return;
                }
                Some(slot) => Answer::Refused {
                    why: format!("machine `{machine}` is {}", slot.state().word()),
                },
                None => unknown(&machine),
            },
            Request::Connect { machine, port } => match self.slots.get(&machine) {
                Some(slot) if slot.machine.is_alive() => {
                    if let Some(reserved) = self.record.reservations.get(&machine) {
                        let ip = reserved.ip;
                        let peer = Peer { machine, ip };
                        let _ = replies.try_send(Reply::Stream { peer, port });
                    }
                    return;
                }
                Some(slot) => Answer::Refused {
                    why: format!("machine `{machine}` is {}", slot.state().word()),
                },
                None => unknown(&machine),
            },
            Request::Shutdown => {
                if self.any_alive() {
                    Answer::Refused {
                        why: "machines are alive".to_owned(),
                    }
                } else {
                    self.uplink.end();
                    self.ending = true;
                    return;
                }
            }
        };
        let _ = replies.try_send(Reply::Line(answer));
    }

    fn for_each(&mut self, machines: &[String], event: &Event) -> Answer {
        if let Some(missing) = machines.iter().find(|name| !self.slots.contains_key(*name)) {
            return unknown(missing);
        }
        for name in machines {
            // What it would be started with is not known; its state says so.
            if *event == Event::StartAsked && self.slots[name].is_without_record() {
                continue;
            }
            self.feed(name, event.clone());
        }
        Answer::Done
    }

    fn vcpus(&mut self, machines: &[String], act: impl Fn(&Slot)) -> Answer {
        for name in machines {
            match self.slots.get(name) {
                Some(slot) if slot.qmp.is_some() => act(slot),
                Some(slot) => {
                    return Answer::Refused {
                        why: format!("machine `{name}` is {}", slot.state().word()),
                    };
                }
                None => return unknown(name),
            }
        }
        Answer::Done
    }

    /// Reads the records again; machines that are alive take only their policy and ports.
    fn reload(&mut self) -> Result<(), String> {
        let record = load_cluster(&self.files).map_err(|error| in_one_line(&error))?;
        self.network
            .set_machines(reservations(&record))
            .and_then(|()| self.network.tell(&record, &self.resolvers))
            .map_err(|error| in_one_line(&error))?;
        self.record = record;
        let carriers = Carriers::default();
        for name in self.record.machines.clone() {
            match self.slots.get_mut(&name) {
                Some(slot) => slot.reload(&self.network),
                None => self.adopt(&name, &carriers),
            }
        }
        Ok(())
    }

    fn forget(&mut self, machines: &[String]) -> Answer {
        for name in machines {
            if self
                .slots
                .get(name)
                .is_some_and(|slot| slot.machine.is_alive())
            {
                return Answer::Refused {
                    why: format!("machine `{name}` is alive"),
                };
            }
        }
        for name in machines {
            self.slots.remove(name);
            self.tell("removed", None, name.clone());
        }
        Answer::Done
    }

    fn status(&self) -> ClusterStatus {
        let mut machines: Vec<MachineStatus> = Vec::new();
        for name in &self.record.machines {
            if let Some(slot) = self.slots.get(name) {
                machines.push(slot.status());
            }
        }
        for (name, slot) in &self.slots {
            if !self.record.machines.contains(name) {
                machines.push(slot.status());
            }
        }
        ClusterStatus {
            pid: std::process::id(),
            uplink: self.uplink.trouble(),
            notes: self.notes(),
            machines,
        }
    }
}

fn unknown(machine: &str) -> Answer {
    Answer::Refused {
        why: format!("there is no machine `{machine}`"),
    }
}
