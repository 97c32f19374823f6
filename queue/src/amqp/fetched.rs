//! Jobs as they came from their lanes, and which of them lie above their priority.

use std::sync::Arc;
use std::time::Duration;

use lapin::message::Delivery;
use tokio::time::Instant;

use super::core::Core;
use super::names::{LANES, Lane};
use super::parcel::{self, Parcel};
use super::session::Session;
use crate::aside::{Aside, FAR};
use crate::{Error, Priority, Timestamp, header};

/// The lane of plain messages.
const PLAIN: Lane = Lane::New(Priority::Normal);
/// The lanes where plain jobs of low priority are taken as they come: after those of them that went
/// on before.
const RESTING: [Lane; LANES.len()] =
    [Lane::Back, Lane::New(Priority::High), Lane::New(Priority::Low), PLAIN];
/// So long a fetch looks past what lies above its priority, job by job where one is asked for.
const LONG: Duration = Duration::from_secs(1);

/// A job as it came.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) parcel: Parcel,
    /// What does not parse.
    pub(super) wrong: Option<Error>,
    pub(super) epoch: u64,
    pub(super) tag: u64,
    pub(super) lane: Lane,
    /// Whether it is not to run now, but to wait where it belongs.
    pub(super) goes_on: bool,
}

impl Fetched {
    pub(super) fn read(delivery: Delivery, lane: Lane, by: &Session, now: Timestamp) -> Self {
        let Delivery { delivery_tag, redelivered, properties, data, .. } = delivery;
        let n_crashes = parcel::crashes(&properties, redelivered, &by.version);
        let (mut parcel, wrong) = Parcel::read_alive(&properties, data, now, n_crashes);
        let mut names = properties.headers().iter().flat_map(|table| table.inner().keys());
        let is_said = names.any(|name| name.as_str().eq_ignore_ascii_case(header::PRIORITY));
        if let (Lane::New(priority), false) = (lane, is_said) {
            parcel.job.headers.priority = priority;
        }
        Self { parcel, wrong, epoch: by.epoch, tag: delivery_tag, lane, goes_on: false }
    }

    /// Whether it lies above its priority; what was begun before goes first all the same.
    fn is_lower(&self) -> bool {
        let is_new = self.parcel.attempts == 0 && self.wrong.is_none();
        self.lane == PLAIN && is_new && self.parcel.job.headers.priority < Priority::Normal
    }
}

/// How many jobs have come that nobody holds yet. They count as fetched ahead: the broker counts them no
/// more, and those that are on their way to whoever asked may take a while.
#[derive(Debug)]
pub(super) struct Coming {
    core: Arc<Core>,
    n: u64,
}

impl Coming {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core, n: 0 }
    }

    fn set(&mut self, n: u64) {
        if n == self.n {
            return;
        }
        let mut ledger = self.core.ledger();
        ledger.n_coming = (ledger.n_coming + n).saturating_sub(self.n);
        drop(ledger);
        // What comes behind the first is told with it.
        if n == 0 || self.n == 0 {
            self.core.counts_changed.notify_one();
        }
        self.n = n;
    }

    /// One more has come.
    pub(super) fn add(&mut self) {
        self.set(self.n + 1);
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What came for somebody who asked. Where nobody waits for it any more it is dropped, and goes back
/// uncharged: the broker knows of no lease that ends.
#[derive(Debug)]
pub(super) struct Caught {
    fetched: Vec<Fetched>,
    coming: Coming,
}

impl Caught {
    pub(super) fn new(fetched: Vec<Fetched>, mut coming: Coming) -> Self {
        coming.set(fetched.len() as u64);
        Self { fetched, coming }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fetched.is_empty()
    }

    /// All of it, for whoever sees to it from now on; it is counted here until this is dropped.
    pub(super) fn take(&mut self) -> Vec<Fetched> {
        std::mem::take(&mut self.fetched)
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        if self.fetched.is_empty() {
            return;
        }
        let core = &self.coming.core;
        let mut ledger = core.ledger();
        for Fetched { parcel, epoch, tag, .. } in self.fetched.drain(..) {
            let lease = ledger.lease(parcel, (epoch, tag), Instant::now());
            ledger.disown(lease);
        }
        drop(ledger);
        core.ledger_changed();
    }
}

/// What one fetch brings.
pub(super) struct Catch {
    max: usize,
    begin: Instant,
    pub(super) coming: Coming,
    /// Whether nothing is to wait aside.
    rests: bool,
    found: Vec<Fetched>,
    /// Lies above its priority, and waits for what else there is.
    aside: Vec<Fetched>,
}

impl Catch {
    pub(super) fn new(max: usize, begin: Instant, coming: Coming, aside: &Aside) -> Self {
        let (found, rests) = (Vec::new(), aside.rests(begin));
        Self { max, begin, coming, rests, found, aside: Vec::new() }
    }

    /// The lanes, the first to be served first.
    pub(super) fn lanes(&self) -> [Lane; LANES.len()] {
        if self.rests { RESTING } else { LANES }
    }

    /// How many more may come.
    pub(super) fn room(&self) -> usize {
        self.max.saturating_sub(self.found.len())
    }

    pub(super) fn put(&mut self, mut one: Fetched, aside: &mut Aside) {
        one.goes_on = false;
        if !one.is_lower() {
            if one.lane == PLAIN {
                aside.meet_better();
            }
            return self.found.push(one);
        }
        aside.meet_lower(Instant::now());
        let into = if self.rests { &mut self.found } else { &mut self.aside };
        into.push(one);
    }

    /// Whether enough of this lane lies aside.
    pub(super) fn is_far(&self, lane: Lane, aside: &Aside) -> bool {
        let is_late = || self.begin.elapsed() >= LONG;
        let is_much = || self.aside.len() >= FAR || aside.rests(Instant::now()) || is_late();
        lane == PLAIN && !self.aside.is_empty() && is_much()
    }

    /// All of it, the best first. What lies aside runs as far as there is room for it; the rest goes
    /// on.
    pub(super) fn end(mut self) -> Caught {
        self.aside.sort_by_key(|one| one.parcel.rank());
        let room = self.room().min(self.aside.len());
        self.found.extend(self.aside.drain(..room));
        self.found.sort_by_key(|one| one.parcel.rank());
        for mut one in self.aside {
            one.goes_on = true;
            self.found.push(one);
        }
        Caught::new(self.found, self.coming)
    }

    /// All of it, as it came.
    pub(super) fn give_up(self) -> impl Iterator<Item = Fetched> {
        self.found.into_iter().chain(self.aside)
    }
}
