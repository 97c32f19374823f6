//! Where spans go and from whom: what flags and the variables of OpenTelemetry say, checked.

use std::fmt;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use tonic::codegen::http::Uri;

use super::Service;
use crate::host::host;

/// The flag, and the variables that stand for it where it is not given, in this order.
const FLAG: &str = "--otlp-endpoint";
const STANDARD: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Why spans cannot be exported; never shows an endpoint, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No URL of a host.
    #[error("{0} is no URL of a host; use the gRPC address of a collector: http://HOST:4317")]
    NoUrl(&'static str),
    /// A URL with a user in it.
    #[error(
        "{0} holds a user or a password; put what the collector asks for into \
         OTEL_EXPORTER_OTLP_HEADERS"
    )]
    Password(&'static str),
    /// Another protocol than the one we speak.
    #[error("{0} is not grpc, and nothing else is spoken here; unset it, or name a gRPC port")]
    Protocol(&'static str),
    /// Nothing to encrypt with.
    #[error("{0} cannot be reached by TLS")]
    Tls(&'static str, #[source] tonic::transport::Error),
    /// A header or a timeout among the variables of OpenTelemetry.
    #[error(
        "{0}: the exporter of spans refuses its settings; see the OTEL_EXPORTER_OTLP_* variables"
    )]
    Settings(&'static str, #[source] opentelemetry_otlp::ExporterBuildError),
}

/// A collector.
pub(super) struct Target {
    /// The flag or variable that names it.
    pub(super) from: &'static str,
    /// Its address: a scheme and a host.
    pub(super) url: Uri,
}

/// The host alone, which is no secret.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.host()).finish()
    }
}

impl Target {
    /// Its host and port.
    pub(super) fn host(&self) -> &str {
        self.url.authority().map_or("", |authority| authority.as_str())
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.url.scheme_str() == Some("https")
    }
}

/// The collector that the flag names, or else the variables; none where nobody does.
pub(super) fn of(
    flag: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Target>, TraceError> {
    let given = |name: &str| variable(name).filter(|text| !text.is_empty());
    if given("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let flag = flag.filter(|text| !text.is_empty()).map(|text| (FLAG, text.to_owned()));
    let standard = || STANDARD.iter().find_map(|name| Some((*name, given(name)?)));
    let Some((from, text)) = flag.or_else(standard) else { return Ok(None) };
    let protocol = PROTOCOLS.iter().find_map(|name| Some((*name, given(name)?)));
    if let Some((name, protocol)) = protocol
        && from != FLAG
        && protocol != "grpc"
    {
        return Err(TraceError::Protocol(name));
    }
    let url: Uri = text.parse().map_err(|_| TraceError::NoUrl(from))?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    let target = Target { from, url };
    match target.host() {
        host if host.contains('@') => Err(TraceError::Password(from)),
        host if is_http && !host.is_empty() && !host.starts_with(':') => Ok(Some(target)),
        _ => Err(TraceError::NoUrl(from)),
    }
}

/// Who makes the spans; what the variables of OpenTelemetry say counts more.
pub(super) fn resource(service: &Service, variable: impl Fn(&str) -> Option<String>) -> Resource {
    let instance = service.instance.clone();
    let instance = instance.unwrap_or_else(|| format!("{}-{}", host(), std::process::id()));
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", service.name),
            KeyValue::new("service.version", service.version),
            KeyValue::new("service.instance.id", instance),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME").filter(|name| !name.is_empty()) {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let target = of(flag, variable).map_err(|error| error.to_string())?;
        Ok(target.map(|target| format!("{} {}", target.from, target.host())))
    }

    #[test]
    fn the_flag_comes_before_the_variables_and_nothing_means_off() {
        let [traces, all] = STANDARD;
        let both = [(traces, "http://t:1"), (all, "http://a:1")];
        for (flag, variables, expected) in [
            (None, &[][..], None),
            (Some(""), &[(all, "")], None),
            (Some("http://f:1"), &both[..], Some("--otlp-endpoint f:1")),
            (None, &both[..], Some("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT t:1")),
            (None, &both[1..], Some("OTEL_EXPORTER_OTLP_ENDPOINT a:1")),
            (Some("http://f:1"), &[("OTEL_SDK_DISABLED", "true")], None),
            (
                Some("https://[::1]:1/"),
                &[(PROTOCOLS[1], "http/json")],
                Some("--otlp-endpoint [::1]:1"),
            ),
        ] {
            assert_eq!(named(flag, variables), Ok(expected.map(str::to_owned)), "{flag:?}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_named_by_its_flag_and_never_shown() {
        for wrong in
            ["hunter2", "collector:4317", "ftp://hunter2", "http://", "http://:4317", "a b"]
        {
            let error = named(Some(wrong), &[]).unwrap_err();
            assert!(error.contains("--otlp-endpoint is no URL"), "{wrong}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = named(Some("http://me:hunter2@host:4317"), &[]).unwrap_err();
        assert!(error.contains("--otlp-endpoint holds") && !error.contains("hunter2"), "{error}");
        let wrong = [(STANDARD[1], "nonsense")];
        assert!(named(None, &wrong).unwrap_err().contains("OTEL_EXPORTER_OTLP_ENDPOINT is no"));
        let other = [(STANDARD[1], "http://a:4318"), (PROTOCOLS[1], "http/protobuf")];
        assert!(
            named(None, &other).unwrap_err().contains("OTEL_EXPORTER_OTLP_PROTOCOL is not grpc")
        );
    }
}
