//! What to do with a batch that failed. Pure: the caller runs what this tells it to run.
//!
//! One poison job among 64 is alone after six halvings, which cost two runs each.

use ebb_model::InferErrorKind;

/// Jobs to be run as one batch, and how often they failed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run<T> {
    /// The jobs.
    pub items: Vec<T>,
    /// How many batches with these jobs in them have failed.
    pub failures: u32,
}

/// What to do with jobs whose batch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<T> {
    /// Run them again, in these batches.
    Rerun(Vec<Run<T>>),
    /// This one failed alone, and not for the first time: it is the culprit.
    Reject(T),
    /// Give them back to be tried again later: it may be the device's fault.
    Retry(Vec<T>),
}

impl<T> Run<T> {
    /// Jobs that have not failed yet.
    #[must_use]
    pub fn first(items: Vec<T>) -> Self {
        Self { items, failures: 0 }
    }

    /// What to do now that this run failed.
    #[must_use]
    pub fn failed(mut self, kind: InferErrorKind) -> Next<T> {
        let failures = self.failures + 1;
        let is_alone = self.items.len() == 1;
        match kind {
            InferErrorKind::Device => Next::Retry(self.items),
            // Too large for this device at this moment: another worker may have the room.
            InferErrorKind::OutOfMemory if is_alone => Next::Retry(self.items),
            // One failure alone may be chance; a second one is proof.
            InferErrorKind::Batch if is_alone && failures < 2 => {
                Next::Rerun(vec![Self { items: self.items, failures }])
            }
            InferErrorKind::Batch if is_alone => {
                self.items.pop().map_or(Next::Rerun(Vec::new()), Next::Reject)
            }
            InferErrorKind::Batch | InferErrorKind::OutOfMemory => {
                let right = self.items.split_off(self.items.len().div_ceil(2));
                let halves = [self.items, right].into_iter().filter(|half| !half.is_empty());
                Next::Rerun(halves.map(|items| Self { items, failures }).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Ends {
        done: BTreeSet<usize>,
        rejected: BTreeSet<usize>,
        retried: BTreeSet<usize>,
        n_reruns: usize,
    }

    /// Runs a batch to the end on a device that fails as told.
    fn settle(n: usize, fails: impl Fn(&[usize]) -> Option<InferErrorKind>) -> Ends {
        let mut ends = Ends::default();
        let mut runs = vec![Run::first((0..n).collect())];
        let mut n_runs = 0;
        while let Some(run) = runs.pop() {
            n_runs += 1;
            let Some(kind) = fails(&run.items) else {
                ends.done.extend(run.items);
                continue;
            };
            match run.failed(kind) {
                Next::Rerun(more) => runs.extend(more),
                Next::Reject(item) => assert!(ends.rejected.insert(item)),
                Next::Retry(items) => ends.retried.extend(items),
            }
        }
        ends.n_reruns = n_runs - 1;
        ends
    }

    fn poison(bad: BTreeSet<usize>) -> impl Fn(&[usize]) -> Option<InferErrorKind> {
        move |items| items.iter().any(|item| bad.contains(item)).then_some(InferErrorKind::Batch)
    }

    #[test]
    fn one_poison_among_64_costs_12_reruns_wherever_it_stands() {
        for bad in 0..64 {
            let ends = settle(64, poison([bad].into()));
            assert_eq!(ends.rejected, [bad].into());
            assert_eq!(ends.done.len(), 63);
            assert_eq!(ends.n_reruns, 12);
        }
    }

    #[test]
    fn a_job_that_fails_alone_at_first_gets_a_second_chance() {
        let first = Run::first(vec!["a"]);
        let again = Run { items: vec!["a"], failures: 1 };
        assert_eq!(first.failed(InferErrorKind::Batch), Next::Rerun(vec![again.clone()]));
        assert_eq!(again.failed(InferErrorKind::Batch), Next::Reject("a"));
    }

    #[test]
    fn what_the_device_did_is_not_held_against_the_jobs() {
        let ends = settle(8, |_| Some(InferErrorKind::Device));
        assert_eq!((ends.retried.len(), ends.n_reruns), (8, 0));
        let ends = settle(8, |items| (items.len() > 3).then_some(InferErrorKind::OutOfMemory));
        assert_eq!((ends.done.len(), ends.n_reruns), (8, 6));
        let ends = settle(8, |_| Some(InferErrorKind::OutOfMemory));
        assert_eq!(ends.retried.len(), 8);
    }

    proptest! {
        #[test]
        fn exactly_the_poison_is_rejected_within_twice_log2_reruns_each(
            n in 1..200usize,
            bad in prop::collection::btree_set(0..200usize, 0..8),
        ) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|item| *item < n).collect();
            let ends = settle(n, poison(bad.clone()));
            let good: BTreeSet<usize> = (0..n).filter(|item| !bad.contains(item)).collect();
            let halvings = n.next_power_of_two().ilog2() as usize;
            prop_assert!(ends.n_reruns <= bad.len() * (2 * halvings).max(1));
            prop_assert_eq!(ends.done, good);
            prop_assert_eq!(ends.rejected, bad);
        }
    }
}
