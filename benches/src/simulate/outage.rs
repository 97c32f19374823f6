//! A time in which KEDA gets no answer. No clock in here; the moment comes from the seed.

use std::time::Duration;

use ebb::autoscaler::keda::Reconnect;
use ebb::autoscaler::object::Look;

use super::pods::hash;
use super::trace::Trace;

/// Who is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Away {
    /// What the scaler asks: GetMetricSpec is answered and streams stay open, the rest fails
    Broker,
    /// The scaler itself: nothing is answered, and streams are opened again with KEDA's backoff
    Scaler,
}

/// One outage in a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outage {
    away: Away,
    from: Duration,
    until: Duration,
    /// When a stream is open again.
    streams: Duration,
}

impl Outage {
    /// One of this length at a moment between the first job and the last.
    pub(crate) fn draw(away: Away, length: Duration, seed: u64, trace: &Trace) -> Self {
        let first = trace.arrivals.first().map_or(0.0, |arrival| arrival.at);
        let span = (trace.end() - first - length.as_secs_f64()).max(0.0);
        let share = (hash(seed ^ 2) >> 11) as f64 / (1u64 << 53) as f64;
        let from = Duration::from_secs((first + share * span) as u64);
        let until = from + length;
        let mut streams = until;
        if away == Away::Scaler {
            let mut reconnect = Reconnect::default();
            streams = from;
            while streams < until {
                streams += reconnect.after_error();
            }
        }
        Self { away, from, until, streams }
    }

    /// Whether nobody hears a push.
    pub(crate) fn is_mute(self, now: Duration) -> bool {
        now >= self.from && now < self.streams
    }

    /// Whether KEDA's streams end with it, so that it opens others.
    pub(crate) fn closes_streams(self) -> bool {
        self.away == Away::Scaler
    }

    /// Whether the scaler sees nothing.
    pub(crate) fn is_blind(self, now: Duration) -> bool {
        now >= self.from && now < self.until
    }

    /// What is left of an answer.
    pub(crate) fn dim(self, now: Duration, look: Look) -> Look {
        match (self.is_blind(now), self.away, look) {
            (false, _, look) => look,
            (true, Away::Broker, Look::Answered { target, .. } | Look::Failed { target }) => {
                Look::Failed { target }
            }
            (true, _, _) => Look::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::trace::Kind;

    const LOOK: Look = Look::Answered { value: 3.0, target: 8.0, active: true };

    fn outage(away: Away, seed: u64) -> Outage {
        let trace = Trace::make(Kind::Steady, 1);
        Outage::draw(away, Duration::from_secs(100), seed, &trace)
    }

    #[test]
    fn it_lies_between_the_first_job_and_the_last_and_the_seed_says_where() {
        let trace = Trace::make(Kind::Steady, 1);
        let (first, last) = (trace.arrivals[0].at, trace.end());
        let mut froms = Vec::new();
        for seed in 0..50 {
            let outage = outage(Away::Broker, seed);
            assert_eq!(outage.until - outage.from, Duration::from_secs(100));
            assert!(outage.from.as_secs_f64() >= first - 1.0, "{outage:?}");
            assert!(outage.until.as_secs_f64() <= last + 1.0, "{outage:?}");
            froms.push(outage.from);
        }
        froms.sort_unstable();
        froms.dedup();
        assert!(froms.len() > 40, "{froms:?}");
    }

    #[test]
    fn a_scaler_without_its_broker_still_knows_the_target_and_keeps_its_streams() {
        let outage = outage(Away::Broker, 1);
        assert_eq!(outage.dim(outage.from, LOOK), Look::Failed { target: 8.0 });
        assert_eq!(outage.dim(outage.until, LOOK), LOOK);
        assert!(outage.is_mute(outage.from) && !outage.is_mute(outage.until));
    }

    #[test]
    fn a_scaler_that_is_gone_says_nothing_and_its_streams_come_back_later() {
        let outage = outage(Away::Scaler, 1);
        assert_eq!(outage.dim(outage.from, LOOK), Look::Silent);
        assert_eq!(outage.dim(outage.until, LOOK), LOOK);
        // KEDA tries after 2, 6, 14, 30, 62 and 122 s.
        assert_eq!(outage.streams - outage.from, Duration::from_secs(122));
        assert!(outage.is_mute(outage.until));
    }
}
