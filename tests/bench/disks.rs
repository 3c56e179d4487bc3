//! What machines' disks cost: an overlay's time and room, and ten machines' on one base.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kiln::cluster::{DiskFormat, DiskImage};
use kiln::image::{base, overlay};
use kiln::memo::Memo;

use crate::Outcome;
use crate::table::{Row, Samples, Target};
use crate::world::World;

const MACHINES: usize = 10;

/// Makes overlays as `up` does, and ten machines that stand on one base.
pub(crate) fn disks(world: &World, rounds: usize) -> Outcome<Vec<Row>> {
    let folder = world.raw("disks")?;
    let image = folder.join("base.qcow2");
    // As large as a filled one to whoever looks at its header and its tables.
    qemu_img(
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "preallocation=metadata",
        ],
        &image,
        "10G",
    )?;
    let disk = DiskImage {
        path: image.clone(),
        format: DiskFormat::Qcow2,
        sha256: None,
    };
    let facts = base::check(&disk, &Memo::new(folder.join("facts")), &mut |_, _| {})?;
    let tool = Path::new("qemu-img");
    let mut samples = Samples::default();
    let mut room = 0;
    for _ in 0..=rounds {
        let path = folder.join("overlay.qcow2");
        let begun = Instant::now();
        overlay::create(tool, &facts, &path, None)?;
        samples.push(begun.elapsed());
        room = used(&path)?;
        fs::remove_file(path)?;
    }

    let cluster = world.cluster_on("disks", MACHINES, Some(&image))?;
    cluster.kiln(&["up", "--wait", "running"])?;
    let overlays = cluster.machines().into_iter();
    let overlays = overlays.map(|name| used(&cluster.machine_folder(&name).join("disk.qcow2")));
    let ten: u64 = overlays.sum::<Outcome<u64>>()?;
    cluster.kiln(&["kill"])?;
    cluster.kiln(&["down"])?;
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    Ok(vec![
        Row::single(
            "overlay of a 10 GB base",
            "ms",
            samples.median(),
            Target::AtMost(50.0),
        ),
        Row::single("  on the disk", "KiB", kib(room), Target::AtMost(1024.0)),
        Row::single("ten machines' root disks", "KiB", kib(ten), Target::None),
        Row::single("  their one base", "KiB", kib(used(&image)?), Target::None),
    ])
}

fn qemu_img(words: &[&str], path: &Path, size: &str) -> Outcome<()> {
    let status = Command::new("qemu-img")
        .args(words)
        .arg(path)
        .arg(size)
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err("qemu-img failed".into())
}

/// What a file takes on the disk, in bytes.
fn used(path: &Path) -> Outcome<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}
