//! The configuration file, from text to typed values. Pure: the URLs that it names are read elsewhere.
//!
//! ```toml
//! [models.minilm]
//! queue = "nats://broker?queue=embeddings"     # or queue_file, or queue_env
//! results = "redis://broker"                   # where they are apart; or results_file, results_env
//! aliases = ["text-embedding-3-small"]
//! serves = "minilm"                            # the ebb-model of its jobs, where its queue has several
//! timeout = "30s"                              # as --timeout; or seconds: 30
//! max_in_flight = 200                          # requests that wait for it at once
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_queue::UrlFrom;
use ebb_telemetry::{Key, Text, TextError, Value};

/// What a model may have.
const KNOWN: [&str; 10] = [
    "queue",
    "queue_file",
    "queue_env",
    "results",
    "results_file",
    "results_env",
    "aliases",
    "serves",
    "timeout",
    "max_in_flight",
];

/// A model whose addresses are not read yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) line: usize,
    pub(crate) queue: UrlFrom,
    pub(crate) results: Option<UrlFrom>,
    pub(crate) aliases: Vec<String>,
    pub(crate) serves: Option<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) max_in_flight: Option<u32>,
}

/// Reads the text of a file: the models by name.
///
/// # Errors
/// Names the line, the key, and the nearest right one.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, Draft>, TextError> {
    let reader = Text(text);
    let root = reader.root()?;
    let mut models = BTreeMap::new();
    for (key, value) in root.get_ref() {
        if key.get_ref() != "models" {
            return Err(reader.unknown("", key, &["models"]));
        }
        for (name, value) in reader.table("models", value)? {
            models.insert(name.get_ref().clone().into_owned(), model(reader, name, value)?);
        }
    }
    // Only now all names are known.
    let mut taken: BTreeMap<&str, &str> = models.keys().map(|name| (&**name, &**name)).collect();
    for (name, draft) in &models {
        for alias in &draft.aliases {
            if let Some(other) = taken.insert(alias, name) {
                let words = format!("models.{name}.aliases: {alias} is the model {other} already");
                return Err(TextError { line: draft.line, words });
            }
        }
    }
    Ok(models)
}

fn model(reader: Text<'_>, name: &Key<'_>, value: &Value<'_>) -> Result<Draft, TextError> {
    let at = format!("models.{}", name.get_ref());
    let (mut queues, mut results) = (Vec::new(), Vec::new());
    let (mut aliases, mut serves) = (Vec::new(), None);
    let (mut timeout, mut max_in_flight) = (None, None);
    for (key, value) in reader.table(&at, value)? {
        let own = format!("{at}.{}", key.get_ref());
        let text = || reader.string(&own, value);
        match key.get_ref().as_ref() {
            "queue" => queues.push(UrlFrom::Here(text()?)),
            "queue_file" => queues.push(UrlFrom::File(text()?.into())),
            "queue_env" => queues.push(UrlFrom::Env(text()?)),
            "results" => results.push(UrlFrom::Here(text()?)),
            "results_file" => results.push(UrlFrom::File(text()?.into())),
            "results_env" => results.push(UrlFrom::Env(text()?)),
            "aliases" => aliases = reader.strings(&own, value)?,
            "serves" => serves = Some(text()?),
            "timeout" => {
                let span = match reader.count(&own, value) {
                    Ok(seconds) => Some(Duration::from_secs(seconds.into())),
                    Err(_) => {
                        reader.string(&own, value).ok().and_then(|text| ebb_queue::read_span(&text))
                    }
                };
                let span = span.filter(|span| !span.is_zero());
                let words = || format!("{own} is seconds, or a text with a unit: 30 or \"5m\"");
                timeout = Some(span.ok_or_else(|| reader.error(&value.span(), words()))?);
            }
            "max_in_flight" => max_in_flight = Some(reader.count(&own, value)?),
            _ => return Err(reader.unknown(&at, key, &KNOWN)),
        }
    }
    let line = reader.line(&name.span());
    let n_given = |found: &[UrlFrom], key: &str, what: &str| {
        let n = found.len();
        let words = format!("{at} has {n} of {key}, {key}_file and {key}_env; {what}");
        TextError { line, words }
    };
    if queues.len() != 1 {
        return Err(n_given(&queues, "queue", "give one"));
    }
    if results.len() > 1 {
        return Err(n_given(&results, "results", "give one or none"));
    }
    let Some(queue) = queues.pop() else { return Err(n_given(&queues, "queue", "give one")) };
    let results = results.pop();
    Ok(Draft { line, queue, results, aliases, serves, timeout, max_in_flight })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    use super::*;

    #[test]
    fn a_whole_file_is_read() {
        let models = parse(
            "[models.\"org/minilm\"]\nqueue = \"sqlite:q.db\"\nresults_env = \"R\"\n\
             aliases = [\"a\", \"b\"]\nserves = \"minilm\"\ntimeout = \"30s\"\nmax_in_flight = 5\n\
             [models.chat]\nqueue_file = \"/run/q\"\n",
        );
        let models = models.unwrap();
        let expected = Draft {
            line: 1,
            queue: UrlFrom::Here("sqlite:q.db".to_owned()),
            results: Some(UrlFrom::Env("R".to_owned())),
            aliases: vec!["a".to_owned(), "b".to_owned()],
            serves: Some("minilm".to_owned()),
            timeout: Some(Duration::from_secs(30)),
            max_in_flight: Some(5),
        };
        assert_eq!(models["org/minilm"], expected);
        assert_eq!(models["chat"].queue, UrlFrom::File("/run/q".into()));
        assert!(parse("").unwrap().is_empty());
        for text in ["30", "\"30\"", "\"30s\""] {
            let text = format!("[models.a]\nqueue = \"sqlite:q.db\"\ntimeout = {text}");
            assert_eq!(parse(&text).unwrap()["a"].timeout, Some(Duration::from_secs(30)), "{text}");
        }
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_its_remedy() {
        for (text, told) in [
            ("[model.a]", "line 1: key \"model\" is not known; use models"),
            ("[models.a]\nquue = \"x\"", "line 2: key \"models.a.quue\" is not known; use queue"),
            ("[models.a]\n", "line 1: models.a has 0 of queue, queue_file and queue_env; give one"),
            (
                "[models.a]\nqueue = \"x\"\nresults = \"y\"\nresults_env = \"z\"",
                "line 1: models.a has 2 of results, results_file and results_env; give one or none",
            ),
            ("[models.a]\nqueue = 5", "line 2: models.a.queue is a text, in quotes"),
            (
                "[models.a]\ntimeout = \"soon\"",
                "line 2: models.a.timeout is seconds, or a text with a unit: 30 or \"5m\"",
            ),
            ("[models.a]\ntimeout = 0", "line 2: models.a.timeout is seconds"),
            ("[models.a]\ntimeout = 1.5", "line 2: models.a.timeout is seconds"),
            ("[models.a]\nmax_in_flight = 0", "line 2: models.a.max_in_flight is a number from 1"),
            (
                "[models.a]\nqueue = \"x\"\n[models.b]\nqueue = \"x\"\naliases = [\"a\"]",
                "line 3: models.b.aliases: a is the model a already",
            ),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(told), "{text:?}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_it_panic(text in "(\\[models\\.?[a-z]{0,3}\\]\n)?((queue|timeout) = )?.{0,30}") {
            if let Err(error) = parse(&text) {
                prop_assert!((1..=3).contains(&error.line));
            }
        }
    }
}
