//! Who may use what: which namespaces, which connection profiles, which queues. Pure.

/// What namespaces may use. What no rule allows is denied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Policy {
    pub(crate) rules: Vec<Rule>,
}

/// One permission: each of these namespaces may use each of these profiles and queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) namespaces: Vec<Glob>,
    pub(crate) profiles: Vec<Glob>,
    /// Every queue when missing, and no stream of others.
    pub(crate) queues: Option<Vec<Glob>>,
}

/// A name in which `*` stands for any letters, or for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(String);

impl Policy {
    /// Whether a namespace may use any queue of a profile.
    pub(crate) fn allows_profile(&self, namespace: &str, profile: &str) -> bool {
        self.rules.iter().any(|rule| rule.covers(namespace, profile))
    }

    /// Whether a namespace may use this queue of a profile.
    pub(crate) fn allows(&self, namespace: &str, profile: &str, queue: &str) -> bool {
        let mut rules = self.rules.iter().filter(|rule| rule.covers(namespace, profile));
        rules.any(|rule| rule.queues.is_none() || rule.names(queue))
    }

    /// Whether it may look at this stream of others there: only a rule that names it allows that.
    pub(crate) fn allows_stream(&self, namespace: &str, profile: &str, stream: &str) -> bool {
        let mut rules = self.rules.iter().filter(|rule| rule.covers(namespace, profile));
        rules.any(|rule| rule.names(stream))
    }
}

impl Rule {
    fn names(&self, queue: &str) -> bool {
        self.queues.iter().flatten().any(|glob| glob.matches(queue))
    }

    fn covers(&self, namespace: &str, profile: &str) -> bool {
        let any = |globs: &[Glob], name: &str| globs.iter().any(|glob| glob.matches(name));
        any(&self.namespaces, namespace) && any(&self.profiles, profile)
    }
}

impl Glob {
    /// Reads a pattern; none if it can match no name of ours.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*".contains(&byte);
        (!text.is_empty() && text.bytes().all(fits)).then(|| Self(text.to_owned()))
    }

    /// The same for what is looked at: a stream of others has more letters in its name than a queue.
    pub(crate) fn of_source(text: &str) -> Option<Self> {
        let is_name = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_name.then(|| Self(text.to_owned()))
    }

    /// Whether the whole name fits. Linear in the name for each star, whatever the pattern.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    use super::{Glob, Policy, Rule};

    fn glob(text: &str) -> Glob {
        Glob::parse(text).unwrap()
    }

    #[test]
    fn a_star_stands_for_any_letters() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*", "anything", true),
            ("team-a-*", "team-a-", true),
            ("team-a-*", "team-a-night", true),
            ("team-a-*", "team-a", false),
            ("team-a-*", "my-team-a-night", false),
            ("*-a", "team-a", true),
            ("*-a", "team-a-b", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
            ("ab*ba", "aba", false),
            ("ab*ba", "abba", true),
            ("**", "x", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(glob(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_rule_gives_its_profiles_to_its_namespaces_and_nothing_is_mixed() {
        let globs = |names: &[&str]| names.iter().map(|name| glob(name)).collect();
        let rule = |namespaces: &[&str], profiles: &[&str], queues: &[&str]| Rule {
            namespaces: globs(namespaces),
            profiles: globs(profiles),
            queues: Some(globs(queues)),
        };
        let policy = Policy {
            rules: vec![
                rule(&["team-a", "team-a-*"], &["night"], &["a-*"]),
                rule(&["team-b"], &["night", "day"], &["*"]),
            ],
        };
        let cases = [
            ("team-a", "night", "a-1", true),
            ("team-a-x", "night", "a-1", true),
            ("team-a", "night", "b-1", false),
            ("team-a", "day", "a-1", false),
            ("team-b", "day", "a-1", true),
            ("team-c", "day", "a-1", false),
        ];
        for (namespace, profile, queue, expected) in cases {
            assert_eq!(policy.allows(namespace, profile, queue), expected, "{namespace} {queue}");
        }
        assert!(policy.allows_profile("team-a", "night"));
        assert!(!policy.allows_profile("team-a", "day"));
        assert!(
            !Policy::default().allows_profile("team-a", "night"),
            "nothing is allowed by default"
        );
    }

    /// The definition of a glob, slow and plain.
    fn fits(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|at| fits(rest, &name[at..])),
            Some((first, rest)) => {
                name.split_first().is_some_and(|(letter, name)| letter == first && fits(rest, name))
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn globs_match_what_their_definition_says(pattern in "[ab*]{1,6}", name in "[ab]{0,8}") {
            let expected = fits(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(glob(&pattern).matches(&name), expected);
        }

        #[test]
        fn no_pattern_makes_it_panic(pattern in ".{0,12}", name in ".{0,12}") {
            if let Some(glob) = Glob::parse(&pattern) {
                prop_assert!(!glob.matches(&name) || !pattern.is_empty());
            }
        }
    }
}
