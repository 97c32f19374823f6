//! The rules: what must hold, the behaviour of KEDA that it comes from, and what to mend.

use serde::Serialize;

/// One thing that a scaler must do because of how KEDA treats it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its name, for scripts.
    #[serde(rename = "rule")]
    pub name: &'static str,
    /// What must hold.
    pub holds: &'static str,
    /// What KEDA does, and where that stands in its sources.
    pub why: &'static str,
    /// What to do when it does not hold.
    pub mend: &'static str,
}

/// All rules, in the order in which they are looked at.
pub const RULES: [&Rule; 27] = [
    &ONE_SPEC,
    &TARGET,
    &METRIC_NAME,
    &SAME_SPEC,
    &ONE_VALUE,
    &VALUE_NAME,
    &VALUE_NUMBER,
    &VALUE_FIELDS,
    &WRONG_METRIC,
    &ACTIVITY,
    &EXPECTED_ACTIVITY,
    &IN_TIME,
    &KEDA_KEYS,
    &FROM_ENV,
    &NONSENSE,
    &PUSH_FIRST,
    &PUSH_CALM,
    &PUSH_STAYS,
    &SPECS_FIRST,
    &SPECS_SOME,
    &SPECS_AGREE,
    &CONCURRENT,
    &MANY_STREAMS,
    &FORGOTTEN,
    &END_OK,
    &END_GOAWAY,
    &END_IN_TIME,
];

pub(super) const ONE_SPEC: Rule = Rule {
    name: "one-spec",
    holds: "GetMetricSpec answers with exactly one metric",
    why: "without a metric KEDA builds no HPA, and an error here never reaches its fallback; \
          under a formula the metrics of one trigger take each other's place \
          (external_scaler.go GetMetricSpecForScaling, formula.go)",
    mend: "answer from the metadata alone, with one metric for each trigger",
};

pub(super) const TARGET: Rule = Rule {
    name: "target",
    holds: "the target is above zero, and its two fields agree",
    why: "KEDA takes targetSizeFloat when it is above zero, else targetSize; versions before 2.17 \
          know only the latter; Kubernetes refuses an HPA with a target of zero",
    mend: "set targetSizeFloat, and targetSize to the same number rounded up; refuse what would \
           make them zero",
};

pub(super) const METRIC_NAME: Rule = Rule {
    name: "metric-name",
    holds: "the metric's name is made of a-z, 0-9 and -, without the prefix s0-",
    why: "the name becomes part of a URL and is not normalised for external scalers; KEDA adds \
          s0- for the first trigger and takes it off before it asks (scaler.go)",
    mend: "replace other letters in the name, and leave the prefix to KEDA",
};

pub(super) const SAME_SPEC: Rule = Rule {
    name: "same-spec",
    holds: "the same metadata gets the same metric, on every connection",
    why: "KEDA asks for the spec before each value, and the HPA keeps the name and target of the \
          last reconcile (scale_handler.go, hpa.go)",
    mend: "derive name and target from the metadata alone: no counter, clock or state",
};

pub(super) const ONE_VALUE: Rule = Rule {
    name: "one-value",
    holds: "GetMetrics answers with exactly one value",
    why: "KEDA files all values under the name it asked for, and the HPA adds them up; none at \
          all ends as `no matching metrics found`",
    mend: "answer for the metric that is asked for, and for no other",
};

pub(super) const VALUE_NAME: Rule = Rule {
    name: "value-name",
    holds: "the value carries the name that was asked for",
    why: "KEDA ignores the name, so a value of another metric counts in its place without a word \
          (external_scaler.go GetMetricsAndActivity)",
    mend: "put the request's metricName into the value",
};

pub(super) const VALUE_NUMBER: Rule = Rule {
    name: "value-number",
    holds: "the value is a number, and not below zero",
    why: "KEDA turns what is no number, infinite or negative into 0, and 0 takes the pool down \
          (scaler.go GenerateMetricInMili)",
    mend: "answer with an error when the value is not known",
};

pub(super) const VALUE_FIELDS: Rule = Rule {
    name: "value-fields",
    holds: "metricValueFloat and metricValue agree",
    why: "KEDA takes the float when it is above zero, else the integer: a float of 0 beside a \
          stale integer reads as the integer, and versions before 2.17 know only the integer",
    mend: "set both from one number, the integer rounded up",
};

pub(super) const WRONG_METRIC: Rule = Rule {
    name: "wrong-metric",
    holds: "a metric that this trigger does not have is an error",
    why: "KEDA takes whatever comes back for the metric it asked for",
    mend: "compare metricName with the trigger's own, and answer NOT_FOUND",
};

pub(super) const ACTIVITY: Rule = Rule {
    name: "activity",
    holds: "IsActive answers",
    why: "an error here throws away the value that was just read, in the poll and for the HPA \
          (external_scaler.go GetMetricsAndActivity)",
    mend: "answer IsActive from the same snapshot as GetMetrics",
};

pub(super) const EXPECTED_ACTIVITY: Rule = Rule {
    name: "expected-activity",
    holds: "the scaler is active while there is work",
    why: "inactive, KEDA takes the pool from N to 0 in one step after the cooldown, whatever \
          runs (scale_scaledobjects.go)",
    mend: "count work in flight and workers that start, not only what waits",
};

pub(super) const IN_TIME: Rule = Rule {
    name: "in-time",
    holds: "GetMetricSpec, GetMetrics and IsActive together take less than 1.5 s",
    why: "for the HPA they have 3 s together, repetitions included; the poll has no deadline, \
          and while it hangs the object is not activated by a push either",
    mend: "answer from memory, and look at the source in the background",
};

pub(super) const KEDA_KEYS: Rule = Rule {
    name: "keda-keys",
    holds: "KEDA's own keys in the metadata change nothing",
    why: "KEDA passes the whole metadata on, with scalerAddress, enableTLS and unsafeSsl \
          (external_scaler.go parseExternalScalerMetadata)",
    mend: "skip scalerAddress, enableTLS, unsafeSsl, caCert, tlsClientCert and tlsClientKey",
};

pub(super) const FROM_ENV: Rule = Rule {
    name: "from-env",
    holds: "each key is also taken with the suffix FromEnv, and means the same",
    why: "KEDA resolves a key that ends in FromEnv from the target's environment, and passes the \
          value on under the key as it was written, suffix included",
    mend: "read fooFromEnv where foo is not given",
};

pub(super) const NONSENSE: Rule = Rule {
    name: "nonsense",
    holds: "metadata that makes no sense is refused with INVALID_ARGUMENT",
    why: "KEDA logs the status and repeats the call; UNKNOWN or UNAVAILABLE reads like an outage \
          and hides a mistake that only the author of the ScaledObject can mend",
    mend: "check the metadata first, and answer INVALID_ARGUMENT that names the key",
};

pub(super) const PUSH_FIRST: Rule = Rule {
    name: "push-first",
    holds: "StreamIsActive begins with `true` where the scaler is active",
    why: "KEDA opens the stream again 2 s after it ended, and what changed meanwhile is seen at \
          the next poll only, up to pollingInterval later",
    mend: "send `true` as the first message of a stream while there is work; `false` says nothing to \
           KEDA from 2.18 on, and to 2.17 that the pool may go, whatever its other triggers say",
};

pub(super) const PUSH_CALM: Rule = Rule {
    name: "push-calm",
    holds: "while nothing changes, `true` is sent at most twice a second",
    why: "each `true` makes KEDA patch the status of the ScaledObject (scale_handler.go)",
    mend: "send on change, repeat once a second until there are replicas, then rarely",
};

pub(super) const PUSH_STAYS: Rule = Rule {
    name: "push-stays",
    holds: "the stream of activity stays open",
    why: "while it is closed no push arrives, and after each end but OK the pause doubles, up to \
          60 s",
    mend: "keep the stream open for minutes, also while the source does not answer",
};

pub(super) const SPECS_FIRST: Rule = Rule {
    name: "specs-first",
    holds: "StreamMetricSpec sends the metric at once, or is UNIMPLEMENTED",
    why: "KEDA 2.21 opens it beside StreamIsActive; after UNIMPLEMENTED it stops asking, after \
          any other error it comes back ever later",
    mend: "send the answer of GetMetricSpec as the first message",
};

pub(super) const SPECS_SOME: Rule = Rule {
    name: "specs-some",
    holds: "StreamMetricSpec never sends an empty list",
    why: "an empty list has wedged ScaledObjects until KEDA learned to ignore it (#8115)",
    mend: "send nothing when there is nothing to say",
};

pub(super) const SPECS_AGREE: Rule = Rule {
    name: "specs-agree",
    holds: "StreamMetricSpec and GetMetricSpec tell the same",
    why: "after an error KEDA drops what was streamed and takes GetMetricSpec's answer",
    mend: "make both from the same code",
};

pub(super) const CONCURRENT: Rule = Rule {
    name: "concurrent",
    holds: "many calls at once do not wait for each other",
    why: "all objects with one address share one connection, and a slow call holds up the loop, \
          the HPA and the pushes of its object",
    mend: "hold no lock across a call to the source, and answer from memory",
};

pub(super) const MANY_STREAMS: Rule = Rule {
    name: "many-streams",
    holds: "calls are answered while hundreds of streams are open on the connection",
    why: "each push trigger parks two streams on the one connection; at the server's limit of \
          streams KEDA's calls hang, without a deadline",
    mend: "set the server's limit of HTTP/2 streams above twice the triggers; some default to 100",
};

pub(super) const FORGOTTEN: Rule = Rule {
    name: "forgotten",
    holds: "streams that the client drops are forgotten",
    why: "KEDA drops a stream with each new generation of an object, and with each restart",
    mend: "end what serves a stream when its client is gone",
};

pub(super) const END_OK: Rule = Rule {
    name: "end-ok",
    holds: "on SIGTERM all streams end with OK",
    why: "KEDA comes back 2 s after OK; after any other end the pause doubles up to 60 s, and \
          nothing but OK resets it (external_scaler.go)",
    mend: "finish each stream's handler without an error before the server stops",
};

pub(super) const END_GOAWAY: Rule = Rule {
    name: "end-goaway",
    holds: "on SIGTERM connections are told GOAWAY before they end",
    why: "a connection that is cut takes the calls on it along, and they count as failures of \
          the scaler",
    mend: "stop the server gracefully once the streams have ended",
};

pub(super) const END_IN_TIME: Rule = Rule {
    name: "end-in-time",
    holds: "after SIGTERM the process ends within its grace period",
    why: "who is killed at the end of the grace period cuts streams and calls off; a server that \
          waits for streams which nobody ends does not end by itself",
    mend: "end the streams yourself before the graceful stop, and bound its time",
};
