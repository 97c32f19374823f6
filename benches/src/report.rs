//! What a bench says: a table for people or one JSON object for scripts, and progress on the side.

use std::io::Write;

use anyhow::Context;
use serde::Serialize;

/// A table as Markdown, so that it can be put into `benches/README.md` as it is.
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { head: head.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as the head has.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.head.len(), "a row has a cell for each column");
        self.rows.push(cells.into());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                let cells = self.rows.iter().chain([&self.head]);
                cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
            })
            .collect();
        let rules: Vec<String> = widths
            .iter()
            .map(|width| format!("{}:", "-".repeat(width.saturating_sub(1))))
            .collect();
        let mut line = |cells: &[String]| {
            let cells = cells.iter().zip(&widths);
            let padded: String = cells.map(|(cell, width)| format!(" {cell:>width$} |")).collect();
            writeln!(f, "|{padded}")
        };
        line(&self.head)?;
        line(&rules)?;
        self.rows.iter().try_for_each(|row| line(row))
    }
}

/// Prints the table, or with `json` the object on one line.
pub(crate) fn print(json: bool, table: &Table, object: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = match json {
        true => writeln!(out, "{}", serde_json::to_string(object)?),
        false => write!(out, "{table}"),
    };
    written.context("cannot write to the standard output")
}

/// Tells a person at the terminal how far things are.
pub(crate) fn progress(words: impl std::fmt::Display) {
    // Nobody may be listening, which is no reason to stop.
    drop(writeln!(std::io::stderr(), "{words}"));
}

/// The smallest sample that `share` of them do not exceed; not a number without samples.
pub(crate) fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The middle sample, or the mean of the two in the middle; not a number without samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A figure with so many decimals, or a dash for one that has not been measured: none, or not a number.
pub(crate) fn dash(figure: impl Into<Option<f64>>, digits: usize) -> String {
    let figure = figure.into().filter(|figure| !figure.is_nan());
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
}

/// Rounded to `digits` decimals, so that a JSON object does not claim more than was measured.
pub(crate) fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_sample() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (share, expected) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            assert_eq!(percentile(&samples, share), expected, "{share}");
        }
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new(["what", "jobs/s"]);
        table.row(["worker".into(), "1234".into()]);
        let expected = "|   what | jobs/s |\n| -----: | -----: |\n| worker |   1234 |\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_figure_that_has_not_been_measured_is_a_dash() {
        assert_eq!(dash(0.0, 1), "0.0");
        assert_eq!(dash(Some(12.25), 2), "12.25");
        assert_eq!(dash(None, 1), "-");
        assert_eq!(dash(percentile(&[], 0.5), 1), "-");
    }

    #[test]
    fn rounding_keeps_the_digits_asked_for() {
        assert_eq!(rounded(0.123_456, 3), 0.123);
        assert_eq!(rounded(12.5, 0), 13.0);
    }
}
