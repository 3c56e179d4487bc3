//! The command line: what was *said*, as clap types, and nothing else.
//!
//! Nothing here reads the environment, looks at a file, or fills in a default
//! that depends on the host. A value that parsed is well-formed (names are DNS
//! labels, durations have units and a limit); whether it makes sense is for the
//! commands to say.

pub mod args;
pub mod documents;
pub mod refusal;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::cli::args::{
    AutostartArgs, CaptureArgs, CompletionsArgs, ConsoleArgs, CopyArgs, DownArgs, EventsArgs,
    ExecArgs, ExplainArgs, ImageArgs, InitArgs, InspectArgs, InventoryArgs, IpArgs, LogsArgs,
    MachinesArgs, ManArgs, PlanArgs, ProxyArgs, RenderArgs, ReprovisionArgs, RestartArgs, RunArgs,
    SshArgs, StartArgs, StopArgs, SuperviseArgs, UpArgs, WaitArgs,
};
use crate::cluster::ClusterName;

const EXAMPLES: &str = "\
Examples:
  kiln init                 write a first kiln.yaml
  kiln up                   boot what it describes, and wait until it is ready
  kiln ssh node-1           log in
  kiln down                 stop and remove all of it

Exit codes:
  0  done
  1  failed
  2  the command line is wrong
  3  the spec, or a file that it names, is wrong
  4  this host lacks something
  5  out of time
  6  a machine failed to boot
  7  no such cluster or machine
  8  someone else is at it
  9  refused for safety";

/// Boots clusters of Ignition-configured machines straight on QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "kiln",
    version,
    after_help = EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What may be said to every verb, before or after it.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The spec to use, instead of `kiln.yaml` here or in a folder above
    #[arg(short, long, value_name = "FILE", global = true)]
    pub file: Option<PathBuf>,
    /// The cluster to work on, without looking at any spec
    #[arg(short, long, value_name = "CLUSTER", global = true)]
    pub cluster: Option<ClusterName>,
    /// Print one JSON object on stdout, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more of what is done; twice and thrice for more still
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Show no progress and no notes
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Use no colors
    #[arg(long, global = true)]
    pub no_color: bool,
    /// The name that the spec's cluster has here; `kiln run` says this to itself
    #[arg(long, global = true, hide = true)]
    pub alias: Option<ClusterName>,
}

/// The verbs, in the order in which a user meets them.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Verb {
    /// Write a first spec to start from
    Init(InitArgs),
    /// Check the spec and the files that it names
    Validate,
    /// Show what `up` would do, and why
    Plan(PlanArgs),
    /// Make the cluster as the spec says, and boot it
    Up(UpArgs),
    /// Stop the cluster and remove all that was made for it
    Down(DownArgs),
    /// Boot a throw-away cluster, run a command in it, and remove it again
    Run(RunArgs),
    /// Start machines that are stopped
    Start(StartArgs),
    /// Stop machines and keep their disks
    Stop(StopArgs),
    /// Stop machines, then start them
    Restart(RestartArgs),
    /// Make machines anew: their root disks are lost, and Ignition runs again
    Reprovision(ReprovisionArgs),
    /// End machines at once, without asking their guests
    Kill(MachinesArgs),
    /// Freeze machines
    Pause(MachinesArgs),
    /// Let frozen machines run on
    Resume(MachinesArgs),
    /// List the machines of the cluster
    Ps,
    /// List all clusters of this user
    Ls,
    /// Print all that is known of the cluster or a machine
    Inspect(InspectArgs),
    /// Print addresses
    Ip(IpArgs),
    /// Print how the machines are joined, and what went through each one's port
    Net,
    /// Write a machine's frames as pcapng, for Wireshark
    Capture(CaptureArgs),
    /// Print names and addresses in the form of /etc/hosts
    Hosts(MachinesArgs),
    /// Wait until machines have come so far
    Wait(WaitArgs),
    /// Print what happens to the machines, as it happens
    Events(EventsArgs),
    /// Print what a machine's console said
    // The global `-f FILE` is left to `--file` here, since `-f` follows a log
    // everywhere. An argument of the same id keeps clap from adding the global one.
    #[command(arg = clap::Arg::new("file")
        .long("file")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help_heading("Global options")
        .help("The spec to use, instead of `kiln.yaml` here or in a folder above"))]
    Logs(LogsArgs),
    /// Attach to a machine's serial console
    Console(ConsoleArgs),
    /// Log in to a machine, or run a command in it
    Ssh(SshArgs),
    /// Run a command in a machine by its guest agent, without network or ssh
    Exec(ExecArgs),
    /// Copy files from or to a machine, by scp
    Cp(CopyArgs),
    /// Print settings for ssh, so that plain `ssh MACHINE` works
    SshConfig(MachinesArgs),
    /// Print the machines as an Ansible inventory
    Inventory(InventoryArgs),
    /// Fetch, list, check and remove the images of the cache
    Image(ImageArgs),
    /// Print a machine's final Ignition config, secrets included
    Render(RenderArgs),
    /// Print a machine's QEMU command line, with a reason for each argument
    Explain(ExplainArgs),
    /// Have the cluster start with the host, by a unit of systemd's
    Autostart(AutostartArgs),
    /// Say what this host can do, and what it lacks
    Doctor,
    /// Remove what dead clusters and broken-off commands left behind
    Gc,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man(ManArgs),
    /// Be the supervisor of a cluster; kiln starts this itself
    #[command(hide = true)]
    Supervise(SuperviseArgs),
    /// Join stdin and stdout to a machine's port; ssh runs this as its ProxyCommand
    #[command(hide = true)]
    Proxy(ProxyArgs),
}

impl Cli {
    /// How much of the log is for stderr. A supervisor's is its log file.
    pub fn verbosity(&self) -> LevelFilter {
        let supervises = matches!(self.verb, Verb::Supervise(_));
        match (self.global.quiet, self.global.verbose) {
            (_, 0) if supervises => LevelFilter::INFO,
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, 2) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        }
    }
}

/// Parses a whole command line, the program's name first.
///
/// # Errors
/// Clap's: a request for help or the version is one too. [`refusal`] tells them apart.
pub fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    let color = if said(args, "--no-color") {
        ColorChoice::Never
    } else {
        ColorChoice::Auto
    };
    let mut command = Cli::command().color(color);
    let matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Whether `flag` stands on a command line that may not parse, before any `--`.
pub fn said(args: &[OsString], flag: &str) -> bool {
    args.iter()
        .skip(1)
        .take_while(|arg| *arg != "--")
        .any(|arg| arg == flag)
}

#[cfg(test)]
mod tests;
