//! Where a cluster's files lie. Paths only; nothing here touches the disk.

use std::path::{Path, PathBuf};

use kiln_netsetup::nat::HOST_LINK;
use sha2::{Digest, Sha256};

/// The longest path of a socket below [`Roots::runtime`]: `CLUSTER/8 digits/qmp-spare.sock`.
pub const LONGEST_SOCKET: usize = 40 + 1 + 8 + 1 + "qmp-spare.sock".len();

/// The three roots, as [`crate::host`] found them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    pub state: PathBuf,
    pub cache: PathBuf,
    pub runtime: PathBuf,
}

/// One cluster's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFiles {
    name: String,
    clusters: PathBuf,
    runtime: PathBuf,
}

/// The data disks of one cluster's machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisksFiles {
    pub folder: PathBuf,
}

/// How the folder of a cluster's data disks ends; no cluster's name has a dot.
pub const DISKS_ENDING: &str = "disks";

/// How the file ends that marks a throw-away cluster.
pub const RUN_ENDING: &str = "run";

/// One machine's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineFiles {
    pub folder: PathBuf,
    pub sockets: PathBuf,
    /// Has the data disks, which stay when the machine goes.
    pub disks: PathBuf,
}

impl Roots {
    pub fn clusters(&self) -> PathBuf {
        self.state.join("clusters")
    }

    pub fn cluster(&self, name: &str) -> ClusterFiles {
        ClusterFiles {
            name: name.to_owned(),
            clusters: self.clusters(),
            runtime: self.runtime.clone(),
        }
    }

    /// Held while a subnet is chosen and recorded.
    pub fn reservations_lock(&self) -> PathBuf {
        self.state.join("reservations.lock")
    }
}

impl ClusterFiles {
    pub fn name(&self) -> &str {
        &self.name
    }

    fn beside(&self, ending: &str) -> PathBuf {
        self.clusters.join(format!("{}.{ending}", self.name))
    }

    pub fn folder(&self) -> PathBuf {
        self.clusters.join(&self.name)
    }

    pub fn sockets(&self) -> PathBuf {
        self.runtime.join(&self.name)
    }

    pub fn ledger(&self) -> PathBuf {
        self.beside("ledger")
    }

    pub fn lock(&self) -> PathBuf {
        self.beside("lock")
    }

    pub fn spawn_lock(&self) -> PathBuf {
        self.beside("spawn")
    }

    /// Held by the `kiln run` that has made the cluster, for as long as it wants it: a cluster that
    /// has this file and nobody who holds it is thrown away.
    pub fn run_lock(&self) -> PathBuf {
        self.beside(RUN_ENDING)
    }

    /// Has the data disks, which may outlive the cluster: beside its folder, not in it.
    pub fn disks(&self) -> DisksFiles {
        DisksFiles {
            folder: self.beside(DISKS_ENDING),
        }
    }

    pub fn record(&self) -> PathBuf {
        self.folder().join("cluster.json")
    }

    pub fn private_key(&self) -> PathBuf {
        self.folder().join("id_ed25519")
    }

    pub fn public_key(&self) -> PathBuf {
        self.folder().join("id_ed25519.pub")
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.folder().join("known_hosts")
    }

    pub fn supervisor_log(&self) -> PathBuf {
        self.folder().join("supervisor.log")
    }

    pub fn supervisor_lock(&self) -> PathBuf {
        self.folder().join("supervisor.lock")
    }

    pub fn control(&self) -> PathBuf {
        self.sockets().join("control.sock")
    }

    /// Has a folder for each machine.
    pub fn machines(&self) -> PathBuf {
        self.folder().join("machines")
    }

    pub fn machine(&self, name: &str) -> MachineFiles {
        MachineFiles {
            folder: self.machines().join(name),
            sockets: self.sockets().join(&self.uuid(name)[..8]),
            disks: self.disks().machine(name),
        }
    }

    /// The UUID (RFC 9562, version 8) in the arguments of a machine's QEMU: no other machine
    /// of this user, or of another, has it.
    pub fn uuid(&self, machine: &str) -> String {
        self.uuid_of("machine", machine)
    }

    pub fn uplink_uuid(&self) -> String {
        self.uuid_of("uplink", "")
    }

    /// As root, the name of the cluster's link on the host: no other cluster has it.
    pub fn host_link(&self) -> String {
        format!("{HOST_LINK}{}", &self.uplink_uuid()[..8])
    }

    /// What marks that link, and names the host's packet rules for it.
    pub fn host_mark(&self) -> String {
        format!("{HOST_LINK}-{}", self.uplink_uuid())
    }

    fn uuid_of(&self, kind: &str, name: &str) -> String {
        let mut hash = Sha256::new();
        for part in [
            self.folder().as_os_str().as_encoded_bytes(),
            kind.as_bytes(),
            name.as_bytes(),
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let mut bytes: [u8; 16] = std::array::from_fn(|index| digest[index]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }

    /// The process that is the way out; it has files like a machine.
    pub fn uplink(&self) -> MachineFiles {
        MachineFiles {
            folder: self.folder().join("uplink"),
            sockets: self.sockets().join(&self.uplink_uuid()[..8]),
            disks: PathBuf::new(),
        }
    }
}

impl DisksFiles {
    pub fn record(&self) -> PathBuf {
        self.folder.join("disks.json")
    }

    /// The folder of one machine's disks: no machine is called `disks.json`.
    pub fn machine(&self, machine: &str) -> PathBuf {
        self.folder.join(machine)
    }

    pub fn disk(&self, machine: &str, serial: &str) -> PathBuf {
        data_disk(&self.machine(machine), serial)
    }

    /// Says which logical volume a disk is.
    pub fn volume(&self, machine: &str, serial: &str) -> PathBuf {
        self.machine(machine).join(format!("{serial}.volume"))
    }

    /// Where a disk lies while qemu-img makes it.
    pub fn incoming(&self, machine: &str, serial: &str) -> PathBuf {
        self.disk(machine, serial).with_extension("new")
    }
}

fn data_disk(folder: &Path, serial: &str) -> PathBuf {
    folder.join(format!("{serial}.qcow2"))
}

impl MachineFiles {
    pub fn record(&self) -> PathBuf {
        self.folder.join("machine.json")
    }

    pub fn run(&self) -> PathBuf {
        self.folder.join("run.json")
    }

    pub fn ignition(&self) -> PathBuf {
        self.folder.join("config.ign")
    }

    pub fn host_key(&self) -> PathBuf {
        self.folder.join("ssh_host_ed25519_key")
    }

    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.qcow2")
    }

    /// The data disk of that serial that kiln made.
    pub fn data_disk(&self, serial: &str) -> PathBuf {
        data_disk(&self.disks, serial)
    }

    /// The machine's own UEFI variables.
    pub fn uefi_vars(&self) -> PathBuf {
        self.folder.join("uefi-vars.fd")
    }

    /// A folder of the TPM emulator's own, which belongs to the user that it runs as.
    pub fn tpm(&self) -> PathBuf {
        self.folder.join("tpm")
    }

    pub fn tpm_log(&self) -> PathBuf {
        self.folder.join("swtpm.log")
    }

    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// Held by whoever is at the console.
    pub fn console_lock(&self) -> PathBuf {
        self.folder.join("console.lock")
    }

    /// Held by whoever talks to the guest agent.
    pub fn agent_lock(&self) -> PathBuf {
        self.folder.join("agent.lock")
    }

    pub fn qemu_log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// The socket called `NAME.sock`.
    pub fn socket(&self, socket: Socket) -> PathBuf {
        self.sockets.join(socket.file_name())
    }
}

/// The sockets on which a machine's QEMU listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Socket {
    /// QMP, for the supervisor alone.
    Qmp,
    /// QMP, spare: for a person with socat.
    Spare,
    /// The serial console.
    Console,
    /// kiln's report port.
    Report,
    /// The guest agent.
    Agent,
    /// The journal of a failed Ignition (Fedora CoreOS writes it).
    Journal,
    /// The NIC's frames.
    Nic,
}

impl Socket {
    pub const ALL: [Socket; 7] = [
        Socket::Qmp,
        Socket::Spare,
        Socket::Console,
        Socket::Report,
        Socket::Agent,
        Socket::Journal,
        Socket::Nic,
    ];

    pub fn file_name(self) -> &'static str {
        match self {
            Socket::Qmp => "qmp.sock",
            Socket::Spare => "qmp-spare.sock",
            Socket::Console => "console.sock",
            Socket::Report => "report.sock",
            Socket::Agent => "agent.sock",
            Socket::Journal => "journal.sock",
            Socket::Nic => "nic.sock",
        }
    }
}

/// Whether `path` lies below `root`, by its components: `..` never does.
pub fn is_below(path: &Path, root: &Path) -> bool {
    path.strip_prefix(root).is_ok_and(|rest| {
        rest.components().next().is_some()
            && rest
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_dots_is_not_below() {
        let root = Path::new("/a/b");
        assert!(is_below(Path::new("/a/b/c"), root));
        for path in ["/a/b", "/a/bc", "/a/b/../c", "/", "/a/b/c/../../../d"] {
            assert!(!is_below(Path::new(path), root), "{path}");
        }
    }
}
