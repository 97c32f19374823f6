//! All that the binary says: results on standard output, everything else on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Where a command says what it has to say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// JSON instead of words.
    pub(crate) json: bool,
}

impl Output {
    /// A line of the result.
    ///
    /// # Errors
    /// When nobody reads it any more.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", text.as_ref())?;
        Ok(stdout.flush()?)
    }

    /// A result as one line of JSON.
    ///
    /// # Errors
    /// When nobody reads it any more.
    pub(crate) fn json(self, value: &impl Serialize) -> Result<()> {
        self.line(serde_json::to_string(value)?)
    }

    /// Bytes of a result, as they are.
    ///
    /// # Errors
    /// When nobody reads them any more.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }
}

/// Whoever reads the lines of a command that works on whether they are read or not: behind `| head`
/// they have seen enough before the end.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) is_gone: bool,
}

impl Reader {
    /// Prints as long as somebody reads.
    ///
    /// # Errors
    /// When it cannot be printed for another reason.
    pub(crate) fn print(&mut self, print: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.is_gone {
            return Ok(());
        }
        let printed = print();
        let is_broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        self.is_gone =
            matches!(&printed, Err(error) if error.downcast_ref().is_some_and(is_broken));
        if self.is_gone { Ok(()) } else { printed }
    }
}

/// A line on standard error. One that nobody can read is not worth an error.
pub(crate) fn note(text: impl AsRef<str>) {
    drop(writeln!(std::io::stderr().lock(), "{}", text.as_ref()));
}

/// What others wrote may hold sequences that a terminal obeys; they are shown as `\u{1b}`.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// On one line and no longer than this.
pub(crate) fn shortened(text: &str, longest: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= longest {
        return line;
    }
    line.chars().take(longest - 1).chain(['…']).collect()
}

/// A table for people: columns as wide as needed, numbers to the right.
#[must_use]
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let digits = |c: char| c.is_ascii_digit() || matches!(c, ',' | '.' | '-');
    let number = |row: &[String; N], column: usize| row[column].chars().all(digits);
    let right: [bool; N] = std::array::from_fn(|column| {
        !rows.is_empty() && rows.iter().all(|row| number(row, column))
    });
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let space = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            let padded = if right[column] { space + cell } else { (*cell).to_owned() + &space };
            line.push_str(&padded);
            line.push_str("  ");
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(headings)];
    lines.extend(rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str()))));
    lines.join("\n")
}

/// A number with a comma for each thousand.
#[must_use]
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span in the unit that suits it: `7.4 ms`, `412 ms`, `3.2 s`, `5 min 3 s`.
#[must_use]
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min {:.0} s", (s / 60.0).floor(), s % 60.0),
    }
}

/// The same of a number of seconds; `-` where there is none.
#[must_use]
pub(crate) fn seconds(seconds: impl Into<Option<f64>>) -> String {
    let known = seconds.into().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    known.map_or_else(|| "-".to_owned(), span)
}

/// Bytes in the unit that suits them.
#[must_use]
pub(crate) fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1024.0 => format!("{bytes} B"),
        b if b < 1024.0 * 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b => format!("{:.1} MiB", b / 1024.0 / 1024.0),
    }
}

/// One line that changes: in place on a terminal, else a new line whenever it has changed.
#[derive(Debug)]
pub(crate) struct Live {
    bar: Option<ProgressBar>,
    last: String,
    told: Option<Instant>,
}

impl Live {
    /// A line on standard error.
    #[must_use]
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner:.cyan} {wide_msg}");
            bar.set_style(style.expect("the template is a constant"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, last: String::new(), told: None }
    }

    /// Shows this now; without a terminal at most one line a second.
    pub(crate) fn show(&mut self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            return;
        }
        let soon = self.told.is_some_and(|told| told.elapsed() < Duration::from_millis(900));
        if soon || text == self.last {
            return;
        }
        note(&text);
        self.last = text;
        self.told = Some(Instant::now());
    }

    /// Shows this now, whatever was shown a moment ago.
    pub(crate) fn tell(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => note(text),
        }
    }

    /// A line above, which stays.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// The line goes.
    pub(crate) fn end(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self::new()
    }
}

/// How far something is: a bar on a terminal, else a line every few seconds.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    done: u64,
    total: Option<u64>,
    told: Instant,
    unit: Unit,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Jobs, epochs, files.
    Items,
    /// Bytes.
    Bytes,
}

impl Progress {
    /// Nothing done yet. Says nothing before there is something worth waiting for.
    #[must_use]
    pub(crate) fn new(what: &str, total: Option<u64>, unit: Unit) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let template = match unit {
                Unit::Items => "{prefix}  {bar:30.cyan/dim} {human_pos}/{human_len}  {msg}",
                Unit::Bytes => {
                    "{prefix}  {bar:30.cyan/dim} {binary_bytes}/{binary_total_bytes}  \
                     {binary_bytes_per_sec}  {msg}"
                }
            };
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.expect("the template is a constant"));
            bar.set_prefix(what.to_owned());
            bar
        });
        Self { what: what.to_owned(), bar, done: 0, total, told: Instant::now(), unit }
    }

    /// So much is done, of so much.
    pub(crate) fn set(&mut self, done: u64, total: Option<u64>, words: &str) {
        (self.done, self.total) = (done, total);
        if let Some(bar) = &self.bar {
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.set_position(done);
            bar.set_message(words.to_owned());
            return;
        }
        if self.told.elapsed() < Duration::from_secs(3) {
            return;
        }
        self.told = Instant::now();
        let number = |n| if self.unit == Unit::Bytes { size(n) } else { grouped(n) };
        let of = total.map(|total| format!(" of {}", number(total))).unwrap_or_default();
        note(format!("{}: {}{of}  {words}", self.what, number(done)).trim_end());
    }

    /// So much more is done.
    pub(crate) fn add(&mut self, more: u64) {
        self.set(self.done + more, self.total, "");
    }

    /// The bar goes.
    pub(crate) fn end(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_no_more_lines_stops_the_printing_alone() {
        let fails = |kind| move || Err(io::Error::from(kind).into());
        let mut reader = Reader::default();
        assert!(reader.print(fails(io::ErrorKind::StorageFull)).is_err());
        assert!(reader.print(fails(io::ErrorKind::BrokenPipe)).is_ok());
        reader.print(|| unreachable!("nobody reads it")).unwrap();
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_span_has_the_unit_that_suits_it() {
        for (millis, text) in [
            (0.4, "0.4 ms"),
            (9.94, "9.9 ms"),
            (412.4, "412 ms"),
            (999.9, "1.0 s"),
            (3210.0, "3.2 s"),
            (61_000.0, "61 s"),
            (303_000.0, "5 min 3 s"),
        ] {
            assert_eq!(span(Duration::from_secs_f64(millis / 1e3)), text);
        }
    }

    #[test]
    fn seconds_that_are_no_span_are_a_dash() {
        assert_eq!([seconds(0.25), seconds(None), seconds(f64::NAN)], ["250 ms", "-", "-"]);
    }

    #[test]
    fn sizes_are_binary() {
        for (bytes, text) in [(12, "12 B"), (2048, "2.0 KiB"), (91_000_000, "86.8 MiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_table_puts_numbers_to_the_right() {
        let rows = [["a".to_owned(), "7".to_owned()], ["long".to_owned(), "1,000".to_owned()]];
        assert_eq!(table(["name", "n"], &rows), "name      n\na         7\nlong  1,000");
        assert_eq!(table(["name", "n"], &[]), "name  n");
    }

    #[test]
    fn a_long_text_ends_in_an_ellipsis() {
        assert_eq!(shortened("one\ntwo", 9), "one two");
        assert_eq!(shortened("äöüß and more", 5), "äöüß…");
    }
}
