//! Texts from elsewhere made fit for a terminal: printable, and of a known width.

use std::borrow::Cow;
use std::time::Duration;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// `text` with all that a terminal would obey, or that would reorder a line, written
/// out as `\x1b` or `\u{202e}`. Line breaks are written out too.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => clean.push_str("\\n"),
            '\r' => clean.push_str("\\r"),
            '\t' => clean.push(' '),
            _ if obeyed(character) && character.is_ascii() => {
                clean.push_str(&format!("\\x{:02x}", u32::from(character)));
            }
            _ if obeyed(character) => clean.extend(character.escape_unicode()),
            _ => clean.push(character),
        }
    }
    Cow::Owned(clean)
}

/// Control characters of ASCII and C1, and the format characters that change the
/// order in which a line is shown (Unicode's bidirectional controls) or break it.
pub(super) fn obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The columns that a printable text takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most `columns` columns, its end replaced by `…` where it is longer.
pub fn fit(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let Some(room) = columns.checked_sub(1) else {
        return Cow::Borrowed("");
    };
    let mut cut = String::with_capacity(text.len());
    let mut used = 0;
    for character in text.chars() {
        used += character.width().unwrap_or(0);
        if used > room {
            break;
        }
        cut.push(character);
    }
    cut.truncate(cut.trim_end().len());
    cut.push('…');
    Cow::Owned(cut)
}

/// `3.1 s`, `1m05s`, `2h00m`.
pub fn elapsed(duration: Duration) -> String {
    let tenths = duration.as_millis() / 100;
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{}.{} s", tenths / 10, tenths % 10),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// `1 machine`, `3 machines`.
pub fn count(number: usize, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(printable("plain, grün, 機"), "plain, grün, 機");
        assert_eq!(printable("\x1b]0;title\x07"), "\\x1b]0;title\\x07");
        assert_eq!(printable("a\u{9b}31m"), "a\\u{9b}31m");
        assert_eq!(printable("a\u{202e}cba"), "a\\u{202e}cba");
        assert_eq!(printable("two\r\nlines\tx"), "two\\r\\nlines x");
    }

    #[test]
    fn a_long_text_is_cut_by_columns_not_by_bytes() {
        assert_eq!(fit("ready", 5), "ready");
        assert_eq!(fit("ready!", 5), "read…");
        assert_eq!(fit("機機機", 5), "機機…");
        assert_eq!(fit("a b c", 3), "a…");
        assert_eq!(fit("abc", 1), "…");
        assert_eq!(fit("abc", 0), "");
    }

    #[test]
    fn times_are_short() {
        let show = |millis| elapsed(Duration::from_millis(millis));
        assert_eq!(show(0), "0.0 s");
        assert_eq!(show(3149), "3.1 s");
        assert_eq!(show(59_999), "59.9 s");
        assert_eq!(show(65_000), "1m05s");
        assert_eq!(show(2 * 3_600_000), "2h00m");
    }

    proptest! {
        #[test]
        fn nothing_of_a_guest_reaches_the_terminal_raw(text in any::<String>()) {
            prop_assert!(!printable(&text).contains(obeyed));
        }

        #[test]
        fn a_cut_text_fits(text in "\\PC{0,40}", columns in 0usize..50) {
            prop_assert!(width(&fit(&text, columns)) <= columns);
        }
    }
}
