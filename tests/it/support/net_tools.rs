//! Servers of DHCP that are not kiln's, and a reader of captures, out of Debian's packages.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::run::run;

/// The first time it downloads packages.
const FETCH: Duration = Duration::from_secs(300);

/// The folder with the programs.
fn folder() -> PathBuf {
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/net-tools");
    let fetched = run(&mut Command::new(fetch), FETCH).ok();
    PathBuf::from(fetched.stdout.trim_end())
}

/// A program that serves DHCP, as long as this is there.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    folder: TempDir,
}

impl Server {
    /// dnsmasq on `link`, with leases of two minutes for addresses of `network/24` from `.50` to `.59`; to no others than
    /// `macs`, where some are named.
    pub(crate) fn dnsmasq(link: &str, network: Ipv4Addr, macs: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, _] = network.octets();
        let mut command = Command::new(self::folder().join("dnsmasq"));
        command
            .args(["--no-daemon", "--conf-file=/dev/null", "--pid-file="])
            .args(["--no-ping", "--port=0", "--user=root", "--bind-dynamic"])
            .arg(format!("--interface={link}"))
            .arg(format!("--dhcp-leasefile={}", leases_in(&folder).display()));
        command.arg(format!("--dhcp-range={a}.{b}.{c}.50,{a}.{b}.{c}.59,120"));
        if !macs.is_empty() {
            // Not even a refusal: another server may have the same address as this one.
            command.arg("--dhcp-ignore=tag:!ours");
        }
        for mac in macs {
            command.arg(format!("--dhcp-host={mac},set:ours"));
        }
        Server::start(command, folder)
    }

    /// ISC's dhcpd on `link`, with leases of `seconds` for addresses from `.70` to `.79`.
    pub(crate) fn dhcpd(link: &str, network: Ipv4Addr, seconds: u32, macs: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, _] = network.octets();
        let only = match macs {
            [] => "",
            _ => "deny unknown-clients;",
        };
        let mut text = format!(
            "ping-check false; default-lease-time {seconds}; min-lease-time {seconds}; max-lease-time {seconds};\n\
             subnet {network} netmask 255.255.255.0 {{ pool {{ {only} range {a}.{b}.{c}.70 {a}.{b}.{c}.79; }} }}\n"
        );
        for (number, mac) in macs.iter().enumerate() {
            text += &format!("host h{number} {{ hardware ethernet {mac}; }}\n");
        }
        let file = |name| folder.path().join(name);
        fs::write(file("conf"), text).unwrap();
        fs::write(leases_in(&folder), "").unwrap();
        let mut command = Command::new(self::folder().join("dhcpd"));
        command
            .args(["-4", "-f", "-d", "-cf"])
            .arg(file("conf"))
            .arg("-lf")
            .arg(leases_in(&folder))
            .arg("-pf")
            .arg(file("pid"))
            .arg(link);
        Server::start(command, folder)
    }

    fn start(mut command: Command, folder: TempDir) -> Server {
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Server { child, folder }
    }

    pub(crate) fn leases(&self) -> PathBuf {
        leases_in(&self.folder)
    }
}

fn leases_in(folder: &TempDir) -> PathBuf {
    folder.path().join("leases")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log"));
            eprintln!("--- the server said\n{}", log.unwrap_or_default());
        }
    }
}

/// What tcpdump finds in a capture, a line for each frame.
#[track_caller]
pub(crate) fn frames_of(capture: &Path) -> Vec<String> {
    let mut command = Command::new(folder().join("tcpdump"));
    // It would go over to a user of its own, which only its package makes.
    if nix::unistd::Uid::effective().is_root() {
        command.args(["-Z", "root"]);
    }
    command.args(["-n", "-e", "-t", "-r"]).arg(capture);
    let said = run(&mut command, Duration::from_secs(30)).ok().stdout;
    said.lines().map(str::to_owned).collect()
}
