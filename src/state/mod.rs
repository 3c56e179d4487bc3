//! What kiln remembers: folders, records, the ledger and the locks.
//!
//! ```text
//! STATE/clusters/NAME.ledger      what was made, oldest first; read backwards by `down`
//! STATE/clusters/NAME.lock        held while a command changes the cluster
//! STATE/clusters/NAME.spawn       held while a supervisor is looked for or started
//! STATE/clusters/NAME/            0700
//!     cluster.json                the plan's choices for the whole cluster
//!     id_ed25519[.pub]            the key pair that `kiln ssh` uses
//!     known_hosts                 the host keys that kiln gave the machines
//!     supervisor.log, supervisor.lock
//!     machines/M/machine.json     the plan's choices for a machine; written by commands
//!     machines/M/run.json         what became of it; written by the supervisor alone
//!     machines/M/config.ign, disk.qcow2, console.log, qemu.log
//!     machines/M/uefi-vars.fd     its own copy of the firmware's variables
//!     machines/M/tpm/, swtpm.log  the TPM's state, QEMU's user's, and what its emulator said
//!     uplink/                     the QEMU that is the fabric's way out
//! STATE/clusters/NAME.disks/      0700; outlives the cluster while there is a disk in it
//!     disks.json                  every data disk that kiln made: written before the disk is
//!     M/SERIAL.qcow2
//! RUNTIME/NAME/                   0700: sockets
//! ```
//!
//! Files are written whole to a temporary one, synced and renamed, so that a
//! reader finds the old text or the new one. Nothing here decides anything.

pub mod disks;
pub mod files;
pub mod layout;
pub mod ledger;
pub mod lock;
pub mod record;
pub mod told;
