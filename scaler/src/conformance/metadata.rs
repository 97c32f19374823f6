//! What the metadata of a trigger may hold, and what must be refused.

use std::collections::HashMap;

use ebb_proto::keda::MetricSpec;
use tonic::{Code, Status};

use super::Plan;
use super::calls::Seen;
use super::keda::{Keda, code, told};
use super::report::Findings;
use super::rule::{FROM_ENV, KEDA_KEYS, NONSENSE};

/// Keys with which KEDA finds the scaler, beside `scalerAddress`, which is always sent.
const KEYS: [(&str, &str); 5] = [
    ("enableTLS", "false"),
    ("unsafeSsl", "false"),
    ("caCert", "/certs/ca.pem"),
    ("tlsClientCert", "/certs/tls.crt"),
    ("tlsClientKey", "/certs/tls.key"),
];
const SUFFIX: &str = "FromEnv";
const UNKNOWN_KEY: (&str, &str) = ("noScalerKnowsThisKey", "?");

pub(super) async fn examine(keda: &Keda, plan: &Plan, seen: &Seen, findings: &mut Findings) {
    match seen.steady() {
        Ok(spec) => {
            let add = |metadata: &mut HashMap<String, String>| {
                for (key, value) in KEYS {
                    metadata.entry(key.to_owned()).or_insert_with(|| value.to_owned());
                }
            };
            findings.judge(&KEDA_KEYS, still(&keda.with(add), spec).await);
            from_env(keda, plan, spec, findings).await;
        }
        Err(why) => findings.skip(&[&KEDA_KEYS, &FROM_ENV], why),
    }
    nonsense(keda, plan, seen.metric(), findings).await;
}

/// Whether the metric is still this one.
async fn still(keda: &Keda, spec: &MetricSpec) -> Result<String, String> {
    match keda.specs().await {
        Ok(specs) if specs.first() == Some(spec) => Ok("the metric is the same".to_owned()),
        Ok(specs) => Err(format!("{specs:?} instead of {spec:?}")),
        Err(status) => Err(told(&status)),
    }
}

async fn from_env(keda: &Keda, plan: &Plan, spec: &MetricSpec, findings: &mut Findings) {
    let plain: Vec<&String> = plan.metadata.keys().filter(|key| !key.ends_with(SUFFIX)).collect();
    if plain.is_empty() {
        return findings.skip(&[&FROM_ENV], "there is no metadata; give some with --metadata");
    }
    for key in &plain {
        let suffixed = keda.with(|metadata| {
            if let Some(value) = metadata.remove(*key) {
                metadata.insert(format!("{key}{SUFFIX}"), value);
            }
        });
        if let Err(words) = still(&suffixed, spec).await {
            return findings.judge(&FROM_ENV, Err(format!("{key}{SUFFIX}: {words}")));
        }
    }
    findings.judge(&FROM_ENV, Ok(format!("{} keys", plain.len())));
}

async fn nonsense(keda: &Keda, plan: &Plan, metric: &str, findings: &mut Findings) {
    let unknown = || (UNKNOWN_KEY.0.to_owned(), UNKNOWN_KEY.1.to_owned());
    let (key, value) = plan.nonsense.clone().unwrap_or_else(unknown);
    let keda = keda.with(|metadata| drop(metadata.insert(key.clone(), value.clone())));
    let answers: [(&str, Option<Status>); 3] = [
        ("GetMetricSpec", keda.specs().await.err()),
        ("GetMetrics", keda.values(metric).await.err()),
        ("IsActive", keda.active().await.err()),
    ];
    if plan.nonsense.is_none() && answers.iter().all(|(_, status)| status.is_none()) {
        let why = "an unknown key is not refused; say what must be with --nonsense KEY=VALUE";
        return findings.skip(&[&NONSENSE], why);
    }
    let other = |status: &Option<Status>| {
        status.as_ref().is_none_or(|status| status.code() != Code::InvalidArgument)
    };
    let seen = match answers.iter().find(|(_, status)| other(status)) {
        Some((call, Some(status))) => Err(format!("{key}={value}: {call}: {}", told(status))),
        Some((call, None)) => Err(format!("{key}={value}: {call} answers as if it were not there")),
        None => Ok(format!("{key}={value} is {}", code(Code::InvalidArgument))),
    };
    findings.judge(&NONSENSE, seen);
}
