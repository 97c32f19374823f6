//! TLS of the port that KEDA calls: certificates from files, and again when they are rotated.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ebb_telemetry::Condition;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::metrics::{Files, Metrics};
use crate::names::Named;

/// Who the scaler is to KEDA, and whether KEDA has to say who it is. All files are PEM.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// The certificate that the gRPC port shows, with those between it and its authority; PEM
    ///
    /// Without it the port is not encrypted. Its files are read again when they change.
    #[arg(long, env = "EBB_SCALER_TLS_CERT", hide_env_values = true, value_name = "FILE")]
    #[arg(requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The key of that certificate; PEM
    #[arg(long, env = "EBB_SCALER_TLS_KEY", hide_env_values = true, value_name = "FILE")]
    #[arg(requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// The authorities whose certificates clients must show; PEM. Without it nobody is asked
    #[arg(long, env = "EBB_SCALER_TLS_CLIENT_CA", hide_env_values = true, value_name = "FILE")]
    #[arg(requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// Names of the clients that are let in, of which a certificate must have one as a DNS name or a
    /// URI [default: any]
    ///
    /// Who is let in speaks for every namespace: name KEDA's alone where the authorities have signed
    /// certificates of others.
    #[arg(long, env = "EBB_SCALER_TLS_CLIENT_NAME", hide_env_values = true, value_name = "NAME")]
    #[arg(value_delimiter = ',', requires = "tls_client_ca")]
    pub tls_client_name: Vec<String>,
}

/// Where certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    /// Of clients that are let in; empty for all of the authority.
    client_names: Vec<String>,
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Pems {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// Certificates in use.
pub(crate) struct Tls {
    files: TlsFiles,
    pems: Pems,
    config: watch::Sender<Arc<ServerConfig>>,
    expires: Timestamp,
}

impl TlsArgs {
    /// The files, if connections are to be encrypted.
    ///
    /// # Errors
    /// Names the flag that is missing.
    pub(crate) fn files(&self) -> anyhow::Result<Option<TlsFiles>> {
        let names = self.tls_client_name.iter().map(|name| name.trim().to_owned());
        let client_names: Vec<String> = names.collect();
        if client_names.iter().any(String::is_empty) {
            bail!("--tls-client-name is empty; name a client, as keda-operator.keda.svc");
        }
        let is_no_name =
            |name: &&String| name.starts_with('*') || name.contains(char::is_whitespace);
        if let Some(name) = client_names.iter().find(is_no_name) {
            bail!(
                "--tls-client-name: {name:?} names no client; write whole names, with commas between \
                 them"
            );
        }
        if self.tls_client_ca.is_none() && !self.tls_client_name.is_empty() {
            bail!("--tls-client-ca is missing; without it no client shows a certificate");
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Ok(Some(TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
                client_ca: self.tls_client_ca.clone(),
                client_names,
            })),
            (None, None) if self.tls_client_ca.is_none() => Ok(None),
            (None, _) => bail!("--tls-cert is missing; it goes with --tls-key"),
            (_, None) => bail!("--tls-key is missing; it goes with --tls-cert"),
        }
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the flag, the file and what is wrong with it.
    pub(crate) fn load(files: TlsFiles) -> anyhow::Result<Self> {
        let pems = files.read()?;
        let (config, expires) = files.config(&pems)?;
        let (config, _) = watch::channel(config);
        Ok(Self { files, pems, config, expires })
    }

    /// The certificates of the moment; each new connection takes the newest.
    pub(crate) fn config(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    /// Looks again and again whether the files have changed. Files that are broken are logged
    /// once and counted, and the certificate before them stays; connections live on.
    pub(crate) async fn follow(self, every: Duration, metrics: Metrics) {
        let Self { files, pems, config, expires } = self;
        note(expires, &metrics);
        let take = |_: &Pems, pems: &Pems| {
            let (renewed, expires) = files.config(pems)?;
            config.send_replace(renewed);
            metrics.reloaded(Files::Tls);
            tracing::info!(%expires, "certificates changed");
            note(expires, &metrics);
            Ok(())
        };
        let tell = |condition: Condition<'_>| {
            metrics.found(Files::Tls, condition);
            match condition {
                Condition::Broken(error) => {
                    tracing::error!(error, "certificates are broken; those before them stay");
                }
                Condition::Mended => tracing::info!("certificates are no longer broken"),
            }
        };
        let load = {
            let files = files.clone();
            move || files.read()
        };
        ebb_telemetry::follow(pems, every, load, take, tell).await;
    }
}

fn note(expires: Timestamp, metrics: &Metrics) {
    metrics.tls_expires(expires);
    if expires <= Timestamp::now() {
        tracing::warn!(expired = %expires, "the certificate has expired; clients refuse it");
    }
}

impl TlsFiles {
    fn read(&self) -> anyhow::Result<Pems> {
        let read = |flag: &str, path: &Path| {
            fs::read(path).with_context(|| format!("{flag}: {} cannot be read", path.display()))
        };
        let client_ca = self.client_ca.as_deref().map(|path| read("--tls-client-ca", path));
        Ok(Pems {
            cert: read("--tls-cert", &self.cert)?,
            key: read("--tls-key", &self.key)?,
            client_ca: client_ca.transpose()?,
        })
    }

    fn config(&self, pems: &Pems) -> anyhow::Result<(Arc<ServerConfig>, Timestamp)> {
        let named = |flag: &str, path: &Path| format!("{flag}: {}", path.display());
        let (cert, key) = (named("--tls-cert", &self.cert), named("--tls-key", &self.key));
        let chain = certificates(&pems.cert).with_context(|| cert.clone())?;
        let expires = expiry(&chain[0]).with_context(|| cert.clone())?;
        let Ok(private) = PrivateKeyDer::from_pem_slice(&pems.key) else {
            bail!("{key}: there is no private key in it; write it as PEM");
        };
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match self.client_ca.as_deref().zip(pems.client_ca.as_deref()) {
            None => builder.with_no_client_auth(),
            Some((path, pem)) => {
                let flag = || named("--tls-client-ca", path);
                let mut roots = RootCertStore::empty();
                for authority in certificates(pem).with_context(flag)? {
                    roots.add(authority).with_context(flag)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let mut verifier = verifier.build().with_context(flag)?;
                if !self.client_names.is_empty() {
                    verifier = Arc::new(Named::new(verifier, self.client_names.clone()));
                }
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, private)
            .with_context(|| format!("{key} does not fit {cert}"))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok((Arc::new(config), expires))
    }
}

/// At least one.
fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => bail!("there is no certificate in it; write it as PEM"),
    }
}

fn expiry(certificate: &CertificateDer<'_>) -> anyhow::Result<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
        .context("its first certificate cannot be read")?;
    let seconds = certificate.validity().not_after.timestamp();
    // A certificate without an end has the last second that a calendar knows.
    Ok(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::TlsArgs;

    #[test]
    fn names_of_clients_are_whole_and_without_what_is_around_them() {
        let files = |names: &str| {
            TlsArgs {
                tls_cert: Some("tls.crt".into()),
                tls_key: Some("tls.key".into()),
                tls_client_ca: Some("ca.crt".into()),
                tls_client_name: names.split(',').map(str::to_owned).collect(),
            }
            .files()
        };
        let names = files("keda-operator.keda.svc, spiffe://c/ns/keda").unwrap().unwrap();
        assert_eq!(names.client_names, ["keda-operator.keda.svc", "spiffe://c/ns/keda"]);
        for (wrong, why) in [
            ("a,", "is empty"),
            (" ", "is empty"),
            ("*.keda.svc", "\"*.keda.svc\" names no client"),
            ("a b", "\"a b\" names no client"),
        ] {
            let told = files(wrong).unwrap_err().to_string();
            assert!(told.contains(why), "{wrong:?}: {told}");
        }
    }
}
