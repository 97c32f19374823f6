//! Who gets in: how many requests there are at once, in all, of a key and for a model, and how often a
//! key asks. Counts are those of this replica.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::Instant;

use crate::keys::Key;
use crate::rate::Bucket;

/// Why a request has to come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Busy {
    /// There are as many requests as there may be.
    All,
    /// As many of this key as there may be.
    Key,
    /// As many for this model as there may be.
    Model(String),
    /// The key has asked too often; it may again after so long.
    Rate(Duration),
}

/// The counts; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    most: usize,
    counts: Arc<Mutex<Counts>>,
    in_flight: IntGauge,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    keys: HashMap<String, u32>,
    models: HashMap<String, u32>,
    /// Of each key that has a limit; they stay when the file of keys is read again.
    buckets: HashMap<String, Bucket>,
}

/// A request that got in, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Admission,
    key: Option<String>,
    /// Requests a minute of the key, where that has a limit.
    rate: Option<u32>,
    model: Option<String>,
    has_left: bool,
}

impl Admission {
    /// For so many requests at once; the gauge shows how many there are.
    pub(crate) fn new(most: usize, in_flight: IntGauge) -> Self {
        Self { most, counts: Arc::default(), in_flight }
    }

    /// Lets a request in, or says what it has to wait for.
    pub(crate) fn admit(&self, key: Option<&Key>, now: Instant) -> Result<Permit, Busy> {
        let mut counts = self.counts();
        if counts.all >= self.most {
            return Err(Busy::All);
        }
        if let Some(key) = key {
            let n_own = counts.keys.get(&key.name).copied().unwrap_or(0) as usize;
            if n_own >= self.most_of(key, counts.all - n_own) {
                return Err(Busy::Key);
            }
            // Last of all: what is refused for another reason does not count.
            if let Some(rate) = key.requests_per_minute {
                let full = || Bucket::full(rate, now);
                let bucket = counts.buckets.entry(key.name.clone()).or_insert_with(full);
                bucket.take(rate, now).map_err(Busy::Rate)?;
            }
            *counts.keys.entry(key.name.clone()).or_insert(0) += 1;
        }
        counts.all += 1;
        drop(counts);
        self.in_flight.inc();
        let rate = key.and_then(|key| key.requests_per_minute);
        let key = key.map(|key| key.name.clone());
        Ok(Permit { admission: self.clone(), key, rate, model: None, has_left: false })
    }

    /// How many a key may have beside so many of others. Where it was not said, half of what these leave,
    /// so that whoever comes finds room; see [`crate::memory`].
    fn most_of(&self, key: &Key, n_of_others: usize) -> usize {
        let left_by_others = self.most.saturating_sub(n_of_others);
        match key.max_in_flight {
            Some(most) => most as usize,
            None if key.is_alone => left_by_others,
            None => left_by_others.div_ceil(2),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole whatever their holder was doing.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Says which model the request is for, which may have as many as it may.
    pub(crate) fn enter(&mut self, model: &str, most: Option<u32>) -> Result<(), Busy> {
        let mut counts = self.admission.counts();
        let n_own = counts.models.get(model).copied().unwrap_or(0);
        if most.is_some_and(|most| n_own >= most) {
            // What is refused does not count.
            if let (Some(key), Some(rate)) = (&self.key, self.rate.take()) {
                counts.buckets.get_mut(key).into_iter().for_each(|bucket| bucket.give_back(rate));
            }
            return Err(Busy::Model(model.to_owned()));
        }
        *counts.models.entry(model.to_owned()).or_insert(0) += 1;
        self.model = Some(model.to_owned());
        Ok(())
    }

    /// Gives the place to others; once, whatever comes after.
    pub(crate) fn leave(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        let mut counts = self.admission.counts();
        counts.all -= 1;
        if let Some(key) = &self.key {
            leave(&mut counts.keys, key);
        }
        if let Some(model) = &self.model {
            leave(&mut counts.models, model);
        }
        self.admission.in_flight.dec();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.leave();
    }
}

/// One less of these, and no memory of who has none.
fn leave(counts: &mut HashMap<String, u32>, name: &str) {
    let Some(n) = counts.get_mut(name) else { return };
    *n -= 1;
    if *n == 0 {
        counts.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;

    fn key(more: &str) -> Arc<Key> {
        named("a", more, "")
    }

    /// A key of this name, with whatever else stands in the file.
    fn named(name: &str, more: &str, others: &str) -> Arc<Key> {
        // Of the text `one`.
        let digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        let text = format!("[keys.{name}]\nsha256 = \"{digest}\"\n{more}\n{others}");
        Arc::clone(Keys::parse(&text).unwrap().find("one").unwrap())
    }

    fn admission(most: usize) -> (Admission, IntGauge) {
        let gauge = IntGauge::new("g", "g").unwrap();
        (Admission::new(most, gauge.clone()), gauge)
    }

    #[test]
    fn who_leaves_makes_room() {
        let ((admission, gauge), now) = (admission(2), Instant::now());
        let first = admission.admit(None, now).unwrap();
        let second = admission.admit(None, now).unwrap();
        assert_eq!(admission.admit(None, now).unwrap_err(), Busy::All);
        assert_eq!(gauge.get(), 2);
        drop(first);
        drop(admission.admit(None, now).unwrap());
        drop(second);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn a_key_has_its_own_room_and_its_own_rate() {
        let ((admission, _), now) = (admission(9), Instant::now());
        let narrow = key("max_in_flight = 1\nrequests_per_minute = 2");
        let first = admission.admit(Some(&narrow), now).unwrap();
        assert_eq!(admission.admit(Some(&narrow), now).unwrap_err(), Busy::Key);
        assert!(admission.admit(None, now).is_ok(), "others are let in");
        drop(first);
        drop(admission.admit(Some(&narrow), now).unwrap());
        let wait = Duration::from_secs(30);
        assert_eq!(admission.admit(Some(&narrow), now).unwrap_err(), Busy::Rate(wait));
        assert!(admission.admit(Some(&narrow), now + wait).is_ok());
    }

    #[test]
    fn a_request_for_a_busy_model_does_not_count_against_the_rate_of_its_key() {
        let ((admission, _), now) = (admission(9), Instant::now());
        let key = key("requests_per_minute = 2");
        let mut refused = admission.admit(Some(&key), now).unwrap();
        for _ in 0..3 {
            assert_eq!(refused.enter("m", Some(0)), Err(Busy::Model("m".to_owned())));
        }
        let admit = || admission.admit(Some(&key), now);
        let (first, second) = (admit(), admit());
        assert!(first.is_ok() && second.is_ok(), "it is given back once");
        assert!(matches!(admit(), Err(Busy::Rate(_))));
    }

    #[test]
    fn a_key_leaves_room_for_others_unless_it_is_alone_or_was_told_how_many() {
        let now = Instant::now();
        let others = format!("[keys.z]\nsha256 = \"{}\"", "0".repeat(64));
        let admitted = |admission: &Admission, key: &Key| {
            let admit = || admission.admit(Some(key), now).ok();
            std::iter::from_fn(admit).collect::<Vec<_>>()
        };
        for (most, more, others, expected) in [
            (8, "", &*others, 4),
            (8, "max_in_flight = 7", &others, 7),
            (8, "", "", 8),
            (1, "", &others, 1),
        ] {
            let admission = admission(most).0;
            let n = admitted(&admission, &named("a", more, others)).len();
            assert_eq!(n, expected, "of {most}, {more:?}");
        }
        let admission = admission(8).0;
        let keys = ["a", "b", "c"].map(|name| named(name, "", &others));
        let all: Vec<_> = keys.iter().map(|key| admitted(&admission, key)).collect();
        let n: Vec<_> = all.iter().map(Vec::len).collect();
        assert_eq!(n, [4, 2, 1]);
        assert!(admission.admit(Some(&named("d", "", &others)), now).is_ok());
    }

    #[test]
    fn a_model_has_its_own_room() {
        let ((admission, _), now) = (admission(9), Instant::now());
        let mut first = admission.admit(None, now).unwrap();
        first.enter("m", Some(1)).unwrap();
        let mut second = admission.admit(None, now).unwrap();
        assert_eq!(second.enter("m", Some(1)), Err(Busy::Model("m".to_owned())));
        assert_eq!(second.enter("n", Some(1)), Ok(()));
        drop(first);
        assert_eq!(admission.admit(None, now).unwrap().enter("m", Some(1)), Ok(()));
        assert_eq!(admission.counts().models.len(), 1, "nobody waits for m any more");
    }
}
