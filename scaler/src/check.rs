//! Tries a configuration before anybody depends on it: every profile, and what each trigger of an
//! object would be answered. By the parser and the policy that serve KEDA; creates nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{Address, DEFAULT_QUEUE, ErrorKind, Missing, QueueUrl, Result, Warning};
use futures::future::{BoxFuture, join_all};
use serde::Serialize;
use tokio::time::{Instant, timeout};

use crate::decision::decide;
use crate::learn::Learner;
use crate::limits;
use crate::observe::look;
use crate::place::Place;
use crate::profiles::{Profile, Profiles, Refusal};
use crate::reload::Source;
use crate::resolved::Resolved;
use crate::site::{Connect, Site};
use crate::snapshot::Snapshot;
use crate::trigger::{FROM_ENV, MODE, PRIORITIES, option};

/// A broker that has not answered by then counts as unavailable.
const ANSWER: Duration = Duration::from_secs(10);

/// What is tried.
#[derive(Debug, Clone, Default)]
pub struct CheckArgs {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// The profile `default`, unless the file has one.
    pub queue: Option<QueueUrl>,
    /// Objects whose triggers are to be answered.
    pub objects: Vec<Asking>,
}

/// An object that asks: a ScaledObject or a ScaledJob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// Its kind, in Kubernetes' words.
    pub kind: String,
    /// Where it is.
    pub namespace: String,
    /// What it is called.
    pub name: String,
    /// The metadata of its triggers that are for an external scaler, by their place in the list.
    pub triggers: Vec<(usize, BTreeMap<String, String>)>,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Checkup {
    /// Each profile, by name.
    pub profiles: Vec<ProfileCheck>,
    /// Each trigger, in the order of the objects.
    pub triggers: Vec<TriggerCheck>,
}

/// How a profile was found.
#[derive(Debug, Clone, Serialize)]
pub struct ProfileCheck {
    /// Its name.
    pub name: String,
    /// Where it leads, without its password.
    pub url: String,
    /// How long it took to connect and to ask.
    pub seconds: f64,
    /// The server and its version, if it answered.
    pub server: Option<String>,
    /// Settings that are weaker than the promises.
    pub warnings: Vec<Warning>,
    /// Why it did not answer.
    pub problem: Option<Problem>,
}

/// What a trigger would be answered.
#[derive(Debug, Clone, Serialize)]
pub struct TriggerCheck {
    /// The kind of its object.
    pub kind: String,
    /// Where its object is.
    pub namespace: String,
    /// The name of its object.
    pub name: String,
    /// Its place in the list, from 0.
    pub trigger: usize,
    /// Keys whose values only the cluster knows: the answer is as if they were missing. There is
    /// neither an answer nor a problem where one of them says what is looked at, or must be there.
    pub left_out: Vec<String>,
    /// What among its options has less effect than it says.
    pub warning: Option<String>,
    /// What KEDA would be told, if anything.
    pub answer: Option<Answer>,
    /// Why there is no answer.
    pub problem: Option<Problem>,
}

/// What KEDA would be told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The connection profile.
    pub profile: String,
    /// The queue on its broker, or the stream of others and who reads it.
    pub queue: String,
    /// The same in words.
    pub looks_at: String,
    /// The name of the metric.
    pub metric: String,
    /// What one replica is to have of it.
    pub target: f64,
    /// Its value now.
    pub value: f64,
    /// Whether the pool may not be at zero.
    pub active: bool,
    /// Why.
    pub why: String,
    /// What the value is made of.
    pub basis: String,
}

/// Why something has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What would mend it.
    pub kind: ProblemKind,
    /// In words, without secrets.
    pub words: String,
}

/// What would mend a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemKind {
    /// Other metadata, or another policy.
    Refused,
    /// A broker that answers.
    Unavailable,
    /// Something else: a queue that is missing, or one that does not fit.
    Broken,
}

/// Tries all of it.
///
/// # Errors
/// When the configuration itself cannot be read, with its place and no secret.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn check(args: CheckArgs) -> BoxFuture<'static, anyhow::Result<Checkup>> {
    Box::pin(try_all(args))
}

/// What a profile is told of the default queue that is not there, though its broker answers.
const NO_QUEUE: &str = "no_queue";

async fn try_all(args: CheckArgs) -> anyhow::Result<Checkup> {
    let CheckArgs { config, queue, objects } = args;
    let profiles = Source { file: config, queue }.load()?;
    let site = Site::new(Missing::Refuse);
    let checks = profiles.by_name.values().map(|profile| try_profile(&site, profile));
    let mut checks = join_all(checks).await;
    let (looks, servers, foreign) = Default::default();
    let mut trial = Trial { site, profiles, looks, servers, foreign };
    let mut triggers = Vec::new();
    for object in &objects {
        for (at, metadata) in &object.triggers {
            triggers.push(trial.trigger(object, *at, metadata).await);
        }
    }
    for check in &mut checks {
        // It answers, be it that it has no queue of Ebb: nobody has asked for one.
        if trial.foreign.contains(&*check.name)
            && let Some(Problem { kind: ProblemKind::Broken, .. }) = &check.problem
        {
            let no_queue = |problem: Problem| Warning { code: NO_QUEUE, text: problem.words };
            check.warnings.extend(check.problem.take().map(no_queue));
        }
        if check.problem.is_none() {
            let server = trial.servers.get(&*check.name);
            check.server = check.server.take().or_else(|| server.cloned());
        }
    }
    Ok(Checkup { profiles: checks, triggers })
}

async fn try_profile(site: &Site, profile: &Profile) -> ProfileCheck {
    let begun = Instant::now();
    let queue = ebb_queue::Source::Queue(profile.url.queue.clone());
    let info = in_time(async {
        match site.connect(&profile.url, &queue).await {
            Ok(backlog) => backlog.info().await.map(Ok),
            Err(error) if error.lacks_queue() && names_no_queue(&profile.url) => {
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(error),
        }
    });
    let info = info.await;
    let (name, url) = (profile.name.to_string(), profile.url.to_string());
    let seconds = begun.elapsed().as_secs_f64();
    let (server, warnings, problem) = match info {
        Ok(Ok(info)) => (Some(info.version), info.warnings, None),
        Ok(Err(text)) => {
            let text = format!("{text}; no trigger can do without a name of its own");
            (None, vec![Warning { code: NO_QUEUE, text }], None)
        }
        Err(problem) => (None, Vec::new(), Some(problem)),
    };
    ProfileCheck { name, url, seconds, server, warnings, problem }
}

/// Whether a queue that is missing at this address is nobody's as far as a profile tells: the triggers
/// name theirs. A file that is missing is no broker that answers.
fn names_no_queue(url: &QueueUrl) -> bool {
    let is_there = match &url.address {
        Address::Sqlite { path, .. } => path.exists(),
        _ => true,
    };
    is_there && url.queue == DEFAULT_QUEUE
}

/// Answers triggers; each queue is looked at once.
struct Trial {
    site: Site,
    profiles: Profiles,
    looks: HashMap<Place, std::result::Result<Snapshot, Problem>>,
    /// By profile, those that a trigger was answered from.
    servers: BTreeMap<Arc<str>, String>,
    /// Profiles that were looked at for a stream of others.
    foreign: BTreeSet<Arc<str>>,
}

impl Trial {
    async fn trigger(
        &mut self,
        object: &Asking,
        trigger: usize,
        metadata: &BTreeMap<String, String>,
    ) -> TriggerCheck {
        // What KEDA cannot find is missing without a word, and here nothing can be found.
        let is_known = |(key, _): &(&String, &String)| !key.ends_with(FROM_ENV);
        let own = |(key, value): (&String, &String)| (key.clone(), value.clone());
        let known: HashMap<_, _> = metadata.iter().filter(is_known).map(own).collect();
        let left_out: Vec<String> =
            metadata.keys().filter(|key| key.ends_with(FROM_ENV)).cloned().collect();
        let Asking { kind, namespace, name, .. } = object;
        let resolved = limits::check(namespace, name, &known)
            .map_err(Refusal::Invalid)
            .and_then(|()| self.profiles.resolve(namespace, &known))
            .map_err(|refusal| Problem { kind: ProblemKind::Refused, words: refusal.to_string() });
        let warning = resolved.as_ref().ok().and_then(|resolved| resolved.trigger.warning());
        let (answer, problem) = match resolved {
            _ if left_out.iter().any(|key| decides(key)) => (None, None),
            Err(_) if left_out.iter().any(|key| plain(key) == MODE) => (None, None),
            Err(_) if self.may_be_right(namespace, &known, &left_out) => (None, None),
            Ok(resolved) => match self.answer(&resolved).await {
                Ok(answer) => (Some(answer), None),
                Err(problem) => (None, Some(problem)),
            },
            Err(problem) => (None, Some(problem)),
        };
        TriggerCheck {
            kind: kind.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            trigger,
            left_out,
            warning,
            answer,
            problem,
        }
    }

    /// Whether a trigger that is refused without them would be answered with some priorities for those
    /// that are left out: what else it may say depends on them.
    fn may_be_right(
        &self,
        namespace: &str,
        known: &HashMap<String, String>,
        left_out: &[String],
    ) -> bool {
        let mut tries = vec![known.clone()];
        for key in left_out.iter().map(|key| plain(key)).filter(|key| PRIORITIES.contains(key)) {
            let with = |metadata: &HashMap<String, String>, priority: &str| {
                let mut metadata = metadata.clone();
                metadata.insert(key.to_owned(), priority.to_owned());
                metadata
            };
            let each = |metadata: &HashMap<_, _>| {
                ["low", "normal", "high"].map(|priority| with(metadata, priority))
            };
            tries = tries.iter().flat_map(each).collect();
        }
        tries.iter().any(|metadata| self.profiles.resolve(namespace, metadata).is_ok())
    }

    async fn answer(&mut self, resolved: &Resolved) -> std::result::Result<Answer, Problem> {
        let Resolved { place, trigger, .. } = resolved;
        if !self.looks.contains_key(place) {
            let (_, url) = self.profiles.url(place).expect("what was resolved has a profile");
            let seen = in_time(async {
                let backlog = self.site.connect(&url, &place.source).await?;
                let snapshot = look(&*backlog, &mut Learner::new()).await?;
                Ok((snapshot, backlog.info().await?.version))
            });
            let seen = seen.await;
            if let Ok((_, server)) = &seen {
                if matches!(place.source, ebb_queue::Source::Foreign(_)) {
                    self.foreign.insert(Arc::clone(&place.profile));
                }
                self.servers.insert(Arc::clone(&place.profile), server.clone());
            }
            self.looks.insert(place.clone(), seen.map(|(snapshot, _)| snapshot));
        }
        let snapshot = self.looks[place].as_ref().map_err(Clone::clone)?;
        let decision = decide(snapshot, trigger, snapshot.depth.as_of);
        Ok(Answer {
            profile: place.profile.to_string(),
            queue: place.source.to_string(),
            looks_at: place.words(),
            metric: trigger.metric_name(),
            target: decision.target,
            value: decision.value,
            active: decision.active,
            why: decision.why.to_string(),
            basis: decision.basis.words(trigger),
        })
    }
}

/// Whether nothing can be said without the value of a key: it names what is looked at and where, or
/// has no default.
fn decides(key: &str) -> bool {
    option(plain(key)).is_some_and(|option| option.default.is_none())
}

fn plain(key: &str) -> &str {
    key.strip_suffix(FROM_ENV).unwrap_or(key)
}

async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> std::result::Result<T, Problem> {
    let unavailable = |words| Problem { kind: ProblemKind::Unavailable, words };
    match timeout(ANSWER, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let kind = match error.kind() {
                ErrorKind::Unavailable | ErrorKind::Full => ProblemKind::Unavailable,
                _ => ProblemKind::Broken,
            };
            Err(Problem { kind, words: format!("{:#}", anyhow::Error::from(error)) })
        }
        Err(_) => Err(unavailable(format!("no answer for {} s", ANSWER.as_secs()))),
    }
}
