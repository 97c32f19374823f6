//! The sentinel: a run of sensor readings in, an assessment out, and an alert if it is bad.

use ebb_model::sentinel::{Finding, Window};
use ebb_proto::ebb::v1::{Assessment, SensorWindow};
use ebb_queue::{JSON, Job};
use serde::{Deserialize, Serialize};

use super::body::Shape;
use super::{Answer, BadJob, Codec, Spent};
use crate::batcher::Size;

/// Speaks for [`ebb_model::sentinel::Sentinel`].
#[derive(Debug, Clone, Copy, Default)]
pub struct SentinelCodec;

pub(super) const SHAPE: Shape = Shape {
    example: r#"{"machine": "pump-7", "readings": [[vibration, temperature, pressure]]}"#,
    fields: &["machine", "readings"],
};

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default)]
    machine: String,
    readings: Vec<Reading>,
}

/// Three numbers in this order, or by name.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Reading {
    Row([f32; 3]),
    Named { vibration: f32, temperature: f32, pressure: f32 },
}

#[derive(Debug, Serialize)]
struct Response<'a> {
    machine: &'a str,
    score: f32,
    threshold: f32,
    anomaly: bool,
    driver: &'static str,
    /// Where in the readings the worst window begins.
    at: usize,
}

#[derive(Debug, Serialize)]
struct Answered<'a> {
    #[serde(flatten)]
    response: &'a Response<'a>,
    usage: &'a Spent,
}

#[derive(Debug, Serialize)]
struct Alert<'a> {
    job: &'a str,
    #[serde(flatten)]
    response: &'a Response<'a>,
}

impl Codec for SentinelCodec {
    type Input = Window;
    type Output = Finding;
    /// The machine, which the answer repeats.
    type Asked = String;

    fn decode(&self, job: &Job) -> Result<(Window, String), BadJob> {
        let (machine, readings) = if super::is_protobuf(job) {
            let window: SensorWindow = super::message(job)?;
            let readings = window.readings.into_iter();
            // The model computes in single precision.
            let row = |r: ebb_proto::ebb::v1::Reading| [r.vibration, r.temperature, r.pressure];
            let rows = readings.map(|reading| row(reading).map(|value| value as f32));
            (window.machine, rows.collect::<Vec<_>>())
        } else {
            let request: Request = SHAPE.read(job)?;
            (request.machine, request.readings.into_iter().map(row).collect())
        };
        let sensor = |place: usize| readings.iter().map(|row| row[place]).collect();
        let window = Window { vibration: sensor(0), temperature: sensor(1), pressure: sensor(2) };
        Ok((window, machine))
    }

    fn size(&self, window: &Window) -> Size {
        Size::of([window.vibration.len().max(1)])
    }

    fn encode(&self, finding: Finding, machine: String, job: &Job, spent: &Spent) -> Answer {
        let response = Response {
            machine: &machine,
            score: finding.score,
            threshold: finding.threshold,
            anomaly: finding.is_anomaly,
            driver: finding.driver.name(),
            at: finding.at,
        };
        let alert = Alert { job: job.id.as_str(), response: &response };
        let alert = finding.is_anomaly.then(|| json(&alert).into());
        if super::is_protobuf(job) {
            let assessment = Assessment {
                score: f64::from(finding.score / finding.threshold),
                anomaly: finding.is_anomaly,
                driver: finding.driver.name().to_owned(),
                usage: super::usage(0, spent),
            };
            return Answer { alert, ..super::protobuf(&assessment, 0) };
        }
        let body = json(&Answered { response: &response, usage: spent }).into();
        Answer { content_type: JSON, body, alert, tokens: 0, n_cut: 0, n_reused: 0 }
    }
}

fn row(reading: Reading) -> [f32; 3] {
    match reading {
        Reading::Row(row) => row,
        Reading::Named { vibration, temperature, pressure } => [vibration, temperature, pressure],
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("no map and no foreign type in it")
}

#[cfg(test)]
mod tests {
    use ebb_model::sentinel::Sensor;
    use ebb_queue::Timestamp;
    use prost::Message;

    use super::*;
    use crate::codec::binary;

    fn job(body: &str) -> Job {
        Job::new(body.to_owned(), Timestamp::UNIX_EPOCH)
    }

    fn finding(is_anomaly: bool) -> Finding {
        let (score, threshold) = if is_anomaly { (8.0, 2.0) } else { (1.0, 2.0) };
        let errors = [0.0; 3];
        Finding { score, threshold, is_anomaly, driver: Sensor::Temperature, errors, at: 3 }
    }

    #[test]
    fn readings_come_in_rows_or_by_name() {
        for body in [
            r#"{"machine": "pump-7", "readings": [[1, 2, 3], [4, 5, 6]]}"#,
            r#"{"readings": [{"vibration": 1, "temperature": 2, "pressure": 3}, [4, 5, 6]]}"#,
        ] {
            let (window, _) = SentinelCodec.decode(&job(body)).unwrap();
            assert_eq!(window.vibration, [1.0, 4.0], "{body}");
            assert_eq!(window.pressure, [3.0, 6.0], "{body}");
        }
        let error = SentinelCodec.decode(&job(r#"{"readings": [[1, 2]]}"#)).unwrap_err();
        assert!(error.to_string().contains("send {\"machine\""), "{error}");
    }

    #[test]
    fn an_anomaly_is_an_answer_and_an_alert() {
        let job = job(r#"{"machine": "pump-7", "readings": []}"#);
        let (_, machine) = SentinelCodec.decode(&job).unwrap();
        let spent = Spent { seconds: 0.25, share: 0.5 };
        let answer = SentinelCodec.encode(finding(true), machine.clone(), &job, &spent);
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((&body["anomaly"], &body["driver"]), (&true.into(), &"temperature".into()));
        let alert: serde_json::Value = serde_json::from_slice(&answer.alert.unwrap()).unwrap();
        assert_eq!(alert["job"], job.id.as_str());
        assert_eq!(alert["machine"], "pump-7");
        assert_eq!(body["usage"], serde_json::json!({"device_seconds": 0.25, "batch_share": 0.5}));
        assert_eq!(alert.get("usage"), None);
        assert_eq!(SentinelCodec.encode(finding(false), machine, &job, &spent).alert, None);
    }

    #[test]
    fn protobuf_is_answered_in_protobuf() {
        let job = binary(&SensorWindow { machine: "pump-7".into(), readings: Vec::new() });
        let (_, machine) = SentinelCodec.decode(&job).unwrap();
        assert_eq!(machine, "pump-7");
        let answer = SentinelCodec.encode(finding(true), machine, &job, &Spent::default());
        let assessment = Assessment::decode(answer.body).unwrap();
        assert_eq!((assessment.score, assessment.anomaly), (4.0, true));
    }
}
