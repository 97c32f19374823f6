//! What the demo's jobs ask, and what can be read from their results.

use std::path::Path;

use anyhow::{Context, Result};
use ebb_model::sentinel::{Config, Reading, generate};
use ebb_queue::{JobResult, Outcome};
use serde_json::{Value, json};

use crate::choose::Kind;
use crate::exit::usage;
use crate::output::grouped;

/// The project's own sentences, one a line; see the build script.
const SENTENCES: &str = include_str!(concat!(env!("OUT_DIR"), "/sentences.txt"));

/// Questions whose answers stand among the sentences, in other words.
const QUESTIONS: [&str; 3] = [
    "How can I be sure that no work gets lost?",
    "How do I write a good error message?",
    "How do we save money at night?",
];

/// Sentences shown for a question.
const SHOWN: usize = 3;

/// Readings in a window of the shipped sentinel.
const WINDOW: usize = 32;

/// Share of readings with a fault, about.
const FAULTS: f64 = 0.02;

/// The jobs of a demo.
#[derive(Debug)]
pub(crate) enum Work {
    /// Sentences; the first ones are questions.
    Sentences {
        /// All of them, in the order of the jobs.
        texts: Vec<String>,
        /// How many of them are questions.
        n_questions: usize,
        /// Distinct sentences there were.
        n_distinct: usize,
    },
    /// Windows of readings, and whether there is a fault in each.
    Windows(Vec<(Vec<Reading>, bool)>),
}

impl Work {
    /// `n` jobs for a model of this kind.
    ///
    /// # Errors
    /// When the model's directory does not say how long a window is.
    pub(crate) fn make(kind: &Kind, n: usize, seed: u64) -> Result<Self> {
        match kind {
            Kind::Encoder => Ok(Self::sentences(n, QUESTIONS.len().min(n / 2))),
            Kind::Echo | Kind::Classifier | Kind::Generator => Ok(Self::sentences(n, 0)),
            Kind::Reranker => Err(usage("the demo has no queries for a reranker; use ebb up")),
            Kind::Sentinel(None) => Ok(Self::windows(n, WINDOW, seed)),
            Kind::Sentinel(Some(dir)) => Ok(Self::windows(n, window_of(dir)?, seed)),
        }
    }

    fn sentences(n: usize, n_questions: usize) -> Self {
        let known: Vec<&str> = SENTENCES.lines().collect();
        let n_distinct = known.len().min(n - n_questions);
        let texts = QUESTIONS.into_iter().take(n_questions);
        let texts = texts.chain(known.into_iter().cycle()).take(n).map(str::to_owned).collect();
        Self::Sentences { texts, n_questions, n_distinct }
    }

    fn windows(n: usize, window: usize, seed: u64) -> Self {
        let readings = generate(seed, n * window, FAULTS);
        let faulty = |part: &[Reading]| part.iter().any(|it| it.is_anomaly == Some(true));
        Self::Windows(readings.chunks(window).map(|it| (it.to_vec(), faulty(it))).collect())
    }

    /// What the jobs are, in words.
    #[must_use]
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Sentences { texts, n_questions, n_distinct } => {
                let n_repeated = texts.len() - n_questions - n_distinct;
                let mut words = format!(
                    "{} sentences of the project's own text",
                    grouped((texts.len() - n_questions) as u64)
                );
                if n_repeated > 0 {
                    words += &format!(", {} of them twice or more", grouped(n_repeated as u64));
                }
                if *n_questions > 0 {
                    words += &format!(", and {n_questions} questions");
                }
                words
            }
            Self::Windows(windows) => format!(
                "{} windows of {} simulated readings, with faults in {}",
                grouped(windows.len() as u64),
                windows.first().map_or(0, |(window, _)| window.len()),
                windows.iter().filter(|(_, faulty)| *faulty).count(),
            ),
        }
    }

    /// The bodies of the jobs, in order.
    pub(crate) fn bodies(&self) -> Vec<String> {
        match self {
            Self::Sentences { texts, .. } => {
                texts.iter().map(|text| json!({ "input": text }).to_string()).collect()
            }
            Self::Windows(windows) => {
                let machine = |at: usize| format!("pump-{}", at % 8 + 1);
                let body = |(at, (window, _)): (usize, &(Vec<Reading>, bool))| {
                    let readings: Vec<[f32; 3]> = window.iter().map(|it| it.values).collect();
                    json!({ "machine": machine(at), "readings": readings }).to_string()
                };
                windows.iter().enumerate().map(body).collect()
            }
        }
    }

    /// Something worth knowing, read from the results alone; they are in the order of the jobs.
    #[must_use]
    pub(crate) fn findings(&self, results: &[Option<&JobResult>]) -> Option<String> {
        let answers: Vec<Option<Value>> = results.iter().map(|it| answer(*it)).collect();
        match self {
            Self::Sentences { texts, n_questions, .. } if *n_questions > 0 => {
                let vectors: Vec<Option<Vec<f64>>> =
                    answers.iter().map(|it| embedding(it.as_ref()?)).collect();
                Some(search(texts, &vectors, *n_questions))
            }
            Self::Sentences { .. } => None,
            Self::Windows(windows) => {
                let verdicts: Vec<(bool, Option<Value>)> =
                    windows.iter().map(|(_, faulty)| *faulty).zip(answers).collect();
                Some(alarms(&verdicts))
            }
        }
    }
}

fn window_of(dir: &Path) -> Result<usize> {
    Ok(Config::read(dir).with_context(|| format!("cannot read {}", dir.display()))?.window)
}

fn answer(result: Option<&JobResult>) -> Option<Value> {
    match &result?.outcome {
        Outcome::Completed { body, .. } => serde_json::from_slice(body).ok(),
        Outcome::Failed(_) | Outcome::Cancelled => None,
    }
}

fn embedding(answer: &Value) -> Option<Vec<f64>> {
    answer["data"][0]["embedding"].as_array()?.iter().map(Value::as_f64).collect()
}

/// The nearest sentences to each question: the vectors are of length 1, so a product tells.
fn search(texts: &[String], vectors: &[Option<Vec<f64>>], n_questions: usize) -> String {
    let mut lines = Vec::new();
    for (question, vector) in texts.iter().zip(vectors).take(n_questions) {
        lines.push(format!("? {question}"));
        let Some(asked) = vector else { continue };
        let likeness = |other: &[f64]| asked.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
        let rest = texts.iter().zip(vectors).skip(n_questions);
        let mut near: Vec<(f64, &String)> =
            rest.filter_map(|(text, vector)| Some((likeness(vector.as_deref()?), text))).collect();
        near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        near.dedup_by(|(_, a), (_, b)| a == b);
        lines.extend(near.iter().take(SHOWN).map(|(score, text)| format!("  {score:.2}  {text}")));
    }
    lines.join("\n")
}

/// What the sentinel said, against what the generator did.
fn alarms(verdicts: &[(bool, Option<Value>)]) -> String {
    let alarm = |answer: &Option<Value>| {
        answer.as_ref().is_some_and(|answer| answer["anomaly"] == json!(true))
    };
    let count = |faulty: bool| {
        verdicts.iter().filter(|(is, answer)| *is == faulty && alarm(answer)).count()
    };
    let (found, raised_in_vain) = (count(true), count(false));
    let n_faulty = verdicts.iter().filter(|(faulty, _)| *faulty).count();
    let drivers = ["vibration", "temperature", "pressure"].map(|sensor| {
        let by = |answer: &&(bool, Option<Value>)| {
            alarm(&answer.1) && answer.1.as_ref().is_some_and(|it| it["driver"] == json!(sensor))
        };
        format!("{sensor} {}", verdicts.iter().filter(by).count())
    });
    format!(
        "{} alarms: {found} of the {n_faulty} windows with a fault, {raised_in_vain} of the {} \
         without\ndriven by {}",
        found + raised_in_vain,
        verdicts.len() - n_faulty,
        drivers.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use ebb_queue::Timestamp;

    use super::*;

    fn done(body: &Value) -> JobResult {
        let content_type = "application/json".to_owned();
        let outcome = Outcome::Completed { content_type, body: body.to_string().into() };
        let id = "job".parse().unwrap();
        JobResult { id, attempt: 1, outcome, finished_at: Timestamp::UNIX_EPOCH, queue: None }
    }

    #[test]
    fn there_are_enough_sentences_of_our_own_for_a_demo() {
        let sentences: Vec<&str> = SENTENCES.lines().collect();
        assert!(sentences.len() >= 1000, "{}", sentences.len());
    }

    #[test]
    fn there_are_as_many_jobs_as_asked_for() {
        for kind in [Kind::Encoder, Kind::Echo, Kind::Sentinel(None)] {
            for n in [1, 2, 10, 5000] {
                let work = Work::make(&kind, n, 1).unwrap();
                assert_eq!(work.bodies().len(), n, "{kind:?}");
                let body: Value = serde_json::from_str(&work.bodies()[n - 1]).unwrap();
                assert!(body.is_object());
            }
        }
    }

    #[test]
    fn a_search_finds_what_is_near_and_each_sentence_once() {
        let texts = ["asked?", "far", "near", "near", "lost"].map(str::to_owned).to_vec();
        let work = Work::Sentences { texts, n_questions: 1, n_distinct: 3 };
        let vector = |x: f64, y: f64| done(&json!({ "data": [{ "embedding": [x, y] }] }));
        let results = [vector(1.0, 0.0), vector(0.0, 1.0), vector(0.8, 0.6), vector(0.8, 0.6)];
        let mut results: Vec<_> = results.iter().map(Some).collect();
        results.push(None);
        let found = work.findings(&results).unwrap();
        assert_eq!(found, "? asked?\n  0.80  near\n  0.00  far");
    }

    #[test]
    fn alarms_are_held_against_the_faults_that_were_made() {
        let answer = |anomaly, driver| Some(json!({ "anomaly": anomaly, "driver": driver }));
        let told = alarms(&[
            (true, answer(true, "pressure")),
            (true, answer(false, "pressure")),
            (false, answer(true, "vibration")),
            (false, answer(false, "pressure")),
            (false, None),
        ]);
        assert_eq!(
            told,
            "2 alarms: 1 of the 2 windows with a fault, 1 of the 3 without\n\
             driven by vibration 1, temperature 0, pressure 1"
        );
    }
}
