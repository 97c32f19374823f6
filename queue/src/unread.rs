//! What the headers of plain messages say before any worker has received them. Pure.

use crate::{ByPriority, Depth, Job, Timestamp};

/// So many of them are read by one look at a queue: the first to be received.
pub(crate) const READ: usize = 32;

/// Counts jobs by their headers that were counted as ready and normal until now; so many more lie
/// behind them unread.
pub(crate) fn count(depth: &mut Depth, jobs: &[Job], n_more: u64, now: Timestamp) {
    let (mut by, mut oldest) = (depth.ready_by_priority.unwrap_or_default(), None);
    for job in jobs {
        let due = job.headers.not_before.filter(|due| *due > now);
        let is_ready = !job.expired(now) && due.is_none();
        by.normal = by.normal.saturating_sub(1);
        if is_ready {
            count_ready(depth, &mut by, job);
            oldest = earlier(oldest, Some(job.enqueued_at));
            continue;
        }
        depth.ready = depth.ready.saturating_sub(1);
        if job.expired(now) {
            depth.dead += 1;
        } else {
            depth.delayed += 1;
            depth.next_due = earlier(depth.next_due, due);
            depth.next_delayed = earlier(depth.next_delayed, due);
        }
    }
    if n_more > 0 {
        // What is unread was published after this one.
        oldest = oldest.or(jobs.last().map(|job| job.enqueued_at));
    }
    depth.oldest_ready = earlier(depth.oldest_ready, oldest);
    depth.ready_by_priority = depth.ready_by_priority.map(|_| by);
}

fn count_ready(depth: &mut Depth, by: &mut ByPriority, job: &Job) {
    *by.of_mut(job.headers.priority) += 1;
    depth.first_deadline = earlier(depth.first_deadline, job.headers.deadline);
    depth.cost = depth.cost.map(|cost| cost + job.headers.cost.unwrap_or_default());
}

fn earlier(known: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    known.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(headers: &[(&str, &str)], at: Timestamp) -> Job {
        Job::from_message(headers.iter().copied(), "", at).unwrap()
    }

    #[test]
    fn jobs_are_counted_by_what_they_say() {
        let at: Timestamp = "2030-01-31T12:00:00Z".parse().unwrap();
        let second = std::time::Duration::from_secs(1);
        let jobs = [
            job(&[("ebb-delay", "1m")], at),
            job(&[("ebb-ttl", "1s")], at),
            job(&[("ebb-priority", "high"), ("ebb-ttl", "1h"), ("ebb-cost", "3")], at + second),
            job(&[("ebb-priority", "low")], at + 2 * second),
            job(&[], at + 3 * second),
        ];
        let by = ByPriority { normal: 7, ..ByPriority::default() };
        let mut depth = Depth { ready: 7, ready_by_priority: Some(by), ..Depth::empty(at) };
        depth.cost = Some(1.0);
        count(&mut depth, &jobs, 2, at + 5 * second);
        assert_eq!((depth.ready, depth.delayed, depth.dead), (5, 1, 1));
        let by = ByPriority { high: 1, normal: 3, low: 1 };
        assert_eq!(depth.ready_by_priority, Some(by));
        assert_eq!(depth.oldest_ready, Some(at + second));
        assert_eq!([depth.next_due, depth.next_delayed], [Some(at + 60 * second); 2]);
        assert_eq!((depth.first_deadline, depth.cost), (Some(at + 3601 * second), Some(4.0)));
    }

    #[test]
    fn what_is_unread_is_as_old_as_the_last_that_was_read_at_most() {
        let at: Timestamp = "2030-01-31T12:00:00Z".parse().unwrap();
        let jobs = [job(&[("ebb-delay", "1m")], at)];
        for (n_more, oldest) in [(0, None), (1, Some(at))] {
            let mut depth = Depth { ready: 1 + n_more, ..Depth::empty(at) };
            count(&mut depth, &jobs, n_more, at);
            assert_eq!((depth.ready, depth.oldest_ready), (n_more, oldest));
        }
    }
}
