//! A split at publication: `ebb enqueue --split` does by itself what `ebb split` does for all.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use ebb_queue::{Job, Missing, Published, Queue, Timestamp};
use ebb_split::{By, Place, Share, Weights, keeps_records, place};
use futures::future::try_join_all;

use crate::exit::usage;
use crate::options::QueueArgs;
use crate::output::note;

/// The queues that jobs are spread over.
pub(crate) struct Spread {
    weights: Weights,
    by: By,
    /// Where it is written down where each job went, if the broker keeps that.
    records: Option<Queue>,
    queues: BTreeMap<String, Queue>,
    args: QueueArgs,
    missing: Missing,
}

impl Spread {
    /// Opens the queues; nothing without shares.
    ///
    /// # Errors
    /// When the shares make no sense, or nothing answers.
    pub(crate) async fn new(
        (args, missing): (&QueueArgs, Missing),
        shares: &[Share],
        by: By,
    ) -> Result<Option<Self>> {
        if shares.is_empty() {
            return Ok(None);
        }
        let weights = Weights::new(shares.iter().cloned());
        let weights = weights.map_err(|error| usage(format!("--split: {error}")))?;
        let url = args.url()?;
        if weights.queues().any(|queue| queue == url.queue) {
            let words = format!("--split: {} is the queue of --queue; name others", url.queue);
            return Err(usage(words));
        }
        let records =
            if keeps_records(&url) { Some(args.records(&url, missing).await?) } else { None };
        let (queues, args) = (BTreeMap::new(), args.clone());
        let mut spread = Self { weights, by, records, queues, args, missing };
        let names: Vec<String> = spread.weights.queues().map(str::to_owned).collect();
        for name in names {
            let queue = spread.open(&name).await?;
            spread.queues.insert(name, queue);
        }
        Ok(Some(spread))
    }

    /// See [`check_keys`].
    ///
    /// # Errors
    /// Names the job and the remedy.
    pub(crate) fn check(&self, jobs: &[Job]) -> Result<()> {
        check_keys(self.by, jobs)
    }

    async fn open(&self, name: &str) -> Result<Queue> {
        let url = self.args.url()?.with_queue(name)?;
        let opened = self.args.open_or_make(&url, self.missing).await;
        opened.with_context(|| format!("queue {name}"))
    }

    /// Publishes each job where it belongs, and notes in its place of `told`, as soon as its queue has
    /// taken it, under which id it is known.
    ///
    /// # Errors
    /// When a queue is full or does not answer; what went to others is there then, and noted.
    pub(crate) async fn publish(
        &self,
        jobs: Vec<Job>,
        told: &mut [Option<Published>],
    ) -> Result<()> {
        let places = try_join_all(jobs.iter().map(|job| self.place(job))).await?;
        let mut by_queue: BTreeMap<String, Vec<(usize, Job)>> = BTreeMap::new();
        for (nth, (job, place)) in jobs.into_iter().zip(places).enumerate() {
            match place {
                Place::Queue { name, before } => {
                    if before && self.weights.share(&name) <= 0.0 {
                        let id = &job.id;
                        note(format!("{id} goes to {name} as before, which has no weight"));
                    }
                    by_queue.entry(name).or_default().push((nth, job));
                }
                Place::Answered => told[nth] = Some(Published { id: job.id, duplicate: true }),
            }
        }
        for (name, jobs) in by_queue {
            let (nths, jobs): (Vec<usize>, Vec<Job>) = jobs.into_iter().unzip();
            let queue = match self.queues.get(&name) {
                Some(queue) => Queue::clone(queue),
                // Written down under other weights.
                None => self.open(&name).await?,
            };
            let published = queue.publish(jobs).await.with_context(|| format!("queue {name}"))?;
            nths.into_iter().zip(published).for_each(|(nth, one)| told[nth] = Some(one));
        }
        Ok(())
    }

    async fn place(&self, job: &Job) -> Result<Place> {
        let chosen = self.weights.choose(self.by.of(job));
        match &self.records {
            None => Ok(Place::Queue { name: chosen.to_owned(), before: false }),
            Some(records) => Ok(place(records, job, chosen, Timestamp::now()).await?),
        }
    }
}

/// Refuses jobs whose keys would hold in one queue and be new in another: a queue knows the keys of its
/// own jobs alone, so jobs of one key must go to one queue.
///
/// # Errors
/// Names the job and the remedy.
pub(crate) fn check_keys(by: By, jobs: &[Job]) -> Result<()> {
    let keyed = jobs.iter().find(|job| by != By::Key && job.headers.key.is_some());
    let Some(job) = keyed else { return Ok(()) };
    Err(usage(format!(
        "--split-by: job {} has a key, which would be known in one queue and new in another; use \
         --split-by key, or leave the key out",
        job.id
    )))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ebb_queue::faulty::{Faults, Faulty};
    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Behavior, OpenOptions};

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        queue: QueueArgs,
    }

    #[tokio::test]
    async fn what_a_queue_has_taken_is_known_though_another_refuses() {
        use clap::Parser;

        let faults = |fail_before| Faults { fail_before, ..Faults::NONE };
        let queue = |fail_before| -> Queue {
            let memory = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
            Arc::new(Faulty::new(Arc::new(memory), faults(fail_before), 7))
        };
        let queues = [("a", 0.0), ("b", 1.0)].map(|(name, fails)| (name.to_owned(), queue(fails)));
        let weights = ["a=1", "b=1"].map(|share| share.parse().unwrap());
        let spread = Spread {
            weights: Weights::new(weights).unwrap(),
            by: By::Id,
            records: None,
            queues: queues.into(),
            args: Cli::parse_from(["ebb"]).queue,
            missing: Missing::Refuse,
        };
        let jobs: Vec<_> = (0..50).map(|_| Job::new("{}", Timestamp::now())).collect();
        let is_taken = |job: &Job| spread.weights.choose(By::Id.of(job)) == "a";
        let expected: Vec<_> = jobs.iter().map(is_taken).collect();
        assert!(expected.contains(&true) && expected.contains(&false), "{expected:?}");
        let mut told = vec![None; jobs.len()];
        spread.publish(jobs, &mut told).await.unwrap_err();
        assert_eq!(told.iter().map(Option::is_some).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_key_and_a_split_by_something_else_are_refused_together() {
        let mut jobs = [(); 2].map(|()| Job::new("{}", Timestamp::now()));
        for by in [By::Id, By::Tenant, By::Key] {
            assert!(check_keys(by, &jobs).is_ok());
        }
        jobs[1].headers.key = Some("order-7".to_owned());
        assert!(check_keys(By::Key, &jobs).is_ok());
        for by in [By::Id, By::Tenant] {
            let error = check_keys(by, &jobs).unwrap_err().to_string();
            assert!(error.contains("--split-by key") && error.contains(jobs[1].id.as_str()));
        }
    }
}
