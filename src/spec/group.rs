//! One entry under `machines:` becomes its machines.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use kiln_arch::Arch;
use kiln_arch::machine::IgnitionTransport;

use super::disks;
use super::document::{Key, Node, Value};
use super::error::{Fault, Place, Problem};
use super::fields::{self, Fields, Keys};
use super::files::{self, Folders};
use super::fixed::{self, PlacedFixed};
use super::image::{self, PlacedImage};
use super::load::Scale;
use super::port::{self, PlacedPort};
use super::stream;
use super::suggest;
use super::warning::SpecWarning;
use crate::cluster::{
    AccelWish, COUNT_LIMIT, FirmwareWish, IgnitionSource, Machine, MachineName, Profile,
    RestartPolicy, Size,
};

const KEYS: Keys = Keys {
    known: &[
        "count", "names", "image", "arch", "accel", "cpus", "memory", "disk", "disks", "ignition",
        "template", "vars", "profile", "ports", "firmware", "graphics", "restart", "tpm",
        "address", "mac",
    ],
    not_built: &[
        (
            "butane",
            "translate it with `butane --strict FILE` and name the result in `ignition:`",
        ),
        ("shares", "leave it out; `ignition:` can carry small files"),
    ],
};

/// Machines in one group at most; the cluster's subnet is the tighter limit.
const CPUS_LIMIT: u16 = 255;
const MEMORY_LEAST: Size = Size::from_mib(64);
const MEMORY_MOST: Size = Size::from_bytes(16 << 40);
const MEMORY_DEFAULT: Size = Size::from_mib(1024);
/// OVMF's build for secure boot crashes with 256 MiB; with this it boots.
const SECURE_LEAST: Size = Size::from_mib(512);
pub(super) const DISK_LEAST: Size = Size::from_mib(1);
pub(super) const DISK_MOST: Size = Size::from_bytes(64 << 40);
/// fw_cfg would take minutes to hand over more.
const IGNITION_LIMIT: Size = Size::from_mib(8);

/// What a group inherits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults<'a> {
    pub(super) image: Option<&'a PlacedImage>,
    pub(super) arch: Arch,
    pub(super) folders: Folders<'a>,
    pub(super) scale: Scale<'a>,
}

/// What a group comes to.
#[derive(Debug)]
pub(super) struct PlacedGroup {
    pub(super) name: MachineName,
    pub(super) machines: Vec<PlacedMachine>,
    /// How many they are, where [`Scale`] says other than the spec.
    pub(super) scaled: Option<u16>,
    pub(super) fixed: Vec<PlacedFixed>,
}

/// A machine, and where the spec names it and its published ports.
#[derive(Debug)]
pub(super) struct PlacedMachine {
    pub(super) machine: Machine,
    /// Of the group's key, or of the name in `names`.
    pub(super) place: Place,
    pub(super) ports: Vec<PlacedPort>,
}

/// The machines of one group.
pub(super) fn group(
    key: &Key,
    mut node: Node,
    defaults: Defaults<'_>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<PlacedGroup, Fault> {
    let group = name(key.place, "machines", &key.text)?;
    let owner = format!("group `{group}`");
    if node.value == Value::Nothing {
        // `node:` alone is one machine with the cluster's image.
        node = Node {
            place: key.place,
            value: Value::Map(Vec::new()),
        };
    }
    let folders = defaults.folders;
    let mut fields = Fields::new(node, owner.clone(), KEYS)?;
    // A missing key is missing in the group, wherever its map begins.
    fields.place = key.place;

    let Names {
        machines: names,
        scaled,
        most,
    } = names(key, &group, &mut fields, defaults.scale, warnings)?;
    let is_known = |name: &str| {
        let of_count = |count| (1..=count).any(|index| name == format!("{group}-{index}"));
        names.iter().any(|(_, known)| known.as_str() == name) || most.is_some_and(of_count)
    };
    let fixed = fixed::fixed(&mut fields, &group, &is_known)?;
    let PlacedImage {
        image,
        place,
        transport,
    } = match fields.take_as("image", |node, key| {
        image::image(node, key, &owner, folders, warnings)
    })? {
        Some(image) => image,
        None => defaults.image.cloned().ok_or_else(|| {
            fields
                .missing("image")
                .hint("give the cluster an `image`, or each group its own")
        })?,
    };
    let arch = fields.take_as("arch", arch)?.unwrap_or(defaults.arch);
    stream::refuse_arch(&image, place, arch)?;
    refuse_transport(transport, arch)?;
    let firmware = fields
        .take_as("firmware", |node, key| firmware(node, key, arch))?
        .unwrap_or(FirmwareWish::Auto);
    let tpm = fields
        .take_as("tpm", |node, key| tpm(&node, key, arch))?
        .unwrap_or(false);
    // It changes nothing yet: only its plain word is taken.
    fields.take_as("graphics", |node, key| {
        fields::choice(node, key, &[("none", ())], &["vnc", "spice"])
    })?;
    let accel = fields.take_as("accel", |node, key| {
        let words = [
            ("auto", AccelWish::Auto),
            ("kvm", AccelWish::Kvm),
            ("tcg", AccelWish::Tcg),
        ];
        fields::choice(node, key, &words, &[])
    })?;
    let cpus = fields.take_as("cpus", |node, key| {
        fields::integer(&node, key, 1, CPUS_LIMIT)
    })?;
    let memory = fields.take_as("memory", |node, key| {
        let size = memory(&node, key, arch)?;
        if firmware == FirmwareWish::UefiSecure && size < SECURE_LEAST {
            let why = format!("UEFI with secure boot crashes with less than {SECURE_LEAST}");
            return Err(Fault::bad_value(node.place, key, why));
        }
        Ok(size)
    })?;
    let disk = fields.take_as("disk", |node, key| {
        disks::root(node, key, &owner, arch, &image)
    })?;
    let root = disk.unwrap_or_default();
    let disks = fields.take_as("disks", |node, key| {
        disks::disks(node, key, &owner, arch, names.len(), folders)
    })?;
    let ignition = ignition(&mut fields, folders)?;
    let vars = vars(&mut fields, &group, ignition.as_ref(), warnings)?;
    let profile = fields.take_as("profile", |node, key| {
        let words = [("basic", Profile::Basic), ("none", Profile::None)];
        fields::choice(node, key, &words, &["etcd"])
    })?;
    let restart = fields.take_as("restart", |node, key| {
        let words = [
            ("no", RestartPolicy::No),
            ("on-failure", RestartPolicy::OnFailure),
            ("always", RestartPolicy::Always),
        ];
        fields::choice(node, key, &words, &[])
    })?;
    let ports = fields.take_as("ports", port::ports)?.unwrap_or_default();
    if names.len() > 1
        && let Some(fixed) = ports.iter().find(|placed| placed.port.host.is_some())
    {
        return Err(Fault::bad_value(
            fixed.place,
            "ports",
            format!(
                "the {} machines of {owner} cannot share one host port",
                names.len()
            ),
        )
        .hint(format!(
            "write \":{}\" for a free host port for each",
            fixed.port.guest
        )));
    }

    let machine = |index, name| Machine {
        name,
        group: group.clone(),
        index,
        line: key.place.line,
        arch,
        accel: accel.unwrap_or(AccelWish::Auto),
        cpus: cpus.and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN),
        memory: memory.unwrap_or(MEMORY_DEFAULT),
        image: image.clone(),
        disk: root.size,
        root_bus: root.bus,
        disks: disks.clone().unwrap_or_default(),
        ignition: ignition.clone(),
        vars: vars.clone(),
        profile: profile.unwrap_or(Profile::Basic),
        ports: ports.iter().map(|placed| placed.port).collect(),
        restart: restart.unwrap_or(RestartPolicy::OnFailure),
        firmware,
        tpm,
        ignition_transport: transport.map(|(_, transport)| transport),
    };
    let machines = (1..)
        .zip(names)
        .map(|(index, (place, name))| PlacedMachine {
            machine: machine(index, name),
            place,
            ports: ports.clone(),
        })
        .collect();
    Ok(PlacedGroup {
        machines,
        scaled,
        fixed,
        name: group,
    })
}

fn name(place: Place, key: &str, text: &str) -> Result<MachineName, Fault> {
    let name: MachineName = text
        .parse()
        .map_err(|error| Fault::bad_value(place, key, error))?;
    if name.as_str() == "localhost" {
        return Err(Fault::bad_value(
            place,
            key,
            "a machine cannot be called `localhost`",
        ));
    }
    Ok(name)
}

/// Who is in a group.
struct Names {
    machines: Vec<(Place, MachineName)>,
    /// How many they are, where [`Scale`] says other than the spec.
    scaled: Option<u16>,
    /// How many they are or will be again, where they are counted.
    most: Option<u16>,
}

/// The names of the group's machines, by `count`, `names` or neither.
fn names(
    key: &Key,
    group: &MachineName,
    fields: &mut Fields,
    scale: Scale<'_>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<Names, Fault> {
    let count = fields.take("count");
    let names = fields.take("names");
    let said = scale.said.get(group).copied();
    if let (Some(count), Some(_)) = (&count, &names) {
        return Err(Fault::bad_value(
            count.place,
            "count",
            "a group has `count` or `names`, not both",
        ));
    }
    if said.is_some() && count.is_none() {
        return Err(Fault::bad_value(
            key.place,
            "machines",
            format!("group `{group}` has no `count`, so it cannot be scaled"),
        )
        .hint("write `count: 1` in the group"));
    }
    if let Some(node) = count {
        let place = node.place;
        let count = fields::integer(&node, "count", 0, COUNT_LIMIT)?;
        let remembered = scale.remembered.get(group).copied();
        let scaled = said.or(remembered).filter(|scaled| *scaled != count);
        if let (None, Some(scaled)) = (said, scaled) {
            warnings.push(SpecWarning::Scaled {
                place,
                group: group.to_string(),
                count,
                scaled,
            });
        }
        let machines = (1..=scaled.unwrap_or(count))
            .map(|index| {
                let name = name(key.place, "machines", &format!("{group}-{index}"))?;
                Ok((key.place, name))
            })
            .collect::<Result<_, Fault>>()?;
        let most = Some(count.max(scaled.unwrap_or(0)));
        return Ok(Names {
            machines,
            scaled,
            most,
        });
    }
    let Some(node) = names else {
        return Ok(Names {
            machines: vec![(key.place, group.clone())],
            scaled: None,
            most: None,
        });
    };
    let machines = fields::list(node, "names")?
        .into_iter()
        .map(|node| {
            let place = node.place;
            let name = name(place, "names", &fields::text(node, "names")?)?;
            Ok((place, name))
        })
        .collect::<Result<_, Fault>>()?;
    Ok(Names {
        machines,
        scaled: None,
        most: None,
    })
}

fn arch(node: Node, key: &str) -> Result<Arch, Fault> {
    let place = node.place;
    let text = fields::text(node, key)?;
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        let known = Arch::ALL.map(Arch::name);
        let fault = Fault::bad_value(
            place,
            key,
            format!("`{shown}` is not {}", suggest::list(&known)),
        );
        match suggest::nearest(&text, &known) {
            Some(word) => fault.hint(format!("did you mean `{word}`?")),
            None => fault,
        }
    })
}

/// The firmware, which the architecture's board has to take.
fn firmware(node: Node, key: &str, arch: Arch) -> Result<FirmwareWish, Fault> {
    let place = node.place;
    let words = [
        ("auto", FirmwareWish::Auto),
        ("bios", FirmwareWish::Bios),
        ("uefi", FirmwareWish::Uefi),
        ("uefi-secure", FirmwareWish::UefiSecure),
    ];
    let wish = fields::choice(node, key, &words, &[])?;
    let (fits, what) = match wish {
        FirmwareWish::Auto => (true, ""),
        FirmwareWish::Bios => (arch.has_bios(), "BIOS"),
        FirmwareWish::Uefi => (arch.has_uefi(), "UEFI"),
        FirmwareWish::UefiSecure => (arch.has_secure_boot(), "UEFI with secure boot"),
    };
    if fits {
        return Ok(wish);
    }
    Err(
        Fault::bad_value(place, key, format!("{arch} machines have no {what}"))
            .hint("write `auto`, or leave it out"),
    )
}

fn tpm(node: &Node, key: &str, arch: Arch) -> Result<bool, Fault> {
    let wanted = fields::boolean(node, key)?;
    if wanted && !arch.has_tpm() {
        let why = format!("QEMU has no TPM for {arch} machines");
        return Err(Fault::bad_value(node.place, key, why).hint("leave it out"));
    }
    Ok(wanted)
}

/// Refuses a transport that the machine's board does not have.
fn refuse_transport(
    transport: Option<(Place, IgnitionTransport)>,
    arch: Arch,
) -> Result<(), Fault> {
    match transport {
        Some((place, IgnitionTransport::FwCfg)) if !arch.has_fw_cfg() => Err(Fault::bad_value(
            place,
            "ignition_transport",
            format!("{arch} machines have no fw_cfg"),
        )
        .hint("leave it out: they get the config by virtio-blk")),
        Some((_, IgnitionTransport::FwCfg | IgnitionTransport::VirtioBlk)) | None => Ok(()),
    }
}

fn memory(node: &Node, key: &str, arch: Arch) -> Result<Size, Fault> {
    let place = node.place;
    let size = fields::size(node, key, MEMORY_LEAST, MEMORY_MOST)?;
    if !size.bytes().is_multiple_of(Size::from_mib(1).bytes()) {
        return Err(Fault::bad_value(
            place,
            key,
            format!("{size} is not a whole number of MiB"),
        ));
    }
    let step = Size::from_mib(arch.memory_step());
    if !size.bytes().is_multiple_of(step.bytes()) {
        let more = Size::from_bytes(size.bytes().next_multiple_of(step.bytes()));
        return Err(
            Fault::bad_value(place, key, format!("{arch} has memory in steps of {step}"))
                .hint(format!("write `{more}`")),
        );
    }
    Ok(size)
}

fn ignition(fields: &mut Fields, folders: Folders<'_>) -> Result<Option<IgnitionSource>, Fault> {
    let template = fields.take("template");
    let Some(node) = fields.take("ignition") else {
        return match template {
            None => Ok(None),
            Some(node) => Err(Fault::bad_value(
                node.place,
                "template",
                "there is no `ignition` that could be a template",
            )),
        };
    };
    let place = node.place;
    let path = folders.resolve(place, "ignition", &fields::text(node, "ignition")?)?;
    let ending = path.extension().and_then(|ending| ending.to_str());
    if matches!(ending, Some("bu" | "butane")) {
        return Err(Fault::not_built(place, "reading Butane")
            .hint("translate it with `butane --strict FILE` and name the result here"));
    }
    let template = match template {
        Some(node) => fields::boolean(&node, "template")?,
        None => ending == Some("j2"),
    };
    let text = files::text(&path, IGNITION_LIMIT).map_err(files::fault(place, "ignition"))?;
    Ok(Some(IgnitionSource {
        path,
        text,
        template,
    }))
}

fn vars(
    fields: &mut Fields,
    group: &MachineName,
    ignition: Option<&IgnitionSource>,
    warnings: &mut Vec<SpecWarning>,
) -> Result<BTreeMap<String, serde_json::Value>, Fault> {
    let Some(node) = fields.take("vars") else {
        return Ok(BTreeMap::new());
    };
    if !ignition.is_some_and(|source| source.template) {
        warnings.push(SpecWarning::UnusedVars {
            place: node.place,
            group: group.to_string(),
        });
    }
    Ok(fields::map(node, "vars")?
        .into_iter()
        .map(|(key, node)| (key.text, node.into()))
        .collect())
}

/// Refuses two machines of one name, in whatever groups they are.
pub(super) fn refuse_duplicates(machines: &[PlacedMachine]) -> Result<(), Fault> {
    let mut lines: BTreeMap<&MachineName, u64> = BTreeMap::new();
    for PlacedMachine { machine, place, .. } in machines {
        if let Some(line) = lines.insert(&machine.name, place.line) {
            return Err(Fault::new(
                *place,
                Problem::DuplicateMachine {
                    name: machine.name.to_string(),
                    line,
                },
            ));
        }
    }
    Ok(())
}
