//! TLS between nodes: both sides show a certificate that the cluster's own authority signed.
//!
//! The authority must sign nothing but the cluster's nodes: whoever holds one of its certificates
//! is a peer.

use std::fmt;
use std::path::Path;

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// The certificates of a node, as PEM.
#[derive(Clone)]
pub struct PeerTls {
    ca: Certificate,
    identity: Identity,
    server_name: Option<String>,
}

/// Why certificates were not taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("{what} has no usable PEM: {why}")]
    Pem { what: &'static str, why: String },
}

impl PeerTls {
    /// Takes certificates from memory.
    ///
    /// # Errors
    /// [`TlsError::Pem`] when one of them is not what it should be.
    pub fn new(ca_pem: &[u8], cert_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};

        let certificates = |what, pem: &[u8]| match CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
        {
            Ok(found) if !found.is_empty() => Ok(()),
            Ok(_) => Err(TlsError::Pem {
                what,
                why: "no certificate in it".to_owned(),
            }),
            Err(error) => Err(TlsError::Pem {
                what,
                why: error.to_string(),
            }),
        };
        certificates("the authority's certificate", ca_pem)?;
        certificates("the node's certificate", cert_pem)?;
        PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| TlsError::Pem {
            what: "the node's key",
            why: error.to_string(),
        })?;
        Ok(Self {
            ca: Certificate::from_pem(ca_pem),
            identity: Identity::from_pem(cert_pem, key_pem),
            server_name: None,
        })
    }

    /// Takes certificates from files.
    ///
    /// # Errors
    /// As [`PeerTls::new`], and when a file cannot be read.
    pub fn from_files(ca: &Path, cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read {
                path: path.display().to_string(),
                source,
            })
        };
        Self::new(&read(ca)?, &read(cert)?, &read(key)?)
    }

    /// Expects `name` in every peer's certificate, instead of the host that was dialled: for
    /// clusters whose nodes share one certificate or change their addresses.
    #[must_use]
    pub fn with_server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// For a listener: clients without a certificate of the cluster's authority are refused in the
    /// handshake.
    #[must_use]
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity.clone())
            .client_ca_root(self.ca.clone())
    }

    /// For dialling.
    #[must_use]
    pub fn client(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new()
            .ca_certificate(self.ca.clone())
            .identity(self.identity.clone());
        match &self.server_name {
            Some(name) => config.domain_name(name),
            None => config,
        }
    }
}

impl fmt::Debug for PeerTls {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTls")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
