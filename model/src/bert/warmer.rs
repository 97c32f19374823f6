//! A model that only warms its device up: every shape its batches may have, once.

use std::path::Path;

use super::body::Body;
use super::pool::Pick;
use super::shapes::{self, Shape};
use super::{Settings, Source, Task};
use crate::{DeviceChoice, InferError, LoadError};

/// The layers of a model, with what its head picks.
#[derive(Debug)]
pub struct Warmer {
    settings: Settings,
    pick: Pick,
    body: Body,
}

impl Warmer {
    /// Reads the weights of a model directory.
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        let Source { settings, reader } = Source::open(dir)?;
        let body = Body::load(settings.config.clone(), &reader, &device.start()?)?;
        let pick = match settings.task() {
            Task::Embedding => settings.pooling.into(),
            Task::Classification | Task::Reranking => Pick::First,
            Task::Tagging => Pick::Tokens,
        };
        Ok(Self { settings, pick, body })
    }

    /// The device and its type of numbers, for people.
    pub fn device(&self) -> &str {
        self.body.name()
    }

    /// What batches of at most so many texts and tokens, padding counted, are padded to on a device
    /// that launches kernels, the smallest first; one of them where all have the same kernels.
    pub fn shapes(&self, max_rows: usize, max_tokens: usize) -> Vec<Shape> {
        if !self.body.has_shapes() {
            return vec![Shape::of(1, 1, self.settings.config.positions)];
        }
        shapes::all(self.settings.config.positions, max_rows, max_tokens)
    }

    /// Runs one forward.
    pub fn run(&self, shape: Shape) -> Result<(), InferError> {
        self.body.warm_shape(self.pick, shape)
    }
}
