//! What a command line speaks of, put in its place: sockets, images, flash, kernels, a config.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kiln::supervisor::process::{Companion, Exit, Identity, Launch, Process, spawn_all};
use kiln_arch::Arch;
use kiln_arch::command::QemuCommand;
use kiln_arch::machine::{
    Access, ChildFd, ConsoleBackend, Firmware, Format, Ignition, Image, Machine, NicBackend,
    Pflash, ShareServer, Socket, Source, Uplink, UplinkPort,
};
use nix::unistd::Uid;
use tempfile::TempDir;

use crate::qemu_takes::monitor::Monitor;
use crate::qemu_takes::props::{installed, kernel_for, new_tap};
use crate::support::run::run;
use crate::support::virtiofsd;

/// What Ignition is to find, to the byte.
pub(crate) const CONFIG: &[u8] = br#"{"ignition":{"version":"3.4.0"}}"#;

const DISK_SIZE: u64 = 1 << 20;
const NOBODY: u32 = 65534;
const PROMPT: Duration = Duration::from_secs(20);

/// The surroundings of one QEMU.
pub(crate) struct Stage {
    name: String,
    folder: TempDir,
    fds: RefCell<Vec<(OwnedFd, RawFd)>>,
    /// Our end of the TPM's control channel.
    tpm: Cell<Option<OwnedFd>>,
    /// Where what serves a share listens, and its program.
    share: Cell<Option<(OwnedFd, TempDir)>>,
    programs: RefCell<Option<TempDir>>,
    /// Where QMP is spoken, by the line's own words or by ours.
    monitor: PathBuf,
    pub(crate) has_tap: bool,
}

/// A QEMU that greeted.
pub(crate) struct Running {
    pub(crate) monitor: Monitor,
    runtime: tokio::runtime::Runtime,
    process: Process,
    /// They end with QEMU.
    beside: Vec<Process>,
    stderr: PathBuf,
}

impl Stage {
    fn new(name: &str, monitor: PathBuf) -> Stage {
        let folder = tempfile::Builder::new().prefix("kiln-takes.").tempdir();
        let folder = folder.unwrap();
        Stage {
            name: name.to_owned(),
            monitor: folder.path().join(monitor),
            folder,
            fds: RefCell::default(),
            tpm: Cell::default(),
            share: Cell::default(),
            programs: RefCell::default(),
            has_tap: true,
        }
    }

    pub(crate) fn of(name: &str, machine: &Machine) -> Stage {
        let monitor = match machine.monitors.first() {
            Some(Socket::Listener(fd)) => format!("{fd}.sock").into(),
            Some(Socket::Path(path)) => path.strip_prefix("/").unwrap().to_owned(),
            None => "own.sock".into(),
        };
        let mut stage = Stage::new(name, monitor);
        for folder in ["srv/a,b", "run/kiln"] {
            fs::create_dir_all(stage.folder.path().join(folder)).unwrap();
        }
        for socket in &machine.monitors {
            stage.socket(socket);
        }
        for port in &machine.ports {
            stage.socket(&port.socket);
        }
        if let ConsoleBackend::Socket(socket) = &machine.console.backend {
            stage.socket(socket);
        }
        if let Some(log) = &machine.console.log {
            stage.log(log);
        }
        for nic in &machine.nics {
            match &nic.backend {
                NicBackend::Stream(socket) => stage.socket(socket),
                NicBackend::Tap(fd) => stage.tap(*fd),
                NicBackend::User(_) => {}
            }
        }
        if let Some(fd) = machine.tpm {
            let (theirs, ours) = UnixStream::pair().unwrap();
            stage.hand(fd, theirs);
            stage.tpm.set(Some(ours.into()));
        }
        for share in &machine.shares {
            match &share.server {
                ShareServer::Virtiofs(fd) => stage.served(*fd),
                ShareServer::Qemu { folder, .. } => {
                    let Source::Fd(fd) = folder else {
                        panic!("the fixture's folders are handed over");
                    };
                    stage.hand(*fd, File::open(stage.folder.path()).unwrap());
                }
            }
        }
        match &machine.firmware {
            Firmware::Board => {}
            Firmware::Uefi(flash) | Firmware::UefiSecure(flash) => stage.flash(machine.arch, flash),
        }
        if let Some(kernel) = &machine.kernel {
            let image = kernel_for(machine.arch);
            stage.file(&kernel.image, Access::ReadOnly, |path| {
                fs::write(path, &image).unwrap();
            });
            if let Some(initrd) = &kernel.initrd {
                stage.file(initrd, Access::ReadOnly, |path| {
                    fs::write(path, "initrd").unwrap();
                });
            }
        }
        for drive in &machine.drives {
            stage.image(&drive.image, drive.access);
        }
        match &machine.ignition {
            Ignition::None => {}
            Ignition::Config(source) | Ignition::ConfigBy(_, source) => {
                stage.file(source, Access::ReadOnly, |path| {
                    fs::write(path, CONFIG).unwrap();
                });
            }
        }
        stage
    }

    pub(crate) fn of_uplink(uplink: &Uplink) -> Stage {
        let Socket::Listener(monitor) = &uplink.monitor else {
            panic!("the fixture's uplink is handed its monitor");
        };
        let stage = Stage::new("uplink", format!("{monitor}.sock").into());
        stage.socket(&uplink.monitor);
        let UplinkPort::Stream(switch) = &uplink.switch else {
            panic!("the fixture's uplink is plugged into the fabric");
        };
        stage.socket(switch);
        stage
    }

    /// What QEMU calls the file that `image` is in.
    pub(crate) fn filename(&self, image: &Source) -> String {
        match image {
            Source::Fd(fd) => format!("/dev/fdset/{fd}"),
            Source::Path(_) => self.path(image).to_str().unwrap().to_owned(),
        }
    }

    /// What the machine's own paths, which no host has, are here.
    fn path(&self, source: &Source) -> PathBuf {
        let folder = self.folder.path();
        match source {
            Source::Fd(fd) => folder.join(fd.to_string()),
            Source::Path(path) => folder.join(path.strip_prefix("/").unwrap()),
        }
    }

    fn hand(&self, fd: ChildFd, what: impl Into<OwnedFd>) {
        let entry = (what.into(), RawFd::from(fd.number()));
        self.fds.borrow_mut().push(entry);
    }

    fn socket(&self, socket: &Socket) {
        if let Socket::Listener(fd) = socket {
            let path = self.folder.path().join(format!("{fd}.sock"));
            self.hand(*fd, UnixListener::bind(path).unwrap());
        }
    }

    fn file(&self, source: &Source, access: Access, make: impl FnOnce(&Path)) {
        let path = self.path(source);
        make(&path);
        if let Source::Fd(fd) = source {
            let write = access == Access::ReadWrite;
            let file = File::options().read(true).write(write).open(path);
            self.hand(*fd, file.unwrap());
        }
    }

    fn log(&self, source: &Source) {
        let file = File::options()
            .append(true)
            .create(true)
            .open(self.path(source));
        if let Source::Fd(fd) = source {
            self.hand(*fd, file.unwrap());
        }
    }

    fn blank(&self, source: &Source, format: Format, access: Access, size: u64) {
        self.file(source, access, |path| match format {
            Format::Raw => File::create(path).unwrap().set_len(size).unwrap(),
            Format::Qcow2 => {
                let mut create = Command::new("qemu-img");
                create.args(["create", "-q", "-f", "qcow2"]).arg(path);
                run(create.arg(size.to_string()), PROMPT).ok();
            }
        });
    }

    /// The images' own headers name no backing file: the line alone says what lies over what.
    fn image(&self, image: &Image, access: Access) {
        match image {
            Image::Raw(source) => self.blank(source, Format::Raw, access, DISK_SIZE),
            // Only root has block devices to give away.
            Image::Device(_) => panic!("{}: no stage has a block device", self.name),
            Image::Qcow2 { source, backing } => {
                self.blank(source, Format::Qcow2, access, DISK_SIZE);
                if let Some(backing) = backing {
                    self.image(backing, Access::ReadOnly);
                }
            }
        }
    }

    /// Arm's chips are of one size only.
    fn flash(&self, arch: Arch, flash: &Pflash) {
        let size = if arch == Arch::Aarch64 {
            64 << 20
        } else {
            1 << 20
        };
        self.blank(&flash.code, flash.code_format, Access::ReadOnly, size);
        self.blank(&flash.vars, flash.vars_format, Access::ReadWrite, size);
    }

    fn tap(&mut self, fd: ChildFd) {
        // The thread ends, and its network namespace lives as long as the tap's descriptor.
        match std::thread::spawn(new_tap).join().unwrap() {
            Ok(tap) => self.hand(fd, tap),
            Err(error) => {
                eprintln!("{}: no tap ({error}): a user network instead", self.name);
                self.has_tap = false;
            }
        }
    }

    fn served(&self, fd: ChildFd) {
        let path = self.folder.path().join("share.sock");
        let listener = UnixListener::bind(&path).unwrap();
        self.hand(fd, UnixStream::connect(&path).unwrap());
        self.share
            .set(Some((listener.into(), virtiofsd::public_copy())));
    }

    /// What has to run beside QEMU.
    fn companions(&self) -> Vec<Companion> {
        self.tpm().into_iter().chain(self.virtiofsd()).collect()
    }

    fn virtiofsd(&self) -> Option<Companion> {
        let (listener, programs) = self.share.take()?;
        let folder = self.folder.path();
        let shown = format!("--shared-dir={}", programs.path().display());
        let program = programs.path().join("bin/virtiofsd");
        // It is needed for as long as all else here.
        self.programs.replace(Some(programs));
        Some(Companion {
            fds: vec![(listener, 3)],
            program,
            args: ["--fd=3", &shown, "--sandbox=none"]
                .map(OsString::from)
                .into(),
            output: File::create(folder.join("share.log")).unwrap().into(),
            umask: 0,
            mount: None,
        })
    }

    fn tpm(&self) -> Option<Companion> {
        let state = self.folder.path();
        Some(Companion {
            fds: vec![(self.tpm.take()?, 3)],
            program: installed("swtpm"),
            args: [
                "socket",
                "--tpm2",
                "--terminate",
                "--ctrl",
                "type=unixio,clientfd=3",
                "--tpmstate",
                &format!("dir={}", state.display()),
            ]
            .map(OsString::from)
            .into(),
            output: File::create(state.join("tpm.log")).unwrap().into(),
            umask: 0o077,
            mount: None,
        })
    }

    /// Starts QEMU as the supervisor does.
    #[track_caller]
    pub(crate) fn start(&self, program: &Path, mut args: Vec<OsString>) -> Running {
        for arg in &mut args {
            if !self.has_tap && arg.as_bytes().starts_with(b"tap,id=net0,") {
                *arg = "user,id=net0".into();
            }
        }
        self.launch(program.to_owned(), args)
    }

    /// Lets a shell read the line, with the paths, host ports and monitor that this test needs.
    #[track_caller]
    pub(crate) fn start_by_shell(&self, program: &Path, mut command: QemuCommand) -> Running {
        command.program = program.into();
        let folder = self.folder.path().to_str().unwrap();
        let line = command.shell().into_string().unwrap();
        let line = line
            .replace("/srv/", &format!("{folder}/srv/"))
            .replace("/run/kiln/", &format!("{folder}/run/kiln/"))
            .replace("127.0.0.1:2222-", "127.0.0.1:0-")
            .replace("127.0.0.1:5353-", "127.0.0.1:0-");
        let own = ChildFd::FIRST;
        self.hand(own, UnixListener::bind(&self.monitor).unwrap());
        let line = format!(
            "exec {line} -S -chardev socket,id=own,fd={own},server=on,wait=off \
             -mon chardev=own,mode=control"
        );
        self.launch("/bin/sh".into(), vec!["-c".into(), line.into()])
    }

    #[track_caller]
    fn launch(&self, program: PathBuf, args: Vec<OsString>) -> Running {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let stderr = self.folder.path().join("stderr");
        let companions = self.companions();
        // A virtiofsd that is root wants root's capabilities.
        let nobody = Identity::Drop {
            uid: NOBODY,
            gid: NOBODY,
        };
        let identity = match Uid::effective().is_root() && self.programs.borrow().is_some() {
            true => nobody,
            false => Identity::Same,
        };
        let launch = Launch {
            program,
            args,
            fds: self.fds.take(),
            stderr: File::create(&stderr).unwrap().into(),
            identity,
        };
        let (process, beside) = {
            let _inside = runtime.enter();
            spawn_all(launch, companions).unwrap()
        };
        match Monitor::connect(&self.monitor) {
            Ok(monitor) => Running {
                monitor,
                runtime,
                process,
                beside,
                stderr,
            },
            Err(error) => {
                let said = fs::read_to_string(&stderr).unwrap();
                panic!("{} is refused: {error}\n{said}", self.name)
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was about the line {}", self.name);
        }
    }
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// It ends when told so; what it printed.
    #[track_caller]
    pub(crate) fn end(mut self) -> String {
        self.monitor.ask("quit");
        let exited = async { tokio::time::timeout(PROMPT, self.process.exited()).await };
        assert_eq!(self.runtime.block_on(exited).unwrap(), Exit::Code(0));
        for other in &self.beside {
            let exited = async { tokio::time::timeout(PROMPT, other.exited()).await };
            assert_eq!(self.runtime.block_on(exited).unwrap(), Exit::Code(0));
        }
        fs::read_to_string(&self.stderr).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("QEMU said: {}", fs::read_to_string(&self.stderr).unwrap());
        }
        // One that has ended already is no error.
        let _ = self.process.kill();
    }
}
