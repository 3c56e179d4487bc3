//! A table of aligned columns.

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
/// cut to the width, so that each row stays on one line. A column in which no row has
/// anything is left out, but never the first.
pub fn table<const N: usize>(style: Style, headers: [&str; N], rows: &[[Cell; N]]) -> String {
    let shown: Vec<usize> = (0..N)
        .filter(|&column| column == 0 || rows.iter().any(|row| row[column].text != "-"))
        .collect();
    let widths: Vec<usize> = shown
        .iter()
        .map(|&column| {
            let cells = rows.iter().map(|row| width(&row[column].text));
            cells.fold(width(headers[column]), usize::max)
        })
        .collect();
    let before_last: usize = widths.iter().rev().skip(1).map(|width| width + GAP).sum();
    let last_limit = style.size().map(|size| {
        let room = size.columns.saturating_sub(before_last);
        room.max(LAST_AT_LEAST)
    });

    let mut lines = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = (&str, Paint)>| {
        for (place, (text, paint)) in cells.enumerate() {
            if place + 1 == widths.len() {
                let text = last_limit.map_or(text.into(), |limit| fit(text, limit));
                lines.push_str(&style.paint(paint, &text).to_string());
            } else {
                let gap = widths[place] - width(text) + GAP;
                lines.push_str(&style.paint(paint, text).to_string());
                lines.extend(std::iter::repeat_n(' ', gap));
            }
        }
        lines.push('\n');
    };
    line(
        &mut shown
            .iter()
            .map(|&column| (headers[column], Paint::Heading)),
    );
    for row in rows {
        line(
            &mut shown
                .iter()
                .map(|&column| (row[column].text.as_str(), row[column].paint)),
        );
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
    fn columns_are_aligned_and_empty_ones_left_out() {
        let text = table(Style::PLAIN, ["NAME", "PID", "REASON"], &rows());
        expect![[r#""#]].assert_eq(&text);
    }

    #[test]
    fn a_terminal_cuts_the_last_column() {
        let size = Size {
            columns: 20,
            lines: 24,
        };
        let style = Style::new(Some(size), false);
        let text = table(style, ["NAME", "PID", "REASON"], &rows());
        expect![[r#""#]].assert_eq(&text);
    }

    #[test]
    fn a_table_without_rows_is_its_first_header() {
        let text = table(Style::PLAIN, ["NAME", "STATE"], &[]);
        assert_eq!(text, "NAME\n");
    }
}
