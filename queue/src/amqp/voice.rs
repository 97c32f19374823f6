//! What handles tell each other: AMQP says how much waits and nothing of what is held, so each
//! handle tells how much it holds, and workers how they are, to all who listen.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at};
use tracing::debug;

use super::core::Core;
use super::heard::{Ear, Heard, Holding};
use super::meeting::{Meeting, Step, WINDOW, listen};
use super::most::{Counts, Lately};
use super::names::LEVELS;
use super::session::{Message, Session};
use super::{errors, line};
use crate::{Result, WorkerStatus};

/// How long others have to answer when somebody begins to listen.
const ANSWER: Duration = Duration::from_millis(200);
/// Who holds anything, and each worker, says so within this, asked or not.
pub(super) const BEAT: Duration = Duration::from_millis(1200);
const PAUSE: Duration = Duration::from_millis(200);
/// How long to wait for the echo of one's own voice.
const ECHO: Duration = Duration::from_secs(3);

/// How much was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearing {
    /// Everything that was said before.
    All,
    /// The broker lets nobody speak, for want of memory or disk.
    Nothing,
}

/// Waits until everything that was said before has been heard, unless nothing can be.
pub(super) async fn catch_up(core: &Core, session: &Session) -> Result<Hearing> {
    let heard = tokio::select! {
        biased;
        () = session.blocked() => Ok(Hearing::Nothing),
        heard = hear_ourselves(core, session) => heard.map(|()| Hearing::All),
    };
    match heard {
        Ok(Hearing::All) => Ok(Hearing::All),
        Err(error) if session.check_open().is_ok() => Err(error),
        _ => {
            core.heard.note_silence();
            Ok(Hearing::Nothing)
        }
    }
}

/// When all others must have spoken, for who just began to listen.
fn beat_to_come(core: &Core) -> Option<Instant> {
    let ear = core.heard.ear.borrow().clone()?;
    Some(ear.beat_at).filter(|at| *at > Instant::now())
}

/// The same, but who just began to listen waits until all must have spoken: who is asked may be held up for
/// longer than an answer takes, and another's answer says nothing of them.
pub(super) async fn catch_up_with_all(core: &Core, session: &Session) -> Result<()> {
    let hearing = catch_up(core, session).await?;
    if let (Hearing::All, Some(beat_at)) = (hearing, beat_to_come(core)) {
        sleep_until(beat_at).await;
        catch_up(core, session).await?;
    }
    Ok(())
}

/// The same, but who hears of a job that is held waits for the others no longer than an answer takes. What
/// those hold who are held up for longer is missing then, and it is known that something is held. Whether
/// that was waited for.
pub(super) async fn catch_up_with_a_holder(core: &Core, session: &Session) -> Result<bool> {
    let hearing = catch_up(core, session).await?;
    match beat_to_come(core) {
        Some(beat_at) if hearing == Hearing::All && !core.heard.has_holders() => {
            wait_for_a_holder(&core.heard, beat_at).await;
            catch_up(core, session).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Waits for the word of somebody who holds a job or has fetched one ahead, or until all must have spoken:
/// another's word says nothing of them. Whoever else was held up gets the time that an answer takes.
async fn wait_for_a_holder(heard: &Heard, beat_at: Instant) {
    let mut words = heard.words.subscribe();
    let word = words.wait_for(|()| heard.has_holders());
    if timeout_at(beat_at, word).await.is_ok() {
        sleep_until(beat_at.min(Instant::now() + ANSWER)).await;
    }
}

async fn hear_ourselves(core: &Core, session: &Session) -> Result<()> {
    let mut ear = core.heard.ear.subscribe();
    let here = |ear: &Option<Ear>| ear.as_ref().is_some_and(|ear| ear.epoch == session.epoch);
    let ear = timeout(ECHO, ear.wait_for(here)).await;
    let ear = ear.ok().and_then(std::result::Result::ok).and_then(|ear| ear.clone());
    let ear = ear.ok_or_else(|| errors::late("let us hear what is held"))?;
    sleep_until(ear.complete_at).await;
    let n_echo = core.heard.n_echoes.fetch_add(1, Ordering::SeqCst) + 1;
    let properties = BasicProperties::default().with_type("echo".into());
    let body = n_echo.to_string().into();
    let (exchange, key) = (String::new(), ear.queue);
    session.say(Message { exchange, key, properties, body, must_arrive: false }).await?;
    let mut echo = core.heard.echo.subscribe();
    let heard = timeout(ECHO, echo.wait_for(|heard| *heard >= n_echo)).await;
    heard.map(drop).map_err(|_| errors::late("let us hear what is held"))
}

/// Tells all how the worker of this handle is.
pub(super) async fn report(core: &Core, status: &WorkerStatus) -> Result<()> {
    let session = core.session().await?;
    let now = Instant::now();
    core.heard.note_own(status.clone(), now);
    if core.heard.note_worker(status.clone(), now) {
        core.bell.ring();
    }
    // Not by the channel of the jobs, which the broker closes where nothing is there that it could be said to.
    session.say(worker_note(core, status, Duration::ZERO)).await
}

fn worker_note(core: &Core, status: &WorkerStatus, age: Duration) -> Message {
    let mut note = core.note("worker", status.encode());
    let mut headers = FieldTable::default();
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    headers.insert("ebb-age-ms".into(), AMQPValue::LongLongInt(age));
    note.properties = note.properties.with_headers(headers);
    note
}

/// Tells all that a delay begins, which nobody sees otherwise, and how many levels there are; whether that
/// was said.
pub(super) async fn tell_of_delay(core: &Core, session: &Session) -> bool {
    let said = session.say(core.note("delay", core.n_levels().to_string())).await;
    if let Err(error) = &said {
        debug!(%error, "nobody was told that a delay began");
    }
    said.is_ok()
}

/// Listens to all, and tells what this handle holds: when that changes, when somebody new asks,
/// and each second.
pub(super) async fn keep(core: Arc<Core>) {
    loop {
        if let Ok(session) = line::session(&core.sessions).await
            && let Err(error) = converse(&core, &session).await
        {
            debug!(%error, "cannot hear what is held");
        }
        core.heard.ear.send_replace(None);
        core.note_deaf();
        sleep(PAUSE).await;
    }
}

async fn converse(core: &Core, session: &Session) -> Result<()> {
    let listening = listen(core, session);
    let (channel, mut consumer) = session.patiently("let us hear what is held", listening).await?;
    let mut meeting = Meeting::new(core, session, consumer.queue()).await?;
    let mut each_second = interval(Duration::from_secs(1));
    each_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_greeted, mut told) = (false, (0, 0));
    let mut told_at = Instant::now();
    let mut lately = Lately::new(told_at, counts(core));
    let mut acks = Acks { channel: &channel, session, heard: 0, acked: 0 };
    loop {
        let tells_at = lately.tells_at(told, told_at);
        tokio::select! {
            heard = consumer.next() => {
                let Some(Ok(heard)) = heard else { return Err(errors::down()) };
                meeting.hear(&heard);
                hear(core, session, &heard, &mut lately).await?;
                acks.heard = heard.delivery_tag;
                // Not one by one: each answer costs the broker as much as a message.
                if acks.heard >= acks.acked + u64::from(WINDOW / 4) {
                    acks.send().await?;
                }
            }
            looked = meeting.looked() => match looked? {
                Step::Look => {}
                Step::Speak => meeting.note_word(say(session, here(core)).await?),
                Step::Bind | Step::Greet => {
                    core.note_deaf();
                    is_greeted = greet(core, session, &consumer).await?;
                }
            },
            () = core.counts_changed.notified() => lately.note(Instant::now(), counts(core)),
            () = sleep_until(tells_at.unwrap_or(told_at)), if tells_at.is_some() => {
                let most = most(core, &mut lately);
                if most != told {
                    told = tell_holding(core, session, most).await?.unwrap_or(told);
                    told_at = Instant::now();
                }
            }
            _ = each_second.tick() => {
                core.heard.forget_old();
                // Also where few come: the broker closes a channel that owes it one for half an hour.
                acks.send().await?;
                if !is_greeted {
                    is_greeted = greet(core, session, &consumer).await?;
                }
                let most = most(core, &mut lately);
                if most != (0, 0) {
                    told = tell_holding(core, session, most).await?.unwrap_or(told);
                }
                if session.check_open().is_err() {
                    core.heard.note_silence();
                }
                meeting.look();
            }
        }
    }
}

/// A word that says nothing else.
fn here(core: &Core) -> Message {
    core.note("here", core.handle.clone())
}

/// Asks all others what they hold; from then on all is heard. False when nobody may speak.
async fn greet(core: &Core, session: &Session, consumer: &Consumer) -> Result<bool> {
    let is_said = say(session, core.note("hello", core.handle.clone())).await?;
    if is_said {
        let queue = consumer.queue().as_str().to_owned();
        let now = Instant::now();
        let (complete_at, beat_at) = (now + ANSWER, now + BEAT);
        let ear = Ear { epoch: session.epoch, queue, complete_at, beat_at };
        core.heard.ear.send_replace(Some(ear));
    }
    Ok(is_said)
}

/// What was heard, and what the broker knows of that.
struct Acks<'a> {
    channel: &'a Channel,
    session: &'a Session,
    /// The last note that was heard, and the last that is acknowledged.
    heard: u64,
    acked: u64,
}

impl Acks<'_> {
    async fn send(&mut self) -> Result<()> {
        if self.heard > self.acked {
            let acked = self.channel.basic_ack(self.heard, BasicAckOptions { multiple: true });
            self.session.patiently("let us hear what is held", acked).await?;
            self.acked = self.heard;
        }
        Ok(())
    }
}

async fn hear(
    core: &Core,
    session: &Session,
    message: &Delivery,
    lately: &mut Lately,
) -> Result<()> {
    let kind = message.properties.kind().as_ref().map(ShortString::as_str);
    let number = || std::str::from_utf8(&message.data).ok()?.parse::<u64>().ok();
    match kind {
        Some("held") => {
            // Others may be of a newer version: what cannot be read is passed over.
            let holding = serde_json::from_slice::<Holding>(&message.data).ok();
            if let Some(holding) = holding.filter(|holding| holding.handle != core.handle) {
                core.heard.note_holding(holding);
            }
        }
        Some("worker") => {
            let headers = message.properties.headers().as_ref();
            let age = headers.and_then(|headers| headers.inner().get("ebb-age-ms"));
            let age = age.and_then(AMQPValue::as_long_long_int).unwrap_or(0).clamp(0, 60_000);
            let at = Instant::now().checked_sub(Duration::from_millis(age.unsigned_abs()));
            if let (Ok(status), Some(at)) = (WorkerStatus::decode(&message.data), at)
                && core.heard.note_worker(status, at)
            {
                core.bell.ring();
            }
        }
        Some("delay") => {
            let n_levels = number().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
            core.note_levels(session.epoch, n_levels.min(LEVELS));
            core.bell.ring();
        }
        Some("echo") => {
            let n_echo = number().unwrap_or(0);
            core.heard.echo.send_modify(|heard| *heard = n_echo.max(*heard));
        }
        Some("cancelled") => core.cancels.hear(&message.data),
        Some("hello") => answer(core, session, lately).await?,
        _ => {}
    }
    Ok(())
}

/// Tells who is new what there is to know of us.
async fn answer(core: &Core, session: &Session, lately: &mut Lately) -> Result<()> {
    let most = most(core, lately);
    if most != (0, 0) {
        tell_holding(core, session, most).await?;
    }
    if let Some((status, at)) = core.heard.own() {
        say(session, worker_note(core, &status, at.elapsed())).await?;
    }
    Ok(())
}

/// What is held here, and what was fetched and handed to nobody.
fn counts(core: &Core) -> Counts {
    let ledger = core.ledger();
    (ledger.n_held(), ledger.n_between())
}

/// The most of that lately, with what is here now.
fn most(core: &Core, lately: &mut Lately) -> Counts {
    lately.note(Instant::now(), counts(core));
    lately.most()
}

/// Tells all what is held here, and ahead; none when nobody may speak.
async fn tell_holding(
    core: &Core,
    session: &Session,
    (held, ahead): Counts,
) -> Result<Option<Counts>> {
    let holding = Holding { handle: core.handle.clone(), held, ahead };
    // A plain struct has nothing in it that JSON cannot say.
    let note = core.note("held", serde_json::to_vec(&holding).unwrap_or_default());
    Ok(say(session, note).await?.then_some((held, ahead)))
}

/// Says something, and whether that could be: to hear goes on where nobody may speak.
async fn say(session: &Session, note: Message) -> Result<bool> {
    match session.say(note).await {
        Ok(()) => Ok(true),
        Err(_) if session.check_open().is_err() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::kit::{block_on, opened, worker};
    use super::*;
    use crate::{Backlog, Broker, Job, Phase, Timestamp};

    #[test]
    fn notes_that_are_not_heard_wait_at_the_broker() {
        block_on(async {
            let queue = opened("slow-ear").await;
            let core = queue.core();
            let session = core.session().await.unwrap();
            let (_channel, consumer) = listen(core, &session).await.unwrap();
            let n_notes = 4 * u64::from(WINDOW);
            let notes = (0..n_notes).map(|_| core.note("note", "x")).collect();
            session.publish(notes).await.unwrap();
            let ear = [consumer.queue().as_str().to_owned()];
            // Confirmed before they are handed over; what is here is not in the count.
            sleep(Duration::from_secs(1)).await;
            let n_waiting = session.counts_of_lanes(&ear).await.unwrap()[0];
            assert!(n_waiting >= n_notes - u64::from(WINDOW), "{n_waiting} of {n_notes} wait");
        });
    }

    fn holding(held: u64) -> Holding {
        Holding { handle: "other".to_owned(), held, ahead: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn who_counts_waits_no_longer_than_for_one_who_holds_a_job() {
        // Whoever holds anything may still be held up.
        for (held, expected) in [(1, BEAT / 4 + ANSWER), (0, BEAT)] {
            let (heard, start) = (Heard::default(), Instant::now());
            let speaking = async {
                sleep(BEAT / 4).await;
                heard.note_holding(holding(held));
            };
            tokio::join!(wait_for_a_holder(&heard, start + BEAT), speaking);
            assert_eq!(start.elapsed(), expected, "{held}");
        }
        let (heard, start) = (Heard::default(), Instant::now());
        heard.note_holding(holding(1));
        wait_for_a_holder(&heard, start + ANSWER / 2).await;
        assert_eq!(start.elapsed(), ANSWER / 2);
    }

    #[test]
    fn beside_an_idle_company_a_holder_that_is_held_up_is_counted_and_listed() {
        for n_ready in [0, 1] {
            block_on(async {
                let queue = opened(&format!("company-{n_ready}")).await;
                let core = queue.core();
                let session = core.session().await.unwrap();
                core.find_levels(&session).await.unwrap();
                let jobs = (0..n_ready).map(|_| Job::new("x", Timestamp::now())).collect();
                queue.publish(jobs).await.unwrap();
                let beat_at = Instant::now() + 4 * BEAT;
                core.heard.ear.send_modify(|ear| {
                    ear.iter_mut().for_each(|ear| ear.beat_at = beat_at);
                });
                core.heard.note_worker(worker("idle", Phase::Idle, 0), Instant::now());
                let held_up = async {
                    sleep(2 * BEAT).await;
                    core.heard.note_holding(holding(3));
                    core.heard.note_worker(worker("busy", Phase::Busy, 3), Instant::now());
                };
                let (depth, workers, ()) = tokio::join!(queue.depth(), queue.workers(), held_up);
                let in_flight = workers.unwrap().iter().map(|one| one.in_flight).sum::<u64>();
                assert_eq!(in_flight, 3, "all workers are listed");
                let depth = depth.unwrap();
                // Where jobs wait that is told at once, since a pool may be at zero.
                assert_eq!((depth.ready, depth.in_flight), (n_ready, 3 - 3 * n_ready));
            });
        }
    }

    #[test]
    fn what_comes_while_a_fresh_handle_waits_to_hear_all_is_counted() {
        block_on(async {
            let queue = opened("fresh").await;
            let core = queue.core();
            let session = core.session().await.unwrap();
            core.find_levels(&session).await.unwrap();
            let beat_at = Instant::now() + 10 * BEAT;
            core.heard.ear.send_modify(|ear| {
                ear.iter_mut().for_each(|ear| ear.beat_at = beat_at);
            });
            let coming = async {
                // The lanes have been counted by then, in a few round trips.
                sleep(2 * BEAT).await;
                let job = Job::new("late", Timestamp::now());
                queue.publish(vec![job]).await.unwrap();
                core.heard.note_holding(holding(1));
            };
            let (depth, ()) = tokio::join!(queue.depth(), coming);
            let depth = depth.unwrap();
            assert_eq!((depth.ready, depth.in_flight), (1, 1));
            assert!(Instant::now() < beat_at, "the word that was awaited came long before");
        });
    }

    #[test]
    fn notes_that_are_heard_make_room_for_others() {
        block_on(async {
            let queue = opened("quick-ear").await;
            let core = queue.core();
            let session = core.session().await.unwrap();
            assert_eq!(catch_up(core, &session).await.unwrap(), Hearing::All);
            let notes = (0..4 * u64::from(WINDOW)).map(|_| core.note("note", "x")).collect();
            session.publish(notes).await.unwrap();
            // An echo comes behind all of them.
            assert_eq!(catch_up(core, &session).await.unwrap(), Hearing::All);
        });
    }
}
