//! A trigger that may be answered, with what may be shown of it.

use ebb_queue::Source;

use crate::place::Place;
use crate::trigger::{CONSUMER, FROM_ENV, GROUP, QUEUE, STREAM, Trigger};
use crate::view::Unknown;

/// A trigger that may be answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resolved {
    pub(crate) place: Place,
    pub(crate) trigger: Trigger,
    /// The options that it is made of; what is not here is as by default.
    pub(crate) options: Vec<Shown>,
}

impl Resolved {
    /// The option that names what is looked at, where the name came out of an environment: it may be
    /// a secret that was named by mistake.
    pub(crate) fn hidden(&self) -> Option<&str> {
        let names = [QUEUE, STREAM, CONSUMER, GROUP];
        let mut keys = self.options.iter().map(|option| &*option.key);
        keys.find(|key| key.strip_suffix(FROM_ENV).is_some_and(|name| names.contains(&name)))
    }

    /// Why nothing is known, for whoever reads what KEDA logs.
    pub(crate) fn unknown(&self, why: &Unknown) -> String {
        let Some(key) = self.hidden() else { return why.to_string() };
        match why {
            Unknown::Missing(_) => {
                format!("it is not there; correct the name that {key} finds in the environment")
            }
            _ => why.to_string(),
        }
    }

    /// The same with what it is of.
    pub(crate) fn status(&self, why: &Unknown) -> String {
        let what = match (&self.place.source, self.hidden()) {
            (Source::Foreign(_), Some(key)) => format!("the stream that {key} names"),
            (Source::Queue(_), Some(key)) => format!("the queue that {key} names"),
            _ => self.place.words(),
        };
        format!("{what} of profile {}: {}", self.place.profile, self.unknown(why))
    }
}

/// An option, as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Shown {
    pub(crate) key: String,
    /// Missing when it came from an environment: it may be a secret that was named by mistake.
    pub(crate) value: Option<String>,
    pub(crate) from: Origin,
}

/// Where an option comes from; the first of several wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// The metadata of the trigger.
    Metadata,
    /// The same, by way of the environment of the scale target.
    Environment,
    /// The scaler's defaults for the queue.
    Queue,
    /// The scaler's defaults for the profile.
    Profile,
}

impl Origin {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Metadata => "the metadata",
            Self::Environment => "the environment of the scale target",
            Self::Queue => "the scaler's defaults for the queue",
            Self::Profile => "the scaler's defaults for the profile",
        }
    }
}
