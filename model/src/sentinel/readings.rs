//! What the sensors said at one moment, and files of it.

use serde::{Deserialize, Serialize};

use super::SENSORS;

/// A sensor, in the order of all arrays of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sensor {
    /// Velocity of the housing, mm/s.
    Vibration,
    /// Of the bearing, °C.
    Temperature,
    /// Behind the pump, bar.
    Pressure,
}

impl Sensor {
    /// All of them.
    pub const ALL: [Self; SENSORS] = [Self::Vibration, Self::Temperature, Self::Pressure];

    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vibration => "vibration",
            Self::Temperature => "temperature",
            Self::Pressure => "pressure",
        }
    }
}

impl std::fmt::Display for Sensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One row of readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// A value of each sensor.
    pub values: [f32; SENSORS],
    /// Whether it is part of an anomaly, where somebody knows.
    pub is_anomaly: Option<bool>,
}

/// A file of readings that cannot be used.
#[cfg(feature = "cpu")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file is missing, unreadable or not a table.
    #[error("{0}")]
    Csv(#[from] csv::Error),
    /// A column is missing or unknown.
    #[error("column {0}; the columns are vibration,temperature,pressure and perhaps label")]
    Column(String),
    /// A cell is not what its column holds.
    #[error("line {line}, column {column}: {found:?} is not {expected}")]
    Cell {
        /// Counted from one, with the header.
        line: u64,
        /// Its name.
        column: &'static str,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
}

/// Reads `vibration,temperature,pressure[,label]` with a header, columns in any order.
#[cfg(feature = "cpu")]
pub fn read_csv(table: impl std::io::Read) -> Result<Vec<Reading>, ReadError> {
    let mut table = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(table);
    let header = table.headers()?.clone();
    let known = |name: &str| name == "label" || Sensor::ALL.iter().any(|it| it.name() == name);
    if let Some(unknown) = header.iter().find(|name| !known(name)) {
        return Err(ReadError::Column(format!("{unknown:?} is unknown")));
    }
    let place = |name: &str| header.iter().position(|it| it == name);
    let mut places = [0; SENSORS];
    for (sensor, at) in Sensor::ALL.into_iter().zip(&mut places) {
        let missing = || ReadError::Column(format!("{:?} is missing", sensor.name()));
        *at = place(sensor.name()).ok_or_else(missing)?;
    }
    let label = place("label");

    let mut readings = Vec::new();
    for row in table.records() {
        let row = row?;
        let line = row.position().map_or(0, csv::Position::line);
        let cell = |at: usize| row.get(at).unwrap_or_default();
        let mut values = [0.0; SENSORS];
        for ((sensor, at), value) in Sensor::ALL.into_iter().zip(places).zip(&mut values) {
            let number = cell(at).parse::<f32>().ok().filter(|number| number.is_finite());
            *value = number.ok_or_else(|| ReadError::Cell {
                line,
                column: sensor.name(),
                found: cell(at).to_owned(),
                expected: "a finite number",
            })?;
        }
        let is_anomaly = match label.map(cell) {
            None | Some("") => None,
            Some("0" | "false") => Some(false),
            Some("1" | "true") => Some(true),
            Some(other) => {
                let (found, expected) = (other.to_owned(), "0 or 1");
                return Err(ReadError::Cell { line, column: "label", found, expected });
            }
        };
        readings.push(Reading { values, is_anomaly });
    }
    Ok(readings)
}

/// Writes what [`read_csv`] reads, with a label where there is one.
#[cfg(feature = "cpu")]
pub fn write_csv(readings: &[Reading], table: impl std::io::Write) -> Result<(), ReadError> {
    let mut table = csv::Writer::from_writer(table);
    table.write_record(["vibration", "temperature", "pressure", "label"])?;
    for reading in readings {
        let label = reading.is_anomaly.map_or("", |it| if it { "1" } else { "0" });
        let [vibration, temperature, pressure] = reading.values.map(|value| value.to_string());
        table.write_record([vibration.as_str(), &temperature, &pressure, label])?;
    }
    table.flush().map_err(csv::Error::from)?;
    Ok(())
}
