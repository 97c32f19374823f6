//! Which broker a trigger means, with which options, and whether it may. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ebb_queue::{Foreign, QueueUrl, Source};

use crate::place::Place;
use crate::policy::Policy;
use crate::resolved::{Origin, Resolved, Shown};
use crate::trigger::{
    ACTIVATION_WAIT, FROM_ENV, KEDA_KEYS, MODE, OPTIONS, Options, PROFILE, QUEUE,
};
use crate::trigger::{
    SLO, SLO_PRIORITY, STREAM, Trigger, TriggerError, WAITED_BESIDE, as_with_keda,
};
use crate::trigger::{is_name, leaves_time, option, serves_foreign};

/// The profile of triggers that name none.
pub(crate) const DEFAULT_PROFILE: &str = "default";

/// Of a value a person is shown so many letters: it may be written as long as one likes.
const SHOWN: usize = 64;

/// A day, or as much cost: right for each option that a trigger must have.
const ANYTHING: &str = "86400";

/// Keys by which other scalers take an address or a password.
const CONNECTION_KEYS: [&str; 12] = [
    "url",
    "uri",
    "dsn",
    "host",
    "hosts",
    "address",
    "addresses",
    "connection",
    "username",
    "password",
    "token",
    "servers",
];

/// The connection profiles, and who may use them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Profiles {
    pub(crate) by_name: BTreeMap<String, Arc<Profile>>,
    /// Everything is allowed when missing.
    pub(crate) policy: Option<Policy>,
}

/// A broker under a name, and the options of triggers that name it.
#[derive(Debug, PartialEq)]
pub(crate) struct Profile {
    pub(crate) name: Arc<str>,
    pub(crate) url: QueueUrl,
    /// Changes with the files that the URL names: who we are to the broker.
    pub(crate) files: u64,
    pub(crate) defaults: Options,
    pub(crate) queues: BTreeMap<String, Options>,
}

/// Why a trigger is not answered. Shows no secret and no profile but the one that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The metadata are wrong.
    #[error("{0}")]
    Invalid(String),
    /// They may be right, but not for this namespace.
    #[error("{0}")]
    Denied(String),
}

impl From<TriggerError> for Refusal {
    fn from(error: TriggerError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl Profiles {
    /// One broker that every namespace may use.
    #[cfg(test)]
    pub(crate) fn single(url: QueueUrl) -> Self {
        let profile = Profile::new(DEFAULT_PROFILE, url);
        let by_name = BTreeMap::from([(DEFAULT_PROFILE.to_owned(), Arc::new(profile))]);
        Self { by_name, policy: None }
    }

    /// Where the queue of a place is, as long as its profile exists.
    pub(crate) fn url(&self, place: &Place) -> Option<(&Arc<Profile>, QueueUrl)> {
        let profile = self.by_name.get(&*place.profile)?;
        let url = match &place.source {
            Source::Queue(name) => profile.url.with_queue(name).ok()?,
            Source::Foreign(_) => profile.url.clone(),
        };
        Some((profile, url))
    }

    /// What a trigger asks for, and on which broker.
    ///
    /// # Errors
    /// When the metadata are wrong, or ask for what the namespace may not use.
    pub(crate) fn resolve(
        &self,
        namespace: &str,
        metadata: &HashMap<String, String>,
    ) -> Result<Resolved, Refusal> {
        refuse_connections(metadata)?;
        let profile = self.profile(namespace, metadata)?;
        // Before its defaults are read: an error in them would tell of them.
        for asked in [QUEUE, STREAM].into_iter().filter_map(|key| asked(metadata, key)) {
            self.may_look(namespace, profile, asked.value.trim(), Some(asked))?;
        }
        let given: Vec<Given<'_>> = profile.merged(metadata);
        let pairs = given.iter().map(|given| (given.key, given.value));
        let trigger = Trigger::parse(pairs, &profile.url)?;
        let (Source::Queue(name) | Source::Foreign(Foreign { stream: name, .. })) = &trigger.source;
        self.may_look(namespace, profile, name, asked(metadata, STREAM))?;
        let place = Place { profile: Arc::clone(&profile.name), source: trigger.source.clone() };
        let options = given.iter().filter_map(Given::shown).collect();
        Ok(Resolved { place, trigger, options })
    }

    fn profile(
        &self,
        namespace: &str,
        metadata: &HashMap<String, String>,
    ) -> Result<&Arc<Profile>, Refusal> {
        let asked = asked(metadata, PROFILE);
        let name = asked.map_or(DEFAULT_PROFILE, |asked| asked.value);
        let found = self.by_name.get(name);
        let Some(policy) = &self.policy else {
            return found.ok_or_else(|| {
                Refusal::Invalid(match asked {
                    Some(asked) => format!(
                        "scalerMetadata: {}: the scaler has no such profile; ask its operator \
                         which there are",
                        asked.words()
                    ),
                    None => "scalerMetadata: profile is missing, and the scaler has none that is \
                             named default; ask its operator which there are"
                        .to_owned(),
                })
            });
        };
        // The same words whether it exists or not: who may not use it need not know.
        let allowed = found.filter(|_| policy.allows_profile(namespace, name));
        allowed.ok_or_else(|| {
            let which = asked.map_or("the default profile".to_owned(), Asked::words);
            Refusal::Denied(format!(
                "namespace {namespace} may not use {which}, or there is none of that name; ask \
                 the scaler's operator for a rule in its policy"
            ))
        })
    }

    fn may_look(
        &self,
        namespace: &str,
        profile: &Profile,
        name: &str,
        asked: Option<Asked<'_>>,
    ) -> Result<(), Refusal> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let is_stream = asked.is_some_and(|asked| asked.name() == STREAM);
        let is_allowed = if is_stream {
            policy.allows_stream(namespace, &profile.name, name)
        } else {
            policy.allows(namespace, &profile.name, name)
        };
        if is_allowed {
            return Ok(());
        }
        let which = asked.map_or("the default queue".to_owned(), Asked::words);
        Err(Refusal::Denied(format!(
            "namespace {namespace} may not use {which} of profile {}; ask the scaler's operator \
             for a rule in its policy",
            profile.name
        )))
    }
}

impl Profile {
    pub(crate) fn new(name: &str, url: QueueUrl) -> Self {
        let (defaults, queues) = (Options::new(), BTreeMap::new());
        Self { name: name.into(), url, files: 0, defaults, queues }
    }

    /// All that is said about a trigger: its own metadata before the defaults of its queue, and
    /// those before the defaults of the profile. Defaults of no use in the trigger's mode are passed
    /// over, and so is a wait that is longer than its objective: they are for the triggers of another.
    fn merged<'a>(&'a self, metadata: &'a HashMap<String, String>) -> Vec<Given<'a>> {
        let mut given: Vec<Given<'_>> = metadata
            .iter()
            .map(|(key, value)| {
                let from_env = key.ends_with(FROM_ENV);
                let from = if from_env { Origin::Environment } else { Origin::Metadata };
                Given { key, value, from }
            })
            .collect();
        let is_foreign = asked(metadata, STREAM).is_some();
        let queue = asked(metadata, QUEUE).map_or(&*self.url.queue, |asked| asked.value);
        let of_queue = self.queues.get(queue).filter(|_| !is_foreign).into_iter().flatten();
        let of_queue = of_queue.map(|option| (Origin::Queue, option));
        let serves = |key: &str| !is_foreign || serves_foreign(key, &self.defaults);
        let of_profile = self.defaults.iter().filter(|(key, _)| serves(key));
        let of_profile = of_profile.map(|option| (Origin::Profile, option));
        for (from, (key, value)) in of_queue.chain(of_profile) {
            let is_said = |first: &Given<'_>| {
                first.name() == key || (is_foreign && as_with_keda(first.name()) == Some(key))
            };
            if !given.iter().any(is_said) {
                given.push(Given { key, value, from });
            }
        }
        let mode = given.iter().find(|given| given.name() == MODE);
        let mode = mode.map_or("jobs", |given| given.value.trim()).to_owned();
        let of_use = |key: &str| option(key).is_none_or(|option| option.applies_to(&mode));
        given.retain(|given| given.is_own() || of_use(given.key));
        if mode == "slo" && is_wait_too_long(&given) {
            given.retain(|given| given.is_own() || given.key != ACTIVATION_WAIT);
        }
        given.sort_by(|a, b| a.key.cmp(b.key));
        given
    }

    /// Checks that each trigger which says nothing else could be answered.
    ///
    /// # Errors
    /// Says what is wrong with the defaults of the profile, or of which queue.
    pub(crate) fn check(&self) -> Result<(), (Option<&str>, TriggerError)> {
        let parse = |queue: Option<&str>| {
            let queue = queue.map(|queue| (QUEUE.to_owned(), queue.to_owned()));
            let metadata = HashMap::from_iter(queue);
            let mut given = self.merged(&metadata);
            let mode = given.iter().find(|given| given.key == MODE);
            let mode = mode.map_or("jobs", |given| given.value).to_owned();
            // What has no default is for each trigger to say.
            let needed = OPTIONS.iter().filter(|option| option.default.is_none());
            let needed = needed.filter(|one| !one.modes.is_empty() && one.applies_to(&mode));
            for key in needed.map(|option| option.key) {
                if !given.iter().any(|given| given.key == key) {
                    given.push(Given { key, value: ANYTHING, from: Origin::Metadata });
                }
            }
            Trigger::parse(given.iter().map(|given| (given.key, given.value)), &self.url)
        };
        parse(None).map_err(|error| (None, error))?;
        for queue in self.queues.keys() {
            parse(Some(queue)).map_err(|error| (Some(queue.as_str()), error))?;
        }
        Ok(())
    }
}

/// Whether the wait leaves no time for an objective, and what to hold back or for which objective is said
/// nearer to the trigger than it: by itself, or of a wait of the profile by the queue. In one place it is
/// a mistake.
fn is_wait_too_long(given: &[Given<'_>]) -> bool {
    let find = |name: &str| given.iter().find(|one| one.name() == name);
    let value = |name: &str| find(name).map(|one| one.value);
    let of_profile = find(ACTIVATION_WAIT).is_some_and(|wait| wait.from == Origin::Profile);
    let is_nearer = |one: &Given<'_>| one.is_own() || of_profile && one.from == Origin::Queue;
    let is_asked = given.iter().any(|one| is_nearer(one) && WAITED_BESIDE.contains(&one.name()));
    let leaves_out = value(SLO_PRIORITY).is_some_and(|priority| priority.trim() == "normal");
    let (wait, within) = (value(ACTIVATION_WAIT), value(SLO));
    let is_late = wait.zip(within).is_some_and(|(wait, within)| !leaves_time(wait, within));
    is_asked && !leaves_out && is_late
}

/// One option of a trigger, and where it comes from.
struct Given<'a> {
    key: &'a str,
    value: &'a str,
    from: Origin,
}

impl Given<'_> {
    fn name(&self) -> &str {
        self.key.strip_suffix(FROM_ENV).unwrap_or(self.key)
    }

    /// Whether the trigger says so itself.
    fn is_own(&self) -> bool {
        matches!(self.from, Origin::Metadata | Origin::Environment)
    }

    /// As it may be shown; nothing of the keys by which KEDA finds us.
    fn shown(&self) -> Option<Shown> {
        if KEDA_KEYS.contains(&self.name()) {
            return None;
        }
        let value =
            (self.from != Origin::Environment).then(|| self.value.chars().take(SHOWN).collect());
        Some(Shown { key: self.key.to_owned(), value, from: self.from })
    }
}

/// An option as the metadata have it.
#[derive(Clone, Copy)]
struct Asked<'a> {
    key: &'a str,
    value: &'a str,
    from_env: bool,
}

impl Asked<'_> {
    fn name(&self) -> &str {
        self.key.strip_suffix(FROM_ENV).unwrap_or(self.key)
    }

    /// For a message: what came out of an environment may be a secret, and what is no name a URL
    /// with one in it.
    fn words(self) -> String {
        let name = self.name();
        if self.from_env {
            return format!("the {name} that {} names", self.key);
        }
        // Any text is the name of a stream, but none of a URL.
        if !is_name(self.value) && (name != STREAM || self.value.contains("://")) {
            return format!("the {name} that is given, which is no name");
        }
        let shown: String = self.value.chars().take(SHOWN).collect();
        let rest = if shown.len() < self.value.len() { " and so on" } else { "" };
        format!("{name} {shown:?}{rest}")
    }
}

/// An option by its plain name, however it was given. Given twice, the trigger's parser says so.
fn asked<'a>(metadata: &'a HashMap<String, String>, name: &str) -> Option<Asked<'a>> {
    let plain = metadata.get_key_value(name).map(|found| (found, false));
    let from_env = || Some((metadata.get_key_value(&format!("{name}{FROM_ENV}"))?, true));
    let ((key, value), from_env) = plain.or_else(from_env)?;
    Some(Asked { key, value: value.trim(), from_env })
}

fn refuse_connections(metadata: &HashMap<String, String>) -> Result<(), Refusal> {
    let is_connection = |key: &&String| {
        let name = key.strip_suffix(FROM_ENV).unwrap_or(key);
        CONNECTION_KEYS.iter().any(|known| known.eq_ignore_ascii_case(name))
    };
    // Of several, always the same one is told.
    let Some(key) = metadata.keys().filter(is_connection).min() else { return Ok(()) };
    Err(Refusal::Invalid(format!(
        "scalerMetadata: {key}: addresses and passwords are not given in metadata; name one of the \
         scaler's connection profiles by profile"
    )))
}

#[cfg(test)]
mod tests;
