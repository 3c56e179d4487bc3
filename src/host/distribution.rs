//! Which distribution this is, and the command that installs a piece there.
//!
//! Of distributions that are not known here, kiln names only the program that is missing.

use kiln_arch::Arch;

/// The distributions whose package names kiln knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Debian, Ubuntu and what is made from them.
    Debian,
    /// Debian 12, whose own QEMU has the s390x board in another package.
    Bookworm,
    /// Debian 12 with the QEMU of its backports, which goes together with no other.
    BookwormBackports,
    /// Fedora, CentOS Stream and what is made from them.
    Fedora,
    Other,
}

/// A thing that kiln uses and a package brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    Qemu(Arch),
    /// UEFI for guests of the architecture.
    Uefi(Arch),
    Swtpm,
    Lvm,
    Pasta,
    QemuImg,
    Ssh,
    IgnitionValidate,
}

impl Distribution {
    /// From the text of `/etc/os-release`: `ID`, then `ID_LIKE` from left to right.
    pub(super) fn parse(os_release: &str) -> Distribution {
        let value = |key: &str| {
            os_release
                .lines()
                .filter_map(|line| line.trim().split_once('='))
                .find(|(found, _)| *found == key)
                .map_or("", |(_, value)| value.trim_matches(['"', '\'']))
        };
        value("ID")
            .split_ascii_whitespace()
            .chain(value("ID_LIKE").split_ascii_whitespace())
            .find_map(|id| match id {
                "debian" if value("VERSION_ID") == "12" => Some(Distribution::Bookworm),
                "debian" | "ubuntu" => Some(Distribution::Debian),
                "fedora" | "centos" | "rhel" => Some(Distribution::Fedora),
                _ => None,
            })
            .unwrap_or(Distribution::Other)
    }

    /// The command that installs the piece, to be run as root; `None` where no package is known.
    pub fn install(self, piece: Piece) -> Option<String> {
        let (command, package) = match self {
            Distribution::Bookworm if piece == Piece::Qemu(Arch::S390x) => {
                ("apt-get install", "qemu-system-misc")
            }
            Distribution::BookwormBackports if matches!(piece, Piece::Qemu(_) | Piece::QemuImg) => {
                ("apt-get install -t bookworm-backports", debian(piece))
            }
            Distribution::Debian | Distribution::Bookworm | Distribution::BookwormBackports => {
                ("apt-get install", debian(piece))
            }
            Distribution::Fedora => ("dnf install", fedora(piece)),
            Distribution::Other => return None,
        };
        Some(format!("{command} {package}"))
    }
}

fn debian(piece: Piece) -> &'static str {
    match piece {
        Piece::Qemu(Arch::X86_64 | Arch::I386) => "qemu-system-x86",
        Piece::Qemu(Arch::Aarch64) => "qemu-system-arm",
        Piece::Qemu(Arch::S390x) => "qemu-system-s390x",
        Piece::Qemu(Arch::Ppc64le) => "qemu-system-ppc",
        Piece::Uefi(Arch::Aarch64) => "qemu-efi-aarch64",
        Piece::Uefi(_) => "ovmf",
        Piece::Swtpm => "swtpm",
        Piece::Lvm => "lvm2",
        Piece::Pasta => "passt",
        Piece::QemuImg => "qemu-utils",
        Piece::Ssh => "openssh-client",
        // The package of the whole of Ignition has it, at least in Debian 12.
        Piece::IgnitionValidate => "ignition",
    }
}

fn fedora(piece: Piece) -> &'static str {
    match piece {
        Piece::Qemu(Arch::X86_64 | Arch::I386) => "qemu-system-x86-core",
        Piece::Qemu(Arch::Aarch64) => "qemu-system-aarch64-core",
        Piece::Qemu(Arch::S390x) => "qemu-system-s390x-core",
        Piece::Qemu(Arch::Ppc64le) => "qemu-system-ppc-core",
        Piece::Uefi(Arch::Aarch64) => "edk2-aarch64",
        Piece::Uefi(_) => "edk2-ovmf",
        Piece::Swtpm => "swtpm",
        Piece::Lvm => "lvm2",
        Piece::Pasta => "passt",
        Piece::QemuImg => "qemu-img",
        Piece::Ssh => "openssh-clients",
        Piece::IgnitionValidate => "ignition-validate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_known_by_id_and_by_likeness() {
        for (text, want) in [
            ("ID=debian\nVERSION_ID=\"12\"\n", Distribution::Bookworm),
            ("PRETTY_NAME=\"Debian\"\nID=debian\n", Distribution::Debian),
            (
                "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
                Distribution::Debian,
            ),
            ("ID=fedora\nVARIANT_ID=coreos\n", Distribution::Fedora),
            (
                "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
                Distribution::Fedora,
            ),
            ("ID=arch\n", Distribution::Other),
            ("", Distribution::Other),
        ] {
            assert_eq!(Distribution::parse(text), want, "{text}");
        }
    }

    #[test]
    fn the_command_names_the_distribution_s_own_package() {
        let arm = Piece::Qemu(Arch::Aarch64);
        assert_eq!(
            Distribution::Debian.install(arm).as_deref(),
            Some("apt-get install qemu-system-arm")
        );
        assert_eq!(
            Distribution::Fedora.install(arm).as_deref(),
            Some("dnf install qemu-system-aarch64-core")
        );
        assert_eq!(Distribution::Other.install(arm), None);
        let mainframe = Piece::Qemu(Arch::S390x);
        assert_eq!(
            Distribution::Bookworm.install(mainframe).as_deref(),
            Some("apt-get install qemu-system-misc")
        );
        assert_eq!(
            Distribution::BookwormBackports
                .install(mainframe)
                .as_deref(),
            Some("apt-get install -t bookworm-backports qemu-system-s390x")
        );
    }
}
