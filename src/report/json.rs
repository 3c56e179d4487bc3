//! What `--json` prints: one object on one line.

use serde::Serialize;

use crate::error::Error;
use crate::report::text::obeyed;

/// Raised when a reader of the former form would stumble.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Success<'a, T> {
    schema: u32,
    ok: bool,
    result: &'a T,
}

#[derive(Serialize)]
struct Failure<'a> {
    schema: u32,
    ok: bool,
    error: Told<'a>,
}

#[derive(Serialize)]
struct Told<'a> {
    code: &'static str,
    message: &'a str,
    causes: &'a [String],
    hint: Option<&'a str>,
}

/// The line of a command that succeeded.
///
/// # Errors
/// JSON has no form for it: a path that is not UTF-8, a map whose keys are no texts.
pub fn json_ok(result: &impl Serialize) -> Result<String, serde_json::Error> {
    json_line(&Success {
        schema: SCHEMA,
        ok: true,
        result,
    })
}

/// The line of a command that failed.
///
/// # Errors
/// None in practice: texts have a form in JSON.
pub fn json_error(error: &Error) -> Result<String, serde_json::Error> {
    json_line(&Failure {
        schema: SCHEMA,
        ok: false,
        error: Told {
            code: error.exit.word(),
            message: &error.message,
            causes: &error.causes,
            hint: error.hint.as_deref(),
        },
    })
}

/// `value` on one line. A terminal obeys nothing in it: JSON lets C1 controls and
/// such stand in strings as they are; here they are escaped.
///
/// # Errors
/// JSON has no form for it.
pub fn json_line(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let text = serde_json::to_string(value)?;
    let mut clean = String::with_capacity(text.len() + 1);
    for character in text.chars() {
        if obeyed(character) {
            // All of them lie in the basic plane.
            clean.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            clean.push(character);
        }
    }
    clean.push('\n');
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Exit;

    #[test]
    fn success_is_an_object_with_a_result() {
        let text = json_ok(&json!({ "cluster": "demo" })).unwrap();
        expect![[r#"
            {"schema":1,"ok":true,"result":{"cluster":"demo"}}
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn failure_is_an_object_with_an_error() {
        let error = Error::new(Exit::Boot, "machine `a` failed").cause("Ignition failed");
        expect![[r#"
            {"schema":1,"ok":false,"error":{"code":"boot","message":"machine `a` failed","causes":["Ignition failed"],"hint":null}}
        "#]].assert_eq(&json_error(&error).unwrap());
        let error = Error::new(Exit::Usage, "what?").hint("say it again");
        expect![[r#"
            {"schema":1,"ok":false,"error":{"code":"usage","message":"what?","causes":[],"hint":"say it again"}}
        "#]].assert_eq(&json_error(&error).unwrap());
    }

    proptest! {
        #[test]
        fn any_text_comes_back_and_a_terminal_obeys_none(text in any::<String>()) {
            let value = json!({ text.clone(): text });
            let printed = json_line(&value).unwrap();
            let body = printed.strip_suffix('\n').unwrap();
            prop_assert!(!body.contains(obeyed));
            prop_assert_eq!(serde_json::from_str::<Value>(body).unwrap(), value);
        }
    }
}
