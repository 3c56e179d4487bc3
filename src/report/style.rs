//! How texts may look: colors, and how wide they may be.

use std::ffi::OsStr;
use std::fmt;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub lines: usize,
}

/// What one of the output streams can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    color: bool,
    /// Absent when the stream is no terminal: then nothing is cut.
    size: Option<Size>,
}

/// A meaning that has a color; the color never is all that tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Heading,
    Good,
    Busy,
    Bad,
    Faint,
    Hint,
}

/// Whether the environment lets a terminal be colored: `NO_COLOR` is unset or empty
/// (<https://no-color.org>), and `TERM` [knows escapes](knows_escapes).
pub fn allows_color(no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty) && knows_escapes(term)
}

/// Whether the terminal that `TERM` names can move its cursor.
pub fn knows_escapes(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

impl Style {
    /// `color` says whether a terminal may be colored; what is no terminal never is.
    pub fn new(size: Option<Size>, color: bool) -> Style {
        Style {
            color: color && size.is_some(),
            size,
        }
    }

    /// For a file or a pipe.
    pub const PLAIN: Style = Style {
        color: false,
        size: None,
    };

    pub fn color(self) -> bool {
        self.color
    }

    pub fn size(self) -> Option<Size> {
        self.size
    }

    /// `text` as it is to be written, colored or not.
    pub fn paint(self, paint: Paint, text: &str) -> Painted<'_> {
        let code = match paint {
            _ if !self.color => "",
            Paint::Plain => "",
            Paint::Heading => "\x1b[1m",
            Paint::Good => "\x1b[32m",
            Paint::Busy => "\x1b[33m",
            Paint::Bad => "\x1b[1;31m",
            Paint::Faint => "\x1b[2m",
            Paint::Hint => "\x1b[1;36m",
        };
        Painted { code, text }
    }
}

/// A text and the escape sequence before it.
#[derive(Debug, Clone, Copy)]
pub struct Painted<'a> {
    code: &'static str,
    text: &'a str,
}

impl fmt::Display for Painted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.code.is_empty() || self.text.is_empty() {
            return f.write_str(self.text);
        }
        write!(f, "{}{}\x1b[0m", self.code, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: Option<Size> = Some(Size {
        columns: 80,
        lines: 24,
    });

    #[test]
    fn only_a_terminal_that_may_be_colored_is() {
        let show = |style: Style| style.paint(Paint::Bad, "x").to_string();
        assert_eq!(show(Style::new(TERMINAL, true)), "\x1b[1;31mx\x1b[0m");
        assert_eq!(show(Style::new(TERMINAL, false)), "x");
        assert_eq!(show(Style::new(None, true)), "x");
        assert_eq!(show(Style::PLAIN), "x");
    }

    #[test]
    fn the_environment_may_forbid_colors() {
        let allows = |no_color: Option<&str>, term: Option<&str>| {
            allows_color(no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(allows(None, Some("xterm")));
        assert!(allows(Some(""), Some("xterm")));
        assert!(!allows(Some("1"), Some("xterm")));
        assert!(!allows(None, Some("dumb")));
        assert!(!allows(None, Some("")));
        assert!(!allows(None, None));
    }
}
