//! Jobs that failed for good.

use std::time::Duration;

use redis::Value;

use super::Calls;
use super::keeper::Again;
use super::receive::{Stored, stored};
use super::script;
use super::value::{garbled, int, list, moment, small, text};
use super::waiting::known;
use crate::{Attempt, DeadLetter, Elsewhere, FailureKind, JobId, Purged, Result};

/// Names that one script takes at most: others wait for the server.
const STEP: usize = 500;

/// Which dead letters are meant.
#[derive(Debug)]
pub(super) enum Which<'a> {
    All,
    Named(&'a [JobId]),
}

impl<'a> Which<'a> {
    /// All dead letters, or these.
    pub(super) fn new(ids: Option<&'a [JobId]>) -> Self {
        ids.map_or(Self::All, Self::Named)
    }
}

/// What a step found or did.
#[derive(Debug)]
struct Step {
    found: Value,
    /// Where the next one goes on, if there is more.
    rest: Option<i64>,
    last: i64,
}

impl Calls {
    /// Carries out one step, once the deadlines have had their effect.
    async fn letters(&self, verb: &str, args: &[String], again: Again) -> Result<Step> {
        loop {
            let call = self
                .call(&script::DEAD)
                .span(self.behavior.result_ttl)
                .span(self.behavior.key_ttl)
                .text(verb);
            let call = args.iter().fold(call, |call, arg| call.text(arg.as_str()));
            let mut parts = list(self.run(call, again).await?)?.into_iter();
            let mut next = || parts.next().ok_or_else(|| garbled("a dead letter"));
            let (at_once, found) = (int(&next()?)?, next()?);
            let (rest, last) = (int(&next()?)?, int(&next()?)?);
            self.send_owed(next()?).await;
            if at_once == 0 {
                return Ok(Step { found, rest: Some(rest).filter(|rest| *rest >= 0), last });
            }
        }
    }

    /// The newest first.
    pub(super) async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        let mut letters = Vec::new();
        let mut below = String::new();
        loop {
            let n_missing = max - letters.len();
            let args = [below, n_missing.min(1_000).to_string()];
            let step = self.letters("list", &args, Again::Yes).await?;
            for one in list(step.found)? {
                letters.push(letter(one)?);
            }
            match step.rest {
                Some(rest) if letters.len() < max => below = rest.to_string(),
                _ => return Ok(letters),
            }
        }
    }

    pub(super) async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        let args = ["named".to_owned(), id.to_string()];
        let step = self.letters("show", &args, Again::Yes).await?;
        list(step.found)?.into_iter().next().map(letter).transpose()
    }

    /// Deletes the oldest of those that died longer ago than this.
    pub(super) async fn purge_old(&self, ttl: Duration, elsewhere: Elsewhere) -> Result<Purged> {
        let way = match elsewhere {
            Elsewhere::Leave => "leave",
            Elsewhere::Take => "take",
        };
        let args = [ttl.as_millis().to_string(), way.to_owned(), elsewhere.step(STEP).to_string()];
        // Sent twice, the bodies of what the first one deleted would stay.
        let step = self.letters("old", &args, Again::No).await?;
        let mut parts = list(step.found)?.into_iter();
        let mut next = || parts.next().ok_or_else(|| garbled("a step of a purge"));
        let n_jobs = u64::try_from(int(&next()?)?).unwrap_or_default();
        let referring = list(next()?)?.into_iter().map(known).collect::<Result<_>>()?;
        let n_left = u64::try_from(int(&next()?)?).unwrap_or_default();
        Ok(Purged { n_jobs, referring, n_left })
    }

    /// Puts back or deletes, in small steps between which the server does other things.
    pub(super) async fn steps(&self, verb: &str, which: Which<'_>) -> Result<u64> {
        let mut n_done = 0;
        match which {
            Which::Named(mut ids) => loop {
                // Without any names too: deadlines have their effect.
                let (now, later) = ids.split_at(ids.len().min(STEP));
                let mut args = vec!["named".to_owned()];
                args.extend(now.iter().map(ToString::to_string));
                let step = self.letters(verb, &args, Again::No).await?;
                n_done += int(&step.found)?;
                if later.is_empty() {
                    break;
                }
                ids = later;
            },
            Which::All => {
                let mut next = ["all".to_owned(), "0".to_owned(), String::new()];
                loop {
                    let step = self.letters(verb, &next, Again::No).await?;
                    n_done += int(&step.found)?;
                    let Some(rest) = step.rest else { break };
                    next = ["all".to_owned(), rest.to_string(), step.last.to_string()];
                }
            }
        }
        u64::try_from(n_done).map_err(|error| garbled("a number").caused_by(error))
    }
}

fn letter(value: Value) -> Result<DeadLetter> {
    let mut parts = list(value)?.into_iter();
    // One whose headers cannot be read is shown with all of it as its body.
    let Stored { job, attempts, wrong: _ } = stored(&mut parts)?;
    let mut next = || parts.next().ok_or_else(|| garbled("a dead letter"));
    let (reason, died_at) = (text(next()?)?, moment(int(&next()?)?));
    let kind = FailureKind::of_word(&text(next()?)?);
    let history = list(next()?)?.into_iter().map(attempt).collect::<Result<_>>()?;
    Ok(DeadLetter { job, attempts, kind, reason, died_at, history })
}

fn attempt(value: Value) -> Result<Attempt> {
    let mut parts = list(value)?.into_iter();
    let mut next = || parts.next().ok_or_else(|| garbled("a history"));
    Ok(Attempt { attempt: small(&next()?)?, at: moment(int(&next()?)?), what: text(next()?)? })
}
