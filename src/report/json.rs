//! What `--json` prints: one object on one line.

use serde_json::{Value, json};

use crate::error::Error;
use crate::report::text::obeyed;

/// Raised when a reader of the former form would stumble.
const SCHEMA: u32 = 1;

/// The line of a command that succeeded.
pub fn json_ok(result: &Value) -> String {
    line(&json!({ "schema": SCHEMA, "ok": true, "result": result }))
}

/// The line of a command that failed.
pub fn json_error(error: &Error) -> String {
    line(&json!({
        "schema": SCHEMA,
        "ok": false,
        "error": {
            "code": error.exit.word(),
            "message": error.message,
            "causes": error.causes,
            "hint": error.hint,
        },
    }))
}

/// `value` on one line. A terminal obeys nothing in it: JSON lets C1 controls and
/// such stand in strings as they are; here they are escaped.
pub fn line(value: &Value) -> String {
    let text = value.to_string();
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
    clean
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;
    use crate::error::Exit;

    #[test]
    fn success_is_an_object_with_a_result() {
        let text = json_ok(&json!({ "cluster": "demo" }));
        expect![[r#""#]].assert_eq(&text);
    }

    #[test]
    fn failure_is_an_object_with_an_error() {
        let error = Error::new(Exit::Boot, "machine `a` failed").cause("Ignition failed");
        expect![[r#""#]].assert_eq(&json_error(&error));
        let error = Error::new(Exit::Usage, "what?").hint("say it again");
        expect![[r#""#]].assert_eq(&json_error(&error));
    }

    proptest! {
        #[test]
        fn any_text_comes_back_and_a_terminal_obeys_none(text in any::<String>()) {
            let value = json!({ text.clone(): text });
            let printed = line(&value);
            let body = printed.strip_suffix('\n').unwrap();
            prop_assert!(!body.contains(obeyed));
            prop_assert_eq!(serde_json::from_str::<Value>(body).unwrap(), value);
        }
    }
}
