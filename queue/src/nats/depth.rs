//! How much waits and runs, from the subjects of the jobs and the notes of their holders.

use std::collections::HashSet;

use futures::future::try_join_all;

use super::NatsQueue;
use super::later::Survey;
use super::leases::Claims;
use super::names::{LANES, Lane, Place, tick_now};
use crate::{Depth, Result, Timestamp, header};

/// Expired jobs that a look examines one by one for an answer that is there.
const EXAMINED: u64 = 32;

impl NatsQueue {
    pub(super) async fn count(&self) -> Result<Depth> {
        let shared = &*self.shared;
        let (survey, claims, dead) = tokio::try_join!(
            self.survey(),
            Claims::load(&shared.api, &shared.names),
            shared.api.stream(&shared.names.dead),
        )?;
        let now = self.now();
        let mut depth = Depth::empty(now);
        let (tick, server_now) = (tick_now(now), survey.server_now);
        let live = || claims.live(server_now);
        depth.in_flight = (live().count() as u64).min(survey.total);
        // Whoever holds a job may still finish it past its deadline.
        let late = live().filter(|claim| claim.deadline.is_some_and(|at| at <= tick));
        let mut expired = 0;
        for (place, _, n_jobs) in &survey.places {
            match *place {
                Place::Lane(_, Some(deadline)) | Place::Later(_, Some(deadline))
                    if deadline <= tick =>
                {
                    expired += n_jobs;
                }
                Place::Later(due, _) if due > now.as_millisecond() => {
                    depth.delayed += n_jobs;
                    let due = Timestamp::from_millisecond(due).unwrap_or(Timestamp::MAX);
                    depth.next_due = Some(depth.next_due.map_or(due, |known| known.min(due)));
                }
                Place::Lane(..) | Place::Later(..) => {}
            }
        }
        let expired = expired.saturating_sub(late.count() as u64);
        let rest = survey.total.saturating_sub(depth.in_flight + expired);
        depth.ready = rest.saturating_sub(depth.delayed);
        let answered = if expired > 0 { self.n_answered(&survey, &claims, now).await? } else { 0 };
        depth.dead = dead.map_or(0, |dead| dead.state.messages) + expired.saturating_sub(answered);
        for claim in live() {
            if claim.deadline.is_none_or(|at| i128::from(at) * 100 > ends_at(claim.until)) {
                let until = now + claim.until.duration_since(server_now);
                depth.next_due = Some(depth.next_due.map_or(until, |known| known.min(until)));
            }
        }
        if depth.ready > 0 {
            depth.oldest_ready = self.oldest(&survey, &claims, now).await?;
        }
        Ok(depth)
    }

    /// The expired jobs that nobody holds: where they lie, oldest deadline first.
    pub(super) fn expired_subjects(survey: &Survey, tick: u64) -> Vec<&str> {
        let mut subjects: Vec<_> = survey
            .places
            .iter()
            .filter_map(|(place, subject, _)| match *place {
                Place::Lane(_, deadline) | Place::Later(_, deadline) => {
                    Some((deadline.filter(|at| *at <= tick)?, subject.as_str()))
                }
            })
            .collect();
        subjects.sort_unstable();
        subjects.into_iter().map(|(_, subject)| subject).collect()
    }

    /// How many of the expired jobs are done in truth: their worker was lost before the ack.
    async fn n_answered(&self, survey: &Survey, claims: &Claims, now: Timestamp) -> Result<u64> {
        let shared = &*self.shared;
        let held: HashSet<_> = claims.live(survey.server_now).map(|claim| claim.seq).collect();
        let (mut n_examined, mut n_answered) = (0, 0);
        for subject in Self::expired_subjects(survey, tick_now(now)) {
            let mut seq = 1;
            while let Some(kept) = shared.api.next(&shared.names.jobs, seq, subject).await? {
                seq = kept.seq + 1;
                if held.contains(&kept.seq) {
                    continue;
                }
                let answer = self.answer(&self.entry_of(&kept).0.job.id).await?;
                n_answered += u64::from(answer.is_some_and(|result| result.outcome.is_completed()));
                n_examined += 1;
                if n_examined >= EXAMINED {
                    return Ok(n_answered);
                }
            }
        }
        Ok(n_answered)
    }

    /// When the oldest ready job was published.
    async fn oldest(
        &self,
        survey: &Survey,
        claims: &Claims,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let filled = LANES.into_iter().filter(|lane| {
            survey
                .places
                .iter()
                .any(|(place, ..)| matches!(place, Place::Lane(at, _) if at == lane))
        });
        let lanes = try_join_all(filled.map(|lane| self.first_of(lane, now)));
        let lapsed = claims.lapsed(survey.server_now).map(|claim| self.published_at(claim.seq));
        let due = survey.places.iter().find(
            |(place, ..)| matches!(place, Place::Later(due, _) if *due <= now.as_millisecond()),
        );
        let due = try_join_all(due.map(|(_, subject, _)| self.first_on(1, subject, now)));
        let (lanes, lapsed, due) = tokio::try_join!(lanes, try_join_all(lapsed), due)?;
        Ok(lanes.into_iter().chain(lapsed).chain(due).flatten().min())
    }

    /// When the first job of a lane was published that nobody was given yet.
    async fn first_of(&self, lane: Lane, now: Timestamp) -> Result<Option<Timestamp>> {
        let shared = &*self.shared;
        let names = &shared.names;
        let Some(info) = shared.api.consumer(&names.jobs, lane.consumer()).await? else {
            return Ok(None);
        };
        let from = info.delivered.stream_seq + 1;
        let filters = names.filters(lane);
        let firsts = filters.iter().map(|filter| self.first_on(from, filter, now));
        Ok(try_join_all(firsts).await?.into_iter().flatten().min())
    }

    async fn first_on(
        &self,
        from: u64,
        subject: &str,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let kept = self.shared.api.next(&self.shared.names.jobs, from, subject).await?;
        let job = kept.map(|kept| self.entry_of(&kept).0.job);
        Ok(job.filter(|job| !job.expired(now)).map(|job| job.enqueued_at))
    }

    async fn published_at(&self, seq: u64) -> Result<Option<Timestamp>> {
        let kept = self.shared.api.at(&self.shared.names.jobs, seq).await?;
        let said = |kept: super::api::Kept| {
            let header = kept.headers.get_last(header::ENQUEUED_AT);
            header.and_then(|value| value.as_str().parse().ok()).unwrap_or(kept.at)
        };
        Ok(kept.map(said))
    }
}

fn ends_at(at: Timestamp) -> i128 {
    i128::from(at.as_millisecond())
}
