//! Other servers for the official addresses: a file of lines `ADDRESS OTHER`.
//!
//! What begins with the one is asked of the other. The longest that fits is taken; `#` begins a
//! comment.

use crate::cluster::remote::{Address, SourceError};

/// Which addresses are asked for elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// What addresses begin with, and what that becomes; the longest first.
    table: Vec<(String, String)>,
}

/// Why a text is no list of mirrors.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error(
        "line {line}: a line is an official address, a space, and the address that is used instead"
    )]
    Form { line: usize },
    #[error("line {line}: `{text}` is not an address")]
    Address {
        line: usize,
        text: String,
        #[source]
        source: SourceError,
    },
}

impl Mirrors {
    pub fn parse(text: &str) -> Result<Mirrors, MirrorError> {
        let mut table = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(from) = words.next() else { continue };
            let (Some(to), None) = (words.next(), words.next()) else {
                return Err(MirrorError::Form { line: line_number });
            };
            for text in [from, to] {
                // A bare host is a prefix like any other.
                let sound: Result<Address, SourceError> = format!("{text}/").parse();
                sound.map_err(|source| MirrorError::Address {
                    line: line_number,
                    text: text.chars().take(80).collect(),
                    source,
                })?;
            }
            let bare = |text: &str| text.trim_end_matches('/').to_owned();
            table.push((bare(from), bare(to)));
        }
        table.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        Ok(Mirrors { table })
    }

    /// Where this is asked for.
    pub fn of(&self, url: &str) -> String {
        self.table
            .iter()
            .find_map(|(from, to)| {
                let rest = url.strip_prefix(from.as_str())?;
                rest.starts_with(['/', '?']).then(|| format!("{to}{rest}"))
            })
            .unwrap_or_else(|| url.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_is_taken_and_only_whole_parts_of_a_path() {
        let mirrors = Mirrors::parse(
            "# ours\nhttps://a.example http://m.example/all/\nhttps://a.example/x  http://127.0.0.1:80/x # near\n\n",
        )
        .unwrap();
        for (url, want) in [
            ("https://a.example/y", "http://m.example/all/y"),
            ("https://a.example/x/y", "http://127.0.0.1:80/x/y"),
            ("https://a.example/xy", "http://m.example/all/xy"),
            ("https://a.example.org/y", "https://a.example.org/y"),
            ("https://b.example/y", "https://b.example/y"),
        ] {
            assert_eq!(mirrors.of(url), want);
        }
    }

    #[test]
    fn a_line_that_is_wrong_is_told() {
        for (text, want) in [
            ("https://a.example", "line 1"),
            ("\nhttps://a.example b c", "line 2"),
            ("https://a.example /srv/images", "line 1"),
        ] {
            let error = Mirrors::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
