//! A table of aligned columns.

use std::iter;

use crate::report::style::{Paint, Style};
use crate::report::text::{fit, printable, width};

const GAP: usize = 2;
/// The last column is not cut below this many columns: rather lines that wrap.
const LAST_AT_LEAST: usize = 12;

/// One field of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    /// `text` is made printable; empty is shown as `-`.
    pub fn new(text: impl AsRef<str>) -> Cell {
        Cell::painted(Paint::Plain, text)
    }

    pub fn painted(paint: Paint, text: impl AsRef<str>) -> Cell {
        let text = match text.as_ref() {
            "" => "-".to_owned(),
            text => printable(text).into_owned(),
        };
        Cell { text, paint }
    }
}

/// The lines of a table, each with its line break. On a terminal the last column is
/// cut to the width, so that each row stays on one line.
pub fn table<const N: usize>(style: Style, headers: [&str; N], rows: &[[Cell; N]]) -> String {
    let headers = headers.map(|header| Cell::painted(Paint::Heading, header));
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().chain([&headers]);
        let widths = cells.map(|row| width(&row[column].text));
        widths.max().unwrap_or(0)
    });
    let before_last: usize = widths.iter().rev().skip(1).map(|width| width + GAP).sum();
    let last_limit = style.size().map(|size| {
        let room = size.columns.saturating_sub(before_last);
        room.max(LAST_AT_LEAST)
    });

    let mut lines = String::new();
    for row in [&headers].into_iter().chain(rows) {
        for (column, Cell { text, paint }) in row.iter().enumerate() {
            let last = column + 1 == N;
            let shown = match last_limit {
                Some(limit) if last => fit(text, limit),
                _ => text.into(),
            };
            lines.push_str(&style.paint(*paint, &shown).to_string());
            let gap = if last {
                0
            } else {
                widths[column] - width(text) + GAP
            };
            lines.extend(iter::repeat_n(' ', gap));
        }
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::report::style::Size;

    fn rows() -> [[Cell; 3]; 2] {
        [
            [Cell::new("a"), Cell::new(""), Cell::new("x".repeat(30))],
            [Cell::new("機機"), Cell::new(""), Cell::new("\x1b[2J")],
        ]
    }

    #[test]
    fn columns_are_aligned_by_what_a_terminal_shows() {
        let text = table(Style::PLAIN, ["NAME", "PID", "REASON"], &rows());
        expect![[r#"
            NAME  PID  REASON
            a     -    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
            機機  -    \x1b[2J
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn a_terminal_cuts_the_last_column() {
        let size = Size {
            columns: 20,
            lines: 24,
        };
        let style = Style::new(Some(size), false);
        let text = table(style, ["NAME", "PID", "REASON"], &rows());
        expect![[r#"
            NAME  PID  REASON
            a     -    xxxxxxxxxxx…
            機機  -    \x1b[2J
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn a_table_without_rows_is_its_headers() {
        let text = table(Style::PLAIN, ["NAME", "STATE"], &[]);
        assert_eq!(text, "NAME  STATE\n");
    }
}
