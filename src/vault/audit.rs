//! The audit trail: heads to publish, and the check of the chains.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::access_entries::access_text;
use super::credentials::{derive_row_seal, describe};
use super::environments::is_sealed;
use super::projects::{owner_text, stage_text};
use super::records::{INSTALLATION_CHAIN, derive_mac};
use super::{Core, Unavailable, Vault};
use crate::crypto::keys::{derive_digest_hex, derive_hex, same_mac};
use crate::domain::audit::Action;
use crate::domain::names::OrganizationId;
use crate::storage;
use crate::storage::Connection;
use crate::storage::audit::{HeadRow, RecordRow};
use crate::storage::organizations::OrganizationRow;

/// Where a chain ends now. Published outside the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditHead {
    /// The organization's id, or `installation` for what belongs to none.
    pub chain: String,
    /// The epoch of the database: raised by an accepted restore.
    pub epoch: i64,
    /// The sequence of the newest record; 0 for none.
    pub sequence: i64,
    /// The newest record's MAC, in lower-case hex; empty for none.
    pub mac: String,
}

/// What a check of the trail found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditReport {
    /// How many records were read.
    pub records: u64,
    /// Every finding, naming chain and sequence; empty when the trail is whole.
    pub findings: Vec<String>,
}

/// How many records that do not verify are looked at for having changed places.
const REORDERED_MAX: usize = 32;

impl Vault {
    /// The heads of all chains.
    ///
    /// # Errors
    /// [`Unavailable`] when the database cannot be read.
    pub async fn audit_heads(&self) -> Result<Vec<AuditHead>, Unavailable> {
        let mut db = self.reader().await?;
        let heads = storage::audit::heads(&mut db).await?;
        Ok(heads
            .into_iter()
            .map(|head| AuditHead {
                chain: head.chain,
                epoch: head.epoch,
                sequence: head.sequence,
                mac: derive_hex(&head.mac),
            })
            .collect())
    }

    /// Reads every chain and compares it with `published` heads: altered, missing, reordered or cut-off records, and
    /// envelopes, access entries, stages, projects, tokens and the organization's slug that are not what their newest record says.
    ///
    /// What is written while it reads is left for the next time.
    ///
    /// # Errors
    /// [`Unavailable`] when the database cannot be read; what is wrong in it is a finding and no error.
    pub async fn verify_audit(&self, published: &[AuditHead]) -> Result<AuditReport, Unavailable> {
        let mut db = self.reader().await?;
        db.begin_snapshot().await?;
        let report = self.verify_snapshot(&mut db, published).await;
        db.roll_back().await?;
        Ok(report?)
    }

    async fn verify_snapshot(
        &self,
        db: &mut Connection,
        published: &[AuditHead],
    ) -> Result<AuditReport, storage::Error> {
        let heads: BTreeMap<String, HeadRow> = storage::audit::heads(db)
            .await?
            .into_iter()
            .map(|head| (head.chain.clone(), head))
            .collect();
        let mut chains: BTreeSet<String> = heads.keys().cloned().collect();
        chains.extend(storage::audit::chains(db).await?);
        chains.extend(published.iter().map(|head| head.chain.clone()));
        let organizations = storage::organizations::organizations(db).await?;
        chains.extend(
            organizations
                .whole
                .iter()
                .map(|organization| organization.id.to_string()),
        );
        let mut report = AuditReport {
            records: 0,
            findings: altered_rows("organization", &organizations.altered),
        };
        for chain in &chains {
            let published: Vec<&AuditHead> = published
                .iter()
                .filter(|head| head.chain == *chain)
                .collect();
            let told = self
                .verify_chain(db, chain, heads.get(chain), &published, &mut report)
                .await?;
            if chain == INSTALLATION_CHAIN {
                continue;
            }
            match chain.parse::<OrganizationId>() {
                Ok(organization) => {
                    if !organizations.altered.iter().any(|id| id == chain) {
                        let row = organizations
                            .whole
                            .iter()
                            .find(|row| row.id == organization);
                        compare_organization(&organization, row, &told, &mut report.findings);
                    }
                    compare_rows(self.core(), db, &organization, told, &mut report.findings)
                        .await?;
                }
                Err(_) => report
                    .findings
                    .push(format!("chain {chain:?}: no organization has such an id")),
            }
        }
        Ok(report)
    }

    /// Reads one chain; what its records say of the organization's rows.
    async fn verify_chain(
        &self,
        db: &mut Connection,
        chain: &str,
        head: Option<&HeadRow>,
        published: &[&AuditHead],
        report: &mut AuditReport,
    ) -> Result<Told, storage::Error> {
        let key = &self.core().audit_key;
        let mut told = Told::default();
        let mut sequence = 0;
        let mut previous: Vec<u8> = Vec::new();
        let mut refused: Vec<Unverified> = Vec::new();
        let mut refused_count = 0_usize;
        let mut after_gap = false;
        let mut published_at: HashMap<i64, Vec<&AuditHead>> = HashMap::new();
        for head in published {
            published_at.entry(head.sequence).or_default().push(head);
        }
        loop {
            let records = storage::audit::records_after(db, chain, sequence).await?;
            if records.is_empty() {
                break;
            }
            for record in records {
                report.records += 1;
                if record.sequence != sequence + 1 {
                    report.findings.push(match record.sequence - sequence {
                        2 => format!("chain {chain}: record {} is missing", sequence + 1),
                        _ => format!(
                            "chain {chain}: records {} to {} are missing",
                            sequence + 1,
                            record.sequence - 1
                        ),
                    });
                    after_gap = true;
                }
                if !after_gap {
                    let verified = same_mac(&derive_mac(key, &record, &previous), &record.mac);
                    if !verified {
                        refused_count += 1;
                        if refused.len() < REORDERED_MAX {
                            refused.push(Unverified {
                                before: previous.clone(),
                                record: record.clone(),
                            });
                        }
                    }
                }
                // Behind a gap nothing is known of the MAC before; the record itself is the next one's.
                after_gap = false;
                for head in published_at.get(&record.sequence).into_iter().flatten() {
                    if head.mac != derive_hex(&record.mac) {
                        report.findings.push(format!(
                            "chain {chain}: record {} is not the one that was published",
                            record.sequence
                        ));
                    }
                }
                told.take(&record);
                sequence = record.sequence;
                previous.clone_from(&record.mac);
            }
        }
        for unverified in &refused {
            let at = unverified.record.sequence;
            report.findings.push(match original_place(key, &refused, unverified) {
                Some(original) => format!(
                    "chain {chain}: record {at} is out of order: it was written as record {original}"
                ),
                None => format!("chain {chain}: record {at} was altered"),
            });
        }
        if refused_count > refused.len() {
            report.findings.push(format!(
                "chain {chain}: {} more records were altered",
                refused_count - refused.len()
            ));
        }
        match head {
            Some(head) if head.sequence > sequence => report.findings.push(format!(
                "chain {chain}: cut off after record {sequence}: its head is record {}",
                head.sequence
            )),
            Some(head) if head.sequence < sequence => report.findings.push(format!(
                "chain {chain}: its head says {} and there are records up to {sequence}",
                head.sequence
            )),
            Some(head) if !same_mac(&head.mac, &previous) => report
                .findings
                .push(format!("chain {chain}: its head was altered")),
            Some(_) => {}
            None => report
                .findings
                .push(format!("chain {chain}: its head is missing")),
        }
        for head in published {
            if head.sequence > sequence {
                report.findings.push(format!(
                    "chain {chain}: cut off after record {sequence}: record {} was published",
                    head.sequence
                ));
            }
        }
        Ok(told)
    }
}

/// A record whose MAC is not the one that it should have in its place.
struct Unverified {
    /// The MAC of the record that stands before it.
    before: Vec<u8>,
    record: RecordRow,
}

/// Where an unverified record stood when it was written, if it only changed its place with others of them.
fn original_place(
    key: &crate::crypto::keys::AuditKey,
    refused: &[Unverified],
    unverified: &Unverified,
) -> Option<i64> {
    let places = refused.iter().map(|other| other.record.sequence);
    let befores: Vec<&[u8]> = refused
        .iter()
        .flat_map(|other| [other.before.as_slice(), other.record.mac.as_slice()])
        .collect();
    places
        .filter(|place| *place != unverified.record.sequence)
        .find(|place| {
            let mut record = unverified.record.clone();
            record.sequence = *place;
            befores
                .iter()
                .any(|before| same_mac(&derive_mac(key, &record, before), &record.mac))
        })
}

/// A stage, as records name it.
type Place = (String, String);

/// What the newest records say of the rows.
#[derive(Default)]
struct Told {
    /// The organization's slug.
    organization: Option<String>,
    /// For each project: its owner.
    projects: HashMap<String, String>,
    /// For each stage and name: version and digest of the newest envelope.
    values: HashMap<Place, BTreeMap<String, (i64, String)>>,
    /// For each stage: its access entries.
    access: HashMap<Place, String>,
    /// For each stage: its protection, its owner and the resource that declares it.
    stages: HashMap<Place, String>,
    /// For each token: what it is, and whether it is revoked.
    tokens: HashMap<String, (String, bool)>,
}

impl Told {
    fn take(&mut self, record: &RecordRow) {
        let is = |action: Action| record.action == action.as_str();
        let place = || {
            (
                record.project.clone().unwrap_or_default(),
                record.stage.clone().unwrap_or_default(),
            )
        };
        if is(Action::VariablesWritten) {
            let values = self.values.entry(place()).or_default();
            for line in record.detail.lines() {
                let mut words = line.split(' ');
                match (words.next(), words.next(), words.next()) {
                    (Some(name), Some("deleted"), None) => {
                        values.remove(name);
                    }
                    (Some(name), Some(version), Some(digest)) => {
                        let version = version.strip_prefix('v').and_then(|text| text.parse().ok());
                        let version = version.unwrap_or(0);
                        values.insert(name.to_owned(), (version, digest.to_owned()));
                    }
                    _ => {}
                }
            }
        } else if is(Action::OrganizationCreated) {
            self.organization = Some(record.names.clone());
        } else if is(Action::ProjectCreated) {
            let project = record.project.clone().unwrap_or_default();
            self.projects.insert(project, record.detail.clone());
        } else if is(Action::ProjectDeleted) {
            self.projects
                .remove(record.project.as_deref().unwrap_or_default());
        } else if is(Action::AccessChanged) {
            self.access.insert(place(), record.detail.clone());
        } else if is(Action::StageCreated) || is(Action::StageChanged) {
            self.stages.insert(place(), record.detail.clone());
        } else if is(Action::StageDeleted) {
            let place = place();
            self.values.remove(&place);
            self.access.remove(&place);
            self.stages.remove(&place);
        } else if is(Action::TokenCreated) {
            for token in record.names.lines() {
                self.tokens
                    .insert(token.to_owned(), (record.detail.clone(), false));
            }
        } else if is(Action::TokenRevoked) {
            for token in record.names.lines() {
                if let Some((_, revoked)) = self.tokens.get_mut(token) {
                    *revoked = true;
                }
            }
        }
    }
}

/// The finding of a row that is none of ours any more.
fn altered_row(named: &str) -> String {
    format!("{named}: its row was altered: it holds what was never written")
}

/// A finding for each of those.
fn altered_rows(kind: &str, altered: &[String]) -> Vec<String> {
    let named = altered.iter().map(|name| format!("{kind} {name}"));
    named.map(|named| altered_row(&named)).collect()
}

/// Holds what the records say of an organization against its own row.
fn compare_organization(
    id: &OrganizationId,
    row: Option<&OrganizationRow>,
    told: &Told,
    findings: &mut Vec<String>,
) {
    let named = format!("organization {id}");
    match (row, told.organization.as_deref()) {
        (None, _) => findings.push(format!("{named}: its row is missing")),
        (Some(_), None) => findings.push(format!("{named}: no record says that it was made")),
        (Some(row), Some(slug)) if row.slug.as_str() != slug => findings.push(format!(
            "{named}: its slug is not what its record says ({slug})"
        )),
        (Some(_), Some(_)) => {}
    }
}

/// Holds what the records say against the rows of an organization.
async fn compare_rows(
    core: &Core,
    db: &mut Connection,
    organization: &OrganizationId,
    mut told: Told,
    findings: &mut Vec<String>,
) -> Result<(), storage::Error> {
    let projects = storage::projects::projects(db, organization).await?;
    findings.extend(altered_rows("project", &projects.altered));
    for name in &projects.altered {
        told.projects.remove(name);
    }
    for project in projects.whole {
        let named = format!("project {}", project.slug);
        match told.projects.remove(project.slug.as_str()) {
            None => findings.push(format!("{named}: no record says that it was made")),
            Some(text) if text != owner_text(project.namespace.as_ref()) => findings.push(format!(
                "{named}: its owner is not what its record says ({text})"
            )),
            Some(_) => {}
        }
    }
    let mut missing: Vec<_> = told.projects.into_keys().collect();
    missing.sort();
    for project in missing {
        findings.push(format!("project {project}: its row is missing"));
    }
    let stages = storage::projects::stages_of_organization(db, organization).await?;
    findings.extend(altered_rows("stage", &stages.altered));
    told.stages
        .retain(|(project, stage), _| !stages.altered.contains(&format!("{project}/{stage}")));
    for stage in stages.whole {
        let place = (stage.project_slug.to_string(), stage.slug.to_string());
        let named = format!("stage {}/{}", place.0, place.1);
        if !is_sealed(core, &stage) {
            findings.push(format!(
                "{named}: its row was altered, or moved from elsewhere"
            ));
        }
        match told.stages.remove(&place) {
            None => findings.push(format!("{named}: no record says that it was made")),
            Some(text) => {
                let stored = stage_text(
                    stage.protected,
                    stage.namespace.as_ref(),
                    stage.resource.as_ref(),
                );
                if text != stored {
                    findings.push(format!(
                        "{named}: its protection, owner or resource is not what its newest record says ({text})"
                    ));
                }
            }
        }
        let access = access_text(&storage::projects::access_entries(db, &stage.id).await?);
        if access != told.access.remove(&place).unwrap_or_default() {
            findings.push(format!(
                "{named}: its access entries are not what its newest record says"
            ));
        }
        let mut values = told.values.remove(&place).unwrap_or_default();
        let variables = storage::variables::newest_variables(db, &stage.id).await?;
        for name in &variables.altered {
            values.remove(name);
            findings.push(altered_row(&format!("variable {name} of {named}")));
        }
        for row in variables.whole {
            let named = format!("variable {} of {named}", row.name);
            let digest = derive_digest_hex(row.envelope_a.as_bytes());
            match values.remove(row.name.as_str()) {
                None => findings.push(format!("{named}: no record says that it was written")),
                Some((version, _)) if version != row.version => findings.push(format!(
                    "{named}: version {} was put in the place of version {version}",
                    row.version
                )),
                Some((_, written)) if written != digest => findings.push(format!(
                    "{named}: its envelope is not the one that was written"
                )),
                Some(_) => {}
            }
        }
        for name in values.keys() {
            findings.push(format!("variable {name} of {named}: its row is missing"));
        }
    }
    let mut missing: Vec<_> = told.stages.into_keys().collect();
    missing.sort();
    for (project, stage) in missing {
        findings.push(format!("stage {project}/{stage}: its row is missing"));
    }
    let tokens = storage::credentials::tokens(db, organization).await?;
    findings.extend(altered_rows("token", &tokens.altered));
    for id in &tokens.altered {
        told.tokens.remove(id);
    }
    for token in tokens.whole {
        let named = format!("token {}", token.id);
        match told.tokens.remove(token.id.as_str()) {
            None => findings.push(format!("{named}: no record says that it was made")),
            Some((text, _)) if text != describe(&token) => {
                findings.push(format!("{named}: it is not what its record says ({text})"));
            }
            Some(_) if !same_mac(&derive_row_seal(&core.token_key, &token), &token.seal) => {
                findings.push(format!("{named}: its row was altered"));
            }
            Some((_, revoked)) if revoked != token.revoked_at.is_some() => findings.push(format!(
                "{named}: whether it is revoked is not what its newest record says"
            )),
            Some(_) => {}
        }
    }
    let mut missing: Vec<_> = told.tokens.into_keys().collect();
    missing.sort();
    for token in missing {
        findings.push(format!("token {token}: its row is missing"));
    }
    Ok(())
}
