//! Logs on a real file system, written as QEMU writes them.

use std::io::Write;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::supervisor::diagnose::FindingKind;

struct Log {
    path: PathBuf,
    file: File,
    _folder: TempDir,
}

fn log() -> Log {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.log");
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap();
    Log {
        path,
        file,
        _folder: folder,
    }
}

async fn next(watch: &mut ConsoleWatch) -> (String, FindingKind) {
    let event = timeout(Duration::from_secs(10), watch.next())
        .await
        .unwrap();
    assert_eq!(event.findings.len(), 1);
    (event.machine, event.findings[0].kind.clone())
}

async fn is_silent(watch: &mut ConsoleWatch) {
    assert!(
        timeout(Duration::from_millis(300), watch.next())
            .await
            .is_err()
    );
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[tokio::test]
async fn what_is_new_is_read_and_what_is_old_is_not() {
    let (mut one, mut two) = (log(), log());
    one.file
        .write_all(b"Kernel panic - not syncing: of yesterday\n")
        .unwrap();
    let mut watch = ConsoleWatch::new().unwrap();
    watch.add_at_end("one", &one.path);
    watch.add_at_end("two", &two.path);
    is_silent(&mut watch).await;

    one.file.write_all(b"Linux version 6.1\nhalf a li").unwrap();
    assert_eq!(next(&mut watch).await, ("one".into(), FindingKind::Kernel));
    two.file.write_all(b"SeaBIOS (version 1)\n").unwrap();
    assert_eq!(
        next(&mut watch).await,
        ("two".into(), FindingKind::Firmware)
    );

    watch.remove("one");
    one.file
        .write_all(b"\nKernel panic - not syncing: x\n")
        .unwrap();
    is_silent(&mut watch).await;
    two.file.write_all(b"No bootable device.\n").unwrap();
    assert_eq!(next(&mut watch).await, ("two".into(), FindingKind::NoBoot));
}

#[tokio::test]
async fn a_restarted_machine_is_found_anew() {
    let mut log = log();
    let mut watch = ConsoleWatch::new().unwrap();
    watch.add_at_end("one", &log.path);
    log.file.write_all(b"Linux version 6.1\n").unwrap();
    assert_eq!(next(&mut watch).await.1, FindingKind::Kernel);
    watch.restarted("one");
    log.file.write_all(b"Linux version 6.1\n").unwrap();
    assert_eq!(next(&mut watch).await.1, FindingKind::Kernel);
}

#[tokio::test]
async fn a_flood_is_capped_and_starves_nobody() {
    let (mut flood, mut quiet) = (log(), log());
    let mut watch = ConsoleWatch::new().unwrap();
    watch.add_at_end("flood", &flood.path);
    watch.add_at_end("quiet", &quiet.path);
    let mut block = vec![b'x'; 1_000_000];
    block.push(b'\n');
    for round in 0..12 {
        flood.file.write_all(&block).unwrap();
        if round == 6 {
            quiet.file.write_all(b"Linux version 6.1\n").unwrap();
            assert_eq!(
                next(&mut watch).await,
                ("quiet".into(), FindingKind::Kernel)
            );
        }
        assert!(
            timeout(Duration::from_millis(55), watch.next())
                .await
                .is_err()
        );
    }
    flood.file.write_all(b"Linux version 6.1\n").unwrap();
    assert_eq!(
        next(&mut watch).await,
        ("flood".into(), FindingKind::Kernel)
    );
    let aside = beside(&flood.path, ".1");
    assert!(length(&flood.path) < LOG_CAP + LOG_CAP / 2);
    assert_eq!(length(&aside), LOG_CAP);
    assert!(!beside(&flood.path, ".1.new").exists());
    let both = [fs::read(&aside).unwrap(), fs::read(&flood.path).unwrap()].concat();
    assert!(both.ends_with(b"Linux version 6.1\n"));
}

#[tokio::test]
async fn a_log_that_grew_too_long_unwatched_is_capped_at_once() {
    let log = log();
    log.file.set_len(3 * LOG_CAP).unwrap();
    let mut watch = ConsoleWatch::new().unwrap();
    watch.add_at_end("one", &log.path);
    is_silent(&mut watch).await;
    assert_eq!(length(&log.path), 0);
    assert_eq!(length(&beside(&log.path, ".1")), LOG_CAP);
}

#[tokio::test]
async fn whoever_cannot_wait_catches_up() {
    let mut log = log();
    let mut watch = ConsoleWatch::new().unwrap();
    watch.add_at_end("one", &log.path);
    log.file.write_all(&[b'\n'; 200_000]).unwrap();
    log.file
        .write_all(b"Kernel panic - not syncing: x\n")
        .unwrap();
    let findings = watch.catch_up("one");
    assert_eq!(findings[0].kind, FindingKind::KernelPanic);
    assert_eq!(watch.catch_up("one"), []);
    assert_eq!(watch.catch_up("nobody"), []);
    is_silent(&mut watch).await;
}

#[tokio::test]
async fn an_emptied_log_is_read_from_its_beginning() {
    let mut log = log();
    log.file.write_all(&[b'\n'; 5000]).unwrap();
    let mut watch = ConsoleWatch::new().unwrap();
    watch.add_at_end("one", &log.path);
    log.file.set_len(0).unwrap();
    log.file.write_all(b"Linux version 6.1\n").unwrap();
    assert_eq!(next(&mut watch).await.1, FindingKind::Kernel);
}

#[tokio::test]
async fn no_symlink_is_followed() {
    let victim = log();
    let place = tempfile::tempdir().unwrap();
    let link = place.path().join("console.log");
    std::os::unix::fs::symlink(&victim.path, &link).unwrap();
    let mut watch = ConsoleWatch::new().unwrap();
    watch.add_at_end("one", &link);
    assert!(watch.consoles.is_empty());
}
