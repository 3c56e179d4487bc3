//! Servers that fail and lie: the cache stays as it was, and a good server ends it well.

use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::image::server::{Asked, Manners};
use crate::image::signer::Signer;
use crate::image::support::{FEDORA, Net, image, pack, sha256};

const MIB: usize = 1 << 20;

#[test]
fn a_download_that_is_cut_goes_on_where_it_ended() {
    let content = image(5, 11);
    let packed = pack("xz", &["-0"], &content);
    thread::scope(|scope| {
        for cut in (0..packed.len()).step_by(MIB) {
            let (content, packed) = (&content, &packed);
            scope.spawn(move || {
                let net = Net::new();
                let path = net.fedora_packed("44.1.1.1", packed, content);
                net.spec(&json!("fedora-coreos:stable"));
                net.behave(&path, Manners::Cut(cut));
                net.fails(&["image", "pull"], 1, "5 times in a row");
                assert!(!net.world.path("spec/kiln.lock").exists());
                let partial = net.world.json(&["image", "ls"])["partial"].clone();
                let kept = partial.as_array().unwrap();
                assert_eq!(kept.len(), usize::from(cut > 0), "{partial}");
                if cut > 0 {
                    assert_eq!(kept[0]["done"], cut);
                    assert_eq!(kept[0]["total"], packed.len());
                }
                net.server.asked(&path);
                net.behave(&path, Manners::Good);
                let ended = net.world.kiln(&["image", "pull"]);
                assert_eq!(ended.code, Some(0), "{}", ended.stderr);
                let from = (cut > 0).then_some(cut);
                let want = [Asked {
                    path: path.clone(),
                    from,
                }];
                assert_eq!(
                    net.server.asked(&path),
                    want,
                    "all of it was asked for again"
                );
                assert_eq!(net.cached().len(), 2, "{:?}", net.cached());
                net.world.ok(&["image", "verify"]);
            });
        }
    });
}

#[test]
fn a_connection_that_is_lost_now_and_then_does_no_harm() {
    let net = Net::new();
    let content = image(2, 12);
    let path = net.fedora("44.1.1.1", &content);
    net.spec(&json!("fedora-coreos:stable"));
    // It stalls, and the next answer is good: one wait of half a minute.
    net.behave(&path, Manners::StallOnce(MIB));
    let ended = net.world.kiln(&["image", "pull"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.took > Duration::from_secs(29), "{:?}", ended.took);
    assert!(ended.stderr.contains("trying again"), "{}", ended.stderr);
    let asked: Vec<Option<usize>> = net.server.asked(&path).iter().map(|it| it.from).collect();
    assert_eq!(asked, [None, Some(MIB)]);
}

#[test]
fn a_server_that_is_busy_for_a_moment_is_asked_again() {
    let net = Net::new();
    let path = net.fedora("44.1.1.1", &image(1, 23));
    net.spec(&json!("fedora-coreos:stable"));
    let signature = format!("{path}.sig");
    for path in [FEDORA, &signature, &path] {
        net.behave(path, Manners::Busy(2));
    }
    net.world.ok(&["image", "pull"]);
    assert_eq!(net.server.asked(FEDORA).len(), 3);
    assert_eq!(net.server.asked(&signature).len(), 3);
    // What is not there is not asked for again.
    net.spec(&json!("fedora-coreos:stable@40.0.0.0"));
    let ended = net.world.kiln(&["image", "pull"]);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    let none = "/fedora/prod/streams/stable/builds/40.0.0.0/release.json";
    assert_eq!(net.server.asked(none).len(), 1);
}

#[test]
fn a_server_without_ranges_is_asked_for_all_of_it() {
    let net = Net::new();
    let path = net.fedora("44.1.1.1", &image(2, 13));
    net.spec(&json!("fedora-coreos:stable"));
    net.behave(&path, Manners::Cut(MIB));
    net.fails(&["image", "pull"], 1, "in a row");
    net.behave(&path, Manners::Whole);
    net.world.ok(&["image", "pull"]);
}

#[test]
fn a_file_that_changed_on_the_server_begins_anew() {
    let net = Net::new();
    let (old, new) = (image(2, 14), image(2, 15));
    let path = net.fedora("44.1.1.1", &old);
    net.spec(&json!("fedora-coreos:stable"));
    net.behave(&path, Manners::Cut(MIB));
    net.fails(&["image", "pull"], 1, "in a row");
    net.fedora("44.1.1.1", &new);
    let result = net.world.json(&["image", "pull"]);
    assert_eq!(result["images"][0]["sha256"], sha256(&new));
}

#[test]
fn lies_are_found_out_and_leave_nothing() {
    let content = image(2, 16);
    let packed = pack("xz", &["-0"], &content);
    let other = pack("xz", &["-0"], &image(2, 17));
    let truncated = &packed[..packed.len() - 100_000];
    let longer = [&packed[..], b"and more"].concat();

    let net = Net::new();
    net.spec(&json!("fedora-coreos:stable"));
    let path = net.fedora_packed("44.1.1.1", &packed, &content);
    let signature = format!("{path}.sig");
    let good = net.signer.sign(&packed);

    // Another file in its place: by the digest, then by the signature alone.
    net.server.put(&path, other.clone());
    net.fails(&["image", "pull"], 9, "has the SHA-256");
    net.server.put(&signature, net.signer.sign(&other));
    net.fails(&["image", "pull"], 9, "has the SHA-256");
    // A good signature by a key that nobody knows, with metadata to match.
    let stranger = Signer::new("Test <test@example>", 8);
    net.fedora_packed("44.1.1.1", &other, &image(2, 17));
    net.server.put(&signature, stranger.sign(&other));
    net.fails(&["image", "pull"], 9, "not in the keyring");
    net.server.put(&signature, net.signer.sign(b"another"));
    net.fails(&["image", "pull"], 9, "does not belong to this content");
    net.server.put(&signature, "no signature at all");
    net.fails(&["image", "pull"], 9, "no detached OpenPGP signature");
    net.server.remove(&signature);
    net.fails(&["image", "pull"], 9, "has no signature");
    // Not even a lock.
    let mut left = std::fs::read_dir(net.world.home().join("cache/images")).unwrap();
    assert!(left.next().is_none());

    // Files that are broken, however well they are signed.
    net.fedora_packed("44.1.1.1", truncated, &content);
    net.fails(&["image", "pull"], 9, "ends too early");
    net.fedora_packed("44.1.1.1", &longer, &content);
    net.fails(&["image", "pull"], 9, "after the end of its xz data");
    net.fedora_packed("44.1.1.1", &packed, b"other content");
    net.fails(&["image", "pull"], 9, "the unpacked file has the SHA-256");
    assert_eq!(net.cached(), Vec::<String>::new());

    // Lengths that are not true.
    net.fedora_packed("44.1.1.1", &packed, &content);
    net.behave(&path, Manners::TooLong);
    net.fails(&["image", "pull"], 1, "the server says that");
    net.behave(&path, Manners::TooShort);
    let ended = net.world.kiln(&["image", "pull"]);
    assert_ne!(ended.code, Some(0), "{}", ended.stderr);

    // Metadata that is none.
    let metadata = json!({"architectures": {}}).to_string();
    net.server.put(FEDORA, metadata);
    net.fails(&["image", "pull"], 1, "nothing for x86_64");
    net.server.put_with(FEDORA, "", Manners::Status(500));
    net.fails(&["image", "pull"], 1, "500");

    net.fedora_packed("44.1.1.1", &packed, &content);
    assert_eq!(net.signer.sign(&packed), good);
    net.world.ok(&["image", "pull"]);
    assert_eq!(net.cached().len(), 2, "{:?}", net.cached());
    net.world.ok(&["image", "verify"]);
}

#[test]
fn ten_at_once_download_it_once() {
    let net = Net::new();
    let path = net.fedora("44.1.1.1", &image(2, 18));
    net.spec(&json!("fedora-coreos:stable"));
    net.behave(&path, Manners::Held);
    let going: Vec<_> = (0..10)
        .map(|_| net.world.start(&["image", "pull"]))
        .collect();
    // All have found out what to download, and one of them downloads it.
    crate::fake_support::wait_until("one has asked for the image", || {
        !net.server.asked(&path).is_empty()
    });
    net.server.release();
    let mut waited = 0;
    for pull in going {
        let ended = pull.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        waited += usize::from(ended.stderr.contains("waiting for another kiln"));
    }
    assert!(waited > 0);
    assert!(
        net.server.asked(&path).is_empty(),
        "it was downloaded twice"
    );
    assert_eq!(net.cached().len(), 2, "{:?}", net.cached());
}

#[test]
fn a_download_that_is_killed_leaves_what_it_received_and_goes_on() {
    let net = Net::new();
    let path = net.fedora("44.1.1.1", &image(3, 19));
    net.spec(&json!("fedora-coreos:stable"));
    net.behave(&path, Manners::StallOnce(2 * MIB));
    let going = net.world.start(&["image", "pull"]);
    crate::fake_support::wait_until("two MiB are here", || {
        let list = net.world.json(&["image", "ls"]);
        list["partial"][0]["done"] == 2 * MIB
    });
    let ended = going.killed_after(Duration::ZERO);
    assert_eq!(ended.signal, Some(9));
    net.behave(&path, Manners::Good);
    net.server.asked(&path);
    net.world.ok(&["image", "pull"]);
    assert_eq!(net.server.asked(&path)[0].from, Some(2 * MIB));
    assert_eq!(net.cached().len(), 2, "{:?}", net.cached());
}

#[test]
fn a_time_that_the_user_names_holds_for_downloads() {
    let net = Net::new();
    let path = net.fedora("44.1.1.1", &image(2, 20));
    net.spec(&json!("fedora-coreos:stable"));
    net.behave(&path, Manners::StallOnce(MIB));
    let ended = net.world.kiln(&["up", "--timeout", "2s"]);
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.took < Duration::from_secs(4), "{:?}", ended.took);
    net.world.assert_clean();
    // Nor is another's download waited for any longer.
    let going = net.world.start(&["image", "pull"]);
    crate::fake_support::wait_until("the other has begun", || {
        !net.server.asked(&path).is_empty()
    });
    net.behave(&path, Manners::Held);
    let ended = net.world.kiln(&["up", "--timeout", "1s"]);
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.took < Duration::from_secs(3), "{:?}", ended.took);
    going.killed_after(Duration::ZERO);
}

#[test]
fn a_disk_that_takes_no_more_is_told_with_its_path_and_the_rest_comes_later() {
    let net = Net::new();
    let path = net.fedora("44.1.1.1", &image(3, 22));
    net.spec(&json!("fedora-coreos:stable"));
    // A limit on files' sizes, in halves of a KiB: to a program it looks like a disk that is full.
    let pull = net.world.command(&["image", "pull"]);
    let output = Command::new("/bin/sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$@\"", "sh"])
        .arg(pull.get_program())
        .args(pull.get_args())
        .env_clear()
        .envs(
            pull.get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .current_dir(net.world.path("spec"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let folder = net.world.home().join("cache/images");
    assert!(
        said.contains(&format!("cannot write `{}/", folder.display())),
        "{said}"
    );
    assert!(said.contains("File too large"), "{said}");
    assert!(net.cached().iter().all(|name| name.starts_with("partial-")));
    net.server.asked(&path);
    net.world.ok(&["image", "pull"]);
    let from = net.server.asked(&path)[0].from.unwrap();
    assert!((MIB..=2 * MIB).contains(&from), "{from}");
    assert_eq!(net.cached().len(), 2, "{:?}", net.cached());
}
