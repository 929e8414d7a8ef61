//! Which certificate authorities a server's certificate is checked against.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Which authorities are trusted.
pub enum Trust {
    /// This one alone, in DER.
    Authority(Vec<u8>),
    /// Those in a PEM file alone.
    File(PathBuf),
    /// Those that this machine trusts.
    #[cfg(feature = "cli")]
    Machine,
}

/// Why there is nothing to trust.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not a certificate.
    #[error("the certificate authority is not a certificate")]
    Malformed(#[source] rustls::Error),
    /// The file cannot be read as PEM.
    #[error("cannot read certificates from {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds no certificate.
    #[error("{} holds no certificate: it must be PEM, with BEGIN CERTIFICATE", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The machine trusts nothing.
    #[error(
        "this machine has no list of certificate authorities: name the server's own with --ca-file or BAREKEY_CA_FILE"
    )]
    NoneOnMachine,
    /// The name is not one that a certificate can have.
    #[error("{host:?} is not the name of a server")]
    BadName {
        /// The name.
        host: String,
    },
    /// The provider of cryptography lacks a protocol version.
    #[error("TLS cannot be set up")]
    Protocol(#[source] rustls::Error),
}

impl Trust {
    /// A TLS configuration that trusts these authorities.
    pub(super) fn client_config(&self) -> Result<ClientConfig, TrustError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TrustError::Protocol)?
            .with_root_certificates(self.roots()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore, TrustError> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::Authority(der) => roots
                .add(CertificateDer::from_slice(der))
                .map_err(TrustError::Malformed)?,
            Self::File(path) => {
                let unreadable = |source| TrustError::Unreadable {
                    path: path.clone(),
                    source,
                };
                for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
                    roots
                        .add(certificate.map_err(unreadable)?)
                        .map_err(TrustError::Malformed)?;
                }
                if roots.is_empty() {
                    return Err(TrustError::Empty { path: path.clone() });
                }
            }
            #[cfg(feature = "cli")]
            Self::Machine => {
                // A broken file in a list of the machine's must not hide the others.
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    return Err(TrustError::NoneOnMachine);
                }
            }
        }
        Ok(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        let refusal = || {
            Trust::File(file.clone())
                .client_config()
                .unwrap_err()
                .to_string()
        };
        assert!(refusal().contains("ca.crt"));
        std::fs::write(&file, "no certificate").unwrap();
        assert!(refusal().contains("holds no certificate"), "{}", refusal());
    }
}
