//! `kiln explain`: the QEMU command line, each argument with its reason.

use std::path::Path;

use serde::Serialize;

use crate::cli::args::{ExplainArgs, VarArgs};
use crate::command::{Session, spec};
use crate::error::{Error, Exit};
use crate::folder;
use crate::state::layout::ClusterFiles;
use crate::state::record::{ClusterRecord, MachineRecord, ShareByRecord};
use crate::supervisor::launch;

#[derive(Serialize)]
struct Explained {
    argv: Vec<String>,
    reasons: Vec<Reason>,
}

#[derive(Serialize)]
struct Reason {
    option: &'static str,
    value: Option<String>,
    reason: String,
}

pub(super) fn run(session: &mut Session<'_>, args: &ExplainArgs) -> Result<(), Error> {
    let name = args.machine.as_str();
    let (files, cluster, record) = known(session, name)?;
    if args.shell {
        return shell(session, &files, &cluster, &record);
    }
    let own = files.machine(name);
    let (machine, _) = launch::supervised(&cluster, &record, &own)
        .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    let command =
        kiln_arch::render(&machine).map_err(|error| Error::from_source(Exit::Failed, &error))?;
    let mut argv = vec![record.qemu.display().to_string()];
    argv.extend(command.argv().map(|arg| arg.to_string_lossy().into_owned()));
    let reasons: Vec<Reason> = command
        .args()
        .iter()
        .map(|arg| Reason {
            option: arg.option,
            value: arg
                .value
                .as_ref()
                .map(|value| value.to_string_lossy().into_owned()),
            reason: arg.reason.to_string(),
        })
        .collect();
    let explained = Explained { argv, reasons };
    session.report.result(&explained, |_| {
        let mut text = format!("{}\n", record.qemu.display());
        for reason in &explained.reasons {
            let value = reason.value.as_deref().unwrap_or_default();
            text.push_str(&format!(
                "  {} {value}\n      {}\n",
                reason.option, reason.reason
            ));
        }
        text
    })
}

/// The machine as it was made, or as the spec would make it.
fn known(
    session: &mut Session<'_>,
    name: &str,
) -> Result<(ClusterFiles, ClusterRecord, MachineRecord), Error> {
    if session.global.cluster.is_some() {
        let made = session.made()?;
        let record = made.machine(name)?;
        return Ok((made.files, made.record, record));
    }
    let (cluster, plan, _) = spec::planned(session, &[], &VarArgs::default())?;
    let files = session.roots.cluster(cluster.name.as_str());
    let record = plan
        .steps
        .into_iter()
        .find(|step| step.name == name)
        .and_then(|step| step.record)
        .ok_or_else(|| {
            Error::new(
                Exit::Unknown,
                format!("there is no machine `{name}` in the spec"),
            )
        })?;
    Ok((files, plan.cluster, record))
}

/// A command that runs by itself: what it needs of kiln lies in one private folder.
fn shell(
    session: &Session<'_>,
    files: &ClusterFiles,
    cluster: &ClusterRecord,
    record: &MachineRecord,
) -> Result<(), Error> {
    let own = files.machine(&record.name);
    let config = own.ignition();
    if !config.exists() {
        return Err(Error::new(
            Exit::Unknown,
            format!("machine `{}` was not made yet", record.name),
        )
        .hint("`kiln up` makes it; `kiln explain` without `--shell` needs nothing made"));
    }
    if record.tpm.is_some() {
        session
            .report
            .note("the command is without the TPM, which kiln starts beside QEMU");
    }
    if record
        .shares
        .iter()
        .any(|share| share.by != ShareByRecord::NineP)
    {
        session
            .report
            .note("the command is without the shares by virtiofs, which another program serves beside QEMU");
    }
    // A copy of its own: the command outlives `kiln down` no more than the user wants it to.
    let copy = own.folder.join("shell.ign");
    copy_private(&config, &copy)?;
    let machine = launch::alone(cluster, record, &own, &copy)
        .map_err(|error| Error::from_source(Exit::Failed, &error))?;
    let mut command =
        kiln_arch::render(&machine).map_err(|error| Error::from_source(Exit::Failed, &error))?;
    command.program = record.qemu.clone().into();
    let text = command.shell();
    let value = serde_json::json!({ "shell": text.to_string_lossy() });
    session
        .report
        .result(&value, |_| format!("{}\n", text.to_string_lossy()))
}

fn copy_private(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::read(from)
        .and_then(|bytes| folder::write_whole(to, &bytes))
        .map_err(|error| {
            Error::because(
                Exit::Failed,
                format!("cannot copy `{}` to `{}`", from.display(), to.display()),
                &error,
            )
        })
}
