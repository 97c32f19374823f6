//! Whether a request without a key comes from a program of this machine, and from no page of another
//! site that a browser here shows. Pure.

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use url::{Host, Url};

/// Whether a gateway that lets in only this machine lets this request in: a page that a browser shows
/// names its site in `origin`, and a site that has our address under a name of its own names that in
/// `host`.
pub(crate) fn is_local(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(HOST).is_none_or(|host| is_loopback(&format!("http://{host}")));
    host && text(ORIGIN).is_none_or(is_loopback)
}

fn is_loopback(url: &str) -> bool {
    match Url::parse(url).ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn pages_of_other_sites_are_not_local_whatever_name_they_have_for_us() {
        for (name, value, expected) in [
            ("host", "127.0.0.1:8000", true),
            ("host", "localhost", true),
            ("host", "LOCALHOST:8000", true),
            ("host", "[::1]:8000", true),
            ("host", "rebound.example:8000", false),
            ("host", "10.0.0.1", false),
            ("host", "", false),
            ("origin", "http://localhost:3000", true),
            ("origin", "https://evil.example", false),
            ("origin", "http://localhost.evil.example", false),
            ("origin", "null", false),
            ("accept", "x", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(is_local(&headers), expected, "{name}: {value}");
        }
    }
}
