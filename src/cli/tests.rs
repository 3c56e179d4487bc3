use std::collections::BTreeSet;
use std::time::Duration;

use clap::CommandFactory;
use expect_test::{Expect, expect};

use super::*;
use crate::cli::args::{Goal, Reach};
use crate::cli::refusal::Refusal;

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

#[track_caller]
fn parsed(line: &str) -> Cli {
    match parse(&words(line)) {
        Ok(cli) => cli,
        Err(error) => panic!("{line}: {error}"),
    }
}

#[track_caller]
fn refused(line: &str, want: &Expect) {
    match parse(&words(line)).map_err(Refusal::from) {
        Err(Refusal::Wrong(_, error)) => {
            let hint = error.hint.unwrap_or_default();
            want.assert_eq(&format!("{}\nhint: {hint}", error.message));
        }
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_may_stand_on_either_side_of_the_verb() {
    let want = parsed("kiln -f a.yaml -c demo --json -vv up").global;
    assert_eq!(want.file, Some(PathBuf::from("a.yaml")));
    assert_eq!(want.verbose, 2);
    assert_eq!(parsed("kiln up -f a.yaml -c demo --json -vv").global, want);
    assert_eq!(parsed("kiln -f a.yaml up -c demo --json -vv").global, want);
}

#[test]
fn f_follows_a_log_and_names_a_file_before_it() {
    let Cli { global, verb } = parsed("kiln -f a.yaml logs -f web");
    let Verb::Logs(logs) = verb else { panic!() };
    assert_eq!(global.file, Some(PathBuf::from("a.yaml")));
    assert!(logs.follow);

    let Cli { global, verb } = parsed("kiln logs --file a.yaml web");
    let Verb::Logs(logs) = verb else { panic!() };
    assert_eq!(global.file, Some(PathBuf::from("a.yaml")));
    assert!(!logs.follow);
}

#[test]
fn a_remote_command_keeps_its_own_options() {
    for line in [
        "kiln ssh web -l root ls -l -v --json",
        "kiln ssh -l root web -- ls -l -v --json",
    ] {
        let Cli { global, verb } = parsed(line);
        let Verb::Ssh(ssh) = verb else { panic!() };
        assert_eq!(ssh.login, "root", "{line}");
        assert_eq!(ssh.command, words("ls -l -v --json"), "{line}");
        assert!(!global.json, "{line}");
    }
    let Verb::Ssh(ssh) = parsed("kiln ssh web").verb else {
        panic!()
    };
    assert_eq!(ssh.login, "core");
    assert_eq!(ssh.command, Vec::<OsString>::new());
}

#[test]
fn up_waits_until_ready_unless_told_otherwise() {
    let Verb::Up(up) = parsed("kiln up").verb else {
        panic!()
    };
    assert_eq!(up.waiting.wait, Reach::Ready);
    assert_eq!(up.waiting.timeout, None);
    let Verb::Up(up) = parsed("kiln up web --wait none --timeout 1m30s").verb else {
        panic!()
    };
    assert_eq!(up.waiting.wait, Reach::None);
    assert_eq!(up.waiting.timeout, Some(Duration::from_secs(90)));
    assert_eq!(up.machines.machines.len(), 1);
}

#[test]
fn a_stop_may_be_given_no_time_at_all() {
    let Verb::Stop(stop) = parsed("kiln stop --timeout 0s").verb else {
        panic!()
    };
    assert_eq!(stop.timeout, Some(Duration::ZERO));
}

#[test]
fn wait_takes_a_goal() {
    let Verb::Wait(wait) = parsed("kiln wait web --for stopped").verb else {
        panic!()
    };
    assert_eq!(wait.goal, Goal::Stopped);
}

#[test]
fn wrong_command_lines_are_told_in_one_line() {
    refused("kiln", &expect![[r#""#]]);
    refused("kiln --json", &expect![[r#""#]]);
    refused("kiln upp", &expect![[r#""#]]);
    refused("kiln up --dry", &expect![[r#""#]]);
    refused("kiln up --wait redy", &expect![[r#""#]]);
    refused("kiln up --timeout 5", &expect![[r#""#]]);
    refused("kiln up --timeout 9999years", &expect![[r#""#]]);
    refused("kiln up Web_1", &expect![[r#""#]]);
    refused("kiln ssh", &expect![[r#""#]]);
    refused("kiln down web", &expect![[r#""#]]);
    refused("kiln -q -v ps", &expect![[r#""#]]);
    refused("kiln proxy web 0", &expect![[r#""#]]);
    refused("kiln logs web --supervisor", &expect![[r#""#]]);
}

#[test]
fn help_and_the_version_are_no_errors() {
    for line in ["kiln help", "kiln --help", "kiln up -h", "kiln --version"] {
        let told = parse(&words(line)).map_err(Refusal::from);
        assert!(matches!(told, Err(Refusal::Told(_))), "{line}");
    }
}

#[test]
fn a_flag_counts_only_before_the_remote_command() {
    assert!(said(&words("kiln upp --json"), "--json"));
    assert!(!said(&words("kiln ssh web -- jq --json"), "--json"));
}

#[test]
fn the_help_says_it_all() {
    let help = Cli::command().term_width(100).render_help().to_string();
    expect![[r#""#]].assert_eq(&help);
}

#[test]
fn every_verb_that_users_call_has_a_help_line_and_a_page() {
    let pages = documents::pages().unwrap();
    let files: BTreeSet<_> = pages.iter().map(|page| page.file.clone()).collect();
    let mut want = BTreeSet::from(["kiln.1".to_owned()]);
    for verb in Cli::command()
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
    {
        assert!(verb.get_about().is_some(), "{}", verb.get_name());
        want.insert(format!("kiln-{}.1", verb.get_name()));
    }
    assert_eq!(files, want);
    for page in &pages {
        let text = String::from_utf8(page.text.clone()).unwrap();
        assert!(text.contains(".SH NAME"), "{}", page.file);
        assert!(!text.contains("supervise"), "{}", page.file);
    }
}

#[test]
fn completions_know_the_verbs() {
    for shell in [
        clap_complete::Shell::Bash,
        clap_complete::Shell::Zsh,
        clap_complete::Shell::Fish,
    ] {
        let script = String::from_utf8(documents::completions(shell)).unwrap();
        for verb in ["up", "down", "doctor"] {
            assert!(script.contains(verb), "{shell}: {verb}");
        }
    }
}
