//! The CA and the leaf that it signs: how long they last, which names they have, how they are made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use crate::domain::plaintext::Plaintext;
use crate::kubernetes::KubernetesSettings;
use crate::vault::Vault;
use crate::vault::authority::{Authority, AuthorityError, certificate_id};

/// How long the CA lasts.
const AUTHORITY_LASTS_DAYS: i64 = 3653;
/// How long a leaf lasts.
pub(super) const LEAF_LASTS_MS: i64 = 24 * 60 * 60 * 1000;
/// How long before now a certificate begins, for clocks that are behind.
const BEGINS_BEFORE_MS: i64 = 60 * 60 * 1000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The CA could not be read or stored.
    #[error("the certificate authority cannot be had from the vault")]
    Authority(#[source] AuthorityError),
    /// The stored CA is no certificate and key.
    #[error("the stored certificate authority cannot be read")]
    Malformed(#[source] rcgen::Error),
    /// The stored CA's certificate is no PEM.
    #[error("the stored certificate of the authority cannot be read")]
    MalformedPem(#[source] rustls::pki_types::pem::Error),
    /// A certificate could not be made.
    #[error("a certificate cannot be made")]
    Make(#[source] rcgen::Error),
    /// The new leaf's key does not fit.
    #[error("the new certificate cannot be served")]
    Serve(#[source] rustls::Error),
    /// The clock says a time that no certificate can have.
    #[error("the clock says a time that no certificate can have")]
    Time(#[source] time::error::ComponentRange),
}

/// The certificate that pods and the API server trust.
#[derive(Debug, Clone)]
pub struct AuthorityCertificate {
    /// The certificate, PEM.
    pub pem: String,
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// The first 16 hex digits of the SHA-256 of the DER.
    pub id: String,
}

impl AuthorityCertificate {
    pub(super) fn parse(pem: &str) -> Result<Self, CertificateError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(CertificateError::MalformedPem)?;
        let id = certificate_id(&der);
        Ok(Self {
            pem: pem.to_owned(),
            der: der.to_vec(),
            id,
        })
    }
}

/// A leaf, and when to renew it.
pub(super) struct Leaf {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) begins_at_ms: i64,
    pub(super) renew_at_ms: i64,
    pub(super) ends_at_ms: i64,
}

fn instant(ms: i64) -> Result<OffsetDateTime, CertificateError> {
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).map_err(CertificateError::Time)
}

/// The stored CA; the first time, a new one. Of several processes that start at once, all get the same.
pub(super) async fn authority(vault: &Vault, now_ms: i64) -> Result<Authority, CertificateError> {
    let stored = vault
        .stored_authority()
        .await
        .map_err(CertificateError::Authority)?;
    match stored {
        Some(authority) => Ok(authority),
        None => vault
            .authority(make_authority(now_ms)?)
            .await
            .map_err(CertificateError::Authority),
    }
}

pub(super) fn make_authority(now_ms: i64) -> Result<Authority, CertificateError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertificateError::Make)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("barekey authority");
    params.not_before = instant(now_ms - BEGINS_BEFORE_MS)?;
    params.not_after = instant(now_ms + AUTHORITY_LASTS_DAYS * DAY_MS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(CertificateError::Make)?;
    Ok(Authority {
        certificate_pem: certificate.pem(),
        key_pem: Plaintext::from(key.serialize_pem()),
    })
}

pub(super) fn leaf_names(settings: &KubernetesSettings) -> Result<Vec<SanType>, CertificateError> {
    let service = &settings.service_name;
    let namespace = &settings.namespace;
    let mut names = Vec::new();
    for name in [
        format!("{service}.{namespace}.svc"),
        service.clone(),
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc.cluster.local"),
        "localhost".to_owned(),
    ] {
        names.push(SanType::DnsName(
            name.try_into().map_err(CertificateError::Make)?,
        ));
    }
    names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    names.push(SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    Ok(names)
}

pub(super) fn make_leaf(
    authority: &Authority,
    names: &[SanType],
    now_ms: i64,
) -> Result<Leaf, CertificateError> {
    let authority_key = KeyPair::from_pem(authority.key_pem.reveal_text().unwrap_or_default())
        .map_err(CertificateError::Malformed)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate_pem, authority_key)
        .map_err(CertificateError::Malformed)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertificateError::Make)?;
    let begins_at_ms = now_ms - BEGINS_BEFORE_MS;
    let ends_at_ms = now_ms + LEAF_LASTS_MS;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("barekey");
    params.subject_alt_names = names.to_vec();
    params.not_before = instant(begins_at_ms)?;
    params.not_after = instant(ends_at_ms)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params
        .signed_by(&key, &issuer)
        .map_err(CertificateError::Make)?;
    let certified = CertifiedKey::from_der(
        vec![certificate.der().clone()],
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        &rustls::crypto::aws_lc_rs::default_provider(),
    )
    .map_err(CertificateError::Serve)?;
    Ok(Leaf {
        key: Arc::new(certified),
        begins_at_ms,
        renew_at_ms: now_ms + LEAF_LASTS_MS / 3 * 2,
        ends_at_ms,
    })
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
