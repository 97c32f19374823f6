//! What a kind of broker cannot promise: said by itself, and taken at its word here.

mod amqp;
mod nats;
mod redis;

use std::collections::BTreeSet;

use crate::on;

pub use amqp::LIMITS as AMQP;
pub use nats::{LIMITS as NATS, LIMITS_OF_THE_OLDEST as NATS_OLDEST};
pub use redis::LIMITS as REDIS;

/// What a broker cannot promise, in the words of its [`ebb_queue::Limit`]s.
#[derive(Debug)]
pub struct Limits {
    /// Tests that are not run, each with the limit that says why.
    pub not_run: &'static [(&'static str, &'static str)],
    /// Limits that no test here can meet.
    pub not_testable: &'static [&'static str],
}

impl Limits {
    pub const NONE: Self = Self { not_run: &[], not_testable: &[] };

    /// The limit for which this test is not run.
    pub fn of(&self, test: &str) -> Option<&'static str> {
        self.not_run.iter().find(|(listed, _)| *listed == test).map(|(_, limit)| *limit)
    }
}

/// Each limit that the suite grants is one that the broker owns to, and the other way round.
fn check(told: &[ebb_queue::Limit], limits: &Limits) {
    let told: BTreeSet<_> = told.iter().map(|limit| limit.promise).collect();
    let granted = limits.not_run.iter().map(|(_, limit)| *limit);
    let granted: BTreeSet<_> = granted.chain(limits.not_testable.iter().copied()).collect();
    assert_eq!(granted, told, "granted here, and told by the broker");
    for (test, _) in limits.not_run {
        assert!(crate::PROMISES.iter().any(|(name, _)| name == test), "{test} is no test");
    }
}

// A macro for the same reason as in the main file.
macro_rules! limits_of {
    ($($broker:ident: $limits:expr;)+) => {
        $(#[test]
        fn $broker() {
            on::$broker("limits", |fixture| {
                Box::pin(async {
                    check(fixture.fresh().await.info().await.unwrap().limits, &$limits);
                })
            });
        })+
    };
}

limits_of! {
    memory: Limits::NONE;
    sqlite: Limits::NONE;
    redis: REDIS;
    nats: NATS;
    nats_oldest: NATS_OLDEST;
    amqp: AMQP;
}
