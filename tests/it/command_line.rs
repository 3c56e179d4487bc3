//! Command lines that are wrong, and what may be asked without a spec.

use std::process::{Command, Output};

fn kiln(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_wrong_command_line_is_told_on_stderr_and_exits_2() {
    let output = kiln(&["down", "web"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(
        text(&output.stderr),
        "error: unexpected argument 'web' found\n\n\
         Usage: kiln down [OPTIONS]\n\n\
         For more information, try '--help'.\n"
    );
}

#[test]
fn a_wrong_command_line_is_told_to_programs_too() {
    for args in [["--json", "down", "web"], ["down", "web", "--json"]] {
        let output = kiln(&args);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(
            text(&output.stdout),
            concat!(
                r#"{"schema":1,"ok":false,"error":{"code":"usage","#,
                r#""message":"unexpected argument 'web' found","causes":[],"#,
                r#""hint":"usage: kiln down [OPTIONS]"}}"#,
                "\n"
            )
        );
    }
}

#[test]
fn no_verb_at_all_shows_the_help_and_exits_2() {
    let output = kiln(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("Usage: kiln"));

    let output = kiln(&["-q"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output.stderr),
        "error: no verb was given\n\nhint: `kiln help` lists the verbs\n"
    );
}

#[test]
fn help_that_was_asked_for_is_data() {
    for args in [&["help"][..], &["--help"], &["help", "up"], &["--version"]] {
        let output = kiln(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert!(text(&output.stdout).contains("kiln"), "{args:?}");
    }
}
