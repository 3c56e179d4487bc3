//! Folders of the host in a guest: read, written to, and no way out of them.
//!
//! The tiny guest has no systemd, so it is told to read its mount units and do as they say.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};
use crate::support::{process, virtiofsd};

/// virtiofs is for guests of the host's own architecture; a kernel for the cloud has no 9p.
const NATIVE: &str = if cfg!(target_arch = "aarch64") {
    "aarch64"
} else {
    "x86_64"
};
const FOREIGN: &str = if cfg!(target_arch = "aarch64") {
    "i386"
} else {
    "aarch64"
};

const MOUNT: &str = r#"sudo sh -c 'cd /etc/systemd/system && for unit in *.mount; do
    get() { sed -n "s/^$1=//p" "$unit"; }
    mkdir -p "$(get Where)" && mount -t "$(get Type)" -o "$(get Options)" "$(get What)" "$(get Where)" || exit
done && ls *.mount'"#;

/// As it is on the host: a folder that only its owner may enter, and in it one to read, and one to
/// write to that belongs to another user where there is one to give it to.
struct Story {
    home: Home,
    folder: PathBuf,
    owner: u32,
    programs: TempDir,
}

impl Story {
    fn begin(user: User, name: &str, arch: &'static str) -> Story {
        let mut home = Home::new(Lane::Narrow, user, name, &["node"]);
        let programs = virtiofsd::public_copy();
        home.look_in(Some(&programs.path().join("bin")));
        let folder = home.folder().join("private");
        for name in ["private", "private/read", "private/write"] {
            let path = home.folder().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        }
        fs::write(folder.join("secret"), "not for the guest").unwrap();
        fs::write(folder.join("read/told"), "by the host").unwrap();
        fs::set_permissions(folder.join("read/told"), Permissions::from_mode(0o600)).unwrap();
        let mut owner = Uid::effective().as_raw();
        if owner == 0 {
            owner = home.folder().metadata().unwrap().uid();
            let ordinary = owner != 0;
            for name in ["", "secret", "read", "read/told"] {
                chown(folder.join(name), Some(owner), Some(owner)).unwrap();
            }
            if !ordinary {
                owner = 1234;
            }
            chown(folder.join("write"), Some(owner), Some(owner)).unwrap();
        }
        let story = Story {
            home,
            folder,
            owner,
            programs,
        };
        story.spec(arch, "private/read");
        story
    }

    fn spec(&self, arch: &'static str, read: &str) {
        let shares = json!([
            {"from": read, "to": "/var/mnt/read", "readonly": true},
            {"from": "private/write", "to": "/var/mnt/to-write"},
        ]);
        let node = json!({
            "arch": arch, "memory": "256MiB", "restart": "no", "shares": shares,
        });
        let image = guest::tiny(arch).image("");
        self.home.write_spec(&image, &json!({"node": node}));
    }

    fn shares(&self) -> Value {
        self.home.machine("node")["shares"].clone()
    }

    #[track_caller]
    fn up_by(&self, transport: &str) {
        self.home.within(BOOT, &["up"]).ok();
        for share in self.shares().as_array().unwrap() {
            assert_eq!(share["by"], transport, "{share}");
        }
        let units = "var-mnt-read.mount\nvar-mnt-to\\x2dwrite.mount\n";
        assert_eq!(self.home.ssh("node", MOUNT), units);
    }

    #[track_caller]
    fn is_read_and_written(&self, word: &str) {
        let home = &self.home;
        let look = "sudo cat /var/mnt/read/told";
        assert_eq!(home.ssh("node", look), "by the host");
        let write = format!(
            "sudo sh -c 'umask 022; mkdir -p /var/mnt/to-write/{word}; echo {word} >/var/mnt/to-write/{word}/file'"
        );
        home.ssh("node", &write);
        let written = self.folder.join("write").join(word);
        assert_eq!(
            fs::read_to_string(written.join("file")).unwrap(),
            format!("{word}\n")
        );
        for (path, mode) in [(written.clone(), 0o755), (written.join("file"), 0o644)] {
            let found = path.metadata().unwrap();
            assert_eq!((found.uid(), found.mode() & 0o7777), (self.owner, mode));
        }
    }

    /// Not by its own mount alone: that is the guest's to change.
    #[track_caller]
    fn is_read_only(&self) {
        let refused = "sudo sh -c 'cd /var/mnt/read; echo x >told; mount -o remount,rw . ; echo x >told; \
                       touch new; rm told; chmod 666 told; ln told link; mkdir x; true' 2>&1";
        let said = self.home.ssh("node", refused);
        assert!(said.matches("Read-only file system").count() >= 6, "{said}");
        let told = self.folder.join("read/told");
        assert_eq!(fs::read_to_string(&told).unwrap(), "by the host");
        assert_eq!(told.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(self.folder.join("read")).unwrap().count(), 1);
    }

    /// A link is the guest's to follow, in its own files; and there is nothing above the folder.
    #[track_caller]
    fn is_no_way_out(&self) {
        let secret = self.folder.join("secret");
        let look = format!(
            "sudo sh -c 'cd /var/mnt/to-write && ln -s {} far && ln -s ../secret near && ln -s /etc/hostname own; \
             cat far near ../secret /var/mnt/to-write/../secret 2>/dev/null; cat own'",
            secret.display(),
        );
        assert_eq!(self.home.ssh("node", &look), "node\n");
        let link = fs::read_link(self.folder.join("write/far")).unwrap();
        assert_eq!(link, secret);
        // What a link on the host names is not to be had either.
        std::os::unix::fs::symlink(&secret, self.folder.join("read/link")).unwrap();
        let look = "sudo cat /var/mnt/read/link 2>/dev/null; sudo readlink /var/mnt/read/link";
        let want = format!("{}\n", secret.display());
        assert_eq!(self.home.ssh("node", look), want);
        fs::remove_file(self.folder.join("read/link")).unwrap();
    }

    fn kill_supervisor(&self) {
        let supervisor = Pid::from_raw(self.home.supervisor().cast_signed());
        kill(supervisor, Signal::SIGKILL).unwrap();
    }

    /// Those that serve the machine.
    fn servers(&self) -> Vec<u32> {
        let ours = self.programs.path().display().to_string();
        let mut found = process::with("cmdline", &ours);
        let qemu = self.home.pid("node");
        found.retain(|pid| {
            let pid = Pid::from_raw(pid.cast_signed());
            let group = nix::unistd::getpgid(Some(pid));
            group == Ok(Pid::from_raw(qemu.cast_signed()))
        });
        found
    }
}

#[test]
fn virtiofs_shares_a_folder_and_dies_with_its_machine() {
    let story = Story::begin(User::Myself, "virtiofs", NATIVE);
    let home = &story.home;
    story.up_by("virtiofs");
    story.is_read_and_written("first");
    story.is_read_only();
    story.is_no_way_out();
    let qemu = home.pid("node");
    for server in story.servers() {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        let inside = namespace(&server.to_string()) != namespace("self");
        assert!(inside || process::status(server, "CapEff") == "0000000000000000");
        assert_eq!(process::status(server, "NoNewPrivs"), "1");
        assert_eq!(process::status(server, "Uid"), process::status(qemu, "Uid"));
    }

    // The one after it finds what serves the shares, and sees it die.
    story.kill_supervisor();
    assert_eq!(home.pid("node"), qemu);
    story.is_read_and_written("second");
    let mut events = home.events();
    let server = Pid::from_raw(story.servers()[0].cast_signed());
    kill(server, Signal::SIGKILL).unwrap();
    let crashed = events.next("node", "crashed", Duration::from_secs(60));
    let reason = crashed["status"]["reason"].as_str().unwrap();
    assert!(reason.contains("serves its share"), "{reason}");
    drop(events);

    home.within(BOOT, &["start"]).ok();
    home.ssh("node", MOUNT);
    story.is_read_and_written("third");
    home.down();
}

#[test]
fn virtiofs_shares_an_ordinary_users_folder() {
    let story = Story::begin(User::Ordinary, "virtiofs-user", NATIVE);
    story.up_by("virtiofs");
    story.is_read_and_written("first");
    story.is_read_only();
    story.is_no_way_out();
    story.home.down();
}

#[test]
fn a_foreign_machine_has_its_shares_by_9p() {
    let story = Story::begin(User::Myself, "nine", FOREIGN);
    let home = &story.home;
    let plan = home.json(&["plan"]);
    let reason = plan["machines"][0]["shares"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("virtiofs is for guests of the host's own"));
    story.up_by("9p");
    story.is_read_and_written("first");
    story.is_read_only();
    story.is_no_way_out();
    story.kill_supervisor();
    story.is_read_and_written("second");

    // Another folder in the same place takes a restart.
    fs::create_dir(story.folder.join("other")).unwrap();
    fs::write(story.folder.join("other/told"), "by the host").unwrap();
    story.spec(FOREIGN, "private/other");
    let step = home.json(&["plan"])["machines"][0].take();
    assert_eq!(step["action"], "restart", "{step}");
    let why = step["why"][0].as_str().unwrap();
    assert!(why.starts_with("share `/var/mnt/read`: "), "{why}");
    home.within(BOOT, &["up"]).ok();
    home.ssh("node", MOUNT);
    story.is_read_and_written("third");
    home.down();
}

#[test]
fn an_ordinary_users_folder_is_shared_by_9p() {
    let story = Story::begin(User::Ordinary, "nine-user", FOREIGN);
    story.up_by("9p");
    story.is_read_and_written("first");
    story.is_read_only();
    story.is_no_way_out();
    story.home.down();
}
