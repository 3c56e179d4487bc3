//! Folders of the host that the guest mounts.

use crate::Unsupported;
use crate::command::Reason;
use crate::device::{ChardevBackend, Fsdev, SharedMemory, VhostUserFs, Virtio9p};
use crate::machine::{Share, ShareServer};
use crate::render::Render;
use crate::render::character::chardev;

/// The id of the guest's memory where others can map it.
pub(super) const SHARED_MEMORY: &str = "memory";

/// The longest tag that both kinds of device take: QEMU's 9p takes 31 bytes, virtiofs 36.
const TAG_MAX: usize = 31;

impl Render<'_> {
    /// Whether another process has to see the guest's memory.
    pub(super) fn shares_memory(&self) -> bool {
        let mut shares = self.machine.shares.iter();
        shares.any(|share| matches!(share.server, ShareServer::Virtiofs(_)))
    }

    pub(super) fn shared_memory(&mut self) -> Result<(), Unsupported> {
        if !self.shares_memory() {
            return Ok(());
        }
        let memory = SharedMemory {
            id: SHARED_MEMORY,
            size: self.machine.memory,
        };
        self.command.push(
            "-object",
            memory.opt().into_value(),
            Reason::Kiln("virtiofsd reads and writes in the guest's memory"),
        )
    }

    pub(super) fn shares(&mut self) -> Result<(), Unsupported> {
        for (index, share) in self.machine.shares.iter().enumerate() {
            self.share(&format!("share{index}"), share)?;
        }
        Ok(())
    }

    fn share(&mut self, id: &str, share: &Share) -> Result<(), Unsupported> {
        let tag = share.tag.as_str();
        if tag.is_empty() || tag.len() > TAG_MAX {
            return Err(Unsupported::ShareTag {
                tag: tag.to_owned(),
            });
        }
        let (why, bus) = (Reason::Spec("shares"), self.board.bus);
        match &share.server {
            ShareServer::Virtiofs(fd) => {
                chardev(
                    &mut self.command,
                    id,
                    ChardevBackend::Connected(*fd),
                    None,
                    why,
                )?;
                let device = VhostUserFs {
                    bus,
                    chardev: id,
                    tag,
                };
                self.device(device.opt(), why)
            }
            ShareServer::Qemu { folder, access } => {
                let fsdev = Fsdev {
                    id,
                    path: self.reopened(folder)?,
                    access: *access,
                };
                self.command.push("-fsdev", fsdev.opt().into_value(), why)?;
                let device = Virtio9p {
                    bus,
                    fsdev: id,
                    tag,
                };
                self.device(device.opt(), why)
            }
        }
    }
}
