//! From the vectors of a text's tokens to one vector of the text.

use std::path::Path;

use super::body::Body;
use super::projection::{Projected, Projection};
use super::{Settings, Source, Tokens};
use crate::{DeviceChoice, FirstRuns, InferError, ItemError, Layout, LoadError, Model, Opened};

/// The vector of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As long as [`Settings::dimensions`].
    pub vector: Vec<f32>,
    /// Tokens the text was cut to.
    pub tokens: usize,
    /// Whether an end of the text was cut off.
    pub is_cut: bool,
}

impl Embedding {
    /// Keeps the first `dimensions` numbers; `of_length_one` makes the rest of that length again.
    pub fn shorten(&mut self, dimensions: usize, of_length_one: bool) {
        if dimensions >= self.vector.len() {
            return;
        }
        self.vector.truncate(dimensions);
        if of_length_one {
            normalise(&mut self.vector);
        }
    }
}

/// A sentence encoder on its device.
#[derive(Debug)]
pub struct Encoder {
    settings: Settings,
    body: Body,
    projections: Vec<Projected>,
}

impl Encoder {
    /// Reads the weights of a model directory; its texts are cut by [`super::Tokenizer::load`].
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        Self::on(Source::open(dir)?, &device.start()?)
    }

    /// The same, once both are opened.
    pub fn on(source: Source, device: &Opened) -> Result<Self, LoadError> {
        let Source { settings, reader } = source;
        let body = Body::load(settings.config.clone(), &reader, device)?;
        let projections = settings.projections.iter().map(Projection::load);
        let projections = projections.collect::<Result<_, _>>()?;
        Ok(Self { settings, body, projections })
    }

    /// What the directory says of the model.
    pub fn settings(&self) -> &Settings {
        &self.settings
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
        let numbers =
            |found: &Vec<Embedding>| found.iter().flat_map(|one| &one.vector).copied().collect();
        self.body.probe().run(self, &jobs, numbers)
    }
}

fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x /= length);
}

impl Model for Encoder {
    /// The texts of one job.
    type Input = Vec<Tokens>;
    /// The vectors of its texts, in their order.
    type Output = Vec<Embedding>;

    fn layout(&self) -> Layout {
        self.body.layout()
    }

    fn tell_first_runs(&mut self, first_runs: FirstRuns) {
        self.body.tell_first_runs(first_runs);
    }

    fn infer(
        &mut self,
        batch: &[Vec<Tokens>],
    ) -> Result<Vec<Result<Vec<Embedding>, ItemError>>, InferError> {
        let head = |pooled: &[f32], text: &Tokens| {
            let mut layers = self.projections.iter();
            let mut vector = layers.try_fold(pooled.to_vec(), |it, layer| layer.apply(&it))?;
            if self.settings.normalize {
                normalise(&mut vector);
            }
            super::finite(&vector)?;
            Ok(Embedding { vector, tokens: text.len(), is_cut: text.is_cut() })
        };
        self.body.infer(batch, |text| text, self.settings.pooling.into(), head)
    }
}
