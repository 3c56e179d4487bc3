//! Template variables: where they come from, and whose word counts.
//!
//! As Ansible has it, the nearer word wins, whole values and not parts of them: the cluster's
//! `vars`, then its `vars_files` in their order, then the group's `vars`, then its `vars_files`,
//! and above all what `--set` says. That alone reaches into a value, by a path with dots.

use std::collections::BTreeMap;
use std::path::Path;

use super::document::{self, Node, Value};
use super::error::{Fault, Place, Problem};
use super::fields::{self, Fields};
use super::files::{self, Folders};
use crate::cluster::Size;

/// By name, as JSON values.
pub type Vars = BTreeMap<String, serde_json::Value>;

/// As much as a spec.
const FILE_LIMIT: Size = Size::from_mib(1);

/// `vars` and `vars_files` of the cluster or of a group, and where the first of them stands.
pub(super) fn take(
    fields: &mut Fields,
    folders: Folders<'_>,
) -> Result<(Vars, Option<Place>), Fault> {
    let mut place = None;
    let mut vars = Vars::new();
    if let Some(node) = fields.take("vars") {
        place = Some(node.place);
        vars = map(node, "vars")?;
    }
    if let Some(node) = fields.take("vars_files") {
        place = place.or(Some(node.place));
        for node in fields::list(node, "vars_files")? {
            let at = node.place;
            let path = fields::text(node, "vars_files")?;
            let path = folders.resolve(at, "vars_files", &path)?;
            vars.extend(file(at, &path)?);
        }
    }
    Ok((vars, place))
}

fn map(node: Node, key: &'static str) -> Result<Vars, Fault> {
    let entries = fields::map(node, key)?.into_iter();
    Ok(entries.map(|(key, node)| (key.text, node.into())).collect())
}

/// A YAML file with a map in it. What is wrong with it is told with its own lines.
fn file(at: Place, path: &Path) -> Result<Vars, Fault> {
    let text = files::text(path, FILE_LIMIT).map_err(files::fault(at, "vars_files"))?;
    let read = || {
        let root = document::parse(&text)?;
        if root.value == Value::Nothing {
            return Ok(Vars::new());
        }
        map(root, "the file")
    };
    read().map_err(|fault: Fault| {
        let place = fault.place.map_or_else(String::new, |place| {
            format!(":{}:{}", place.line, place.column)
        });
        let reason = format!("`{}{place}`: {}", path.display(), fault.problem);
        Fault::bad_value(at, "vars_files", reason)
    })
}

/// A value of `--set`, which is YAML: `3` is a number, `"3"` and `three` are texts.
///
/// # Errors
/// What is wrong with it, in a line.
pub fn value(text: &str) -> Result<serde_json::Value, String> {
    let node = document::parse(text).map_err(|fault| fault.problem.to_string())?;
    Ok(node.into())
}

/// Puts a value at a path such as `db.host`; maps on the way are made where nothing is.
pub(super) fn set(vars: &mut Vars, path: &str, value: &serde_json::Value) -> Result<(), Fault> {
    let mut names = path.split('.');
    let first = names.next().unwrap_or_default();
    let mut place = vars
        .entry(first.to_owned())
        .or_insert(serde_json::Value::Null);
    let mut so_far = first.to_owned();
    for name in names {
        if place.is_null() {
            *place = serde_json::Value::Object(serde_json::Map::new());
        }
        let serde_json::Value::Object(map) = place else {
            return Err(Fault {
                place: None,
                problem: Problem::NoSuchVar {
                    path: path.to_owned(),
                    at: so_far,
                },
                hint: None,
            });
        };
        place = map.entry(name).or_insert(serde_json::Value::Null);
        so_far = format!("{so_far}.{name}");
    }
    *place = value.clone();
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_yaml_and_finds_its_place() {
        let mut vars = Vars::new();
        for (path, text) in [
            ("count", "3"),
            ("text", "\"3\""),
            ("flag", "true"),
            ("word", "no"),
            ("list", "[a, 2]"),
            ("nothing", ""),
            ("db.host.name", "one"),
            ("db.port", "5432"),
        ] {
            set(&mut vars, path, &value(text).unwrap()).unwrap();
        }
        assert_eq!(
            serde_json::Value::from_iter(vars.clone()),
            json!({
                "count": 3, "text": "3", "flag": true, "word": "no", "list": ["a", 2],
                "nothing": null, "db": {"host": {"name": "one"}, "port": 5432},
            })
        );
        let fault = set(&mut vars, "db.port.number", &json!(1)).unwrap_err();
        assert_eq!(
            fault.problem.to_string(),
            "`--set db.port.number`: `vars.db.port` is no map"
        );
        assert!(value("{a").is_err());
    }
}
