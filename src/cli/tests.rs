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
    refused(
        "kiln",
        &expect![[r#"
        no verb was given
        hint: `kiln help` lists the verbs"#]],
    );
    refused(
        "kiln --json",
        &expect![[r#"
            no verb was given
            hint: `kiln help` lists the verbs"#]],
    );
    refused(
        "kiln upp",
        &expect![[r#"
        unrecognized subcommand 'upp'
        hint: a similar subcommand exists: 'up'"#]],
    );
    refused(
        "kiln up --dry",
        &expect![[r#"
        unexpected argument '--dry' found
        hint: a similar argument exists: '--dry-run'"#]],
    );
    refused(
        "kiln up --wait redy",
        &expect![[r#"
        invalid value 'redy' for '--wait <STAGE>' [possible values: none, running, address, ready]
        hint: a similar value exists: 'ready'"#]],
    );
    refused(
        "kiln up --timeout 5",
        &expect![[r#"
        invalid value '5' for '--timeout <DURATION>': write a number and a unit, such as `30s` or `5m`
        hint: `kiln help VERB` says what a verb takes"#]],
    );
    refused(
        "kiln up --timeout 9999years",
        &expect![[r#"
        invalid value '9999years' for '--timeout <DURATION>': at most 7 days
        hint: `kiln help VERB` says what a verb takes"#]],
    );
    refused(
        "kiln up Web_1",
        &expect![[r#"
        invalid value 'Web_1' for '[MACHINE]...': `Web_1` is not a DNS label: use a-z, 0-9 and `-`, beginning and ending with a letter or digit
        hint: `kiln help VERB` says what a verb takes"#]],
    );
    refused(
        "kiln ssh",
        &expect![[r#"
            the following required arguments were not provided: <MACHINE>
            hint: usage: kiln ssh <MACHINE> [COMMAND]..."#]],
    );
    refused(
        "kiln down web",
        &expect![[r#"
            unexpected argument 'web' found
            hint: usage: kiln down [OPTIONS]"#]],
    );
    refused(
        "kiln -q -v ps",
        &expect![[r#"
            the argument '--quiet' cannot be used with '--verbose...'
            hint: usage: kiln --quiet <COMMAND>"#]],
    );
    refused(
        "kiln proxy web 0",
        &expect![[r#"
        invalid value '0' for '<PORT>': number would be zero for non-zero type
        hint: `kiln help VERB` says what a verb takes"#]],
    );
    refused(
        "kiln logs web --supervisor",
        &expect![[r#"
            the argument '[MACHINE]' cannot be used with '--supervisor'
            hint: usage: kiln logs <MACHINE>"#]],
    );
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
    expect![[r#"
        Boots clusters of Ignition-configured machines straight on QEMU

        Usage: kiln [OPTIONS] <COMMAND>

        Commands:
          init         Write a first spec to start from
          validate     Check the spec and the files that it names
          plan         Show what `up` would do, and why
          up           Make the cluster as the spec says, and boot it
          down         Stop the cluster and remove all that was made for it
          run          Boot a throw-away cluster, run a command in it, and remove it again
          start        Start machines that are stopped
          stop         Stop machines and keep their disks
          restart      Stop machines, then start them
          reprovision  Make machines anew: their root disks are lost, and Ignition runs again
          kill         End machines at once, without asking their guests
          pause        Freeze machines
          resume       Let frozen machines run on
          ps           List the machines of the cluster
          ls           List all clusters of this user
          inspect      Print all that is known of the cluster or a machine
          ip           Print addresses
          net          Print how the machines are joined, and what went through each one's port
          capture      Write a machine's frames as pcapng, for Wireshark
          hosts        Print names and addresses in the form of /etc/hosts
          wait         Wait until machines have come so far
          events       Print what happens to the machines, as it happens
          logs         Print what a machine's console said
          console      Attach to a machine's serial console
          ssh          Log in to a machine, or run a command in it
          exec         Run a command in a machine by its guest agent, without network or ssh
          cp           Copy files from or to a machine, by scp
          ssh-config   Print settings for ssh, so that plain `ssh MACHINE` works
          inventory    Print the machines as an Ansible inventory
          image        Fetch, list, check and remove the images of the cache
          render       Print a machine's final Ignition config, secrets included
          explain      Print a machine's QEMU command line, with a reason for each argument
          autostart    Have the cluster start with the host, by a unit of systemd's
          doctor       Say what this host can do, and what it lacks
          gc           Remove what dead clusters and broken-off commands left behind
          completions  Print a completion script for a shell
          man          Print the manual page
          help         Print this message or the help of the given subcommand(s)

        Options:
          -h, --help     Print help
          -V, --version  Print version

        Global options:
          -f, --file <FILE>        The spec to use, instead of `kiln.yaml` here or in a folder above
          -c, --cluster <CLUSTER>  The cluster to work on, without looking at any spec
              --json               Print one JSON object on stdout, for programs
          -v, --verbose...         Say more of what is done; twice and thrice for more still
          -q, --quiet              Show no progress and no notes
              --no-color           Use no colors

        Examples:
          kiln init                 write a first kiln.yaml
          kiln up                   boot what it describes, and wait until it is ready
          kiln ssh node-1           log in
          kiln down                 stop and remove all of it

        Exit codes:
          0  done
          1  failed
          2  the command line is wrong
          3  the spec, or a file that it names, is wrong
          4  this host lacks something
          5  out of time
          6  a machine failed to boot
          7  no such cluster or machine
          8  someone else is at it
          9  refused for safety
    "#]]
    .assert_eq(&help);
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
        for below in verb.get_subcommands() {
            want.insert(format!("kiln-{}-{}.1", verb.get_name(), below.get_name()));
        }
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
        for verb in ["supervise", "proxy"] {
            assert!(!script.contains(verb), "{shell}: {verb}");
        }
    }
}
