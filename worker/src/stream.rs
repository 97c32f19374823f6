//! Streams: what a job says turn by turn is stored while it goes on, for who follows it.
//!
//! A job hands its pieces over and waits for nothing. There is at most one call to the store for it
//! at a time; what is said meanwhile is joined. All pieces are stored, or given up, before the job's
//! result is: then whoever follows gets the whole.
//!
//! Pieces are sent as those of an attempt, and a worker that gives a job back midway leaves its
//! attempt to the next one. Who finds that its attempt has been spoken for begins anew under the next
//! number, and its result bears that number as well. Of whom not all is known to be there, the result
//! goes out under the number after, which voids it: so pieces of two workers are never mixed, and who
//! follows gets the whole.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ebb_queue::{Delivery, ErrorKind, JobId, Receipt, Settled, Stored};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc::Receiver;
use tracing::debug;

use crate::board::Board;
use crate::pauses::{Failed, PATIENCE, Pauses};
use crate::served::Served;
use crate::shared::{lock, sleep_until};

/// The most that is joined into one piece, in bytes: brokers limit their messages.
const JOINED: usize = 64 << 10;

/// How long a job that has its answer waits for its last pieces to be stored.
const LAST: Duration = Duration::from_secs(5);

/// Where the pieces of one job go. Once it is dropped, nobody wants what is not stored yet.
#[derive(Debug)]
pub(crate) struct Stream(Arc<Pieces>);

/// A stream for who stores it.
#[derive(Debug)]
pub(crate) struct Telling {
    pieces: Arc<Pieces>,
    id: JobId,
    receipt: Receipt,
    attempt: u32,
}

#[derive(Debug)]
struct Pieces {
    /// All of them: who has to begin anew sends them again.
    said: Mutex<Vec<Bytes>>,
    told: Board<Told>,
    end: Board<Option<End>>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    n_said: usize,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// More may be said; leads to both others.
    GoesOn,
    /// All is said; leads to `Unwanted`.
    Over,
    /// What is not stored yet need not be.
    Unwanted,
}

/// How a stream ended, and as which attempt it went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    how: How,
    attempt: u32,
    there: There,
}

/// How much of what was said is known to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum There {
    /// Nothing: pieces of a later number may be.
    Nothing,
    /// A part.
    Part,
    /// All of it.
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// All pieces are stored, or unwanted.
    Stored,
    /// The store does not take them.
    GivenUp,
    /// Another attempt has the job, or has answered it.
    Overtaken,
}

/// The place of the next piece.
#[derive(Debug, Clone, Copy)]
struct Place {
    attempt: u32,
    seq: u64,
    /// Pieces before it.
    n_before: usize,
}

/// What became of an offer to the store.
enum Offered {
    /// It is there.
    Taken,
    /// The attempt is somebody else's: all is to be said again under the next number.
    Anew,
    /// Nothing more is to be offered.
    Ended(How),
}

impl Stream {
    /// A stream of a job that was delivered like this, and the other end of it.
    pub(crate) fn begin(delivery: &Delivery) -> (Self, Telling) {
        let told = Board::new(Told { n_said: 0, phase: Phase::GoesOn });
        let pieces = Arc::new(Pieces { said: Mutex::default(), told, end: Board::default() });
        let (id, receipt) = (delivery.job.id.clone(), delivery.receipt().clone());
        let telling =
            Telling { pieces: Arc::clone(&pieces), id, receipt, attempt: delivery.attempt };
        (Self(pieces), telling)
    }

    /// Adds a piece; whether it is not to be stored, for the store takes no more of this stream.
    pub(crate) fn say(&self, piece: Bytes) -> bool {
        let mut said = lock(&self.0.said);
        // Looked at with the pieces held, as who ends the stream does.
        if let Some(end) = self.0.end.get() {
            return end.how == How::GivenUp;
        }
        said.push(piece);
        drop(said);
        self.0.told.update(|told| told.n_said += 1);
        false
    }

    /// Whether another attempt has the job, or has answered it.
    pub(crate) fn is_overtaken(&self) -> bool {
        self.0.end.read(|end| end.is_some_and(|end| end.how == How::Overtaken))
    }

    /// Waits until all pieces are stored or given up; as which attempt they were sent, and how much is
    /// known to be there.
    pub(crate) async fn finish(self) -> Option<(u32, There)> {
        self.end(Phase::Over).await.map(|end| (end.attempt, end.there))
    }

    /// Lets go of what is not stored yet; as which attempt pieces were sent. A call that is under way is
    /// dropped, and may have its effect yet: a piece more of what is void.
    pub(crate) async fn abandon(self) -> Option<u32> {
        self.end(Phase::Unwanted).await.map(|end| end.attempt)
    }

    async fn end(self, phase: Phase) -> Option<End> {
        self.0.enter(phase);
        self.0.end.until(Option::is_some).await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.enter(Phase::Unwanted);
    }
}

impl Pieces {
    fn enter(&self, phase: Phase) {
        self.told.update(|told| told.phase = phase);
    }

    /// What was said from this piece on, joined, and how many pieces it is; none when all is stored.
    async fn from(&self, n_before: usize) -> Option<(Bytes, usize)> {
        let is_so = |told: &Told| told.n_said > n_before || told.phase != Phase::GoesOn;
        self.told.until(is_so).await;
        let said = lock(&self.said);
        let first = said.get(n_before)?;
        let mut size = 0;
        let fits = |piece: &&Bytes| {
            size += piece.len();
            size <= JOINED
        };
        let n = said[n_before..].iter().take_while(fits).count();
        if n < 2 {
            return Some((first.clone(), 1));
        }
        Some((said[n_before..n_before + n].concat().into(), n))
    }

    fn is_over(told: &Told) -> bool {
        told.phase != Phase::GoesOn
    }
}

/// Stores the pieces of all streams of a queue, each for itself.
pub(crate) async fn stream(served: Served, mut begun: Receiver<Telling>) {
    let (mut telling, mut is_open) = (FuturesUnordered::new(), true);
    loop {
        tokio::select! { biased;
            next = begun.recv(), if is_open => match next {
                Some(next) => telling.push(served.tell(next)),
                None => is_open = false,
            },
            Some(()) = telling.next() => {}
            else => return,
        }
    }
}

impl Served {
    async fn tell(&self, telling: Telling) {
        let mut place = Place { attempt: telling.attempt, seq: 0, n_before: 0 };
        let unwanted = |told: &Told| told.phase == Phase::Unwanted;
        let too_long = async {
            telling.pieces.told.until(Pieces::is_over).await;
            // A worker that ends has but little time for the result.
            let ends =
                async { sleep_until(self.shared.turns_end.until(Option::is_some).await).await };
            tokio::select! { biased;
                () = tokio::time::sleep(LAST) => {}
                () = ends => {}
            }
        };
        // A call that is cut off may have its effect: nobody waits for it any more.
        let how = tokio::select! { biased;
            _ = telling.pieces.told.until(unwanted) => How::Stored,
            how = self.tell_all(&telling, &mut place) => how,
            () = too_long => How::GivenUp,
        };
        let mut said = lock(&telling.pieces.said);
        let n_left = said.len() - place.n_before;
        // Nobody reads them any more, and the job may go on for long.
        *said = Vec::new();
        let there = match n_left {
            0 if how == How::Stored => There::All,
            _ if place.n_before == 0 => There::Nothing,
            _ => There::Part,
        };
        telling.pieces.end.set(Some(End { how, attempt: place.attempt, there }));
        drop(said);
        if how == How::GivenUp {
            self.shared.metrics.chunks.with_label_values(&["given_up"]).inc_by(n_left as u64);
            debug!(job.id = %telling.id, n_left, "pieces are not stored; the result will be whole");
        }
    }

    async fn tell_all(&self, telling: &Telling, place: &mut Place) -> How {
        while let Some((body, n)) = telling.pieces.from(place.n_before).await {
            match self.offer(telling, *place, body).await {
                Offered::Taken => {
                    self.shared.metrics.chunks.with_label_values(&["stored"]).inc();
                    (place.seq, place.n_before) = (place.seq + 1, place.n_before + n);
                }
                Offered::Anew => {
                    *place = Place { attempt: place.attempt + 1, seq: 0, n_before: 0 };
                }
                Offered::Ended(how) => return how,
            }
        }
        How::Stored
    }

    /// Offers one piece until there is an answer.
    async fn offer(&self, telling: &Telling, place: Place, body: Bytes) -> Offered {
        let Place { attempt, seq, .. } = place;
        let mut pauses = Pauses::default();
        loop {
            let stored = self.results.chunk(&telling.id, attempt, seq, body.clone()).await;
            let answer = match stored {
                Ok(Stored::Stored) => return Offered::Taken,
                // It had its effect before, though it failed.
                Ok(Stored::Duplicate) if seq > 0 && pauses.n_failures() > 0 => {
                    return Offered::Taken;
                }
                Ok(Stored::Duplicate | Stored::Stale) => self.is_overtaken(telling).await,
                Err(error) => Err(error),
            };
            let error = match answer {
                Ok(true) => return Offered::Ended(How::Overtaken),
                Ok(false) => return Offered::Anew,
                Err(error) => error,
            };
            // Of each piece the first failure is for the log, the others are counted alone: there may be
            // as many streams as jobs.
            match pauses.n_failures() {
                0 => self.complain("chunk", &error),
                _ => self.shared.metrics.broker_errors.with_label_values(&["chunk"]).inc(),
            }
            let pause = pauses.next(Failed::with(error.kind()), self.shared.chance());
            let is_over = telling.pieces.told.read(Pieces::is_over);
            let is_vain = error.kind() == ErrorKind::Invalid || pauses.are_over();
            if is_vain || (is_over && pauses.n_failures() >= PATIENCE) {
                return Offered::Ended(How::GivenUp);
            }
            tokio::select! { biased;
                _ = telling.pieces.told.until(Pieces::is_over), if !is_over => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether the job is another's by now, answered or cancelled; else the pieces that are there are of somebody
    /// who gave it back.
    async fn is_overtaken(&self, telling: &Telling) -> ebb_queue::Result<bool> {
        let held = self.broker.extend(std::slice::from_ref(&telling.receipt)).await?;
        if held.first() != Some(&Settled::Held) {
            return Ok(true);
        }
        let result = self.results.get(&telling.id).await?;
        Ok(result.is_some_and(|result| result.outcome.is_final()))
    }
}
