//! Which holders of a client certificate are let in: those whose certificate has one of some names.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
};
use x509_parser::extensions::GeneralName;

/// Lets in whom another verifier lets in, if its certificate has one of the names.
#[derive(Debug)]
pub(crate) struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl Named {
    pub(crate) fn new(inner: Arc<dyn ClientCertVerifier>, names: Vec<String>) -> Self {
        Self { inner, names }
    }
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let shown = names_of(end_entity);
        if shown.iter().any(|name| self.names.iter().any(|known| name.is(known))) {
            return Ok(verified);
        }
        let shown = shown.iter().map(Name::text).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            shown,
            "a client was refused: its certificate has none of the names in --tls-client-name"
        );
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A name in a certificate.
#[derive(Debug)]
enum Name {
    Dns(String),
    Uri(String),
}

impl Name {
    fn text(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Uri(name) => name,
        }
    }

    /// Hosts are the same in capitals, and no wildcard stands for one: this is about one client. A name
    /// of one sort is none of the other, since an authority may sign only one of them with care.
    fn is(&self, known: &str) -> bool {
        let is_uri = known.contains("://");
        match self {
            Self::Dns(name) => !is_uri && name.eq_ignore_ascii_case(known),
            Self::Uri(name) => is_uri && name == known,
        }
    }
}

/// The alternative names of a certificate; its subject is no name for a client.
fn names_of(certificate: &CertificateDer<'_>) -> Vec<Name> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
        GeneralName::URI(name) => Some(Name::Uri((*name).to_owned())),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn a_name_of_one_sort_is_none_of_the_other() {
        let (host, uri) = ("keda-operator.keda.svc", "spiffe://c/ns/keda/sa/keda-operator");
        let dns = |name: &str| Name::Dns(name.to_owned());
        let of_uri = |name: &str| Name::Uri(name.to_owned());
        assert!(dns(host).is(host) && dns("KEDA-operator.keda.svc").is(host));
        assert!(of_uri(uri).is(uri));
        assert!(!of_uri(host).is(host) && !dns(uri).is(uri));
        assert!(!of_uri("SPIFFE://c/ns/keda/sa/keda-operator").is(uri));
        assert!(!dns("*.keda.svc").is(host));
    }
}
