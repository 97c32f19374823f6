//! How much waits and runs, from the subjects of the jobs and the notes of their holders.

use std::collections::BTreeMap;

use futures::future::try_join_all;

use super::NatsQueue;
use super::api::ConsumerInfo;
use super::awake::{Glance, Looked};
use super::later::Survey;
use super::leases::Claims;
use super::names::{LANES, Lane, Place, moment_of, tick_now};
use super::read::Kept;
use crate::{ByPriority, Depth, Result, Timestamp, header, unread};

/// Jobs that a look examines one by one, since no subject tells: expired ones for an answer that is there,
/// and those whose lease ended for when they were published. Each is read with its body.
const EXAMINED: usize = 32;
/// Those of them that are read at the same time: their bodies may be large.
const AT_ONCE: usize = 8;

/// What one look sees: how much it is, where it lies, and how far the lanes with jobs have come.
type Seen = (Depth, Survey, Vec<(Lane, ConsumerInfo)>);

impl NatsQueue {
    /// How much waits and runs.
    pub(super) async fn count(&self) -> Result<Depth> {
        let is_empty = |(depth, ..): &Seen| depth.ready + depth.in_flight == 0;
        let is_sure = |seen: &Seen| self.shared.replicas == 1 || !is_empty(seen);
        let (once, glance) = (|| self.survey_depth(), || self.glance());
        let at_a_glance = |(_, survey, _): &Seen| survey.glance.clone();
        let awake = &self.shared.awake;
        let looked = awake.look(once, glance, at_a_glance, is_sure).await?;
        let Looked { mut seen, age, waited } = looked;
        seen.0.as_of += age;
        if seen.0.next_due.is_some_and(|due| due <= seen.0.as_of) {
            // When the jobs were counted it was not due yet.
            seen = self.survey_depth().await?;
        }
        let (mut depth, survey, consumers) = seen;
        depth.waited = waited;
        if depth.ready > 0 {
            let (unread, n_more) = self.read_plain(&survey, &consumers).await?;
            let now = depth.as_of;
            unread::count(&mut depth, &unread, n_more, now);
        }
        Ok(depth)
    }

    /// Who leads the jobs, and what changes with whatever comes or goes.
    pub(super) async fn glance(&self) -> Result<Glance> {
        let info = self.shared.api.stream(&self.shared.names.jobs).await?;
        let info = info.ok_or_else(|| self.is_gone())?;
        self.shared.meet_stream(info.created);
        Ok(info.glance())
    }

    /// Sees whether the stream was made anew. Where that cannot be seen it is taken for the same: to ask
    /// again for each message would take as long each time.
    pub(super) async fn meet_again(&self) {
        if let Err(error) = self.glance().await {
            tracing::debug!(%error, "whether the stream was made anew cannot be seen");
        }
    }

    /// The same as if what plain clients published had no headers.
    pub(super) async fn survey_depth(&self) -> Result<Seen> {
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
                    depth.next_delayed = depth.next_delayed.into_iter().chain([due]).min();
                }
                Place::Lane(..) | Place::Later(..) => {}
            }
        }
        let expired = expired.saturating_sub(late.count() as u64);
        let rest = survey.total.saturating_sub(depth.in_flight + expired);
        depth.ready = rest.saturating_sub(depth.delayed);
        let answered = if expired > 0 { self.n_answered(&survey, &claims, now).await? } else { 0 };
        depth.dead = dead.map_or(0, |dead| dead.state.messages) + expired.saturating_sub(answered);
        depth.next_due = depth.next_delayed;
        for claim in live() {
            if claim.deadline.is_none_or(|at| i128::from(at) * 100 > ends_at(claim.until)) {
                let until = now + claim.until.duration_since(server_now);
                depth.next_due = Some(depth.next_due.map_or(until, |known| known.min(until)));
            }
        }
        let mut consumers = Vec::new();
        if depth.ready > 0 {
            consumers = self.consumers(&survey).await?;
            depth.oldest_ready = self.oldest(&survey, &consumers, &claims, now).await?;
            depth.first_deadline = first_deadline(&survey, &claims, now);
        }
        depth.ready_by_priority = Some(by_priority(&consumers, &survey, tick, depth.ready));
        // Nobody reads the jobs to add up what they cost.
        depth.cost = (depth.ready + depth.in_flight == 0).then_some(0.0);
        Ok((depth, survey, consumers))
    }

    /// The lanes with jobs in them, and how far their consumers have come.
    async fn consumers(&self, survey: &Survey) -> Result<Vec<(Lane, ConsumerInfo)>> {
        let shared = &*self.shared;
        let is_filled = |lane: &Lane| {
            let mut places = survey.places.iter();
            places.any(|(place, ..)| matches!(place, Place::Lane(at, _) if at == lane))
        };
        let infos = LANES.into_iter().filter(is_filled).map(async |lane| {
            let info = shared.api.consumer(&shared.names.jobs, lane.consumer()).await?;
            Ok::<_, crate::Error>(info.map(|info| (lane, info)))
        });
        Ok(try_join_all(infos).await?.into_iter().flatten().collect())
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
        let (mut n_examined, mut n_answered) = (0, 0);
        for subject in Self::expired_subjects(survey, tick_now(now)) {
            let mut seq = 1;
            while let Some(kept) = shared.api.next(&shared.names.jobs, seq, subject).await? {
                seq = kept.seq + 1;
                let claim = claims.get((kept.seq, kept.at));
                if claim.is_some_and(|claim| claim.until > survey.server_now) {
                    continue;
                }
                let answer = self.answer(&self.entry_of(&kept).0.job.id).await?;
                n_answered += u64::from(answer.is_some_and(|result| result.outcome.is_final()));
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
        consumers: &[(Lane, ConsumerInfo)],
        claims: &Claims,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let lanes =
            try_join_all(consumers.iter().map(|(lane, info)| self.first_of(*lane, info, now)));
        let lapsed = claims.lapsed(survey.server_now).map(|claim| claim.seq).collect();
        let lapsed = self.first_lapsed(lapsed);
        let due = survey.places.iter().find(
            |(place, ..)| matches!(place, Place::Later(due, _) if *due <= now.as_millisecond()),
        );
        let due = try_join_all(due.map(|(_, subject, _)| self.first_on(1, subject, now)));
        let (lanes, lapsed, due) = tokio::try_join!(lanes, lapsed, due)?;
        Ok(lanes.into_iter().chain(due).flatten().chain(lapsed).min())
    }

    /// When the oldest of these was published whose leases ended, of the first of them in the stream: many
    /// are done long since, and are passed over by what lies behind them. They count as well where
    /// others lie between them: of many an old one that was tried again may be missed.
    async fn first_lapsed(&self, mut lapsed: Vec<u64>) -> Result<Option<Timestamp>> {
        lapsed.sort_unstable();
        let (shared, mut left) = (&*self.shared, &lapsed[..]);
        let (mut oldest, mut n_asked) = (None, 0);
        while n_asked < EXAMINED && !left.is_empty() {
            let wave = &left[..left.len().min(AT_ONCE)];
            let asked = wave.iter().map(|seq| shared.api.next(&shared.names.jobs, *seq, ">"));
            n_asked += wave.len();
            for kept in try_join_all(asked).await? {
                // Behind the end of the stream there is none of the others either.
                let Some(kept) = kept else { return Ok(oldest) };
                // Of those that are gone several have the same answer.
                left = &left[left.partition_point(|seq| *seq < kept.seq)..];
                if let Some(rest) = left.strip_prefix(&[kept.seq]) {
                    left = rest;
                    let at = published_at(&kept);
                    oldest = Some(oldest.map_or(at, |known: Timestamp| known.min(at)));
                }
            }
        }
        Ok(oldest)
    }

    /// When the first job of a lane was published that nobody was given yet.
    async fn first_of(
        &self,
        lane: Lane,
        info: &ConsumerInfo,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let from = info.delivered.stream_seq + 1;
        // What plain clients published is read apart.
        let mut filters = self.shared.names.filters(lane);
        filters.retain(|filter| *filter != self.shared.names.plain());
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
}

fn published_at(kept: &Kept) -> Timestamp {
    let said = kept.headers.get_last(header::ENQUEUED_AT);
    said.and_then(|value| value.as_str().parse().ok()).unwrap_or(kept.at)
}

/// What nobody was given yet waits in the lane of its priority; the rest is normal.
fn by_priority(
    consumers: &[(Lane, ConsumerInfo)],
    survey: &Survey,
    tick: u64,
    ready: u64,
) -> ByPriority {
    // What expired lies there until a worker comes, and is not ready.
    let expired = |lane| {
        let expired = survey.places.iter().filter(|(place, ..)| match *place {
            Place::Lane(at, Some(deadline)) => at == lane && deadline <= tick,
            Place::Lane(..) | Place::Later(..) => false,
        });
        expired.map(|(_, _, n_jobs)| *n_jobs).sum::<u64>()
    };
    let (mut by, mut rest) = (ByPriority::default(), ready);
    for (lane, info) in consumers {
        let n_jobs = info.num_pending.saturating_sub(expired(*lane)).min(rest);
        *by.of_mut(lane.priority) += n_jobs;
        rest -= n_jobs;
    }
    by.normal += rest;
    by
}

/// The soonest deadline that is to come of a job that nobody holds.
fn first_deadline(survey: &Survey, claims: &Claims, now: Timestamp) -> Option<Timestamp> {
    let mut n_left: BTreeMap<u64, u64> = BTreeMap::new();
    for (place, _, n_jobs) in &survey.places {
        match *place {
            Place::Lane(_, Some(deadline)) => *n_left.entry(deadline).or_default() += n_jobs,
            Place::Later(due, Some(deadline)) if due <= now.as_millisecond() => {
                *n_left.entry(deadline).or_default() += n_jobs;
            }
            Place::Lane(..) | Place::Later(..) => {}
        }
    }
    for claim in claims.live(survey.server_now) {
        if let Some(n_jobs) = claim.deadline.and_then(|deadline| n_left.get_mut(&deadline)) {
            *n_jobs = n_jobs.saturating_sub(1);
        }
    }
    let mut to_come = n_left.range(tick_now(now) + 1..);
    to_come.find(|(_, n_jobs)| **n_jobs > 0).map(|(deadline, _)| moment_of(*deadline))
}

fn ends_at(at: Timestamp) -> i128 {
    i128::from(at.as_millisecond())
}
