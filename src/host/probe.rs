//! Reads the environment, once, into a [`Host`].

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use kiln_arch::Arch;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Uid, User, getegid, geteuid};

use super::distribution::Distribution;
use super::environment::Environment;
use super::firmware::{self, Firmwares};
use super::folders::Folders;
use super::kvm::{self, Ask, KvmState};
use super::network::{parse_resolvers, parse_routes, parse_routes6};
use super::qemu::{self, Qemu, QemuError, Qemus};
use super::{tcg, timing, virtiofsd};
use crate::cluster::Size;
use crate::lvm::program::Lvm;
use crate::memo::Memo;

/// What kiln knows of the host that it runs on.
#[derive(Debug)]
pub struct Host {
    /// Effective ids.
    pub uid: u32,
    pub gid: u32,
    pub home: Option<PathBuf>,
    /// `KILN_HOME`, absolute, where it was set.
    pub kiln_home: Option<PathBuf>,
    /// Where the user's units of systemd lie.
    pub user_units: Option<PathBuf>,
    pub folders: Folders,
    /// `None` on a host whose own architecture kiln runs no guests of.
    pub arch: Option<Arch>,
    /// Differs from boot to boot; from `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Differs from host to host, from `/etc/machine-id`; empty where there is none.
    pub machine_id: String,
    /// Those that this process may use, cgroup quotas included.
    pub cpus: NonZeroUsize,
    /// All of the host's memory, used or not.
    pub memory: Size,
    /// How many descriptors a process may have open: the soft and the hard limit.
    pub open_files: (u64, u64),
    /// Where programs are looked for.
    pub path: OsString,
    pub tools: Tools,
    /// Whether the user's environment lets a terminal show color.
    pub color: bool,
    /// The host's name servers, in order.
    pub resolvers: Vec<SocketAddr>,
    /// Destinations of the main routing table, default routes left out.
    pub routes: Vec<Ipv4Net>,
    /// The same of IPv6.
    pub routes6: Vec<Ipv6Net>,
    pub distribution: Distribution,
    /// How servers are reached, where not directly.
    pub proxy: Option<ureq::Proxy>,
    /// Remembered facts, in the cache folder.
    pub memo: Memo,
    qemus: Qemus,
    kvm: OnceLock<KvmState>,
    /// Where firmware descriptors are looked for.
    firmware_folders: Vec<PathBuf>,
    firmwares: OnceLock<Firmwares>,
}

/// Programs other than the QEMUs, where they are installed; absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tools {
    pub qemu_img: Option<PathBuf>,
    pub ssh: Option<PathBuf>,
    /// Comes with ssh.
    pub scp: Option<PathBuf>,
    pub ignition_validate: Option<PathBuf>,
    pub swtpm: Option<PathBuf>,
    /// All of lvm2's commands in one.
    pub lvm: Option<PathBuf>,
    pub virtiofsd: Option<PathBuf>,
    /// These lead out of a network namespace without root.
    pub pasta: Option<PathBuf>,
    pub slirp4netns: Option<PathBuf>,
}

/// Why the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("user {uid} has no home folder to keep anything in; set HOME or KILN_HOME")]
    NoHome { uid: u32 },
    #[error("cannot tell the folder that KILN_HOME means")]
    CurrentFolder {
        #[source]
        source: io::Error,
    },
    #[error("cannot read `{}`", path.display())]
    Read {
        path: &'static Path,
        #[source]
        source: io::Error,
    },
    #[error("`{}` does not say how much memory there is", path.display())]
    Memory { path: &'static Path },
    #[error("cannot tell how many processors there are")]
    Processors {
        #[source]
        source: io::Error,
    },
    #[error("cannot tell how many files may be open")]
    OpenFiles {
        #[source]
        source: io::Error,
    },
}

/// The architecture that this kiln was built for, and so the host's, if kiln runs guests of it.
pub fn native_arch() -> Option<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Arch::X86_64),
        "x86" => Some(Arch::I386),
        "aarch64" => Some(Arch::Aarch64),
        "s390x" => Some(Arch::S390x),
        "powerpc64" if cfg!(target_endian = "little") => Some(Arch::Ppc64le),
        _ => None,
    }
}

impl Host {
    /// Looks around. Starts no program, makes no file, takes about a millisecond.
    pub fn probe() -> Result<Host, HostError> {
        Host::look(Environment::read(|name| std::env::var_os(name)))
    }

    fn look(mut environment: Environment) -> Result<Host, HostError> {
        let uid = geteuid();
        if environment.home.is_none() {
            environment.home = home_of(uid);
        }
        let folders = Folders::choose(&environment, uid.as_raw())
            .map_err(|source| HostError::CurrentFolder { source })?
            .ok_or(HostError::NoHome { uid: uid.as_raw() })?;
        let memo = Memo::new(folders.cache.join("facts"));
        let config_home = environment
            .config_home
            .take()
            .or_else(|| Some(environment.home.as_ref()?.join(".config")));
        let tool = |name| qemu::find(&environment.path, name);
        Ok(Host {
            uid: uid.as_raw(),
            gid: getegid().as_raw(),
            arch: native_arch(),
            boot_id: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            machine_id: fs::read_to_string("/etc/machine-id")
                .map_or_else(|_| String::new(), |id| id.trim().to_owned()),
            cpus: std::thread::available_parallelism()
                .map_err(|source| HostError::Processors { source })?,
            memory: memory()?,
            open_files: getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| {
                HostError::OpenFiles {
                    source: errno.into(),
                }
            })?,
            tools: Tools {
                qemu_img: tool("qemu-img"),
                ssh: tool("ssh"),
                scp: tool("scp"),
                ignition_validate: tool("ignition-validate"),
                swtpm: tool("swtpm"),
                lvm: tool("lvm"),
                virtiofsd: virtiofsd::find(&environment.path),
                pasta: tool("pasta"),
                slirp4netns: tool("slirp4netns"),
            },
            color: environment.color,
            // These three may be absent: a container has no routes, a chroot no names.
            resolvers: parse_resolvers(&read("/etc/resolv.conf").unwrap_or_default()),
            routes: parse_routes(&read("/proc/net/route").unwrap_or_default()),
            routes6: parse_routes6(&read("/proc/net/ipv6_route").unwrap_or_default()),
            distribution: Distribution::parse(&read("/etc/os-release").unwrap_or_default()),
            qemus: Qemus::new(environment.path.clone(), memo.clone()),
            kvm: OnceLock::new(),
            firmware_folders: firmware::folders(config_home.as_deref()),
            firmwares: OnceLock::new(),
            // `HTTPS_PROXY` and its like, in both spellings, and `NO_PROXY`.
            proxy: ureq::Proxy::try_from_env(),
            path: environment.path,
            user_units: environment
                .config_home
                .or_else(|| Some(environment.home.as_ref()?.join(".config")))
                .map(|folder| folder.join("systemd/user")),
            home: environment.home,
            kiln_home: environment
                .kiln_home
                .map(|home| std::path::absolute(&home).unwrap_or(home)),
            folders,
            memo,
        })
    }

    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// lvm2, as this user can use it.
    pub fn lvm(&self) -> Lvm {
        Lvm::new(self.tools.lvm.as_deref(), self.is_root())
    }

    /// The QEMU for guests of `arch`; looked for when first asked after.
    pub fn qemu(&self, arch: Arch) -> Result<&Qemu, &QemuError> {
        self.qemus.get(arch)
    }

    /// The UEFI firmwares that are installed; looked for when first asked after.
    pub fn firmwares(&self) -> &Firmwares {
        self.firmwares
            .get_or_init(|| Firmwares::look(&self.firmware_folders))
    }

    /// The QEMU that a machine of `arch` was started with before: this very program.
    pub fn qemu_at(&self, arch: Arch, program: &Path) -> Result<Qemu, QemuError> {
        self.qemus.examine(arch, program.to_owned())
    }

    /// The virtiofsd that works here, which is tried; an error is the reason. Takes some 20 ms.
    pub fn virtiofsd(&self) -> Result<PathBuf, String> {
        let program = self.tools.virtiofsd.as_deref();
        let program = program.ok_or("`virtiofsd` is not installed")?;
        virtiofsd::try_out(program, &self.folders.runtime, self.is_root())?;
        Ok(program.to_owned())
    }

    /// What is known of KVM for guests of `arch`, without trying: it never waits.
    pub fn kvm(&self, arch: Arch) -> KvmState {
        match self.kvm_host(arch) {
            Err(why) => KvmState::Fails(why),
            Ok((_, qemu)) => self
                .kvm
                .get_or_init(|| kvm::remembered(&self.memo, &self.boot_id, qemu))
                .clone(),
        }
    }

    /// As root, the group that a QEMU has to be in for KVM; absent where it needs none.
    pub fn kvm_group(&self) -> Option<u32> {
        kvm::group().ok().flatten()
    }

    /// The certificates of those by whom servers are trusted, in DER: the host's, or those that
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` name. Read anew at each call; only who asks servers does.
    pub fn authorities(&self) -> Vec<Vec<u8>> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some certificates cannot be read");
        }
        found.certs.iter().map(|der| der.to_vec()).collect()
    }

    /// Whether KVM runs guests of `arch`, tried if need be; waits at most [`kvm::DEADLINE`].
    ///
    /// Never [`KvmState::Unknown`]. What was found is what [`Host::kvm`] says from then on.
    pub fn try_kvm(&mut self, arch: Arch, ask: Ask) -> KvmState {
        let known = self.kvm(arch);
        if known != KvmState::Unknown && ask == Ask::Remembered {
            return known;
        }
        let verdict = match self.kvm_host(arch) {
            Err(why) => return KvmState::Fails(why),
            Ok((arch, qemu)) => kvm::try_boot(&self.memo, &self.boot_id, arch, qemu),
        };
        self.kvm = OnceLock::from(verdict.clone());
        verdict
    }

    /// A default deadline for an emulated guest of `arch`, as meant for KVM; it never waits.
    pub fn stretched(&self, deadline: Duration, arch: Arch) -> Duration {
        timing::stretched(deadline, arch, self.tcg_time())
    }

    /// How long the counting guest took, if it was timed since the host booted.
    pub(super) fn tcg_time(&self) -> Option<Duration> {
        let (_, qemu) = self.tcg_host()?;
        tcg::remembered(&self.memo, &self.boot_id, qemu)
    }

    /// Finds out how slow emulation is here, if nobody has yet; waits at most two seconds.
    pub fn time_tcg(&self) {
        if self.tcg_time().is_none()
            && let Some((arch, qemu)) = self.tcg_host()
        {
            tcg::time(&self.memo, &self.boot_id, arch, qemu);
        }
    }

    fn tcg_host(&self) -> Option<(Arch, &Qemu)> {
        let mut installed = tcg::TRIED.into_iter();
        installed.find_map(|arch| Some((arch, self.qemu(arch).ok()?)))
    }

    /// The distribution that packages come from.
    ///
    /// Debian 12 with a QEMU of its backports needs all other pieces of QEMU from there too.
    pub fn installer(&self) -> Distribution {
        let is_backport = |arch: Arch| {
            self.qemu(arch)
                .is_ok_and(|qemu| qemu.build.contains("~bpo12"))
        };
        if self.distribution == Distribution::Bookworm && Arch::ALL.into_iter().any(is_backport) {
            return Distribution::BookwormBackports;
        }
        self.distribution
    }

    /// The architecture and QEMU to try KVM with, for guests of `arch`. An error is the reason.
    fn kvm_host(&self, arch: Arch) -> Result<(Arch, &Qemu), String> {
        let host = self
            .arch
            .filter(|host| arch.is_native_on(*host))
            .ok_or("KVM runs only guests of the host's own architecture")?;
        if self.is_root() {
            kvm::group()?;
        }
        match self.qemu(host) {
            Ok(qemu) => Ok((host, qemu)),
            Err(error) => Err(format!("there is nothing to try it with: {error}")),
        }
    }
}

#[cfg(test)]
impl Host {
    /// This host, with all of kiln's folders below `home`; for tests.
    pub(crate) fn at_home_in(home: &Path) -> Host {
        let home = OsString::from(home);
        Host::look(Environment::read(|name| match name {
            "KILN_HOME" => Some(home.clone()),
            _ => std::env::var_os(name),
        }))
        .unwrap()
    }

    /// A host that is the same everywhere: an ordinary user of an x86_64 Debian with both QEMUs.
    /// Nothing of it exists; for golden tests.
    pub(crate) fn example(kvm: KvmState) -> Host {
        let memo = Memo::new(PathBuf::from("/home/user/.cache/kiln/facts"));
        let qemu = |arch: Arch| Qemu {
            program: Path::new("/usr/bin").join(arch.qemu_program()),
            version: qemu::Version(10, 0, 2),
            build: "example".to_owned(),
            board: Some(arch.board_of(10, 0)),
            boards: [arch.board_of(10, 0)].into(),
        };
        Host {
            uid: 1000,
            gid: 1000,
            home: Some(PathBuf::from("/home/user")),
            kiln_home: None,
            user_units: None,
            folders: Folders {
                state: PathBuf::from("/home/user/.local/state/kiln"),
                cache: PathBuf::from("/home/user/.cache/kiln"),
                runtime: PathBuf::from("/run/user/1000/kiln"),
                config: PathBuf::from("/home/user/.config/kiln"),
            },
            arch: Some(Arch::X86_64),
            boot_id: "00000000-0000-4000-8000-000000000000".to_owned(),
            machine_id: String::new(),
            cpus: NonZeroUsize::MIN,
            memory: Size::from_mib(16 * 1024),
            open_files: (1024, 524_288),
            path: OsString::from("/usr/bin:/bin"),
            tools: Tools::default(),
            color: false,
            resolvers: vec![SocketAddr::from(([192, 0, 2, 53], 53))],
            routes: Vec::new(),
            routes6: Vec::new(),
            distribution: Distribution::Debian,
            proxy: None,
            qemus: Qemus::example([qemu(Arch::X86_64), qemu(Arch::Aarch64)]),
            memo,
            kvm: OnceLock::from(kvm),
            firmware_folders: Vec::new(),
            firmwares: OnceLock::new(),
        }
    }
}

/// The user's folder in the user database.
fn home_of(uid: Uid) -> Option<PathBuf> {
    let user = User::from_uid(uid).ok()??;
    user.dir.is_absolute().then_some(user.dir)
}

fn read(path: &'static str) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(|source| HostError::Read {
        path: Path::new(path),
        source,
    })
}

fn memory() -> Result<Size, HostError> {
    const PATH: &str = "/proc/meminfo";
    parse_memory(&read(PATH)?).ok_or(HostError::Memory {
        path: Path::new(PATH),
    })
}

/// `MemTotal: 123 kB`, the unit being 1024 bytes.
fn parse_memory(text: &str) -> Option<Size> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    kib.checked_mul(1024).map(Size::from_bytes)
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn this_host_can_be_probed() {
        let home = tempdir().unwrap();
        let host = Host::at_home_in(home.path());
        assert!(host.memory > Size::from_mib(64));
        assert_eq!(host.boot_id.len(), 36);
        assert_eq!(host.folders.state, home.path().join("state"));
        assert_eq!(
            fs::read_dir(home.path()).unwrap().count(),
            0,
            "made something"
        );
        let (soft, hard) = host.open_files;
        assert!(0 < soft && soft <= hard);
    }

    #[test]
    fn memory_is_read() {
        let text = "MemTotal:        4027436 kB\nMemFree:         1 kB\n";
        assert_eq!(parse_memory(text), Some(Size::from_bytes(4_027_436 * 1024)));
        for text in [
            "",
            "MemTotal: kB",
            "MemTotal: -1 kB",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(parse_memory(text), None);
        }
    }

    #[test]
    fn the_example_touches_nothing() {
        let host = Host::example(KvmState::Works);
        assert!(host.qemu(Arch::Aarch64).is_ok());
        assert!(matches!(
            host.qemu(Arch::S390x),
            Err(QemuError::Missing { .. })
        ));
        assert_eq!(host.kvm(Arch::X86_64), KvmState::Works);
        assert_eq!(host.kvm(Arch::I386), KvmState::Works);
    }

    #[test]
    fn kvm_is_only_for_the_host_s_own_architecture() {
        let home = tempdir().unwrap();
        let host = Host::at_home_in(home.path());
        let foreign = match host.arch {
            Some(Arch::S390x) => Arch::Ppc64le,
            _ => Arch::S390x,
        };
        assert!(matches!(host.kvm(foreign), KvmState::Fails(why) if why.contains("own")));
    }
}
