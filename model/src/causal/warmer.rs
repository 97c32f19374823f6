//! A generator that only warms its device up: every shape its passes may have, once.

use std::path::Path;

use super::generator::PASS_TOKENS;
use super::graph::Graph;
use super::groups::{self, GroupShape};
use super::{Source, config::Config};
use crate::{DeviceChoice, InferError, LoadError};

/// The layers of a decoder, without what is kept of sequences.
pub struct Warmer {
    config: Config,
    device: String,
    /// `None` where the code is the same for all shapes.
    graph: Option<Graph>,
}

impl std::fmt::Debug for Warmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Warmer").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Warmer {
    /// Reads the weights of a model directory.
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        let Source { config, reader } = Source::open(dir)?;
        let opened = device.start()?.for_weights(reader.stored())?;
        let graph = opened.launches.then(|| Graph::load(&config, &reader, &opened)).transpose()?;
        Ok(Self { config, device: opened.full_name(), graph })
    }

    /// The device and its type of numbers, for people.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// All shapes of tokens that attend side by side, the smallest first, where at most so many sequences
    /// grow at once and none has more than so many tokens; none where all have the same code.
    pub fn shapes(&self, max_sequences: usize, max_tokens: usize) -> Vec<GroupShape> {
        if self.graph.is_none() {
            return Vec::new();
        }
        groups::all_shapes(max_sequences, PASS_TOKENS, max_tokens.min(self.config.positions))
    }

    /// Runs one pass of this shape, whose tokens are read and chosen on the device: no more than a pass
    /// has where at most so many sequences grow at once.
    ///
    /// # Errors
    /// When the device does not run it, such as for want of memory.
    pub fn run(&mut self, shape: GroupShape, max_sequences: usize) -> Result<(), InferError> {
        let n_tokens = max_sequences.saturating_add(PASS_TOKENS);
        let warm = |graph: &mut Graph| graph.warm_shape(shape, n_tokens, max_sequences);
        self.graph.as_mut().map_or(Ok(()), warm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_runs_and_a_processor_has_none() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
        let mut warmer = Warmer::load(&dir, DeviceChoice::CpuTensors(None)).unwrap();
        let shapes = warmer.shapes(2, 64);
        assert!(shapes.iter().any(|shape| shape.tokens == 1 && shape.length == 64));
        for shape in shapes.into_iter().filter(|shape| shape.rows * shape.tokens <= 64) {
            warmer.run(shape, 2).unwrap();
        }
        let warmer = Warmer::load(&dir, DeviceChoice::Cpu).unwrap();
        assert_eq!((warmer.shapes(2, 64), warmer.device()), (Vec::new(), "cpu in f32"));
    }
}
