//! `/explain`: why an object has the replicas that it has, as JSON and in plain words.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ebb_queue::{ByPriority, Depth, Foreign, Source, Timestamp};
use serde::Serialize;
use tokio::time::Instant;

use super::{Explain, Name, Object, Remembered, one_pool};
use crate::decision::decide;
use crate::figures::phase_name;
use crate::resolved::{Resolved, Shown};
use crate::snapshot::Snapshot;
use crate::view::Unknown;
use crate::watch::Observers;

/// Where the pages get their facts.
#[derive(Clone)]
struct Facts {
    explain: Explain,
    observers: Observers,
    /// Triggers that were not asked for as long are of the past.
    keep: Duration,
}

/// An object and its triggers.
#[derive(Debug, Serialize)]
struct ObjectPage {
    namespace: String,
    name: String,
    triggers: Vec<TriggerPage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Ago<String>>,
}

/// A trigger: what it asks for, what is seen, what follows, and what KEDA was told last.
#[derive(Debug, Serialize)]
struct TriggerPage {
    profile: String,
    /// Missing when it came out of an environment, and so is the metric that is named after it.
    queue: Option<String>,
    /// The stream of others that is looked at, where it is no queue of Ebb.
    #[serde(skip_serializing_if = "Option::is_none")]
    foreign: Option<ForeignPage>,
    metric: Option<String>,
    options: Vec<Shown>,
    /// What among them has less effect than it says, and who else scales on the same queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Seen>,
    /// Why nothing is known, when nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
    told: ToldPage,
}

/// A stream of others, and who reads it.
#[derive(Debug, Serialize)]
struct ForeignPage {
    stream: String,
    reader: String,
}

/// How much there is, as [`Depth`] has it.
#[derive(Debug, Serialize)]
struct DepthPage {
    ready: u64,
    in_flight: u64,
    /// Missing of a stream of others, of which nobody knows; so are dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    delayed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead: Option<u64>,
    oldest_ready: Option<Timestamp>,
    next_due: Option<Timestamp>,
    next_delayed: Option<Timestamp>,
    cost: Option<f64>,
    ready_by_priority: Option<ByPriority>,
    first_deadline: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<u64>,
    as_of: Timestamp,
}

/// What is known, and what follows from it now.
#[derive(Debug, Serialize)]
struct Seen {
    age_seconds: f64,
    depth: DepthPage,
    /// Missing where they do not report.
    #[serde(skip_serializing_if = "Option::is_none")]
    workers: Option<BTreeMap<&'static str, u64>>,
    active: bool,
    value: f64,
    target: f64,
    /// By the rule of KEDA's metric type AverageValue; KEDA's limits, tolerance and stabilization
    /// come after it.
    replicas: f64,
    why: String,
    /// What the value is made of.
    basis: String,
}

/// What KEDA was told last.
#[derive(Debug, Serialize)]
struct ToldPage {
    target: Option<Ago<f64>>,
    value: Option<Ago<f64>>,
    active: Option<Ago<bool>>,
    pushed: Option<Ago<bool>>,
}

/// A word, and how long ago it was said.
#[derive(Debug, Serialize)]
struct Ago<T> {
    said: T,
    seconds_ago: f64,
}

/// The pages `/explain` and `/explain/{namespace}/{name}`.
pub(crate) fn router(explain: Explain, observers: Observers, keep: Duration) -> Router {
    Router::new()
        .route("/explain", get(list))
        .route("/explain/{namespace}/{name}", get(object))
        .with_state(Facts { explain, observers, keep })
}

async fn list(State(facts): State<Facts>, uri: Uri, headers: HeaderMap) -> Response {
    let names = facts.explain.names();
    if wants_text(&uri, &headers) {
        let lines = names.iter().map(|(namespace, name)| format!("{namespace}/{name}\n"));
        return lines.collect::<String>().into_response();
    }
    let objects = names.iter().map(|(namespace, name)| Named { namespace, name }).collect();
    axum::Json(Named::list(objects)).into_response()
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Named<'a> {
    fn list(objects: Vec<Self>) -> BTreeMap<&'static str, Vec<Self>> {
        BTreeMap::from([("objects", objects)])
    }
}

async fn object(
    State(facts): State<Facts>,
    Path(name): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Some(object) = facts.explain.object(&name, facts.keep) else {
        let words = format!(
            "KEDA has not asked this replica for {}/{} lately; /explain lists what it has asked for, \
             and another replica may be the one that it asks\n",
            name.0, name.1
        );
        return (StatusCode::NOT_FOUND, words).into_response();
    };
    let page = facts.page(name, &object);
    if wants_text(&uri, &headers) {
        return page.to_string().into_response();
    }
    axum::Json(page).into_response()
}

/// `?format=text` or `json` counts before what the client accepts.
fn wants_text(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut pairs = uri.query().unwrap_or_default().split('&');
    if let Some(format) = pairs.find_map(|pair| pair.strip_prefix("format=")) {
        return format == "text";
    }
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/plain"))
}

impl Facts {
    fn page(&self, (namespace, name): (String, String), object: &Object) -> ObjectPage {
        let now = Instant::now();
        let own = (namespace, name);
        let triggers = object.triggers.iter();
        let triggers = triggers.map(|trigger| self.trigger(&own, trigger, now)).collect();
        let refused = object.refused.clone().map(|refused| Ago::of(refused, now));
        let (namespace, name) = own;
        ObjectPage { namespace, name, triggers, refused }
    }

    fn trigger(&self, own: &Name, remembered: &Remembered, now: Instant) -> TriggerPage {
        let Remembered { resolved, .. } = remembered;
        let named = resolved.hidden().is_none();
        let foreign = match &resolved.place.source {
            Source::Foreign(Foreign { stream, reader }) if named => {
                Some(ForeignPage { stream: stream.clone(), reader: reader.clone() })
            }
            _ => None,
        };
        let (seen, unknown) = match self.seen(remembered, now) {
            Ok(seen) => (Some(seen), None),
            Err(unknown) => (None, Some(resolved.unknown(&unknown))),
        };
        TriggerPage {
            profile: resolved.place.profile.to_string(),
            queue: named.then(|| resolved.place.source.to_string()),
            foreign,
            metric: named.then(|| resolved.trigger.metric_name()),
            options: resolved.options.clone(),
            warning: self.warning(own, resolved),
            seen,
            unknown,
            told: ToldPage {
                target: remembered.target.map(|said| Ago::of(said, now)),
                value: remembered.value.map(|said| Ago::of(said, now)),
                active: remembered.active.map(|said| Ago::of(said, now)),
                pushed: remembered.pushed.map(|at| Ago::of((true, at), now)),
            },
        }
    }

    fn warning(&self, own: &Name, resolved: &Resolved) -> Option<String> {
        let rivals = self.explain.rivals(own, &resolved.place);
        let shared = (!rivals.is_empty()).then(|| one_pool(&rivals));
        let all: Vec<String> = resolved.trigger.warning().into_iter().chain(shared).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn seen(&self, remembered: &Remembered, now: Instant) -> Result<Seen, Unknown> {
        let Remembered { resolved, .. } = remembered;
        let view = self.observers.peek(&resolved.place).unwrap_or_default();
        let (snapshot, time) = view.known(now, self.observers.max_age())?;
        let decision = decide(snapshot, &resolved.trigger, time);
        let age = view.look.as_ref().map(|look| now.saturating_duration_since(look.at));
        Ok(Seen {
            age_seconds: age.unwrap_or_default().as_secs_f64(),
            depth: DepthPage::of(&snapshot.depth, &resolved.place.source),
            workers: match resolved.place.source {
                Source::Queue(_) => Some(phases(snapshot)),
                Source::Foreign(_) => None,
            },
            active: decision.active,
            value: decision.value,
            target: decision.target,
            replicas: (decision.value / decision.target).ceil(),
            why: decision.why.to_string(),
            basis: decision.basis.words(&resolved.trigger),
        })
    }
}

impl DepthPage {
    fn of(depth: &Depth, source: &Source) -> Self {
        let is_ours = matches!(source, Source::Queue(_));
        Self {
            ready: depth.ready,
            in_flight: depth.in_flight,
            delayed: is_ours.then_some(depth.delayed),
            dead: is_ours.then_some(depth.dead),
            oldest_ready: depth.oldest_ready,
            next_due: depth.next_due,
            next_delayed: depth.next_delayed,
            cost: depth.cost,
            ready_by_priority: depth.ready_by_priority,
            first_deadline: depth.first_deadline,
            done: depth.done,
            as_of: depth.as_of,
        }
    }
}

impl fmt::Display for DepthPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ready, in_flight, delayed, dead, .. } = self;
        write!(f, "{ready} ready, {in_flight} in flight")?;
        for (state, n_jobs) in [("delayed", delayed), ("dead", dead)] {
            if let Some(n_jobs) = n_jobs {
                write!(f, ", {n_jobs} {state}")?;
            }
        }
        Ok(())
    }
}

/// How many workers are in each phase.
fn phases(snapshot: &Snapshot) -> BTreeMap<&'static str, u64> {
    let mut phases = BTreeMap::new();
    for worker in &snapshot.workers {
        *phases.entry(phase_name(worker.phase)).or_default() += 1;
    }
    phases
}

impl<T> Ago<T> {
    fn of((said, at): (T, Instant), now: Instant) -> Self {
        let seconds_ago = now.saturating_duration_since(at).as_secs_f64();
        Self { said, seconds_ago }
    }
}

impl<T: fmt::Display> fmt::Display for Ago<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:.1} s ago)", self.said, self.seconds_ago)
    }
}

impl fmt::Display for ObjectPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}/{}", self.namespace, self.name)?;
        if self.triggers.is_empty() {
            writeln!(f, "  no trigger of it was answered lately")?;
        }
        for trigger in &self.triggers {
            write!(f, "{trigger}")?;
        }
        match &self.refused {
            Some(Ago { said, seconds_ago }) => {
                writeln!(f, "  refused {seconds_ago:.1} s ago: {said}")
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for TriggerPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = "(from the environment)";
        let queue = self.queue.as_deref().unwrap_or(hidden);
        let metric = self.metric.as_deref().unwrap_or(hidden);
        write!(f, "\n  metric {metric}: ")?;
        match &self.foreign {
            Some(ForeignPage { stream, reader }) => write!(
                f,
                "stream {stream}, which Ebb did not lay out, as {reader} reads it, of profile {}",
                self.profile
            )?,
            None => write!(f, "queue {queue} of profile {}", self.profile)?,
        }
        writeln!(f)?;
        for Shown { key, value, from } in &self.options {
            let value = value.as_deref().unwrap_or(hidden);
            writeln!(f, "    {key} = {value}, by {}", from.words())?;
        }
        if let Some(warning) = &self.warning {
            writeln!(f, "    warning: {warning}")?;
        }
        match (&self.seen, &self.unknown) {
            (Some(seen), _) => write!(f, "{seen}")?,
            (None, unknown) => {
                let why = unknown.as_deref().unwrap_or("nothing was seen");
                writeln!(f, "    unknown: {why}; KEDA is told UNAVAILABLE and changes nothing")?;
            }
        }
        write!(f, "{}", self.told)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phases = self.workers.iter().flatten().map(|(phase, n)| format!("{n} {phase}"));
        let phases = phases.collect::<Vec<_>>().join(", ");
        let workers = match &self.workers {
            None => "not Ebb's, so not known",
            Some(_) if phases.is_empty() => "none",
            Some(_) => &phases,
        };
        let Self { age_seconds, depth, why, basis, value, target, replicas, .. } = self;
        writeln!(f, "    seen {age_seconds:.1} s ago: {depth}; workers: {workers}")?;
        writeln!(f, "    {why}")?;
        writeln!(f, "    the value: {basis}")?;
        writeln!(f, "    {value} at {target} for each replica asks for {replicas} replicas")
    }
}

impl fmt::Display for ToldPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [
            self.target.as_ref().map(|target| format!("target {target}")),
            self.value.as_ref().map(|value| format!("value {value}")),
            self.active.as_ref().map(|active| format!("active {active}")),
            self.pushed.as_ref().map(|pushed| format!("pushed {pushed}")),
        ];
        let said: Vec<_> = said.into_iter().flatten().collect();
        writeln!(f, "    KEDA was told: {}", said.join(", "))
    }
}
