//! Who leads: one replica holds the Lease, and publishes the heads of the audit chains on it.
//!
//! # Guarantees
//!
//! - A replica calls itself the leader only until [`RENEW_WITHIN`] after the start of its last successful renewal, by its own
//!   monotonic clock, whatever it waits for then: the API server, the database or its next look. Another one takes the Lease
//!   over at the earliest when it has seen no renewal for [`LEASE_LASTS`]. Clocks of different machines are never compared.
//! - Every write carries the resource version that was read, so of two candidates one loses.
//! - A holder of the same name is this pod before a restart, and is followed at once.
//!
//! The Lease is rendered by the chart and never made here. `barekey-operator uninstall` takes it too, so that nothing
//! re-adds a finalizer that it removes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::domain::causes::with_causes;
use crate::kubernetes::metrics::Metrics;
use crate::kubernetes::{AUDIT_HEADS_ANNOTATION, KubernetesSettings, RequestError, timed};
use crate::vault::audit::AuditHead;
use crate::vault::{Clock, Vault};

/// How long a Lease holds without renewal.
pub const LEASE_LASTS: Duration = Duration::from_secs(15);
/// How long after its last renewal a holder still calls itself the leader.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often the Lease is looked at, and renewed by its holder.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(4);
/// How often the audit heads are read. That takes no longer than the pause between two looks, or is tried again after this.
const HEADS_EVERY: Duration = Duration::from_secs(30);
/// The longest annotation that is published, in bytes: an object's annotations have at most 256 KiB together.
const HEADS_BYTES_MAX: usize = 200 * 1024;

/// Why the Lease could not be looked at or written.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("cannot read the Lease {name}")]
    Read { name: String, source: RequestError },
    #[error("cannot write the Lease {name}")]
    Write { name: String, source: RequestError },
    #[error("the Lease was not renewed within {} s", RENEW_WITHIN.as_secs())]
    NotRenewed,
}

/// One replica that would lead.
pub struct Candidate {
    api: Api<Lease>,
    vault: Vault,
    name: String,
    observer: Observer,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    leads: watch::Sender<bool>,
    leads_until: Option<Instant>,
    heads: Heads,
}

/// Tells whose turn it is, by what one process saw of the Lease.
struct Observer {
    identity: String,
    seen: Option<Seen>,
}

/// A state of the Lease, and when this process first saw it.
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    lasts: Duration,
    at: Instant,
}

/// The audit heads as last read and as last published.
#[derive(Default)]
struct Heads {
    published: Option<String>,
    /// What the next renewal publishes.
    due: Option<String>,
    read_at: Option<Instant>,
}

/// What one look at the Lease says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nobody holds it, its holder is gone, or this is the holder.
    Take,
    /// Somebody else holds it.
    Wait,
}

impl Candidate {
    /// A candidate that tells through `leads` whether it leads.
    pub fn new(
        client: Client,
        vault: Vault,
        settings: &KubernetesSettings,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        leads: watch::Sender<bool>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, settings.namespace.as_str()),
            vault,
            name: settings.lease.clone(),
            observer: Observer {
                identity: settings.pod_name.clone(),
                seen: None,
            },
            clock,
            metrics,
            leads,
            leads_until: None,
            heads: Heads::default(),
        }
    }

    /// Campaigns, renews and publishes until `shutdown`; then gives the Lease back.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut failing = false;
        loop {
            match self.look_in_time().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        tracing::warn!(problem = with_causes(&error), "the Lease is out of reach");
                    }
                    failing = true;
                }
            }
            self.leads_until = self.leads_until.filter(|until| *until > Instant::now());
            if self.leads_until.is_none() {
                // Another leader may publish newer ones meanwhile.
                self.heads = Heads::default();
            }
            self.tell();
            tokio::select! {
                () = self.pause() => {}
                _ = shutdown.wait_for(|down| *down) => break,
            }
        }
        if self.leads_until.take().is_some() {
            self.tell();
            if let Err(error) = self.give_back().await {
                tracing::warn!(
                    problem = with_causes(&error),
                    "the Lease was not given back"
                );
            }
        }
    }

    fn tell(&self) {
        let leads = self.leads_until.is_some();
        self.metrics.leads.set(i64::from(leads));
        let changed = self.leads.send_if_modified(|told| {
            let changed = *told != leads;
            *told = leads;
            changed
        });
        if changed {
            tracing::info!(lease = self.name, leads, "leadership changed");
        }
    }

    /// One look that ends when a leader's time does.
    async fn look_in_time(&mut self) -> Result<(), LeaseError> {
        match self.leads_until {
            Some(until) => timeout_at(until, self.look())
                .await
                .unwrap_or(Err(LeaseError::NotRenewed)),
            None => self.look().await,
        }
    }

    /// Waits for the next look; a leader reads the audit heads meanwhile, when it is time.
    async fn pause(&mut self) {
        let now = Instant::now();
        let next_look = next_look(now, self.leads_until);
        if self.leads_until.is_some() && timeout_at(next_look, self.read_heads(now)).await.is_err()
        {
            tracing::warn!("the audit heads were not read in time");
        }
        sleep_until(next_look).await;
    }

    async fn look(&mut self) -> Result<(), LeaseError> {
        let lease = self.read().await?;
        let spec = lease.spec.clone().unwrap_or_default();
        let now = Instant::now();
        if self.observer.turn(&spec, now) == Turn::Wait {
            self.leads_until = None;
            return Ok(());
        }
        let heads = self.heads.due.clone();
        let renewed = renewed(lease, &self.observer.identity, self.now(), heads.clone());
        let written = self.write(&renewed).await?;
        if !written {
            // Somebody else was faster: the next look says who.
            return Ok(());
        }
        self.leads_until = Some(now + RENEW_WITHIN);
        if heads.is_some() {
            self.heads.published = heads;
            self.heads.due = None;
        }
        Ok(())
    }

    fn now(&self) -> MicroTime {
        MicroTime(Timestamp::from_millisecond(self.clock.now_ms()).unwrap_or_default())
    }

    /// Reads the audit heads when it is time. The next renewal publishes them if they changed.
    async fn read_heads(&mut self, now: Instant) {
        let due = self
            .heads
            .read_at
            .is_none_or(|at| now.duration_since(at) >= HEADS_EVERY);
        if !due {
            return;
        }
        self.heads.read_at = Some(now);
        let heads = match self.vault.audit_heads().await {
            Ok(heads) => heads,
            Err(error) => {
                tracing::warn!(
                    problem = with_causes(&error),
                    "the audit heads were not read"
                );
                return;
            }
        };
        self.heads.due =
            heads_text(&heads).filter(|text| self.heads.published.as_ref() != Some(text));
    }

    async fn read(&self) -> Result<Lease, LeaseError> {
        timed(TIMEOUT, self.api.get(&self.name))
            .await
            .map_err(|source| LeaseError::Read {
                name: self.name.clone(),
                source,
            })
    }

    /// Whether the Lease was as it was read.
    async fn write(&self, lease: &Lease) -> Result<bool, LeaseError> {
        let params = PostParams::default();
        let replace = self.api.replace(&self.name, &params, lease);
        match timed(TIMEOUT, replace).await {
            Ok(_) => Ok(true),
            Err(RequestError::Api(kube::Error::Api(status))) if status.is_conflict() => Ok(false),
            Err(source) => Err(LeaseError::Write {
                name: self.name.clone(),
                source,
            }),
        }
    }

    async fn give_back(&self) -> Result<(), LeaseError> {
        let mut lease = self.read().await?;
        let Some(spec) = lease.spec.as_mut() else {
            return Ok(());
        };
        if spec.holder_identity.as_deref() == Some(self.observer.identity.as_str()) {
            spec.holder_identity = None;
            spec.renew_time = None;
            spec.acquire_time = None;
            self.write(&lease).await?;
        }
        Ok(())
    }
}

/// When to look again: soon, and for a leader not after its time is over.
fn next_look(now: Instant, leads_until: Option<Instant>) -> Instant {
    let soon = now + LOOK_EVERY;
    leads_until.map_or(soon, |until| until.min(soon))
}

impl Observer {
    /// Whether it is this candidate's turn; remembers when a state was first seen.
    fn turn(&mut self, spec: &LeaseSpec, now: Instant) -> Turn {
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            self.seen = None;
            return Turn::Take;
        }
        let lasts = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(LEASE_LASTS, Duration::from_secs);
        match &self.seen {
            Some(seen) if seen.holder == holder && seen.renewed == spec.renew_time => {
                if now.duration_since(seen.at) > seen.lasts {
                    return Turn::Take;
                }
            }
            _ => {
                self.seen = Some(Seen {
                    holder,
                    renewed: spec.renew_time.clone(),
                    lasts,
                    at: now,
                });
            }
        }
        Turn::Wait
    }
}

/// The Lease as it is when `identity` holds it.
fn renewed(mut lease: Lease, identity: &str, now: MicroTime, heads: Option<String>) -> Lease {
    let spec = lease.spec.take().unwrap_or_default();
    let mine = spec.holder_identity.as_deref() == Some(identity);
    let transitions = spec.lease_transitions.unwrap_or(0);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_LASTS.as_secs()).ok(),
        acquire_time: if mine {
            spec.acquire_time
        } else {
            Some(now.clone())
        },
        renew_time: Some(now),
        lease_transitions: Some(if mine {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..LeaseSpec::default()
    });
    if let Some(heads) = heads {
        lease
            .metadata
            .annotations
            .get_or_insert_with(BTreeMap::new)
            .insert(AUDIT_HEADS_ANNOTATION.to_owned(), heads);
    }
    lease
}

/// The published form of a head.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PublishedHead<'a> {
    chain: &'a str,
    epoch: i64,
    sequence: i64,
    mac: &'a str,
}

/// The heads as the annotation has them; `None` when they do not fit.
fn heads_text(heads: &[AuditHead]) -> Option<String> {
    let published: Vec<_> = heads
        .iter()
        .map(|head| PublishedHead {
            chain: &head.chain,
            epoch: head.epoch,
            sequence: head.sequence,
            mac: &head.mac,
        })
        .collect();
    let text = serde_json::to_string(&published).ok()?;
    if text.len() > HEADS_BYTES_MAX {
        tracing::error!(
            chains = heads.len(),
            "the audit heads do not fit into an annotation: they are in the log alone"
        );
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::MasterKey;
    use crate::vault::VaultSettings;

    struct StillClock;

    impl Clock for StillClock {
        fn now_ms(&self) -> i64 {
            1_795_000_000_000
        }
    }

    /// A candidate that says that it leads, of an API server that takes every request and answers none.
    async fn leader_of_a_silent_server(
        folder: &tempfile::TempDir,
    ) -> (Candidate, tokio::net::TcpListener) {
        // Another test may have done it.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let settings = VaultSettings {
            database: format!("sqlite:{}", folder.path().join("barekey.db").display()),
            master_key: MasterKey::from_file_content(&[7; 32]).unwrap(),
            accepted_risks: Vec::new(),
            value_bytes_max: 1024,
            pod_identity: None,
        };
        let candidate = Candidate {
            api: Api::namespaced(client, "barekey"),
            vault: Vault::open(settings, Arc::new(StillClock)).await.unwrap(),
            name: "barekey".to_owned(),
            observer: observer(),
            clock: Arc::new(StillClock),
            metrics: Metrics::default(),
            leads: watch::Sender::new(true),
            leads_until: None,
            heads: Heads::default(),
        };
        (candidate, silent)
    }

    #[tokio::test]
    async fn a_leader_that_gets_no_answer_steps_down_when_its_time_is_over() {
        let folder = tempfile::TempDir::new().unwrap();
        let (mut candidate, _silent) = leader_of_a_silent_server(&folder).await;
        let mut leads = candidate.leads.subscribe();
        let (_up, shutdown) = watch::channel(false);
        candidate.leads_until = Some(Instant::now() + Duration::from_millis(200));
        let running = tokio::spawn(candidate.run(shutdown));
        let told = tokio::time::timeout(TIMEOUT / 2, leads.wait_for(|leads| !*leads)).await;
        assert!(told.is_ok(), "it still leads after its time");
        running.abort();
    }

    #[tokio::test]
    async fn a_leader_reads_the_heads_in_the_pause_and_publishes_what_changed_alone() {
        let folder = tempfile::TempDir::new().unwrap();
        let (mut candidate, _silent) = leader_of_a_silent_server(&folder).await;
        candidate.leads_until = Some(Instant::now() + Duration::from_secs(1));
        candidate.pause().await;
        candidate.heads.published = candidate.heads.due.take();
        assert!(candidate.heads.published.is_some(), "nothing was read");
        candidate.heads.read_at = None;
        candidate.read_heads(Instant::now()).await;
        assert!(candidate.heads.read_at.is_some());
        assert_eq!(candidate.heads.due, None);
    }

    #[test]
    fn a_leader_looks_again_before_its_time_is_over_and_everybody_else_soon() {
        let now = Instant::now();
        assert_eq!(next_look(now, None), now + LOOK_EVERY);
        let until = now + Duration::from_secs(8);
        assert_eq!(next_look(now, Some(until)), now + LOOK_EVERY);
        let until = now + Duration::from_secs(1);
        assert_eq!(next_look(now, Some(until)), until);
    }

    fn observer() -> Observer {
        Observer {
            identity: "barekey-0".to_owned(),
            seen: None,
        }
    }

    fn held_by(holder: &str, renewed: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(renewed.parse().unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn an_empty_lease_and_one_of_the_own_name_are_taken_at_once() {
        let now = Instant::now();
        assert_eq!(observer().turn(&LeaseSpec::default(), now), Turn::Take);
        let own = held_by("barekey-0", "2020-01-01T00:00:00Z");
        assert_eq!(observer().turn(&own, now), Turn::Take);
        let empty = held_by("", "2020-01-01T00:00:00Z");
        assert_eq!(observer().turn(&empty, now), Turn::Take);
    }

    #[test]
    fn a_lease_of_another_is_taken_when_it_was_not_renewed_for_its_length_as_seen_here() {
        let mut observer = observer();
        let now = Instant::now();
        // However old the holder's own clock says that the renewal is.
        let first = held_by("barekey-1", "2020-01-01T00:00:00Z");
        assert_eq!(observer.turn(&first, now), Turn::Wait);
        let later = now + Duration::from_secs(15);
        assert_eq!(observer.turn(&first, later), Turn::Wait);
        let second = held_by("barekey-1", "2020-01-01T00:00:02Z");
        let later = now + Duration::from_secs(16);
        assert_eq!(observer.turn(&second, later), Turn::Wait);
        let later = now + Duration::from_secs(31);
        assert_eq!(observer.turn(&second, later), Turn::Wait);
        let later = now + Duration::from_secs(32);
        assert_eq!(observer.turn(&second, later), Turn::Take);
    }

    #[test]
    fn a_leader_gives_up_before_another_may_take_over() {
        // It steps down on time whatever it waits for, and a request that was under way then is over as well.
        assert!(RENEW_WITHIN + TIMEOUT < LEASE_LASTS);
        // A look without any answer costs no lead: there is time for another one.
        assert!(LOOK_EVERY + TIMEOUT + LOOK_EVERY < RENEW_WITHIN);
    }

    #[test]
    fn taking_over_counts_a_transition_and_renewing_does_not() {
        let now = MicroTime("2026-01-01T00:00:00Z".parse().unwrap());
        let first = renewed(Lease::default(), "barekey-0", now.clone(), None);
        let spec = first.spec.clone().unwrap();
        assert_eq!(spec.lease_transitions, Some(1));
        assert_eq!(spec.acquire_time, Some(now));
        assert_eq!(first.metadata.annotations, None);
        let later = MicroTime("2026-01-01T00:00:02Z".parse().unwrap());
        let second = renewed(first, "barekey-0", later.clone(), Some("[]".to_owned()));
        let after = second.spec.unwrap();
        assert_eq!(after.lease_transitions, Some(1));
        assert_eq!(after.acquire_time, spec.acquire_time);
        assert_eq!(after.renew_time, Some(later));
        assert_eq!(
            second.metadata.annotations.unwrap()[AUDIT_HEADS_ANNOTATION],
            "[]"
        );
    }

    #[test]
    fn heads_are_published_as_json_with_their_chain() {
        let head = AuditHead {
            chain: "org_1".to_owned(),
            epoch: 1,
            sequence: 12,
            mac: "00ff".to_owned(),
        };
        assert_eq!(
            heads_text(&[head]).unwrap(),
            r#"[{"chain":"org_1","epoch":1,"sequence":12,"mac":"00ff"}]"#
        );
    }
}
