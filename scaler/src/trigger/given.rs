//! Values as they were written, and what is wrong with them.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_queue::{Priority, read_span};
use ebb_telemetry::edits;

use super::TriggerError;
use super::options::{
    ACTIVATION_WAIT, ELSEWHERE, KEDA_KEYS, OPTIONS, SLO, STREAM, TriggerOption, option,
};
use super::source::as_with_keda;

pub(crate) const FROM_ENV: &str = "FromEnv";
const NEVER: &str = "never";
const LONGEST: Duration = Duration::from_secs(86_400);

/// The values for our own keys, by the plain name of the key.
pub(super) struct Given<'a>(BTreeMap<&'static str, Entry<'a>>);

/// A key and its value as they were written.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    /// With or without the suffix.
    pub(super) key: &'a str,
    pub(super) value: &'a str,
}

impl<'a> Given<'a> {
    pub(super) fn collect(
        metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, TriggerError> {
        // Sorted, so that of several mistakes the same one is always told.
        let sorted: BTreeMap<&str, &str> = metadata.into_iter().collect();
        let mut given: BTreeMap<&'static str, Entry<'a>> = BTreeMap::new();
        let is_foreign = sorted.keys().any(|key| plain(key) == STREAM);
        for (key, value) in sorted {
            let name = plain(key);
            let name = as_with_keda(name).filter(|_| is_foreign).unwrap_or(name);
            if KEDA_KEYS.contains(&name) {
                continue;
            }
            let name = option(name).ok_or_else(|| unknown(key))?.key;
            // A value from a file or a Secret often ends with a line break.
            let entry = Entry { key, value: value.trim() };
            if let Some(first) = given.insert(name, entry) {
                let both = format!("{} and {key} are both given; keep one of them", first.key);
                return Err(TriggerError(both));
            }
        }
        Ok(Self(given))
    }

    /// What was written for a key.
    pub(super) fn get(&self, key: &str) -> Option<Entry<'a>> {
        self.0.get(key).copied()
    }

    /// What was written for a key, or what counts without it.
    pub(super) fn entry(&self, key: &'static str) -> Result<Entry<'a>, TriggerError> {
        let default = || option(key).and_then(|option| option.default);
        let default = || default().map(|value| Entry { key, value });
        let missing = || {
            let words = "is missing; KEDA leaves out a FromEnv that it finds nothing for";
            TriggerError(format!("{key} {words}"))
        };
        self.get(key).or_else(default).ok_or_else(missing)
    }

    /// Refuses what the mode has no use for: it was meant for another one.
    pub(super) fn refuse_others(&self, mode: &str, target: &str) -> Result<(), TriggerError> {
        let stray =
            |option: &&TriggerOption| !option.applies_to(mode) && self.0.contains_key(option.key);
        let Some(stray) = OPTIONS.iter().find(stray) else { return Ok(()) };
        let written = self.0[stray.key].key;
        let modes = stray.modes.join(" or ");
        Err(TriggerError(format!(
            "{written} says nothing in mode {mode}; use {target}, or mode {modes}"
        )))
    }
}

impl Entry<'_> {
    /// A number within the limits that metrics have.
    pub(super) fn number(self) -> Result<f64, TriggerError> {
        self.number_in(0.001, 1e9, "use a number from 0.001 to 1000000000")
    }

    /// A share of one.
    pub(super) fn share(self) -> Result<f64, TriggerError> {
        self.number_in(0.1, 1.0, "use a number from 0.1 to 1")
    }

    fn number_in(self, least: f64, most: f64, remedy: &str) -> Result<f64, TriggerError> {
        let number = self.value.parse().ok();
        number.filter(|number| (least..=most).contains(number)).ok_or_else(|| self.invalid(remedy))
    }

    /// A whole number of jobs.
    pub(super) fn whole(self) -> Result<u64, TriggerError> {
        self.value.parse().map_err(|_| self.invalid("use a whole number of jobs, 0 or more"))
    }

    /// A span of up to a day; none for never.
    pub(super) fn wait(self) -> Result<Option<Duration>, TriggerError> {
        if self.value == NEVER { Ok(None) } else { self.span(Duration::ZERO).map(Some) }
    }

    /// A span, from this one to a day.
    pub(super) fn span(self, least: Duration) -> Result<Duration, TriggerError> {
        let plain = self.value.parse().ok().map(Duration::try_from_secs_f64);
        let span = plain.map_or_else(|| read_span(self.value), Result::ok);
        span.filter(|span| (least..=LONGEST).contains(span)).ok_or_else(|| {
            let least = if least.is_zero() { "0s".to_owned() } else { format!("{least:?}") };
            self.invalid(&format!("use seconds, or a span such as 90s or 5m, from {least} to 1d"))
        })
    }

    /// The name of a priority.
    pub(super) fn priority(self) -> Result<Priority, TriggerError> {
        self.value.parse().map_err(|_| self.invalid("use low, normal or high"))
    }

    pub(super) fn invalid(self, remedy: &str) -> TriggerError {
        // What came out of an environment may be a secret that was named by mistake, and a URL have
        // a password in it.
        if self.key.ends_with(FROM_ENV) || self.value.contains("://") {
            return TriggerError(format!("the value of {} is not valid: {remedy}", self.key));
        }
        let shown: String = self.value.chars().take(32).collect();
        TriggerError(format!("{}: {shown:?} is not valid: {remedy}", self.key))
    }
}

/// Whether a job that is held back for this wait is in time for an objective that is for all jobs. What
/// cannot be read is told by whoever reads it.
pub(crate) fn leaves_time(wait: &str, within: &str) -> bool {
    let wait = Entry { key: ACTIVATION_WAIT, value: wait.trim() }.wait();
    let within = Entry { key: SLO, value: within.trim() }.span(Duration::ZERO);
    match (wait, within) {
        (Ok(wait), Ok(within)) => wait.is_some_and(|wait| wait < within),
        _ => true,
    }
}

/// A key without its suffix.
fn plain(key: &str) -> &str {
    key.strip_suffix(FROM_ENV).unwrap_or(key)
}

fn unknown(key: &str) -> TriggerError {
    let shown: String = key.chars().take(64).collect();
    let name = plain(&shown);
    if let Some((_, ours)) = ELSEWHERE.iter().find(|(other, _)| *other == name) {
        return TriggerError(format!("key {shown:?} is not known; use {ours}"));
    }
    let distance = |known: &str| edits(&name.to_lowercase(), &known.to_lowercase());
    let all = OPTIONS.iter().map(|option| option.key).chain(KEDA_KEYS);
    let nearest = all.min_by_key(|known| distance(known)).expect("the list is not empty");
    // Too far away to have been meant.
    if distance(nearest) > nearest.len() / 2 {
        let keys = OPTIONS.map(|option| option.key).join(", ");
        return TriggerError(format!("key {shown:?} is not known; the keys are {keys}"));
    }
    TriggerError(format!("key {shown:?} is not known; use {nearest}"))
}
