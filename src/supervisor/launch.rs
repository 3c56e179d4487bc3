//! From a machine's record to a QEMU: what it is told, and what it is handed.
//!
//! [`supervised`] and [`alone`] are pure: the record becomes `kiln-arch`'s
//! vocabulary and a list of [`Handle`]s, whose place in the list is the number
//! that each will have in QEMU. [`open`] then opens them in that order. QEMU gets
//! descriptors and no path of the cluster's folder, so it needs no right to it.

mod drives;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::num::{NonZeroU16, NonZeroU32};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use kiln_arch::machine::{
    Accel, ChildFd, Console, ConsoleBackend, Drive, Firmware, Format, Ignition, IgnitionTransport,
    Kernel, Machine, MiB, Nic, NicBackend, Pflash, Port, PortName, Run, Sandbox,
    Socket as QemuSocket, Source, Uplink, UplinkPort, UserNet,
};
use kiln_arch::{Arch, Unsupported};
use kiln_netsetup::address::Subnet;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::cluster::{DataFormat, DiskFormat};
use crate::image::ImageError;
use crate::image::base::Changed;
use crate::image::data;
use crate::state::layout::{MachineFiles, Socket};
use crate::state::record::{
    AccelRecord, ClusterRecord, FirmwareKind, FirmwareRecord, MachineRecord, ModeRecord,
    ShareRecord, TransportRecord, VolumeRecord,
};
use crate::supervisor::beside::Wanted;
use crate::supervisor::network::helper;
use crate::supervisor::process::Identity;
use crate::supervisor::share::{self, ShareError};

pub use self::drives::node_name;
use self::drives::{by_path, data_drive, open_volume, root_drive};

/// One descriptor that a QEMU is handed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handle {
    /// Bound and listening at this path.
    Listener(PathBuf),
    /// Open for reading.
    Read(PathBuf),
    /// Open for reading and writing.
    ReadWrite(PathBuf),
    /// A root disk, its header judged as it is opened.
    Overlay(PathBuf),
    /// Open for appending; made when it is not there.
    Append(PathBuf),
    /// A logical volume, if the node is still that volume's.
    Volume(VolumeRecord),
    /// A data disk, or what else a guest writes as qcow2: its header is judged as it is opened.
    Disk {
        path: PathBuf,
        format: DataFormat,
        readonly: bool,
    },
    /// An end of a pair of sockets, the other for whoever emulates the TPM.
    Tpm,
    /// A folder that the guest mounts; or, where another program serves it, a socket to that one.
    Share(ShareRecord),
    /// A tap in the cluster's namespace.
    Tap,
    /// A sealed memfd with the content of this file: no path, no secret in argv.
    Sealed(PathBuf),
}

/// What a QEMU is handed of the cluster's network, besides its sockets.
#[derive(Debug, Default)]
pub struct Plug {
    /// Its tap.
    pub tap: Option<OwnedFd>,
    /// The namespaces, which it does not use but holds: a later supervisor has them from it.
    pub namespaces: Vec<OwnedFd>,
}

/// Why a record cannot become a QEMU.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the record of `{machine}` cannot be used: {what} is `{value}`")]
    Record {
        machine: String,
        what: &'static str,
        value: String,
    },
    #[error("cannot say this machine to QEMU")]
    Unsupported(#[from] Unsupported),
    #[error("cannot open `{}` for QEMU", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on `{}`", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("it has no tap in the cluster's network")]
    NoTap,
    #[error("a share cannot be served")]
    Share(#[from] ShareError),
    #[error("the network `{mode}` has no way out of its own")]
    NoUplink { mode: String },
    #[error("cannot make sockets for the TPM")]
    Pair(#[source] io::Error),
    #[error("its disk cannot be used")]
    BaseChanged(#[source] Changed),
    #[error("its disk `{}` cannot be used", path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: ImageError,
    },
    #[error("`{}` is not volume `{}` any more", volume.path().display(), volume.name)]
    NotVolume { volume: Box<VolumeRecord> },
}

/// The handles of one QEMU, numbered as they come.
#[derive(Debug, Default)]
struct Handles(Vec<Handle>);

impl Handles {
    fn add(&mut self, handle: Handle) -> ChildFd {
        let index = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        self.0.push(handle);
        ChildFd::nth(index).unwrap_or(ChildFd::FIRST)
    }

    fn listener(&mut self, files: &MachineFiles, socket: Socket) -> QemuSocket {
        QemuSocket::Listener(self.add(Handle::Listener(files.socket(socket))))
    }

    fn source(&mut self, handle: Handle) -> Source {
        Source::Fd(self.add(handle))
    }
}

/// The machine as a supervisor starts it, and what is to be handed over.
pub fn supervised(
    cluster: &ClusterRecord,
    record: &MachineRecord,
    files: &MachineFiles,
) -> Result<(Machine, Vec<Handle>), LaunchError> {
    let mut handles = Handles::default();
    let monitors = vec![
        handles.listener(files, Socket::Qmp),
        handles.listener(files, Socket::Spare),
    ];
    let console = Console {
        backend: ConsoleBackend::Socket(handles.listener(files, Socket::Console)),
        log: Some(handles.source(Handle::Append(files.console_log()))),
    };
    let ports = [
        (PortName::Report, Socket::Report),
        (PortName::GuestAgent, Socket::Agent),
        (PortName::IgnitionJournal, Socket::Journal),
    ]
    .map(|(name, socket)| Port {
        name,
        socket: handles.listener(files, socket),
    });
    let nic = Nic {
        mac: parsed(record, "mac", &record.mac)?,
        mtu: record.mtu,
        backend: match cluster.mode {
            ModeRecord::Fabric => NicBackend::Stream(handles.listener(files, Socket::Nic)),
            ModeRecord::Namespace | ModeRecord::Attach => NicBackend::Tap(handles.add(Handle::Tap)),
            ModeRecord::User => NicBackend::User(UserNet {
                lease: Some(record.ip),
                ..user_net(cluster)?
            }),
        },
    };
    let kernel = record.kernel.as_ref().map(|kernel| Kernel {
        image: handles.source(Handle::Read(kernel.kernel.clone())),
        initrd: kernel
            .initrd
            .clone()
            .map(|initrd| handles.source(Handle::Read(initrd))),
        cmdline: kernel.cmdline.clone(),
    });
    let mut drives: Vec<Drive> = Vec::new();
    if let Some(disk) = &record.disk {
        drives.push(root_drive(disk, files, |handle| handles.source(handle)));
    }
    for disk in &record.data_disks {
        drives.push(data_drive(disk, files, |handle| handles.source(handle)));
    }
    let config = record
        .ignition
        .then(|| handles.source(Handle::Sealed(files.ignition())));
    let firmware = firmware(record, |firmware| Pflash {
        code: handles.source(match firmware.code_format {
            DiskFormat::Raw => Handle::Read(firmware.code.clone()),
            // A user may have written its descriptor; the header could lead anywhere.
            DiskFormat::Qcow2 => Handle::Disk {
                path: firmware.code.clone(),
                format: DataFormat::Qcow2,
                readonly: true,
            },
        }),
        code_format: flash_format(firmware.code_format),
        vars: handles.source(match firmware.vars_format {
            DiskFormat::Raw => Handle::ReadWrite(files.uefi_vars()),
            // QEMU writes to it, and so has it judged as a disk of the guest's.
            DiskFormat::Qcow2 => Handle::Disk {
                path: files.uefi_vars(),
                format: DataFormat::Qcow2,
                readonly: false,
            },
        }),
        vars_format: flash_format(firmware.vars_format),
    });
    let tpm = record.tpm.as_ref().map(|_| handles.add(Handle::Tpm));
    let add = |share: &ShareRecord| handles.add(Handle::Share(share.clone()));
    let shares = share::served(&record.shares, add);
    let machine = Machine {
        firmware,
        tpm,
        monitors,
        console,
        ports: ports.into(),
        nics: vec![nic],
        kernel,
        drives,
        ignition: ignition(record, config),
        shares,
        run: Run::Supervised,
        ..bare(&cluster.name, record)?
    };
    Ok((machine, handles.0))
}

/// The machine as a person starts it in a shell: console on the terminal, Ignition from
/// `config` (a file that only its owner reads), the NIC on QEMU's user network.
pub fn alone(
    cluster: &ClusterRecord,
    record: &MachineRecord,
    files: &MachineFiles,
    config: &Path,
) -> Result<Machine, LaunchError> {
    let mut drives = Vec::new();
    if let Some(disk) = &record.disk {
        drives.push(root_drive(disk, files, by_path));
    }
    for disk in &record.data_disks {
        drives.push(data_drive(disk, files, by_path));
    }
    Ok(Machine {
        nics: vec![Nic {
            mac: parsed(record, "mac", &record.mac)?,
            mtu: None,
            backend: NicBackend::User(user_net(cluster)?),
        }],
        kernel: record.kernel.as_ref().map(|kernel| Kernel {
            image: Source::Path(kernel.kernel.clone()),
            initrd: kernel.initrd.clone().map(Source::Path),
            cmdline: kernel.cmdline.clone(),
        }),
        drives,
        firmware: firmware(record, |firmware| Pflash {
            code: Source::Path(firmware.code.clone()),
            code_format: flash_format(firmware.code_format),
            vars: Source::Path(files.uefi_vars()),
            vars_format: flash_format(firmware.vars_format),
        }),
        ignition: ignition(
            record,
            record.ignition.then(|| Source::Path(config.to_owned())),
        ),
        shares: share::alone(&record.shares),
        run: Run::Alone,
        // Not kiln's: the uuid by which kiln knows its own, and ends them, is not on it.
        uuid: None,
        ..bare(&cluster.name, record)?
    })
}

/// A way out through QEMU's own user-mode network, and what is to be handed over to it.
pub fn uplink(
    cluster: &ClusterRecord,
    arch: Arch,
    uuid: &str,
    files: &MachineFiles,
) -> Result<(Uplink, Vec<Handle>), LaunchError> {
    let mut handles = Handles::default();
    let monitor = handles.listener(files, Socket::Qmp);
    let (switch, net) = match cluster.mode {
        ModeRecord::Fabric => {
            let listener = handles.listener(files, Socket::Nic);
            (UplinkPort::Stream(listener), user_net(cluster)?)
        }
        ModeRecord::Namespace => {
            let net = UserNet {
                net: helper::WIRE,
                host: helper::HOST,
                dns: helper::DNS,
                lease: None,
                forwards: Vec::new(),
            };
            (UplinkPort::Tap(handles.add(Handle::Tap)), net)
        }
        ModeRecord::Attach | ModeRecord::User => {
            return Err(LaunchError::NoUplink {
                mode: cluster.mode_text(),
            });
        }
    };
    let uplink = Uplink {
        cluster: cluster.name.clone(),
        uuid: uuid.to_owned(),
        arch,
        net,
        switch,
        monitor,
        sandbox: Sandbox::Full,
    };
    Ok((uplink, handles.0))
}

fn user_net(cluster: &ClusterRecord) -> Result<UserNet, LaunchError> {
    let subnet = Subnet::new(cluster.subnet).map_err(|_| LaunchError::Record {
        machine: cluster.name.clone(),
        what: "subnet",
        value: cluster.subnet.to_string(),
    })?;
    Ok(UserNet {
        net: subnet.net(),
        host: subnet.uplink_host(),
        dns: subnet.uplink_dns(),
        lease: None,
        forwards: Vec::new(),
    })
}

/// What does not depend on who starts it.
fn bare(cluster: &str, record: &MachineRecord) -> Result<Machine, LaunchError> {
    let wrong = |what, value: String| LaunchError::Record {
        machine: record.name.clone(),
        what,
        value,
    };
    Ok(Machine {
        cluster: cluster.to_owned(),
        name: record.name.clone(),
        uuid: Some(record.uuid.clone()),
        arch: parsed(record, "arch", &record.arch)?,
        accel: match record.accel {
            AccelRecord::Kvm => Accel::Kvm,
            AccelRecord::Tcg => Accel::Tcg,
        },
        board_version: record.board.clone(),
        cpus: NonZeroU16::new(record.cpus).ok_or_else(|| wrong("cpus", "0".to_owned()))?,
        memory: MiB(
            NonZeroU32::new(record.memory_mib).ok_or_else(|| wrong("memory", "0".to_owned()))?
        ),
        firmware: Firmware::Board,
        tpm: None,
        kernel: None,
        drives: Vec::new(),
        ignition: Ignition::None,
        shares: Vec::new(),
        nics: Vec::new(),
        monitors: Vec::new(),
        console: Console {
            backend: ConsoleBackend::Stdio,
            log: None,
        },
        ports: Vec::new(),
        sandbox: Sandbox::Full,
        run: Run::Alone,
    })
}

/// The record's firmware, its flash chips as `flash` makes them.
fn firmware(record: &MachineRecord, flash: impl FnOnce(&FirmwareRecord) -> Pflash) -> Firmware {
    match &record.firmware {
        None => Firmware::Board,
        Some(firmware) => match firmware.kind {
            FirmwareKind::Uefi => Firmware::Uefi(flash(firmware)),
            FirmwareKind::UefiSecure => Firmware::UefiSecure(flash(firmware)),
        },
    }
}

fn flash_format(format: DiskFormat) -> Format {
    match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    }
}

fn ignition(record: &MachineRecord, config: Option<Source>) -> Ignition {
    match (config, record.ignition_transport) {
        (None, _) => Ignition::None,
        (Some(config), None) => Ignition::Config(config),
        (Some(config), Some(transport)) => {
            let transport = match transport {
                TransportRecord::FwCfg => IgnitionTransport::FwCfg,
                TransportRecord::VirtioBlk => IgnitionTransport::VirtioBlk,
            };
            Ignition::ConfigBy(transport, config)
        }
    }
}

fn parsed<T: std::str::FromStr>(
    record: &MachineRecord,
    what: &'static str,
    value: &str,
) -> Result<T, LaunchError> {
    value.parse().map_err(|_| LaunchError::Record {
        machine: record.name.clone(),
        what,
        value: value.to_owned(),
    })
}
/// What QEMU is handed, the other end of what is between it and its TPM, and who serves its shares.
#[derive(Debug)]
pub struct Opened {
    /// Each with the number that it will have in QEMU.
    pub fds: Vec<(OwnedFd, RawFd)>,
    pub tpm: Option<OwnedFd>,
    pub beside: Vec<Wanted>,
}

/// Opens the handles, in order, of which `plug` has those of the network. After them come what is only to be held, the
/// namespaces, and the names of its listeners, which QEMU knows nothing of: see `supervisor/regain.rs`.
///
/// # Errors
/// [`LaunchError::Open`] and [`LaunchError::Listen`] name the path.
pub fn open(
    handles: &[Handle],
    plug: Plug,
    files: &MachineFiles,
    identity: Identity,
) -> Result<Opened, LaunchError> {
    let Plug {
        mut tap,
        namespaces,
    } = plug;
    let mut fds = Vec::with_capacity(2 * handles.len());
    let mut tpm = None;
    let mut beside = Vec::new();
    let number = |index| ChildFd::nth(index).map_or(0, |fd| RawFd::from(fd.number()));
    let mut names = Vec::new();
    let mut indices = 0u16..;
    for (handle, index) in handles.iter().zip(indices.by_ref()) {
        let fd = match handle {
            Handle::Tpm => {
                let (ours, other) = UnixStream::pair().map_err(LaunchError::Pair)?;
                tpm = Some(other.into());
                ours.into()
            }
            Handle::Share(record) => {
                let (fd, server) = share::open(record, files, identity)?;
                beside.extend(server);
                fd
            }
            Handle::Tap => tap.take().ok_or(LaunchError::NoTap)?,
            Handle::Listener(path) => {
                let listener = listen(path)?.into();
                let flags = libc::O_PATH | libc::O_NOFOLLOW;
                names.push(file(
                    path,
                    OpenOptions::new().read(true).custom_flags(flags),
                )?);
                listener
            }
            Handle::Read(path) => file(path, OpenOptions::new().read(true))?,
            Handle::ReadWrite(path) => file(path, OpenOptions::new().read(true).write(true))?,
            Handle::Overlay(path) => {
                data::open_overlay(path)
                    .map(OwnedFd::from)
                    .map_err(|source| LaunchError::Disk {
                        path: path.clone(),
                        source,
                    })?
            }
            Handle::Append(path) => file(
                path,
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .custom_flags(libc::O_NOFOLLOW),
            )?,
            Handle::Disk {
                path,
                format,
                readonly,
            } => data::open(path, *format, *readonly)
                .map(|(file, _)| file.into())
                .map_err(|source| LaunchError::Disk {
                    path: path.clone(),
                    source,
                })?,
            Handle::Volume(volume) => open_volume(volume)?.into(),
            Handle::Sealed(path) => sealed(path).map_err(|source| LaunchError::Open {
                path: path.clone(),
                source,
            })?,
        };
        fds.push((fd, number(index)));
    }
    for (held, index) in namespaces.into_iter().chain(names).zip(indices) {
        fds.push((held, number(index)));
    }
    Ok(Opened { fds, tpm, beside })
}

fn file(path: &Path, options: &mut OpenOptions) -> Result<OwnedFd, LaunchError> {
    options
        .mode(0o600)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|source| LaunchError::Open {
            path: path.to_owned(),
            source,
        })
}

/// The content of `path` in a memfd that nobody can change any more.
fn sealed(path: &Path) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let content = std::fs::read(path)?;
    let memfd = memfd_create(
        c"kiln-ignition",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    let mut file = File::from(memfd);
    file.write_all(&content)?;
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(
            SealFlag::F_SEAL_SEAL
                | SealFlag::F_SEAL_SHRINK
                | SealFlag::F_SEAL_GROW
                | SealFlag::F_SEAL_WRITE,
        ),
    )?;
    Ok(file.into())
}

/// Listens on a unix socket at `path`, in place of one that a dead process left.
pub fn listen(path: &Path) -> Result<UnixListener, LaunchError> {
    (|| {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(path)
    })()
    .map_err(|source| LaunchError::Listen {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_dead_listener_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(listen(&path).unwrap());
        let _again = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_sealed_config_cannot_be_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.ign");
        std::fs::write(&path, b"{}").unwrap();
        let memfd = File::from(sealed(&path).unwrap());
        assert!((&memfd).write_all(b"x").is_err());
        assert!(memfd.set_len(0).is_err());
        let again = std::fs::read(format!("/proc/self/fd/{}", memfd.as_raw_fd())).unwrap();
        assert_eq!(again, b"{}");
    }
}
