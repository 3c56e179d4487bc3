//! One file for each verb, a straight line each. This one finds what they all need.

mod autostart;
mod broken_off;
mod capture;
mod console;
mod doctor;
mod down;
mod etcd;
mod events;
mod exec;
mod explain;
mod failure;
mod gc;
mod hosts;
mod image;
mod init;
mod login;
mod logs;
mod net;
mod power;
mod pulling;
mod render;
mod rolling;
mod run;
mod show;
mod spec;
mod ssh;
mod supervise;
mod tools;
mod up;
mod wait;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::cli::documents;
use crate::cli::{Cli, Global, Verb};
use crate::error::{Error, Exit};
use crate::host::Host;
use crate::report::output::Report;
use crate::state::files;
use crate::state::layout::{ClusterFiles, LONGEST_SOCKET, Roots};
use crate::state::record::{ClusterRecord, MachineRecord};

/// What every verb works with.
#[derive(Debug)]
struct Session<'a> {
    global: &'a Global,
    report: &'a Report,
    host: Host,
    roots: Roots,
    /// When the command began: what the user gives it counts from here.
    begun: Instant,
}

/// A cluster that was made before.
#[derive(Debug)]
struct Made {
    files: ClusterFiles,
    record: ClusterRecord,
}

/// Does what was said, and gives the exit code: that of what it ran, where it ran something.
///
/// # Errors
/// Whatever the verb fails with.
pub fn run(cli: &Cli, report: &Report) -> Result<ExitCode, Error> {
    let session = || Session::open(&cli.global, report);
    let done = match &cli.verb {
        Verb::Run(args) => return run::run(&cli.global, report, args),
        Verb::Exec(args) => return exec::run(&session()?, args),
        Verb::Validate => spec::validate(&mut session()?),
        Verb::Plan(args) => spec::plan(&mut session()?, args),
        Verb::Up(args) => up::run(&mut session()?, args),
        Verb::Down(args) => down::run(&session()?, args),
        Verb::Start(args) => power::start(&session()?, args),
        Verb::Stop(args) => power::stop(&session()?, args),
        Verb::Restart(args) => power::restart(&session()?, args),
        Verb::Reprovision(args) => up::reprovision(&mut session()?, args),
        Verb::Kill(args) => power::kill(&session()?, args),
        Verb::Pause(args) => power::pause(&session()?, args),
        Verb::Resume(args) => power::resume(&session()?, args),
        Verb::Ps => show::ps(&session()?),
        Verb::Ls => show::ls(&session()?),
        Verb::Inspect(args) => show::inspect(&session()?, args),
        Verb::Ip(args) => show::ip(&session()?, args),
        Verb::Net => net::run(&session()?),
        Verb::Capture(args) => capture::run(&session()?, args),
        Verb::Hosts(args) => hosts::run(&session()?, args),
        Verb::Wait(args) => wait::run(&session()?, args),
        Verb::Events(args) => events::run(&session()?, args),
        Verb::Logs(args) => logs::run(&session()?, args),
        Verb::Console(args) => console::run(&session()?, args),
        Verb::Ssh(args) => ssh::run(&session()?, args),
        Verb::Cp(args) => ssh::copy(&session()?, args),
        Verb::SshConfig(args) => tools::ssh_config(&session()?, args),
        Verb::Inventory(args) => tools::inventory(&session()?, args),
        Verb::Proxy(args) => ssh::proxy(&session()?, args),
        Verb::Image(args) => image::run(&session()?, &args.verb),
        Verb::Render(args) => render::run(&mut session()?, args),
        Verb::Explain(args) => explain::run(&mut session()?, args),
        Verb::Autostart(args) => autostart::run(&session()?, args),
        Verb::Doctor => doctor::run(&mut session()?),
        Verb::Gc => gc::run(&session()?),
        Verb::Supervise(args) => supervise::run(&session()?, args),
        Verb::Completions(args) => report.write(&documents::completions(args.shell)),
        Verb::Man(args) => init::man(report, args),
        Verb::Init(args) => init::run(report, args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

impl<'a> Session<'a> {
    fn open(global: &'a Global, report: &'a Report) -> Result<Session<'a>, Error> {
        let begun = Instant::now();
        // All that kiln makes is for its user alone, whatever the umask was.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        let host = Host::probe().map_err(|error| Error::from_source(Exit::Host, &error))?;
        let roots = Roots {
            state: host.folders.state.clone(),
            cache: host.folders.cache.clone(),
            runtime: host.folders.sockets(host.uid, LONGEST_SOCKET),
        };
        Ok(Session {
            global,
            report,
            host,
            roots,
            begun,
        })
    }

    /// The name that `-c` gives, or that the spec has.
    fn cluster_name(&self) -> Result<String, Error> {
        match &self.global.cluster {
            Some(name) => Ok(name.to_string()),
            None => spec::cluster_name(self),
        }
    }

    /// The cluster that the user means; it has to have been made.
    fn made(&self) -> Result<Made, Error> {
        let name = self.cluster_name()?;
        let files = self.roots.cluster(&name);
        match self.record(&files)? {
            Some(record) => {
                self.refuse_foreign(&record)?;
                Ok(Made { files, record })
            }
            None => Err(
                Error::new(Exit::Unknown, format!("there is no cluster `{name}`"))
                    .hint("`kiln ls` lists the clusters; `kiln up` makes the one of your spec"),
            ),
        }
    }

    fn record(&self, files: &ClusterFiles) -> Result<Option<ClusterRecord>, Error> {
        files::load(&files.record()).map_err(|error| {
            let hint = if error.is_newer() {
                "use the kiln that made the cluster, or a later one".to_owned()
            } else {
                format!("`kiln -c {} down` removes the cluster", files.name())
            };
            Error::from_source(Exit::Failed, &error).hint(hint)
        })
    }

    /// A spec may work only on the cluster that was made from it.
    fn refuse_foreign(&self, record: &ClusterRecord) -> Result<(), Error> {
        self.refuse_foreign_spec(&record.name, &record.spec)
    }

    /// As [`Session::refuse_foreign`], for what the cluster `name` of the spec `made_from` left.
    fn refuse_foreign_spec(&self, name: &str, made_from: &Path) -> Result<(), Error> {
        if self.global.cluster.is_some() {
            return Ok(());
        }
        let spec = spec::find(self)?;
        let spec = std::fs::canonicalize(&spec).unwrap_or(spec);
        if spec == made_from {
            return Ok(());
        }
        Err(Error::new(
            Exit::Unsafe,
            format!(
                "cluster `{name}` was made from `{}`, not from `{}`",
                made_from.display(),
                spec.display()
            ),
        )
        .hint(format!(
            "give this cluster another name, or say `-c {name}` if you mean that one"
        )))
    }
}

impl Made {
    fn machine(&self, name: &str) -> Result<MachineRecord, Error> {
        self.known(name)?;
        files::load(&self.files.machine(name).record())
            .map_err(|error| Error::from_source(Exit::Failed, &error))?
            .ok_or_else(|| {
                Error::new(Exit::Failed, format!("machine `{name}` has no record"))
                    .hint("`kiln down` removes the cluster")
            })
    }

    fn known(&self, name: &str) -> Result<(), Error> {
        if self.record.machines.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(Error::new(
            Exit::Unknown,
            format!(
                "there is no machine `{name}` in cluster `{}`",
                self.record.name
            ),
        )
        .hint(format!("it has: {}", self.record.machines.join(", "))))
    }

    /// The named machines, or all.
    fn select(&self, names: &[crate::cluster::MachineName]) -> Result<Vec<String>, Error> {
        if names.is_empty() {
            return Ok(self.record.machines.clone());
        }
        for name in names {
            self.known(name.as_str())?;
        }
        Ok(names.iter().map(ToString::to_string).collect())
    }
}
