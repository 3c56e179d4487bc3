use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::{TempDir, tempdir};

use super::*;

/// Runs the real qemu-img; these tests need it.
#[track_caller]
fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img")
        .args(args)
        .output()
        .expect("qemu-img is missing: this test needs it");
    assert!(output.status.success(), "{output:?}");
}

struct Home {
    folder: TempDir,
    memo: Memo,
}

impl Home {
    fn new() -> Home {
        let folder = tempdir().unwrap();
        let memo = Memo::new(folder.path().join("facts"));
        Home { folder, memo }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn image(&self, name: &str, format: DiskFormat) -> DiskImage {
        DiskImage {
            path: self.path(name),
            format,
            sha256: None,
        }
    }

    fn check(&self, image: &DiskImage) -> Result<BaseFacts, ImageError> {
        check(image, &self.memo, &mut |_, _| {})
    }

    fn qcow2(&self, name: &str) -> Result<BaseFacts, ImageError> {
        self.check(&self.image(name, DiskFormat::Qcow2))
    }

    fn raw(&self, name: &str) -> Result<BaseFacts, ImageError> {
        self.check(&self.image(name, DiskFormat::Raw))
    }
}

#[track_caller]
fn refusal(result: Result<BaseFacts, ImageError>) -> Refused {
    match result {
        Err(error @ ImageError::Refused { .. }) => {
            assert_eq!(error.fault(), Fault::Safety);
            let ImageError::Refused { source, .. } = error else {
                unreachable!()
            };
            source
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_qemu_img_makes_is_taken_in_all_its_shapes() {
    let home = Home::new();
    fs::write(home.path("data"), vec![7; 300_000]).unwrap();
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "preallocation=metadata",
        "compression_type=zstd",
    ] {
        let path = home.text("disk.qcow2");
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, &path, "64M"]);
        let facts = home.qcow2("disk.qcow2").unwrap();
        assert_eq!(facts.virtual_size, 64 << 20, "{options}");
        if options.starts_with("preallocation") {
            continue;
        }
        let data = home.text("data");
        for compress in ["-W", "-c"] {
            qemu_img(&[
                "convert", "-q", compress, "-f", "raw", "-O", "qcow2", "-o", options, &data, &path,
            ]);
            let facts = home.qcow2("disk.qcow2").unwrap();
            assert_eq!(facts.virtual_size, 300_032, "{options} {compress}");
        }
    }
}

#[test]
fn a_snapshot_does_no_harm() {
    let home = Home::new();
    let path = home.text("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", &path, "64M"]);
    qemu_img(&["snapshot", "-c", "one", &path]);
    assert!(home.qcow2("disk.qcow2").is_ok());
}

#[test]
fn hostile_images_of_qemu_img_s_own_making_are_refused() {
    let home = Home::new();
    let path = home.text("disk.qcow2");
    fs::write(home.path("victim"), vec![0; 1 << 20]).unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        &home.text("victim"),
        "-F",
        "raw",
        &path,
    ]);
    assert_eq!(refusal(home.qcow2("disk.qcow2")), Refused::BackingFile);
    let data_file = format!("data_file={}", home.text("data"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data_file, &path, "1M"]);
    assert_eq!(refusal(home.qcow2("disk.qcow2")), Refused::DataFile);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=2M",
        &path,
        "1P",
    ]);
    assert_eq!(
        refusal(home.qcow2("disk.qcow2")),
        Refused::TooLarge { size: 1 << 50 }
    );
}

#[test]
fn an_image_that_was_cut_off_anywhere_is_refused() {
    let home = Home::new();
    fs::write(home.path("data"), vec![7; 3 << 20]).unwrap();
    for compress in ["-W", "-c"] {
        let path = home.path("disk.qcow2");
        qemu_img(&[
            "convert",
            compress,
            "-f",
            "raw",
            "-O",
            "qcow2",
            &home.text("data"),
            path.to_str().unwrap(),
        ]);
        let whole = fs::read(&path).unwrap();
        assert!(home.qcow2("disk.qcow2").is_ok());
        let last = whole.len() - (1 << 16);
        for length in [5, 100, 1 << 16, (3 << 16) - 1, whole.len() / 2, last] {
            fs::write(&path, &whole[..length]).unwrap();
            refusal(home.qcow2("disk.qcow2"));
        }
    }
}

#[test]
fn a_format_is_what_the_spec_says_and_never_another() {
    let home = Home::new();
    fs::write(home.path("text"), "not an image").unwrap();
    assert_eq!(refusal(home.qcow2("text")), Refused::Magic);
    let raw = home.raw("text").unwrap();
    assert_eq!((raw.length, raw.virtual_size), (12, 512));
    qemu_img(&["create", "-q", "-f", "qcow2", &home.text("disk.img"), "1M"]);
    let error = home.raw("disk.img").unwrap_err();
    assert!(matches!(error, ImageError::NotRaw { .. }));
    assert_eq!(error.fault(), Fault::Safety);
}

#[test]
fn only_files_are_images() {
    let home = Home::new();
    fs::create_dir(home.path("folder")).unwrap();
    mkfifo(&home.path("fifo"), Mode::S_IRWXU).unwrap();
    fs::write(home.path("empty"), "").unwrap();
    symlink("/dev/zero", home.path("zero")).unwrap();
    symlink(home.path("link"), home.path("link")).unwrap();
    for name in ["folder", "fifo", "empty", "zero", "link", "missing"] {
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let error = home.check(&home.image(name, format)).unwrap_err();
            assert_eq!(error.fault(), Fault::Spec, "{name}: {error}");
        }
    }
}

#[test]
fn a_symlink_to_an_image_is_followed_because_it_is_the_user_s() {
    let home = Home::new();
    fs::write(home.path("disk.raw"), "x").unwrap();
    symlink("disk.raw", home.path("link")).unwrap();
    assert_eq!(home.raw("link").unwrap().path, home.path("link"));
}

fn wait_until_settled(path: &Path) {
    let stamp = FileStamp::of(&fs::metadata(path).unwrap());
    while !stamp.is_settled(SystemTime::now()) {
        std::hint::spin_loop();
    }
}

#[test]
fn a_digest_is_verified_once_for_each_content() {
    let home = Home::new();
    let path = home.path("disk.raw");
    fs::write(&path, "abc").unwrap();
    wait_until_settled(&path);
    let mut image = home.image("disk.raw", DiskFormat::Raw);
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    image.sha256 = Some(digest.to_owned());
    let hashed = |image: &DiskImage| {
        let mut heard = Vec::new();
        let checked = check(image, &home.memo, &mut |done, of| heard.push((done, of)));
        (checked, heard)
    };
    let (first, heard) = hashed(&image);
    assert_eq!(first.unwrap().sha256.as_deref(), Some(digest));
    assert_eq!(heard, [(3, 3)]);
    let (second, heard) = hashed(&image);
    assert!(second.is_ok() && heard.is_empty());
    fs::write(&path, "abd").unwrap();
    let (third, heard) = hashed(&image);
    let error = third.unwrap_err();
    assert!(matches!(&error, ImageError::Sha256 { .. }), "{error}");
    assert_eq!((error.fault(), heard), (Fault::Safety, vec![(3, 3)]));
}

#[test]
fn a_changed_base_is_noticed_and_named() {
    let home = Home::new();
    let path = home.path("disk.raw");
    fs::write(&path, "abcd").unwrap();
    let facts = home.raw("disk.raw").unwrap();
    facts.unchanged().unwrap();
    let changed = || facts.unchanged().unwrap_err().to_string();
    let name = path.display();

    let past = SystemTime::now() - Duration::from_secs(60);
    File::open(&path).unwrap().set_modified(past).unwrap();
    assert_eq!(
        changed(),
        format!("base image `{name}` was replaced or written to")
    );
    fs::write(&path, "abc").unwrap();
    assert_eq!(
        changed(),
        format!("base image `{name}` was of 4 bytes and is of 3")
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(
        changed(),
        format!("base image `{name}` cannot be looked at any more")
    );
    fs::create_dir(&path).unwrap();
    assert_eq!(
        changed(),
        format!("base image `{name}` was replaced or written to")
    );
}

#[test]
fn a_base_that_was_replaced_by_one_of_the_same_times_is_noticed() {
    let home = Home::new();
    let (path, other) = (home.path("disk.raw"), home.path("other"));
    fs::write(&path, "abcd").unwrap();
    fs::write(&other, "efgh").unwrap();
    let facts = home.raw("disk.raw").unwrap();
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    File::open(&other).unwrap().set_modified(times).unwrap();
    fs::rename(&other, &path).unwrap();
    assert!(matches!(facts.unchanged(), Err(Changed::Content { .. })));
}

#[test]
fn facts_survive_being_written_down() {
    let home = Home::new();
    fs::write(home.path("disk.raw"), "abcd").unwrap();
    let facts = home.raw("disk.raw").unwrap();
    let text = serde_json::to_string(&facts).unwrap();
    assert!(text.contains(r#""format":"raw""#), "{text}");
    assert_eq!(serde_json::from_str::<BaseFacts>(&text).unwrap(), facts);
}

#[test]
fn of_many_who_want_a_digest_at_once_one_reads_the_image() {
    let home = Home::new();
    let path = home.path("disk.raw");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let mut image = home.image("disk.raw", DiskFormat::Raw);
    image.sha256 = Some("3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351".into());
    wait_until_settled(&path);
    let read: u64 = std::thread::scope(|scope| {
        let each = || {
            let mut read = 0;
            check(&image, &home.memo, &mut |done, _| read = done).unwrap();
            read
        };
        let all: Vec<_> = (0..6).map(|_| scope.spawn(each)).collect();
        all.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!(read, 64 << 20);
}
