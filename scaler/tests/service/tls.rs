//! TLS of the gRPC port: who is let in, who is not, and certificates that are rotated.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_scaler::{ScalerArgs, TlsArgs};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::kit::{Kit, args, object, page, page_says, publish, said};

/// A certificate authority of a test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone)]
struct Identity {
    cert: String,
    key: String,
}

#[derive(Clone, Copy)]
enum Valid {
    Now,
    NoMore,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn server(&self, valid: Valid) -> Identity {
        self.sign(&["localhost"], ExtendedKeyUsagePurpose::ServerAuth, valid)
    }

    fn client(&self, valid: Valid) -> Identity {
        self.sign(&["keda"], ExtendedKeyUsagePurpose::ClientAuth, valid)
    }

    fn sign(&self, names: &[&str], usage: ExtendedKeyUsagePurpose, valid: Valid) -> Identity {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![usage];
        if matches!(valid, Valid::NoMore) {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }
}

/// Files of a scaler, changed as a whole, as Kubernetes does it.
struct Files {
    folder: tempfile::TempDir,
    n_versions: Cell<usize>,
}

impl Files {
    fn new(server: &Identity, client_ca: Option<&Authority>) -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap(), n_versions: Cell::new(0) };
        files.write(server, client_ca);
        files
    }

    fn write(&self, server: &Identity, client_ca: Option<&Authority>) {
        self.n_versions.set(self.n_versions.get() + 1);
        let at = |name: &str| self.folder.path().join(name);
        let version = at(&self.n_versions.get().to_string());
        std::fs::create_dir(&version).unwrap();
        let put = |name: &str, text: &str| std::fs::write(version.join(name), text).unwrap();
        if let Some(authority) = client_ca {
            put("ca.pem", &authority.0.pem());
        }
        put("tls.key", &server.key);
        put("tls.crt", &server.cert);
        std::os::unix::fs::symlink(&version, at("new")).unwrap();
        std::fs::rename(at("new"), at("now")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("now").join(name)
    }

    fn args(&self) -> ScalerArgs {
        let ca = self.path("ca.pem");
        let tls = TlsArgs {
            tls_cert: Some(self.path("tls.crt")),
            tls_key: Some(self.path("tls.key")),
            tls_client_ca: ca.exists().then_some(ca),
            tls_client_name: Vec::new(),
        };
        ScalerArgs { tls, ..args() }
    }
}

/// How a client connects.
struct Client<'a> {
    trusts: Option<&'a Authority>,
    shows: Option<Identity>,
}

const PLAIN: Client<'static> = Client { trusts: None, shows: None };

impl Client<'_> {
    fn channel(&self, address: SocketAddr) -> Channel {
        let Some(authority) = self.trusts else {
            return Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.0.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.shows {
            None => config.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let connect = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        });
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
    }

    /// Whether a call is answered.
    async fn is_let_in(&self, address: SocketAddr) -> bool {
        let mut client = ExternalScalerClient::new(self.channel(address));
        let call = client.get_metric_spec(object(&[]));
        tokio::time::timeout(Duration::from_secs(20), call).await.expect("an end").is_ok()
    }
}

async fn start(args: ScalerArgs, client: &Client<'_>) -> Kit {
    Kit::start_with(args, async |address| client.channel(address)).await
}

#[tokio::test]
async fn each_client_is_let_in_or_refused_as_it_should_be() {
    let (ours, other) = (Authority::new(), Authority::new());
    let trusting = |authority, shows| Client { trusts: Some(authority), shows };
    let own = || Some(ours.client(Valid::Now));
    let plain = args();
    let server_only = Files::new(&ours.server(Valid::Now), None);
    let mutual = Files::new(&ours.server(Valid::Now), Some(&ours));
    let expired = Files::new(&ours.server(Valid::NoMore), None);
    let servers = [plain, server_only.args(), mutual.args(), expired.args()];
    // By row: a plain server, one with a certificate, one that asks for ours too, an expired one.
    let clients = [
        ("plain", PLAIN, [true, false, false, false]),
        ("trusts our authority", trusting(&ours, None), [false, true, false, false]),
        ("shows our certificate too", trusting(&ours, own()), [false, true, true, false]),
        ("trusts another authority", trusting(&other, None), [false, false, false, false]),
        ("trusts another, shows ours", trusting(&other, own()), [false, false, false, false]),
        (
            "shows one of another authority",
            trusting(&ours, Some(other.client(Valid::Now))),
            [false, true, false, false],
        ),
        (
            "shows one that has expired",
            trusting(&ours, Some(ours.client(Valid::NoMore))),
            [false, true, false, false],
        ),
        (
            "shows one for servers",
            trusting(&ours, Some(ours.server(Valid::Now))),
            [false, true, false, false],
        ),
    ];
    for (at, args) in servers.into_iter().enumerate() {
        let kit = start(args, &PLAIN).await;
        for (name, client, expected) in &clients {
            let told = client.is_let_in(kit.grpc).await;
            assert_eq!(told, expected[at], "server {at}, client that {name}");
        }
        kit.stop().await;
    }
}

#[tokio::test]
async fn of_the_clients_of_one_authority_those_are_let_in_that_are_named() {
    const SPIFFE: &str = "spiffe://cluster.local/ns/keda/sa/keda-operator";
    let ours = Authority::new();
    let files = Files::new(&ours.server(Valid::Now), Some(&ours));
    let mut args = files.args();
    args.tls.tls_client_name = vec!["keda.example.com".to_owned(), SPIFFE.to_owned()];
    let kit = start(args, &PLAIN).await;
    let with = |names: &[SanType]| {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = names.to_vec();
        // A subject is no name: whoever signs rarely looks at it.
        params.distinguished_name.push(DnType::CommonName, "keda.example.com");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &ours.0).unwrap();
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    for (names, expected) in [
        (vec![dns("keda.example.com")], true),
        (vec![dns("other.example.com"), dns("KEDA.example.com")], true),
        (vec![uri(SPIFFE)], true),
        (vec![uri("spiffe://cluster.local/ns/team-a/sa/keda-operator")], false),
        (vec![dns("a.keda.example.com")], false),
        (vec![dns("*.example.com")], false),
        (Vec::new(), false),
    ] {
        let client = Client { trusts: Some(&ours), shows: Some(with(&names)) };
        assert_eq!(client.is_let_in(kit.grpc).await, expected, "{names:?}");
    }
    let nobody = Client { trusts: Some(&ours), shows: None };
    assert!(!nobody.is_let_in(kit.grpc).await);
    kit.stop().await;
}

#[tokio::test]
async fn names_of_clients_that_cannot_count_are_refused_at_the_start() {
    let ours = Authority::new();
    let good = ours.server(Valid::Now);
    for (ca, name, told) in [
        (None, "keda", "--tls-client-ca is missing"),
        (Some(&ours), "", "--tls-client-name is empty"),
    ] {
        let mut args = Files::new(&good, ca).args();
        args.tls.tls_client_name = vec![name.to_owned()];
        let error = format!("{:#}", ebb_scaler::Scaler::bind(args).await.unwrap_err());
        assert!(error.contains(told), "{error}");
    }
}

#[tokio::test]
async fn certificates_are_rotated_under_open_streams() {
    let (first, second) = (Authority::new(), Authority::new());
    let files = Files::new(&first.server(Valid::Now), Some(&first));
    let client = Client { trusts: Some(&first), shows: Some(first.client(Valid::Now)) };
    let kit = start(files.args(), &client).await;
    let mut stream = kit.idle_stream(&object(&[])).await;
    page_says(kit.http, "/metrics", "scaler_tls_expiry_timestamp_seconds ").await;

    files.write(&second.server(Valid::Now), Some(&second));
    let renewed = Client { trusts: Some(&second), shows: Some(second.client(Valid::Now)) };
    let begun = tokio::time::Instant::now();
    let none = "scaler_tls_reloads_total{outcome=\"ok\"} 0";
    while page(kit.http, "/metrics").await.contains(none) {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing is read again");
    }
    // Files are read one by one, so the first change may be half of it.
    while !renewed.is_let_in(kit.grpc).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "the new certificate is not used");
    }
    assert!(!client.is_let_in(kit.grpc).await, "the old authority is still trusted");
    publish(&kit.queue(), 1).await;
    assert_eq!(said(&mut stream).await, Some(true));

    // What is broken changes nothing, and says so.
    std::fs::write(files.path("tls.crt"), "no certificate").unwrap();
    page_says(kit.http, "/metrics", "scaler_reload_broken{what=\"tls\"} 1").await;
    assert!(renewed.is_let_in(kit.grpc).await);
    files.write(&second.server(Valid::Now), Some(&second));
    page_says(kit.http, "/metrics", "scaler_reload_broken{what=\"tls\"} 0").await;
    drop(stream);
    kit.stop().await;
}

#[tokio::test]
async fn clients_at_one_address_that_show_different_certificates_have_room_for_streams_each() {
    let ours = Authority::new();
    let files = Files::new(&ours.server(Valid::Now), Some(&ours));
    let showing = |shows: &Identity| Client { trusts: Some(&ours), shows: Some(shows.clone()) };
    let (keda, other) = (ours.client(Valid::Now), ours.client(Valid::Now));
    let limited = ScalerArgs { max_streams_per_client: 1, ..files.args() };
    let kit = start(limited, &showing(&keda)).await;
    let stream = kit.stream(&object(&[])).await;
    let open = async |shows: &Identity| {
        let mut client = ExternalScalerClient::new(showing(shows).channel(kit.grpc));
        client.stream_is_active(object(&[])).await
    };
    let told = open(&keda).await.unwrap_err();
    assert_eq!(told.code(), tonic::Code::ResourceExhausted);
    assert!(told.message().contains("--max-streams-per-client"), "{told}");
    drop((open(&other).await.unwrap(), stream));
    kit.stop().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_keeps_nobody_waiting() {
    let ours = Authority::new();
    let files = Files::new(&ours.server(Valid::Now), None);
    let client = Client { trusts: Some(&ours), shows: None };
    let kit = start(files.args(), &client).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(kit.grpc).await.unwrap());
    }
    assert!(client.is_let_in(kit.grpc).await);
    PLAIN.is_let_in(kit.grpc).await;
    page_says(kit.http, "/metrics", "scaler_connections_refused_total{reason=\"handshake\"}").await;
    drop(silent);
    kit.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_told_at_the_start() {
    let ours = Authority::new();
    let told = async |files: &Files| {
        let told = ebb_scaler::Scaler::bind(files.args()).await.unwrap_err();
        format!("{told:#}")
    };
    let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
    let good = ours.server(Valid::Now);

    let files = Files::new(&good, Some(&ours));
    write(&files.path("ca.pem"), "nothing");
    assert!(told(&files).await.contains("--tls-client-ca"), "{}", told(&files).await);
    let files = Files::new(&good, None);
    write(&files.path("tls.crt"), &good.key);
    let words = told(&files).await;
    assert!(words.contains("--tls-cert") && words.contains("no certificate in it"), "{words}");
    let files = Files::new(&good, None);
    write(&files.path("tls.key"), &good.cert);
    let words = told(&files).await;
    assert!(words.contains("--tls-key") && words.contains("no private key in it"), "{words}");
    let files = Files::new(&good, None);
    write(&files.path("tls.key"), &ours.server(Valid::Now).key);
    let words = told(&files).await;
    assert!(words.contains("does not fit --tls-cert"), "{words}");
    let files = Files::new(&good, None);
    std::fs::remove_file(files.path("tls.key")).unwrap();
    assert!(told(&files).await.contains("cannot be read"), "{}", told(&files).await);
    let tls = TlsArgs { tls_key: Some(files.path("tls.key")), ..TlsArgs::default() };
    let words = ebb_scaler::Scaler::bind(ScalerArgs { tls, ..args() }).await.unwrap_err();
    assert!(words.to_string().contains("--tls-cert is missing"), "{words}");
}
