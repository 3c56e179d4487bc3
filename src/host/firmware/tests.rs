use std::fs;

use tempfile::{TempDir, tempdir};

use super::*;

/// A descriptor of a build called `build` that does `features`.
fn descriptor(build: &str, arch: &str, machines: &[&str], features: &[&str]) -> String {
    serde_json::json!({
        "description": "a build",
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": format!("{build}.code"), "format": "raw"},
            "nvram-template": {"filename": format!("{build}.vars"), "format": "qcow2"},
        },
        "targets": [{"architecture": arch, "machines": machines}],
        "features": features,
        "tags": [],
    })
    .to_string()
}

const PC: &[&str] = &["pc-i440fx-*", "pc-q35-*"];
const SECURE: &[&str] = &["requires-smm", "secure-boot", "enrolled-keys"];

/// Folders of descriptors, and the builds that they name.
struct Installed(TempDir);

impl Installed {
    fn new() -> Installed {
        Installed(tempdir().unwrap())
    }

    fn write(&self, path: &str, text: &str) -> &Installed {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn build(&self, path: &str, arch: &str, machines: &[&str], features: &[&str]) -> &Installed {
        let build = self.0.path().join("builds").join(path.replace('/', "-"));
        for end in ["code", "vars"] {
            self.write(&format!("{}.{end}", build.display()), "");
        }
        let text = descriptor(&build.display().to_string(), arch, machines, features);
        self.write(path, &text)
    }

    fn look(&self) -> Firmwares {
        Firmwares::look(&["own", "etc", "usr"].map(|folder| self.0.path().join(folder)))
    }

    /// The file name of the code that is chosen.
    fn chosen(&self, arch: Arch, board: &str, uefi: Uefi) -> Option<String> {
        let found = self.look();
        let code = &found.choose(arch, board, uefi)?.code.path;
        Some(code.file_name()?.to_str()?.to_owned())
    }
}

#[test]
fn the_first_file_name_that_does_what_is_wanted_is_chosen() {
    let installed = Installed::new();
    installed
        .build("usr/60-plain.json", "x86_64", PC, &["acpi-s3"])
        .build("usr/40-secure.json", "x86_64", &["pc-q35-*"], SECURE)
        .build(
            "usr/50-no-keys.json",
            "x86_64",
            PC,
            &["requires-smm", "secure-boot"],
        )
        .build("usr/30-arm.json", "aarch64", &["virt-*"], &[]);
    let q35 = |uefi| installed.chosen(Arch::X86_64, "pc-q35-10.0", uefi);
    assert_eq!(q35(Uefi::Open).as_deref(), Some("usr-60-plain.json.code"));
    assert_eq!(
        q35(Uefi::Secure).as_deref(),
        Some("usr-40-secure.json.code")
    );
    let arm = |uefi| installed.chosen(Arch::Aarch64, "virt-9.2", uefi);
    assert_eq!(arm(Uefi::Open).as_deref(), Some("usr-30-arm.json.code"));
    assert_eq!(arm(Uefi::Secure), None);
    assert_eq!(installed.chosen(Arch::X86_64, "virt-9.2", Uefi::Open), None);
}

#[test]
fn the_user_s_folder_comes_before_the_host_s_and_an_empty_file_masks() {
    let installed = Installed::new();
    installed
        .build("usr/40-a.json", "x86_64", PC, &[])
        .build("usr/50-b.json", "x86_64", PC, &[])
        .build("usr/60-c.json", "x86_64", PC, &[])
        .build("etc/50-b.json", "x86_64", PC, &[])
        .write("own/40-a.json", "")
        .write("own/10-note.txt", "no descriptor");
    let found = installed.look();
    let codes: Vec<_> = found
        .usable
        .iter()
        .map(|it| it.code.path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(codes, ["etc-50-b.json.code", "usr-60-c.json.code"]);
    assert_eq!(found.faults, []);
    assert_eq!(found.usable[0].template.format, DiskFormat::Qcow2);
}

#[test]
fn what_cannot_be_used_is_passed_over_and_what_is_broken_is_told() {
    let installed = Installed::new();
    installed
        .build("usr/90-good.json", "x86_64", PC, &[])
        .write("usr/10-torn.json", "{\"interface-types\":")
        .write("usr/20-gone.json", &descriptor("/nowhere/x", "x86_64", PC, &[]))
        .write(
            "usr/30-memory.json",
            r#"{"interface-types": ["uefi"], "mapping": {"device": "memory", "filename": "/x"}, "targets": []}"#,
        )
        .write(
            "usr/40-stateless.json",
            r#"{"interface-types": ["uefi"], "targets": [], "mapping": {"device": "flash",
                "mode": "stateless", "executable": {"filename": "/x", "format": "raw"}}}"#,
        )
        .write(
            "usr/50-newer.json",
            r#"{"interface-types": ["uefi"], "targets": [], "mapping": {"device": "igvm", "new": 1}}"#,
        );
    let found = installed.look();
    assert_eq!(found.usable.len(), 1);
    let faults: Vec<_> = found
        .faults
        .iter()
        .map(|(path, why)| (path.file_name().unwrap().to_str().unwrap(), why.as_str()))
        .collect();
    assert_eq!(faults[0].0, "10-torn.json");
    assert_eq!(
        faults[1],
        (
            "20-gone.json",
            "names `/nowhere/x.code`: No such file or directory (os error 2)"
        )
    );
    assert_eq!(faults.len(), 2);
}

#[test]
fn a_folder_that_is_not_there_has_none() {
    assert_eq!(Firmwares::look(&["/nowhere".into()]), Firmwares::default());
    assert_eq!(
        folders(Some(Path::new("/home/user/.config"))),
        [
            "/home/user/.config/qemu/firmware",
            "/etc/qemu/firmware",
            "/usr/share/qemu/firmware"
        ]
        .map(PathBuf::from)
    );
}

#[test]
fn globs_match_as_in_a_shell() {
    for (glob, name, fits) in [
        ("pc-q35-*", "pc-q35-10.0", true),
        ("pc-q35-*", "pc-q35-", true),
        ("pc-q35-*", "pc-i440fx-10.0", false),
        ("virt", "virt", true),
        ("virt", "virt-9.2", false),
        ("virt-?.2", "virt-9.2", true),
        ("*", "", true),
        ("*-*-10.?", "pc-q35-10.0", true),
        ("", "virt", false),
    ] {
        assert_eq!(matches(glob, name), fits, "{glob} {name}");
    }
}
