//! Certificates that a test makes for itself.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};

use crate::{Error, Result};

/// Files for an encrypted port, all PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate of the server.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority whose certificates clients must show; none is asked for when missing.
    pub client_ca: Option<PathBuf>,
}

/// Signs certificates for servers on the loopback and for their clients.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, whose files lie in this folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let mut params = params("an authority of this test", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, key()?).map_err(failed)?;
        let authority = Self { issuer, folder: folder.to_owned() };
        authority.write("ca.pem", &authority.issuer.pem())?;
        Ok(authority)
    }

    /// What clients trust, and servers that ask for the certificates of clients.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// For a server on `localhost` and `127.0.0.1` that asks nobody for a certificate.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn server(&self) -> Result<TlsFiles> {
        let mut params = params("a server", &["localhost", "127.0.0.1"])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (cert, key) = self.signed("server", &params)?;
        Ok(TlsFiles { cert, key, client_ca: None })
    }

    /// A certificate and its key for a client of this name.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn client(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let mut params = params(name, &[name])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signed(&format!("client-{name}"), &params)
    }

    fn signed(&self, name: &str, params: &CertificateParams) -> Result<(PathBuf, PathBuf)> {
        let key = key()?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let cert = self.write(&format!("{name}.pem"), &cert.pem())?;
        Ok((cert, self.write(&format!("{name}.key"), &key.serialize_pem())?))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)
            .map_err(|error| Error::because(&format!("cannot write {}", path.display()), error))?;
        Ok(path)
    }
}

fn params(name: &str, hosts: &[&str]) -> Result<CertificateParams> {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn key() -> Result<KeyPair> {
    KeyPair::generate().map_err(failed)
}

fn failed(error: rcgen::Error) -> Error {
    Error::because("cannot make a certificate", error)
}
