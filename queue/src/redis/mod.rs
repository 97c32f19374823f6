//! Redis Streams, also on Valkey: one queue is one slot of keys, changed by scripts alone.
//!
//! Plain producers write `XADD ebb:{NAME} * body '{"input": "..."}'`, with the headers of a job as
//! further fields where they want any. That stream is an inbox: whoever receives next makes jobs of
//! its entries, `redis-ENTRY` by name unless `ebb-id` says otherwise. A job itself lies in two
//! hashes (`jobs` as published, `life` for what became of it) and in the sorted sets that its state
//! asks for: `line` by place, `leased` by the end of the lease, `delayed` by due time. What is
//! handed out for the first time, which is most of it, is leased as one: a loan of `loans` names up to
//! 128 jobs, and a job is written down by itself when something else than an ack becomes of it. So
//! every count is exact at any depth, every order is kept through retries, and a batch costs a
//! handful of commands; entries of a stream can be neither put back nor counted by deadline.
//! Results are fields of a few hashes, `results:MOMENT`, each of which the server forgets as a whole;
//! `fates` says in which a result is. A key for each result would cost the server nine times as much.
//!
//! Each operation is one script and so is atomic. Scripts take the time from the server, so that
//! workers whose clocks are wrong agree; a handle with a clock of its own sends that.
//!
//! Rights of a scaler: `%R~ebb:{NAME}* &ebb:{NAME}* +eval_ro +evalsha_ro +time +type +hget +hmget
//! +hlen +zcard +zcount +zrange +zscore +xlen +xrange +xread +xinfo|stream +subscribe`. Of a worker and
//! of who publishes through Ebb, beside these: `~ebb:{NAME}* +eval +evalsha +hset +hsetnx +hdel +hincrby
//! +hexists +zadd +zrem +zremrangebyrank +del +exists +pexpire +xdel +publish`, and `+xadd` on the
//! streams of replies. Of a plain producer: `~ebb:{NAME} +xadd`. With `+config|get +info` weak settings
//! are told. Where the URL names a database everybody needs `+select`.

mod calls;
mod connect;
mod dead;
mod depth;
mod failure;
mod group;
mod info;
mod keeper;
mod news;
mod publish;
mod puts;
mod receive;
mod results;
mod script;
mod value;
mod waiting;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::{
    Backlog, Behavior, Broker, Clock, DeadLetter, DeadLetters, Delivery, Depth, Elsewhere, Error,
    ErrorKind, Frame, Info, Job, JobId, JobResult, Link, Missing, OpenOptions, Published, Purged,
    Receipt, RedisAddress, Result, ResultStore, STATUS_TTL, Settled, Settlement, Stored, Unsettled,
    WorkerStatus,
};
use connect::Place;
use dead::Which;
pub(crate) use group::Group;
pub(crate) use info::LIMITS;
use info::Settings;
use keeper::{Again, Keeper};
use news::{Answers, Arrivals, Cancellations};
use puts::Putter;
use script::{Call, Script};
use value::{bytes, list};

/// The layout of the keys that this version reads and writes.
const LAYOUT: u32 = 3;

/// A wait looks again at least this often, should a clock have jumped.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// A queue on Redis; clones share its connections.
#[derive(Debug, Clone)]
pub(crate) struct RedisQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    calls: Arc<Calls>,
    worker: String,
    settings: Settings,
    arrivals: OnceCell<Arrivals>,
    answers: OnceCell<Answers>,
    puts: Putter,
}

/// All that it takes to run a script.
#[derive(Debug)]
struct Calls {
    place: Arc<Place>,
    keeper: Keeper,
    behavior: Behavior,
    clock: Arc<dyn Clock>,
}

impl RedisQueue {
    /// Opens the queue, creating it where that is allowed.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server answers in time, [`ErrorKind::Denied`] when it
    /// does not let us in, [`ErrorKind::Invalid`] when it has no such queue,
    /// [`ErrorKind::Incompatible`] when its keys are not ours or of a newer version.
    pub(crate) async fn open(
        address: &RedisAddress,
        queue: &str,
        behavior: &Behavior,
        options: OpenOptions,
    ) -> Result<Self> {
        let place = Arc::new(Place::new(address, queue));
        let keeper = Keeper::open(place.clone(), options.connect_timeout).await?;
        let calls = Calls { place, keeper, behavior: behavior.clone(), clock: options.clock };
        calls.check_layout(options.missing).await?;
        let settings = Settings::read(&calls).await?;
        let calls = Arc::new(calls);
        let shared = Shared {
            puts: Putter::start(calls.clone()),
            calls,
            worker: options.worker,
            settings,
            arrivals: OnceCell::new(),
            answers: OnceCell::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn calls(&self) -> &Calls {
        &self.shared.calls
    }

    /// Who is told of arrivals, from now on.
    async fn listener(&self) -> Result<&Arrivals> {
        let calls = self.calls();
        let start = || Arrivals::start(calls.place.clone(), calls.keeper.watch());
        self.shared.arrivals.get_or_try_init(start).await
    }
}

#[async_trait]
impl Backlog for RedisQueue {
    async fn depth(&self) -> Result<Depth> {
        self.calls().depth().await
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        let calls = self.calls();
        let call = calls.call(&script::WORKERS).span(STATUS_TTL);
        let found = list(calls.look(call).await?)?;
        let mut statuses: Vec<_> = found
            .into_iter()
            .map(|status| WorkerStatus::decode(&bytes(status)?))
            .collect::<Result<_>>()?;
        statuses.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(statuses)
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        let told = self.listener().await?.listen();
        // The listener lives as long as the stream does.
        let told = stream::unfold((told, self.clone()), |(mut told, queue)| async move {
            told.changed().await.ok()?;
            Some(((), (told, queue)))
        });
        Ok(told.boxed())
    }

    async fn info(&self) -> Result<Info> {
        Ok(Settings::read(self.calls()).await?.info())
    }

    fn link(&self) -> &Link {
        self.calls().keeper.link()
    }

    async fn close(&self) -> Result<()> {
        // Nothing is fetched ahead.
        Ok(())
    }
}

#[async_trait]
impl Broker for RedisQueue {
    async fn publish(&self, jobs: Vec<Job>) -> Result<Vec<Published>> {
        self.calls().publish(&jobs, self.shared.settings.max_body).await
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let (calls, worker) = (self.calls(), &self.shared.worker);
        let began = Instant::now();
        let mut told = None;
        loop {
            let claimed = calls.claim(max, worker).await?;
            let left = wait.saturating_sub(began.elapsed());
            if !claimed.deliveries.is_empty() || left.is_zero() {
                return Ok(claimed.deliveries);
            }
            let Some(arrivals) = &mut told else {
                // Another look is due for what came before it listened.
                let arrivals = tokio::time::timeout(left, self.listener()).await;
                let Ok(arrivals) = arrivals else { continue };
                told = Some(arrivals?.listen());
                continue;
            };
            let nap = claimed.until_due.unwrap_or(LONGEST_NAP).min(LONGEST_NAP).min(left);
            // Both an arrival and the end of the nap mean to look again.
            tokio::time::timeout(nap, arrivals.changed()).await.ok();
        }
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Settled>> {
        self.calls().extend(receipts).await
    }

    async fn cancellations(&self) -> Result<BoxStream<'static, JobId>> {
        let calls = self.calls();
        Cancellations::listen(calls.place.clone(), calls.keeper.watch()).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, Unsettled> {
        self.calls().settle(settlements).await
    }

    async fn report(&self, status: &WorkerStatus) -> Result<()> {
        let calls = self.calls();
        let phase = format!("{:?}", status.phase);
        let call = calls.call(&script::REPORT).span(STATUS_TTL);
        let call = call.text(status.id.clone()).text(phase).bytes(status.encode());
        calls.run(call, Again::Yes).await.map(drop)
    }

    async fn reply(&self, to: &str, result: &JobResult, traceparent: Option<&str>) -> Result<()> {
        self.calls().reply(to, result, traceparent).await
    }

    async fn purge_old(&self, elsewhere: Elsewhere) -> Result<Purged> {
        match self.calls().behavior.dead_ttl {
            Some(ttl) => self.calls().purge_old(ttl, elsewhere).await,
            None => Ok(Purged::default()),
        }
    }

    fn lease(&self) -> Duration {
        self.calls().behavior.lease
    }
}

#[async_trait]
impl DeadLetters for RedisQueue {
    async fn list(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.calls().list(max).await
    }

    async fn show(&self, id: &JobId) -> Result<Option<DeadLetter>> {
        self.calls().show(id).await
    }

    async fn redrive(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.calls().steps("redrive", Which::new(ids)).await
    }

    async fn purge(&self, ids: Option<&[JobId]>) -> Result<u64> {
        self.calls().steps("purge", Which::new(ids)).await
    }
}

#[async_trait]
impl ResultStore for RedisQueue {
    async fn put(&self, result: &JobResult) -> Result<Stored> {
        results::check_size(result, self.shared.settings.max_body)?;
        self.shared.puts.put(result).await
    }

    async fn get(&self, id: &JobId) -> Result<Option<JobResult>> {
        self.calls().result(id).await
    }

    async fn chunk(&self, id: &JobId, attempt: u32, seq: u64, body: Bytes) -> Result<Stored> {
        if seq > results::LAST_PIECE {
            return Err(Error::new(ErrorKind::Invalid, "chunk seq is too large"));
        }
        results::check_bytes(id, body.len(), self.shared.settings.max_body)?;
        self.calls().chunk((id, attempt), (seq, &body)).await
    }

    async fn follow(&self, id: &JobId, from_seq: u64) -> Result<BoxStream<'static, Result<Frame>>> {
        let calls = self.calls();
        let start = || Answers::start(calls.place.clone(), calls.keeper.watch());
        let follower = self.shared.answers.get_or_try_init(start).await?.follow(id);
        // The listener lives as long as the stream does.
        Ok(results::follow(self.clone(), follower, id.clone(), from_seq))
    }

    fn result_ttl(&self) -> Duration {
        self.calls().behavior.result_ttl
    }
}

impl Calls {
    fn call(&self, script: &'static Script) -> Call<'_> {
        Call::new(script).text(self.now())
    }

    /// The time for a script: empty for the server's own, which serves the clock of the system.
    fn now(&self) -> String {
        let before = crate::SystemClock.now();
        let now = self.clock.now();
        if (before..=crate::SystemClock.now()).contains(&now) {
            return String::new();
        }
        now.as_millisecond().to_string()
    }

    /// Runs a script that changes things.
    async fn run(&self, call: Call<'_>, again: Again) -> Result<redis::Value> {
        self.keeper.run(&call, again).await
    }

    /// Runs a script that reads only, in a way that the server may allow to those who may only look.
    async fn look(&self, call: Call<'_>) -> Result<redis::Value> {
        self.keeper.run(&call.reading(), Again::Yes).await
    }

    /// Looks whether the keys are ours to read, and creates the queue where it is missing.
    async fn check_layout(&self, missing: Missing) -> Result<()> {
        let layout = LAYOUT.to_string();
        let look = self.call(&script::LAYOUT).text("look").text(layout.clone());
        let mut found = value::texts(self.look(look).await?)?;
        if missing == Missing::Create && found[..] == ["", "", ""] {
            let create = self.call(&script::LAYOUT).text("create").text(layout);
            found = value::texts(self.run(create, Again::Yes).await?)?;
        }
        let name = &self.place.queue;
        match &found[..] {
            [key, kind, _] if !key.is_empty() => {
                let words = format!(
                    "queue {name}: the key {key} is a {kind} of somebody else; use another queue \
                     name or database, or delete the key"
                );
                Err(Error::new(ErrorKind::Incompatible, words))
            }
            [_, _, layout] if layout.is_empty() => {
                let words = format!(
                    "there is no queue {name} on redis at {}; make it by `ebb queue init`",
                    self.place.shown()
                );
                Err(Error::new(ErrorKind::Invalid, words).of_no_queue())
            }
            [_, _, layout] if layout.parse().is_ok_and(|layout: u32| layout == LAYOUT) => Ok(()),
            _ => {
                let layout = found.last().map_or("?", String::as_str);
                let remedy = match layout.parse() {
                    Ok(0..LAYOUT) => "work it off with the ebb that made it, or use another name",
                    _ => "use a newer ebb",
                };
                let words = format!(
                    "queue {name} has keys of layout {layout} and this version knows layout \
                     {LAYOUT}; {remedy}"
                );
                Err(Error::new(ErrorKind::Incompatible, words))
            }
        }
    }
}
