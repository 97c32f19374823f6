//! What triggers ask for, read once: KEDA sends the same metadata with each of its calls.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::profiles::{Profiles, Refusal};
use crate::resolved::Resolved;

/// Bytes that metadata may take: those of fifteen thousand triggers with ten options each.
const MOST_BYTES: usize = 64 << 20;

/// What an entry takes beside its metadata, roughly.
const BYTES_OF_AN_ENTRY: usize = 512;

/// What a key and its value take beside their text, roughly: 49 bytes of a map that may be less than
/// half full, 56 of the list in [`Resolved`], and what the allocator adds to four strings.
const BYTES_OF_A_PAIR: usize = 250;

/// Reads metadata by the configuration of the moment, and remembers what came of them as long as
/// that is the same; clones share it. Refusals are not remembered: they are seldom, and anybody can
/// think of new ones.
#[derive(Clone)]
pub(crate) struct Resolver {
    profiles: watch::Receiver<Arc<Profiles>>,
    hashes: RandomState,
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    /// The configuration that all of it follows from.
    profiles: Arc<Profiles>,
    /// By hash of the namespace and the metadata.
    entries: HashMap<u64, Vec<Entry>>,
    n_bytes: usize,
}

/// What a trigger of a namespace asks for, whichever object it is of.
struct Entry {
    namespace: String,
    /// As they came, with what KEDA read from the environment: never shown to anybody.
    metadata: HashMap<String, String>,
    resolved: Arc<Resolved>,
}

impl Resolver {
    pub(crate) fn new(profiles: watch::Receiver<Arc<Profiles>>) -> Self {
        let now = Arc::clone(&profiles.borrow());
        let kept = Arc::new(Mutex::new(Kept::new(now)));
        Self { profiles, hashes: RandomState::new(), kept }
    }

    /// [`Profiles::resolve`], by the configuration of this moment.
    pub(crate) fn resolve(
        &self,
        namespace: &str,
        metadata: &HashMap<String, String>,
    ) -> Result<Arc<Resolved>, Refusal> {
        let profiles = Arc::clone(&self.profiles.borrow());
        let hash = self.hash(namespace, metadata);
        let found = self.lock().of(&profiles).find(hash, namespace, metadata);
        if let Some(found) = found {
            return Ok(found);
        }
        let resolved = Arc::new(profiles.resolve(namespace, metadata)?);
        let entry = Entry {
            namespace: namespace.to_owned(),
            metadata: metadata.clone(),
            resolved: Arc::clone(&resolved),
        };
        self.lock().of(&profiles).keep(hash, entry);
        Ok(resolved)
    }

    /// Whatever the order in which a map gives its keys.
    fn hash(&self, namespace: &str, metadata: &HashMap<String, String>) -> u64 {
        let pairs = metadata.iter().map(|pair| self.hashes.hash_one(pair));
        pairs.fold(self.hashes.hash_one(namespace), u64::wrapping_add)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Whoever panicked in between has left a list that is short of one, or a sum that is too
        // large: neither gives a wrong answer.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn new(profiles: Arc<Profiles>) -> Self {
        Self { profiles, entries: HashMap::new(), n_bytes: 0 }
    }

    /// What follows from this configuration: nothing yet, where it is another one. Who still reads by
    /// the one before starts it anew as well, which costs time and is right.
    fn of(&mut self, profiles: &Arc<Profiles>) -> &mut Self {
        if !Arc::ptr_eq(&self.profiles, profiles) {
            *self = Self::new(Arc::clone(profiles));
        }
        self
    }

    fn find(
        &self,
        hash: u64,
        namespace: &str,
        metadata: &HashMap<String, String>,
    ) -> Option<Arc<Resolved>> {
        let entries = self.entries.get(&hash)?;
        let found = entries.iter().find(|entry| entry.is_of(namespace, metadata))?;
        Some(Arc::clone(&found.resolved))
    }

    /// Forgets everything when there is no more room: seldom, and it is soon read again.
    fn keep(&mut self, hash: u64, entry: Entry) {
        // Twice their text: as it came, and as `/explain` shows it.
        let of_pair =
            |(key, value): (&String, &String)| BYTES_OF_A_PAIR + 2 * (key.len() + value.len());
        let of_pairs = entry.metadata.iter().map(of_pair);
        let n_bytes = BYTES_OF_AN_ENTRY + entry.namespace.len() + of_pairs.sum::<usize>();
        if self.n_bytes + n_bytes > MOST_BYTES {
            *self = Self::new(Arc::clone(&self.profiles));
        }
        let entries = self.entries.entry(hash).or_default();
        // Two calls may have read the same at the same time.
        if !entries.iter().any(|other| other.is_of(&entry.namespace, &entry.metadata)) {
            entries.push(entry);
            self.n_bytes += n_bytes;
        }
    }
}

impl Entry {
    fn is_of(&self, namespace: &str, metadata: &HashMap<String, String>) -> bool {
        self.namespace == namespace && self.metadata == *metadata
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use ebb_queue::QueueUrl;
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
    use tokio::sync::watch;

    use super::{BYTES_OF_A_PAIR, BYTES_OF_AN_ENTRY, MOST_BYTES, Resolver};
    use crate::profiles::Profiles;

    fn metadata(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn profiles(queue: &str) -> Arc<Profiles> {
        let url = QueueUrl::sqlite("/data/q.db").with_queue(queue).unwrap();
        Arc::new(Profiles::single(url))
    }

    fn n_kept(resolver: &Resolver) -> usize {
        resolver.lock().entries.values().map(Vec::len).sum()
    }

    #[test]
    fn the_same_metadata_are_read_once_and_what_they_mean_follows_the_configuration() {
        let (sender, receiver) = watch::channel(profiles("jobs"));
        let resolver = Resolver::new(receiver);
        let given = metadata(&[("jobsPerReplica", "4")]);
        let first = resolver.resolve("ml", &given).unwrap();
        assert!(Arc::ptr_eq(&first, &resolver.resolve("ml", &given).unwrap()));
        // Another namespace may be denied what this one is granted.
        assert!(!Arc::ptr_eq(&first, &resolver.resolve("web", &given).unwrap()));
        let other = metadata(&[("jobsPerReplica", "5")]);
        assert_ne!(resolver.resolve("ml", &other).unwrap().trigger, first.trigger);
        assert_eq!(n_kept(&resolver), 3);

        sender.send(profiles("night")).unwrap();
        let moved = resolver.resolve("ml", &given).unwrap();
        let names = [&first, &moved].map(|one| one.place.source.to_string());
        assert_eq!(names, ["jobs", "night"]);
        assert_eq!(n_kept(&resolver), 1);
    }

    #[test]
    fn a_refusal_is_told_each_time_and_takes_no_room() {
        let resolver = Resolver::new(watch::channel(profiles("jobs")).1);
        let wrong = metadata(&[("jobsPerReplica", "none")]);
        let told = resolver.resolve("ml", &wrong).unwrap_err();
        assert_eq!(resolver.resolve("ml", &wrong).unwrap_err(), told);
        assert_eq!(n_kept(&resolver), 0);
    }

    #[test]
    fn fifteen_thousand_triggers_with_ten_options_are_kept() {
        let resolver = Resolver::new(watch::channel(profiles("jobs")).1);
        let rest = [
            ("scalerAddress", "ebb-scaler.autoscaling-system.svc.cluster.local:6000"),
            ("mode", "slo"),
            ("sloSeconds", "120"),
            ("slotsPerReplica", "32"),
            ("serviceSeconds", "250ms"),
            ("coldStartSeconds", "90"),
            ("activationJobs", "64"),
            ("activationWait", "15s"),
            ("activationPriority", "normal"),
            ("linger", "5m"),
        ];
        for nth in 0..15_000 {
            let queue = format!("embeddings-multilingual-{nth}");
            let given = metadata(&[&rest[..], &[("queue", &*queue)]].concat());
            resolver.resolve("search-and-recommendations", &given).unwrap();
        }
        assert_eq!(n_kept(&resolver), 15_000);
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let resolver = Resolver::new(watch::channel(profiles("jobs")).1);
        // Short ones, of which the text is the least part.
        let most = MOST_BYTES / (BYTES_OF_AN_ENTRY + 4 * BYTES_OF_A_PAIR);
        for nth in 0..2 * most {
            let nth_jobs = nth.to_string();
            let given = [("activationJobs", &*nth_jobs), ("queue", "q"), ("linger", "1")];
            let given = metadata(&[&given[..], &[("jobsPerReplica", "2")]].concat());
            assert_eq!(resolver.resolve("ml", &given).unwrap().trigger.activation.jobs, nth as u64);
        }
        assert!((1..=most).contains(&n_kept(&resolver)), "{}", n_kept(&resolver));
        let huge = metadata(&[("query", &"x".repeat(MOST_BYTES))]);
        assert!(resolver.resolve("ml", &huge).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_remembered_is_what_would_be_read(
            calls in proptest::collection::vec((0..2usize, "[ab]{0,2}", 1..4u8, 0..3u8), 1..60),
        ) {
            let brokers = [profiles("jobs"), profiles("night")];
            let (sender, receiver) = watch::channel(Arc::clone(&brokers[0]));
            let resolver = Resolver::new(receiver);
            for (broker, namespace, figure, shape) in calls {
                sender.send_replace(Arc::clone(&brokers[broker]));
                let figure = figure.to_string();
                // Keys and values that change places must not be taken for each other.
                let given = match shape {
                    0 => metadata(&[("jobsPerReplica", &figure), ("activationJobs", "2")]),
                    1 => metadata(&[("jobsPerReplica", "2"), ("activationJobs", &figure)]),
                    _ => metadata(&[("queue", &namespace), ("jobsPerReplica", &figure)]),
                };
                let (kept, read) = (
                    resolver.resolve(&namespace, &given),
                    brokers[broker].resolve(&namespace, &given),
                );
                prop_assert_eq!(kept.is_ok(), read.is_ok());
                prop_assert!(kept.map(|one| (*one).clone()) == read, "{:?}", given);
            }
        }
    }
}
