//! The audit trail as it is written: the canonical text of a record, and the chain of MACs.

use crate::crypto::envelope::push_field;
use crate::crypto::keys::AuditKey;
use crate::domain::audit::AuditEvent;
use crate::domain::names::OrganizationId;
use crate::storage::audit::{HeadRow, RecordRow};

/// The chain of what belongs to no organization.
pub(crate) const INSTALLATION_CHAIN: &str = "installation";

/// Which chain a record goes to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Chain {
    /// An organization's.
    Organization(OrganizationId),
    /// What belongs to none.
    Installation,
}

impl Chain {
    /// As stored.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Organization(id) => id.as_str(),
            Self::Installation => INSTALLATION_CHAIN,
        }
    }
}

/// The canonical text: every field after its length; an absent one is told from an empty one by a length of its own.
fn canonical(record: &RecordRow, text: &mut Vec<u8>) {
    text.clear();
    let mut field = |value: &str| push_field(text, value.as_bytes());
    field(&record.chain);
    field(&record.sequence.to_string());
    field(&record.epoch.to_string());
    field(&record.at.to_string());
    for value in [
        &record.action,
        &record.actor_kind,
        &record.actor_id,
        &record.actor_name,
        &record.names,
        &record.source,
        &record.ip,
        &record.user_agent,
        &record.request_id,
        &record.outcome,
        &record.detail,
    ] {
        field(value);
    }
    for value in [&record.project, &record.stage] {
        match value {
            Some(value) => push_field(text, value.as_bytes()),
            None => text.extend_from_slice(&u32::MAX.to_be_bytes()),
        }
    }
}

/// The MAC that a record should have, `previous` being the one before it.
pub(crate) fn derive_mac(key: &AuditKey, record: &RecordRow, previous: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(512);
    canonical(record, &mut text);
    key.derive_record_mac(&text, previous).to_vec()
}

/// Appends an event to the chain that ends in `head`, and moves the head.
pub(crate) fn append(
    key: &AuditKey,
    head: &mut HeadRow,
    epoch: i64,
    now_ms: i64,
    event: AuditEvent,
) -> RecordRow {
    let mut record = RecordRow {
        chain: head.chain.clone(),
        sequence: head.sequence + 1,
        epoch,
        at: now_ms,
        action: event.action.as_str().to_owned(),
        actor_kind: event.actor.kind.to_owned(),
        actor_id: event.actor.id,
        actor_name: event.actor.name,
        project: event.project,
        stage: event.stage,
        names: event.names.join("\n"),
        source: event.origin.source.as_str().to_owned(),
        ip: event.origin.ip,
        user_agent: event.origin.user_agent,
        request_id: event.origin.request_id,
        outcome: event.outcome.as_str().to_owned(),
        detail: event.detail,
        mac: Vec::new(),
    };
    record.mac = derive_mac(key, &record, &head.mac);
    head.sequence = record.sequence;
    head.epoch = epoch;
    head.mac.clone_from(&record.mac);
    record
}
