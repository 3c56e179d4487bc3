//! "did you mean": the nearest of the allowed words.

/// The allowed word nearest to what was written, when it is near enough to be a slip.
pub(super) fn nearest<'a>(written: &str, allowed: &[&'a str]) -> Option<&'a str> {
    // A word of kiln's is short; a long text is no misspelling of it.
    if written.len() > 40 {
        return None;
    }
    let written = written.to_lowercase();
    allowed
        .iter()
        .map(|word| (distance(&written, &word.to_lowercase()), *word))
        .filter(|(distance, word)| *distance <= 1.max(word.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// `a, b or c`, each in backticks.
pub(super) fn list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// Insertions, deletions, substitutions and swaps of neighbors (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let substitution = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut best = substitution.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognized() {
        let allowed = ["memory", "cpus", "image", "disk", "disks", "restart"];
        for (written, want) in [
            ("memroy", Some("memory")),
            ("Memory", Some("memory")),
            ("cpu", Some("cpus")),
            ("dsik", Some("disk")),
            ("imag", Some("image")),
            ("volume", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, &allowed), want, "{written}");
        }
    }

    #[test]
    fn words_are_listed_as_prose() {
        assert_eq!(list(&["a"]), "`a`");
        assert_eq!(list(&["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
