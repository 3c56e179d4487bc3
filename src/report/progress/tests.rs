use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn size(columns: usize, lines: usize) -> Size {
    Size { columns, lines }
}

/// What a screen shows after `bytes`, for the few sequences that progress writes.
/// Anything else fails, and so does a line that wraps.
fn screen(bytes: &[u8], size: Size) -> String {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut lines = vec![String::new()];
    let (mut line, mut top) = (0, 0);
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let after = &rest[character.len_utf8()..];
        if let Some(sequence) = after.strip_prefix('[').filter(|_| character == '\x1b') {
            let end = sequence.find(|c: char| c.is_ascii_alphabetic()).unwrap();
            match (&sequence[..end], &sequence[end..=end]) {
                (up, "A") => {
                    let up: usize = up.parse().unwrap();
                    assert!(line - up >= top, "the cursor left the screen");
                    line -= up;
                }
                ("", "K") => {}
                ("", "J") => lines.truncate(line + 1),
                (_, "m") => {}
                other => panic!("{other:?}"),
            }
            rest = &sequence[end + 1..];
            continue;
        }
        match character {
            '\r' => lines[line].clear(),
            '\n' => {
                line += 1;
                if lines.len() == line {
                    lines.push(String::new());
                } else {
                    lines[line].clear();
                }
                top = top.max((line + 1).saturating_sub(size.lines));
            }
            character => {
                lines[line].push(character);
                assert!(width(&lines[line]) < size.columns, "{:?}", lines[line]);
            }
        }
        rest = after;
    }
    lines.join("\n")
}

fn three(mode: Mode, now: Instant) -> Progress<Vec<u8>> {
    Progress::new(
        Vec::new(),
        mode,
        Style::PLAIN,
        now,
        ["node-1", "node-2", "db"],
    )
}

#[track_caller]
fn shown(progress: &Progress<Vec<u8>>, want: &Expect) {
    match progress.mode {
        Mode::Live(size) => want.assert_eq(&screen(&progress.sink, size)),
        Mode::Plain | Mode::Quiet => want.assert_eq(std::str::from_utf8(&progress.sink).unwrap()),
    }
}

#[test]
fn elsewhere_each_change_is_a_line() {
    let now = Instant::now();
    let mut progress = three(Mode::Plain, now);
    progress.update(now, "node-1", "start", Step::Going);
    progress.update(now + SECOND, "node-1", "start", Step::Going);
    progress.tick(now + 2 * SECOND);
    progress.note(now, "node-1 is emulated");
    progress.update(now + 3 * SECOND, "node-1", "ready", Step::Done);
    progress.update(now + 70 * SECOND, "db", "failed: \x1b[2Jno", Step::Failed);
    progress.clear();
    shown(
        &progress,
        &expect![[r#"
        node-1: start (0.0 s)
        note: node-1 is emulated
        node-1: ready (3.0 s)
        db: failed: \x1b[2Jno (1m10s)
    "#]],
    );
}

#[test]
fn quiet_is_quiet() {
    let now = Instant::now();
    let mut progress = three(Mode::Quiet, now);
    progress.update(now, "node-1", "failed", Step::Failed);
    progress.note(now, "so it is");
    progress.tick(now);
    shown(&progress, &expect![[r#""#]]);
}

#[test]
fn a_terminal_has_a_line_for_each_machine_and_notes_above() {
    let now = Instant::now();
    let mut progress = three(Mode::Live(size(60, 24)), now);
    progress.update(now, "node-1", "start", Step::Going);
    progress.update(now + SECOND, "node-2", "Ignition: files", Step::Going);
    progress.note(now + SECOND, "node-1 is emulated");
    progress.update(now + 2 * SECOND, "node-1", "ready", Step::Done);
    progress.tick(now + 65 * SECOND);
    shown(
        &progress,
        &expect![[r#"
            note: node-1 is emulated
            node-1    2.0 s  ready
            node-2    1m05s  Ignition: files
            db        1m05s  waiting
        "#]],
    );
    progress.clear();
    shown(
        &progress,
        &expect![[r#"
        note: node-1 is emulated
    "#]],
    );
}

#[test]
fn the_bytes_for_a_terminal_are_few() {
    let now = Instant::now();
    let mut progress = Progress::new(
        Vec::new(),
        Mode::Live(size(60, 24)),
        Style::PLAIN,
        now,
        ["a", "b"],
    );
    progress.update(now, "a", "start", Step::Going);
    progress.update(now + SECOND, "a", "ready", Step::Done);
    let text = String::from_utf8(progress.sink.clone()).unwrap();
    expect![[r#"
        a    0.0 s  startESC[K
        b    0.0 s  waitingESC[K
        ESC[JESC[2ACRa    1.0 s  readyESC[K
        b    1.0 s  waitingESC[K
        ESC[J"#]]
    .assert_eq(&text.replace('\x1b', "ESC").replace('\r', "CR"));
}

#[test]
fn more_machines_than_lines_are_folded_what_matters_first() {
    let now = Instant::now();
    let names: Vec<String> = (1..=9).map(|number| format!("node-{number}")).collect();
    let mut progress = Progress::new(
        Vec::new(),
        Mode::Live(size(60, 6)),
        Style::PLAIN,
        now,
        names.iter().map(String::as_str),
    );
    for name in &names {
        progress.update(now + SECOND, name, "ready", Step::Done);
    }
    progress.update(now + SECOND, "node-7", "failed: no", Step::Failed);
    progress.update(now + SECOND, "node-3", "kernel", Step::Going);
    shown(
        &progress,
        &expect![[r#"
        node-1    1.0 s  ready
        node-2    1.0 s  ready
        node-3    1.0 s  kernel
        node-7    1.0 s  failed: no
        and 5 more: 5 ready
    "#]],
    );
}

#[test]
fn long_texts_are_cut_at_the_edge() {
    let now = Instant::now();
    let mut progress = three(Mode::Live(size(30, 24)), now);
    progress.update(now, "node-1", &"機".repeat(40), Step::Going);
    shown(
        &progress,
        &expect![[r#"
            node-1    0.0 s  機機機機機…
            node-2    0.0 s  waiting
            db        0.0 s  waiting
        "#]],
    );
}

proptest! {
    /// `screen` fails where a line wraps or the cursor leaves the screen.
    #[test]
    fn any_terminal_shows_any_progress(
        columns in 1usize..40,
        lines in 2usize..8,
        updates in prop::collection::vec((0u8..12, "\\PC{0,30}", 0u8..3), 0..30),
    ) {
        let now = Instant::now();
        let mode = Mode::Live(size(columns, lines));
        let mut progress = three(mode, now);
        for (machine, text, step) in updates {
            let step = [Step::Going, Step::Done, Step::Failed][usize::from(step)];
            progress.update(now + SECOND, &format!("node-{machine}"), &text, step);
            progress.tick(now + 2 * SECOND);
        }
        screen(&progress.sink, size(columns, lines));
        progress.clear();
        prop_assert_eq!(screen(&progress.sink, size(columns, lines)), "");
    }
}
