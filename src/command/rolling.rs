//! Rolling: a few machines at a time are taken away from their work, and the next ones only when
//! those are back at it.

use std::num::NonZeroU16;

use crate::cli::args::{Reach, Waiting};
use crate::error::{Error, Exit};
use crate::report::output::Report;

/// Who does not wait does not roll.
pub(super) fn refuse_no_wait(waiting: &Waiting) -> Result<(), Error> {
    if waiting.wait != Reach::None {
        return Ok(());
    }
    Err(Error::new(
        Exit::Usage,
        "`--rolling` waits for machines before it takes the next, and `--wait none` says not to",
    ))
}

/// The machines with those first that do not work now: they are missed the least.
pub(super) fn idle_first(mut names: Vec<String>, works: impl Fn(&str) -> bool) -> Vec<String> {
    names.sort_by_key(|name| works(name));
    names
}

/// Has `act` done to `width` machines at a time, in this order, and stops at the first failure:
/// what is said then tells what was done and what was not.
///
/// `act` gets the machines whose turn it is, and all that had theirs so far, these included. It
/// returns when the latter are well: one that falls over meanwhile stops the others. `rest` says
/// what to do about those that are left.
pub(super) fn roll(
    report: &Report,
    names: &[String],
    width: NonZeroU16,
    mut act: impl FnMut(&[String], &[String]) -> Result<(), Error>,
    rest: impl Fn(&[String]) -> String,
) -> Result<(), Error> {
    let mut done = 0;
    for batch in names.chunks(width.get().into()) {
        let told = batch.join(", ");
        let (from, to) = (done + 1, done + batch.len());
        let which = if from == to {
            format!("{to} of {}", names.len())
        } else {
            format!("{from} to {to} of {}", names.len())
        };
        report.note(&format!("rolling: {told} ({which})"));
        act(batch, &names[..to])
            .map_err(|error| account(error, names, done, batch, rest(&names[done..])))?;
        done += batch.len();
    }
    Ok(())
}

fn account(error: Error, names: &[String], done: usize, batch: &[String], rest: String) -> Error {
    let list = |names: &[String]| match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    };
    let mut told = Error::new(
        error.exit,
        format!(
            "the rolling stopped at {}; done before: {}; left as they were: {}",
            batch.join(", "),
            list(&names[..done]),
            list(&names[done + batch.len()..])
        ),
    )
    .cause(error.message);
    told.causes.extend(error.causes);
    told.hint(match error.hint {
        Some(hint) => format!("{hint}; {rest}"),
        None => rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_names_everyone() {
        let names: Vec<String> = (1..=5).map(|n| format!("node-{n}")).collect();
        let inner = Error::new(Exit::Boot, "machine node-3 did not come up")
            .cause("node-3 is failed: a panic")
            .hint("look");
        let told = account(inner, &names, 2, &names[2..3], "go on".to_owned());
        assert_eq!(told.exit, Exit::Boot);
        assert_eq!(
            told.message,
            "the rolling stopped at node-3; done before: node-1, node-2; left as they were: node-4, node-5"
        );
        assert_eq!(
            told.causes,
            [
                "machine node-3 did not come up",
                "node-3 is failed: a panic",
            ]
        );
        assert_eq!(told.hint.as_deref(), Some("look; go on"));
    }
}
