//! `kiln run` and `kiln exec` in real guests.

use serde_json::json;

use crate::support::guest;
use crate::support::home::{BOOT, Home, Lane, User};

#[test]
fn a_throw_away_guest_runs_a_command_word_for_word() {
    let home = Home::new(Lane::Narrow, User::Ordinary, "thrown", &["only"]);
    home.write_spec(
        &guest::tiny("x86_64").image(""),
        &json!({"only": {"memory": "256MiB"}}),
    );
    let script = r#"printf '%s|' "$@"; hostname; exit 7"#;
    let words = [
        "run", "--", "sh", "-c", script, "sh", "a b", "it's", "$HOME",
    ];
    let ran = home.within(BOOT, &words).exits(7);
    assert_eq!(ran.stdout, "a b|it's|$HOME|only\n");
    home.assert_clean();
}

#[test]
fn the_guest_agent_runs_a_command_and_one_without_an_agent_says_so() {
    let home = Home::new(Lane::Narrow, User::Myself, "agent", &["only"]);
    home.write_spec(
        &guest::tiny("x86_64").image(""),
        &json!({"only": {"memory": "256MiB"}}),
    );
    home.within(BOOT, &["up"]).ok();
    let script = "id -un; echo told >&2; exit 7";
    let ran = home
        .kiln(&["exec", "only", "--", "sh", "-c", script])
        .exits(7);
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("root\n", "told\n")
    );
    home.kiln(&["exec", "only", "--", "sh", "-c", "kill -9 $$"])
        .exits(137);
    home.kiln(&["exec", "only", "--", "no-such-program"])
        .exits(1)
        .says("refused `guest-exec`");
    home.kiln(&["exec", "--timeout", "1s", "only", "--", "sleep", "60"])
        .exits(5)
        .says("it goes on in the guest");
    home.ssh("only", "sudo killall qemu-ga");
    home.kiln(&["exec", "only", "--", "true"])
        .exits(5)
        .says("no guest agent answers")
        .says("`kiln ssh only -- …`");
    home.kiln(&["exec", "other", "--", "true"]).exits(7);
    home.down();
}
