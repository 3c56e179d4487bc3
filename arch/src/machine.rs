//! The input vocabulary: what one machine is, in plain data.
//!
//! Every field changes the command line; there is none that is taken and forgotten. Nothing here
//! opens or checks a file. A descriptor is named by the number that it *will* have in QEMU
//! ([`ChildFd`]); whoever starts QEMU puts it there.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use macaddr::MacAddr6;

use crate::Arch;

/// One virtual machine, ready to be said in QEMU's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The cluster's name; with [`Machine::name`] it is QEMU's name for the guest.
    pub cluster: String,
    pub name: String,
    /// By this word in its arguments a process is known to be this machine; absent for one that
    /// is nobody's.
    pub uuid: Option<String>,
    pub arch: Arch,
    pub accel: Accel,
    /// The versioned board that this machine was made with, such as `pc-q35-10.0`; absent: the
    /// newest that this QEMU has.
    pub board_version: Option<String>,
    pub cpus: NonZeroU16,
    pub memory: MiB,
    pub firmware: Firmware,
    /// A connected socket at whose other end a TPM 2.0 is emulated (swtpm's control channel);
    /// absent: the machine has no TPM.
    pub tpm: Option<ChildFd>,
    /// Boots this kernel itself; absent: the firmware boots the first of [`Machine::drives`].
    pub kernel: Option<Kernel>,
    /// In the order in which the guest sees them.
    pub drives: Vec<Drive>,
    pub ignition: Ignition,
    /// Folders of the host, in the order in which the guest sees them.
    pub shares: Vec<Share>,
    /// In the order in which the guest sees them.
    pub nics: Vec<Nic>,
    /// One QMP socket for each client, because QEMU greets only one on each.
    pub monitors: Vec<Socket>,
    pub console: Console,
    pub ports: Vec<Port>,
    pub sandbox: Sandbox,
    pub run: Run,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accel {
    Kvm,
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        })
    }
}

/// An amount of memory in MiB; never zero, because QEMU takes zero for its own default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MiB(pub NonZeroU32);

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// The number that a descriptor will have in QEMU: 3 to 65535, since 0, 1 and 2 are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildFd(u16);

impl ChildFd {
    /// The lowest number after standard input, output and error.
    pub const FIRST: ChildFd = ChildFd(3);

    /// The `index`th number from [`ChildFd::FIRST`] on; `None` past 65535.
    pub fn nth(index: u16) -> Option<ChildFd> {
        index.checked_add(ChildFd::FIRST.0).map(ChildFd)
    }

    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for ChildFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where the bytes of a file come from.
///
/// By descriptor, QEMU needs no right to any folder. Two ways lead there, by what QEMU does with
/// the name:
/// - images and the console's log are opened through a descriptor set and use the very descriptor
///   that was handed over, so it has to be open in the mode that they need (an image read-write or
///   read-only as the drive says, a log write-only with `O_APPEND`);
/// - kernels, initrds, Ignition configs and shared folders are opened anew from `/proc/self/fd`, so the file itself
///   has to be readable for QEMU's user (a memfd is).
///
/// Image locks belong to the open file: each QEMU has to be given its own open of a shared base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Path(PathBuf),
    Fd(ChildFd),
}

/// Which firmware starts the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// What QEMU brings for the board: SeaBIOS, SLOF, the s390 loader; none at all on aarch64,
    /// which then can only boot a [`Kernel`].
    Board,
    Uefi(Pflash),
    /// UEFI that verifies what it boots; the variables already hold the keys.
    UefiSecure(Pflash),
}

/// The two flash chips of a UEFI board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pflash {
    /// The program; opened read-only.
    pub code: Source,
    pub code_format: Format,
    /// This machine's own variables; opened read-write.
    pub vars: Source,
    pub vars_format: Format,
}

/// A kernel that QEMU loads itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub image: Source,
    pub initrd: Option<Source>,
    /// One line; not empty unless nothing is to be said.
    pub cmdline: String,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    pub image: Image,
    pub access: Access,
    /// What the guest reads as the disk's serial: at most 20 bytes. On [`DiskBus::Nvme`] there is
    /// one.
    pub serial: Option<String>,
    pub bus: DiskBus,
    pub sector: Sector,
}

/// What a disk is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskBus {
    /// A virtio disk of its own.
    Virtio,
    /// An NVMe controller of its own, whose one namespace the disk is. A fault of the host's
    /// storage reaches the guest, and a disk that grows is larger at the next start.
    Nvme,
    /// A SCSI disk behind the machine's one virtio-scsi controller.
    Scsi,
}

impl DiskBus {
    /// As a spec says it.
    pub fn name(self) -> &'static str {
        match self {
            DiskBus::Virtio => "virtio",
            DiskBus::Nvme => "nvme",
            DiskBus::Scsi => "scsi",
        }
    }
}

/// The smallest piece of a disk that the guest can read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sector {
    /// 512 bytes, which is QEMU's own choice as well.
    Bytes512,
    /// 4096 bytes ("4K native").
    Bytes4096,
}

/// Whether the guest may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// A disk image whose chain is told, so that QEMU follows no image's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    Raw(Source),
    /// A block device of the host, which QEMU opens otherwise than a file.
    Device(Source),
    Qcow2 {
        source: Source,
        /// What the image lies over, read-only; absent: nothing, whatever its header says.
        backing: Option<Box<Image>>,
    },
}

/// The format of a single file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    Raw,
    Qcow2,
}

/// What Ignition finds in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ignition {
    /// No config. Where Ignition looks for a disk, an empty one is there, since it would wait five
    /// minutes for an absent one.
    None,
    /// This config, the way that the architecture has it.
    Config(Source),
    /// This config, the way that the image asks for.
    ConfigBy(IgnitionTransport, Source),
}

/// A folder of the host that the guest can mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// By what the guest mounts it: 1 to 31 bytes.
    pub tag: String,
    pub server: ShareServer,
}

/// Who answers the guest's questions about a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareServer {
    /// Another process, virtiofsd, at the other end of this connected socket; it knows the folder.
    Virtiofs(ChildFd),
    /// QEMU itself, by 9p, with no more rights to what is in the folder than its own user has.
    Qemu { folder: Source, access: Access },
}

/// How a config reaches Ignition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IgnitionTransport {
    /// QEMU's firmware configuration device.
    FwCfg,
    /// A read-only disk with the serial `ignition`.
    VirtioBlk,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub mac: MacAddr6,
    /// What the guest is told of it, where it is not Ethernet's 1500.
    pub mtu: Option<u16>,
    pub backend: NicBackend,
}

/// What a card's cable is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicBackend {
    /// QEMU listens; the fabric connects, and may connect again after it went away. Each frame
    /// follows its length, 32 bits, big-endian.
    Stream(Socket),
    /// An open tap.
    Tap(ChildFd),
    /// QEMU's own user-mode network, for this machine alone.
    User(UserNet),
}

/// QEMU's user-mode network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNet {
    pub net: Ipv4Net,
    /// What the guest knows as its gateway; inside [`UserNet::net`]. QEMU leads what is sent to
    /// it to the host's own loopback.
    pub host: Ipv4Addr,
    /// Where QEMU answers DNS; inside [`UserNet::net`], and not the gateway.
    pub dns: Ipv4Addr,
    /// The address that QEMU's DHCP gives the guest; absent: the fifteenth of [`UserNet::net`].
    pub lease: Option<Ipv4Addr>,
    pub forwards: Vec<Forward>,
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    pub protocol: Protocol,
    /// Where the host listens; always an address, because QEMU takes none for all of them.
    pub listen: SocketAddrV4,
    pub guest: SocketAddrV4,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A unix socket on which QEMU listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Socket {
    /// Bound and listening before QEMU starts, so that whoever connects need not wait for it.
    Listener(ChildFd),
    /// Bound by QEMU: at most 107 bytes; its mode follows the umask.
    Path(PathBuf),
}

/// The guest's serial console.
///
/// A client has to read all the time: after some 280 writes that nobody took, guest and log wait
/// for it. Without a client neither waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    pub backend: ConsoleBackend,
    /// Gets all that the guest prints, with or without a client. It is appended to, so it can be
    /// truncated while the machine runs.
    pub log: Option<Source>,
}

/// Who is at the other end of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleBackend {
    Socket(Socket),
    /// QEMU's own standard input and output.
    Stdio,
}

/// A virtio-serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub name: PortName,
    pub socket: Socket,
}

/// The ports that kiln knows, by what speaks on them in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortName {
    /// The guest says that it is ready, and with which addresses.
    Report,
    /// QEMU's guest agent.
    GuestAgent,
    /// Fedora CoreOS writes the journal of a failed first boot here.
    IgnitionJournal,
}

impl PortName {
    /// The name that the guest finds under `/dev/virtio-ports`.
    pub fn as_str(self) -> &'static str {
        match self {
            PortName::Report => "org.kiln.report.0",
            PortName::GuestAgent => "org.qemu.guest_agent.0",
            PortName::IgnitionJournal => "com.coreos.ignition.journal",
        }
    }
}

/// Whether QEMU locks itself in with seccomp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sandbox {
    /// All four groups of system calls are denied. Users and capabilities have to be dropped
    /// before QEMU is started, since it can no longer do so.
    Full,
    /// This QEMU was built without seccomp.
    Absent,
}

/// Who looks after the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Run {
    /// A supervisor: the guest waits for its `cont`, and QEMU stays, paused, when the guest has
    /// ended, so that the reason can be asked for.
    Supervised,
    /// Nobody: the guest runs at once, and QEMU ends with it.
    Alone,
}

/// Where an uplink gets its frames from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkPort {
    /// A port of the fabric's switch, as in [`NicBackend::Stream`].
    Stream(Socket),
    /// A tap in the cluster's namespace.
    Tap(ChildFd),
}

/// The fabric's way out to the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub cluster: String,
    /// By this word in its arguments a process is known to be this uplink.
    pub uuid: String,
    /// Whose QEMU is used: any that is installed, for no guest runs in it.
    pub arch: Arch,
    pub net: UserNet,
    /// What it lets out.
    pub switch: UplinkPort,
    pub monitor: Socket,
    pub sandbox: Sandbox,
}
