//! What the two brokers of a walk are asked, at random.

use ebb_queue::Elsewhere;
use proptest::prelude::*;

use super::NAMES;

/// One operation; positions are taken modulo what there is.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Publish(Vec<Sketch>),
    Receive { worker: usize, max: usize },
    Settle(Vec<(usize, Way)>),
    SettleAgain(usize),
    Extend(Vec<usize>),
    Pass { millis: i64 },
    Redrive(Option<Vec<usize>>),
    Purge(Option<Vec<usize>>),
    PurgeWaiting,
    PurgeOld(Elsewhere),
    Cancel(usize),
    GoOn(usize),
    Put { name: usize, attempt: u32, completed: bool },
    Chunk { name: usize, attempt: u32, seq: u64 },
    Report { worker: usize },
}

/// A job to publish.
#[derive(Debug, Clone)]
pub(super) struct Sketch {
    pub(super) name: usize,
    pub(super) key: Option<usize>,
    pub(super) priority: usize,
    pub(super) delay: Option<u64>,
    pub(super) ttl: Option<u64>,
    pub(super) cost: Option<u32>,
    pub(super) wants_reply: bool,
    pub(super) is_elsewhere: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Ack,
    Retry(u64),
    Release,
    Reject,
}

/// Any of them.
pub(super) fn step() -> impl Strategy<Value = Step> {
    let ids = || prop::option::of(prop::collection::vec(0..NAMES.len(), 0..3));
    let settle = || prop::collection::vec((0..8usize, way()), 1..3);
    prop_oneof![
        4 => prop::collection::vec(sketch(), 0..4).prop_map(Step::Publish),
        4 => (0..2usize, 1..4usize).prop_map(|(worker, max)| Step::Receive { worker, max }),
        4 => settle().prop_map(Step::Settle),
        1 => (0..8usize).prop_map(Step::SettleAgain),
        2 => prop::collection::vec(0..8usize, 1..3).prop_map(Step::Extend),
        3 => (0..40i64).prop_map(|quarters| Step::Pass { millis: quarters * 250 }),
        1 => ids().prop_map(Step::Redrive),
        1 => ids().prop_map(Step::Purge),
        1 => Just(Step::PurgeWaiting),
        1 => prop_oneof![Just(Elsewhere::Leave), Just(Elsewhere::Take)].prop_map(Step::PurgeOld),
        2 => (0..NAMES.len()).prop_map(Step::Cancel),
        1 => (0..NAMES.len()).prop_map(Step::GoOn),
        1 => (0..NAMES.len(), 1..4u32, any::<bool>())
            .prop_map(|(name, attempt, completed)| Step::Put { name, attempt, completed }),
        1 => (0..NAMES.len(), 1..4u32, 0..3u64)
            .prop_map(|(name, attempt, seq)| Step::Chunk { name, attempt, seq }),
        1 => (0..2usize).prop_map(|worker| Step::Report { worker }),
    ]
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let key = prop::option::weighted(0.3, 0..3usize);
    let delay = prop::option::weighted(0.3, 0..12u64);
    let ttl = prop::option::weighted(0.3, 0..20u64);
    let cost = prop::option::of(0..9u32);
    let more = (prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    (0..NAMES.len(), key, 0..3usize, delay, ttl, cost, more).prop_map(
        |(name, key, priority, delay, ttl, cost, (wants_reply, is_elsewhere))| Sketch {
            name,
            key,
            priority,
            delay,
            ttl,
            cost,
            wants_reply,
            is_elsewhere,
        },
    )
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        Just(Way::Ack),
        (0..12u64).prop_map(Way::Retry),
        Just(Way::Release),
        Just(Way::Reject),
    ]
}
