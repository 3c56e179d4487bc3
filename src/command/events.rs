//! `kiln events`: what happens to the machines, a line each.

use std::time::{Duration, Instant};

use crate::cli::args::EventsArgs;
use crate::client::{Client, ClientError, News};
use crate::command::Session;
use crate::error::Error;
use crate::report::text::printable;

/// How often it is looked whether anyone still reads, when nothing happens.
const LULL: Duration = Duration::from_secs(60);

pub(super) fn run(session: &Session<'_>, args: &EventsArgs) -> Result<(), Error> {
    let made = session.made()?;
    let names = made.select(&args.machines.machines)?;
    let mut watch = Client::look(&made.files)?.watch()?;
    while !session.report.reader_gone() {
        let news = match watch.next(Instant::now() + LULL) {
            // Nothing will happen any more.
            Err(ClientError::NoCluster { .. }) => {
                let gone = format!("cluster `{}` is gone", made.record.name);
                session.report.note(&gone);
                break;
            }
            news => news?,
        };
        match news {
            News::Nothing => {}
            News::Status(status) => {
                for machine in status.machines {
                    if names.contains(&machine.name) {
                        session.report.item(&machine, |_| {
                            let mut why = vec![machine.reason.as_str()];
                            why.extend(machine.notes.iter().map(String::as_str));
                            why.retain(|text| !text.is_empty());
                            format!(
                                "{:<16} {:<12} {}\n",
                                machine.name,
                                machine.state.word(),
                                printable(&why.join("; "))
                            )
                        })?;
                    }
                }
                if args.no_follow {
                    break;
                }
            }
            News::Notice(notice) => {
                let ours = notice
                    .machine
                    .as_ref()
                    .is_none_or(|machine| names.contains(machine));
                if ours {
                    session.report.item(&notice, |_| {
                        format!(
                            "{} {:<16} {:<12} {}\n",
                            notice.time,
                            notice.machine.as_deref().unwrap_or("-"),
                            notice.event,
                            printable(&notice.detail)
                        )
                    })?;
                }
            }
        }
    }
    Ok(())
}
