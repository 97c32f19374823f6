//! From a text, or a pair of texts, to the scores of labels.

use std::path::Path;

use super::body::Body;
use super::head::SequenceHead;
use super::pool::Pick;
use super::{Settings, Source, Tokens};
use crate::{DeviceChoice, FirstRuns, InferError, ItemError, Layout, LoadError, Model, Opened};

/// What a classifier found of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Classification {
    /// One number per label, as the head gave it.
    pub logits: Vec<f32>,
    /// The same, as [`super::Problem`] reads it.
    pub scores: Vec<f32>,
    /// Tokens the text was cut to.
    pub tokens: usize,
    /// Whether an end of the text, or of a text of the pair, was cut off.
    pub is_cut: bool,
}

/// A classifier on its device.
#[derive(Debug)]
pub struct Classifier {
    settings: Settings,
    body: Body,
    head: SequenceHead,
}

impl Classifier {
    /// Reads the weights of a model directory; its texts are cut by [`super::Tokenizer::load`].
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        Self::on(Source::open(dir)?, &device.start()?)
    }

    /// The same, once both are opened.
    pub fn on(source: Source, device: &Opened) -> Result<Self, LoadError> {
        let Source { settings, reader } = source;
        let config = settings.config.clone();
        let n_labels = settings.labels().len();
        let head = SequenceHead::load(&reader, config.family, config.hidden, n_labels)?;
        let body = Body::load(config, &reader, device)?;
        Ok(Self { settings, body, head })
    }

    /// Runs a few fixed texts, so that the first job does not pay for what happens once, and no job
    /// gets what a broken device makes.
    ///
    /// # Errors
    /// When the device does not run them, when their numbers are not finite, or when those of a text
    /// are others alone than beside others.
    pub fn warm_up(&mut self) -> Result<(), InferError> {
        let texts = self.body.probe_texts(self.settings.max_tokens);
        let jobs: Vec<_> = texts.into_iter().map(|text| vec![text]).collect();
        let numbers = |found: &Vec<Classification>| {
            found.iter().flat_map(|one| &one.logits).copied().collect()
        };
        self.body.probe().run(self, &jobs, numbers)
    }
}

impl Model for Classifier {
    /// The texts of one job.
    type Input = Vec<Tokens>;
    /// What was found of its texts, in their order.
    type Output = Vec<Classification>;

    fn layout(&self) -> Layout {
        self.body.layout()
    }

    fn tell_first_runs(&mut self, first_runs: FirstRuns) {
        self.body.tell_first_runs(first_runs);
    }

    fn infer(
        &mut self,
        batch: &[Vec<Tokens>],
    ) -> Result<Vec<Result<Vec<Classification>, ItemError>>, InferError> {
        let head = |first: &[f32], text: &Tokens| {
            let logits = self.head.apply(first)?;
            let scores = self.settings.problem().scores(&logits);
            Ok(Classification { logits, scores, tokens: text.len(), is_cut: text.is_cut() })
        };
        self.body.infer(batch, |text| text, Pick::First, head)
    }
}
