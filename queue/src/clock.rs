//! Where the time comes from, so that tests can hold it still.

use std::fmt::Debug;
use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};

/// A point in time, to the millisecond where it is stored.
pub type Timestamp = jiff::Timestamp;

/// Reads a span of time, if it is one: plain seconds, or with its units, such as `250ms`, `1h30m` or
/// `1d`. Flags, headers and options all have it so.
#[must_use]
pub fn read_span(text: &str) -> Option<Duration> {
    if let Some(span) = read_fraction(text) {
        return Some(span);
    }
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let text = &if is_plain { format!("{text}s") } else { text.to_owned() };
    let span: Result<SignedDuration, jiff::Error> = text.parse().or_else(|_| {
        // To a calendar not all days are of one length.
        let span: Span = text.parse()?;
        span.to_duration(SpanRelativeTo::days_are_24_hours())
    });
    span.ok()?.try_into().ok()
}

/// Reads a number with a dot and at most one unit, as a program writes what it has computed: with any
/// number of digits.
fn read_fraction(text: &str) -> Option<Duration> {
    let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
    let (number, unit) = text.split_at(text.find(|c| !is_of_number(c)).unwrap_or(text.len()));
    let unit = match unit.trim_start() {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok().filter(|_| number.contains('.'))?;
    Duration::try_from_secs_f64(number * unit).ok()
}

/// Reads the span of time of a flag, as [`read_span`] does.
///
/// # Errors
///
/// What is no such span is told with what would be one.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let remedy = "use seconds, or a number with a unit, such as 250ms, 5s or 5m";
    read_span(text).ok_or_else(|| remedy.to_owned())
}

/// Says what time it is.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The wall clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that follows tokio's time, and so stands still and jumps when that is paused.
#[derive(Debug, Clone, Copy)]
pub struct TokioClock {
    epoch: Timestamp,
    start: tokio::time::Instant,
}

impl TokioClock {
    /// Starts at `epoch` now.
    #[must_use]
    pub fn starting_at(epoch: Timestamp) -> Self {
        Self { epoch, start: tokio::time::Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        self.epoch + self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_units_up_to_days() {
        for (text, seconds) in [
            ("250ms", 0.25),
            ("90s", 90.0),
            ("1.5h", 5400.0),
            ("1h30m", 5400.0),
            ("1d", 86_400.0),
            ("2d 12h", 216_000.0),
            ("0s", 0.0),
            ("90", 90.0),
            ("1.5", 1.5),
            (".5", 0.5),
            ("5.", 5.0),
            ("1.5d", 129_600.0),
            ("0.5ms", 0.0005),
            ("0.30000000000000004", 0.3),
            ("29.99812412261963", 29.998_124_123),
            ("29.99812412261963s", 29.998_124_123),
            ("9223372036854775807s", 9_223_372_036_854_775_807.0),
        ] {
            assert_eq!(read_span(text).map(|span| span.as_secs_f64()), Some(seconds), "{text}");
        }
        for text in
            ["", ".", "1.2.3", "-5", "-5s", "-1d", "1 month", "1y", "soon", "9223372036854775808s"]
        {
            assert_eq!(read_span(text), None, "{text}");
        }
    }
}
