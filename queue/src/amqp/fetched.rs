//! Jobs as they came from their lanes, and which of them lie above their priority.

use std::time::Duration;

use lapin::message::Delivery;
use tokio::time::Instant;

use super::names::{LANES, Lane};
use super::parcel::Parcel;
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
    pub(super) fn read(delivery: Delivery, lane: Lane, epoch: u64, now: Timestamp) -> Self {
        let Delivery { delivery_tag, properties, data, .. } = delivery;
        let (mut parcel, wrong) = Parcel::read(&properties, data, now);
        let mut names = properties.headers().iter().flat_map(|table| table.inner().keys());
        let is_said = names.any(|name| name.as_str().eq_ignore_ascii_case(header::PRIORITY));
        if let (Lane::New(priority), false) = (lane, is_said) {
            parcel.job.headers.priority = priority;
        }
        Self { parcel, wrong, epoch, tag: delivery_tag, lane, goes_on: false }
    }

    /// Whether it lies above its priority; what was begun before goes first all the same.
    fn is_lower(&self) -> bool {
        let is_new = self.parcel.attempts == 0 && self.wrong.is_none();
        self.lane == PLAIN && is_new && self.parcel.job.headers.priority < Priority::Normal
    }
}

/// What one fetch brings.
pub(super) struct Catch {
    max: usize,
    begin: Instant,
    /// Whether nothing is to wait aside.
    rests: bool,
    found: Vec<Fetched>,
    /// Lies above its priority, and waits for what else there is.
    aside: Vec<Fetched>,
}

impl Catch {
    pub(super) fn new(max: usize, begin: Instant, aside: &Aside) -> Self {
        let (found, rests) = (Vec::new(), aside.rests(begin));
        Self { max, begin, rests, found, aside: Vec::new() }
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
    pub(super) fn end(mut self) -> Vec<Fetched> {
        self.aside.sort_by_key(|one| one.parcel.rank());
        let room = self.room().min(self.aside.len());
        self.found.extend(self.aside.drain(..room));
        self.found.sort_by_key(|one| one.parcel.rank());
        for mut one in self.aside {
            one.goes_on = true;
            self.found.push(one);
        }
        self.found
    }

    /// All of it, as it came.
    pub(super) fn give_up(self) -> impl Iterator<Item = Fetched> {
        self.found.into_iter().chain(self.aside)
    }
}
