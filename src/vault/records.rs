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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::domain::access::Actor;
    use crate::domain::audit::{Action, Origin, Outcome, Source};

    fn text(record: &Value, field: &str) -> String {
        record[field].as_str().unwrap().to_owned()
    }

    fn event(record: &Value) -> AuditEvent {
        let maybe_text = |field: &str| record[field].as_str().map(str::to_owned);
        AuditEvent {
            action: Action::ALL
                .into_iter()
                .find(|action| action.as_str() == record["action"])
                .unwrap(),
            actor: Actor {
                kind: ["administrator", "token"]
                    .into_iter()
                    .find(|kind| *kind == record["actorKind"])
                    .unwrap(),
                id: text(record, "actorId"),
                name: text(record, "actorName"),
            },
            project: maybe_text("project"),
            stage: maybe_text("stage"),
            names: record["names"]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| name.as_str().unwrap().to_owned())
                .collect(),
            origin: Origin {
                source: [Source::Admin, Source::Api]
                    .into_iter()
                    .find(|source| source.as_str() == record["source"])
                    .unwrap(),
                ip: text(record, "ip"),
                user_agent: text(record, "userAgent"),
                request_id: text(record, "requestId"),
            },
            outcome: [Outcome::Allowed, Outcome::Refused]
                .into_iter()
                .find(|outcome| outcome.as_str() == record["outcome"])
                .unwrap(),
            detail: text(record, "detail"),
        }
    }

    #[test]
    fn records_have_the_frozen_text_and_are_chained_by_the_frozen_macs() {
        let vector: Value =
            serde_json::from_str(include_str!("../../tests/vectors/audit-record-v1.json")).unwrap();
        let key = hex::decode(vector["auditKey"].as_str().unwrap()).unwrap();
        let key = AuditKey::from_slice(&key).unwrap();
        let records = vector["records"].as_array().unwrap();
        assert_eq!(records.len(), 2);
        let mut head = HeadRow {
            chain: text(&records[0], "chain"),
            epoch: 1,
            sequence: 0,
            mac: Vec::new(),
        };
        for expected in records {
            let epoch = expected["epoch"].as_i64().unwrap();
            let at = expected["at"].as_i64().unwrap();
            let record = append(&key, &mut head, epoch, at, event(expected));
            assert_eq!(record.sequence, expected["sequence"].as_i64().unwrap());
            let mut canonical_text = Vec::new();
            canonical(&record, &mut canonical_text);
            assert_eq!(hex::encode(canonical_text), text(expected, "text"));
            assert_eq!(hex::encode(&record.mac), text(expected, "mac"));
            assert_eq!(head.mac, record.mac);
        }
    }
}
