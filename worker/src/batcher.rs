//! Groups jobs into batches. No clock and no task in here: time comes in as an argument.
//!
//! Batches bind late: as long as the device is busy a batch may still get better, so it is closed
//! when the device is about to be free, and not before.

mod size;

use std::cmp::Reverse;
use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::Priority;
use tokio::time::Instant;

pub use size::Size;

/// A job passed over this often leads the next batch, whatever its priority and length.
const PATIENCE: u32 = 4;

/// What a batch may be at most. A single job larger than that runs alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows.
    pub max_items: NonZeroUsize,
    /// Tokens that the device works through.
    pub max_cost: NonZeroUsize,
    /// How long a free device waits for jobs that are known to be coming, while there is room.
    pub max_wait: Duration,
}

impl Limits {
    /// How full a batch of this size is, from 0 to 1: by rows or by tokens, whichever is nearer to
    /// its limit. What runs alone because it is larger counts as full.
    #[must_use]
    pub fn filled(&self, size: Size) -> f64 {
        let rows = size.rows as f64 / self.max_items.get() as f64;
        let cost = size.cost() as f64 / self.max_cost.get() as f64;
        rows.max(cost).min(1.0)
    }
}

/// What is known of the world outside when a batch might be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// When the device is about to be free; `None` while that is not known, or the next batch is
    /// bound already.
    pub free_at: Option<Instant>,
    /// Whether jobs are being decoded that will be here in a moment.
    pub more: bool,
    /// What a batch costs before its first row: less padding than half of this beats another batch.
    pub overhead: usize,
    /// The cost from which a batch is large enough: more rows would only keep the others waiting.
    pub enough: usize,
}

/// A job to be batched.
#[derive(Debug, Clone, Copy)]
pub struct Entry<T> {
    /// The job.
    pub item: T,
    /// How much of the device it takes.
    pub size: Size,
    /// Who leads a batch.
    pub priority: Priority,
    /// Whether it must run in a batch of its own.
    pub alone: bool,
    /// When it first came here, of a job that is back for another turn: those go before who has not
    /// begun, so that no more are under way than fit into a batch.
    pub begun: Option<Instant>,
}

/// Why a batch was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Nobody else fits, it is large enough, or it runs alone.
    Full,
    /// The device is free, and nobody else is there.
    Free,
    /// The device has waited long enough for those who are being decoded.
    Waited,
}

impl Closed {
    /// As a label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Free => "free",
            Self::Waited => "waited",
        }
    }
}

/// A batch that is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<T> {
    /// The jobs, in the order of their arrival.
    pub items: Vec<T>,
    /// Their size together.
    pub size: Size,
    /// Why it was closed.
    pub closed: Closed,
}

/// Jobs waiting to be batched.
#[derive(Debug)]
pub struct Batcher<T> {
    limits: Limits,
    // In the order of arrival.
    waiting: Vec<Waiting<T>>,
    /// Whether the last batch was of one that runs alone, between the turns of others.
    came_between: bool,
}

#[derive(Debug)]
struct Waiting<T> {
    entry: Entry<T>,
    arrived: Instant,
    /// Since when it waits for this turn.
    since: Instant,
    passed: u32,
}

impl<T> Waiting<T> {
    fn is_passed_over(&self) -> bool {
        self.passed >= PATIENCE
    }

    /// Whether it can join nobody, and so has no place beside those that go on.
    fn begins_alone(&self) -> bool {
        self.entry.alone && self.entry.begun.is_none()
    }
}

impl<T> Batcher<T> {
    /// Nothing waits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, waiting: Vec::new(), came_between: false }
    }

    /// Adds a job; one that is back for another turn has its old place.
    pub fn push(&mut self, entry: Entry<T>, now: Instant) {
        let arrived = entry.begun.unwrap_or(now);
        let place = self.waiting.partition_point(|waiting| waiting.arrived <= arrived);
        self.waiting.insert(place, Waiting { entry, arrived, since: now, passed: 0 });
    }

    /// Changes the largest cost of a batch, as the memory of the device allows.
    pub fn bound(&mut self, max_cost: NonZeroUsize) {
        self.limits.max_cost = max_cost;
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When [`Self::close`] will answer though nothing is pushed; `None`: not by time alone.
    #[must_use]
    pub fn deadline(&self, view: &View) -> Option<Instant> {
        let free_at = view.free_at?;
        let oldest = self.waiting.first()?;
        let patience_ends = oldest.arrived + self.limits.max_wait;
        Some(if view.more { free_at.max(patience_ends) } else { free_at })
    }

    /// The next batch, if now is the time for it.
    pub fn close(&mut self, now: Instant, view: &View) -> Option<Batch<T>> {
        let (chosen, closed) = self.ripe(now, view)?;
        Some(self.take(&chosen, closed))
    }

    /// Whether [`Self::close`] would answer.
    #[must_use]
    pub fn is_ready(&self, now: Instant, view: &View) -> bool {
        self.ripe(now, view).is_some()
    }

    /// Whether one waits that is back for another turn.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.entry.begun.is_some())
    }

    /// The priority of the job that leads the next batch, and since when it waits for this turn.
    #[must_use]
    pub fn urgency(&self) -> Option<(Priority, Instant)> {
        let leader = &self.waiting[self.leader()?];
        Some((leader.entry.priority, leader.since))
    }

    /// Who would be in the next batch and why it would be closed, if now is the time for it.
    fn ripe(&self, now: Instant, view: &View) -> Option<(Vec<usize>, Closed)> {
        let deadline = self.deadline(view)?;
        view.free_at.filter(|free_at| *free_at <= now)?;
        let (chosen, full) = self.choose(view)?;
        let closed = match (full, deadline <= now) {
            (true, _) => Closed::Full,
            (false, true) if view.more => Closed::Waited,
            (false, true) => Closed::Free,
            (false, false) => return None,
        };
        Some((chosen, closed))
    }

    /// All that wait, in the order of arrival: they will not be batched any more.
    pub fn drain(&mut self) -> Vec<T> {
        self.waiting.drain(..).map(|waiting| waiting.entry.item).collect()
    }

    /// All of whom this is so, in the order of arrival: they will not be batched any more.
    pub fn drain_if(&mut self, is_so: impl Fn(&T) -> bool) -> Vec<T> {
        let out = self.waiting.extract_if(.., |waiting| is_so(&waiting.entry.item));
        out.map(|waiting| waiting.entry.item).collect()
    }

    /// All that have not begun, in the order of arrival.
    pub fn drain_unbegun(&mut self) -> Vec<T> {
        let unbegun = self.waiting.extract_if(.., |waiting| waiting.entry.begun.is_none());
        unbegun.map(|waiting| waiting.entry.item).collect()
    }

    /// Who would be in the next batch, and whether nobody else fits.
    fn choose(&self, view: &View) -> Option<(Vec<usize>, bool)> {
        let leader = self.leader()?;
        let lead = &self.waiting[leader].entry;
        let mut chosen = vec![leader];
        if lead.alone {
            return Some((chosen, true));
        }
        let mut size = lead.size;
        let mut real = size.span();
        let mut full = self.is_over(size);
        // Where one that was passed over too often has to wait for who goes on, or one that goes on has
        // to wait for room, no other begins.
        let are_under_way = self.has_begun();
        let is_due = |waiting: &Waiting<T>| waiting.begins_alone() && waiting.is_passed_over();
        let mut may_begin = !are_under_way || !self.waiting.iter().any(is_due);
        for place in self.by_likeness(leader) {
            if size.cost() >= view.enough {
                break;
            }
            let waiting = &self.waiting[place];
            let goes_on = waiting.entry.begun.is_some();
            if !goes_on && !may_begin {
                continue;
            }
            let candidate = waiting.entry.size;
            let grown = size.and(candidate);
            if self.is_over(grown) {
                full = true;
                may_begin &= !goes_on && (!are_under_way || !waiting.is_passed_over());
                continue;
            }
            let grown_real = real.saturating_add(candidate.span());
            let padding = grown.span().saturating_sub(grown_real);
            if padding > size.spare(view.overhead, grown_real) {
                continue;
            }
            chosen.push(place);
            (size, real) = (grown, grown_real);
        }
        full |= size.rows >= self.limits.max_items.get() || size.cost() >= view.enough;
        chosen.sort_unstable();
        Some((chosen, full))
    }

    /// The oldest of those passed over too often, else the oldest of the highest priority, first of
    /// those that have begun. Where any has, no other may push one of them out for being passed over.
    fn leader(&self) -> Option<usize> {
        if let Some(alone) = self.comes_between() {
            return Some(alone);
        }
        let goes_on = self.has_begun();
        let passed_over =
            |one: &Waiting<T>| one.is_passed_over() && (!goes_on || one.entry.begun.is_some());
        let passed_over = self.waiting.iter().position(passed_over);
        let by_priority = || {
            let priorities = self.waiting.iter().enumerate();
            priorities.min_by_key(|(_, Waiting { entry, .. })| {
                (Reverse(entry.priority), entry.begun.is_none())
            })
        };
        passed_over.or_else(|| Some(by_priority()?.0))
    }

    /// One that runs alone has a batch of its own between two turns of the others, once it was passed
    /// over too often: where there is room for it beside them afterwards, else when it has waited as
    /// long again. The others have a turn before the next one does.
    fn comes_between(&self) -> Option<usize> {
        if self.came_between || !self.has_begun() {
            return None;
        }
        let under_way = self.waiting.iter().filter(|waiting| waiting.entry.begun.is_some());
        let has_room = |size| {
            let together = under_way.clone().fold(size, |size: Size, one| size.and(one.entry.size));
            !self.is_over(together)
        };
        let is_due = |waiting: &Waiting<T>| {
            waiting.begins_alone()
                && waiting.is_passed_over()
                && (waiting.passed >= 2 * PATIENCE || has_room(waiting.entry.size))
        };
        self.waiting.iter().position(is_due)
    }

    /// Everybody who may join the leader: by priority, who has begun first, and then who was passed
    /// over too often by others that began; then by likeness of length, then by age.
    fn by_likeness(&self, leader: usize) -> Vec<usize> {
        let bucket = self.waiting[leader].entry.size.bucket();
        let may_join = |place: &usize| *place != leader && !self.waiting[*place].entry.alone;
        let mut places: Vec<usize> = (0..self.waiting.len()).filter(may_join).collect();
        let goes_on = self.has_begun();
        places.sort_by_key(|place| {
            let entry = &self.waiting[*place].entry;
            let unlike = entry.size.bucket().abs_diff(bucket);
            let is_patient = !self.waiting[*place].is_passed_over();
            (Reverse(entry.priority), entry.begun.is_none(), is_patient && goes_on, unlike, *place)
        });
        places
    }

    fn is_over(&self, size: Size) -> bool {
        size.rows > self.limits.max_items.get() || size.cost() > self.limits.max_cost.get()
    }

    /// Takes out the chosen, whose places are sorted; all others have been passed over once more.
    fn take(&mut self, chosen: &[usize], closed: Closed) -> Batch<T> {
        // Who goes on passes nobody that has yet to begin, but for those that can never join them; and
        // who begins beside those passes the older.
        let has_begun = |place: &&usize| self.waiting[**place].entry.begun.is_some();
        let goes_on = chosen.iter().any(|place| has_begun(&place));
        let youngest = chosen.iter().rfind(|place| !has_begun(place)).copied();
        let passes = if goes_on { youngest.unwrap_or_default() } else { usize::MAX };
        let is_alone = chosen.iter().all(|place| self.waiting[*place].begins_alone());
        self.came_between = is_alone && self.has_begun();
        let mut chosen = chosen.iter().copied().peekable();
        let mut items = Vec::new();
        let mut size: Option<Size> = None;
        let waiting = std::mem::take(&mut self.waiting);
        for (place, mut waiting) in waiting.into_iter().enumerate() {
            if chosen.next_if_eq(&place).is_some() {
                size = Some(size.map_or(waiting.entry.size, |size| size.and(waiting.entry.size)));
                items.push(waiting.entry.item);
            } else {
                let stands_aside = goes_on && waiting.begins_alone();
                let is_passed = place < passes || waiting.entry.begun.is_some() || stands_aside;
                waiting.passed = waiting.passed.saturating_add(u32::from(is_passed));
                if self.came_between && waiting.begins_alone() {
                    // One after the other, with turns of the rest in between.
                    waiting.passed = waiting.passed.min(PATIENCE);
                }
                self.waiting.push(waiting);
            }
        }
        Batch { items, size: size.unwrap_or(Size::ONE), closed }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ebb_model::Layout;
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limits(max_items: usize, max_cost: usize) -> Limits {
        Limits {
            max_items: NonZeroUsize::new(max_items).unwrap(),
            max_cost: NonZeroUsize::new(max_cost).unwrap(),
            max_wait: 5 * MS,
        }
    }

    fn entry<T>(item: T, length: usize) -> Entry<T> {
        let (size, priority) = (Size::of([length]), Priority::Normal);
        Entry { item, size, priority, alone: false, begun: None }
    }

    fn free(now: Instant) -> View {
        View { free_at: Some(now), more: false, overhead: 0, enough: usize::MAX }
    }

    #[test]
    fn a_free_device_gets_what_is_there_at_once() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(8, 100));
        assert_eq!(batcher.close(now, &free(now)), None);
        batcher.push(entry("a", 3), now);
        batcher.push(entry("b", 3), now);
        let batch = batcher.close(now, &free(now)).unwrap();
        assert_eq!(batch.items, ["a", "b"]);
        assert_eq!(batch.size, Size::of([3, 3]));
        assert_eq!(batch.closed, Closed::Free);
        assert!(batcher.is_empty());
    }

    #[test]
    fn a_busy_device_leaves_the_batch_open_until_it_is_about_to_be_free() {
        let now = Instant::now();
        let busy = View { free_at: Some(now + 10 * MS), ..free(now) };
        let bound = View { free_at: None, ..free(now) };
        let mut batcher = Batcher::new(limits(2, 100));
        batcher.push(entry("a", 3), now);
        assert_eq!(batcher.close(now, &busy), None);
        assert_eq!(batcher.deadline(&busy), Some(now + 10 * MS));
        assert_eq!(batcher.deadline(&bound), None);
        assert_eq!(batcher.close(now + 100 * MS, &bound), None);

        batcher.push(entry("b", 3), now);
        batcher.push(Entry { priority: Priority::High, ..entry("urgent", 3) }, now);
        assert_eq!(batcher.close(now, &busy), None, "full, and it can still get better");
        let batch = batcher.close(now + 10 * MS, &busy).unwrap();
        assert_eq!((&batch.items[..], batch.closed), (&["a", "urgent"][..], Closed::Full));
    }

    #[test]
    fn a_free_device_waits_a_little_for_jobs_that_are_being_decoded() {
        let now = Instant::now();
        let view = View { more: true, ..free(now) };
        let mut batcher = Batcher::new(limits(8, 100));
        batcher.push(entry("a", 3), now);
        assert_eq!(batcher.close(now + 4 * MS, &view), None);
        assert_eq!(batcher.deadline(&view), Some(now + 5 * MS));
        let batch = batcher.close(now + 5 * MS, &view).unwrap();
        assert_eq!((&batch.items[..], batch.closed), (&["a"][..], Closed::Waited));

        for item in ["a", "b", "c"] {
            batcher.push(entry(item, 40), now);
        }
        assert_eq!(batcher.close(now, &view).unwrap().items, ["a", "b"], "no room for more");
    }

    #[test]
    fn jobs_of_like_length_are_batched_together() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(8, 10_000));
        for (item, length) in [("long", 500), ("s1", 10), ("s2", 12), ("long2", 480), ("s3", 11)] {
            batcher.push(entry(item, length), now);
        }
        assert_eq!(batcher.close(now, &free(now)).unwrap().items, ["long", "long2"]);
        assert_eq!(batcher.close(now, &free(now)).unwrap().items, ["s1", "s2", "s3"]);
        // Padding that is cheaper than another batch is no reason to part.
        for (item, length) in [("a", 10), ("b", 30)] {
            batcher.push(entry(item, length), now);
        }
        let dear = View { overhead: 64, ..free(now) };
        assert_eq!(batcher.close(now, &dear).unwrap().items, ["a", "b"]);
    }

    #[test]
    fn padding_that_costs_most_of_another_batch_is_a_reason_to_part() {
        let now = Instant::now();
        let dear = View { overhead: 64, ..free(now) };
        for (layout, length, together) in [
            (Layout::Padded, 130, true),
            (Layout::Padded, 140, false),
            // There it costs nothing.
            (Layout::Alike, 140, true),
        ] {
            let mut batcher = Batcher::new(limits(8, 10_000));
            for (item, length) in [("a", 100), ("b", length)] {
                let entry = entry(item, length);
                batcher.push(Entry { size: entry.size.laid(layout), ..entry }, now);
            }
            let n = batcher.close(now, &dear).unwrap().items.len();
            assert_eq!(n == 2, together, "{length} tokens {layout:?}");
        }
    }

    #[test]
    fn texts_end_to_end_pad_each_other_by_nothing() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(8, 1_000));
        for (item, length) in [("long", 500), ("s1", 10), ("long2", 480), ("s2", 12)] {
            let entry = entry(item, length);
            batcher.push(Entry { size: entry.size.laid(Layout::Packed), ..entry }, now);
        }
        let batch = batcher.close(now, &free(now)).unwrap();
        assert_eq!(batch.items, ["long", "s1", "long2"], "990 of 1,000 tokens");
        assert_eq!((batch.size.cost(), batch.size.padding()), (990, 0.0));
        assert_eq!(batcher.close(now, &free(now)).unwrap().items, ["s2"]);
    }

    #[test]
    fn texts_end_to_end_that_belong_among_their_like_cost_their_tokens_alone() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(8, 1_000));
        for (item, length) in [("long", 500), ("s1", 10), ("long2", 480), ("s2", 12)] {
            let entry = entry(item, length);
            batcher.push(Entry { size: entry.size.laid(Layout::Alike), ..entry }, now);
        }
        let batch = batcher.close(now, &free(now)).unwrap();
        assert_eq!(batch.items, ["long", "long2"], "a short one would wait for them");
        assert_eq!((batch.size.cost(), batch.size.padding()), (980, 0.0));
        assert_eq!(batcher.close(now, &free(now)).unwrap().items, ["s1", "s2"]);
    }

    #[test]
    fn a_batch_that_is_large_enough_keeps_nobody_waiting() {
        let now = Instant::now();
        let view = View { enough: 25, more: true, ..free(now) };
        let mut batcher = Batcher::new(limits(8, 1_000));
        for item in ["a", "b", "c", "d"] {
            batcher.push(entry(item, 10), now);
        }
        let batch = batcher.close(now, &view).unwrap();
        assert_eq!((&batch.items[..], batch.closed), (&["a", "b", "c"][..], Closed::Full));
        assert_eq!(batcher.close(now, &view), None, "d waits for who is being decoded");
        batcher.push(entry("long", 500), now);
        let view = View { more: false, ..view };
        assert_eq!(batcher.close(now, &view).unwrap().items, ["d"]);
        assert_eq!(batcher.close(now, &view).unwrap().items, ["long"], "large as it is");
    }

    #[test]
    fn a_suspect_runs_alone_and_a_giant_too() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(4, 100));
        batcher.push(Entry { alone: true, ..entry("suspect", 3) }, now);
        batcher.push(entry("a", 3), now);
        batcher.push(entry("giant", 5_000), now);
        batcher.push(entry("b", 3), now);
        let mut batches = Vec::new();
        while let Some(batch) = batcher.close(now, &free(now)) {
            batches.push(batch.items);
        }
        assert_eq!(batches, [vec!["suspect"], vec!["a", "b"], vec!["giant"]]);
    }

    #[test]
    fn a_batch_is_as_full_as_its_rows_or_its_tokens_are() {
        let limits = limits(8, 100);
        let filled = [&[10; 4][..], &[40; 2], &[500], &[1]]
            .map(|lengths| limits.filled(Size::of(lengths.iter().copied())));
        assert_eq!(filled, [0.5, 0.8, 1.0, 0.125]);
    }

    #[test]
    fn the_memory_of_the_device_bounds_a_batch() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(8, 100));
        for item in 0..8 {
            batcher.push(entry(item, 10), now);
        }
        batcher.bound(NonZeroUsize::new(20).unwrap());
        assert_eq!(batcher.close(now, &free(now)).unwrap().items, [0, 1]);
        batcher.bound(NonZeroUsize::new(40).unwrap());
        assert_eq!(batcher.close(now, &free(now)).unwrap().items, [2, 3, 4, 5]);
    }

    #[test]
    fn who_has_begun_goes_before_who_has_not_unless_that_is_more_urgent() {
        let start = Instant::now();
        let (mut batcher, now) = (Batcher::new(limits(2, 10_000)), start + 9 * MS);
        batcher.push(entry("new", 10), start + MS);
        let back = |item, after| Entry { begun: Some(start + after), ..entry(item, 500) };
        batcher.push(back("second", 3 * MS), now);
        batcher.push(back("first", 2 * MS), now);
        let view = View { overhead: usize::MAX, ..free(now) };
        assert_eq!(batcher.urgency(), Some((Priority::Normal, now)));
        assert_eq!(batcher.close(now, &view).unwrap().items, ["first", "second"]);
        assert!(!batcher.has_begun());

        batcher.push(back("second", 3 * MS), now);
        batcher.push(back("first", 2 * MS), now);
        batcher.push(Entry { priority: Priority::High, ..entry("urgent", 10) }, now);
        assert_eq!(batcher.close(now, &view).unwrap().items, ["first", "urgent"]);
        assert!(batcher.has_begun());
        assert_eq!((batcher.drain_unbegun(), batcher.drain()), (vec!["new"], vec!["second"]));
    }

    #[test]
    fn a_long_job_that_others_begin_before_is_next_as_soon_as_there_is_room() {
        let start = Instant::now();
        let mut batcher = Batcher::new(limits(8, 100));
        let size = |length| Size::of([length]).laid(Layout::Packed);
        let new = |item, length| Entry { size: size(length), ..entry(item, length) };
        let back = |item, n| Entry { begun: Some(start + n * MS), ..new(item, 30) };
        let view = View { overhead: usize::MAX, ..free(start + 50 * MS) };
        batcher.push(new("long", 60), start + 5 * MS);
        let mut joined = Vec::new();
        for turn in 10..20 {
            batcher.push(back("one", 1), start + turn * MS);
            batcher.push(back("two", 2), start + turn * MS);
            batcher.push(new("short", 1), start + turn * MS);
            let batch = batcher.close(start + 50 * MS, &view).unwrap();
            assert_eq!(batch.items[..2], ["one", "two"]);
            joined.push(batch.items.contains(&"short"));
        }
        assert_eq!(joined.iter().filter(|one| **one).count(), PATIENCE as usize, "{joined:?}");
        batcher.push(back("one", 1), start + 30 * MS);
        let batch = batcher.close(start + 50 * MS, &view).unwrap();
        assert_eq!(batch.items[..2], ["one", "long"]);
    }

    /// After how many batches a suspect is begun, among jobs of so many turns of which one arrives
    /// before each batch.
    fn begun_after(n_turns: usize, max_items: usize) -> usize {
        let start = Instant::now();
        let mut batcher = Batcher::new(limits(max_items, 10_000));
        let mut left = BTreeMap::new();
        for turn in 0..1_000 {
            let now = start + u32::try_from(turn).unwrap() * MS;
            left.insert(turn, (n_turns, now));
            batcher.push(entry(turn, 10), now);
            if turn == 20 {
                batcher.push(Entry { alone: true, ..entry(9_999, 10) }, now);
            }
            let items = batcher.close(now, &free(now)).unwrap().items;
            if items == [9_999] {
                return turn - 20;
            }
            assert!(!items.contains(&9_999), "{items:?}");
            for item in items {
                let (n_left, arrived) = left.get_mut(&item).unwrap();
                *n_left -= 1;
                if *n_left > 0 {
                    batcher.push(Entry { begun: Some(*arrived), ..entry(item, 10) }, now);
                }
            }
        }
        panic!("it starves");
    }

    #[test]
    fn a_suspect_is_begun_soon_though_others_are_always_under_way() {
        let patience = PATIENCE as usize;
        for (n_turns, max_items) in [(3, 8), (50, 64), (50, 4), (1_000, 2)] {
            let after = begun_after(n_turns, max_items);
            assert!(after <= 2 * patience, "{n_turns} turns of {max_items}: after {after}");
        }
        assert!(begun_after(50, 64) <= patience, "there is room");
    }

    #[test]
    fn suspects_begin_one_by_one_with_turns_of_the_others_between_them() {
        let start = Instant::now();
        let mut batcher = Batcher::new(limits(8, 10_000));
        let back = |item| Entry { begun: Some(start), ..entry(item, 10) };
        for item in ["s1", "s2", "s3"] {
            batcher.push(Entry { alone: true, ..entry(item, 10) }, start + MS);
        }
        batcher.push(back("old"), start);
        let mut led = Vec::new();
        for turn in 2..20 {
            let now = start + turn * MS;
            let items = batcher.close(now, &free(now)).unwrap().items;
            if items == ["old"] {
                batcher.push(back("old"), now);
            }
            led.extend(items);
        }
        let suspects = led.iter().enumerate().filter(|(_, item)| **item != "old");
        let suspects: Vec<_> = suspects.map(|(nth, item)| (nth, *item)).collect();
        assert_eq!(suspects, [(4, "s1"), (6, "s2"), (8, "s3")], "{led:?}");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { lengths: Vec<usize>, priority: Priority, alone: bool },
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        let priority =
            prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
        let lengths = prop::collection::vec(1..600usize, 1..4);
        let push = (lengths, priority, prop::bool::weighted(0.1))
            .prop_map(|(lengths, priority, alone)| Step::Push { lengths, priority, alone });
        prop_oneof![3 => push, 1 => Just(Step::Close)]
    }

    proptest! {
        #[test]
        fn nothing_is_lost_no_limit_is_passed_and_nobody_starves(
            steps in prop::collection::vec(step(), 1..200),
            max_items in 1..40usize,
            max_cost in 1..5_000usize,
            overhead in 0..200usize,
            enough in 1..5_000usize,
            layout in prop_oneof![
                Just(Layout::Padded),
                Just(Layout::Packed),
                Just(Layout::Alike),
            ],
        ) {
            let now = Instant::now();
            let view = View { overhead, enough, ..free(now) };
            let mut batcher = Batcher::new(limits(max_items, max_cost));
            // What waits, with its entry and after how many batches it must be out.
            let mut waiting = BTreeMap::new();
            let mut n_closed = 0usize;
            let n_steps = steps.len();
            let drain = std::iter::repeat_n(Step::Close, n_steps);
            for (number, step) in steps.into_iter().chain(drain).enumerate() {
                match step {
                    Step::Push { lengths, priority, alone } => {
                        let size = Size::of(lengths).laid(layout);
                        let entry = Entry { item: number, size, priority, alone, begun: None };
                        batcher.push(entry, now);
                        let due = n_closed + PATIENCE as usize + 1 + waiting.len();
                        waiting.insert(number, (entry, due));
                    }
                    Step::Close => {
                        let Some(batch) = batcher.close(now, &view) else {
                            prop_assert!(waiting.is_empty());
                            continue;
                        };
                        n_closed += 1;
                        let mut entries = Vec::new();
                        for item in &batch.items {
                            let (entry, due) = waiting.remove(item).expect("it waits, and once");
                            prop_assert!(n_closed <= due, "{item} left at {n_closed}, due {due}");
                            entries.push(entry);
                        }
                        let real: usize = entries.iter().map(|entry| entry.size.span()).sum();
                        let rows: usize = entries.iter().map(|entry| entry.size.rows).sum();
                        let length = entries.iter().map(|entry| entry.size.length).max().unwrap();
                        let tokens = entries.iter().map(|entry| entry.size.tokens).sum();
                        prop_assert_eq!(batch.size, Size { rows, length, tokens, layout });
                        let cost = if layout == Layout::Padded { rows * length } else { tokens };
                        let span = if layout == Layout::Packed { tokens } else { rows * length };
                        if entries.len() > 1 {
                            prop_assert!(rows <= max_items);
                            prop_assert!(cost <= max_cost);
                            let spare = match layout {
                                Layout::Padded => (overhead / 2).max(real / 8),
                                Layout::Packed | Layout::Alike => overhead.max(real / 4),
                            };
                            prop_assert!(span - real <= spare);
                            prop_assert!(entries.iter().all(|entry| !entry.alone));
                        }
                        prop_assert!(batch.items.is_sorted(), "in the order of arrival");
                    }
                }
            }
            prop_assert!(waiting.is_empty(), "left behind: {:?}", waiting);
        }

        #[test]
        fn jobs_of_several_turns_are_done_in_as_many_batches_and_no_more_at_once_than_fit(
            jobs in prop::collection::vec((1..8usize, 0..4u32), 1..60),
            max_items in 1..9usize,
        ) {
            let start = Instant::now();
            let mut batcher = Batcher::new(limits(max_items, 10_000));
            let (mut left, mut came) = (BTreeMap::new(), jobs.iter().enumerate().peekable());
            let mut under_way: BTreeMap<usize, Instant> = BTreeMap::new();
            let mut tick = 0u32;
            while came.peek().is_some() || !batcher.is_empty() {
                tick += 1;
                let now = start + tick * MS;
                while let Some((number, (n_turns, _))) =
                    came.next_if(|(_, (_, wait))| tick.is_multiple_of(1 + *wait))
                {
                    left.insert(number, (*n_turns, now));
                    batcher.push(entry(number, 10), now);
                }
                let Some(batch) = batcher.close(now, &free(now)) else { continue };
                prop_assert!(batch.items.len() <= max_items);
                let goes_on = under_way.keys().all(|item| batch.items.contains(item));
                prop_assert!(goes_on, "{:?} of {:?}", batch.items, under_way);
                for item in batch.items {
                    let (n_turns, arrived) = left.get_mut(&item).expect("it is not done");
                    *n_turns -= 1;
                    if *n_turns == 0 {
                        left.remove(&item);
                        under_way.remove(&item);
                    } else {
                        under_way.insert(item, *arrived);
                        batcher.push(Entry { begun: Some(*arrived), ..entry(item, 10) }, now);
                    }
                }
                prop_assert!(under_way.len() <= max_items);
            }
            prop_assert!(left.is_empty());
        }

        #[test]
        fn nobody_begins_while_one_that_goes_on_finds_no_room(
            jobs in prop::collection::vec((1..8usize, 1..90usize), 1..60),
            bounds in prop::collection::vec(60..400usize, 1..20),
        ) {
            let start = Instant::now();
            let mut batcher = Batcher::new(limits(16, 400));
            let size = |length| Size::of([length]).laid(Layout::Packed);
            let (mut left, mut came) = (BTreeMap::new(), jobs.iter().enumerate());
            let mut under_way: BTreeMap<usize, Instant> = BTreeMap::new();
            let mut tick = 0u32;
            loop {
                tick += 1;
                let now = start + tick * MS;
                if let Some((number, (n_turns, length))) = came.next() {
                    left.insert(number, (*n_turns, *length, now));
                    batcher.push(Entry { size: size(*length), ..entry(number, 1) }, now);
                }
                if batcher.is_empty() {
                    break;
                }
                let bound = bounds[tick as usize % bounds.len()];
                batcher.bound(NonZeroUsize::new(bound).unwrap());
                let view = View { overhead: usize::MAX, ..free(now) };
                let batch = batcher.close(now, &view).unwrap();
                let is_new = |item: &usize| !under_way.contains_key(item);
                let all_go_on = under_way.keys().all(|item| batch.items.contains(item));
                prop_assert!(all_go_on || !batch.items.iter().any(is_new), "{:?}", batch.items);
                for item in batch.items {
                    let (n_turns, length, arrived) = left.get_mut(&item).expect("it is not done");
                    // As a generator's jobs do, it grows.
                    (*n_turns, *length) = (*n_turns - 1, *length + 1);
                    let (size, begun) = (size(*length), Some(*arrived));
                    if *n_turns == 0 {
                        left.remove(&item);
                        under_way.remove(&item);
                    } else {
                        under_way.insert(item, *arrived);
                        batcher.push(Entry { begun, size, ..entry(item, 1) }, now);
                    }
                }
            }
            prop_assert!(left.is_empty());
        }

        #[test]
        fn the_highest_priority_is_in_the_next_batch(
            priorities in prop::collection::vec(0..3u8, 1..50),
            max_items in 1..10usize,
        ) {
            let now = Instant::now();
            let mut batcher = Batcher::new(limits(max_items, 10_000));
            for (item, level) in priorities.iter().enumerate() {
                let priority = [Priority::Low, Priority::Normal, Priority::High][usize::from(*level)];
                batcher.push(Entry { priority, ..entry(item, 10) }, now);
            }
            let batch = batcher.close(now, &free(now)).unwrap();
            let mut best = priorities.clone();
            best.sort_unstable_by_key(|level| Reverse(*level));
            best.truncate(max_items);
            let mut taken: Vec<u8> = batch.items.iter().map(|item| priorities[*item]).collect();
            taken.sort_unstable_by_key(|level| Reverse(*level));
            prop_assert_eq!(taken, best);
        }
    }
}
