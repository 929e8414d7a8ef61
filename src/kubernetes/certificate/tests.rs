//! Which certificates verify, under which names, for how long.

use std::sync::atomic::{AtomicI64, Ordering};

use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::leaf::{LEAF_LASTS_MS, make_authority};
use super::*;
use crate::crypto::keys::MasterKey;
use crate::kubernetes::{AgentDelivery, AgentDeliverySettings};
use crate::vault::VaultSettings;

const NOW_MS: i64 = 1_795_000_000_000;

fn settings() -> KubernetesSettings {
    KubernetesSettings {
        namespace: "barekey".parse().unwrap(),
        pod_name: "barekey-0".to_owned(),
        service_name: "barekey".to_owned(),
        service_port: 443,
        webhook_configuration: "barekey".to_owned(),
        lease: "barekey".to_owned(),
        organizations: crate::kubernetes::Organizations::default(),
        agent: AgentDeliverySettings {
            image: "docker.io/barekey/agent:0.1.0".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            delivery: AgentDelivery::Init,
        },
        listen: "0.0.0.0:10250".parse().unwrap(),
    }
}

fn now_ms() -> i64 {
    i64::try_from(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap()
}

/// A listener that serves one leaf, and its address.
async fn serve(leaf: Leaf) -> SocketAddr {
    serve_resolved(Arc::new(CurrentLeaf(ArcSwap::new(leaf.key)))).await
}

/// A listener that serves what `resolver` gives, and its address.
async fn serve_resolved(resolver: Arc<dyn ResolvesServerCert>) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            // The client of this test decides what counts.
            drop(acceptor.accept(stream).await);
        }
    });
    address
}

#[tokio::test]
async fn a_leaf_verifies_against_its_authority_under_each_of_its_names() {
    let authority = make_authority(now_ms()).unwrap();
    let names = leaf_names(&settings()).unwrap();
    let address = serve(make_leaf(&authority, &names, now_ms()).unwrap()).await;
    for name in [
        "barekey",
        "barekey.barekey",
        "barekey.barekey.svc",
        "barekey.barekey.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        "::1",
    ] {
        let verified = handshake(address, name, authority.certificate_pem.as_bytes()).await;
        assert_eq!(verified, Ok(()), "{name}");
    }
}

#[tokio::test]
async fn a_leaf_does_not_verify_under_another_name_or_against_another_authority() {
    let authority = make_authority(now_ms()).unwrap();
    let other = make_authority(now_ms()).unwrap();
    let names = leaf_names(&settings()).unwrap();
    let address = serve(make_leaf(&authority, &names, now_ms()).unwrap()).await;
    let bundle = authority.certificate_pem.as_bytes();
    assert!(
        handshake(address, "other.barekey.svc", bundle)
            .await
            .is_err()
    );
    let other = other.certificate_pem.as_bytes();
    assert!(
        handshake(address, "barekey.barekey.svc", other)
            .await
            .is_err()
    );
    assert!(
        handshake(address, "barekey.barekey.svc", b"")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_leaf_that_ended_does_not_verify() {
    let authority = make_authority(now_ms()).unwrap();
    let names = leaf_names(&settings()).unwrap();
    let past = now_ms() - LEAF_LASTS_MS - 1000;
    let address = serve(make_leaf(&authority, &names, past).unwrap()).await;
    let bundle = authority.certificate_pem.as_bytes();
    assert!(
        handshake(address, "barekey.barekey.svc", bundle)
            .await
            .is_err()
    );
}

#[test]
fn a_leaf_lasts_a_day_and_is_renewed_at_two_thirds_of_it() {
    let authority = make_authority(NOW_MS).unwrap();
    let leaf = make_leaf(&authority, &leaf_names(&settings()).unwrap(), NOW_MS).unwrap();
    assert_eq!(leaf.ends_at_ms, NOW_MS + 24 * 3600 * 1000);
    assert_eq!(leaf.renew_at_ms, NOW_MS + 16 * 3600 * 1000);
}

/// A clock that stands still until it is moved.
struct StillClock(AtomicI64);

impl Clock for StillClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

async fn opened_vault(folder: &TempDir, clock: Arc<StillClock>) -> Vault {
    let vault = VaultSettings {
        database: format!("sqlite:{}", folder.path().join("barekey.db").display()),
        master_key: MasterKey::from_file_content(&[7; 32]).unwrap(),
        accepted_risks: Vec::new(),
        value_bytes_max: 1024,
        pod_identity: None,
    };
    Vault::open(vault, clock).await.unwrap()
}

/// The leaf that a listener shows to a client which trusts one authority alone, and which it verifies against it.
async fn shown(listener: SocketAddr, authority: &AuthorityCertificate) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(authority.der.clone()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(listener).await.unwrap();
    let name = ServerName::try_from(settings().server_name()).unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let connection = connected.await.unwrap();
    connection.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn at_two_thirds_of_its_life_and_not_before_a_leaf_gives_way_to_another_of_the_same_authority()
 {
    let two_thirds_ms = LEAF_LASTS_MS / 3 * 2;
    // A client goes by the machine's clock, to which both leaves have begun and none has ended.
    let started_ms = now_ms() - two_thirds_ms;
    let clock = Arc::new(StillClock(AtomicI64::new(started_ms)));
    let folder = TempDir::new().unwrap();
    let vault = opened_vault(&folder, clock.clone()).await;
    let opened = Certificates::open(vault.clone(), &settings(), clock.clone()).await;
    let mut certificates = opened.unwrap();
    let metrics = Metrics::default();
    let authority = certificates.authority().clone();
    let listener = serve_resolved(certificates.resolver()).await;
    let first = shown(listener, &authority).await;

    clock
        .0
        .store(started_ms + two_thirds_ms - 1, Ordering::Relaxed);
    certificates.renew(&metrics).await;
    assert_eq!(shown(listener, &authority).await, first);
    let ends = metrics.certificate_expires_seconds.get();
    assert_eq!(ends, (started_ms + LEAF_LASTS_MS) / 1000);

    clock.0.store(started_ms + two_thirds_ms, Ordering::Relaxed);
    certificates.renew(&metrics).await;
    let second = shown(listener, &authority).await;
    assert_ne!(second, first);
    let ends = metrics.certificate_expires_seconds.get();
    assert_eq!(ends, (started_ms + two_thirds_ms + LEAF_LASTS_MS) / 1000);

    // And no third one at the next look.
    certificates.renew(&metrics).await;
    assert_eq!(shown(listener, &authority).await, second);
    vault.close().await;
}

#[tokio::test]
async fn a_leaf_that_was_made_while_the_clock_was_ahead_gives_way_once_it_is_right() {
    let ahead_ms = now_ms() + LEAF_LASTS_MS;
    let clock = Arc::new(StillClock(AtomicI64::new(now_ms())));
    let folder = TempDir::new().unwrap();
    let vault = opened_vault(&folder, clock.clone()).await;
    // The authority is as old as the right time.
    authority(&vault, now_ms()).await.unwrap();
    clock.0.store(ahead_ms, Ordering::Relaxed);
    let opened = Certificates::open(vault.clone(), &settings(), clock.clone()).await;
    let mut certificates = opened.unwrap();
    let metrics = Metrics::default();
    let bundle = certificates.authority().pem.clone().into_bytes();
    let listener = serve_resolved(certificates.resolver()).await;
    let name = settings().server_name();
    certificates.renew(&metrics).await;
    assert!(handshake(listener, &name, &bundle).await.is_err());

    clock.0.store(now_ms(), Ordering::Relaxed);
    certificates.renew(&metrics).await;
    handshake(listener, &name, &bundle).await.unwrap();
    vault.close().await;
}

#[test]
fn an_authority_lasts_ten_years_signs_leaves_alone_and_has_a_stable_id() {
    let authority = make_authority(NOW_MS).unwrap();
    let certificate = AuthorityCertificate::parse(&authority.certificate_pem).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate.der).unwrap();
    let days = (parsed.validity().not_after.timestamp() - NOW_MS / 1000) / 86400;
    assert_eq!(days, 3653);
    let constraints = parsed.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca);
    assert_eq!(constraints.path_len_constraint, Some(0));
    assert_eq!(certificate.id.len(), 16);
    let again = AuthorityCertificate::parse(&authority.certificate_pem).unwrap();
    assert_eq!(certificate.id, again.id);
}

#[test]
fn a_listener_on_every_address_is_tried_on_the_loopback() {
    let tried = |listen: &str| own_address(listen.parse().unwrap()).to_string();
    assert_eq!(tried("0.0.0.0:10250"), "127.0.0.1:10250");
    assert_eq!(tried("[::]:10250"), "[::1]:10250");
    assert_eq!(tried("10.0.0.1:1"), "10.0.0.1:1");
}
