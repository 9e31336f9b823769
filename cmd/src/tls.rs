//! Certificates and keys from PEM files.

use std::path::Path;
use std::sync::Arc;

use leadline_raft::tls::PeerTls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{ClientTls, PeerTlsFiles};

impl PeerTlsFiles {
    /// # Errors
    /// Names the file that cannot be used.
    pub(crate) fn read(&self) -> Result<PeerTls, String> {
        PeerTls::from_files(&self.ca, &self.cert, &self.key).map_err(|error| error.to_string())
    }
}

/// What Redis clients shake hands with.
///
/// # Errors
/// Names the file that cannot be used.
pub(crate) fn server_config(files: &ClientTls) -> Result<Arc<rustls::ServerConfig>, String> {
    let unusable = |path: &Path, why: String| format!("cannot use {}: {why}", path.display());
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(&files.cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable(&files.cert, "it holds no certificate".into()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unusable(&files.key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map(Arc::new)
        .map_err(|error| format!("--tls-cert and --tls-key do not fit together: {error}"))
}
