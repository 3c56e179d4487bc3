//! Taking a map apart: known keys, right types, and nothing left over.

use super::document::{Key, Node, Value};
use super::error::{Fault, Place, Problem};
use super::suggest;
use crate::cluster::Size;

/// The keys of one kind of map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    pub(super) known: &'static [&'static str],
    /// Keys of the format whose feature is missing, and what a user can do instead.
    pub(super) not_built: &'static [(&'static str, &'static str)],
}

/// A map whose keys are all known.
#[derive(Debug)]
pub(super) struct Fields {
    /// What the map is, for messages: "the spec", "group `node`".
    pub(super) owner: String,
    pub(super) place: Place,
    entries: Vec<(&'static str, Node)>,
}

impl Fields {
    /// Refuses what is no map, and any key that is unknown or not built.
    pub(super) fn new(node: Node, owner: String, keys: Keys) -> Result<Fields, Fault> {
        let place = node.place;
        let mut entries = Vec::new();
        let Value::Map(all) = node.value else {
            return Err(Fault::new(
                place,
                Problem::WrongType {
                    what: owner,
                    want: "a map",
                    found: node.value.kind(),
                },
            ));
        };
        for (key, node) in all {
            if let Some(known) = keys.known.iter().find(|known| **known == key.text) {
                entries.push((*known, node));
            } else if let Some((key_text, instead)) =
                keys.not_built.iter().find(|(name, _)| *name == key.text)
            {
                return Err(Fault::not_built(key.place, format!("`{key_text}`")).hint(*instead));
            } else {
                let hint = match suggest::nearest(&key.text, keys.known) {
                    Some(word) => format!("did you mean `{word}`?"),
                    None => format!("{owner} may have {}", suggest::list(keys.known)),
                };
                return Err(Fault::new(
                    key.place,
                    Problem::UnknownKey {
                        key: key.text.chars().take(80).collect(),
                        owner,
                    },
                )
                .hint(hint));
            }
        }
        Ok(Fields {
            owner,
            place,
            entries,
        })
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Node> {
        let index = self.entries.iter().position(|(name, _)| *name == key)?;
        Some(self.entries.swap_remove(index).1)
    }

    /// Takes a key and reads it, when it is there.
    pub(super) fn take_as<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Node, &str) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        self.take(key).map(|node| read(node, key)).transpose()
    }

    pub(super) fn missing(&self, key: &'static str) -> Fault {
        Fault::new(
            self.place,
            Problem::MissingKey {
                key,
                owner: self.owner.clone(),
            },
        )
    }
}

pub(super) fn wrong_type(node: &Node, key: &str, want: &'static str) -> Fault {
    Fault::new(
        node.place,
        Problem::WrongType {
            what: format!("`{key}`"),
            want,
            found: node.value.kind(),
        },
    )
}

pub(super) fn map(node: Node, key: &str) -> Result<Vec<(Key, Node)>, Fault> {
    let fault = wrong_type(&node, key, "a map");
    if let Value::Map(entries) = node.value {
        return Ok(entries);
    }
    Err(fault)
}

pub(super) fn list(node: Node, key: &str) -> Result<Vec<Node>, Fault> {
    let fault = wrong_type(&node, key, "a list");
    if let Value::List(nodes) = node.value {
        return Ok(nodes);
    }
    Err(fault)
}

pub(super) fn text(node: Node, key: &str) -> Result<String, Fault> {
    let fault = wrong_type(&node, key, "text");
    match node.value {
        Value::Text(text) => Ok(text),
        Value::Number(_) | Value::Bool(_) => Err(fault.hint("put it in quotes")),
        Value::Nothing | Value::List(_) | Value::Map(_) => Err(fault),
    }
}

pub(super) fn boolean(node: &Node, key: &str) -> Result<bool, Fault> {
    if let Value::Bool(bool) = node.value {
        return Ok(bool);
    }
    Err(wrong_type(node, key, "`true` or `false`"))
}

/// A whole number between `least` and `most`, both included.
pub(super) fn integer(node: &Node, key: &str, least: u16, most: u16) -> Result<u16, Fault> {
    let Value::Number(number) = &node.value else {
        return Err(wrong_type(node, key, "a whole number"));
    };
    number
        .as_u64()
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| {
            Fault::bad_value(
                node.place,
                key,
                format!("{number} is not a whole number from {least} to {most}"),
            )
        })
}

/// A size between `least` and `most`, both included.
pub(super) fn size(node: &Node, key: &str, least: Size, most: Size) -> Result<Size, Fault> {
    let fault = wrong_type(node, key, "a size such as `512MiB` or `2GiB`");
    let text = match &node.value {
        Value::Text(text) => text,
        Value::Number(number) => {
            return Err(fault.hint(format!(
                "say the unit: `{number}MiB`, or `{number}GiB` if you meant that"
            )));
        }
        Value::Nothing | Value::Bool(_) | Value::List(_) | Value::Map(_) => return Err(fault),
    };
    let size: Size = text
        .parse()
        .map_err(|error| Fault::bad_value(node.place, key, error))?;
    if size < least || size > most {
        return Err(Fault::bad_value(
            node.place,
            key,
            format!("{size} is not between {least} and {most}"),
        ));
    }
    Ok(size)
}

/// One word of a closed set.
pub(super) fn choice<T: Copy>(
    node: Node,
    key: &str,
    words: &[(&str, T)],
    not_built: &[&str],
) -> Result<T, Fault> {
    let place = node.place;
    let word = match node.value {
        Value::Text(text) => text,
        // `restart: false`, or a number: no word in quotes is meant.
        Value::Bool(bool) => bool.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Nothing | Value::List(_) | Value::Map(_) => {
            return Err(wrong_type(&node, key, "one word"));
        }
    };
    if let Some((_, value)) = words.iter().find(|(known, _)| *known == word) {
        return Ok(*value);
    }
    let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
    if not_built.contains(&word.as_str()) {
        return Err(Fault::not_built(place, format!("`{key}: {word}`"))
            .hint(format!("this kiln knows {}", suggest::list(&known))));
    }
    let shown: String = word.chars().take(80).collect();
    let fault = Fault::bad_value(
        place,
        key,
        format!("`{shown}` is not {}", suggest::list(&known)),
    );
    Err(match suggest::nearest(&word, &known) {
        Some(word) => fault.hint(format!("did you mean `{word}`?")),
        None => fault,
    })
}
