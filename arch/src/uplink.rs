//! A cluster's way out: a QEMU without a guest, whose user-mode network is plugged into the
//! switch by QEMU's own hub.

use crate::Unsupported;
use crate::command::{QemuCommand, Reason};
use crate::device::{Netdev, NetdevBackend};
use crate::machine::{Uplink, UplinkPort};
use crate::render::{begin, monitor, take_socket};

const OUT: Reason = Reason::Kiln("the way out to the world, which needs no right on the host");
const SWITCH: Reason = Reason::Kiln("the uplink's port on the cluster's network");
const JOIN: Reason = Reason::Kiln("joins the two");

pub(crate) fn command(uplink: &Uplink) -> Result<QemuCommand, Unsupported> {
    let mut command = QemuCommand::new(uplink.arch.qemu_program());
    begin(
        &mut command,
        &uplink.cluster,
        "uplink",
        Some(&uplink.uuid),
        uplink.sandbox,
    )?;
    command.push("-machine", "none", Reason::Kiln("no guest runs here"))?;
    monitor(
        &mut command,
        "qmp0",
        &uplink.monitor,
        Reason::Kiln("QMP, by which the uplink is watched and ended"),
    )?;
    let switch = match &uplink.switch {
        UplinkPort::Stream(socket) => {
            take_socket(&mut command, socket)?;
            NetdevBackend::Stream(socket)
        }
        UplinkPort::Tap(fd) => {
            command.inherit(*fd)?;
            NetdevBackend::Tap(*fd)
        }
    };
    for (id, backend, why) in [
        ("out", NetdevBackend::User(&uplink.net), OUT),
        ("switch", switch, SWITCH),
        ("hub-out", NetdevBackend::Hubport("out"), JOIN),
        ("hub-switch", NetdevBackend::Hubport("switch"), JOIN),
    ] {
        command.push("-netdev", Netdev { id, backend }.opt().into_value(), why)?;
    }
    Ok(command)
}
