//! A small neural network that finds anomalies in sensor readings.
//!
//! An autoencoder has learned what a sound window of readings looks like. What it cannot draw
//! again, measured in its usual error, is the score; the sensor it fails on most is the driver.

mod config;
#[cfg(feature = "cpu")]
mod detector;
mod generate;
#[cfg(feature = "cpu")]
mod net;
mod readings;
#[cfg(feature = "cpu")]
mod train;

pub use config::{Config, Normalisation};
#[cfg(feature = "cpu")]
pub use detector::{Finding, MAX_READINGS, Sentinel, Window};
pub use generate::generate;
#[cfg(feature = "cpu")]
pub use readings::{ReadError, read_csv, write_csv};
pub use readings::{Reading, Sensor};
#[cfg(feature = "cpu")]
pub use train::{Epoch, Options, Report, Scores, TrainError, train};

/// What `config.json` says in `model_type`.
pub const MODEL_TYPE: &str = "ebb-sentinel";
/// Dense layers: two down, two up.
pub(crate) const LAYERS: usize = 4;
/// Sensors of a reading.
pub(crate) const SENSORS: usize = 3;
