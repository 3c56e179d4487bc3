//! What may be said to each verb.
//!
//! A duration that was not given stays absent, so that the commands can stretch
//! the default where guests are emulated, and leave alone what the user said.

use std::ffi::OsString;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use kiln_arch::Arch;

use crate::cluster::{COUNT_LIMIT, ClusterName, MachineName};

/// How long `up`, `start`, `restart` and `wait` wait when the user does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long a guest may take to shut down when the user does not say.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(60);
/// No deadline is later than this: a week.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How far machines have to come before a command returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Reach {
    /// Return when everything has been set going
    None,
    /// QEMU runs the machine
    Running,
    /// The machine's address was seen in use
    Address,
    /// The machine has reported that it is up
    Ready,
}

/// What `wait` can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// QEMU runs the machine
    Running,
    /// The machine's address was seen in use
    Address,
    /// The machine has reported that it is up
    Ready,
    /// The machine has stopped
    Stopped,
}

/// Some machines of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct MachinesArgs {
    /// Only these; all machines of the cluster when none is named
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<MachineName>,
}

/// What to wait for, and how long.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Waiting {
    /// Return when the machines have come so far
    #[arg(long, value_name = "STAGE", default_value = "ready")]
    pub wait: Reach,
    /// Give up waiting after this long, such as `90s` or `5m`; the machines run on [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// How many machines at a time.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Rolling {
    /// Take N running machines at a time away from their work, 1 if no number is given, and wait
    /// until they are as far as `--wait` says before the next
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1", value_parser = width)]
    pub rolling: Option<NonZeroU16>,
}

/// Template variables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct VarArgs {
    /// A template variable for all machines, whatever the spec says; a value of YAML, a name or a path such as `db.host`; it is remembered
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable, conflicts_with = "machines")]
    pub set: Vec<Variable>,
    /// Forget what an earlier `--set` said of a variable
    #[arg(long, value_name = "NAME", conflicts_with = "machines")]
    pub unset: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct InitArgs {
    /// Where to write it; a file that exists is left alone [default: kiln.yaml]
    #[arg(value_name = "FILE")]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub machines: MachinesArgs,
    /// Plan as `up --replace` would
    #[arg(long)]
    pub replace: bool,
    /// Plan as `up --scale GROUP=N` would
    #[arg(long, value_name = "GROUP=N", value_parser = group_count)]
    pub scale: Vec<GroupCount>,
    #[command(flatten)]
    pub vars: VarArgs,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln up                          all machines of the spec
  kiln up node-1 node-2            only these
  kiln up --wait running           return as soon as QEMU runs them
  kiln up --scale node=5           five machines in the group `node`, from now on
  kiln up --replace --rolling 1    make machines anew one after the other
  kiln up --dry-run                print the plan and do nothing")]
pub struct UpArgs {
    #[command(flatten)]
    pub machines: MachinesArgs,
    #[command(flatten)]
    pub waiting: Waiting,
    /// Print the plan and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Make machines anew whose image or Ignition config has changed; their disks are lost
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub rolling: Rolling,
    /// How many machines a group has, whatever the spec's `count` says; it is remembered
    #[arg(long, value_name = "GROUP=N", value_parser = group_count, conflicts_with = "machines")]
    pub scale: Vec<GroupCount>,
    #[command(flatten)]
    pub vars: VarArgs,
    /// Download images anew, also those that are in the cache
    #[arg(long)]
    pub force_download: bool,
    /// Start machines also when they have more memory than this host has left
    #[arg(long)]
    pub overcommit: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ReprovisionArgs {
    /// These machines, by name: what is on their root disks is lost; data disks stay
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<MachineName>,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub rolling: Rolling,
    /// Start machines also when they have more memory than this host has left
    #[arg(long)]
    pub overcommit: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub verb: ImageVerb,
}

/// What can be done with images.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ImageVerb {
    /// Download images, verify them, and keep them in the cache
    #[command(after_help = "\
Examples:
  kiln image pull                           all images of the spec, pinned in kiln.lock
  kiln image pull fedora-coreos:stable      the newest of a stream, whatever the spec says
  kiln image pull https://… --sha256 0123…  any image")]
    Pull(PullArgs),
    /// Move the pins in kiln.lock to the newest releases, and download these
    Update,
    /// List the images of the cache
    Ls,
    /// Remove images that no machine stands on
    Rm(RemoveArgs),
    /// Remove all images that no machine stands on, and what broken-off downloads left
    Prune,
    /// Read images again and compare them with their digests
    Verify(SomeImagesArgs),
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PullArgs {
    /// A stream, a release or an address; all images of the spec when none is named
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
    /// The architecture of images that are named; the host's when not given
    #[arg(long, value_name = "ARCH", requires = "images")]
    pub arch: Option<Arch>,
    /// The digest of the file at an address
    #[arg(long, value_name = "DIGEST", requires = "images")]
    pub sha256: Option<String>,
    /// Take images that are named also without a signature or digest
    #[arg(long, requires = "images")]
    pub insecure: bool,
    /// Download also what is in the cache
    #[arg(long)]
    pub force_download: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RemoveArgs {
    /// As `image ls` lists them, or the beginning of a digest
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SomeImagesArgs {
    /// As `image ls` lists them, or the beginning of a digest; all when none is named
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DownArgs {
    /// How long guests may take to shut down before they are ended, such as `30s` [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration, alias = "grace")]
    pub timeout: Option<Duration>,
    /// Keep all data disks; the next `up` attaches them again
    #[arg(long)]
    pub keep_disks: bool,
    /// Remove all data disks, those that are to be kept or were kept before included
    #[arg(long, conflicts_with = "keep_disks")]
    pub remove_disks: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln run -- ./self-test                   in the first machine of the nearest kiln.yaml
  kiln run ci.yaml --on web-1 -- make test  in another one
  kiln run ci.yaml --here -- ./test.sh      on this host, with KILN_CLUSTER and KILN_SSH_CONFIG set

Its exit code is the command's.")]
pub struct RunArgs {
    /// The spec [default: the nearest kiln.yaml]
    #[arg(value_name = "SPEC")]
    pub spec: Option<PathBuf>,
    /// The machine to run it in; the first one of the spec when not given
    #[arg(long, value_name = "MACHINE", conflicts_with = "here")]
    pub on: Option<MachineName>,
    /// Run it on this host instead
    #[arg(long, requires = "command")]
    pub here: bool,
    /// The user to log in as
    #[arg(
        short,
        long,
        value_name = "USER",
        default_value = "core",
        conflicts_with = "here"
    )]
    pub login: String,
    /// Give up waiting for the machines after this long, such as `90s` or `5m` [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// What to run, word for word; a shell when nothing is given
    #[arg(value_name = "COMMAND", last = true)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln exec node-1 -- systemctl is-active sshd
  kiln exec node-1 -- sh -c 'journalctl -b | tail'

Its exit code is the command's. The guest needs a guest agent; `kiln ssh` needs none.")]
pub struct ExecArgs {
    /// The machine
    #[arg(value_name = "MACHINE")]
    pub machine: MachineName,
    /// Give up after this long, such as `90s`; the command goes on in the guest [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// What to run, word for word, as the agent's user, mostly root
    #[arg(value_name = "COMMAND", last = true, required = true)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub machines: MachinesArgs,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub machines: MachinesArgs,
    /// How long guests may take to shut down before they are ended, such as `30s` [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration, alias = "grace")]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RestartArgs {
    #[command(flatten)]
    pub machines: MachinesArgs,
    #[command(flatten)]
    pub waiting: Waiting,
    /// How long guests may take to shut down before they are ended, such as `30s` [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub grace: Option<Duration>,
    #[command(flatten)]
    pub rolling: Rolling,
}

/// What is to become of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AutostartVerb {
    /// Print it and change nothing
    Show,
    /// Write it, and have it start with the host
    Enable,
    /// Remove it
    Disable,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct AutostartArgs {
    /// What to do with the unit
    #[arg(value_name = "WHAT", default_value = "show")]
    pub verb: AutostartVerb,
    /// A unit of the user's, also for root
    #[arg(long)]
    pub user: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct InspectArgs {
    /// Only this machine; the whole cluster when none is named
    #[arg(value_name = "MACHINE")]
    pub machine: Option<MachineName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct IpArgs {
    /// Only this machine's, and only the address; a table of all when none is named
    #[arg(value_name = "MACHINE")]
    pub machine: Option<MachineName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln capture node-1 -w node-1.pcapng
  kiln capture node-1 | wireshark -k -i -
  kiln capture node-1 | tcpdump -n -r -")]
pub struct CaptureArgs {
    /// The machine
    #[arg(value_name = "MACHINE")]
    pub machine: MachineName,
    /// Where to write; stdout when not given, which must not be a terminal
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Which of the machine's interfaces, from 0 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub interface: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln wait                        until all machines are ready
  kiln wait node-1 --for stopped   until node-1 has stopped")]
pub struct WaitArgs {
    #[command(flatten)]
    pub machines: MachinesArgs,
    /// Return when the machines have come so far
    #[arg(long = "for", value_name = "STAGE", default_value = "ready")]
    pub goal: Goal,
    /// Give up after this long, such as `90s` or `5m` [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    pub machines: MachinesArgs,
    /// Print the machines as they are now, and stop
    #[arg(long)]
    pub no_follow: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln logs node-1                 the whole console
  kiln logs node-1 -n 50 -f        its last 50 lines, and all that follow
  kiln logs node-1 --qemu          what QEMU itself said")]
pub struct LogsArgs {
    /// The machine; may be left out where the cluster has only one
    #[arg(value_name = "MACHINE")]
    pub machine: Option<MachineName>,
    /// Go on printing what is added
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last N lines; all of them when not given
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<u64>,
    /// What QEMU said, not the guest
    #[arg(long)]
    pub qemu: bool,
    /// What the cluster's supervisor said
    #[arg(long, conflicts_with_all = ["qemu", "machine"])]
    pub supervisor: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ConsoleArgs {
    /// The machine
    #[arg(value_name = "MACHINE")]
    pub machine: MachineName,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln ssh node-1                  a shell
  kiln ssh node-1 -l root          a shell as another user
  kiln ssh node-1 -- systemctl --failed")]
pub struct SshArgs {
    /// The machine
    #[arg(value_name = "MACHINE")]
    pub machine: MachineName,
    /// The user to log in as
    #[arg(short, long, value_name = "USER", default_value = "core")]
    pub login: String,
    /// What to run there, as ssh would; a shell when nothing is given
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln cp node-1:/etc/os-release .
  kiln cp -r site/ node-1:/var/www/")]
pub struct CopyArgs {
    /// What to copy: paths here, or MACHINE:PATH
    #[arg(value_name = "FROM", required = true)]
    pub from: Vec<OsString>,
    /// Where to: a path here, or MACHINE:PATH
    #[arg(value_name = "TO")]
    pub to: OsString,
    /// Copy folders with all that is in them
    #[arg(short, long)]
    pub recursive: bool,
    /// The user to log in as
    #[arg(short, long, value_name = "USER", default_value = "core")]
    pub login: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Ansible runs an inventory that is a program: put this into an executable file `inventory`:
  #!/bin/sh
  exec kiln -c demo inventory \"$@\"
then `ansible all -i ./inventory -m ping`.")]
pub struct InventoryArgs {
    /// All machines and their variables; so it is without a flag
    #[arg(long)]
    pub list: bool,
    /// Only the variables of this machine
    #[arg(long, value_name = "MACHINE", conflicts_with = "list")]
    pub host: Option<MachineName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RenderArgs {
    /// The machine
    #[arg(value_name = "MACHINE")]
    pub machine: MachineName,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ExplainArgs {
    /// The machine
    #[arg(value_name = "MACHINE")]
    pub machine: MachineName,
    /// Print a shell command that runs by itself, without kiln
    #[arg(long)]
    pub shell: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  kiln completions bash > ~/.local/share/bash-completion/completions/kiln
  kiln completions zsh > ~/.zfunc/_kiln
  kiln completions fish > ~/.config/fish/completions/kiln.fish")]
pub struct CompletionsArgs {
    /// The shell to write it for
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ManArgs {
    /// Write the pages of kiln and of each verb into this folder instead
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SuperviseArgs {
    #[arg(value_name = "CLUSTER")]
    pub name: ClusterName,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ProxyArgs {
    /// The machine
    #[arg(value_name = "MACHINE")]
    pub machine: MachineName,
    #[arg(value_name = "PORT")]
    pub port: NonZeroU16,
}

/// A template variable, by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    pub path: String,
    pub value: serde_json::Value,
}

/// `role=db`, `db.port=5432`.
fn variable(text: &str) -> Result<Variable, String> {
    let is_name = |name: &str| {
        let mut bytes = name.bytes();
        !name.is_empty() && bytes.all(|it| it.is_ascii_alphanumeric() || b"_-".contains(&it))
    };
    match text.split_once('=') {
        Some((path, value)) if path.split('.').all(is_name) => Ok(Variable {
            path: path.to_owned(),
            value: crate::spec::value(value)?,
        }),
        Some(_) | None => Err("write a name and a value, such as `role=db`".to_owned()),
    }
}

/// A group, and how many machines it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupCount {
    pub group: MachineName,
    pub count: u16,
}

/// `node=5`; as many as a spec's `count` may say.
fn group_count(text: &str) -> Result<GroupCount, String> {
    let form = || "write a group and a number, such as `node=5`".to_owned();
    let (group, count) = text.split_once('=').ok_or_else(form)?;
    let count: u16 = count.parse().map_err(|_| form())?;
    if count > COUNT_LIMIT {
        return Err(format!("at most {COUNT_LIMIT} machines"));
    }
    Ok(GroupCount {
        group: group.parse().map_err(|_| form())?,
        count,
    })
}

fn width(text: &str) -> Result<NonZeroU16, String> {
    text.parse()
        .map_err(|_| "write how many machines at a time, such as `--rolling 1`".to_owned())
}

/// `90s`, `5m`, `1h 30m`: up to [`LONGEST`].
fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| "write a number and a unit, such as `30s` or `5m`".to_owned())?;
    if duration > LONGEST {
        return Err("at most 7 days".to_owned());
    }
    Ok(duration)
}
