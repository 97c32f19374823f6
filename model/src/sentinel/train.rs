//! Makes a sentinel out of readings.

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Tensor, TensorData};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Serialize;

use super::net::{self, Net};
use super::{Config, MODEL_TYPE, Normalisation, Reading, SENSORS, Sensor, Sentinel};
use crate::{DeviceChoice, DeviceError, InferError};

/// Windows in one step.
const BATCH: usize = 128;
/// Windows without an anomaly that each part of the readings must have.
const FEWEST_WINDOWS: usize = 16;

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Readings in a window.
    pub window: usize,
    /// Width of the outer hidden layers.
    pub hidden: usize,
    /// Numbers kept of a window.
    pub code: usize,
    /// Times that every window is seen.
    pub epochs: usize,
    /// Step size at the start; it falls to nothing by the end.
    pub learning_rate: f64,
    /// Share of sound windows that may be called anomalies.
    pub false_alarms: f64,
    /// The same seed, readings and options give the same weights.
    pub seed: u64,
    /// Where to train.
    pub device: DeviceChoice,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: 32,
            hidden: 48,
            code: 8,
            epochs: 30,
            learning_rate: 3e-3,
            false_alarms: 0.005,
            seed: 1,
            device: DeviceChoice::Cpu,
        }
    }
}

/// One time through the windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epoch {
    /// Counted from one.
    pub epoch: usize,
    /// How many there will be.
    pub epochs: usize,
    /// Mean squared error while training.
    pub loss: f32,
}

/// How good a sentinel is on readings that it has not seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Windows it learned from.
    pub windows: usize,
    /// Epochs it took.
    pub epochs: usize,
    /// Mean squared error of normalised readings on sound windows.
    pub error: f32,
    /// The calibrated threshold.
    pub threshold: f32,
    /// The verdicts against the labels, where there are labels of both kinds.
    pub labelled: Option<Scores>,
}

/// Verdicts on windows against their labels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// The chance that an anomaly scores above a sound window.
    pub roc_auc: f64,
    /// Share of the verdicts "anomaly" that are right.
    pub precision: f64,
    /// Share of the anomalies that are found.
    pub recall: f64,
    /// The harmonic mean of the two.
    pub f1: f64,
}

/// A training that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An option is out of its range.
    #[error("{option} is {found}; choose {range}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        range: &'static str,
    },
    /// Too little to learn from.
    #[error(
        "{n_readings} readings have too few windows of {window} without an anomaly; bring at least {needed} readings"
    )]
    TooFew {
        /// Readings given.
        n_readings: usize,
        /// Readings in a window.
        window: usize,
        /// Readings that would do, without anomalies.
        needed: usize,
    },
    /// A sensor that always says the same.
    #[error("{0} never changes; check its column")]
    Constant(Sensor),
    /// The numbers ran away.
    #[error("training diverged in epoch {0}; choose a smaller learning_rate")]
    Diverged(usize),
    /// The device failed.
    #[error(transparent)]
    Infer(#[from] InferError),
}

/// Trains on the first 70 % of the readings, sets the threshold on the next 15 %, and reports on
/// the last 15 %. Readings labelled as anomalies are not learned from.
pub fn train(
    readings: &[Reading],
    options: &Options,
    progress: &mut dyn FnMut(&Epoch),
) -> Result<(Sentinel, Report), TrainError> {
    options.check()?;
    let (learn, rest) = readings.split_at(readings.len() * 70 / 100);
    let (calibrate, test) = rest.split_at(rest.len() / 2);
    let mut config = Config {
        model_type: MODEL_TYPE.to_owned(),
        window: options.window,
        hidden: options.hidden,
        code: options.code,
        normalisation: normalisation(learn)?,
        usual_error: [1.0; SENSORS],
        threshold: 1.0,
    };
    let cut = |readings: &[Reading], step: usize| Windows::cut(readings, &config, step);
    let learn = cut(learn, (options.window / 16).max(1));
    let calibrate = cut(calibrate, (options.window / 8).max(1));
    let test = cut(test, (options.window / 8).max(1));
    if [&learn, &calibrate, &test].iter().any(|part| part.n_sound() < FEWEST_WINDOWS) {
        let (n_readings, window) = (readings.len(), options.window);
        let needed = 20 * window;
        return Err(TrainError::TooFew { n_readings, window, needed });
    }

    let layers = fit(&config, &learn.sound(), options, progress)?;
    let opened = options.device.start()?;
    let sentinel = Sentinel::new(config.clone(), layers.clone(), &opened);
    let errors = sentinel.errors(calibrate.sound())?;
    config.usual_error = mean(&errors);
    let sentinel = Sentinel::new(config.clone(), layers.clone(), &opened);
    let mut scores: Vec<f32> = errors.iter().map(|it| sentinel.judge(*it, 0).score).collect();
    scores.sort_by(f32::total_cmp);
    let kept = (scores.len() as f64 * (1.0 - options.false_alarms)) as usize;
    config.threshold = scores[kept.min(scores.len() - 1)];

    let sentinel = Sentinel::new(config.clone(), layers, &opened);
    let error = mean(&sentinel.errors(test.sound())?).iter().sum::<f32>() / SENSORS as f32;
    let errors = sentinel.errors(test.rows.concat())?;
    let found = errors.iter().map(|it| sentinel.judge(*it, 0).score);
    let labelled =
        Scores::of(&found.zip(test.is_anomaly.clone()).collect::<Vec<_>>(), config.threshold);
    let (windows, threshold) = (learn.n_sound(), config.threshold);
    Ok((sentinel, Report { windows, epochs: options.epochs, error, threshold, labelled }))
}

/// The training itself: shuffled windows, Adam, a step size that falls along a cosine.
fn fit(
    config: &Config,
    rows: &[f32],
    options: &Options,
    progress: &mut dyn FnMut(&Epoch),
) -> Result<net::Layers, TrainError> {
    let device = options.device.start()?.device.autodiff();
    let width = config.window * SENSORS;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut net = Net::new(config, &net::random(config, &mut rng), &device);
    let mut optimizer = AdamConfig::new().with_epsilon(1e-8).init();
    let mut order: Vec<usize> = (0..rows.len() / width).collect();
    let n_steps = options.epochs * order.len().div_ceil(BATCH);
    let mut step = 0;
    for epoch in 1..=options.epochs {
        order.shuffle(&mut rng);
        let mut loss_sum = 0.0;
        for places in order.chunks(BATCH) {
            let batch: Vec<f32> =
                places.iter().flat_map(|place| &rows[place * width..][..width]).copied().collect();
            let data = TensorData::new(batch, [places.len(), width]);
            let windows = Tensor::<2>::from_data(data, &device);
            let loss = (net.forward(windows.clone()) - windows).powi_scalar(2).mean();
            let value = loss.clone().into_scalar::<f32>();
            if !value.is_finite() {
                return Err(TrainError::Diverged(epoch));
            }
            loss_sum += value * places.len() as f32;
            let gradients = GradientsParams::from_grads(loss.backward(), &net);
            let share = step as f64 / n_steps as f64;
            let rate = options.learning_rate * (0.5 + 0.5 * (std::f64::consts::PI * share).cos());
            net = optimizer.step(rate, net, gradients);
            step += 1;
        }
        let loss = loss_sum / order.len() as f32;
        progress(&Epoch { epoch, epochs: options.epochs, loss });
    }
    net.valid().layers().map_err(|error| InferError::Device(error).into())
}

impl Options {
    fn check(&self) -> Result<(), TrainError> {
        let between = |option, value: usize, low, high, range| {
            let found = value.to_string();
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(TrainError::Option { option, found, range })
            }
        };
        between("window", self.window, 4, 1024, "4 to 1024")?;
        between("hidden", self.hidden, 1, 4096, "1 to 4096")?;
        between("code", self.code, 1, 4096, "1 to 4096")?;
        between("epochs", self.epochs, 1, 100_000, "1 to 100000")?;
        for (option, value, high, range) in [
            ("learning_rate", self.learning_rate, 1.0, "a number above 0 and below 1"),
            ("false_alarms", self.false_alarms, 0.5, "a number above 0 and below 0.5"),
        ] {
            if !(value > 0.0 && value < high) {
                return Err(TrainError::Option { option, found: value.to_string(), range });
            }
        }
        Ok(())
    }
}

/// Windows of normalised readings.
struct Windows {
    rows: Vec<Vec<f32>>,
    is_anomaly: Vec<bool>,
}

impl Windows {
    fn cut(readings: &[Reading], config: &Config, step: usize) -> Self {
        let (mut rows, mut is_anomaly) = (Vec::new(), Vec::new());
        for window in readings.windows(config.window).step_by(step) {
            let scaled = |reading: &Reading| {
                let pairs = reading.values.into_iter().zip(&config.normalisation);
                pairs.map(|(value, scale)| scale.apply(value)).collect::<Vec<_>>()
            };
            rows.push(window.iter().flat_map(scaled).collect());
            is_anomaly.push(window.iter().any(|reading| reading.is_anomaly == Some(true)));
        }
        Self { rows, is_anomaly }
    }

    fn n_sound(&self) -> usize {
        self.is_anomaly.iter().filter(|it| !**it).count()
    }

    fn sound(&self) -> Vec<f32> {
        let pairs = self.rows.iter().zip(&self.is_anomaly);
        pairs.filter(|(_, is_anomaly)| !**is_anomaly).flat_map(|(row, _)| row).copied().collect()
    }
}

fn normalisation(readings: &[Reading]) -> Result<[Normalisation; SENSORS], TrainError> {
    let sound = || readings.iter().filter(|reading| reading.is_anomaly != Some(true));
    let n = sound().count().max(1) as f64;
    let mut scales = [Normalisation { mean: 0.0, deviation: 1.0 }; SENSORS];
    for (sensor, scale) in scales.iter_mut().enumerate() {
        let values = || sound().map(|reading| f64::from(reading.values[sensor]));
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        if readings.len() > 1 && variance.sqrt() <= 1e-6 * mean.abs() {
            return Err(TrainError::Constant(Sensor::ALL[sensor]));
        }
        *scale = Normalisation { mean: mean as f32, deviation: variance.sqrt() as f32 };
    }
    Ok(scales)
}

fn mean(errors: &[[f32; SENSORS]]) -> [f32; SENSORS] {
    let n = errors.len() as f64;
    let of = |sensor: usize| errors.iter().map(|it| f64::from(it[sensor])).sum::<f64>() / n;
    // A sensor drawn perfectly would be divided by nothing.
    [0, 1, 2].map(|sensor| (of(sensor) as f32).max(1e-6))
}

impl Scores {
    /// `None` unless there are windows of both kinds.
    fn of(scored: &[(f32, bool)], threshold: f32) -> Option<Self> {
        let mut sorted = scored.to_vec();
        sorted.sort_by(|left, right| left.0.total_cmp(&right.0));
        let n_anomalies = sorted.iter().filter(|it| it.1).count() as f64;
        let n_sound = sorted.len() as f64 - n_anomalies;
        if n_anomalies == 0.0 || n_sound == 0.0 {
            return None;
        }
        let ranks = sorted.iter().enumerate().filter(|(_, it)| it.1).map(|(rank, _)| rank as f64);
        let below = ranks.sum::<f64>() - n_anomalies * (n_anomalies - 1.0) / 2.0;
        let called = || scored.iter().filter(|it| it.0 >= threshold);
        let n_right = called().filter(|it| it.1).count() as f64;
        let precision = n_right / (called().count() as f64).max(1.0);
        let recall = n_right / n_anomalies;
        let f1 = 2.0 * n_right / (called().count() as f64 + n_anomalies);
        Some(Self { roc_auc: below / (n_anomalies * n_sound), precision, recall, f1 })
    }
}
