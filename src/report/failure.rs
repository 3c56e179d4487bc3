//! Errors as people read them.

use crate::error::Error;
use crate::report::style::{Paint, Style};
use crate::report::text::printable;

/// The error, its causes outermost first, and the hint, as lines.
pub fn failure(style: Style, error: &Error) -> String {
    let mut text = format!(
        "{} {}\n",
        style.paint(Paint::Bad, "error:"),
        lines(&error.message, "")
    );
    for cause in &error.causes {
        let label = style.paint(Paint::Faint, "caused by:");
        text.push_str(&format!("  {label} {}\n", lines(cause, "    ")));
    }
    if let Some(hint) = &error.hint {
        let label = style.paint(Paint::Hint, "hint:");
        text.push_str(&format!("\n{label} {}\n", lines(hint, "")));
    }
    text
}

/// One line for people who watch: `note: …`.
pub fn note(style: Style, text: &str) -> String {
    let label = style.paint(Paint::Hint, "note:");
    format!("{label} {}\n", lines(text, ""))
}

/// A text's line breaks are kept (spec errors carry a snippet, QEMU's a few lines);
/// `indent` stands before all lines but the first.
fn lines(text: &str, indent: &str) -> String {
    let mut whole = String::with_capacity(text.len());
    for (number, line) in text.trim_end().lines().enumerate() {
        if number > 0 {
            whole.push('\n');
            whole.push_str(indent);
        }
        whole.push_str(&printable(line));
    }
    whole
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::error::Exit;
    use crate::report::style::Size;

    fn error() -> Error {
        Error::new(Exit::Boot, "cannot start machine `node-2`")
            .cause("QEMU exited with status 1 before it answered on QMP")
            .cause("qemu-system-x86_64: first line\nsecond \x1b[2Jline\n")
            .hint("run `kiln down`, then `kiln up`")
    }

    #[test]
    fn the_whole_chain_is_told_and_the_hint_apart() {
        expect![[r#"
            error: cannot start machine `node-2`
              caused by: QEMU exited with status 1 before it answered on QMP
              caused by: qemu-system-x86_64: first line
                second \x1b[2Jline

            hint: run `kiln down`, then `kiln up`
        "#]]
        .assert_eq(&failure(Style::PLAIN, &error()));
    }

    #[test]
    fn a_lone_error_is_one_line() {
        let error = Error::new(Exit::Failed, "no");
        assert_eq!(failure(Style::PLAIN, &error), "error: no\n");
    }

    #[test]
    fn labels_are_colored_on_a_terminal() {
        let size = Size {
            columns: 80,
            lines: 24,
        };
        let text = failure(Style::new(Some(size), true), &error());
        expect![[r#"
            ESC[1;31merror:ESC[0m cannot start machine `node-2`
              ESC[2mcaused by:ESC[0m QEMU exited with status 1 before it answered on QMP
              ESC[2mcaused by:ESC[0m qemu-system-x86_64: first line
                second \x1b[2Jline

            ESC[1;36mhint:ESC[0m run `kiln down`, then `kiln up`
        "#]]
        .assert_eq(&text.replace('\x1b', "ESC"));
    }

    #[test]
    fn a_note_is_one_line() {
        assert_eq!(note(Style::PLAIN, "so it is"), "note: so it is\n");
    }
}
