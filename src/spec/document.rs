//! YAML text to a tree whose every node knows where it stands.
//!
//! The one place that knows the YAML crate. It refuses duplicate keys, several
//! documents, and whatever costs more than a spec may: hostile text ends here
//! with an error, within a second and a few MiB. It knows no key of the spec.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error, Location, MessageFormatter, Spanned, UserMessageFormatter};

use super::error::{Fault, Place, Problem};

/// Scalars, lists and maps in one spec, aliases expanded; a real one has a few hundred.
const NODE_LIMIT: usize = 50_000;
/// How deep lists and maps may nest.
const DEPTH_LIMIT: usize = 32;

/// A value and where it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Nothing,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; keys are unique.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) text: String,
}

impl Value {
    /// The value's kind, as an error names it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Nothing => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

impl From<Node> for serde_json::Value {
    fn from(node: Node) -> serde_json::Value {
        match node.value {
            Value::Nothing => serde_json::Value::Null,
            Value::Bool(bool) => bool.into(),
            Value::Number(number) => number.into(),
            Value::Text(text) => text.into(),
            Value::List(nodes) => nodes.into_iter().map(serde_json::Value::from).collect(),
            Value::Map(entries) => entries
                .into_iter()
                .map(|(key, node)| (key.text, serde_json::Value::from(node)))
                .collect(),
        }
    }
}

/// Reads one YAML 1.2 document.
pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4 * NODE_LIMIT,
            max_nodes: NODE_LIMIT,
            max_depth: DEPTH_LIMIT,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
            // One too many, so that the error can say that it is one too many.
            max_documents: 2,
            flow_nesting_limit: DEPTH_LIMIT,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: NODE_LIMIT,
            max_replay_stack_depth: 8,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Merge,
        emit_comments: false,
        // YAML 1.2: `restart: no` is text.
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| fault(&error))
}

fn fault(error: &Error) -> Fault {
    let place = error.location().and_then(place);
    let too_complex = Problem::TooComplex {
        nodes: NODE_LIMIT,
        depth: DEPTH_LIMIT,
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser's own words serve for whatever has no better ones here"
    )]
    let problem = match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => Problem::DuplicateKey {
            key: key.chars().take(80).collect(),
        },
        Error::MultipleDocuments { .. } => Problem::Syntax {
            message: "a spec is one YAML document; a second one begins here".to_owned(),
        },
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => too_complex,
        // The scanner's own limit on nesting, and an error inside an alias, have only words.
        Error::ExternalMessage { msg, .. } if msg == "recursion limit exceeded" => too_complex,
        Error::AliasError { msg, .. } if msg.contains("limit exceeded") => too_complex,
        Error::AliasError { msg, .. } => Problem::Syntax {
            message: match msg.split_once(" at line ") {
                Some((message, _)) => message.to_owned(),
                None => msg.clone(),
            },
        },
        Error::NonFiniteFloat { .. } => Problem::Syntax {
            message: "this is no number that kiln can keep; put it in quotes if it is text"
                .to_owned(),
        },
        Error::UnknownAnchor { .. } => Problem::Syntax {
            message: "no `&` gave a value this name before".to_owned(),
        },
        Error::RecursiveReferencesRequireWeakTypes { .. } => Problem::Syntax {
            message: "a value cannot contain itself".to_owned(),
        },
        other => Problem::Syntax {
            message: UserMessageFormatter.format_message(other).into_owned(),
        },
    };
    Fault {
        place,
        problem,
        hint: None,
    }
}

fn place(location: Location) -> Option<Place> {
    (location.line() > 0).then(|| Place {
        line: location.line(),
        column: location.column(),
    })
}

/// The YAML crate knows the place of whatever it hands over.
fn known_place<E: serde::de::Error>(location: Location) -> Result<Place, E> {
    place(location).ok_or_else(|| E::custom("a value without a place in the file"))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node {
            place: known_place(spanned.referenced)?,
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Value, E> {
        Ok(Value::Bool(bool))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = access.next_element()? {
            nodes.push(node);
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let key = Key {
                place: known_place(key.referenced)?,
                text: key.value,
            };
            if entries.len() >= NODE_LIMIT {
                return Err(A::Error::custom("too many keys"));
            }
            entries.push((key, access.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}
