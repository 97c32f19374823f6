//! Jobs that failed for good.

use std::collections::HashSet;

use super::core::Core;
use super::names::Lane;
use super::pages::LONGEST_PAGE;
use super::parcel::Parcel;
use super::session::Posted;
use super::walk::{Letter, Walk};
use crate::{DeadLetter, JobId, Result};

/// What becomes of letters of which none is removed.
const LOOKED_AT: &str = "looked at";
/// Jobs that are put back in one go, at most; where that breaks off as many may be there twice, and of those
/// before them what the broker has not removed yet.
const STEP: usize = 256;

pub(super) async fn list(core: &Core, max: usize) -> Result<Vec<DeadLetter>> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session, LONGEST_PAGE).await?;
    let found = newest(&mut walk, max).await;
    let (found, now) = (walk.end(found, LOOKED_AT).await?, core.clock.now());
    Ok(found.into_iter().map(|parcel| parcel.into_dead_letter(now)).collect())
}

async fn newest(walk: &mut Walk<'_>, max: usize) -> Result<Vec<Parcel>> {
    let mut newest: Vec<(u64, Parcel)> = Vec::new();
    let keep_newest = |newest: &mut Vec<(u64, Parcel)>| {
        let died_at = |parcel: &Parcel| parcel.death.as_ref().map(|(_, at)| *at);
        newest.sort_by_key(|(tag, parcel)| std::cmp::Reverse((died_at(parcel), *tag)));
        newest.truncate(max);
    };
    while let Some(Letter { parcel, tag }) = walk.next().await? {
        newest.push((tag, parcel));
        // Bodies may be large, so no more of them are kept than are wanted, or thereabouts.
        if newest.len() > max.saturating_mul(2).max(64) {
            keep_newest(&mut newest);
        }
    }
    keep_newest(&mut newest);
    Ok(newest.into_iter().map(|(_, parcel)| parcel).collect())
}

pub(super) async fn show(core: &Core, id: &JobId) -> Result<Option<DeadLetter>> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session, LONGEST_PAGE).await?;
    let found = find(&mut walk, id).await;
    let found = walk.end(found, LOOKED_AT).await?;
    Ok(found.map(|parcel| parcel.into_dead_letter(core.clock.now())))
}

async fn find(walk: &mut Walk<'_>, id: &JobId) -> Result<Option<Parcel>> {
    let mut found = None;
    // To the end, though it may come soon: what is given back lies behind what was given back before.
    while let Some(Letter { parcel, .. }) = walk.next().await? {
        if found.is_none() && parcel.job.id == *id {
            found = Some(parcel);
        }
    }
    Ok(found)
}

pub(super) async fn redrive(core: &Core, ids: Option<&[JobId]>) -> Result<u64> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session, STEP as u64).await?;
    let put_back = put_back(&mut walk, ids).await;
    walk.end(put_back, "put back").await
}

async fn put_back(walk: &mut Walk<'_>, ids: Option<&[JobId]>) -> Result<u64> {
    let wanted: Option<HashSet<&JobId>> = ids.map(|ids| ids.iter().collect());
    let mut step = Vec::new();
    while let Some(letter) = walk.next().await? {
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(&letter.parcel.job.id)) {
            step.push(letter);
        }
        // All go in the order in which they lie, so a page at a time will do.
        if wanted.is_none() && walk.is_at_end_of_page() {
            revive(walk, std::mem::take(&mut step)).await?;
        }
    }
    if let Some(ids) = ids {
        let position = |id: &JobId| ids.iter().position(|named| named == id);
        step.sort_by_cached_key(|letter| position(&letter.parcel.job.id));
    }
    let mut letters = step.into_iter();
    while letters.len() > 0 {
        revive(walk, letters.by_ref().take(STEP).collect()).await?;
        // Before the next of them: where it breaks off, these are not to be there twice.
        walk.removed().await?;
    }
    walk.removed().await
}

async fn revive(walk: &mut Walk<'_>, letters: Vec<Letter>) -> Result<()> {
    let core = walk.core;
    let now = core.clock.now();
    let mut messages = Vec::with_capacity(letters.len());
    let mut tags = Vec::with_capacity(letters.len());
    for Letter { mut parcel, tag } in letters {
        parcel.revive(now, core.next_place());
        core.ledger().forget(&parcel.job.id);
        messages.push(core.to_lane(&parcel, Lane::New(parcel.job.headers.priority)));
        tags.push(tag);
    }
    let Posted { is_stored, failed } = walk.session.post(messages).await;
    for (tag, is_stored) in tags.into_iter().zip(is_stored) {
        if is_stored {
            walk.remove(tag);
        }
    }
    failed.map_or(Ok(()), Err)
}

pub(super) async fn purge(core: &Core, ids: Option<&[JobId]>) -> Result<u64> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let mut walk = Walk::begin(core, &session, LONGEST_PAGE).await?;
    let deleted = delete(&mut walk, ids).await;
    walk.end(deleted, "deleted").await
}

async fn delete(walk: &mut Walk<'_>, ids: Option<&[JobId]>) -> Result<u64> {
    let wanted: Option<HashSet<&JobId>> = ids.map(|ids| ids.iter().collect());
    while let Some(Letter { parcel, tag }) = walk.next().await? {
        let id = &parcel.job.id;
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(id)) {
            walk.remove(tag);
            walk.core.ledger().forget(id);
        }
    }
    walk.removed().await
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::super::AmqpQueue;
    use super::super::kit::{block_on, opened};
    use super::super::pages::FIRST_PAGE;
    use super::super::walk::{SOON, STALL, count_there, see_back};
    use super::*;
    use crate::{Broker, DeadLetters, Delivery, Job, Timestamp};

    /// A queue with so many dead letters, which are named by their numbers.
    async fn with_letters(queue: &str, n_letters: u64) -> AmqpQueue {
        let queue = opened(queue).await;
        let (core, now) = (queue.core(), Timestamp::now());
        let letter = |n: u64| {
            let job = Job { id: n.to_string().parse().unwrap(), ..Job::new("x", now) };
            let mut parcel = Parcel::new(job, 1);
            parcel.die(now, "bad".into());
            core.to_dead(&parcel)
        };
        let session = core.session().await.unwrap();
        session.publish((0..n_letters).map(letter).collect()).await.unwrap();
        see_back(core, &session, n_letters).await;
        queue
    }

    /// Looks at so many, and what their numbers are.
    async fn look(walk: &mut Walk<'_>, n_letters: usize) -> Vec<u64> {
        let mut seen = Vec::new();
        while seen.len() < n_letters
            && let Some(letter) = walk.next().await.unwrap()
        {
            seen.push(letter.parcel.job.id.as_str().parse().unwrap());
        }
        seen
    }

    #[test]
    fn letters_that_nobody_looks_at_yet_stay_at_the_broker_and_all_lie_as_they_lay_afterwards() {
        // More than the broker is given back without a word from it.
        const LETTERS: u64 = 4_000;
        block_on(async {
            let queue = with_letters("pages", LETTERS).await;
            let (core, all) = (queue.core(), (0..LETTERS).collect::<Vec<_>>());
            let session = core.session().await.unwrap();
            for _ in 0..2 {
                let mut walk = Walk::begin(core, &session, LONGEST_PAGE).await.unwrap();
                assert_eq!(look(&mut walk, 1).await, [0]);
                // What it is to hand over it would have handed over by now.
                sleep(SOON).await;
                let there = session.count_if_there(core.names.dead()).await.unwrap();
                assert_eq!(there, Some(LETTERS - FIRST_PAGE));
                assert_eq!(look(&mut walk, usize::MAX).await, all[1..]);
                walk.end(Ok(()), LOOKED_AT).await.unwrap();
                // What is looked for comes soon, and lies where it lay.
                assert!(queue.show(&"3".parse().unwrap()).await.unwrap().is_some());
            }
        });
    }

    /// The numbers of all jobs that wait there, in the order in which they come.
    async fn numbers(queue: &AmqpQueue, n_jobs: usize) -> Vec<u64> {
        let mut came = Vec::new();
        while came.len() < n_jobs {
            let (some, soon) = (NonZeroUsize::new(n_jobs - came.len()).unwrap(), STALL);
            let deliveries = queue.receive(some, soon).await.unwrap();
            assert!(!deliveries.is_empty(), "{} of {n_jobs} came", came.len());
            let number = |one: &Delivery| one.job.id.as_str().parse::<u64>().unwrap();
            came.extend(deliveries.iter().map(number));
            let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
            queue.settle(&acks).await.unwrap();
        }
        came
    }

    #[test]
    fn a_purge_and_a_redrive_of_many_pages_leave_nothing_behind() {
        const LETTERS: u64 = 4_000;
        block_on(async {
            let purged = with_letters("purged", LETTERS).await;
            assert_eq!(purged.purge(None).await.unwrap(), LETTERS);
            let session = purged.core().session().await.unwrap();
            assert_eq!(count_there(purged.core(), &session).await, 0);

            let redriven = with_letters("redriven", LETTERS).await;
            assert_eq!(redriven.redrive(None).await.unwrap(), LETTERS);
            let session = redriven.core().session().await.unwrap();
            assert_eq!(count_there(redriven.core(), &session).await, 0);
            let came = numbers(&redriven, LETTERS as usize).await;
            assert_eq!(came, (0..LETTERS).collect::<Vec<_>>(), "they come as they lay");
        });
    }

    #[test]
    fn a_purge_of_some_of_many_pages_finds_all_of_them_and_leaves_the_others_as_they_lay() {
        const LETTERS: u64 = 2_000;
        block_on(async {
            let queue = with_letters("purged-in-part", LETTERS).await;
            let id = |n: u64| n.to_string().parse::<JobId>().unwrap();
            let wanted: Vec<_> = (0..LETTERS).filter(|n| n % 3 != 0).map(id).collect();
            assert_eq!(queue.purge(Some(&wanted)).await.unwrap(), wanted.len() as u64);
            let session = queue.core().session().await.unwrap();
            let mut walk = Walk::begin(queue.core(), &session, LONGEST_PAGE).await.unwrap();
            let left: Vec<_> = (0..LETTERS).filter(|n| n % 3 == 0).collect();
            assert_eq!(look(&mut walk, usize::MAX).await, left);
            walk.end(Ok(()), LOOKED_AT).await.unwrap();
        });
    }

    #[test]
    fn who_looks_after_a_look_that_broke_off_sees_all() {
        const LETTERS: usize = 50;
        block_on(async {
            let queue = with_letters("broken-off", LETTERS as u64).await;
            let core = queue.core();
            let session = core.session().await.unwrap();
            for _ in 0..5 {
                let mut walk = Walk::begin(core, &session, LONGEST_PAGE).await.unwrap();
                assert_eq!(look(&mut walk, 20).await.len(), 20);
                drop(walk);
                assert_eq!(queue.list(LETTERS).await.unwrap().len(), LETTERS);
                // The same where it broke off as it began, mostly before the first page came.
                let mut walk = Walk::begin(core, &session, LONGEST_PAGE).await.unwrap();
                timeout(Duration::ZERO, walk.next()).await.ok();
                drop(walk);
                assert!(core.letters_away().is_some());
                sleep(SOON).await;
                see_back(core, &session, LETTERS as u64).await;
                assert_eq!(count_there(core, &session).await, LETTERS as u64, "they stay away");
                assert_eq!(queue.list(LETTERS).await.unwrap().len(), LETTERS);
                // The same where it ended in order, and not with the last.
                let mut walk = Walk::begin(core, &session, LONGEST_PAGE).await.unwrap();
                look(&mut walk, FIRST_PAGE as usize + 1).await;
                walk.end(Ok(()), LOOKED_AT).await.unwrap();
                assert_eq!(queue.list(LETTERS).await.unwrap().len(), LETTERS);
            }
        });
    }

    /// Numbers of these letters in the other order.
    fn backwards(n_letters: u64) -> Vec<JobId> {
        (0..n_letters).rev().map(|n| n.to_string().parse().unwrap()).collect()
    }

    /// How many jobs wait in the lane of new ones.
    async fn n_new(queue: &AmqpQueue) -> u64 {
        let session = queue.core().session().await.unwrap();
        let lane = queue.core().names.lane(Lane::New(crate::Priority::Normal));
        session.counts_of_lanes(&[lane]).await.unwrap()[0]
    }

    #[test]
    fn a_redrive_of_many_by_their_names_that_breaks_off_doubles_no_more_than_a_step() {
        const LETTERS: u64 = 4_000;
        block_on(async {
            let queue = with_letters("named", LETTERS).await;
            let (ids, other) = (backwards(LETTERS), opened("named").await);
            let broken = async {
                while n_new(&other).await < LETTERS / 2 {
                    sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::select! {
                redriven = queue.redrive(Some(&ids)) => panic!("it did not break off: {redriven:?}"),
                () = broken => {}
            }
            let n_dead = queue.list(LETTERS as usize).await.unwrap().len() as u64;
            let n_new = n_new(&other).await;
            assert!(n_dead + n_new >= LETTERS, "{n_dead} and {n_new}: some are lost");
            let most = LETTERS + 2 * STEP as u64;
            assert!(n_dead + n_new <= most, "{n_dead} and {n_new}: some are doubled");
        });
    }

    #[test]
    fn a_redrive_of_many_by_their_names_puts_them_back_in_the_order_in_which_they_are_named() {
        const LETTERS: u64 = 2 * STEP as u64 + 1;
        block_on(async {
            let queue = with_letters("in-order", LETTERS).await;
            assert_eq!(queue.redrive(Some(&backwards(LETTERS))).await.unwrap(), LETTERS);
            let came = numbers(&queue, LETTERS as usize).await;
            assert_eq!(came, (0..LETTERS).rev().collect::<Vec<_>>());
        });
    }

    /// Puts the letters of the first page back, and then this happens to the walk; which are left.
    async fn left_where_a_redrive_broke_off(
        name: &str,
        breaks: impl AsyncFnOnce(Walk<'_>),
    ) -> Vec<u64> {
        let queue = with_letters(name, 2 * FIRST_PAGE).await;
        let (core, mut page) = (queue.core(), Vec::new());
        let session = core.session().await.unwrap();
        let mut walk = Walk::begin(core, &session, STEP as u64).await.unwrap();
        while page.len() < FIRST_PAGE as usize {
            page.push(walk.next().await.unwrap().unwrap());
        }
        revive(&mut walk, page).await.unwrap();
        assert_eq!(n_new(&queue).await, FIRST_PAGE);
        breaks(walk).await;
        let mut walk = Walk::begin(core, &session, LONGEST_PAGE).await.unwrap();
        let left = look(&mut walk, usize::MAX).await;
        walk.end(Ok(()), LOOKED_AT).await.unwrap();
        left
    }

    #[test]
    fn what_was_put_back_before_nobody_waited_for_the_rest_is_not_doubled() {
        block_on(async {
            let left = left_where_a_redrive_broke_off("not-awaited", async |walk| drop(walk)).await;
            assert_eq!(left, (FIRST_PAGE..2 * FIRST_PAGE).collect::<Vec<_>>());
        });
    }

    #[test]
    fn what_was_put_back_before_the_dead_letters_stood_still_is_not_doubled() {
        block_on(async {
            let server = ebb_servers::RabbitMq::shared().unwrap();
            let lead = |verb| {
                let eval = format!("sys:{verb}('%2F_ebb:stood-still:dead').");
                server.control(&["eval", &eval]).unwrap();
            };
            let breaks = async |walk: Walk<'_>| {
                lead("suspend");
                let ended = walk.end(Err::<(), _>(super::super::errors::down()), "put back").await;
                lead("resume");
                ended.unwrap_err();
            };
            let left = left_where_a_redrive_broke_off("stood-still", breaks).await;
            assert_eq!(left, (FIRST_PAGE..2 * FIRST_PAGE).collect::<Vec<_>>());
        });
    }
}
