//! `kiln doctor`: what this host can do, what it lacks, and the command that installs it.

use serde::Serialize;

use crate::command::Session;
use crate::error::{Error, Exit};
use crate::host::doctor::{self, Status};
use crate::report::style::Paint;
use crate::report::table::{Cell, table};

#[derive(Serialize)]
struct Examined {
    checks: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    status: &'static str,
    found: String,
    remedy: Option<String>,
}

pub(super) fn run(session: &mut Session<'_>) -> Result<(), Error> {
    let checks = doctor::examine(&mut session.host);
    let native = session
        .host
        .arch
        .map(|arch| session.host.qemu(arch).is_ok());
    let lines: Vec<Line> = checks
        .into_iter()
        .map(|check| Line {
            name: check.name,
            status: match check.status {
                Status::Ok => "ok",
                Status::Warn => "warn",
                Status::Missing => "missing",
            },
            found: check.found,
            remedy: check.remedy,
        })
        .collect();
    let examined = Examined { checks: lines };
    session.report.result(&examined, |style| {
        let rows: Vec<[Cell; 3]> = examined
            .checks
            .iter()
            .map(|line| {
                let paint = match line.status {
                    "ok" => Paint::Good,
                    "warn" => Paint::Busy,
                    _ => Paint::Bad,
                };
                [
                    Cell::new(&line.name),
                    Cell::painted(paint, line.status),
                    Cell::new(&line.found),
                ]
            })
            .collect();
        let mut text = table(style, ["CHECK", "STATUS", "FOUND"], &rows);
        for line in &examined.checks {
            if let Some(remedy) = &line.remedy {
                text.push_str(&format!("\n{}: {remedy}", line.name));
            }
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    })?;
    match native {
        Some(true) => Ok(()),
        _ => Err(Error::new(
            Exit::Host,
            "there is no QEMU for guests of this host's own architecture",
        )),
    }
}
