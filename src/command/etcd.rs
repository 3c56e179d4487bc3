//! Members come into the cluster's etcd before their machines start, and leave it before those stop.
//!
//! ```text
//! leave: check ─▶ member remove, one by one ─▶ (machines stop)
//! join:  (others work) ─▶ member add ─▶ its machine starts ─▶ it works ─▶ the next
//! ```
//! etcd is asked by its HTTP API on any member that stays, over the supervisor, as ssh is. Nothing
//! is taken out or stopped while one that stays does not work, and never so many that those that are
//! left would be no majority. An `up` that is broken off leaves nothing that the next one does not
//! find: who is listed and who is not says what is still to be done.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::cli::args::Goal;
use crate::client::{Client, ClientError, Watch};
use crate::command::wait::{default_timeout, until};
use crate::command::{Made, Session};
use crate::error::{Error, Exit, in_one_line};
use crate::etcd::api::{self, ApiError, Member};
use crate::etcd::{self, CLIENT_PORT};
use crate::image::fetch::http;
use crate::image::source::mirror::Mirrors;
use crate::plan::{Action, Plan, Step};
use crate::state;
use crate::state::layout::ClusterFiles;
use crate::state::record::MachineRecord;
use crate::supervisor::protocol::Request;

/// Between two questions: etcd does not tell by itself when it has come so far.
const PAUSE: Duration = Duration::from_millis(500);
/// What etcd gets to agree to a change: it wants to have seen all members for five seconds.
const AGREEMENT: Duration = Duration::from_secs(60);

/// One cluster's etcd.
pub(super) struct Etcd<'a> {
    session: &'a Session<'a>,
    client: &'a Client,
    made: &'a Made,
}

/// Why a member does not work, as far as can be told.
type Trouble = String;

/// Has a discovery server give a token for so many members, and gives the token's address.
pub(super) fn discover(session: &Session<'_>, url: &str, size: usize) -> Result<String, Error> {
    let ask = format!("{url}?size={size}");
    let client = http::Client::new(
        Mirrors::default(),
        session.host.proxy.as_ref(),
        &session.host.authorities(),
        Some(Instant::now() + AGREEMENT),
    );
    let failed = |why: &str| {
        Error::new(Exit::Failed, format!("`{ask}` gave no discovery token"))
            .cause(why)
            .hint("without `discovery` the members find each other by the addresses that kiln reserves")
    };
    let answer = client
        .small(&ask)
        .map_err(|error| failed(&in_one_line(&error)))?
        .ok_or_else(|| failed("there is no such address"))?;
    let token = String::from_utf8_lossy(&answer).trim().to_owned();
    // It goes into a unit and into a shell's words.
    match crate::spec::is_discovery_token(&token) {
        true => Ok(token),
        false => Err(failed("the answer is not the address of a token")),
    }
}

/// Takes those out of etcd that are removed or lose their data, and refuses to stop too many. The
/// machines all run still.
pub(super) fn leave(
    session: &Session<'_>,
    files: &ClusterFiles,
    plan: &Plan,
    running: &[String],
) -> Result<(), Error> {
    let made = Made {
        files: files.clone(),
        record: plan.cluster.clone(),
    };
    let is_member = |name: &str| {
        let record = state::files::load(&files.machine(name).record());
        let record: Option<MachineRecord> = record.ok().flatten();
        record.is_some_and(|record| record.etcd.is_some())
    };
    let with = |wanted: &dyn Fn(&Step) -> bool| -> BTreeSet<String> {
        plan.steps
            .iter()
            .filter(|step| wanted(step) && is_member(&step.name))
            .map(|step| step.name.clone())
            .collect()
    };
    let leaving = with(&|step| match step.action {
        Action::Remove | Action::Recreate => true,
        // What was in its memory alone is lost.
        Action::Restart => plan.joiners.contains(&step.name),
        Action::Keep | Action::Change | Action::Start | Action::Create => false,
    });
    let stopping = with(&|step| {
        step.action == Action::Restart
            && !leaving.contains(&step.name)
            && running.contains(&step.name)
    });
    if leaving.is_empty() && stopping.is_empty() {
        return Ok(());
    }
    let goes = |name: &String| leaving.contains(name) || stopping.contains(name);
    let others: Vec<String> = files_of(files)
        .into_iter()
        .filter(|name| !goes(name) && is_member(name))
        .collect();
    if others.is_empty() {
        return alone(&leaving, &stopping);
    }
    let client = Client::reach(files)?;
    let etcd = Etcd {
        session,
        client: &client,
        made: &made,
    };
    etcd.take_out(&leaving, &stopping, &others)
}

/// Nobody stays: fine for a cluster of one or two, which has no majority to keep.
fn alone(leaving: &BTreeSet<String>, stopping: &BTreeSet<String>) -> Result<(), Error> {
    let all = leaving.len() + stopping.len();
    // Restarts lose nothing; a cluster of one that is made anew has nobody to keep its data.
    if all == 1 || (leaving.is_empty() && all == 2) {
        return Ok(());
    }
    Err(refusal(&format!(
        "all {all} members of etcd would go at once"
    )))
}

fn refusal(why: &str) -> Error {
    Error::new(Exit::Unsafe, why)
        .hint("`--rolling 1` takes one after the other; `kiln down` takes all of it away")
}

fn files_of(files: &ClusterFiles) -> Vec<String> {
    state::files::names_in(&files.machines())
}

/// Lets those in that the plan says, one after the other, and starts them.
pub(super) fn join(
    session: &Session<'_>,
    client: &Client,
    made: &Made,
    joiners: &[String],
    timeout: Option<Duration>,
) -> Result<(), Error> {
    let timeout = timeout.unwrap_or_else(|| default_timeout(session, made, &made.record.machines));
    let etcd = Etcd {
        session,
        client,
        made,
    };
    for name in joiners {
        etcd.let_in(name, timeout)?;
    }
    Ok(())
}

/// Waits until each of these that is a member of etcd works.
pub(super) fn until_healthy(
    session: &Session<'_>,
    client: &Client,
    made: &Made,
    names: &[String],
    deadline: Instant,
) -> Result<(), Error> {
    let is_member = |name: &&String| made.machine(name).is_ok_and(|record| record.etcd.is_some());
    let members: Vec<String> = names.iter().filter(is_member).cloned().collect();
    if members.is_empty() {
        return Ok(());
    }
    // A majority that nobody asked for cannot be waited for.
    let status = client.status()?;
    let runs = |name: &&String| {
        let mut machines = status.machines.iter();
        machines.any(|machine| machine.name == **name && machine.pid.is_some())
    };
    let all: Vec<&String> = made.record.machines.iter().filter(is_member).collect();
    let running = all.iter().filter(|name| runs(name)).count();
    if running * 2 <= all.len() {
        let all = all.len();
        session.report.note(&format!(
            "etcd: {running} of {all} members run, which is no majority"
        ));
        return Ok(());
    }
    let etcd = Etcd {
        session,
        client,
        made,
    };
    etcd.wait_for(&members, deadline)
}

impl Etcd<'_> {
    fn take_out(
        &self,
        leaving: &BTreeSet<String>,
        stopping: &BTreeSet<String>,
        others: &[String],
    ) -> Result<(), Error> {
        let members = self.list(others).map_err(|troubles| {
            let mut error = Error::new(
                Exit::Unsafe,
                "no member of etcd that stays answers, so none is taken out; nothing was changed",
            )
            .hint("`kiln start` starts them; `kiln down` takes all of it away");
            error.causes = troubles;
            error
        })?;
        let name_of = |member: &Member| {
            let url = member.peer_urls.first()?;
            etcd::name_at(url, &self.made.record).map(str::to_owned)
        };
        let out: Vec<(&Member, String)> = members
            .iter()
            .filter_map(|member| Some((member, name_of(member)?)))
            .filter(|(_, name)| leaving.contains(name))
            .collect();
        let left = members.len() - out.len();
        let mut working = 0;
        for member in &members {
            let name = name_of(member).unwrap_or_else(|| member.id.clone());
            if leaving.contains(&name) || stopping.contains(&name) {
                continue;
            }
            // One that was let in and never started is no loss, and is no help.
            if !member.has_started() {
                continue;
            }
            match self.works(&name) {
                Ok(()) => working += 1,
                Err(trouble) => {
                    return Err(Error::new(
                        Exit::Unsafe,
                        format!("member `{name}` of etcd does not work; nothing was changed"),
                    )
                    .cause(trouble)
                    .hint(format!(
                        "`kiln logs {name}` shows its console; `kiln reprovision {name}` makes it anew"
                    )));
                }
            }
        }
        // Two have no majority without each other, so there is none to keep.
        if left > 2 && working < left / 2 + 1 {
            return Err(refusal(&format!(
                "only {working} of {left} members of etcd would go on working, which is no majority"
            )));
        }
        for (member, name) in out.iter().rev() {
            self.session.report.note(&format!("etcd: {name} leaves"));
            self.agreed(others, &format!("take {name} out"), |stream| {
                api::remove(stream, &member.id)
            })?;
        }
        Ok(())
    }

    /// Lets one in and starts its machine.
    fn let_in(&self, name: &str, timeout: Duration) -> Result<(), Error> {
        let record = self.made.machine(name)?;
        let Some(chosen) = &record.etcd else {
            return Ok(());
        };
        let others: Vec<String> = chosen
            .members
            .iter()
            .filter(|other| *other != name)
            .cloned()
            .collect();
        self.session
            .report
            .note(&format!("etcd: {name} joins as soon as the others work"));
        // One whose machine is not to run now is no obstacle; etcd itself insists on a majority.
        let deadline = Instant::now() + timeout;
        self.wait_for(&others, deadline)
            .map_err(|error| error.cause(format!("{name} is not let in before")))?;
        let url = etcd::peer_url(record.ip);
        let listed = |members: &[Member]| {
            members
                .iter()
                .find(|member| member.peer_urls.contains(&url))
                .cloned()
        };
        let list = || {
            self.list(&others).map_err(|troubles| {
                let mut error = Error::new(Exit::Timeout, "no member of etcd answers");
                error.causes = troubles;
                error
            })
        };
        let mut found = listed(&list()?);
        // Its data is gone, and it must not come back as who it was.
        let files = self.made.files.machine(name);
        let forgot = record.disk.is_none() || !files.run().exists();
        if let Some(old) = found.take_if(|old| forgot && old.has_started()) {
            self.agreed(&others, &format!("take {name} out"), |stream| {
                api::remove(stream, &old.id)
            })?;
        }
        if found.is_none() {
            self.agreed(&others, &format!("let {name} in"), |stream| {
                api::add(stream, &url)
            })?;
        }
        let members = list()?;
        if members.len() != chosen.members.len() {
            let known = chosen.members.join(", ");
            return Err(Error::new(
                Exit::Failed,
                format!(
                    "etcd has {} members, and kiln knows of {}: {known}",
                    members.len(),
                    chosen.members.len()
                ),
            )
            .hint("`etcdctl member list` in a machine shows them, `etcdctl member remove` takes a foreign one out"));
        }
        if let Err(error) = self.start(name) {
            let Some(member) = listed(&members) else {
                return Err(error);
            };
            // Nobody counts on one that does not come.
            let taken_out = self.agreed(&others, &format!("take {name} out again"), |stream| {
                api::remove(stream, &member.id)
            });
            return Err(match taken_out {
                Ok(()) => error,
                Err(second) => error.cause(format!("and it is a member still: {second}")),
            });
        }
        self.wait_for(&[name.to_owned()], Instant::now() + timeout)?;
        let mut record = record;
        if let Some(chosen) = &mut record.etcd {
            chosen.joined = true;
        }
        state::files::save(&files.record(), &record)
            .map_err(|error| Error::from_source(Exit::Failed, &error))
    }

    fn start(&self, name: &str) -> Result<(), Error> {
        let names = [name.to_owned()];
        let since = Instant::now();
        self.client.ask(&Request::Start {
            machines: names.to_vec(),
        })?;
        let timeout = default_timeout(self.session, self.made, &names);
        until(
            self.session,
            self.client,
            self.made,
            &names,
            Goal::Ready,
            since,
            timeout,
        )
        .map(drop)
    }

    /// Waits until all of these work.
    fn wait_for(&self, names: &[String], deadline: Instant) -> Result<(), Error> {
        let mut watch = self.client.watch()?;
        for name in names {
            while let Err(trouble) = self.works(name) {
                if Instant::now() >= deadline {
                    return Err(Error::new(
                        Exit::Timeout,
                        format!("member `{name}` of etcd did not work in time"),
                    )
                    .cause(trouble)
                    .hint(format!(
                        "`kiln logs {name}` shows its console; in it, `journalctl -u kiln-etcd` or `-u etcd-member`"
                    )));
                }
                rest(&mut watch, deadline)?;
            }
        }
        Ok(())
    }

    /// Whether the member on this machine works.
    fn works(&self, name: &str) -> Result<(), Trouble> {
        let stream = self.stream(name)?;
        match api::is_healthy(stream) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{name}: etcd says that it is not healthy")),
            Err(error) => Err(format!("{name}: {}", in_one_line(&error))),
        }
    }

    fn stream(&self, name: &str) -> Result<UnixStream, Trouble> {
        self.client
            .stream(name, CLIENT_PORT)
            .map_err(|error: ClientError| format!("{name}: {}", in_one_line(&error)))
    }

    /// The members, as the first of these machines says that answers.
    fn list(&self, others: &[String]) -> Result<Vec<Member>, Vec<Trouble>> {
        let mut troubles = Vec::new();
        for name in others {
            let listed = self.stream(name).and_then(|stream| {
                api::list(stream).map_err(|error| format!("{name}: {}", in_one_line(&error)))
            });
            match listed {
                Ok(members) => return Ok(members),
                Err(trouble) => troubles.push(trouble),
            }
        }
        Err(troubles)
    }

    /// Has etcd do `what`, by any of these machines, as soon as it agrees.
    fn agreed(
        &self,
        others: &[String],
        what: &str,
        act: impl Fn(UnixStream) -> Result<(), ApiError>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + AGREEMENT;
        let mut watch = self.client.watch()?;
        loop {
            let mut troubles = Vec::new();
            for name in others {
                let done = self
                    .stream(name)
                    .and_then(|stream| act(stream).map_err(|error| in_one_line(&error)));
                match done {
                    Ok(()) => return Ok(()),
                    // An answer that got lost: it was done before.
                    Err(trouble) if is_done(&trouble) => return Ok(()),
                    Err(trouble) => troubles.push(format!("{name}: {trouble}")),
                }
            }
            if Instant::now() >= deadline {
                let mut error = Error::new(Exit::Timeout, format!("etcd did not agree to {what}"))
                    .hint("run the same command again when etcd is well; what was done stays done");
                error.causes = troubles;
                return Err(error);
            }
            rest(&mut watch, deadline)?;
        }
    }
}

/// Whether a refusal says that there is nothing to do any more.
fn is_done(trouble: &str) -> bool {
    trouble.contains("member not found") || trouble.contains("Peer URLs already exists")
}

/// A pause, in which what the supervisor tells is heard.
fn rest(watch: &mut Watch, deadline: Instant) -> Result<(), Error> {
    let until = deadline.min(Instant::now() + PAUSE);
    while Instant::now() < until {
        watch.next(until)?;
    }
    Ok(())
}
