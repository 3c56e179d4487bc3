//! The user's template becomes one machine's text.
//!
//! Undefined values are errors, nothing is escaped by itself (`tojson`,
//! `urlencode` and `b64encode` are there to be used), and a template can neither
//! read files nor run for ever.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, context};

use super::error::{IgnitionError, IgnitionProblem};
use super::render::Facts;
use crate::cluster::{IgnitionSource, Machine, Profile, Size};

/// Steps of the template engine: a large real template takes a few ten thousand.
const FUEL: u64 = 1_000_000;
/// The same cap as for a config that is no template.
const OUTPUT_LIMIT: Size = Size::from_mib(8);

/// The text that a template gives for a machine; `others` are what it may include.
pub(super) fn render(
    source: &IgnitionSource,
    others: &BTreeMap<String, String>,
    machine: &Machine,
    facts: &Facts<'_>,
) -> Result<String, IgnitionError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    // Else an optimized build does not name what is undefined.
    environment.set_debug(true);
    environment.add_filter("b64encode", |text: String| STANDARD.encode(text));
    environment.add_filter("urlencode", |text: String| url_encode(&text));
    for (name, text) in others {
        environment
            .add_template(name, text)
            .map_err(|error| explain(source, &error))?;
    }
    let mut output = Output::default();
    environment
        .template_from_str(&source.text)
        .and_then(|template| {
            template
                .render_captured_to(values(machine, facts), &mut output)
                .map(drop)
        })
        .map_err(|error| explain(source, &error))?;
    String::from_utf8(output.bytes).map_err(|_| {
        IgnitionError::in_file(
            &source.path,
            IgnitionProblem::Template {
                reason: "the result is not UTF-8 text".to_owned(),
            },
        )
    })
}

/// What a template can name.
fn values(machine: &Machine, facts: &Facts<'_>) -> Value {
    let mut peers = Vec::new();
    let mut groups: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for peer in facts.peers {
        let told = context! {
            name => peer.name.as_str(),
            ip => known(peer.ip),
            ip6 => peer.ip6.map(|ip| ip.to_string()),
            group => peer.group.as_str(),
            index => peer.index,
        };
        groups
            .entry(peer.group.as_str())
            .or_default()
            .push(told.clone());
        peers.push(told);
    }
    context! {
        cluster => context! {
            name => facts.cluster.as_str(),
            domain => facts.domain,
            subnet => known(facts.subnet),
            gateway => known(facts.gateway),
        },
        machine => context! {
            name => machine.name.as_str(),
            group => machine.group.as_str(),
            index => machine.index,
            ip => known(facts.ip),
            ip6 => facts.ip6.map(|ip| ip.to_string()),
            mac => facts.mac.to_string().to_lowercase(),
            arch => machine.arch.name(),
            cpus => machine.cpus.get(),
            memory_mib => machine.memory.bytes() >> 20,
        },
        index => machine.index,
        peers => peers,
        groups => groups,
        vars => Value::from(Serde(&machine.vars)),
        etcd => match machine.profile {
            Profile::Etcd { .. } => Value::from(Serde(facts.etcd)),
            Profile::Basic | Profile::Own(_) | Profile::None => Value::UNDEFINED,
        },
    }
}

/// One that is not known beforehand is not defined: to name it is an error.
fn known(value: Option<impl ToString>) -> Value {
    value.map_or(Value::UNDEFINED, |value| Value::from(value.to_string()))
}

/// The engine's error in words that hold no value: only names that the template uses.
fn explain(source: &IgnitionSource, error: &Error) -> IgnitionError {
    let kind = error.kind();
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the details of any other kind may quote values"
    )]
    let problem = match kind {
        ErrorKind::OutOfFuel => IgnitionProblem::TooSlow,
        ErrorKind::WriteFailure => IgnitionProblem::TooLarge {
            limit: OUTPUT_LIMIT,
        },
        ErrorKind::UndefinedError => IgnitionProblem::Undefined {
            expression: error.detail().unwrap_or("a value is undefined").to_owned(),
        },
        ErrorKind::SyntaxError
        | ErrorKind::UnknownFilter
        | ErrorKind::UnknownTest
        | ErrorKind::UnknownFunction
        | ErrorKind::UnknownMethod => IgnitionProblem::Template {
            reason: match error.detail() {
                Some(detail) => format!("{kind}: {detail}"),
                None => kind.to_string(),
            },
        },
        _ => IgnitionProblem::Template {
            reason: kind.to_string(),
        },
    };
    IgnitionError::in_file(&source.path, problem)
        .at_line(error.line().and_then(|line| u64::try_from(line).ok()))
}

/// Percent-encodes all but the unreserved characters of RFC 3986, as `data:` URLs need it.
fn url_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Collects a template's output and refuses too much of it.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > OUTPUT_LIMIT.bytes() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
