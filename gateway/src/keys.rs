//! The file of keys, from text to who may do what. Pure.
//!
//! ```toml
//! [keys.team-a]                  # a name for logs and for the operator
//! sha256 = "2bb8…"               # of the key: printf %s "$KEY" | sha256sum
//! tenant = "team-a"              # the ebb-tenant of its jobs; its own name by default
//! models = ["minilm"]            # all when missing
//! max_in_flight = 64             # requests at once, in each replica; half of what others leave by default
//! requests_per_minute = 600      # in each replica
//! priority = true                # its jobs may come before all others; false by default
//! cost = true                    # its jobs may say what they cost; false by default
//! ```

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use ebb_telemetry::{Key as Name, Text, TextError, Value};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// What a key may have.
const KNOWN: [&str; 7] =
    ["sha256", "tenant", "models", "max_in_flight", "requests_per_minute", "priority", "cost"];

/// On whose behalf jobs are: 1 to 64 of `a-z A-Z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Tenant(Arc<str>);

impl Tenant {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=64).contains(&text.len());
        let is_name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        (fits && is_name).then(|| Self(text.into())).ok_or("1 to 64 of a-z A-Z 0-9 . _ -")
    }
}

/// A key, and what its owner may do.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) tenant: Tenant,
    /// All of them when missing.
    pub(crate) models: Option<Vec<String>>,
    pub(crate) max_in_flight: Option<u32>,
    pub(crate) requests_per_minute: Option<u32>,
    /// Whether its jobs may be urgent.
    pub(crate) priority: bool,
    /// Whether its jobs may say what they cost.
    pub(crate) cost: bool,
    /// Whether there is no other key, so that it need leave nothing to others.
    pub(crate) is_alone: bool,
    digest: [u8; 32],
}

/// Not the digest: whoever has it can try keys.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Key {
    /// Whether its owner may use a model.
    pub(crate) fn allows(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|name| name == model))
    }
}

/// Who may use a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys(Vec<Arc<Key>>);

impl Keys {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// Names the line, the key and the remedy, and shows no digest.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let reader = Text(text);
        let root = reader.root()?;
        let mut keys = BTreeMap::new();
        for (name, value) in root.get_ref() {
            if name.get_ref() != "keys" {
                return Err(reader.unknown("", name, &["keys"]));
            }
            for (name, value) in reader.table("keys", value)? {
                let key = Key::parse(reader, name, value)?;
                if let Some(other) = keys.insert(key.digest, key) {
                    let words = format!("keys.{} is the key {} again", name.get_ref(), other.name);
                    return Err(reader.error(&name.span(), words));
                }
            }
        }
        let is_alone = keys.len() == 1;
        let keys = keys.into_values().map(|key| Arc::new(Key { is_alone, ..key }));
        Ok(Self(keys.collect()))
    }

    /// The key that somebody has shown. Takes as long whichever it is, and where it is none.
    pub(crate) fn find(&self, shown: &str) -> Option<&Arc<Key>> {
        let digest: [u8; 32] = Sha256::digest(shown).into();
        let (mut found, mut at) = (Choice::from(0), 0_u64);
        for (nth, key) in (0_u64..).zip(&self.0) {
            let is_it = key.digest.ct_eq(&digest);
            at.conditional_assign(&nth, is_it);
            found |= is_it;
        }
        if bool::from(found) { self.0.get(usize::try_from(at).ok()?) } else { None }
    }

    /// What keys name and there is not, of the names of models: which key, and the name.
    pub(crate) fn unknown<'a>(
        &'a self,
        is_known: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let named = self.0.iter().flat_map(|key| {
            key.models.iter().flatten().map(|model| (key.name.as_str(), model.as_str()))
        });
        named.filter(move |(_, model)| !is_known(model))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Key {
    fn parse(reader: Text<'_>, name: &Name<'_>, value: &Value<'_>) -> Result<Self, TextError> {
        let own = name.get_ref().clone().into_owned();
        let at = format!("keys.{own}");
        let (mut digest, mut tenant) = (None, Err("1 to 64 of a-z A-Z 0-9 . _ -"));
        let (mut models, mut max_in_flight, mut requests_per_minute) = (None, None, None);
        let (mut priority, mut cost) = (false, false);
        for (key, value) in reader.table(&at, value)? {
            let own = format!("{at}.{}", key.get_ref());
            let wrong = |words: String| reader.error(&value.span(), format!("{own} is {words}"));
            match key.get_ref().as_ref() {
                "sha256" => {
                    let text = reader.string(&own, value)?;
                    let remedy = "64 hexadecimal digits: printf %s \"$KEY\" | sha256sum";
                    digest = Some(read_digest(&text).ok_or_else(|| wrong(remedy.to_owned()))?);
                }
                "tenant" => {
                    let text = reader.string(&own, value)?;
                    tenant = Ok(text.parse().map_err(|what: &str| wrong(what.to_owned()))?);
                }
                "models" => models = Some(reader.strings(&own, value)?),
                "max_in_flight" => max_in_flight = Some(reader.count(&own, value)?),
                "requests_per_minute" => requests_per_minute = Some(reader.count(&own, value)?),
                "priority" => priority = reader.flag(&own, value)?,
                "cost" => cost = reader.flag(&own, value)?,
                _ => return Err(reader.unknown(&at, key, &KNOWN)),
            }
        }
        let here = |words: &str| reader.error(&name.span(), format!("{at} {words}"));
        let digest = digest.ok_or_else(|| {
            here("has no sha256; write that of the key: printf %s \"$KEY\" | sha256sum")
        })?;
        let tenant = tenant.or_else(|_: &str| own.parse());
        let tenant = tenant.map_err(|what| here(&format!("is no tenant's name; use {what}")))?;
        Ok(Self {
            name: own,
            tenant,
            models,
            max_in_flight,
            requests_per_minute,
            priority,
            cost,
            is_alone: false,
            digest,
        })
    }
}

fn read_digest(text: &str) -> Option<[u8; 32]> {
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut digest = [0; 32];
    for (nth, byte) in digest.iter_mut().enumerate().filter(|_| is_hex) {
        *byte = u8::from_str_radix(&text[2 * nth..2 * nth + 2], 16).ok()?;
    }
    is_hex.then_some(digest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    use super::*;

    fn sha256(key: &str) -> String {
        Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_key_is_found_by_its_digest_and_says_what_its_owner_may() {
        let text = format!(
            "[keys.a]\nsha256 = \"{}\"\n[keys.b]\nsha256 = \"{}\"\ntenant = \"team\"\n\
             models = [\"m\"]\nmax_in_flight = 2\nrequests_per_minute = 60\n",
            sha256("one"),
            sha256("two").to_uppercase()
        );
        let keys = Keys::parse(&text).unwrap();
        let (a, b) = (keys.find("one").unwrap(), keys.find("two").unwrap());
        assert_eq!((a.tenant.as_str(), a.allows("any"), a.max_in_flight), ("a", true, None));
        assert_eq!((b.tenant.as_str(), b.allows("any"), b.allows("m")), ("team", false, true));
        assert_eq!((b.max_in_flight, b.requests_per_minute, keys.len()), (Some(2), Some(60), 2));
        assert!(!a.priority && !a.cost && !a.is_alone);
        let only = Keys::parse(&format!("[keys.a]\nsha256 = \"{}\"", sha256("one"))).unwrap();
        assert!(only.find("one").unwrap().is_alone);
        assert_eq!(keys.unknown(|_| false).collect::<Vec<_>>(), [("b", "m")]);
        assert_eq!(keys.unknown(|name| name == "m").count(), 0);
        for wrong in ["", "One", "one ", &sha256("one"), "a"] {
            assert_eq!(keys.find(wrong), None, "{wrong:?}");
        }
        assert_eq!(Keys::default().find(""), None);
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_its_remedy() {
        let good = format!("sha256 = \"{}\"", sha256("one"));
        for (text, told) in [
            ("[key.a]".to_owned(), "line 1: key \"key\" is not known; use keys"),
            ("[keys.a]\n".to_owned(), "line 1: keys.a has no sha256; write that of the key"),
            (
                "[keys.a]\nsha265 = \"x\"".to_owned(),
                "line 2: key \"keys.a.sha265\" is not known; use sha256",
            ),
            ("[keys.a]\nsha256 = \"x\"".to_owned(), "line 2: keys.a.sha256 is 64 hexadecimal"),
            (format!("[keys.a]\n{good}\ntenant = \"a b\""), "line 3: keys.a.tenant is 1 to 64 of"),
            (format!("[keys.\"a b\"]\n{good}"), "line 1: keys.a b is no tenant's name; use 1 to"),
            (
                format!("[keys.a]\n{good}\nrequests_per_minute = 0"),
                "line 3: keys.a.requests_per_minute is a number from 1 to",
            ),
            (format!("[keys.a]\n{good}\ncost = 1"), "line 3: keys.a.cost is true or false"),
            (format!("[keys.a]\n{good}\n[keys.b]\n{good}"), "line 3: keys.b is the key a again"),
        ] {
            let error = Keys::parse(&text).expect_err(told).to_string();
            assert!(error.starts_with(told), "{error}");
            assert!(!error.contains(&sha256("one")), "{error}");
        }
    }

    #[test]
    fn no_digest_is_shown() {
        let digest = sha256("one");
        let keys = Keys::parse(&format!("[keys.a]\nsha256 = \"{digest}\"")).unwrap();
        let bytes = format!("{:?}", keys.find("one").unwrap().digest);
        let shown = format!("{keys:?}");
        assert!(!shown.contains(&digest) && !shown.contains(&bytes), "{shown}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_it_panic(text in "(\\[keys\\.?[a-z]{0,3}\\]\n)?(sha256 = )?.{0,30}") {
            if let Err(error) = Keys::parse(&text) {
                prop_assert!((1..=3).contains(&error.line));
            }
        }

        #[test]
        fn of_many_keys_each_finds_its_own(
            names in proptest::collection::btree_set("[a-z]{1,8}", 1..20), other in "[A-Z]{1,8}",
        ) {
            let text: String = names
                .iter()
                .map(|name| format!("[keys.{name}]\nsha256 = \"{}\"\n", sha256(name)))
                .collect();
            let keys = Keys::parse(&text).unwrap();
            prop_assert!(names.iter().all(|name| keys.find(name).unwrap().name == *name));
            prop_assert!(keys.find(&other).is_none());
        }
    }
}
