use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use tempfile::tempdir;

use super::*;
use crate::cluster::{DataFormat, DiskFormat, DiskImage};
use crate::image::{base, data};
use crate::memo::Memo;

/// What the real qemu-img prints; these tests need it.
#[track_caller]
fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img is missing: this test needs it");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn tool() -> &'static Path {
    Path::new("qemu-img")
}

fn facts(path: &Path, virtual_size: u64) -> BaseFacts {
    BaseFacts {
        path: path.to_owned(),
        format: DiskFormat::Raw,
        length: virtual_size,
        file: None,
        virtual_size,
        sha256: None,
    }
}

#[test]
fn qemu_img_finds_the_overlay_sound_and_reads_the_base_through_it() {
    let home = tempdir().unwrap();
    // Characters that QEMU's option parser, its protocol names or its `json:` could trip over.
    for name in [
        "disk.raw",
        "a,b=c.raw",
        "json:{}.raw",
        "nbd:x:y.raw",
        "%s \u{e4}\n.raw",
        "-f",
    ] {
        let base = home.path().join(name);
        let disk = home.path().join("disk.qcow2");
        fs::write(&base, vec![7; 200 * 1024]).unwrap();
        let image = DiskImage {
            path: base.clone(),
            format: DiskFormat::Raw,
            sha256: None,
        };
        let memo = Memo::new(home.path().join("facts"));
        let facts = base::check(&image, &memo, &mut |_, _| {}).unwrap();
        let size = create(tool(), &facts, &disk, None).unwrap();
        assert_eq!(size.bytes(), 200 * 1024);
        let disk_text = disk.to_str().unwrap();
        qemu_img(&["check", "-q", "-f", "qcow2", disk_text]);
        let info: serde_json::Value = serde_json::from_str(&qemu_img(&[
            "info",
            "--output=json",
            "-f",
            "qcow2",
            disk_text,
        ]))
        .unwrap();
        assert_eq!(info["full-backing-filename"], base.to_str().unwrap());
        assert_eq!(info["backing-filename-format"], "raw");
        let flat = home.path().join("flat");
        qemu_img(&[
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            disk_text,
            flat.to_str().unwrap(),
        ]);
        assert_eq!(fs::read(&flat).unwrap(), vec![7; 200 * 1024]);
        fs::remove_file(&disk).unwrap();
    }
}

#[test]
fn every_size_is_sound_and_can_be_written_to_its_end() {
    let home = tempdir().unwrap();
    let base = home.path().join("base");
    fs::write(&base, vec![0; 512]).unwrap();
    for size in [
        512,
        1 << 29,
        (1 << 29) + 512,
        20 << 30,
        4 << 40,
        LARGEST_DISK,
    ] {
        let disk = home.path().join("disk.qcow2");
        let made = create(
            tool(),
            &facts(&base, 512),
            &disk,
            Some(Size::from_bytes(size)),
        )
        .unwrap();
        assert_eq!(made.bytes(), size);
        let disk_text = disk.to_str().unwrap();
        let last = format!("offset={}", size - 512);
        let output = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c"])
            .arg(format!("write -P 5 {} 512", size - 512))
            .arg(disk_text)
            .output()
            .expect("qemu-io is missing: this test needs it");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("wrote 512/512"), "{last} {said}");
        qemu_img(&["check", "-q", "-f", "qcow2", disk_text]);
        let info: serde_json::Value = serde_json::from_str(&qemu_img(&[
            "info",
            "--output=json",
            "-f",
            "qcow2",
            disk_text,
        ]))
        .unwrap();
        assert_eq!(info["virtual-size"], size);
        fs::remove_file(&disk).unwrap();
    }
}

#[test]
fn a_disk_never_shrinks_and_has_a_bound() {
    let home = tempdir().unwrap();
    let disk = home.path().join("disk.qcow2");
    let make = |size: u64| {
        create(
            tool(),
            &facts(Path::new("/base"), 2 << 30),
            &disk,
            Some(Size::from_bytes(size)),
        )
    };
    assert_eq!(
        make(1 << 30).unwrap_err().to_string(),
        "a disk of 1GiB is smaller than its image `/base` of 2GiB; a disk never shrinks"
    );
    assert_eq!(
        make(65 << 40).unwrap_err().to_string(),
        "a disk of 65TiB is larger than 64TiB"
    );
    assert_eq!(make((2 << 30) + 1).unwrap().bytes(), (2 << 30) + 512);
    assert_eq!(fs::metadata(&disk).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn names_that_qemu_could_not_follow_are_refused() {
    let home = tempdir().unwrap();
    let disk = home.path().join("disk.qcow2");
    let make = |base: &str| create(tool(), &facts(Path::new(base), 512), &disk, None);
    assert!(matches!(make("base"), Err(OverlayError::Relative { .. })));
    // As long as QEMU allows, and one byte more.
    let mut long = home.path().to_owned();
    while long.as_os_str().len() < 800 {
        long.push("x".repeat(100));
    }
    fs::create_dir_all(&long).unwrap();
    long.push("x".repeat(LONGEST_NAME - long.as_os_str().len() - 1));
    fs::write(&long, [0; 512]).unwrap();
    let long = long.to_str().unwrap();
    assert!(matches!(
        make(&format!("{long}x")),
        Err(OverlayError::LongName { .. })
    ));
    make(long).unwrap();
    qemu_img(&["check", "-q", "-f", "qcow2", disk.to_str().unwrap()]);
}

#[test]
fn what_is_in_the_way_is_left_alone() {
    let home = tempdir().unwrap();
    let base = facts(Path::new("/base"), 512);
    let disk = home.path().join("disk.qcow2");
    fs::write(&disk, "precious").unwrap();
    assert!(create(tool(), &base, &disk, None).is_err());
    assert_eq!(fs::read(&disk).unwrap(), b"precious");
    let link = home.path().join("link");
    symlink(home.path().join("victim"), &link).unwrap();
    assert!(create(tool(), &base, &link, None).is_err());
    assert!(!home.path().join("victim").exists());
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named() {
    let error = create(
        tool(),
        &facts(Path::new("/base"), 512),
        Path::new("/proc/x/disk"),
        None,
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "cannot write disk `/proc/x/disk`");
}

#[test]
fn a_disk_grows_and_keeps_what_is_in_it() {
    let home = tempdir().unwrap();
    let base = home.path().join("a,b.raw");
    fs::write(&base, vec![7; 1 << 20]).unwrap();
    let disk = home.path().join("disk.qcow2");
    create(tool(), &facts(&base, 1 << 20), &disk, None).unwrap();
    let disk_text = disk.to_str().unwrap();
    let size = || -> u64 {
        let info = qemu_img(&["info", "--output=json", "-f", "qcow2", disk_text]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        info["virtual-size"].as_u64().unwrap()
    };
    // One that is larger already stays as it is.
    grow(tool(), &disk, Size::from_bytes(512)).unwrap();
    assert_eq!(size(), 1 << 20);
    grow(tool(), &disk, Size::from_bytes(64 << 20)).unwrap();
    assert_eq!(size(), 64 << 20);
    let flat = home.path().join("flat");
    let flat_text = flat.to_str().unwrap();
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", disk_text, flat_text]);
    let flat = fs::read(&flat).unwrap();
    assert!(flat[..1 << 20].iter().all(|byte| *byte == 7));
    assert!(flat[1 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn an_overlay_whose_header_was_changed_is_not_opened_again() {
    let home = tempdir().unwrap();
    let (base, disk) = (home.path().join("base.raw"), home.path().join("disk.qcow2"));
    fs::write(&base, vec![7; 1 << 20]).unwrap();
    create(tool(), &facts(&base, 1 << 20), &disk, None).unwrap();
    data::open_overlay(&disk).unwrap();
    // The feature bit of a data file: QEMU would open, and qemu-img as root would write to,
    // whatever file a header extension names.
    let mut bytes = fs::read(&disk).unwrap();
    bytes[79] |= 1 << 2;
    fs::write(&disk, &bytes).unwrap();
    assert!(data::open_overlay(&disk).is_err());
}

#[test]
fn a_blank_disk_is_sound_and_takes_room_only_as_it_is_used() {
    let home = tempdir().unwrap();
    let disk = home.path().join("data.qcow2");
    let size = Size::from_bytes((5 << 30) + 1);
    blank(tool(), &disk, size).unwrap();
    let metadata = fs::metadata(&disk).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    assert!(metadata.blocks() * 512 < 1 << 20, "{metadata:?}");
    qemu_img(&["check", "-q", "-f", "qcow2", disk.to_str().unwrap()]);
    let (_, seen) = data::open(&disk, DataFormat::Qcow2, false).unwrap();
    assert_eq!(seen, (5 << 30) + 512);
    // What stands there already is nobody's to overwrite.
    assert!(matches!(
        blank(tool(), &disk, size).unwrap_err(),
        OverlayError::Write { .. }
    ));
    grow(tool(), &disk, Size::from_bytes(6 << 30)).unwrap();
    let (_, seen) = data::open(&disk, DataFormat::Qcow2, false).unwrap();
    assert_eq!(seen, 6 << 30);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    let huge = Size::from_bytes(LARGEST_DISK + 512);
    assert!(matches!(
        blank(tool(), &home.path().join("b"), huge).unwrap_err(),
        OverlayError::TooLarge { .. }
    ));
}
