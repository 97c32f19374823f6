//! Readings of a pump that does not exist, with anomalies whose place is known.
//!
//! A load goes up and down in cycles of varying length. Vibration follows it at once, pressure
//! falls a little later, temperature lags behind and rides on a slow ambient drift; each has
//! noise of its own. Now and then one sensor goes wrong, in one of four ways.

use std::f32::consts::TAU;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Reading, SENSORS};

/// How far each sensor moves in normal work: the measure of an anomaly.
const SWING: [f32; SENSORS] = [0.9, 6.0, 0.35];
const NOISE: [f32; SENSORS] = [0.12, 0.25, 0.04];

/// Readings until the temperature has forgotten where it began; they are not given out.
const SETTLE: usize = 60;

#[derive(Clone, Copy)]
enum Fault {
    /// One to three readings far off.
    Spike { height: f32 },
    /// Further off with every reading.
    Drift { slope: f32 },
    /// The same value over and over.
    Stuck { at: f32 },
    /// Follows the load the wrong way round.
    Decoupled,
}

struct Episode {
    sensor: usize,
    fault: Fault,
    length: usize,
    age: usize,
}

/// `n` readings, of which about a share of `anomaly_rate` belongs to an anomaly; all labelled.
///
/// The same arguments give the same readings.
pub fn generate(seed: u64, n: usize, anomaly_rate: f64) -> Vec<Reading> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut phase = rng.random_range(0.0..TAU);
    let mut speed: f32 = TAU / 60.0;
    let mut temperature = 38.0;
    let mut loads = [0.5; 4];
    let mut episode: Option<Episode> = None;
    let mut readings = Vec::with_capacity(n);
    for step in 0..n + SETTLE {
        speed = (speed + 0.0008 * normal(&mut rng)).clamp(TAU / 90.0, TAU / 45.0);
        phase = (phase + speed) % TAU;
        let load = 0.5 + 0.36 * phase.sin() + 0.09 * (2.0 * phase + 0.7).sin();
        loads.rotate_right(1);
        loads[0] = load;

        if let Some(running) = &mut episode {
            running.age += 1;
        }
        episode = episode.filter(|running| running.age < running.length);
        // An episode lasts 37 readings on average: so often must one begin.
        let begins = anomaly_rate / (37.0 * (1.0 - anomaly_rate).max(0.01));
        if step >= SETTLE && episode.is_none() && rng.random_bool(begins.clamp(0.0, 1.0)) {
            episode = Some(begin(&mut rng));
        }

        // A sensor that is decoupled sees the load upside down.
        let seen = |sensor: usize, load: f32| match &episode {
            Some(Episode { sensor: of, fault: Fault::Decoupled, .. }) if *of == sensor => {
                1.0 - load
            }
            _ => load,
        };
        let ambient = 20.0 + 3.0 * (step as f32 * TAU / 5000.0).sin();
        temperature += (ambient + 35.0 * seen(1, load) - temperature) / 10.0;
        let sound = [2.0 + 3.0 * seen(0, load), temperature, 6.0 - 1.2 * seen(2, loads[3])];
        let mut values = [0.0; SENSORS];
        for (sensor, value) in values.iter_mut().enumerate() {
            *value = sound[sensor] + NOISE[sensor] * normal(&mut rng);
        }
        if let Some(running) = &mut episode {
            running.spoil(&mut values);
        }
        if step < SETTLE {
            continue;
        }
        readings.push(Reading { values, is_anomaly: Some(episode.is_some()) });
    }
    readings
}

fn begin(rng: &mut StdRng) -> Episode {
    let sensor = rng.random_range(0..SENSORS);
    let swing = SWING[sensor] * if rng.random() { 1.0 } else { -1.0 };
    // Spikes are short, so that more of them make their share of the readings.
    let (fault, length) = match rng.random_range(0..4) {
        0 => (Fault::Spike { height: swing * rng.random_range(3.0..6.0) }, rng.random_range(1..=3)),
        1 => {
            let length = rng.random_range(40..=70);
            (Fault::Drift { slope: swing * rng.random_range(2.0..4.0) / length as f32 }, length)
        }
        2 => (Fault::Stuck { at: f32::NAN }, rng.random_range(30..=60)),
        _ => (Fault::Decoupled, rng.random_range(30..=60)),
    };
    Episode { sensor, fault, length, age: 0 }
}

impl Episode {
    fn spoil(&mut self, values: &mut [f32; SENSORS]) {
        let value = &mut values[self.sensor];
        match &mut self.fault {
            Fault::Spike { height } => *value += *height,
            Fault::Drift { slope } => *value += *slope * (self.age + 1) as f32,
            Fault::Stuck { at } => {
                if at.is_nan() {
                    *at = *value;
                }
                *value = *at;
            }
            Fault::Decoupled => {}
        }
    }
}

/// A normally distributed number, by Box and Muller.
fn normal(rng: &mut StdRng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (TAU * rng.random::<f32>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_readings_and_about_as_many_anomalies_as_asked() {
        let readings = generate(1, 20_000, 0.05);
        assert_eq!(readings, generate(1, 20_000, 0.05));
        assert_ne!(readings, generate(2, 20_000, 0.05));
        let n_anomalies = readings.iter().filter(|it| it.is_anomaly == Some(true)).count();
        assert!((600..1_500).contains(&n_anomalies), "{n_anomalies}");
        assert!(generate(3, 5_000, 0.0).iter().all(|it| it.is_anomaly == Some(false)));
        assert!(readings.iter().flat_map(|it| it.values).all(f32::is_finite));
    }
}
