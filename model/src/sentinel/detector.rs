//! The sentinel at work: windows in, findings out.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::net::{self, Layers, Net};
use super::{Config, Normalisation, SENSORS, Sensor};
use crate::checkpoint::Checkpoint;
use crate::device::Opened;
use crate::probe::Probe;
use crate::safetensors::Weights;
use crate::{DeviceChoice, InferError, ItemError, Layout, LoadError, Model};

/// Longest run of readings in one job.
pub const MAX_READINGS: usize = 4096;

/// Consecutive readings: as many as the model's window, or more.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Window {
    /// mm/s.
    pub vibration: Vec<f32>,
    /// °C.
    pub temperature: Vec<f32>,
    /// bar.
    pub pressure: Vec<f32>,
}

/// What the sentinel makes of a window; of a longer run, of the worst window in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Finding {
    /// The worst sensor's error, in units of its usual one.
    pub score: f32,
    /// The score from which it is an anomaly.
    pub threshold: f32,
    /// The verdict.
    pub is_anomaly: bool,
    /// The sensor that is furthest from what was expected of it.
    pub driver: Sensor,
    /// Each sensor's mean squared error in squared deviations, in the order of [`Sensor::ALL`].
    pub errors: [f32; SENSORS],
    /// Where the window begins in the run.
    pub at: usize,
}

/// An anomaly detector on its device.
#[derive(Debug)]
pub struct Sentinel {
    config: Config,
    layers: Layers,
    net: Net,
    device: Device,
    probe: Probe,
}

impl Sentinel {
    /// The one that comes with Ebb, trained on [`super::generate`].
    pub fn shipped(device: DeviceChoice) -> Result<Self, LoadError> {
        Self::on(None, &device.start()?)
    }

    /// Reads a directory that [`Self::save`] wrote.
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        Self::on(Some(dir), &device.start()?)
    }

    /// The one in a directory, or that which comes with Ebb, on a device that was started.
    pub fn on(dir: Option<&Path>, device: &Opened) -> Result<Self, LoadError> {
        if let Some(dir) = dir {
            let weights = Checkpoint::open(dir)?;
            let read = |name: &str, shape: &[usize]| weights.read(name, shape);
            return Self::from_weights(Config::read(dir)?, read, device);
        }
        let config = include_str!("../../weights/sentinel/config.json");
        let weights = include_bytes!("../../weights/sentinel/model.safetensors");
        let path = Path::new("weights/sentinel");
        let config_path = path.join("config.json");
        let config: Config = serde_json::from_str(config)
            .map_err(|error| LoadError::malformed(&config_path, error))?;
        config.check(&config_path)?;
        let weights = Weights::new(&path.join("model.safetensors"), weights)?;
        Self::from_weights(config, |name, shape| weights.read(name, shape), device)
    }

    fn from_weights(
        config: Config,
        read: impl Fn(&str, &[usize]) -> Result<Vec<f32>, LoadError>,
        device: &Opened,
    ) -> Result<Self, LoadError> {
        let layers = net::read(&config, read)?;
        Ok(Self::new(config, layers, device))
    }

    pub(super) fn new(config: Config, layers: Layers, opened: &Opened) -> Self {
        opened.tell();
        let net = Net::new(&config, &layers, &opened.device);
        let probe = Probe { device: opened.full_name(), tolerance: opened.tolerance() };
        Self { config, layers, net, device: opened.device.clone(), probe }
    }

    /// Writes `config.json` and `model.safetensors`, the latter last.
    pub fn save(&self, dir: &Path) -> Result<(), LoadError> {
        std::fs::create_dir_all(dir).map_err(|error| LoadError::io(dir, error))?;
        let mut config = serde_json::to_string_pretty(&self.config).expect("numbers and strings");
        config.push('\n');
        let weights = net::write(&self.config, &self.layers);
        for (name, content) in
            [("config.json", config.into_bytes()), ("model.safetensors", weights)]
        {
            let path = dir.join(name);
            let unfinished = dir.join(format!(".{name}.{}", std::process::id()));
            std::fs::write(&unfinished, content)
                .and_then(|()| std::fs::rename(&unfinished, &path))
                .map_err(|error| LoadError::io(&path, error))?;
        }
        Ok(())
    }

    /// The window, the scales and the threshold.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs a few fixed windows, so that the first job does not pay for what happens once, and no
    /// job gets what a broken device makes.
    ///
    /// # Errors
    /// When the device does not run them, when their numbers are not finite, or when those of a
    /// window are others alone than beside others.
    pub fn warm_up(&mut self) -> Result<(), InferError> {
        let windows: Vec<Window> = (0..8).map(|n| self.probe_window(n)).collect();
        // The score follows from these, and may be large where they are next to nothing.
        self.probe.clone().run(self, &windows, |found| found.errors.to_vec())
    }

    /// Readings that differ by their number, near the mean of each sensor.
    fn probe_window(&self, n: usize) -> Window {
        let readings = |sensor: usize| {
            let Normalisation { mean, deviation } = self.config.normalisation[sensor];
            let place = |at: usize| ((at + n) % 5) as f32 / 4.0 - 0.5;
            (0..self.config.window).map(|at| mean + deviation * place(at)).collect()
        };
        Window { vibration: readings(0), temperature: readings(1), pressure: readings(2) }
    }

    /// A run as rows of normalised windows, and where each begins.
    fn rows(&self, run: &Window) -> Result<(Vec<usize>, Vec<f32>), ItemError> {
        let window = self.config.window;
        let sensors = [&run.vibration, &run.temperature, &run.pressure];
        for (values, sensor) in sensors.iter().zip(Sensor::ALL) {
            let n = values.len();
            if n != run.vibration.len() {
                let message = format!(
                    "{sensor} has {n} readings, vibration has {}; send as many of each",
                    run.vibration.len()
                );
                return Err(ItemError::new(message));
            }
            if !(window..=MAX_READINGS).contains(&n) {
                let message =
                    format!("readings has {n} of {sensor}; send {window} to {MAX_READINGS}");
                return Err(ItemError::new(message));
            }
            if let Some(place) = values.iter().position(|value| !value.is_finite()) {
                let message =
                    format!("readings[{place}]: {sensor} is not a finite number; leave it out");
                return Err(ItemError::new(message));
            }
        }
        let last = run.vibration.len() - window;
        let step = (window / 4).max(1);
        let starts: Vec<usize> = (0..last).step_by(step).chain(std::iter::once(last)).collect();
        let mut rows = Vec::with_capacity(starts.len() * window * SENSORS);
        for start in &starts {
            for place in *start..start + window {
                for (values, scale) in sensors.iter().zip(&self.config.normalisation) {
                    rows.push(scale.apply(values[place]));
                }
            }
        }
        Ok((starts, rows))
    }

    /// The mean squared error of each sensor in each of the rows.
    pub(super) fn errors(&self, rows: Vec<f32>) -> Result<Vec<[f32; SENSORS]>, InferError> {
        let width = self.config.window * SENSORS;
        let shape = [rows.len() / width, width];
        let windows = Tensor::<2>::from_data(TensorData::new(rows, shape), &self.device);
        let difference = self.net.forward(windows.clone()) - windows;
        let difference = difference
            .try_into_vec_as::<f32>()
            .map_err(|error| InferError::Device(format!("read back: {error}")))?;
        let error_of = |row: &[f32]| {
            let mut errors = [0.0; SENSORS];
            for values in row.as_chunks::<SENSORS>().0 {
                for (error, value) in errors.iter_mut().zip(values) {
                    *error += value * value / self.config.window as f32;
                }
            }
            errors
        };
        Ok(difference.chunks_exact(width).map(error_of).collect())
    }

    /// What a window's errors mean.
    ///
    /// The score weighs each sensor by how well it is usually drawn. The driver does not: an
    /// error spills over to its neighbours, and most shows on those that are usually drawn best.
    pub(super) fn judge(&self, errors: [f32; SENSORS], at: usize) -> Finding {
        let ratios =
            errors.iter().zip(&self.config.usual_error).map(|(error, usual)| error / usual);
        let score = ratios
            .fold(f32::NEG_INFINITY, |score, ratio| if ratio <= score { score } else { ratio });
        let largest = (1..SENSORS).fold(0, |of, it| if errors[it] > errors[of] { it } else { of });
        let threshold = self.config.threshold;
        let (is_anomaly, driver) = (score >= threshold, Sensor::ALL[largest]);
        Finding { score, threshold, is_anomaly, driver, errors, at }
    }
}

impl Model for Sentinel {
    type Input = Window;
    type Output = Finding;

    /// Windows of all runs lie end to end.
    fn layout(&self) -> Layout {
        Layout::Alike
    }

    fn infer(&mut self, batch: &[Window]) -> Result<Vec<Result<Finding, ItemError>>, InferError> {
        let mut all = Vec::new();
        let mut starts = Vec::with_capacity(batch.len());
        for run in batch {
            starts.push(self.rows(run).map(|(starts, rows)| {
                all.extend(rows);
                starts
            }));
        }
        let errors = if all.is_empty() { Vec::new() } else { self.errors(all)? };
        let mut errors = errors.into_iter();
        let mut worst = |starts: Vec<usize>| {
            let findings = starts.into_iter().zip(errors.by_ref());
            let mut findings = findings.map(|(at, errors)| self.judge(errors, at));
            let first = findings.next().expect("at least one window fits");
            let worst =
                findings.fold(first, |worst, it| if it.score > worst.score { it } else { worst });
            if worst.score.is_finite() && worst.errors.iter().all(|error| error.is_finite()) {
                Ok(worst)
            } else {
                Err(ItemError::new("output is not finite; the readings are far out of range"))
            }
        };
        Ok(starts.into_iter().map(|starts| starts.and_then(&mut worst)).collect())
    }
}
