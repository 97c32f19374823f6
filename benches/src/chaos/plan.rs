//! What is to happen in a chaos run, all of it from the seed. Pure.

use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::broker::Victim;

/// A chaos run before it starts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// In order of publication.
    pub(super) jobs: Vec<PlannedJob>,
    /// In order of time.
    pub(super) kills: Vec<Kill>,
    /// In order of time.
    pub(super) restarts: Vec<Restart>,
}

/// A job, and how it shall end if nothing worse happens to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlannedJob {
    /// Its id.
    pub(super) id: String,
    /// The text that stands in the result of this job and of no other.
    pub(super) text: String,
    /// What is sent.
    pub(super) body: Bytes,
    /// How it shall end.
    pub(super) fate: Fate,
}

/// How a job shall end if nothing worse happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// With its own text as the result.
    Fine,
    /// In the dead letters: it fails alone.
    Fails,
    /// In the dead letters: it fails every batch it is in.
    Poisons,
    /// In the dead letters: its body is no request.
    Garbled,
}

/// A kill -9 of a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Kill {
    /// Not before so many jobs have ended.
    pub(super) after: usize,
    /// And this much later, to hit any stage of the work.
    pub(super) wait: Duration,
    /// Whom it hits.
    pub(super) target: Target,
}

/// Whom a kill hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// A worker that says it holds jobs.
    Holding,
    /// Any worker.
    Any,
    /// A worker that has just been started and may not have opened the queue yet.
    Starting,
}

/// A kill -9 of a broker, which comes back with the same data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Restart {
    /// Not before so many jobs have ended.
    pub(super) after: usize,
    /// And this much later, to hit any stage of the work.
    pub(super) wait: Duration,
    /// It stays dead for so long.
    pub(super) down: Duration,
    /// Which broker it hits.
    pub(super) victim: Victim,
}

/// What a plan is drawn from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Jobs in all.
    pub(super) n_jobs: usize,
    /// Kills in all.
    pub(super) n_kills: usize,
    /// Restarts in all.
    pub(super) n_restarts: usize,
    /// The share of jobs that cannot succeed.
    pub(super) poison: f64,
    /// No job takes longer.
    pub(super) max_job_ms: u64,
}

/// The fates of jobs that cannot succeed.
const BAD: [Fate; 3] = [Fate::Fails, Fate::Poisons, Fate::Garbled];

/// Jobs that must be left when the last kill comes, so that it still hits something.
const TAIL: f64 = 0.95;

impl Plan {
    /// Draws a plan.
    pub(super) fn draw(sizes: Sizes, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let fates = fates(sizes, &mut rng);
        let jobs = fates.into_iter().enumerate();
        let jobs = jobs.map(|(n, fate)| PlannedJob::draw(n, fate, sizes, seed, &mut rng)).collect();
        let last = (sizes.n_jobs as f64 * TAIL) as usize;
        let mut kills: Vec<Kill> = (0..sizes.n_kills).map(|_| Kill::draw(last, &mut rng)).collect();
        kills.sort_by_key(|kill| kill.after);
        // Drawn last: with restarts or without, the jobs and the kills are the same.
        let restarts = (0..sizes.n_restarts)
            .map(|n| Restart::draw(n, sizes.n_restarts, last, &mut rng))
            .collect();
        Self { jobs, kills, restarts }
    }
}

/// A fate for each job: of the bad ones each kind, and at least one.
fn fates(sizes: Sizes, rng: &mut StdRng) -> Vec<Fate> {
    let mut fates = vec![Fate::Fine; sizes.n_jobs];
    if sizes.poison == 0.0 {
        return fates;
    }
    let n_bad = (sizes.n_jobs as f64 * sizes.poison).round() as usize;
    let n_bad = n_bad.max(BAD.len()).min(sizes.n_jobs);
    let places = rand::seq::index::sample(rng, sizes.n_jobs, n_bad);
    places.into_iter().zip(BAD.into_iter().cycle()).for_each(|(place, bad)| fates[place] = bad);
    fates
}

impl PlannedJob {
    fn draw(n: usize, fate: Fate, sizes: Sizes, seed: u64, rng: &mut StdRng) -> Self {
        let text = format!("chaos {seed} job {n}");
        let sleep_ms = rng.random_range(0..=sizes.max_job_ms);
        let request = json!({
            "input": text,
            "sleep_ms": sleep_ms,
            "fail": fate == Fate::Fails,
            "poison": fate == Fate::Poisons,
        });
        let body = match fate {
            Fate::Garbled => Bytes::from(format!("{{\"input\": \"{text}")),
            Fate::Fine | Fate::Fails | Fate::Poisons => Bytes::from(request.to_string()),
        };
        Self { id: format!("chaos-{seed}-{n}"), text, body, fate }
    }
}

impl Kill {
    fn draw(last: usize, rng: &mut StdRng) -> Self {
        let target = match rng.random_range(0..10) {
            0..6 => Target::Holding,
            6..8 => Target::Any,
            _ => Target::Starting,
        };
        let wait = Duration::from_micros(rng.random_range(0..80_000));
        Self { after: rng.random_range(0..=last), wait, target }
    }
}

impl Restart {
    /// The `n`th of `n_all`, each in its own share of the run: it takes a while to recover.
    fn draw(n: usize, n_all: usize, last: usize, rng: &mut StdRng) -> Self {
        let share = (n as f64 + rng.random_range(0.0..1.0)) / n_all as f64;
        Self {
            after: (last as f64 * share) as usize,
            wait: Duration::from_micros(rng.random_range(0..80_000)),
            down: Duration::from_millis(rng.random_range(0..1_500)),
            // The answers are the workers' last step, and their store dies as well as the broker.
            victim: if rng.random_bool(0.3) { Victim::Results } else { Victim::Jobs },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes =
        Sizes { n_jobs: 2_000, n_kills: 50, n_restarts: 10, poison: 0.02, max_job_ms: 4 };

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!(Plan::draw(SIZES, 7), Plan::draw(SIZES, 7));
        assert_ne!(Plan::draw(SIZES, 7), Plan::draw(SIZES, 8));
    }

    #[test]
    fn restarts_are_a_matter_of_the_seed_alone_and_change_nothing_else() {
        let plan = Plan::draw(SIZES, 7);
        assert_eq!(plan.restarts, Plan::draw(SIZES, 7).restarts);
        assert_ne!(plan.restarts, Plan::draw(SIZES, 8).restarts);
        let calm = Plan::draw(Sizes { n_restarts: 0, ..SIZES }, 7);
        assert_eq!(calm, Plan { restarts: Vec::new(), ..plan });
    }

    #[test]
    fn restarts_are_spread_over_the_run_and_hit_either_broker() {
        let restarts = Plan::draw(SIZES, 1).restarts;
        for (n, restart) in restarts.iter().enumerate() {
            let share = restart.after as f64 / (SIZES.n_jobs as f64 * TAIL);
            assert!(
                (n as f64 / 10.0 - 0.01..=(n + 1) as f64 / 10.0).contains(&share),
                "{restart:?}"
            );
        }
        for victim in [Victim::Jobs, Victim::Results] {
            assert!(restarts.iter().any(|restart| restart.victim == victim), "{victim:?}");
        }
    }

    #[test]
    fn all_kinds_of_fate_and_target_are_drawn_and_the_kills_come_in_order() {
        let plan = Plan::draw(SIZES, 1);
        assert_eq!(plan.jobs.len(), SIZES.n_jobs);
        for fate in [Fate::Fine, Fate::Fails, Fate::Poisons, Fate::Garbled] {
            assert!(plan.jobs.iter().any(|job| job.fate == fate), "{fate:?}");
        }
        for target in [Target::Holding, Target::Any, Target::Starting] {
            assert!(plan.kills.iter().any(|kill| kill.target == target), "{target:?}");
        }
        assert!(plan.kills.is_sorted_by_key(|kill| kill.after));
        assert!(plan.kills.iter().all(|kill| kill.after < SIZES.n_jobs));
    }

    #[test]
    fn as_many_jobs_are_bad_as_asked_and_never_none_unless_none_is_asked() {
        for (n_jobs, poison, expected) in
            [(2_000, 0.02, 40), (100, 0.01, 3), (2, 0.5, 2), (9, 0.0, 0)]
        {
            let plan = Plan::draw(Sizes { n_jobs, poison, ..SIZES }, 1);
            let n_bad = plan.jobs.iter().filter(|job| job.fate != Fate::Fine).count();
            assert_eq!(n_bad, expected, "{n_jobs} jobs, {poison}");
        }
    }

    #[test]
    fn a_body_is_a_request_unless_it_is_garbled_and_carries_its_text() {
        for job in Plan::draw(SIZES, 3).jobs {
            let request = serde_json::from_slice::<serde_json::Value>(&job.body);
            assert_eq!(request.is_err(), job.fate == Fate::Garbled, "{job:?}");
            assert!(String::from_utf8_lossy(&job.body).contains(&job.text), "{job:?}");
        }
    }
}
