//! The configuration file, from text to typed values. Pure: the secrets that it names are read
//! elsewhere.
//!
//! ```toml
//! [profiles.night]
//! url = "redis://broker:6379?password_file=/run/secrets/redis"   # or url_file, or url_env
//!
//! [profiles.night.defaults]              # for each trigger that names the profile
//! jobsPerReplica = 4
//!
//! [profiles.night.queues.embeddings]     # for each trigger on this queue
//! activationJobs = 8
//!
//! [[policy]]                             # with one, what no rule allows is denied
//! namespaces = ["team-a", "team-a-*"]
//! profiles = ["night"]
//! queues = ["embeddings", "a-*"]         # all of them when missing, and no stream of others
//! ```

use std::collections::BTreeMap;
use std::ops::Deref;

use ebb_queue::UrlFrom;
pub(crate) use ebb_telemetry::TextError as FileError;
use ebb_telemetry::{Key, Text, Value};
use toml::de::DeValue;

use crate::policy::{Glob, Policy, Rule};
use crate::trigger::{CONSUMER, FROM_ENV, GROUP, Options, PROFILE, QUEUE, STREAM, is_name};

/// What the file says.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct File {
    pub(crate) profiles: BTreeMap<String, Draft>,
    /// Everything is allowed when missing, and nothing but its rules when there.
    pub(crate) policy: Option<Policy>,
}

/// A connection profile whose address is not read yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) line: usize,
    pub(crate) address: UrlFrom,
    pub(crate) defaults: Section,
    pub(crate) queues: BTreeMap<String, Section>,
}

/// Default options, and where they stand.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Section {
    pub(crate) line: usize,
    pub(crate) options: Options,
}

type Result<T> = std::result::Result<T, FileError>;

impl File {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// Names the line, the key, and the nearest right one.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let reader = Reader(Text(text));
        let root = reader.root()?;
        let mut file = Self::default();
        for (key, value) in root.get_ref() {
            match key.get_ref().as_ref() {
                "profiles" => {
                    for (name, value) in reader.table("profiles", value)? {
                        let draft = reader.profile(name, value)?;
                        file.profiles.insert(name.get_ref().clone().into_owned(), draft);
                    }
                }
                "policy" => file.policy = Some(reader.policy(value)?),
                _ => return Err(reader.unknown("", key, &["profiles", "policy"])),
            }
        }
        Ok(file)
    }
}

/// Knows what stands where in the text.
#[derive(Clone, Copy)]
struct Reader<'a>(Text<'a>);

impl<'a> Deref for Reader<'a> {
    type Target = Text<'a>;

    fn deref(&self) -> &Text<'a> {
        &self.0
    }
}

impl Reader<'_> {
    fn profile(self, name: &Key<'_>, value: &Value<'_>) -> Result<Draft> {
        let at = format!("profiles.{}", name.get_ref());
        if !is_name(name.get_ref()) {
            let words = format!("{at:?}: a profile's name is 1 to 64 of a-z A-Z 0-9 . _ -");
            return Err(self.error(&name.span(), words));
        }
        let (mut addresses, mut defaults) = (Vec::new(), Section::default());
        let mut queues = BTreeMap::new();
        for (key, value) in self.table(&at, value)? {
            let own = format!("{at}.{}", key.get_ref());
            match key.get_ref().as_ref() {
                "url" => addresses.push(UrlFrom::Here(self.string(&own, value)?)),
                "url_file" => addresses.push(UrlFrom::File(self.string(&own, value)?.into())),
                "url_env" => addresses.push(UrlFrom::Env(self.string(&own, value)?)),
                "defaults" => defaults = self.section(&own, value)?,
                "queues" => {
                    for (queue, value) in self.table(&own, value)? {
                        let section = self.section(&format!("{own}.{}", queue.get_ref()), value)?;
                        queues.insert(queue.get_ref().clone().into_owned(), section);
                    }
                }
                _ => {
                    let known = ["url", "url_file", "url_env", "defaults", "queues"];
                    return Err(self.unknown(&at, key, &known));
                }
            }
        }
        let (line, n_addresses) = (self.line(&name.span()), addresses.len());
        match addresses.pop() {
            Some(address) if n_addresses == 1 => Ok(Draft { line, address, defaults, queues }),
            _ => {
                let words =
                    format!("{at} has {n_addresses} of url, url_file and url_env; give one");
                Err(FileError { line, words })
            }
        }
    }

    /// Options of a trigger; whether they are right is for the trigger's own parser to say.
    fn section(self, at: &str, value: &Value<'_>) -> Result<Section> {
        let mut options = Options::new();
        for (key, value) in self.table(at, value)? {
            let (name, own) = (key.get_ref(), format!("{at}.{}", key.get_ref()));
            if [PROFILE, QUEUE, STREAM, CONSUMER, GROUP].contains(&name.as_ref()) {
                let words = format!("{own}: a trigger names its {name}, and its URL the default");
                return Err(self.error(&key.span(), words));
            }
            if name.ends_with(FROM_ENV) {
                let words = format!("{own}: defaults have no environment; write the value itself");
                return Err(self.error(&key.span(), words));
            }
            let text = match value.get_ref() {
                DeValue::String(text) => text.clone().into_owned(),
                DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
                DeValue::Float(number) => number.as_str().to_owned(),
                DeValue::Boolean(truth) => truth.to_string(),
                _ => {
                    let words = format!("{own} is a text, a number, true or false");
                    return Err(self.error(&value.span(), words));
                }
            };
            options.insert(name.clone().into_owned(), text);
        }
        Ok(Section { line: self.line(&value.span()), options })
    }

    fn policy(self, value: &Value<'_>) -> Result<Policy> {
        let DeValue::Array(rules) = value.get_ref() else {
            return Err(self.error(&value.span(), "policy is a list; write [[policy]]".to_owned()));
        };
        let rules = rules.iter().map(|rule| self.rule(rule)).collect::<Result<_>>()?;
        Ok(Policy { rules })
    }

    fn rule(self, value: &Value<'_>) -> Result<Rule> {
        let (mut namespaces, mut profiles, mut queues) = (None, None, None);
        for (key, value) in self.table("policy", value)? {
            let place = match key.get_ref().as_ref() {
                "namespaces" => &mut namespaces,
                "profiles" => &mut profiles,
                "queues" => &mut queues,
                _ => {
                    return Err(self.unknown("policy", key, &["namespaces", "profiles", "queues"]));
                }
            };
            *place = Some(self.globs(&format!("policy.{}", key.get_ref()), value)?);
        }
        let needed = |globs: Option<Vec<Glob>>, name: &str| {
            let words = || format!("a rule of the policy names its {name}; [\"*\"] means all");
            globs.ok_or_else(|| self.error(&value.span(), words()))
        };
        Ok(Rule {
            namespaces: needed(namespaces, "namespaces")?,
            profiles: needed(profiles, "profiles")?,
            queues,
        })
    }

    fn globs(self, at: &str, value: &Value<'_>) -> Result<Vec<Glob>> {
        let DeValue::Array(names) = value.get_ref() else {
            return Err(
                self.error(&value.span(), format!("{at} is a list, such as [\"a\", \"b-*\"]"))
            );
        };
        let glob = |name: &Value<'_>| {
            let text = self.string(at, name)?;
            let (glob, letters) = if at == "policy.queues" {
                (Glob::of_source(&text), "ASCII without spaces")
            } else {
                (Glob::parse(&text), "a-z A-Z 0-9 . _ -")
            };
            let words = || format!("{at}: a name is of {letters}, and * for any letters");
            glob.ok_or_else(|| self.error(&name.span(), words()))
        };
        names.iter().map(glob).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    use super::{File, UrlFrom};

    #[test]
    fn a_whole_file_is_read() {
        let file = File::parse(
            "[profiles.day]\nurl = \"sqlite:/data/q.db\"\n\
             [profiles.night]\nurl_file = \"/run/night\"\n\
             [profiles.night.defaults]\njobsPerReplica = 2.5\nactivationJobs = 3\nmode = \"jobs\"\n\
             [profiles.night.queues.\"a.b\"]\nactivationJobs = 8\n\
             [profiles.env]\nurl_env = \"NIGHT\"\n\
             [[policy]]\nnamespaces = [\"team-*\"]\nprofiles = [\"night\"]\n",
        );
        let file = file.unwrap();
        let night = &file.profiles["night"];
        assert_eq!(night.address, UrlFrom::File("/run/night".into()));
        let options: Vec<_> = night.defaults.options.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(options, [("activationJobs", "3"), ("jobsPerReplica", "2.5"), ("mode", "jobs")]);
        assert_eq!(night.queues["a.b"].options["activationJobs"], "8");
        assert_eq!(file.profiles["env"].address, UrlFrom::Env("NIGHT".into()));
        let policy = file.policy.unwrap();
        assert!(policy.allows("team-a", "night", "any") && !policy.allows("a", "night", "any"));
        assert!(
            !policy.allows_stream("team-a", "night", "any"),
            "who names no queue names no stream"
        );
        assert_eq!(File::parse("").unwrap(), File::default());
        let none = File::parse("policy = []").unwrap().policy.unwrap();
        assert!(!none.allows_profile("team-a", "night"), "an empty policy allows nothing");
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_its_remedy() {
        let cases = [
            ("profile = 1", "line 1: key \"profile\" is not known; use profiles"),
            (
                "\n\n[colours]",
                "line 3: key \"colours\" is not known; the keys are profiles, policy",
            ),
            ("[profiles.a]\nurll = \"x\"", "line 2: key \"profiles.a.urll\" is not known; use url"),
            ("[profiles.a]\nurl = 5", "line 2: profiles.a.url is a text, in quotes"),
            (
                "[profiles.\"a b\"]\n",
                "line 1: \"profiles.a b\": a profile's name is 1 to 64 of a-z A-Z 0-9 . _ -",
            ),
            (
                "[profiles.a]\n[profiles.a.defaults]\nmode = \"jobs\"",
                "line 1: profiles.a has 0 of url, url_file and url_env; give one",
            ),
            (
                "[profiles.a]\nurl = \"x\"\nurl_env = \"X\"",
                "line 1: profiles.a has 2 of url, url_file and url_env; give one",
            ),
            (
                "[profiles.a.defaults]\nmode = []",
                "line 2: profiles.a.defaults.mode is a text, a number, true or false",
            ),
            (
                "[profiles.a.defaults]\nmodeFromEnv = \"X\"",
                "line 2: profiles.a.defaults.modeFromEnv: defaults have no environment; \
                 write the value itself",
            ),
            (
                "[profiles.a.queues.q]\nqueue = \"x\"",
                "line 2: profiles.a.queues.q.queue: a trigger names its queue, \
                 and its URL the default",
            ),
            ("policy = 1", "line 1: policy is a list; write [[policy]]"),
            (
                "[[policy]]\nnamespace = []",
                "line 2: key \"policy.namespace\" is not known; use namespaces",
            ),
            (
                "[[policy]]\nnamespaces = [\"a\"]",
                "line 1: a rule of the policy names its profiles; [\"*\"] means all",
            ),
            (
                "[[policy]]\nnamespaces = [\"a/b\"]",
                "line 2: policy.namespaces: a name is of a-z A-Z 0-9 . _ -, and * for any letters",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(File::parse(text).unwrap_err().to_string(), expected, "{text}");
        }
        let told = File::parse("[profiles.a]\nurl = \"x").unwrap_err().to_string();
        assert!(told.starts_with("line 2: this is not TOML"), "{told}");
    }

    #[test]
    fn a_stream_of_others_is_named_by_the_trigger_and_covered_by_the_policy() {
        let cases = [
            (
                "[[policy]]\nnamespaces = [\"a\"]\nqueues = [\"a b\"]",
                "line 3: policy.queues: a name is of ASCII without spaces, and * for any letters",
            ),
            (
                "[profiles.a]\nurl = \"x\"\n[profiles.a.defaults]\nconsumerGroup = \"g\"",
                "line 4: profiles.a.defaults.consumerGroup: a trigger names its consumerGroup, and \
                 its URL the default",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(File::parse(text).unwrap_err().to_string(), expected, "{text}");
        }
        let rule = "[[policy]]\nnamespaces = [\"a\"]\nprofiles = [\"*\"]\n";
        let file = File::parse(&format!("{rule}queues = [\"work:{{eu}}*\"]")).unwrap();
        let policy = file.policy.unwrap();
        assert!(policy.allows("a", "any", "work:{eu}/1") && !policy.allows("a", "any", "work:us"));
    }

    #[test]
    fn what_our_page_shows_is_a_whole_file() {
        let page = include_str!("../../docs/scaler-config.md");
        let block = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let file = File::parse(block).unwrap();
        assert_eq!(file.profiles.keys().collect::<Vec<_>>(), ["default", "night"]);
        let policy = file.policy.unwrap();
        assert!(policy.allows("team-a-x", "night", "a-1"));
        assert!(!policy.allows("team-a-x", "default", "a-1"));
    }

    #[test]
    fn no_secret_is_shown() {
        let file = File::parse("[profiles.a]\nurl = \"redis://:hunter2@host\"").unwrap();
        assert!(!format!("{file:?}").contains("hunter2"));
        let text = "[profiles.a]\nurl = \"redis://:hunter2@host";
        assert!(!File::parse(text).unwrap_err().to_string().contains("hunter2"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_it_panic(text in "(\\[(\\[?(profiles|policy)\\.?[a-z.]{0,9}\\]?)?\\]\n)?.{0,30}\n.{0,30}") {
            if let Err(error) = File::parse(&text) {
                prop_assert!((1..=4).contains(&error.line), "{}", error);
            }
        }
    }
}
