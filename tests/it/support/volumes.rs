//! A volume group of the test's own, on a loop device, with the real lvm2.
//!
//! lvm2 sees this device and no other one of the host's. The kernels that run these tests have no
//! device-mapper: `lvm.sh` says what stands in for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// lvm2's own folder is the real one's: a test that is not root, or has no lvm2, fails here.
pub(crate) struct Group {
    pub(crate) name: String,
    folder: PathBuf,
    device: String,
}

impl Group {
    /// A group of `mib` MiB in extents of 1 MiB, and `lvm` for it in `bin`. The folder has to stay
    /// until the group is dropped.
    pub(crate) fn new(folder: &Path, bin: &Path, mib: u64) -> Group {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "only root has loop devices"
        );
        assert!(
            Path::new("/usr/sbin/lvm").exists(),
            "lvm2 is missing: `setup` installs it"
        );
        let folder = folder.join("lvm");
        fs::create_dir_all(folder.join("nodes")).unwrap();
        let image = folder.join("device");
        // And as much as the group's own data take.
        let file = fs::File::create(&image).unwrap();
        file.set_len((mib + 1) << 20).unwrap();
        let device = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let group = Group {
            name: format!("kiln{}.{count}", std::process::id()),
            folder,
            device,
        };
        fs::create_dir_all(bin).unwrap();
        let script = group.folder.join("lvm");
        let copied = Command::new("install")
            .args([
                "-m",
                "755",
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/lvm.sh"),
            ])
            .arg(&script)
            .status();
        assert!(copied.unwrap().success());
        std::os::unix::fs::symlink(&script, bin.join("lvm")).unwrap();
        let pattern = format!("[\"a|^{}$|\", \"r|.*|\"]", group.device);
        let config = format!(
            "devices {{\n  filter = {pattern}\n  global_filter = {pattern}\n  use_devicesfile = 0\n  hints = \"none\"\n}}\n\
             global {{\n  locking_dir = \"{}\"\n  use_lvmpolld = 0\n}}\n\
             backup {{\n  backup = 0\n  archive = 0\n}}\n\
             activation {{\n  udev_sync = 0\n  udev_rules = 0\n}}\n",
            group.folder.join("lock").display()
        );
        fs::write(group.folder.join("lvm.conf"), config).unwrap();
        group.lvm(&["pvcreate", "-q", "--dataalignment", "1m", &group.device]);
        group.lvm(&[
            "vgcreate",
            "-q",
            "--physicalextentsize",
            "1m",
            &group.name,
            &group.device,
        ]);
        // World-readable as far as a QEMU of another user goes.
        fs::set_permissions(&group.folder, fs::Permissions::from_mode(0o755)).unwrap();
        group
    }

    /// What the real lvm2 says.
    #[track_caller]
    pub(crate) fn lvm(&self, args: &[&str]) -> String {
        let ended = Command::new("/usr/sbin/lvm")
            .arg(args[0])
            .args(["--driverloaded", "n"])
            .args(&args[1..])
            .env("LVM_SYSTEM_DIR", &self.folder)
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .output()
            .unwrap();
        assert!(ended.status.success(), "{args:?}: {ended:?}");
        String::from_utf8(ended.stdout).unwrap()
    }

    /// The group as a person sees it: free extents, and each volume with UUID, size and tags.
    #[track_caller]
    pub(crate) fn seen(&self) -> String {
        let vgs = self.lvm(&[
            "vgs",
            "-o",
            "vg_uuid,vg_extent_count,vg_free_count,lv_count",
        ]);
        let lvs = self.lvm(&["lvs", "-o", "lv_name,lv_uuid,lv_size,lv_tags,devices"]);
        format!("{vgs}{lvs}")
    }

    /// The names of the volumes, each with its size in MiB.
    #[track_caller]
    pub(crate) fn volumes(&self) -> Vec<String> {
        let columns = "lv_name,lv_size";
        let args = [
            "lvs",
            "--noheadings",
            "--units",
            "m",
            "--nosuffix",
            "-o",
            columns,
        ];
        let text = self.lvm(&args);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut lines: Vec<String> = text.lines().map(words).collect();
        for line in &mut lines {
            *line = line.trim_end_matches(".00").to_owned();
        }
        lines.sort();
        lines
    }

    /// A column of one volume.
    #[track_caller]
    pub(crate) fn of(&self, volume: &str, column: &str) -> String {
        let name = format!("{}/{volume}", self.name);
        let text = self.lvm(&["lvs", "--noheadings", "-o", column, &name]);
        text.trim().to_owned()
    }

    /// What a volume holds.
    #[track_caller]
    pub(crate) fn content(&self, volume: &str) -> Vec<u8> {
        fs::read(self.node(volume)).unwrap()
    }

    /// The node of a volume that is active.
    #[track_caller]
    pub(crate) fn node(&self, volume: &str) -> String {
        let uuid = self.of(volume, "lv_uuid");
        let node = self.folder.join(format!("nodes/{uuid}.loop"));
        node.to_str().unwrap().to_owned()
    }

    /// Kills the kiln that has lvm2 called so many times, when that call is done.
    pub(crate) fn kill_after(&self, calls: u32) {
        fs::write(self.folder.join("kill-after"), calls.to_string()).unwrap();
    }

    pub(crate) fn kill_nobody(&self) {
        fs::remove_file(self.folder.join("kill-after")).unwrap();
    }

    /// As after a boot of the host: no volume is active.
    pub(crate) fn deactivate(&self) {
        for (path, device) in self.loops() {
            run("losetup", &["-d", &device]);
            fs::remove_file(path).unwrap();
        }
    }

    fn loops(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.folder.join("nodes"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "loop") {
                let device = fs::read_link(&path).unwrap();
                found.push((path, device.to_str().unwrap().to_owned()));
            }
        }
        found
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Also those of a stand-in that was killed before it had written down what it made.
        let ours = format!("{}/", self.folder.display());
        let all = Command::new("losetup")
            .args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"])
            .output();
        let text = all.map_or_else(
            |_| String::new(),
            |all| String::from_utf8_lossy(&all.stdout).into_owned(),
        );
        for line in text.lines().filter(|line| line.contains(&ours)) {
            let device = line.split_whitespace().next().unwrap_or_default();
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let ended = Command::new(program).args(args).output().unwrap();
    assert!(ended.status.success(), "{program} {args:?}: {ended:?}");
    String::from_utf8(ended.stdout).unwrap().trim().to_owned()
}
