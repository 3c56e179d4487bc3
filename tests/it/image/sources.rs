//! Each source by its own rules: metadata, signatures, compressions, pins.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::image::server::Manners;
use crate::image::support::{FEDORA, Net, image, pack, sha256};

/// The one image of a pull, which lies where it says, as it should be.
#[track_caller]
fn pulled(net: &Net, result: &Value, content: &[u8], verified: &str) -> Value {
    let image = &result["images"][0];
    let path = net.real(&image["path"]);
    assert!(fs::read(&path).unwrap() == content, "{path:?}");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o444
    );
    assert_eq!(image["sha256"], sha256(content));
    assert_eq!(image["verified"], verified);
    // The image and its record; nothing else is left.
    let name = sha256(content);
    let want = [
        format!("sha256-{name}.json"),
        format!("sha256-{name}.qcow2"),
    ];
    let left = net.cached();
    assert!(want.iter().all(|name| left.contains(name)), "{left:?}");
    assert!(
        left.iter().all(|name| name.starts_with("sha256-")),
        "{left:?}"
    );
    image.clone()
}

#[test]
fn fedora_s_newest_is_pulled_pinned_and_moved_when_asked() {
    let net = Net::new();
    let first = image(1, 1);
    let path = net.fedora("44.1.1.1", &first);
    net.spec(&json!("fedora-coreos:stable"));

    // Neither asks anybody.
    let plan = net.world.json(&["plan"]);
    assert_eq!(
        plan["machines"][0]["why"][0],
        "will download fedora-coreos:stable"
    );
    net.world.ok(&["validate"]);
    assert!(net.server.asked(FEDORA).is_empty());
    assert!(!net.world.path("spec/kiln.lock").exists());

    let result = net.world.json(&["image", "pull"]);
    let found = pulled(&net, &result, &first, "signature");
    assert_eq!(found["image"], "fedora-coreos:stable@44.1.1.1");
    assert!(
        found["signer"]
            .as_str()
            .unwrap()
            .starts_with("Test <test@example> ")
    );
    let pin = net.lock()["images"][0].clone();
    assert_eq!(pin["release"], "44.1.1.1");
    assert_eq!(pin["unpacked_sha256"], sha256(&first));
    let url = pin["url"].as_str().unwrap();
    assert!(
        url.starts_with("https://builds.coreos.fedoraproject.org/"),
        "{url}"
    );

    // Another release comes out. What is pinned stays.
    let second = image(1, 2);
    let other = net.fedora("44.2.2.2", &second);
    net.server.asked(FEDORA);
    net.server.asked(&path);
    net.world.json(&["image", "pull"]);
    assert!(net.server.asked(FEDORA).is_empty() && net.server.asked(&path).is_empty());
    // Without the cache the very same is fetched again, and the plan knows its size.
    net.world.ok(&["image", "prune"]);
    let plan = net.world.json(&["plan"]);
    let why = "will download fedora-coreos:stable@44.1.1.1 (2 MiB)";
    assert_eq!(plan["machines"][0]["why"][0], why);
    pulled(
        &net,
        &net.world.json(&["image", "pull"]),
        &first,
        "signature",
    );
    assert_eq!(net.server.asked(&path).len(), 1);
    net.world.json(&["image", "pull", "--force-download"]);
    assert_eq!(net.server.asked(&path).len(), 1);

    let moved = net.world.json(&["image", "update"]);
    pulled(&net, &moved, &second, "signature");
    assert_eq!(moved["images"][0]["moved_from"], "44.1.1.1");
    assert_eq!(net.lock()["images"][0]["release"], "44.2.2.2");
    assert_eq!(net.server.asked(&other).len(), 1);

    // A release of one's own choice.
    net.world.ok(&["image", "prune"]);
    net.spec(&json!("fedora-coreos:stable@44.1.1.1"));
    pulled(
        &net,
        &net.world.json(&["image", "pull"]),
        &first,
        "signature",
    );
    net.spec(&json!("fedora-coreos:stable@43.0.0.0"));
    let ended = net.world.kiln(&["image", "pull"]);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
}

#[test]
fn flatcar_is_taken_in_whatever_form_its_signature_is_of() {
    for (ending, tool, args) in [
        ("", "", &[][..]),
        (".bz2", "bzip2", &["-1"][..]),
        (".gz", "gzip", &["-1"][..]),
        (".zst", "zstd", &["-q"][..]),
    ] {
        let net = Net::new();
        let content = image(1, 3);
        let packed = match tool {
            "" => content.clone(),
            tool => pack(tool, args, &content),
        };
        let board = "/flatcar/amd64-usr";
        net.server.put(
            &format!("{board}/current/version.txt"),
            "FLATCAR_VERSION=4230.2.3\nFLATCAR_BUILD=4230\n",
        );
        let path = format!("{board}/4230.2.3/flatcar_production_qemu_image.img{ending}");
        net.server.put(&path, packed.clone());
        net.spec(&json!("flatcar:stable"));
        net.fails(&["image", "pull"], 9, "has no signature");
        net.server
            .put(&format!("{path}.sig"), net.signer.sign(&packed));
        let found = pulled(
            &net,
            &net.world.json(&["image", "pull"]),
            &content,
            "signature",
        );
        assert_eq!(found["image"], "flatcar:stable@4230.2.3");
        // There is none for this architecture.
        let ended = net
            .world
            .kiln(&["image", "pull", "flatcar:stable", "--arch", "s390x"]);
        assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    }
}

#[test]
fn flatcar_for_arm_is_its_image_for_uefi_and_the_firmware_beside_it_is_not_asked_for() {
    let net = Net::new();
    let content = image(1, 8);
    let board = "/flatcar/arm64-usr/4230.2.3";
    let path = format!("{board}/flatcar_production_qemu_uefi_image.img");
    net.server.put(&path, content.clone());
    net.server
        .put(&format!("{path}.sig"), net.signer.sign(&content));
    let firmware = format!("{board}/flatcar_production_qemu_uefi_efi_code.qcow2");
    net.server.put(&firmware, "firmware");
    let args = [
        "image",
        "pull",
        "flatcar:stable@4230.2.3",
        "--arch",
        "aarch64",
    ];
    let found = pulled(&net, &net.world.json(&args), &content, "signature");
    assert_eq!(found["arch"], "aarch64");
    assert!(net.server.asked(&firmware).is_empty());
}

#[test]
fn flatcar_without_a_signature_is_taken_when_the_spec_says_so_and_never_a_bad_one() {
    let net = Net::new();
    let content = image(1, 4);
    let path = "/flatcar/amd64-usr/4230.2.3/flatcar_production_qemu_image.img";
    net.server.put(path, content.clone());
    net.spec(&json!({"disk": "flatcar:stable@4230.2.3", "insecure": true}));
    net.server
        .put(&format!("{path}.sig"), net.signer.sign(b"something else"));
    net.fails(&["image", "pull"], 9, "does not belong to this content");
    net.server.remove(&format!("{path}.sig"));
    let ended = net.world.kiln(&["image", "pull"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("has no signature and is taken unverified"),
        "{}",
        ended.stderr
    );
    // Who does not say so does not get it from the cache either.
    net.spec(&json!("flatcar:stable@4230.2.3"));
    let ended = net.world.kiln(&["image", "pull"]);
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
}

#[test]
fn rhcos_is_found_by_its_mirror_s_digests() {
    let net = Net::new();
    let content = image(1, 5);
    let packed = pack("gzip", &["-1"], &content);
    let folder = "/rhcos/x86_64/dependencies/rhcos/4.18";
    let name = "rhcos-4.18.1-x86_64-qemu.x86_64.qcow2.gz";
    let sums = format!(
        "{}  {name}\n{}  rhcos-qemu.x86_64.qcow2.gz\n",
        sha256(&packed),
        sha256(&packed)
    );
    net.server
        .put(&format!("{folder}/latest/sha256sum.txt"), sums);
    net.server
        .put(&format!("{folder}/4.18.1/{name}"), packed.clone());
    net.spec(&json!("rhcos:4.18"));
    let found = pulled(
        &net,
        &net.world.json(&["image", "pull"]),
        &content,
        "digest",
    );
    assert_eq!(found["image"], "rhcos:4.18.1");
    // Another file than the digest's.
    net.world.ok(&["image", "prune"]);
    net.server.put(
        &format!("{folder}/4.18.1/{name}"),
        pack("gzip", &[], &image(1, 6)),
    );
    net.fails(&["image", "pull"], 9, "has the SHA-256");
}

#[test]
fn any_address_with_a_digest_will_do_also_over_redirects() {
    let net = Net::new();
    let content = image(1, 7);
    let packed = pack("xz", &["-0"], &content);
    net.server.put("/far/x.qcow2.xz", packed.clone());
    let far = net.server.url("/far/x.qcow2.xz");
    net.server
        .put_with("/near/x.qcow2.xz", "", Manners::Elsewhere(far));
    let near = net.server.url("/near/x.qcow2.xz");
    net.spec(&json!({"disk": near, "sha256": sha256(&packed)}));
    pulled(
        &net,
        &net.world.json(&["image", "pull"]),
        &content,
        "digest",
    );
    // The spec pins it; there is nothing to add.
    assert!(!net.world.path("spec/kiln.lock").exists());
    // The same by the command line, for a cluster to come.
    net.world.ok(&["image", "prune"]);
    let args = ["image", "pull", &near, "--sha256", &sha256(&packed)];
    pulled(&net, &net.world.json(&args), &content, "digest");
    net.world.ok(&["image", "verify"]);
    for wrong in [
        &["image", "pull", &near][..],
        &["image", "pull", "nonsense"],
    ] {
        assert_eq!(net.world.kiln(wrong).code, Some(2), "{wrong:?}");
    }
}
