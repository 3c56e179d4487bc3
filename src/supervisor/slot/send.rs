//! What a machine's QEMU is told over QMP.

use std::time::{Duration, Instant};

use qapi::qmp;
use tokio::sync::mpsc;

use super::Slot;
use crate::error::in_one_line;
use crate::supervisor::launch;
use crate::supervisor::message::{Message, News, Reply};
use crate::supervisor::protocol::Answer;
use crate::supervisor::watch::{self, Teller};

/// How long QEMU may take to answer a command of ours.
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);

impl Slot {
    pub(in crate::supervisor) fn send_continue(&self, inbox: &mpsc::Sender<Message>) {
        let Some(qmp) = self.qmp.clone() else { return };
        let teller = Teller {
            name: self.name.clone(),
            generation: self.generation,
            inbox: inbox.clone(),
        };
        tokio::spawn(async move {
            let deadline = Instant::now() + COMMAND_DEADLINE;
            if let Err(error) = qmp.execute(qmp::cont {}, deadline.into()).await {
                teller.tell(News::Event(watch::lost(&error))).await;
            }
        });
    }

    pub(in crate::supervisor) fn send_powerdown(&self) {
        self.send(qmp::system_powerdown {});
    }

    pub(in crate::supervisor) fn send_stop(&self) {
        self.send(qmp::stop {});
    }

    pub(in crate::supervisor) fn send_resume(&self) {
        self.send(qmp::cont {});
    }

    /// Has QEMU make a disk larger, and answers with what came of it.
    pub(in crate::supervisor) fn send_grow(
        &self,
        serial: &str,
        size: u64,
        replies: mpsc::Sender<Reply>,
    ) {
        let refused = |why: String| Reply::Line(Answer::Refused { why });
        let node = self
            .record
            .as_ref()
            .and_then(|record| launch::node_name(record, serial));
        let (Some(qmp), Some(node), Ok(size)) = (self.qmp.clone(), node, i64::try_from(size))
        else {
            let name = &self.name;
            let why = format!("machine `{name}` has no disk `{serial}` that could grow now");
            let _ = replies.try_send(refused(why));
            return;
        };
        let what = format!("disk `{serial}` of machine `{}`", self.name);
        tokio::spawn(async move {
            let deadline = Instant::now() + COMMAND_DEADLINE;
            let resize = qmp::block_resize {
                device: None,
                node_name: Some(node),
                size,
            };
            let answer = match qmp.execute(resize, deadline.into()).await {
                Ok(_) => Reply::Line(Answer::Done),
                Err(error) => refused(format!("{what} did not grow: {}", in_one_line(&error))),
            };
            let _ = replies.try_send(answer);
        });
    }

    /// Asks QEMU to end; one that cannot be asked yet is killed.
    pub(in crate::supervisor) fn send_quit(&self) {
        if self.qmp.is_some() {
            self.send(qmp::quit {});
        } else {
            self.kill();
        }
    }

    /// Sends a command whose outcome shows in events; the ladder's deadlines see to the rest.
    fn send<C>(&self, command: C)
    where
        C: qapi::qmp::QmpCommand + Send + 'static,
        C::Ok: Send,
    {
        let Some(qmp) = self.qmp.clone() else { return };
        let machine = self.name.clone();
        tokio::spawn(async move {
            let deadline = Instant::now() + COMMAND_DEADLINE;
            if let Err(error) = qmp.execute(command, deadline.into()).await {
                tracing::debug!(machine, %error, "QEMU did not do as asked");
            }
        });
    }

    pub(in crate::supervisor) fn kill(&self) {
        if let Some(process) = &self.process
            && let Err(error) = process.kill()
        {
            tracing::debug!(machine = self.name, %error, "no process to kill");
        }
    }
}
