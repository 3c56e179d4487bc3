//! The only place where option text is joined.
//!
//! QEMU reads most values as `head,key=value,…`, in which a comma that belongs to a value is
//! doubled; nothing else is special. `-blockdev` is given as JSON, because only there can "no
//! backing file" be said (`null`); JSON in turn holds nothing but UTF-8.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A value of QEMU's `head,key=value` kind, in the making.
#[derive(Debug, Clone)]
pub(crate) struct Opt(Vec<u8>);

impl Opt {
    /// Begins with a bare word, such as `socket` in `-chardev socket,…`.
    pub(crate) fn new(head: impl AsRef<OsStr>) -> Opt {
        let mut opt = Opt(Vec::new());
        opt.push_doubled(head.as_ref());
        opt
    }

    /// Begins with a pair, for options that have no head, such as `-name guest=…`.
    pub(crate) fn keyed(key: &str, value: impl AsRef<OsStr>) -> Opt {
        let mut opt = Opt(Vec::new());
        opt.push_pair(key, value.as_ref());
        opt
    }

    /// Appends `,key=value`.
    #[must_use]
    pub(crate) fn key(mut self, key: &str, value: impl AsRef<OsStr>) -> Opt {
        self.0.push(b',');
        self.push_pair(key, value.as_ref());
        self
    }

    pub(crate) fn into_value(self) -> OsString {
        OsString::from_vec(self.0)
    }

    fn push_pair(&mut self, key: &str, value: &OsStr) {
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        self.push_doubled(value);
    }

    fn push_doubled(&mut self, text: &OsStr) {
        for &byte in text.as_bytes() {
            if byte == b',' {
                self.0.push(b',');
            }
            self.0.push(byte);
        }
    }
}

/// A JSON object in the making; keys keep their order.
///
/// Control characters are left bare, which is no JSON: an argument that holds one is refused as a
/// whole, by `QemuCommand::push`.
#[derive(Debug, Clone)]
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn new() -> Object {
        Object(String::from("{"))
    }

    #[must_use]
    pub(crate) fn text(mut self, key: &str, value: &str) -> Object {
        self.begin(key);
        self.push_quoted(value);
        self
    }

    #[must_use]
    pub(crate) fn boolean(mut self, key: &str, value: bool) -> Object {
        self.begin(key);
        self.0.push_str(if value { "true" } else { "false" });
        self
    }

    #[must_use]
    pub(crate) fn number(mut self, key: &str, value: u64) -> Object {
        self.begin(key);
        self.0.push_str(&value.to_string());
        self
    }

    #[must_use]
    pub(crate) fn null(mut self, key: &str) -> Object {
        self.begin(key);
        self.0.push_str("null");
        self
    }

    #[must_use]
    pub(crate) fn object(mut self, key: &str, value: Object) -> Object {
        self.begin(key);
        self.0.push_str(&value.into_text());
        self
    }

    pub(crate) fn into_value(self) -> OsString {
        self.into_text().into()
    }

    fn into_text(mut self) -> String {
        self.0.push('}');
        self.0
    }

    fn begin(&mut self, key: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.push_quoted(key);
        self.0.push(':');
    }

    fn push_quoted(&mut self, text: &str) {
        self.0.push('"');
        for character in text.chars() {
            match character {
                '"' | '\\' => self.0.extend(['\\', character]),
                _ => self.0.push(character),
            }
        }
        self.0.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_is_doubled_in_heads_and_values_and_nothing_else_is_touched() {
        let opt = Opt::new("a,b")
            .key("path", "c,,d e=%s\"")
            .key("romfile", "");
        assert_eq!(opt.into_value(), "a,,b,path=c,,,,d e=%s\",romfile=");
    }

    #[test]
    fn bytes_that_are_no_text_pass() {
        let opt = Opt::keyed("path", OsStr::from_bytes(b"\xff,"));
        assert_eq!(opt.into_value().as_bytes(), b"path=\xff,,");
    }

    #[test]
    fn objects_nest_and_keep_their_order() {
        let inner = Object::new().text("name", r#"a"\,"#).null("none");
        let object = Object::new()
            .number("size", 0)
            .boolean("on", true)
            .object("inner", inner);
        assert_eq!(
            object.into_value(),
            r#"{"size":0,"on":true,"inner":{"name":"a\"\\,","none":null}}"#
        );
    }
}
