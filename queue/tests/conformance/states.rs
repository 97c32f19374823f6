//! The states of a job as one table, walked row by row: `delayed -> ready -> leased -> done | dead`.

use std::time::Duration;

use ebb_queue::{Delivery, Queue, Settled};
use futures::TryStreamExt;

use crate::fixture::{Fixture, extend, publish, settle, words};

use State::{Dead, Delayed, Done, Leased, Ready, Unknown};
use Step::{
    Ack, DeadlinePasses, DelayEnds, Extend, LeaseEnds, Memory, Publish, PublishLater, Purge,
    PurgeWaiting, Receive, Redrive, Reject, Release, Retry, RetryLater,
};

/// Where a job can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Never seen, or forgotten.
    Unknown,
    /// Waits for a moment to come.
    Delayed,
    /// Waits for a worker.
    Ready,
    /// On loan.
    Leased,
    /// Answered; only its id and key are remembered.
    Done,
    /// Among the dead letters.
    Dead,
}

impl State {
    /// What the depth of a queue says where one job is so.
    fn counts(self) -> [u64; 4] {
        let is = |state| u64::from(self == state);
        [is(Ready), is(Leased), is(Delayed), is(Dead)]
    }
}

/// What can happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Publish,
    PublishLater,
    DelayEnds,
    Receive,
    Extend,
    Ack,
    Retry,
    RetryLater,
    Release,
    Reject,
    LeaseEnds,
    DeadlinePasses,
    /// The time for which a job that was done is remembered is over.
    Memory,
    Redrive,
    Purge,
    PurgeWaiting,
}

/// What leads from where to where. What is not here changes nothing.
const TABLE: [(State, Step, State); 27] = [
    (Unknown, Publish, Ready),
    (Unknown, PublishLater, Delayed),
    (Delayed, DelayEnds, Ready),
    (Delayed, DeadlinePasses, Dead),
    (Ready, Receive, Leased),
    (Ready, DeadlinePasses, Dead),
    (Leased, Extend, Leased),
    (Leased, Ack, Done),
    (Leased, Retry, Ready),
    (Leased, RetryLater, Delayed),
    (Leased, Release, Ready),
    (Leased, Reject, Dead),
    (Leased, LeaseEnds, Ready),
    (Dead, Redrive, Ready),
    (Dead, Purge, Unknown),
    (Done, Memory, Unknown),
    (Delayed, PurgeWaiting, Unknown),
    (Ready, PurgeWaiting, Unknown),
    // A job that is known is not published again.
    (Delayed, Publish, Delayed),
    (Ready, Publish, Ready),
    (Leased, Publish, Leased),
    (Done, Publish, Done),
    (Dead, Publish, Dead),
    // Dead letters are the operator's: nothing else is touched.
    (Ready, Purge, Ready),
    (Leased, Redrive, Leased),
    // And what waits is all that the other purge touches.
    (Leased, PurgeWaiting, Leased),
    (Dead, PurgeWaiting, Dead),
];

pub async fn a_job_that_is_not_known_goes_where_the_table_says(fixture: &dyn Fixture) {
    every_row_holds(fixture, Unknown).await;
}

pub async fn a_delayed_job_goes_where_the_table_says(fixture: &dyn Fixture) {
    every_row_holds(fixture, Delayed).await;
}

pub async fn a_ready_job_goes_where_the_table_says(fixture: &dyn Fixture) {
    every_row_holds(fixture, Ready).await;
}

pub async fn a_leased_job_goes_where_the_table_says(fixture: &dyn Fixture) {
    every_row_holds(fixture, Leased).await;
}

pub async fn a_job_that_is_done_goes_where_the_table_says(fixture: &dyn Fixture) {
    every_row_holds(fixture, Done).await;
}

pub async fn a_dead_job_goes_where_the_table_says(fixture: &dyn Fixture) {
    every_row_holds(fixture, Dead).await;
}

async fn every_row_holds(fixture: &dyn Fixture, start: State) {
    for (from, step, to) in TABLE.into_iter().filter(|(from, ..)| *from == start) {
        let mut walk = Walk { fixture, queue: fixture.fresh().await, delivery: None };
        for step in way_to(from) {
            walk.take(step).await;
        }
        walk.take(step).await;
        let mut found = walk.state(to).await;
        // A server forgets when it next looks, and that may be late on a busy machine.
        for _ in 0..20 {
            if step != Memory || found == to {
                break;
            }
            fixture.pass(Duration::from_millis(500)).await;
            found = walk.state(to).await;
        }
        assert_eq!(found, to, "{from:?} and {step:?}");
    }
}

/// The shortest way from an empty queue, by the table itself.
fn way_to(state: State) -> Vec<Step> {
    let mut ways = vec![(Unknown, Vec::new())];
    for n in 0.. {
        let (at, way) = ways[n].clone();
        if at == state {
            return way;
        }
        for (_, step, to) in TABLE.iter().filter(|(from, ..)| *from == at) {
            ways.push((*to, [way.clone(), vec![*step]].concat()));
        }
    }
    unreachable!("the table leads everywhere")
}

struct Walk<'a> {
    fixture: &'a dyn Fixture,
    queue: Queue,
    delivery: Option<Delivery>,
}

impl Walk<'_> {
    async fn take(&mut self, step: Step) {
        // The lease is longer than a delay, and the time to live longer than both together.
        let (delay, ttl) = (self.fixture.short(), self.fixture.lease() * 7 / 4);
        let (delay_words, ttl_words) = (words(delay), words(ttl));
        let headers = [("ebb-ttl", &*ttl_words), ("ebb-delay", &*delay_words)];
        match step {
            Publish => drop(publish(&self.queue, self.fixture.job("a", &headers[..1])).await),
            PublishLater => drop(publish(&self.queue, self.fixture.job("a", &headers)).await),
            DelayEnds => self.fixture.pass(delay).await,
            LeaseEnds => self.fixture.pass(self.fixture.lease()).await,
            DeadlinePasses => self.fixture.pass(ttl).await,
            Memory => self.fixture.pass(self.fixture.behavior().key_ttl).await,
            Receive => self.delivery = Some(self.fixture.take_one(&self.queue).await),
            Extend => {
                let delivery = self.delivery.as_ref().expect("it is leased");
                assert_eq!(extend(&self.queue, delivery).await, Settled::Held);
            }
            Ack | Retry | RetryLater | Release | Reject => {
                let delivery = self.delivery.take().expect("it is leased");
                let settlement = match step {
                    Ack => delivery.ack(),
                    Retry => delivery.retry(Duration::ZERO, "again"),
                    RetryLater => delivery.retry(delay, "later"),
                    Release => delivery.release(),
                    _ => delivery.reject("never"),
                };
                assert_eq!(settle(&self.queue, settlement).await, Settled::Held);
            }
            Redrive => drop(self.queue.redrive(None).await.unwrap()),
            Purge => drop(self.queue.purge(None).await.unwrap()),
            PurgeWaiting => {
                let steps = self.queue.purge_waiting().await.unwrap();
                steps.try_for_each(async |_| Ok(())).await.unwrap();
            }
        }
    }

    async fn state(&self, expected: State) -> State {
        let fits = |counts: &[u64; 4]| *counts == expected.counts();
        match self.fixture.when(async || self.fixture.counts(&self.queue).await, fits).await {
            [1, 0, 0, 0] => Ready,
            [0, 1, 0, 0] => Leased,
            [0, 0, 1, 0] => Delayed,
            [0, 0, 0, 1] => Dead,
            [0, 0, 0, 0] => self.remembered().await,
            counts => panic!("one job is in one state: {counts:?}"),
        }
    }

    /// Tells a job that was done from one that is not known, by publishing it: the last look.
    async fn remembered(&self) -> State {
        let published = publish(&self.queue, self.fixture.job("a", &[])).await;
        if published.duplicate { Done } else { Unknown }
    }
}
