//! What the audit trail keeps as counts a minute: attempts without a known caller, and tokens' reads of `public` values.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Vault;
use super::records::Chain;
use super::writer::{Change, Verdict, Work};
use crate::domain::access::Actor;
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome, Source};
use crate::domain::names::{OrganizationId, ProjectSlug, StageSlug};
use crate::storage;

/// How often counts are recorded.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

/// A stage, as a record names it.
type Place = (OrganizationId, ProjectSlug, StageSlug);

/// What was counted and is not recorded yet.
#[derive(Default)]
pub(crate) struct Counts {
    unknown_callers: AtomicU64,
    public_reads: Mutex<BTreeMap<Place, u64>>,
}

impl Counts {
    fn public_reads(&self) -> MutexGuard<'_, BTreeMap<Place, u64>> {
        self.public_reads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt without a known caller.
    pub(crate) fn add_unknown_callers(&self, count: u64) {
        self.unknown_callers.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts reads of `public` values.
    pub(crate) fn add_public_reads(&self, place: Place, count: u64) {
        *self.public_reads().entry(place).or_default() += count;
    }
}

impl Vault {
    /// Counts an attempt without a known caller; written to the audit trail once a minute.
    pub fn count_unknown_caller(&self) {
        self.0.counts.add_unknown_callers(1);
    }

    /// Records what was counted. What the database does not take is counted on; the writer says why.
    pub(super) async fn record_counts(&self) {
        let counts = &self.0.counts;
        let unknown = counts.unknown_callers.swap(0, Ordering::Relaxed);
        if unknown > 0 {
            let event = count_event(Action::UnknownCallers, nobody(), Outcome::Refused, unknown);
            if self.record_event(Chain::Installation, event).await.is_err() {
                counts.add_unknown_callers(unknown);
            }
        }
        let public_reads = std::mem::take(&mut *counts.public_reads());
        for (place, count) in public_reads {
            let (organization, project, stage) = &place;
            let event = AuditEvent {
                project: Some(project.to_string()),
                stage: Some(stage.to_string()),
                ..count_event(Action::PublicRead, nobody(), Outcome::Allowed, count)
            };
            let chain = Chain::Organization(organization.clone());
            if self.record_event(chain, event).await.is_err() {
                counts.add_public_reads(place, count);
            }
        }
    }
}

/// For how long a request that named itself is remembered, so that its repeat is not counted, in milliseconds: a day.
const REQUEST_KEYS_KEPT_MS: i64 = 86_400_000;

impl Vault {
    /// Forgets the requests that named themselves longer ago than they are remembered. What fails is done a minute later.
    pub(super) async fn forget_request_keys(&self) {
        let before_ms = self.core().clock.now_ms() - REQUEST_KEYS_KEPT_MS;
        loop {
            let Ok(mut db) = self.reader().await else {
                return;
            };
            let found = storage::usage::has_request_keys(&mut db, before_ms).await;
            drop(db);
            if !found.is_ok_and(|found| found) {
                return;
            }
            let forgotten = self.0.queue.change(ForgetRequestKeys { before_ms }).await;
            if forgotten.is_err() {
                // The writer says why.
                return;
            }
        }
    }
}

struct ForgetRequestKeys {
    before_ms: i64,
}

impl Change for ForgetRequestKeys {
    type Answer = ();

    fn chain(&self) -> Chain {
        Chain::Installation
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<()>, storage::Error> {
        storage::usage::delete_request_keys(&mut work.db, self.before_ms).await?;
        Ok(Verdict::Keep(()))
    }
}

/// The actor of what nobody known did, or many did.
pub(super) fn nobody() -> Actor {
    Actor {
        kind: "nobody",
        id: String::new(),
        name: String::new(),
    }
}

/// The record that stands for so many.
pub(super) fn count_event(
    action: Action,
    actor: Actor,
    outcome: Outcome,
    count: u64,
) -> AuditEvent {
    AuditEvent {
        action,
        actor,
        project: None,
        stage: None,
        names: Vec::new(),
        origin: Origin {
            source: Source::Api,
            ip: String::new(),
            user_agent: String::new(),
            request_id: String::new(),
        },
        outcome,
        detail: format!("count={count}"),
    }
}
