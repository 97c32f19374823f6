//! Which queue a job goes to. Pure: a function of the job's key and of the weights.
//!
//! Weighted rendezvous hashing: each queue draws a number from the key and its own name, and the
//! best draw wins. With `u` drawn uniformly from `(0, 1)`, `-w / ln(u)` is the best with a chance in
//! proportion to `w`, and a queue whose weight grows wins keys from others and gives none away. Any
//! process that knows the weights chooses the same.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ebb_queue::{Job, QueueUrl};
use sha2::{Digest, Sha256};

/// No weight is greater: a share below a millionth is none.
const HEAVIEST: f64 = 1e6;

/// What jobs are told apart by: jobs with the same key go the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum By {
    /// Its id: each job for itself.
    Id,
    /// `ebb-tenant`: all jobs of a tenant see the same version; a job without one goes by its id.
    Tenant,
    /// `ebb-key`, so that a job that is sent again goes where it went; without one, the id.
    #[default]
    Key,
}

impl By {
    /// The key of a job.
    #[must_use]
    pub fn of(self, job: &Job) -> &str {
        let named = match self {
            Self::Id => None,
            Self::Tenant => job.headers.tenant.as_deref(),
            Self::Key => job.headers.key.as_deref(),
        };
        named.unwrap_or(job.id.as_str())
    }
}

/// As `--by` takes it.
impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Id => "id",
            Self::Tenant => "tenant",
            Self::Key => "key",
        })
    }
}

/// One queue and its weight, as `jobs-canary=5`.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// The queue, on the broker of the intake.
    pub queue: String,
    /// What it gets, in proportion to the others; 0 for nothing.
    pub weight: f64,
}

/// What is wrong with weights, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WeightsError(String);

impl FromStr for Share {
    type Err = WeightsError;

    fn from_str(text: &str) -> Result<Self, WeightsError> {
        let wrong =
            || WeightsError(format!("{text:?} is no share; use QUEUE=WEIGHT, as jobs-canary=5"));
        let (queue, weight) = text.split_once('=').ok_or_else(wrong)?;
        let weight = weight.trim().parse().map_err(|_| wrong())?;
        Ok(Self { queue: queue.trim().to_owned(), weight })
    }
}

/// The queues that jobs go to, and in what proportion.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights(BTreeMap<String, f64>);

impl Weights {
    /// Takes shares that make sense together.
    ///
    /// # Errors
    /// Names the queue, and the remedy.
    pub fn new(shares: impl IntoIterator<Item = Share>) -> Result<Self, WeightsError> {
        let mut weights = BTreeMap::new();
        for Share { queue, weight } in shares {
            if !(0.0..=HEAVIEST).contains(&weight) {
                let words = format!("{queue}: a weight is a number from 0 to {HEAVIEST}");
                return Err(WeightsError(words));
            }
            // Who knows what a name may be is the queue.
            if let Err(error) = QueueUrl::sqlite("any").with_queue(&queue) {
                return Err(WeightsError(error.to_string()));
            }
            if weights.insert(queue.clone(), weight).is_some() {
                return Err(WeightsError(format!("{queue} is named twice; give it one weight")));
            }
        }
        if weights.values().all(|weight| *weight <= 0.0) {
            let words = "no queue has a weight above 0; jobs must go somewhere, as jobs-stable=100";
            return Err(WeightsError(words.to_owned()));
        }
        Ok(Self(weights))
    }

    /// The queues, those of weight 0 too, by name.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// What share of the jobs a queue gets, from 0 to 1.
    #[must_use]
    pub fn share(&self, queue: &str) -> f64 {
        self.0.get(queue).map_or(0.0, |weight| weight / self.0.values().sum::<f64>())
    }

    /// The queue that gets the jobs with this key.
    #[must_use]
    pub fn choose(&self, key: &str) -> &str {
        self.choose_among(key, |_| true).expect("one weight is above 0")
    }

    /// The same among those that fit: the jobs of the others are shared out by weight, and those of
    /// these stay where they are.
    pub fn choose_among(&self, key: &str, fits: impl Fn(&str) -> bool) -> Option<&str> {
        let mut best: Option<(f64, &str)> = None;
        for (queue, weight) in self.0.iter().filter(|(queue, w)| **w > 0.0 && fits(queue)) {
            let score = -weight / draw(key, queue).ln();
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, queue));
            }
        }
        best.map(|(_, queue)| queue)
    }
}

/// As `--to` takes them: `jobs-canary=5,jobs-stable=95`.
impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (queue, weight)) in self.0.iter().enumerate() {
            write!(f, "{}{queue}={weight}", if nth == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A number between 0 and 1, neither included, that is the same everywhere and for ever.
fn draw(key: &str, queue: &str) -> f64 {
    let mut hasher = Sha256::new();
    hasher.update(key.as_bytes());
    // Neither has one in it.
    hasher.update([0]);
    hasher.update(queue.as_bytes());
    let digest = hasher.finalize();
    let first: [u8; 8] = std::array::from_fn(|nth| digest[nth]);
    ((u64::from_be_bytes(first) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use ebb_queue::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn weights(shares: &[(&str, f64)]) -> Weights {
        let share =
            |(queue, weight): &(&str, f64)| Share { queue: (*queue).to_owned(), weight: *weight };
        Weights::new(shares.iter().map(share)).unwrap()
    }

    #[test]
    fn weights_read_as_they_are_given() {
        let both = weights(&[("jobs-stable", 95.0), ("jobs-canary", 0.5)]);
        assert_eq!(both.to_string(), "jobs-canary=0.5,jobs-stable=95");
        for by in By::value_variants() {
            assert_eq!(By::from_str(&by.to_string(), false), Ok(*by));
        }
    }

    const NAMES: [&str; 5] = ["jobs-a", "jobs-b", "jobs-c", "jobs-d", "jobs-e"];

    fn some_weights() -> impl Strategy<Value = Vec<f64>> {
        let weight = prop_oneof![4 => 0.1f64..100.0, 1 => Just(0.0)];
        let some = prop::collection::vec(weight, 2..=NAMES.len());
        some.prop_filter("one is above 0", |all| all.iter().sum::<f64>() > 0.0)
    }

    fn of(values: &[f64]) -> Weights {
        weights(&NAMES.iter().copied().zip(values.iter().copied()).collect::<Vec<_>>())
    }

    /// That so many of `n` draws with this chance are not chance: six standard deviations.
    fn assert_share(n_found: usize, n: usize, chance: f64, what: &str) {
        let (mean, deviation) = (n as f64 * chance, (n as f64 * chance * (1.0 - chance)).sqrt());
        let off = (n_found as f64 - mean).abs();
        assert!(off <= 6.0 * deviation + 1.0, "{what}: {n_found} of {n} where {mean} are due");
    }

    /// By another implementation, in Python: forty choices, and one draw.
    const CHOSEN: &str = "ssccccssssssssscssssssccsssssssssssssssc";
    const DRAWN: f64 = 0.22348673931750246;

    #[test]
    fn a_choice_stays_the_same_for_ever() {
        // Jobs on their way when a version of Ebb is replaced must not change sides.
        let both = weights(&[("jobs-stable", 80.0), ("jobs-canary", 20.0)]);
        let chosen: String = (0..40)
            .map(|n| if both.choose(&format!("job-{n}")) == "jobs-canary" { 'c' } else { 's' })
            .collect();
        assert_eq!(chosen, CHOSEN);
        assert!((draw("job-1", "jobs-canary") - DRAWN).abs() < 1e-15);
    }

    #[test]
    fn a_job_goes_by_its_tenant_its_key_or_its_id() {
        let mut job = Job::new("", Timestamp::UNIX_EPOCH);
        let id = job.id.to_string();
        assert_eq!([By::Id, By::Tenant, By::Key].map(|by| by.of(&job).to_owned()), [&*id; 3]);
        job.headers.tenant = Some("t".to_owned());
        job.headers.key = Some("k".to_owned());
        assert_eq!(
            [By::Id, By::Tenant, By::Key].map(|by| by.of(&job).to_owned()),
            [&*id, "t", "k"]
        );
    }

    #[test]
    fn shares_that_make_no_sense_are_named_with_the_remedy() {
        for (text, told) in [
            ("jobs-canary", "QUEUE=WEIGHT"),
            ("jobs-canary=five", "QUEUE=WEIGHT"),
            ("jobs-canary=-1", "from 0 to"),
            ("jobs-canary=NaN", "from 0 to"),
            ("jobs-canary=inf", "from 0 to"),
            ("a b=5", "queue name"),
            ("=5", "queue name"),
            ("jobs-stable=1", "named twice"),
        ] {
            let stable = "jobs-stable=95".parse::<Share>().unwrap();
            let both = text.parse().and_then(|share| Weights::new([stable, share]));
            let error = both.expect_err(text).to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
        let none = Weights::new(["a=0".parse().unwrap()]).unwrap_err().to_string();
        assert!(none.contains("above 0"), "{none}");
        assert!(Weights::new([]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_queue_gets_its_share(values in some_weights(), salt: u64) {
            let (all, n) = (of(&values), 4000);
            let mut found: BTreeMap<&str, usize> = BTreeMap::new();
            for nth in 0..n {
                *found.entry(all.choose(&format!("{salt}-{nth}"))).or_default() += 1;
            }
            for name in NAMES {
                assert_share(found.get(name).copied().unwrap_or(0), n, all.share(name), name);
            }
        }

        #[test]
        fn a_weight_that_grows_takes_jobs_and_moves_no_others(
            values in some_weights(), nth in 0..NAMES.len(), grown in 0.1f64..200.0, salt: u64,
        ) {
            let nth = nth % values.len();
            let mut after = values.clone();
            after[nth] += grown;
            let (before, after, n) = (of(&values), of(&after), 2000);
            let (name, mut n_moved) = (NAMES[nth], 0);
            for at in 0..n {
                let key = format!("{salt}-{at}");
                let (old, new) = (before.choose(&key), after.choose(&key));
                prop_assert!(old == new || new == name, "{key}: from {old} to {new}");
                n_moved += usize::from(old != new);
            }
            // No more than must: the share that was won.
            assert_share(n_moved, n, after.share(name) - before.share(name), "moved");
        }

        #[test]
        fn to_scale_all_weights_moves_nothing(values in some_weights(), salt: u64) {
            // By a power of two, so that each product is exact.
            let scaled: Vec<f64> = values.iter().map(|weight| weight * 8.0).collect();
            let (before, after) = (of(&values), of(&scaled));
            for nth in 0..200 {
                let key = format!("{salt}-{nth}");
                prop_assert_eq!(before.choose(&key), after.choose(&key));
            }
        }

        #[test]
        fn a_queue_that_is_left_out_moves_only_its_own(
            values in some_weights(), out in 0..NAMES.len(), salt: u64,
        ) {
            let (all, out) = (of(&values), NAMES[out]);
            for nth in 0..200 {
                let key = format!("{salt}-{nth}");
                let (usual, other) = (all.choose(&key), all.choose_among(&key, |name| name != out));
                prop_assert!(other != Some(out));
                prop_assert!(usual == out || other == Some(usual));
            }
        }
    }
}
