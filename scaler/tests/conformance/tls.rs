//! The suite under TLS, with a certificate of its own.

use ebb_scaler::conformance::{Hand, Papers, Verdict, examine};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::bad::{Bad, Fault};
use crate::{named, plan, tried};

/// An authority, and a certificate with its key for the server and for us.
struct Issued {
    ca: String,
    server: (String, String),
    client: (String, String),
}

impl Issued {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pair = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
        };
        Self { server: pair("127.0.0.1"), client: pair("client"), ca: ca.pem() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_tls_the_same_rules_hold_for_who_has_the_papers() {
    let issued = Issued::new();
    let (certificate, key) = &issued.server;
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(&issued.ca));
    let bad = Bad::start_with(Fault::None, Some(tls.clone()));
    let plan = |bad: &Bad, papers| crate::Plan { papers, ..plan(&bad.address) };
    let papers = |ca: &str, identity| Some(Papers { ca: ca.to_owned(), identity });

    let stranger = Issued::new();
    for refused in [
        None,
        papers(&issued.ca, None),
        papers(&stranger.ca, Some(issued.client.clone())),
        papers(&issued.ca, Some(stranger.client.clone())),
    ] {
        let told = examine(&plan(&bad, refused), None).await.unwrap_err().to_string();
        assert!(told.contains("nothing answers at 127.0.0.1"), "{told}");
    }

    let report = tried(&[], async || {
        let bad = Bad::start_with(Fault::None, Some(tls.clone()));
        let ours = papers(&issued.ca, Some(issued.client.clone()));
        examine(&plan(&bad, ours), Some(&bad as &dyn Hand)).await.unwrap()
    })
    .await;
    assert_eq!(named(&report, Verdict::Failed), Vec::<&str>::new(), "{report:#?}");
    assert_eq!(named(&report, Verdict::Skipped), ["end-goaway"], "{report:#?}");
}
