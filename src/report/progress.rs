//! How the machines come along while a command waits.
//!
//! On a terminal each machine has one line that is redrawn in place; more machines
//! than the terminal has lines are folded into a summary. Elsewhere each change is a
//! line of its own. The cursor is never hidden and always left below the lines, so
//! a command that is killed in the middle leaves a terminal that works.
//!
//! Nothing here waits or reads a clock: the caller says what happened and when, and
//! calls [`Progress::tick`] once a second so that the times go on.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::report::failure::note;
use crate::report::style::{Paint, Size, Style};
use crate::report::text::{elapsed, fit, printable, width};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    Quiet,
    /// One line for each change.
    Plain,
    /// One line for each machine, redrawn in place.
    Live(Size),
}

/// What a machine's present phase is to the command that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// On its way.
    Going,
    /// As far as it was to come.
    Done,
    /// It will not come there.
    Failed,
}

/// The progress of some machines, written to `sink`. Whether that takes it is not
/// looked at: what cannot be shown is no reason to fail.
#[derive(Debug)]
pub struct Progress<W: Write> {
    sink: W,
    mode: Mode,
    style: Style,
    begun: Instant,
    rows: Vec<Row>,
    /// Lines of ours above the cursor.
    drawn: usize,
}

#[derive(Debug)]
struct Row {
    name: String,
    text: String,
    step: Step,
    /// How long it took, once it is no longer going.
    ended: Option<Duration>,
}

impl<W: Write> Progress<W> {
    /// Times count from `now`; the machines are shown in this order. Nothing is
    /// written yet.
    pub fn new<'a>(
        sink: W,
        mode: Mode,
        style: Style,
        now: Instant,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Progress<W> {
        let rows = names.into_iter().map(Row::new).collect();
        Progress {
            sink,
            mode,
            style,
            begun: now,
            rows,
            drawn: 0,
        }
    }

    /// The machine is at `text`, a phase or the reason why it failed. Saying the same
    /// again shows nothing new. A name that is new gets a line below the others.
    pub fn update(&mut self, now: Instant, name: &str, text: &str, step: Step) {
        let spent = now.saturating_duration_since(self.begun);
        let place = match self.rows.iter().position(|row| row.name == name) {
            Some(place) => place,
            None => {
                self.rows.push(Row::new(name));
                self.rows.len() - 1
            }
        };
        let row = &mut self.rows[place];
        let text = printable(text);
        if row.text == text && row.step == step {
            return;
        }
        row.text = text.into_owned();
        row.step = step;
        row.ended = (step != Step::Going).then_some(spent);
        match self.mode {
            Mode::Quiet => {}
            Mode::Plain => {
                let text = self.style.paint(step.paint(), &row.text);
                let line = format!("{name}: {text} ({})\n", elapsed(spent));
                self.write(&line);
            }
            Mode::Live(size) => self.redraw(size, spent, ""),
        }
    }

    /// Time has passed. Only the live lines show it.
    pub fn tick(&mut self, now: Instant) {
        let spent = now.saturating_duration_since(self.begun);
        if let Mode::Live(size) = self.mode
            && self.rows.iter().any(|row| row.ended.is_none())
        {
            self.redraw(size, spent, "");
        }
    }

    /// A `note:` line, above the live ones.
    pub fn note(&mut self, now: Instant, text: &str) {
        let line = note(self.style, text);
        match self.mode {
            Mode::Quiet => {}
            Mode::Plain => self.write(&line),
            Mode::Live(size) => {
                self.redraw(size, now.saturating_duration_since(self.begun), &line);
            }
        }
    }

    /// Takes the live lines away: what follows says it better. Without this they
    /// stay as they are when this value goes.
    pub fn clear(&mut self) {
        if self.drawn > 0 {
            let erase = format!("\x1b[{}A\r\x1b[J", self.drawn);
            self.write(&erase);
            self.drawn = 0;
        }
    }

    /// Writes `above`, then the lines over where they were, in one go: no flicker.
    fn redraw(&mut self, size: Size, spent: Duration, above: &str) {
        let lines = self.lines(size, spent);
        let mut frame = String::new();
        if self.drawn > 0 {
            frame.push_str(&format!("\x1b[{}A\r", self.drawn));
        }
        for line in above.lines() {
            frame.push_str(line);
            frame.push_str("\x1b[K\n");
        }
        for line in &lines {
            frame.push_str(line);
            frame.push_str("\x1b[K\n");
        }
        // A note may have wrapped, or there are fewer lines than before.
        frame.push_str("\x1b[J");
        self.drawn = lines.len();
        self.write(&frame);
    }

    /// At most one line fewer than the terminal has, the cursor being on the last.
    fn lines(&self, size: Size, spent: Duration) -> Vec<String> {
        let names = self.rows.iter().map(|row| width(&row.name)).max();
        let names = names.unwrap_or(0).min(size.columns / 2);
        let show = |row: &Row| row.line(self.style, names, size.columns, spent);
        let room = size.lines.saturating_sub(1).max(1);
        if self.rows.len() <= room {
            return self.rows.iter().map(show).collect();
        }
        // What went wrong and what still goes on is shown first.
        let mut order: Vec<&Row> = self.rows.iter().collect();
        order.sort_by_key(|row| row.step.urgency());
        let (shown, folded) = order.split_at(room - 1);
        let mut shown = shown.to_vec();
        shown.sort_by_key(|row| self.rows.iter().position(|other| other.name == row.name));
        let mut lines: Vec<String> = shown.into_iter().map(show).collect();
        lines.push(fit(&summary(folded), size.columns.saturating_sub(1)).into_owned());
        lines
    }

    fn write(&mut self, text: &str) {
        let _ = self.sink.write_all(text.as_bytes());
        let _ = self.sink.flush();
    }
}

impl Row {
    fn new(name: &str) -> Row {
        Row {
            name: printable(name).into_owned(),
            text: "waiting".to_owned(),
            step: Step::Going,
            ended: None,
        }
    }

    /// `node-1    3.1 s  kernel`, short of the last column, where terminals wrap.
    fn line(&self, style: Style, names: usize, columns: usize, spent: Duration) -> String {
        let name = fit(&self.name, names);
        let gap = names - width(&name);
        let time = elapsed(self.ended.unwrap_or(spent));
        let before = format!("{name}{:gap$}  {time:>7}  ", "");
        let room = columns.saturating_sub(width(&before) + 1);
        let text = fit(&self.text, room);
        let line = format!("{before}{}", style.paint(self.step.paint(), &text));
        if room == 0 {
            return fit(&before, columns.saturating_sub(1)).into_owned();
        }
        line
    }
}

impl Step {
    fn paint(self) -> Paint {
        match self {
            Step::Going => Paint::Plain,
            Step::Done => Paint::Good,
            Step::Failed => Paint::Bad,
        }
    }

    fn urgency(self) -> u8 {
        match self {
            Step::Failed => 0,
            Step::Going => 1,
            Step::Done => 2,
        }
    }
}

/// `and 12 more: 10 ready, 2 kernel`.
fn summary(rows: &[&Row]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *counts.entry(&row.text).or_default() += 1;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(text, count)| format!("{count} {text}"))
        .collect();
    format!("and {} more: {}", rows.len(), counts.join(", "))
}

#[cfg(test)]
mod tests;
