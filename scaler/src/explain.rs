//! What KEDA was told last, and why: the memory behind `/explain`.
//!
//! Nothing in here is a secret: options that came out of an environment are kept without their
//! values, and of connections there is the name of the profile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::place::Place;
use crate::profiles::Refusal;
use crate::resolved::Resolved;
use crate::trigger::{Low, Mode};

pub(crate) mod page;

/// Triggers that are remembered; those that nobody has asked about for longest go first.
const MAX_TRIGGERS: usize = 20_000;

/// Triggers of one object.
const MAX_OF_ONE: usize = 16;

/// Others on the same queue that are named.
const MAX_SHOWN: usize = 3;

/// Letters of a refusal: what is wrong comes first, and what was written may be of any length.
const LONGEST_REFUSAL: usize = 512;

/// KEDA asks for all triggers of an object together: every 30 s by default, and oftener while its
/// pool is up. One that it left out for longer was changed or taken away.
const POLL: Duration = Duration::from_secs(45);

/// What is remembered of each trigger that was asked for lately; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Explain(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    objects: HashMap<Name, Object>,
    n_triggers: usize,
    /// Who was the first to ask for each queue, and whether it was told that others do as well. Only
    /// of triggers that are remembered, so that it has their bound.
    first: HashMap<Place, (Name, bool)>,
}

/// The namespace and the name of an object.
pub(crate) type Name = (String, String);

/// What is remembered of an object.
#[derive(Debug, Clone, Default)]
pub(crate) struct Object {
    pub(crate) triggers: Vec<Remembered>,
    /// Why it was last refused, and when.
    pub(crate) refused: Option<(String, Instant)>,
}

/// What is remembered of a trigger.
#[derive(Debug, Clone)]
pub(crate) struct Remembered {
    pub(crate) resolved: Arc<Resolved>,
    /// When it was asked for first.
    since: Instant,
    pub(crate) asked: Instant,
    pub(crate) target: Option<(f64, Instant)>,
    pub(crate) value: Option<(f64, Instant)>,
    pub(crate) active: Option<(bool, Instant)>,
    /// When it was told on a stream that the pool may not be at zero.
    pub(crate) pushed: Option<Instant>,
    /// The time between the last two answers of activity.
    spacing: Duration,
}

/// What the triggers on a queue ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Demand {
    /// The shortest objective of a trigger, in seconds.
    pub(crate) objective: Option<f64>,
    /// What such triggers say of jobs of low priority: these count where they do for one.
    pub(crate) low: Option<Low>,
    /// Replicas that follow from what KEDA was told last: 0 where that was "not active", and
    /// unknown where it has not asked since when it should.
    pub(crate) replicas: Option<f64>,
}

/// Something that KEDA was told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Told {
    /// What one replica is to have.
    Target(f64),
    /// The value of the metric.
    Value(f64),
    /// Whether the pool may not be at zero.
    Active(bool),
    /// That it may not, on a stream.
    Pushed,
}

impl Explain {
    /// Remembers what was told about a trigger of an object, and says whether it is the first that
    /// is remembered of it.
    pub(crate) fn told(
        &self,
        namespace: &str,
        name: &str,
        resolved: &Arc<Resolved>,
        told: Told,
    ) -> bool {
        let now = Instant::now();
        let mut memory = self.lock();
        let trigger = memory.trigger(namespace, name, resolved, now);
        let is_first = trigger.is_new();
        trigger.asked = now;
        trigger.resolved = Arc::clone(resolved);
        match told {
            Told::Target(target) => trigger.target = Some((target, now)),
            Told::Value(value) => trigger.value = Some((value, now)),
            Told::Active(active) => {
                let before = trigger.active.replace((active, now));
                trigger.spacing = before.map_or(Duration::ZERO, |(_, before)| now - before);
            }
            Told::Pushed => trigger.pushed = Some(now),
        }
        is_first
    }

    /// The object that scales on the same queue as this one; told once of each queue.
    ///
    /// An object that has a new name is no rival of itself: both must have been asked for at one time.
    pub(crate) fn rival(&self, namespace: &str, name: &str, place: &Place) -> Option<Name> {
        let own = (namespace.to_owned(), name.to_owned());
        let mut memory = self.lock();
        let Memory { objects, first, .. } = &mut *memory;
        // It was forgotten in the meantime.
        let span = objects.get(&own)?.span(place)?;
        let Some((other, is_told)) = first.get_mut(place) else {
            first.insert(place.clone(), (own, false));
            return None;
        };
        if *is_told || *other == own {
            return None;
        }
        match objects.get(&*other).and_then(|object| object.span(place)) {
            Some(others) if span.overlaps(others) => {
                *is_told = true;
                Some(other.clone())
            }
            // The next call tells whether it is asked for again.
            Some(_) => None,
            None => {
                *other = own;
                None
            }
        }
    }

    /// The objects beside this one that scale on the same queue, sorted.
    pub(crate) fn rivals(&self, name: &Name, place: &Place) -> Vec<Name> {
        let memory = self.lock();
        let Some(own) = memory.objects.get(name).and_then(|object| object.span(place)) else {
            return Vec::new();
        };
        let others = memory.objects.iter().filter(|(other, _)| *other != name);
        let is_rival = |object: &Object| object.span(place).is_some_and(|span| span.overlaps(own));
        let others = others.filter(|(_, object)| is_rival(object));
        let mut names: Vec<Name> = others.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// Remembers why an object was refused.
    pub(crate) fn refused(&self, namespace: &str, name: &str, refusal: &Refusal) {
        let now = Instant::now();
        let mut memory = self.lock();
        memory.make_room(now);
        let object = memory.object(namespace, name);
        let words = refusal.to_string().chars().take(LONGEST_REFUSAL).collect();
        object.refused = Some((words, now));
    }

    /// The objects that were asked for lately, sorted.
    pub(crate) fn names(&self) -> Vec<Name> {
        let mut names: Vec<Name> = self.lock().objects.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// What is asked of each queue, by triggers that were asked for lately.
    pub(crate) fn demands(&self, keep: Duration) -> HashMap<Place, Demand> {
        let mut demands: HashMap<Place, Demand> = HashMap::new();
        for object in self.lock().objects.values() {
            for (place, triggers) in object.current(keep) {
                demands.entry(place.clone()).or_default().add(&triggers);
            }
        }
        demands
    }

    /// What is remembered of an object; of its triggers those that were asked for lately.
    pub(crate) fn object(&self, name: &Name, keep: Duration) -> Option<Object> {
        let mut object = self.lock().objects.get(name)?.clone();
        // KEDA asks for all triggers of an object together, so one that is still wrong is refused again.
        // What is pushed meanwhile, and values, tell of no such question.
        let last = object.triggers.iter().filter_map(|one| Some(one.active?.1)).max();
        let spacing = object.triggers.iter().map(|trigger| trigger.spacing).max();
        let poll = POLL.max(spacing.unwrap_or_default().mul_f64(1.5));
        let is_over = |at: Instant| last.is_some_and(|last| last > at + poll);
        object.refused = object.refused.take().filter(|(_, at)| !is_over(*at));
        object.triggers.retain(|trigger| trigger.asked.elapsed() <= keep);
        Some(object)
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // What is told is remembered in single steps, so it is whole even if its holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong where other objects scale on the same queue.
pub(crate) fn one_pool(others: &[Name]) -> String {
    let shown = others.iter().take(MAX_SHOWN).map(|(of, name)| format!("{of}/{name}"));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = others.len().saturating_sub(MAX_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "the same queue scales {shown}{more}: each pool is asked to do all of its jobs, and each is \
         kept up by the others; give each pool a queue of its own"
    )
}

impl Memory {
    fn trigger(
        &mut self,
        namespace: &str,
        name: &str,
        resolved: &Arc<Resolved>,
        now: Instant,
    ) -> &mut Remembered {
        let found = self.object(namespace, name).position(resolved);
        if found.is_none() {
            self.make_room(now);
            let triggers = &mut self.object(namespace, name).triggers;
            // A trigger that was changed leaves its old self behind.
            let oldest = triggers.iter().enumerate().min_by_key(|(_, trigger)| trigger.asked);
            let oldest = oldest.map(|(at, _)| at).filter(|_| triggers.len() >= MAX_OF_ONE);
            let gone = oldest.map(|at| triggers.swap_remove(at));
            triggers.push(Remembered::new(Arc::clone(resolved), now));
            match gone {
                Some(gone) => self.left(namespace, name, &gone.resolved.place),
                None => self.n_triggers += 1,
            }
        }
        let object = self.object(namespace, name);
        let at = found.unwrap_or(object.triggers.len() - 1);
        &mut object.triggers[at]
    }

    fn object(&mut self, namespace: &str, name: &str) -> &mut Object {
        self.objects.entry((namespace.to_owned(), name.to_owned())).or_default()
    }

    /// A trigger of an object on this queue is forgotten; others of it may be on it as well.
    fn left(&mut self, namespace: &str, name: &str, place: &Place) {
        let is_there = self.object(namespace, name).triggers.iter().any(|one| one.is_on(place));
        let is_its = |(of, first): &Name| of == namespace && first == name;
        if !is_there && self.first.get(place).is_some_and(|(first, _)| is_its(first)) {
            self.first.remove(place);
        }
    }

    /// Forgets the older half when there is no more room: seldom, and then much.
    fn make_room(&mut self, now: Instant) {
        if self.n_triggers < MAX_TRIGGERS && self.objects.len() < MAX_TRIGGERS {
            return;
        }
        let mut ages: Vec<Duration> = self.objects.values().map(|object| object.age(now)).collect();
        ages.sort_unstable();
        let oldest = ages.get(ages.len() / 2).copied().unwrap_or_default();
        self.objects.retain(|_, object| object.age(now) < oldest);
        self.n_triggers = self.objects.values().map(|object| object.triggers.len()).sum();
        self.first.retain(|_, (name, _)| self.objects.contains_key(name));
    }
}

impl Object {
    fn position(&self, resolved: &Arc<Resolved>) -> Option<usize> {
        let of = |one: &Remembered| {
            // Mostly nobody has read it again since.
            Arc::ptr_eq(&one.resolved, resolved) || *one.resolved == **resolved
        };
        self.triggers.iter().position(of)
    }

    /// The triggers on each queue that were asked for lately, without those that others have
    /// taken the place of.
    fn current(&self, keep: Duration) -> HashMap<&Place, Vec<&Remembered>> {
        let mut current: HashMap<&Place, Vec<&Remembered>> = HashMap::new();
        for trigger in self.triggers.iter().filter(|trigger| trigger.asked.elapsed() <= keep) {
            current.entry(&trigger.resolved.place).or_default().push(trigger);
        }
        for triggers in current.values_mut() {
            let last = triggers.iter().map(|trigger| trigger.asked).max();
            triggers.retain(|trigger| last.is_none_or(|last| last - trigger.asked <= POLL));
        }
        current
    }

    /// Since when KEDA asks for this queue on its behalf, and until when it did; none where it does
    /// no more.
    fn span(&self, place: &Place) -> Option<Span> {
        let triggers = self.triggers.iter();
        let spans = triggers.filter(|one| one.is_on(place) && one.is_of_now(one.asked));
        let spans = spans.map(|one| Span { since: one.since, asked: one.asked });
        spans.reduce(|a, b| Span { since: a.since.min(b.since), asked: a.asked.max(b.asked) })
    }

    /// How long nobody has asked for it.
    fn age(&self, now: Instant) -> Duration {
        let asked = self.triggers.iter().map(|trigger| trigger.asked);
        let last = asked.chain(self.refused.as_ref().map(|(_, at)| *at)).max();
        last.map_or(Duration::MAX, |last| now.saturating_duration_since(last))
    }
}

/// When an object was asked for on a queue, the first time and the last.
#[derive(Debug, Clone, Copy)]
struct Span {
    since: Instant,
    asked: Instant,
}

impl Span {
    /// Whether each was asked for after the other had been.
    fn overlaps(self, other: Self) -> bool {
        self.since < other.asked && other.since < self.asked
    }
}

impl Demand {
    /// Adds what the triggers of one object ask for: the HPA takes the largest.
    fn add(&mut self, triggers: &[&Remembered]) {
        for trigger in triggers {
            if let Mode::Slo { within, .. } = trigger.resolved.trigger.mode {
                let within = within.as_secs_f64();
                self.objective = Some(self.objective.map_or(within, |other| other.min(within)));
                let low = trigger.resolved.trigger.low;
                self.low = self.low.filter(|other| *other == Low::Counts).or(Some(low));
            }
        }
        // KEDA keeps an object at zero whatever its metrics say, while it is told inactive of all.
        let is_held = triggers.iter().all(|trigger| trigger.is_held());
        let replicas = triggers.iter().filter_map(|trigger| trigger.replicas());
        let replicas = if is_held { Some(0.0) } else { replicas.reduce(f64::max) };
        if let Some(replicas) = replicas {
            self.replicas = Some(self.replicas.unwrap_or_default() + replicas);
        }
    }
}

impl Remembered {
    fn new(resolved: Arc<Resolved>, asked: Instant) -> Self {
        let spacing = Duration::ZERO;
        let (target, value, active, pushed) = (None, None, None, None);
        Self { resolved, since: asked, asked, target, value, active, pushed, spacing }
    }

    fn is_on(&self, place: &Place) -> bool {
        self.resolved.place == *place
    }

    /// Whether nothing was told of it yet.
    fn is_new(&self) -> bool {
        self.target.or(self.value).is_none() && self.active.is_none() && self.pushed.is_none()
    }

    /// What follows from the value that was told last.
    fn replicas(&self) -> Option<f64> {
        let (value, at) = self.value?;
        // Of what came since nothing is known here: another replica of the scaler may be asked by now.
        self.is_of_now(at).then(|| (value / self.resolved.trigger.target()).ceil())
    }

    /// Whether KEDA was told last, by an answer or on a stream, that the pool may be at zero.
    fn is_held(&self) -> bool {
        let is_last = |at: Instant| self.pushed.is_none_or(|pushed| pushed < at);
        self.active.is_some_and(|(active, at)| !active && is_last(at) && self.is_of_now(at))
    }

    /// Whether KEDA need not have asked again since it was told this, as often as it asks.
    fn is_of_now(&self, told: Instant) -> bool {
        told.elapsed() <= POLL.max(self.spacing.mul_f64(1.5))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::time::Duration;

    use ebb_queue::QueueUrl;

    use super::{Explain, MAX_OF_ONE, MAX_TRIGGERS, POLL, Told};
    use crate::profiles::{Profiles, Refusal};
    use crate::resolved::Resolved;
    use crate::trigger::Low;

    const LONG: Duration = Duration::from_secs(600);

    fn resolved(jobs_per_replica: usize) -> Arc<Resolved> {
        let profiles = Profiles::single(QueueUrl::sqlite("/data/q.db"));
        let option = ("jobsPerReplica".to_owned(), jobs_per_replica.to_string());
        Arc::new(profiles.resolve("ml", &HashMap::from([option])).unwrap())
    }

    #[test]
    fn what_was_told_last_is_remembered_by_trigger() {
        let explain = Explain::default();
        let (one, two) = (resolved(1), resolved(2));
        assert!(explain.told("ml", "a", &one, Told::Value(3.0)));
        assert!(!explain.told("ml", "a", &one, Told::Value(4.0)), "it was told before");
        assert!(explain.told("ml", "a", &two, Told::Active(true)));
        explain.told("ml", "b", &one, Told::Pushed);
        explain.refused("ml", "c", &Refusal::Denied("no".into()));
        let names: Vec<_> = explain.names().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let a = explain.object(&("ml".into(), "a".into()), LONG).unwrap();
        assert_eq!(a.triggers.len(), 2);
        assert_eq!(a.triggers[0].value.unwrap().0, 4.0);
        assert!(a.triggers[1].active.unwrap().0);
        let c = explain.object(&("ml".into(), "c".into()), LONG).unwrap();
        assert_eq!(c.refused.unwrap().0, "no");
        assert!(explain.object(&("ml".into(), "d".into()), LONG).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_of_a_queue_follows_from_the_latest_trigger_of_each_object() {
        let explain = Explain::default();
        assert!(explain.demands(LONG).is_empty());
        let profiles = Profiles::single(QueueUrl::sqlite("/data/q.db"));
        let slo = |seconds: &str| {
            let options = [("mode", "slo"), ("sloSeconds", seconds)];
            let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
            Arc::new(profiles.resolve("ml", &HashMap::from(options)).unwrap())
        };
        explain.told("ml", "a", &slo("5"), Told::Value(40.0));
        tokio::time::advance(POLL + Duration::from_secs(1)).await;
        // The same object with another objective, and two others on the same queue.
        explain.told("ml", "a", &slo("60"), Told::Value(2.0));
        explain.told("ml", "b", &slo("30"), Told::Active(true));
        explain.told("ml", "c", &resolved(4), Told::Value(9.0));
        let demands = explain.demands(LONG);
        let demand = demands[&resolved(4).place];
        assert_eq!((demand.objective, demand.replicas), (Some(30.0), Some(2.0 + 3.0)));
        assert_eq!(demand.low, Some(Low::Counts));
        tokio::time::advance(2 * LONG).await;
        assert!(explain.demands(LONG).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn two_objects_on_one_queue_are_told_of_once() {
        let explain = Explain::default();
        let one = resolved(4);
        let told = |name: &str| {
            explain.told("ml", name, &one, Told::Value(1.0));
            explain.rival("ml", name, &one.place).map(|(_, name)| name)
        };
        let rivals = |name: &str| explain.rivals(&("ml".into(), name.into()), &one.place);
        let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        assert_eq!(told("a"), None);
        assert_eq!(told("a"), None, "two triggers of one object are no two pools");
        assert!(rivals("a").is_empty());
        // Nobody asks for the first any more: it was renamed.
        pass(1).await;
        assert_eq!(told("b"), None);
        assert!(rivals("b").is_empty() && rivals("a").is_empty());
        pass(POLL.as_secs()).await;
        assert_eq!(told("b"), None);
        assert_eq!(told("c"), None, "what was asked for before may be gone");
        pass(1).await;
        assert_eq!((told("b"), told("c")), (None, Some("b".to_owned())));
        pass(1).await;
        assert_eq!((told("d"), told("c"), told("b")), (None, None, None), "once");
        pass(1).await;
        assert_eq!((told("d"), told("c")), (None, None), "once");
        assert_eq!(rivals("c"), [("ml".into(), "b".into()), ("ml".into(), "d".into())]);
    }

    #[tokio::test(start_paused = true)]
    async fn two_objects_that_are_seldom_asked_for_are_told_of_as_well() {
        let explain = Explain::default();
        let one = resolved(4);
        let told = |name: &str| {
            explain.told("ml", name, &one, Told::Active(false));
            explain.rival("ml", name, &one.place).map(|(_, name)| name)
        };
        let (mut found, half) = (Vec::new(), Duration::from_secs(150));
        for _ in 0..4 {
            found.extend(told("a"));
            tokio::time::advance(half).await;
            found.extend(told("b"));
            tokio::time::advance(half).await;
        }
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(explain.rivals(&("ml".into(), "a".into()), &one.place).len(), 1);
    }

    #[test]
    fn an_object_that_asks_for_ever_new_queues_takes_no_more_room_than_its_triggers() {
        let explain = Explain::default();
        let profiles = Profiles::single(QueueUrl::sqlite("/data/q.db"));
        for nth in 0..10 * MAX_OF_ONE {
            let option = ("queue".to_owned(), format!("jobs-{nth}"));
            let one = Arc::new(profiles.resolve("ml", &HashMap::from([option])).unwrap());
            explain.told("ml", "a", &one, Told::Value(1.0));
            explain.rival("ml", "a", &one.place);
        }
        assert_eq!(explain.lock().first.len(), MAX_OF_ONE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_of_the_past_once_a_poll_went_without_it() {
        let explain = Explain::default();
        let one = resolved(4);
        let refused =
            || explain.object(&("ml".into(), "a".into()), LONG).unwrap().refused.is_some();
        // Of two triggers one is wrong, poll after poll.
        for _ in 0..5 {
            explain.refused("ml", "a", &Refusal::Denied("no".into()));
            explain.told("ml", "a", &one, Told::Active(true));
            assert!(refused());
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        explain.told("ml", "a", &one, Told::Active(true));
        assert!(refused(), "it may be asked for in a moment");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(refused(), "nobody has asked since");
        explain.told("ml", "a", &one, Told::Active(true));
        assert!(!refused());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_lasts_until_the_next_poll_whatever_else_is_told_meanwhile() {
        let explain = Explain::default();
        let one = resolved(4);
        explain.told("ml", "a", &one, Told::Active(true));
        explain.refused("ml", "a", &Refusal::Denied("no".into()));
        tokio::time::advance(POLL + Duration::from_secs(1)).await;
        // Streams are pushed on all the time, and an HPA asks more often than KEDA.
        explain.told("ml", "a", &one, Told::Pushed);
        explain.told("ml", "a", &one, Told::Value(2.0));
        let refused =
            || explain.object(&("ml".into(), "a".into()), LONG).unwrap().refused.is_some();
        assert!(refused(), "KEDA has not asked again");
        for _ in 0..2 {
            explain.told("ml", "a", &one, Told::Active(true));
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        assert!(!refused());
    }

    #[test]
    fn of_a_long_refusal_its_beginning_is_kept() {
        let explain = Explain::default();
        explain.refused("ml", "c", &Refusal::Invalid(format!("no{}", "x".repeat(16_000))));
        let kept = explain.object(&("ml".into(), "c".into()), LONG).unwrap().refused.unwrap().0;
        assert!(kept.starts_with("noxx") && kept.len() == 512, "{kept}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_is_asked_no_more_shows_nothing_that_it_told_before() {
        let explain = Explain::default();
        let one = resolved(4);
        let asked = || explain.demands(LONG).get(&one.place).and_then(|demand| demand.replicas);
        explain.told("ml", "a", &one, Told::Value(9.0));
        explain.told("ml", "a", &one, Told::Active(true));
        tokio::time::advance(POLL).await;
        assert_eq!(asked(), Some(3.0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(asked(), None);
    }

    #[test]
    fn low_priority_is_left_out_of_what_is_asked_for_where_no_objective_is_for_it() {
        let profiles = Profiles::single(QueueUrl::sqlite("/data/q.db"));
        let objective = |low: &str| {
            let options = [("mode", "slo"), ("sloSeconds", "60"), ("sloPriority", low)];
            let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
            Arc::new(profiles.resolve("ml", &HashMap::from(options)).unwrap())
        };
        for (priorities, counts) in [
            (&["normal"][..], false),
            (&["normal", "normal"], false),
            (&["normal", "low"], true),
            (&["low", "normal"], true),
        ] {
            let explain = Explain::default();
            for (nth, priority) in priorities.iter().enumerate() {
                let (name, of) = (nth.to_string(), objective(priority));
                explain.told("ml", &name, &of, Told::Active(true));
            }
            explain.told("ml", "jobs", &resolved(4), Told::Active(true));
            let low = explain.demands(LONG)[&resolved(4).place].low;
            assert_eq!(low.map(|low| low == Low::Counts), Some(counts), "{priorities:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_triggers_of_an_object_on_a_queue_the_larger_counts_whichever_was_asked_last() {
        let explain = Explain::default();
        let (few, many) = (resolved(9), resolved(3));
        let wanted = || explain.demands(LONG)[&few.place].replicas;
        explain.told("ml", "a", &many, Told::Value(18.0));
        for _ in 0..3 {
            explain.told("ml", "a", &few, Told::Value(18.0));
            assert_eq!(wanted(), Some(6.0));
            tokio::time::advance(Duration::from_secs(15)).await;
            explain.told("ml", "a", &many, Told::Value(18.0));
            assert_eq!(wanted(), Some(6.0));
            tokio::time::advance(Duration::from_secs(15)).await;
        }
        // The object is active while one of its triggers is.
        explain.told("ml", "a", &few, Told::Active(true));
        explain.told("ml", "a", &many, Told::Active(false));
        assert_eq!(wanted(), Some(6.0));
        explain.told("ml", "a", &few, Told::Active(false));
        assert_eq!(wanted(), Some(0.0));
        // A trigger that was taken away is of the past once a poll went without it.
        explain.told("ml", "a", &few, Told::Active(true));
        tokio::time::advance(POLL + Duration::from_secs(1)).await;
        explain.told("ml", "a", &few, Told::Value(18.0));
        assert_eq!(wanted(), Some(2.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_is_rightly_held_at_zero_asks_for_no_replicas() {
        let explain = Explain::default();
        let one = resolved(4);
        let asked = || explain.demands(LONG).get(&one.place).and_then(|demand| demand.replicas);
        explain.told("ml", "a", &one, Told::Value(9.0));
        assert_eq!(asked(), Some(3.0), "of its activity nothing was told yet");
        explain.told("ml", "a", &one, Told::Active(false));
        assert_eq!(asked(), Some(0.0));
        tokio::time::advance(Duration::from_secs(1)).await;
        explain.told("ml", "a", &one, Told::Pushed);
        assert_eq!(asked(), Some(3.0), "what was told last counts");
        tokio::time::advance(Duration::from_secs(1)).await;
        explain.told("ml", "a", &one, Told::Active(false));
        assert_eq!(asked(), Some(0.0));
        // Another object on the same queue does ask for some.
        explain.told("ml", "b", &one, Told::Value(8.0));
        explain.told("ml", "b", &one, Told::Active(true));
        assert_eq!(asked(), Some(2.0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_about_any_more_is_held_at_zero_by_nobody() {
        let explain = Explain::default();
        let one = resolved(4);
        let asked = || explain.demands(LONG).get(&one.place).and_then(|demand| demand.replicas);
        let poll = |value: f64| {
            explain.told("ml", "a", &one, Told::Value(value));
            explain.told("ml", "a", &one, Told::Active(false));
        };
        let pass = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        // Nothing waits, nor when KEDA asked last: what is ready since then nobody wakes a pool for.
        for value in [0.0, 9.0] {
            poll(value);
            pass(30).await;
            poll(value);
            pass(POLL.as_secs()).await;
            assert_eq!(asked(), Some(0.0));
            pass(1).await;
            assert_eq!(asked(), None, "nobody asks, so that nobody is told anything");
        }
        // Where KEDA asks every five minutes, by `external-push`, it is told so for as long.
        poll(0.0);
        pass(300).await;
        poll(0.0);
        pass(299).await;
        assert_eq!(asked(), Some(0.0));
        pass(152).await;
        assert_eq!(asked(), None);
        // An object that is asked about answers for itself alone.
        explain.told("ml", "b", &one, Told::Value(8.0));
        explain.told("ml", "b", &one, Told::Active(true));
        assert_eq!(asked(), Some(2.0));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_has_a_bound_and_what_is_asked_for_stays() {
        let explain = Explain::default();
        let one = resolved(1);
        for n in 0..MAX_TRIGGERS * 2 {
            // Who asks and is refused takes room as well.
            if n % 2 == 0 {
                explain.told("ml", &n.to_string(), &one, Told::Active(true));
            } else {
                explain.refused("ml", &n.to_string(), &Refusal::Denied("no".into()));
            }
            tokio::time::advance(Duration::from_millis(1)).await;
            explain.told("ml", "faithful", &one, Told::Active(true));
        }
        let names = explain.names();
        assert!(names.len() <= MAX_TRIGGERS, "{} objects are remembered", names.len());
        assert!(names.contains(&("ml".to_owned(), "faithful".to_owned())));
        for n in 1..=2 * MAX_OF_ONE {
            explain.told("ml", "faithful", &resolved(n), Told::Active(true));
        }
        let faithful = explain.object(&("ml".into(), "faithful".into()), LONG).unwrap();
        assert_eq!(faithful.triggers.len(), MAX_OF_ONE);
    }
}
