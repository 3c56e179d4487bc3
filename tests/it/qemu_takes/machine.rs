//! A machine that was asked for, against the one that QEMU has.

use kiln_arch::Arch;
use kiln_arch::machine::{
    Access, ConsoleBackend, DiskBus, Drive, Firmware, Ignition, IgnitionTransport, Image, Machine,
    NicBackend, Sandbox, Sector,
};
use serde_json::{Value, json};

use crate::qemu_takes::stage::{CONFIG, Running, Stage};
use crate::support::process;

/// The question, in the form of its right answer.
pub(crate) struct Asked<'a> {
    machine: &'a Machine,
    stage: &'a Stage,
    /// By which way the guest's Ignition is to find a disk or an item.
    transport: IgnitionTransport,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(machine: &'a Machine, stage: &'a Stage) -> Asked<'a> {
        let own = match machine.arch {
            Arch::I386 | Arch::X86_64 | Arch::Aarch64 => IgnitionTransport::FwCfg,
            Arch::S390x | Arch::Ppc64le => IgnitionTransport::VirtioBlk,
        };
        let transport = match &machine.ignition {
            Ignition::None | Ignition::Config(_) => own,
            Ignition::ConfigBy(transport, _) => *transport,
        };
        Asked {
            machine,
            stage,
            transport,
        }
    }

    #[track_caller]
    pub(crate) fn all(&self, qemu: &mut Running) {
        self.identity(qemu);
        self.board(qemu);
        self.processors(qemu);
        self.slots(qemu);
        self.nics(qemu);
        self.ports(qemu);
        self.console(qemu);
        self.kernel(qemu);
        self.flash(qemu);
        self.tpm(qemu);
        for (index, drive) in self.machine.drives.iter().enumerate() {
            self.drive(qemu, index, drive);
        }
        self.ignition(qemu);
        self.sandbox(qemu);
    }

    fn identity(&self, qemu: &mut Running) {
        let name = format!("{}/{}", self.machine.cluster, self.machine.name);
        assert_eq!(qemu.monitor.ask("query-name")["name"], json!(name));
        if let Some(uuid) = &self.machine.uuid {
            assert_eq!(qemu.monitor.ask("query-uuid")["UUID"], json!(uuid));
        }
        assert_eq!(qemu.monitor.ask("query-status")["status"], "prelaunch");
    }

    /// The versioned board, also where only its alias was said.
    fn board(&self, qemu: &mut Running) {
        let arch = self.machine.arch;
        let version = match &self.machine.board_version {
            Some(version) => version.clone(),
            None => {
                let boards = qemu.monitor.ask("query-machines");
                let mut boards = boards.as_array().unwrap().iter();
                let newest = boards.find(|board| board["alias"] == arch.board_alias());
                newest.unwrap()["name"].as_str().unwrap().to_owned()
            }
        };
        let mut is = |property: &str, value: Value| {
            let found = qemu.monitor.property("/machine", property);
            assert_eq!(found, Some(value), "{version} {property}");
        };
        is("type", json!(format!("{version}-machine")));
        is("dump-guest-core", json!(false));
        if matches!(arch, Arch::I386 | Arch::X86_64) {
            is("graphics", json!(false));
        }
        if matches!(self.machine.firmware, Firmware::UefiSecure(_)) {
            is("smm", json!("on"));
        }
    }

    fn processors(&self, qemu: &mut Running) {
        let kind = match self.machine.arch {
            Arch::I386 => "max-i386-cpu",
            Arch::X86_64 => "max-x86_64-cpu",
            Arch::Aarch64 => "cortex-a72-arm-cpu",
            Arch::S390x => "max-s390x-cpu",
            Arch::Ppc64le => "power9_v2.",
        };
        let cpus = qemu.monitor.ask("query-cpus-fast");
        let cpus = cpus.as_array().unwrap();
        assert_eq!(cpus.len(), usize::from(self.machine.cpus.get()));
        for cpu in cpus {
            let path = cpu["qom-path"].as_str().unwrap();
            let found = qemu.monitor.property(path, "type").unwrap();
            assert!(found.as_str().unwrap().starts_with(kind), "{found}");
        }
        assert_eq!(qemu.monitor.ask("query-kvm")["enabled"], false);
        let memory = qemu.monitor.ask("query-memory-size-summary");
        let asked = u64::from(self.machine.memory.0.get()) << 20;
        assert_eq!(memory["base-memory"], json!(asked));
    }

    /// Every device is there, on slots that follow each other in the order that guests count in.
    fn slots(&self, qemu: &mut Running) {
        let mut found = Vec::new();
        for container in ["/machine/peripheral", "/machine/peripheral-anon"] {
            for (path, kind) in qemu.monitor.children(container) {
                if let Some(slot) = slot(qemu, &path) {
                    let name = path.rsplit('/').next().unwrap();
                    // What has no name is numbered.
                    let name = name.split("device[").next().unwrap().to_owned();
                    found.push((slot, kind, name));
                }
            }
        }
        found.sort();
        let bus = match self.machine.arch {
            Arch::I386 | Arch::X86_64 | Arch::Aarch64 | Arch::Ppc64le => "pci",
            Arch::S390x => "ccw",
        };
        let mut wanted = Vec::new();
        let mut want = |kind: String, name: String| wanted.push((kind, name));
        if !self.machine.ports.is_empty() {
            want(format!("virtio-serial-{bus}"), String::new());
        }
        want(format!("virtio-rng-{bus}"), String::new());
        match self.machine.arch {
            Arch::I386 | Arch::X86_64 | Arch::Aarch64 => {
                want("pvpanic-pci".to_owned(), String::new());
            }
            Arch::S390x | Arch::Ppc64le => {}
        }
        for index in 0..self.machine.nics.len() {
            want(format!("virtio-net-{bus}"), format!("nic{index}"));
        }
        let mut has_scsi = false;
        for (index, drive) in self.machine.drives.iter().enumerate() {
            let name = device_of(index, drive);
            match drive.bus {
                DiskBus::Virtio => want(format!("virtio-blk-{bus}"), name),
                DiskBus::Nvme => want("nvme".to_owned(), name),
                DiskBus::Scsi if has_scsi => {}
                DiskBus::Scsi => {
                    has_scsi = true;
                    want(format!("virtio-scsi-{bus}"), "scsi".to_owned());
                }
            }
        }
        if self.transport == IgnitionTransport::VirtioBlk {
            want(format!("virtio-blk-{bus}"), "virtio-ignition".to_owned());
        }
        let first = found[0].0;
        let slots = (first..).map(|slot| slot.to_owned());
        let wanted: Vec<_> = slots
            .zip(wanted)
            .map(|(slot, (kind, name))| (slot, kind, name))
            .collect();
        assert_eq!(found, wanted);
    }

    fn nics(&self, qemu: &mut Running) {
        let network = qemu.monitor.human("info network");
        for (index, nic) in self.machine.nics.iter().enumerate() {
            let path = format!("/machine/peripheral/nic{index}");
            let mac = nic.mac.to_string().to_ascii_lowercase();
            assert_eq!(qemu.monitor.property(&path, "mac"), Some(json!(mac)));
            if self.machine.arch != Arch::S390x {
                assert_eq!(qemu.monitor.property(&path, "romfile"), Some(json!("")));
            }
            let cable = match &nic.backend {
                NicBackend::Stream(_) => "type=stream",
                NicBackend::Tap(_) if self.stage.has_tap => "type=tap,fd=",
                NicBackend::Tap(_) => "type=user",
                NicBackend::User(_) => "type=user,net=10.80.1.0,restrict=off",
            };
            let cable = format!(" \\ net{index}: index=0,{cable}");
            assert!(network.contains(&cable), "no {cable}: {network}");
            if let NicBackend::User(user) = &nic.backend {
                let forwards = qemu.monitor.human("info usernet");
                let count = forwards.matches("[HOST_FORWARD]").count();
                assert_eq!(count, user.forwards.len(), "{forwards}");
            }
        }
    }

    fn ports(&self, qemu: &mut Running) {
        let mut found = Vec::new();
        for (path, kind) in qemu.monitor.children("/machine/peripheral-anon") {
            if kind == "virtserialport" {
                let number = qemu.monitor.property(&path, "nr").unwrap();
                let name = qemu.monitor.property(&path, "name").unwrap();
                found.push((number.as_u64().unwrap(), name));
            }
        }
        found.sort_by_key(|(number, _)| *number);
        let ports = self.machine.ports.iter();
        let wanted: Vec<_> = (1..)
            .zip(ports.map(|port| json!(port.name.as_str())))
            .collect();
        assert_eq!(found, wanted);
    }

    fn console(&self, qemu: &mut Running) {
        let mut devices = qemu.monitor.children("/machine/unattached");
        devices.extend(qemu.monitor.children("/machine/peripheral-anon"));
        devices
            .retain(|(path, _)| qemu.monitor.property(path, "chardev") == Some(json!("console")));
        let kinds: Vec<&str> = devices.iter().map(|(_, kind)| kind.as_str()).collect();
        let wanted = match self.machine.arch {
            Arch::I386 | Arch::X86_64 => "isa-serial",
            Arch::Aarch64 => "pl011",
            Arch::S390x => "sclpconsole",
            Arch::Ppc64le => "spapr-vty",
        };
        assert_eq!(kinds, [wanted]);
        let chardevs = qemu.monitor.ask("query-chardev");
        let mut chardevs = chardevs.as_array().unwrap().iter();
        let console = chardevs.find(|chardev| chardev["label"] == "console");
        let console = console.unwrap();
        assert_eq!(console["frontend-open"], true, "{console}");
        let filename = console["filename"].as_str().unwrap();
        match &self.machine.console.backend {
            ConsoleBackend::Socket(_) => assert!(filename.ends_with(",server=on"), "{filename}"),
            ConsoleBackend::Stdio => assert_eq!(filename, "stdio"),
        }
    }

    fn kernel(&self, qemu: &mut Running) {
        let mut given = |property| {
            let found = qemu.monitor.property("/machine", property);
            found.and_then(|value| value.as_str().map(str::to_owned))
        };
        let Some(kernel) = &self.machine.kernel else {
            assert_eq!(given("kernel").unwrap_or_default(), "");
            return;
        };
        assert_ne!(given("kernel").unwrap_or_default(), "");
        assert_eq!(
            given("initrd").unwrap_or_default().is_empty(),
            kernel.initrd.is_none()
        );
        assert_eq!(given("append"), Some(kernel.cmdline.clone()));
    }

    fn flash(&self, qemu: &mut Running) {
        let secure = match &self.machine.firmware {
            Firmware::Board => return assert_eq!(pflash(qemu, "code"), None),
            Firmware::Uefi(_) => false,
            Firmware::UefiSecure(_) => true,
        };
        for (chip, part, read_only) in [(0, "code", true), (1, "vars", false)] {
            let board = match self.machine.arch {
                Arch::Aarch64 => "virt",
                Arch::I386 | Arch::X86_64 | Arch::S390x | Arch::Ppc64le => "system",
            };
            let path = format!("/machine/{board}.flash{chip}");
            let found = pflash(qemu, part).unwrap();
            assert_eq!(found["qdev"], json!(path));
            assert_eq!(found["inserted"]["ro"], json!(read_only));
            assert_eq!(qemu.monitor.property(&path, "secure"), Some(json!(secure)));
        }
    }

    fn tpm(&self, qemu: &mut Running) {
        let devices = qemu.monitor.children("/machine/peripheral-anon");
        let kinds = devices.iter().map(|(_, kind)| kind.as_str());
        let tpms: Vec<&str> = kinds.filter(|kind| kind.starts_with("tpm-")).collect();
        let wanted = self.machine.tpm.map(|_| match self.machine.arch {
            Arch::I386 => "tpm-tis",
            Arch::X86_64 => "tpm-crb",
            Arch::Aarch64 => "tpm-tis-device",
            Arch::Ppc64le => "tpm-spapr",
            Arch::S390x => panic!("QEMU has no TPM for it"),
        });
        assert_eq!(tpms, wanted.as_slice());
    }

    fn drive(&self, qemu: &mut Running, index: usize, drive: &Drive) {
        let device = device_of(index, drive);
        let disk = inserted(qemu, &device).unwrap();
        let read_only = drive.access == Access::ReadOnly;
        assert_eq!(disk["node-name"], json!(format!("disk{index}")));
        assert_eq!(disk["ro"], json!(read_only));
        self.chain(qemu, &disk["image"], &drive.image, read_only);
        let path = format!("/machine/peripheral/{device}");
        let mut is = |property: &str, value: Value| {
            let found = qemu.monitor.property(&path, property);
            assert_eq!(found, Some(value), "{device} {property}");
        };
        is("serial", json!(drive.serial.as_deref().unwrap_or_default()));
        if drive.bus != DiskBus::Nvme {
            is("werror", json!("stop"));
            is("rerror", json!("stop"));
        }
        let sector = match drive.sector {
            Sector::Bytes512 => 512,
            Sector::Bytes4096 => 4096,
        };
        is("logical_block_size", json!(sector));
        let boots = index == 0 && self.machine.kernel.is_none();
        is("bootindex", json!(if boots { 1 } else { -1 }));
    }

    /// The layers of an image: their formats, their files, and that only the top may be written.
    fn chain(&self, qemu: &mut Running, found: &Value, image: &Image, read_only: bool) {
        let (source, format, protocol, backing) = match image {
            Image::Raw(source) => (source, "raw", "file", None),
            Image::Device(source) => (source, "raw", "host_device", None),
            Image::Qcow2 { source, backing } => (source, "qcow2", "file", backing.as_deref()),
        };
        assert_eq!(found["format"], format);
        let nodes = qemu.monitor.ask("query-named-block-nodes");
        let file = self.stage.filename(source);
        let mut nodes = nodes.as_array().unwrap().iter();
        let node = nodes.find(|node| node["drv"] == protocol && node["file"] == json!(file));
        assert_eq!(node.unwrap()["ro"], json!(read_only), "{file}");
        let below = found.get("backing-image");
        match (backing, below) {
            (Some(backing), Some(below)) => self.chain(qemu, below, backing, true),
            (backing, below) => assert!(backing.is_none() && below.is_none(), "{found}"),
        }
    }

    fn ignition(&self, qemu: &mut Running) {
        let disk = inserted(qemu, "virtio-ignition");
        let has_config = self.machine.ignition != Ignition::None;
        match self.transport {
            IgnitionTransport::FwCfg => {
                assert_eq!(disk, None);
                match self.machine.arch {
                    Arch::I386 | Arch::X86_64 => {
                        assert_eq!(config_item(qemu).as_deref(), has_config.then_some(CONFIG));
                    }
                    // Here the device is not on ports that the monitor reads; that the guest finds
                    // the item is seen when it boots.
                    Arch::Aarch64 | Arch::S390x | Arch::Ppc64le => {
                        let tree = qemu.monitor.human("info qtree");
                        assert!(tree.contains("dev: fw_cfg_mem"), "{tree}");
                    }
                }
            }
            IgnitionTransport::VirtioBlk => {
                let disk = disk.unwrap();
                assert_eq!(disk["ro"], true);
                assert_eq!(disk["drv"], if has_config { "raw" } else { "null-co" });
                // In whole sectors.
                let size = if has_config { 512 } else { 0 };
                assert_eq!(disk["image"]["virtual-size"], size);
                let path = "/machine/peripheral/virtio-ignition";
                let serial = qemu.monitor.property(path, "serial");
                assert_eq!(serial, Some(json!("ignition")));
                let bootindex = qemu.monitor.property(path, "bootindex");
                assert_eq!(bootindex, Some(json!(-1)));
            }
        }
    }

    /// Seccomp filters are on where they were asked for.
    fn sandbox(&self, qemu: &mut Running) {
        let mode = match self.machine.sandbox {
            Sandbox::Full => "2",
            Sandbox::Absent => "0",
        };
        assert_eq!(process::status(qemu.pid(), "Seccomp"), mode);
    }
}

/// Where a device is on its bus, counted in whole slots; absent where it has none.
fn slot(qemu: &mut Running, path: &str) -> Option<u64> {
    if let Some(address) = qemu.monitor.property(path, "addr") {
        let address = address.as_u64().unwrap();
        assert_eq!(address % 8, 0, "{path} is a second function");
        return Some(address / 8);
    }
    let id = qemu.monitor.property(path, "dev_id")?;
    let number = id.as_str().unwrap().strip_prefix("fe.0.").unwrap();
    Some(u64::from_str_radix(number, 16).unwrap())
}

fn blocks(qemu: &mut Running) -> Vec<Value> {
    let blocks = qemu.monitor.ask("query-block");
    blocks.as_array().unwrap().clone()
}

/// What is in a drive, by the device's name.
/// What QEMU calls the device of a drive.
fn device_of(index: usize, drive: &Drive) -> String {
    format!("{}-disk{index}", drive.bus.name())
}

fn inserted(qemu: &mut Running, device: &str) -> Option<Value> {
    let path = format!("/machine/peripheral/{device}");
    let of = |block: &Value| {
        let qdev = block["qdev"].as_str().unwrap_or_default();
        qdev.starts_with(&format!("{path}/")) || qdev == path || qdev == device
    };
    let block = blocks(qemu).into_iter().find(of)?;
    Some(block["inserted"].clone())
}

fn pflash(qemu: &mut Running, part: &str) -> Option<Value> {
    let node = format!("uefi-{part}");
    let mut blocks = blocks(qemu).into_iter();
    blocks.find(|block| block["inserted"]["node-name"] == json!(node))
}

/// What a guest on a PC reads as Ignition's config, by the very ports that it reads.
fn config_item(qemu: &mut Running) -> Option<Vec<u8>> {
    const DIRECTORY: u16 = 0x19;
    let mut bytes = |key: u16, count: usize| -> Vec<u8> {
        qemu.monitor.human(&format!("o /h 0x510 {key:#x}"));
        let mut next = || {
            let said = qemu.monitor.human("i /b 0x511");
            let digits = said.trim().rsplit("0x").next().unwrap();
            u8::from_str_radix(digits, 16).unwrap()
        };
        (0..count).map(|_| next()).collect()
    };
    let count = bytes(DIRECTORY, 4);
    let count = usize::try_from(u32::from_be_bytes(count.try_into().unwrap())).unwrap();
    // A size, a key, two bytes of nothing, and a name of 56 bytes.
    let items = bytes(DIRECTORY, 4 + 64 * count);
    let item = items[4..].chunks(64).find(|item| {
        let name = item[8..].split(|byte| *byte == 0).next().unwrap();
        name == b"opt/com.coreos/config"
    })?;
    let size = u32::from_be_bytes(item[..4].try_into().unwrap());
    let key = u16::from_be_bytes(item[4..6].try_into().unwrap());
    Some(bytes(key, usize::try_from(size).unwrap()))
}
