//! A certificate that an administrator keeps in files, read again when they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Why files are not a certificate and its key.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFilesError {
    /// Not read, or not PEM.
    #[error("cannot read PEM from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: pem::Error,
    },
    /// They do not belong together.
    #[error("the key in {key} does not belong to the certificate in {certificate}")]
    Mismatch {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// What the TLS library says.
        source: rustls::Error,
    },
}

/// The certificate in two files.
pub struct CertificateFiles {
    certificate: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl fmt::Debug for CertificateFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateFiles({})", self.certificate.display())
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl CertificateFiles {
    /// Reads both files.
    ///
    /// # Errors
    /// [`CertificateFilesError`].
    pub fn open(certificate: &Path, key: &Path) -> Result<Arc<Self>, CertificateFilesError> {
        Ok(Arc::new(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current: ArcSwap::from_pointee(read(certificate, key)?),
        }))
    }

    /// Reads the files again; what is not whole (a renewal half-way) leaves the certificate as it is.
    ///
    /// # Errors
    /// [`CertificateFilesError`].
    fn look(&self) -> Result<bool, CertificateFilesError> {
        let found = read(&self.certificate, &self.key)?;
        let changed = found.cert != self.current.load().cert;
        if changed {
            self.current.store(Arc::new(found));
        }
        Ok(changed)
    }

    /// Looks at the files from time to time until `stop` turns true.
    pub async fn keep(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            match self.look() {
                Ok(true) => tracing::info!("the certificate was read anew"),
                Ok(false) => {}
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(cause, "the certificate stays as it was: {error}");
                }
            }
        }
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, CertificateFilesError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateFilesError::Read { path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .map_err(unreadable(certificate))?
        .collect::<Result<_, _>>()
        .map_err(unreadable(certificate))?;
    if chain.is_empty() {
        return Err(unreadable(certificate)(pem::Error::NoItemsFound));
    }
    let signing = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
    CertifiedKey::from_der(chain, signing, &aws_lc_rs::default_provider()).map_err(|source| {
        CertificateFilesError::Mismatch {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str) -> rcgen::CertifiedKey<rcgen::KeyPair> {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(directory.join("tls.crt"), made.cert.pem()).unwrap();
        std::fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
        made
    }

    #[test]
    fn a_renewed_certificate_is_taken_over_and_a_half_written_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (
            directory.path().join("tls.crt"),
            directory.path().join("tls.key"),
        );
        write(directory.path(), "one.example");
        let files = CertificateFiles::open(&certificate, &key).unwrap();
        assert!(!files.look().unwrap());

        let first = files.current.load_full();
        let other = rcgen::generate_simple_self_signed(vec!["two.example".to_owned()]).unwrap();
        std::fs::write(&certificate, other.cert.pem()).unwrap();
        assert!(matches!(
            files.look(),
            Err(CertificateFilesError::Mismatch { .. })
        ));
        assert_eq!(files.current.load().cert, first.cert);

        std::fs::write(&key, other.signing_key.serialize_pem()).unwrap();
        assert!(files.look().unwrap());
        assert_eq!(files.current.load().cert, vec![other.cert.der().clone()]);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "one.example");
        let certificate = directory.path().join("tls.crt");
        std::fs::write(&certificate, "").unwrap();
        let error = CertificateFiles::open(&certificate, &directory.path().join("tls.key"));
        assert!(error.unwrap_err().to_string().contains("tls.crt"));
    }
}
