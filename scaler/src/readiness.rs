//! How each connection profile is doing. Pure: time comes in as an argument.
//!
//! A profile does not flap: it is down only once nothing is known of any of its queues, and that
//! is when the last look is too old to count. One whose broker says that there is no such queue is
//! not down. The pod itself stays ready whatever its brokers do:
//! taken out of its Service, it could not even tell KEDA its metrics' names and targets, and KEDA
//! would never come to the fallback of the object.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::ErrorKind;
use tokio::time::Instant;

use crate::place::Place;
use crate::profiles::Profiles;
use crate::view::View;

/// How a profile is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No trigger asks for any of its queues; leads to `Waiting`.
    Unwatched,
    /// Nothing is known yet, and it is too early to complain; leads to `Up` and `Down`.
    Waiting,
    /// So many of its queues are known; leads to `Down`.
    Up {
        /// Queues whose last look still counts.
        n_known: usize,
        /// Queues that triggers ask for.
        n_watched: usize,
    },
    /// Nothing is known of any of its queues, and its broker does not answer; leads to `Up`.
    Down(Option<ErrorKind>),
}

/// How each profile of the configuration is doing, by name.
pub(crate) fn standings(
    profiles: &Profiles,
    views: &[(Place, Instant, View)],
    now: Instant,
    max_age: Duration,
) -> BTreeMap<Arc<str>, Standing> {
    let of = |name: &Arc<str>| {
        let own = views.iter().filter(|(place, ..)| place.profile == *name);
        let own: Vec<_> = own.collect();
        let known = own.iter().filter(|(_, _, view)| view.known(now, max_age).is_ok());
        let early = |(_, since, _): &&&(Place, Instant, View)| {
            now.saturating_duration_since(*since) <= max_age
        };
        let is_missing =
            |(_, _, view): &&(Place, Instant, View)| view.failed == Some(ErrorKind::Missing);
        match (own.len(), known.count()) {
            (0, _) => Standing::Unwatched,
            // Who says that there is no such thing is there: a typo in a trigger is no outage.
            (n_watched, 0) if own.iter().any(is_missing) => Standing::Up { n_known: 0, n_watched },
            // One that was just asked for tells nothing of a profile that is down.
            (_, 0) if own.iter().all(|view| early(&view)) => Standing::Waiting,
            (_, 0) => Standing::Down(own.iter().find_map(|(_, _, view)| view.failed)),
            (n_watched, n_known) => Standing::Up { n_known, n_watched },
        }
    };
    profiles
        .by_name
        .values()
        .map(|profile| (Arc::clone(&profile.name), of(&profile.name)))
        .collect()
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unwatched => f.write_str("no trigger asks for it"),
            Self::Waiting => f.write_str("not seen yet"),
            Self::Up { n_known, n_watched } => {
                write!(f, "up, {n_known} of {n_watched} queues known")
            }
            Self::Down(None) => f.write_str("down"),
            Self::Down(Some(kind)) => write!(f, "down ({kind})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ebb_queue::{Depth, ErrorKind, QueueUrl, Source, Timestamp};
    use tokio::time::Instant;

    use super::{Standing, standings};
    use crate::learn::Learned;
    use crate::place::Place;
    use crate::profiles::Profiles;
    use crate::snapshot::Snapshot;
    use crate::view::{Look, View};

    const MAX_AGE: Duration = Duration::from_secs(15);

    fn seen(at: Instant) -> View {
        let depth = Depth::empty(Timestamp::UNIX_EPOCH);
        let snapshot =
            Arc::new(Snapshot { depth, workers: Vec::new(), learned: Learned::default() });
        View { look: Some(Look { snapshot, at, span: None }), ..View::default() }
    }

    #[test]
    fn a_profile_is_down_only_when_nothing_that_is_known_counts_any_more() {
        let start = Instant::now();
        let failed = Some(ErrorKind::Unavailable);
        let missing = Some(ErrorKind::Missing);
        let cases: [(&[View], u64, Standing); 9] = [
            (&[], 0, Standing::Unwatched),
            (&[View::default()], 0, Standing::Waiting),
            (&[View { failed, ..View::default() }], 15, Standing::Waiting),
            (&[View { failed, ..View::default() }], 16, Standing::Down(failed)),
            (&[View { failed, ..seen(start) }], 15, Standing::Up { n_known: 1, n_watched: 1 }),
            (&[View { failed, ..seen(start) }], 16, Standing::Down(failed)),
            (
                &[seen(start), View { failed, ..View::default() }],
                15,
                Standing::Up { n_known: 1, n_watched: 2 },
            ),
            // The broker answers, and nothing that is asked for is there.
            (
                &[View { failed: missing, ..View::default() }],
                16,
                Standing::Up { n_known: 0, n_watched: 1 },
            ),
            (
                &[View { failed: missing, ..seen(start) }],
                16,
                Standing::Up { n_known: 0, n_watched: 1 },
            ),
        ];
        let profiles = Profiles::single(QueueUrl::sqlite("/data/q.db"));
        for (views, after, expected) in cases {
            let place = |n: usize| Place {
                profile: "default".into(),
                source: Source::Queue(format!("q{n}")),
            };
            let views: Vec<_> =
                views.iter().enumerate().map(|(n, view)| (place(n), start, view.clone())).collect();
            let now = start + Duration::from_secs(after);
            let told = standings(&profiles, &views, now, MAX_AGE);
            assert_eq!(told["default"], expected, "{views:?} after {after} s");
        }
    }

    #[test]
    fn a_queue_that_is_first_asked_for_does_not_make_a_profile_that_is_down_wait_again() {
        let profiles = Profiles::single(QueueUrl::sqlite("/data/q.db"));
        let start = Instant::now();
        let now = start + MAX_AGE + Duration::from_secs(1);
        let place =
            |queue: &str| Place { profile: "default".into(), source: Source::Queue(queue.into()) };
        let failed = Some(ErrorKind::Unavailable);
        let long_ago = (place("old"), start, View { failed, ..View::default() });
        let just_begun = (place("new"), now, View::default());
        let told = |views: &[_]| standings(&profiles, views, now, MAX_AGE)["default"].clone();
        assert_eq!(told(&[long_ago.clone(), just_begun.clone()]), Standing::Down(failed));
        assert_eq!(told(&[just_begun.clone(), long_ago]), Standing::Down(failed));
        assert_eq!(told(&[just_begun]), Standing::Waiting);
    }
}
