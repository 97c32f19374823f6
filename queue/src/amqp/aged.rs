//! Dead letters that are deleted since they are old.

use std::time::Duration;

use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::core::Core;
use super::parcel::Parcel;
use super::{errors, walk};
use crate::{Purged, Result, Timestamp};

/// Letters that are deleted in one go since they are old; how long that may take, how many bytes of them
/// may come along, and how many of others are held meanwhile.
const OLD: u64 = 100;
const STEP_TIME: Duration = Duration::from_secs(2);
const STEP_BYTES: usize = 32 << 20;
const STRANGE: usize = 8;
/// How long the broker may take for each of them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Deletes the oldest of those that died longer ago than this. Only they are taken, and the one behind
/// them: whoever looks at the same moment misses one letter that stays. A few that do not say when they
/// died are of somebody else, and stay too.
///
/// Nobody waits for it, so it ends soon, and what the broker does not answer costs no more than its
/// channel: to give up the session would end all leases. Of no body it is known that it is needed no more:
/// a letter may be back among the jobs, where the acknowledgement of a redrive was lost.
pub(super) async fn purge_old(core: &Core, ttl: Duration) -> Result<Purged> {
    let _alone = core.reading_dead.lock().await;
    let session = core.session().await?;
    let last = core.clock.now() - ttl;
    let channel = in_time(session.intake.create_channel()).await?;
    let mut step = Step { core, channel: &channel, n_jobs: 0, n_held: 0, n_strange: 0, n_bytes: 0 };
    let end = Instant::now() + STEP_TIME;
    let mut failed = None;
    while step.may_go_on() && Instant::now() < end {
        match step.purge_next(last).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let Step { n_jobs, n_held, .. } = step;
    // Whatever is not acknowledged goes back to where it was, also where this is not answered.
    let closed = in_time(channel.close(200, "done".into())).await;
    match failed.or(closed.err()) {
        Some(error) if n_jobs == 0 => return Err(error),
        Some(error) => debug!(%error, "a step of a purge was cut off"),
        None => walk::see_back(core, &session, n_held).await,
    }
    Ok(Purged { n_jobs, ..Purged::default() })
}

/// What a step over old letters has done.
struct Step<'a> {
    core: &'a Core,
    channel: &'a Channel,
    n_jobs: u64,
    n_held: u64,
    /// Of those that are held, the ones that do not say when they died.
    n_strange: usize,
    n_bytes: usize,
}

impl Step<'_> {
    fn may_go_on(&self) -> bool {
        self.n_jobs < OLD && self.n_strange <= STRANGE && self.n_bytes < STEP_BYTES
    }

    /// Deletes the next letter if it is old; false where there is none, or it is young.
    async fn purge_next(&mut self, last: Timestamp) -> Result<bool> {
        let (dead, options) = (self.core.names.dead(), BasicGetOptions::default());
        let got = in_time(self.channel.basic_get(dead.as_str().into(), options)).await?;
        let Some(got) = got else { return Ok(false) };
        let Delivery { delivery_tag, properties, data, .. } = got.delivery;
        self.n_bytes += data.len();
        self.n_held += 1;
        let (Parcel { job, death, .. }, _) = Parcel::read(&properties, data, self.core.clock.now());
        let Some((_, died_at)) = death else {
            self.n_strange += 1;
            return Ok(true);
        };
        if died_at > last {
            return Ok(false);
        }
        in_time(self.channel.basic_ack(delivery_tag, BasicAckOptions::default())).await?;
        self.core.ledger().forget(&job.id);
        self.n_held -= 1;
        self.n_jobs += 1;
        Ok(true)
    }
}

/// What the broker answers in the time that it has for it; else the channel is given up, and no more.
pub(super) async fn in_time<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    let what = "delete old dead letters";
    match timeout(PATIENCE, answer).await {
        Ok(answered) => answered.map_err(|error| errors::op(&error, what)),
        Err(_) => Err(errors::late(what)),
    }
}
