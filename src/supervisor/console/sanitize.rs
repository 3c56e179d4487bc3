//! Text of a guest, made harmless for terminals.

const ESCAPE: char = '\u{1b}';
const BELL: char = '\u{7}';

/// The bytes as text without anything that moves, colors or commands a
/// terminal: escape sequences go as a whole, control and direction characters
/// one by one. Tabs, line feeds and all other characters stay; what is not UTF-8
/// becomes U+FFFD.
pub fn sanitize(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            ESCAPE => skip_sequence(&mut rest),
            // The same as ESC [ in one character.
            '\u{9b}' => skip_parameters(&mut rest),
            '\n' | '\t' => clean.push(character),
            _ if is_harmless(character) => clean.push(character),
            _ => {}
        }
    }
    clean
}

fn is_harmless(character: char) -> bool {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !character.is_control() && !turns
}

/// How many of the bytes, from the first on, end with no escape sequence half in them: the rest is
/// to be kept until more has come. A sequence of more than 64 bytes is none that is waited for.
pub fn complete(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(64);
    let last = bytes[from..].iter().rposition(|byte| *byte == 0x1b);
    let Some(escape) = last.map(|at| from + at) else {
        return bytes.len();
    };
    let parameters = match &bytes[escape + 1..] {
        [] => return escape,
        [b'[', parameters @ ..] => parameters,
        [_, ..] => return bytes.len(),
    };
    let ended = parameters
        .iter()
        .any(|byte| matches!(byte, b'@'..=b'~' | b'\n'));
    if ended { bytes.len() } else { escape }
}

/// What follows ESC, as far as it belongs to it. A sequence that is cut off
/// takes nothing with it that could be text of the next line.
fn skip_sequence(rest: &mut std::str::Chars<'_>) {
    skip_controls(rest);
    match peek(rest) {
        Some('[') => {
            rest.next();
            skip_parameters(rest);
        }
        // A string for the terminal, until BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(next) = peek(rest) {
                if next == '\n' || next == ESCAPE {
                    break;
                }
                rest.next();
                if next == BELL {
                    return;
                }
            }
            let mut ahead = rest.clone();
            if ahead.next() == Some(ESCAPE) && ahead.next() == Some('\\') {
                *rest = ahead;
            }
        }
        Some(_) => {
            while peek(rest).is_some_and(|next| matches!(next, ' '..='/')) {
                rest.next();
                skip_controls(rest);
            }
            if peek(rest).is_some_and(|next| matches!(next, '0'..='~')) {
                rest.next();
            }
        }
        None => {}
    }
}

fn skip_parameters(rest: &mut std::str::Chars<'_>) {
    skip_controls(rest);
    while peek(rest).is_some_and(|next| matches!(next, ' '..='?')) {
        rest.next();
        skip_controls(rest);
    }
    if peek(rest).is_some_and(|next| matches!(next, '@'..='~')) {
        rest.next();
    }
}

/// Control characters in the middle of a sequence: terminals obey them and go on with it. A line
/// feed ends it for us; another ESC, CAN and SUB do so for terminals too.
fn skip_controls(rest: &mut std::str::Chars<'_>) {
    let goes_on = |next: char| {
        next.is_ascii_control() && !matches!(next, '\n' | ESCAPE | '\u{18}' | '\u{1a}')
    };
    while peek(rest).is_some_and(goes_on) {
        rest.next();
    }
}

fn peek(rest: &std::str::Chars<'_>) -> Option<char> {
    rest.clone().next()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], want: &str) {
        assert_eq!(sanitize(bytes), want);
    }

    #[test]
    fn text_stays_and_commands_go() {
        check("Grüße\t1\r\n2\n".as_bytes(), "Grüße\t1\n2\n");
        check(
            b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1)",
            "SeaBIOS (version 1)",
        );
        check(b"[\x1b[0;1;31mFAILED\x1b[0m] x", "[FAILED] x");
        check(b"\x1b]0;owned\x07title \x1b]2;x\x1b\\gone", "title gone");
        check(b"\x1b]0;never ends\nnext", "\nnext");
        check(b"\x1b(B\x1b[10;20Hx\x1b", "x");
        check("a\u{9b}31mb\u{85}\u{7f}\u{8}\u{202e}c".as_bytes(), "abc");
        check(b"\xff\xfe", "\u{fffd}\u{fffd}");
    }

    #[test]
    fn no_tail_of_a_sequence_stays() {
        for asked in [
            &b"\x1b[6n"[..],
            b"\x1b\0[6n",
            b"\x1b\r[6n",
            b"\x1b[\x086n",
            b"\x1b[6\0n",
            b"\x1b7\x1b[999;999H\x1b[6n\x1b8",
            b"\x1b(\x07B\x1b[6n",
        ] {
            check(&[b"# ", asked, b"ls"].concat(), "# ls");
        }
        check(b"\x1b[6\nnext", "\nnext");
        check(b"\x1b[6\x18next", "next");
    }

    #[test]
    fn a_text_is_parted_between_sequences() {
        let text = b"# \x1b[6n\x1b7\x1b[12;3Hls";
        for at in 0..=text.len() {
            let whole = complete(&text[..at]);
            let parts = sanitize(&text[..whole]) + &sanitize(&text[whole..]);
            assert_eq!(parts, "# ls", "{at}");
        }
        assert_eq!(complete(&[&b"\x1b["[..], &[b'0'; 99]].concat()), 101);
    }

    proptest! {
        #[test]
        fn nothing_that_commands_a_terminal_comes_through(bytes: Vec<u8>) {
            let text = sanitize(&bytes);
            prop_assert!(text.chars().all(|it| it == '\n' || it == '\t' || is_harmless(it)));
        }

        #[test]
        fn once_is_enough(text in "[\\x1b\\x07\\n\\[\\]0-9;A-Za-z\\\\]{0,60}") {
            let once = sanitize(text.as_bytes());
            prop_assert_eq!(sanitize(once.as_bytes()), once);
        }
    }
}
