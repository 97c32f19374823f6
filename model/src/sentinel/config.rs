//! The sentinel's `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::LoadError;
use crate::json::read_json;
use crate::sentinel::MODEL_TYPE;

/// What stands beside the weights: the window, the scales and the threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Always [`MODEL_TYPE`].
    pub model_type: String,
    /// Readings in a window.
    pub window: usize,
    /// Width of the outer hidden layers.
    pub hidden: usize,
    /// Width of the middle.
    pub code: usize,
    /// Mean and deviation of each sensor, in the order vibration, temperature, pressure.
    pub normalisation: [Normalisation; 3],
    /// Mean squared error of each sensor on sound windows: what its error is measured in.
    pub usual_error: [f32; 3],
    /// The score from which a window is an anomaly.
    pub threshold: f32,
}

/// How a sensor's values become numbers around zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// The mean of the sound readings.
    pub mean: f32,
    /// Their standard deviation.
    pub deviation: f32,
}

impl Config {
    /// Reads and checks `config.json` in this directory.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("config.json");
        let config: Self = read_json(&path)?;
        config.check(&path)?;
        Ok(config)
    }

    pub(crate) fn check(&self, path: &Path) -> Result<(), LoadError> {
        let unsupported = |field: &str, found: String, remedy: &str| {
            Err(LoadError::unsupported(path, field, found, remedy))
        };
        if self.model_type != MODEL_TYPE {
            return unsupported("model_type", self.model_type.clone(), "it must be ebb-sentinel");
        }
        for (field, size) in [("window", self.window), ("hidden", self.hidden), ("code", self.code)]
        {
            if !(1..=4096).contains(&size) {
                return unsupported(field, size.to_string(), "it must be between 1 and 4096");
            }
        }
        let scales = self.normalisation.iter().map(|scale| ("normalisation", scale.deviation));
        let errors = self.usual_error.iter().map(|error| ("usual_error", *error));
        if let Some(scale) = self.normalisation.iter().find(|scale| !scale.mean.is_finite()) {
            return unsupported(
                "normalisation",
                scale.mean.to_string(),
                "it must be finite; train again",
            );
        }
        for (field, value) in scales.chain(errors).chain([("threshold", self.threshold)]) {
            if !(value.is_finite() && value > 0.0) {
                return unsupported(field, value.to_string(), "it must be above zero; train again");
            }
        }
        Ok(())
    }
}

impl Normalisation {
    #[cfg(feature = "cpu")]
    pub(crate) fn apply(self, value: f32) -> f32 {
        (value - self.mean) / self.deviation
    }
}
