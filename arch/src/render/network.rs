//! The network cards.

use crate::Unsupported;
use crate::command::Reason;
use crate::device::{Netdev, NetdevBackend, VirtioNet};
use crate::machine::{Nic, NicBackend};
use crate::render::Render;
use crate::render::character::take_socket;

impl Render<'_> {
    pub(super) fn nics(&mut self) -> Result<(), Unsupported> {
        for (index, nic) in self.machine.nics.iter().enumerate() {
            self.nic(index, nic)?;
        }
        Ok(())
    }

    fn nic(&mut self, index: usize, nic: &Nic) -> Result<(), Unsupported> {
        let why = Reason::Spec("network");
        let netdev = format!("net{index}");
        let backend = match &nic.backend {
            NicBackend::Stream(socket) => {
                take_socket(&mut self.command, socket)?;
                NetdevBackend::Stream(socket)
            }
            NicBackend::Tap(fd) => {
                self.command.inherit(*fd)?;
                NetdevBackend::Tap(*fd)
            }
            NicBackend::User(user) => NetdevBackend::User(user),
        };
        let back = Netdev {
            id: &netdev,
            backend,
        };
        self.command.push("-netdev", back.opt().into_value(), why)?;
        let front = VirtioNet {
            bus: self.board.bus,
            id: &format!("nic{index}"),
            netdev: &netdev,
            mac: nic.mac,
            mtu: nic.mtu,
        };
        self.device(front.opt(), why)
    }
}
