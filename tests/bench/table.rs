//! The numbers, and how they are shown.

use std::time::Duration;

use serde::Serialize;

/// Times of one kind, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

/// What a value has to keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    None,
    /// At most so much, in the value's own unit.
    AtMost(f64),
    /// At most so many milliseconds more than raw.
    Over(f64),
    /// At most so many times raw.
    Ratio(f64),
    /// At least so many times raw: of what is better the more there is of it.
    Share(f64),
}

/// A line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    raw: Option<f64>,
    kiln: f64,
    /// kiln less raw: the median of the pairs' differences.
    difference: Option<f64>,
    /// kiln by raw: the median of the pairs' ratios.
    ratio: Option<f64>,
    target: String,
    within: Option<bool>,
}

impl Samples {
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1000.0);
    }

    /// Something else than a time.
    pub(crate) fn push_value(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn median(&self) -> f64 {
        median(self.0.clone())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// What raw came to beside kiln.
#[derive(Debug, Clone, Copy)]
struct Compared {
    raw: f64,
    difference: f64,
    ratio: f64,
}

impl Row {
    pub(crate) fn single(what: &str, unit: &'static str, kiln: f64, target: Target) -> Row {
        Row::new(what, unit, None, kiln, target)
    }

    /// From samples of as many turns each.
    pub(crate) fn pair(what: &str, raws: &Samples, kilns: &Samples, target: Target) -> Row {
        Row::beside(what, "ms", raws, kilns, target)
    }

    /// The same in another unit.
    pub(crate) fn beside(
        what: &str,
        unit: &'static str,
        raws: &Samples,
        kilns: &Samples,
        target: Target,
    ) -> Row {
        let pairs = || raws.0.iter().zip(&kilns.0);
        let compared = Compared {
            raw: raws.median(),
            difference: median(pairs().map(|(raw, kiln)| kiln - raw).collect()),
            ratio: median(pairs().map(|(raw, kiln)| kiln / raw).collect()),
        };
        Row::new(what, unit, Some(compared), kilns.median(), target)
    }

    fn new(
        what: &str,
        unit: &'static str,
        compared: Option<Compared>,
        kiln: f64,
        target: Target,
    ) -> Row {
        let raw = compared.map(|compared| compared.raw);
        let difference = compared.map(|compared| compared.difference);
        let ratio = compared.map(|compared| compared.ratio);
        let (target, within) = match target {
            Target::None => (String::new(), None),
            Target::AtMost(most) => (format!("{most} {unit}"), Some(kiln <= most)),
            Target::Over(most) => (
                format!("raw + {most} ms"),
                difference.map(|difference| difference <= most),
            ),
            Target::Ratio(most) => (format!("raw x {most}"), ratio.map(|ratio| ratio <= most)),
            Target::Share(least) => (
                format!(">= raw x {least}"),
                ratio.map(|ratio| ratio >= least),
            ),
        };
        Row {
            what: what.to_owned(),
            unit,
            raw,
            kiln,
            difference,
            ratio,
            target,
            within,
        }
    }
}

/// All rows below each other, and what was missed.
pub(crate) fn text(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<32} {:>10} {:>10} {:>4} {:>10} {:>6}  {:<12} {}\n",
        "what", "raw", "kiln", "", "difference", "ratio", "target", ""
    );
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(String::new, |value| format!("{value:.digits$}"))
    };
    for row in rows {
        let verdict = match row.within {
            None => "",
            Some(true) => "ok",
            Some(false) => "MISSED",
        };
        let line = format!(
            "{:<32} {:>10} {:>10} {:<4} {:>10} {:>6}  {:<12} {verdict}",
            row.what,
            number(row.raw, 1),
            number(Some(row.kiln), 1),
            row.unit,
            number(row.difference, 1),
            number(row.ratio, 2),
            row.target,
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let over = rows.iter().filter(|row| row.within == Some(false)).count();
    match over {
        0 => text.push_str("\nevery target is met\n"),
        _ => text.push_str(&format!("\n{over} of the targets MISSED\n")),
    }
    text
}
