//! The pod of this worker at the Kubernetes API server: one annotation of it is patched.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, StatusCode, redirect};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Where Kubernetes puts what a container needs to speak with it.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A call to the API server that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest name that Kubernetes gives a pod.
const LONGEST_NAME: usize = 253;

/// A pod, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The API server: scheme, host and port.
    pub api: String,
    /// The namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The folder of `token` and `ca.crt`; both are read for each call, since both rotate.
    pub mount: PathBuf,
}

/// Why an annotation was not patched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PatchError {
    /// Not before somebody gives the right.
    #[error(
        "the service account may not patch pods: it needs a Role in namespace {0} with the verb \
         patch on the resource pods, or set --pod-deletion-cost off"
    )]
    Forbidden(String),
    /// Not where this process looks for it.
    #[error("namespace {0} has no pod {1}: are POD_NAME and POD_NAMESPACE this pod's own?")]
    NoPod(String, String),
    /// The API server may know better in a while.
    #[error("the API server answered {0}")]
    Answer(StatusCode),
    /// No answer.
    #[error("the API server cannot be reached")]
    Http(#[from] reqwest::Error),
    /// What is mounted is of no use; it may be in the middle of a rotation.
    #[error("cannot use {}: {reason}", path.display())]
    Mount { path: PathBuf, reason: String },
}

impl Pod {
    /// The pod that this process runs in, as its environment tells.
    ///
    /// # Errors
    /// Says what is missing.
    pub(crate) fn here(env: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        Self::with(env, Path::new(MOUNT))
    }

    fn with(env: impl Fn(&str) -> Option<String>, mount: &Path) -> Result<Self, String> {
        let given = |name: &str| {
            let value = env(name).filter(|value| !value.is_empty());
            value.ok_or_else(|| format!("the variable {name} is not set"))
        };
        let host = given("KUBERNETES_SERVICE_HOST")?;
        let port = given("KUBERNETES_SERVICE_PORT")?;
        let named = |variable: &str| {
            let name = given(variable)?;
            // It becomes a part of a path.
            let is_part = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.');
            let is_name = name.len() <= LONGEST_NAME && name.starts_with(char::is_alphanumeric);
            let is_name = is_name && name.chars().all(is_part);
            is_name.then_some(name).ok_or_else(|| format!("{variable} is no name in Kubernetes"))
        };
        let (namespace, name) = (named("POD_NAMESPACE")?, named("POD_NAME")?);
        for file in ["token", "ca.crt"] {
            let path = mount.join(file);
            if !path.is_file() {
                return Err(format!("there is no {}", path.display()));
            }
        }
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let api = format!("https://{host}:{port}");
        Ok(Self { api, namespace, name, mount: mount.to_owned() })
    }

    /// Sets the annotation by which a ReplicaSet chooses the pod that it deletes first.
    pub(crate) async fn set_deletion_cost(&self, cost: u64) -> Result<(), PatchError> {
        let Self { api, namespace, name, .. } = self;
        let annotation = "controller.kubernetes.io/pod-deletion-cost";
        let patch = format!(r#"{{"metadata":{{"annotations":{{"{annotation}":"{cost}"}}}}}}"#);
        let patched = self
            .client()?
            .patch(format!("{api}/api/v1/namespaces/{namespace}/pods/{name}"))
            .header(CONTENT_TYPE, "application/merge-patch+json")
            .header(AUTHORIZATION, self.token()?)
            .body(patch)
            .send()
            .await?;
        match patched.status() {
            status if status.is_success() => Ok(()),
            StatusCode::FORBIDDEN => Err(PatchError::Forbidden(namespace.clone())),
            StatusCode::NOT_FOUND => Err(PatchError::NoPod(namespace.clone(), name.clone())),
            status => Err(PatchError::Answer(status)),
        }
    }

    /// Made for one call: calls are rare, and a thousand idle connections would cost the API
    /// server more than these.
    fn client(&self) -> Result<Client, PatchError> {
        let client = Client::builder()
            .tls_backend_preconfigured(self.tls()?)
            .timeout(LIMIT)
            // The API server is in the cluster, and sends nobody elsewhere with a token.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("ebb/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(client)
    }

    fn tls(&self) -> Result<ClientConfig, PatchError> {
        let path = self.mount.join("ca.crt");
        let wrong = |reason: String| PatchError::Mount { path: path.clone(), reason };
        let pem = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for found in CertificateDer::pem_slice_iter(&pem) {
            let certificate = found.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }

    fn token(&self) -> Result<HeaderValue, PatchError> {
        let path = self.mount.join("token");
        // Its content is in no message.
        let wrong = |reason: String| PatchError::Mount { path: path.clone(), reason };
        let token = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let bearer = HeaderValue::try_from(format!("Bearer {}", token.trim()));
        let mut bearer = bearer.map_err(|_| wrong("it is no token".to_owned()))?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(without: &str, mount: &Path) -> Result<Pod, String> {
        let set = [
            ("KUBERNETES_SERVICE_HOST", "fd00::1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("POD_NAMESPACE", "inference"),
            ("POD_NAME", "worker-7f9c-x2"),
        ];
        let env = |name: &str| {
            let value = set.iter().find(|(set, _)| *set == name && *set != without);
            value.map(|(_, value)| (*value).to_owned())
        };
        Pod::with(env, mount)
    }

    #[test]
    fn a_pod_is_found_by_its_environment_or_it_is_said_what_is_missing() {
        let mount = tempfile::tempdir().unwrap();
        assert!(found("", mount.path()).unwrap_err().contains("there is no"));
        std::fs::write(mount.path().join("token"), "t").unwrap();
        assert!(found("", mount.path()).unwrap_err().contains("ca.crt"));
        std::fs::write(mount.path().join("ca.crt"), "c").unwrap();
        let pod = found("", mount.path()).unwrap();
        assert_eq!(pod.api, "https://[fd00::1]:443");
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("inference", "worker-7f9c-x2"));
        for name in ["KUBERNETES_SERVICE_HOST", "POD_NAME", "POD_NAMESPACE"] {
            assert_eq!(found(name, mount.path()), Err(format!("the variable {name} is not set")));
        }
        let strange = |name: &str| Some(if name == "POD_NAME" { "../secrets" } else { "a" }.into());
        let error = Pod::with(strange, mount.path()).unwrap_err();
        assert_eq!(error, "POD_NAME is no name in Kubernetes");
    }
}
