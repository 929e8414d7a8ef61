//! Writing variables: every check first, then seals, then rows, operation and record, all in one transaction.
use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;

use super::cache::STAGE_BYTES_MAX;
use super::environments::{facts_of, is_sealed, place};
use super::projects::organization_of;
use super::reads::{chain_of, refusal_for_absent, refused_names, stage_event};
use super::records::Chain;
use super::variables::{Target, Write, WriteError, WriteMode, Written};
use super::writer::{Change, Verdict, Work};
use super::{Core, Unavailable, Vault, make_id, no_random};
use crate::crypto::keys::derive_digest_hex;
use crate::domain::access::{Caller, Refusal, StageAct, StageFacts, TokenCaller, may_write};
use crate::domain::audit::{Action, Origin, Outcome};
use crate::domain::names::{OperationId, StageId, VariableName};
use crate::domain::operation::OperationKind;
use crate::domain::plaintext::Plaintext;
use crate::domain::variable::{DeclaredType, Kind, Visibility};
use crate::storage::variables::{OperationRow, StageSize, VariableRow};
use crate::storage::{self, Batch};

/// How many variables a stage may hold, and how many names one write may have.
pub(crate) const STAGE_VARIABLES_MAX: usize = 4096;

impl Vault {
    /// Writes and deletes in one transaction.
    ///
    /// # Errors
    /// [`WriteError`]; nothing is written then. Refusals are audited.
    pub async fn write(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        write: Write,
    ) -> Result<Written, WriteError> {
        let names: Vec<VariableName> = write.names().cloned().collect();
        let checked = organization_of(caller, target.organization.as_ref());
        let token = match checked {
            Ok(token) => token.clone(),
            Err(refusal) => {
                self.record_refused_write(caller, origin, target, &names, &refusal)
                    .await?;
                return Err(refusal.into());
            }
        };
        let change = WriteVariables {
            core: Arc::clone(&self.0.core),
            caller: caller.clone(),
            token: token.clone(),
            origin: origin.clone(),
            target: target.clone(),
            write,
        };
        let answer = match change.problem() {
            // Whether the caller may write comes before whether the request is right.
            Some(problem) => {
                let mut db = self.reader().await?;
                let stage = storage::projects::stage_by_slugs(
                    &mut db,
                    &token.organization,
                    &target.project,
                    &target.stage,
                )
                .await
                .map_err(Unavailable::from)?;
                drop(db);
                let answer = match (self.ended(&token).await?, stage) {
                    (Some(refusal), _) => Err(refusal.into()),
                    (None, None) => Err(WriteError::NoEnvironment {
                        project: target.project.clone(),
                        stage: target.stage.clone(),
                    }),
                    (None, Some(stage)) => match may_write(caller, &facts_of(&stage)) {
                        Ok(_) => Err(WriteError::Invalid { problem }),
                        Err(refusal) => Err(refusal.into()),
                    },
                };
                if let Err(WriteError::Refused(refusal)) = &answer {
                    self.record_refused_write(caller, origin, target, &names, refusal)
                        .await?;
                }
                answer
            }
            None => self.0.queue.change(change).await?,
        };
        if let Err(WriteError::NoEnvironment { .. }) = &answer {
            let refusal = match self.ended(&token).await? {
                Some(ended) => Some(ended),
                None => refusal_for_absent(self, &token, target, StageAct::Write).await?,
            };
            if let Some(refusal) = refusal {
                self.record_refused_write(caller, origin, target, &names, &refusal)
                    .await?;
                return Err(refusal.into());
            }
        }
        answer
    }

    async fn record_refused_write(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        names: &[VariableName],
        refusal: &Refusal,
    ) -> Result<(), Unavailable> {
        let (names, detail) = refused_names(names.iter(), refusal);
        let event = stage_event(
            Action::WriteRefused,
            caller.actor(),
            (&target.project, &target.stage),
            names,
            origin,
            Outcome::Refused,
            detail,
        );
        self.record_event(chain_of(caller), event).await
    }
}

impl Write {
    fn names(&self) -> impl Iterator<Item = &VariableName> {
        self.entries
            .iter()
            .map(|entry| &entry.name)
            .chain(&self.deletes)
    }
}

struct WriteVariables {
    core: Arc<Core>,
    caller: Caller,
    token: TokenCaller,
    origin: Origin,
    target: Target,
    write: Write,
}

impl WriteVariables {
    /// What is wrong with the request whatever the stage holds.
    fn problem(&self) -> Option<String> {
        let write = &self.write;
        if write.entries.is_empty() && write.deletes.is_empty() {
            return Some("there is nothing to do: give entries or deletes".to_owned());
        }
        if write.names().count() > STAGE_VARIABLES_MAX {
            return Some(format!(
                "one write may name {STAGE_VARIABLES_MAX} variables and this one names {}: write them in several parts",
                write.names().count()
            ));
        }
        let mut names = BTreeSet::new();
        if let Some(name) = write.names().find(|name| !names.insert(*name)) {
            return Some(format!(
                "the variable {name} is named twice: name it once across entries and deletes"
            ));
        }
        let bytes_max = self.core.value_bytes_max;
        write.entries.iter().find_map(|entry| {
            let (name, value) = (&entry.name, &entry.value);
            if value.len() > bytes_max {
                return Some(format!(
                    "the value of {name} has {} bytes and may have {bytes_max}",
                    value.len()
                ));
            }
            if value.reveal().contains(&0) {
                return Some(format!(
                    "the value of {name} has a NUL byte, which no environment variable can hold: encode it, in base64 say"
                ));
            }
            if value.reveal_text().is_none() {
                return Some(format!(
                    "the value of {name} is not UTF-8: encode it, in base64 say"
                ));
            }
            None
        })
    }

    fn refused(&self, work: &mut Work, refusal: Refusal) -> Verdict<Result<Written, WriteError>> {
        self.record_refused(work, Action::WriteRefused, &refusal);
        Verdict::TakeBack(Err(refusal.into()))
    }

    /// What a write comes to that cannot be sealed, recorded as a read is that cannot be opened.
    fn altered(&self, work: &mut Work, what: String) -> Verdict<Result<Written, WriteError>> {
        let error = WriteError::Altered { what };
        self.record_refused(work, Action::EnvelopeRefused, &error);
        Verdict::TakeBack(Err(error))
    }

    fn record_refused(&self, work: &mut Work, action: Action, why: &impl Display) {
        let (names, detail) = refused_names(self.write.names(), why);
        let event = stage_event(
            action,
            self.caller.actor(),
            (&self.target.project, &self.target.stage),
            names,
            &self.origin,
            Outcome::Refused,
            detail,
        );
        work.events.push((self.chain(), event));
    }
}

impl Change for WriteVariables {
    type Answer = Result<Written, WriteError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.token.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let target = &self.target;
        let found = storage::projects::stage_by_slugs(
            &mut work.db,
            &self.token.organization,
            &target.project,
            &target.stage,
        )
        .await?;
        let absent = || WriteError::NoEnvironment {
            project: target.project.clone(),
            stage: target.stage.clone(),
        };
        let Some(stage) = found else {
            return Ok(Verdict::TakeBack(Err(absent())));
        };
        let Some(revision) =
            storage::projects::raise_revision(&mut work.db, &stage.id, work.now_ms).await?
        else {
            return Ok(Verdict::TakeBack(Err(absent())));
        };
        // The stage is locked from here on: what decides is read again.
        let Some(stage) = storage::projects::stage_by_id(&mut work.db, &stage.id).await? else {
            return Ok(Verdict::TakeBack(Err(absent())));
        };
        let epochs = storage::credentials::token_epochs(&mut work.db, &[&self.token.token]).await?;
        if epochs
            .first()
            .is_none_or(|(_, epoch)| *epoch != self.token.epoch)
        {
            return Ok(self.refused(work, Refusal::CredentialEnded));
        }
        let facts = facts_of(&stage);
        if let Err(refusal) = may_write(&self.caller, &facts) {
            return Ok(self.refused(work, refusal));
        }
        if !is_sealed(&self.core, &stage) {
            let what = format!("the stage {}/{}", target.project, target.stage);
            return Ok(self.altered(work, what));
        }
        let planned = match self.plan(work, &facts.stage).await? {
            Ok(planned) => planned,
            Err(problem) => {
                return Ok(Verdict::TakeBack(Err(WriteError::Invalid { problem })));
            }
        };
        if planned.entries.is_empty() && planned.written.deleted.is_empty() {
            // Deletes of names that are not there: nothing is what was asked.
            return Ok(Verdict::TakeBack(Ok(planned.written)));
        }
        self.apply(work, &facts, revision, planned).await
    }
}

/// What is wrong with what a stage would hold: whole stages are read and listed at once.
fn too_large(size: StageSize) -> Option<String> {
    let StageSize {
        variables,
        sealed_bytes,
    } = size;
    if usize::try_from(variables).is_ok_and(|count| count > STAGE_VARIABLES_MAX) {
        return Some(format!(
            "the stage would hold {variables} variables and may hold {STAGE_VARIABLES_MAX}: delete some, or use a second stage"
        ));
    }
    if sealed_bytes > STAGE_BYTES_MAX {
        return Some(format!(
            "the values of the stage would take {sealed_bytes} bytes once sealed and may take {STAGE_BYTES_MAX}: delete some, or use a second stage"
        ));
    }
    None
}

/// What a write comes to, after all checks and before anything is sealed.
struct Planned<'a> {
    entries: Vec<PlannedEntry<'a>>,
    written: Written,
}

struct PlannedEntry<'a> {
    name: &'a VariableName,
    kind: Kind,
    declared_type: DeclaredType,
    visibility: Visibility,
    version: i64,
    created_at: i64,
    value: Plaintext,
}

impl WriteVariables {
    /// Every check that needs what the stage holds.
    async fn plan(
        &self,
        work: &mut Work,
        stage: &StageId,
    ) -> Result<Result<Planned<'_>, String>, storage::Error> {
        let names: Vec<&VariableName> = self.write.names().collect();
        let db = &mut work.db;
        let found = storage::variables::newest_variables_by_name(db, stage, &names).await?;
        // One that was altered is there too: it may be written anew, or deleted.
        let altered: BTreeSet<String> = found.altered.into_iter().collect();
        let present: HashMap<VariableName, VariableRow> = found
            .whole
            .into_iter()
            .map(|row| (row.name.clone(), row))
            .collect();
        let is_there =
            |name: &VariableName| present.contains_key(name) || altered.contains(name.as_str());
        let versions: HashMap<VariableName, i64> =
            storage::variables::versions_by_name(db, stage, &names)
                .await?
                .into_iter()
                .collect();
        let mut written = Written::default();
        let mut entries = Vec::with_capacity(self.write.entries.len());
        for entry in &self.write.entries {
            let stored = present.get(&entry.name);
            if is_there(&entry.name) && self.write.mode == WriteMode::CreateOnly {
                return Ok(Err(format!(
                    "the variable {} exists already: use mode upsert to replace it",
                    entry.name
                )));
            }
            let declared_type = entry
                .declared_type
                .or(stored.map(|row| row.declared_type))
                .unwrap_or(DeclaredType::String);
            let text = entry.value.reveal_text().unwrap_or_default();
            let value = match declared_type.normalise(text) {
                Ok(normalised) => Plaintext::from(normalised),
                Err(error) => return Ok(Err(format!("{}: {error}", entry.name))),
            };
            if value.len() > self.core.value_bytes_max {
                return Ok(Err(format!(
                    "the value of {} has {} bytes once normalised and may have {}",
                    entry.name,
                    value.len(),
                    self.core.value_bytes_max
                )));
            }
            if is_there(&entry.name) {
                written.updated.push(entry.name.clone());
            } else {
                written.created.push(entry.name.clone());
            }
            entries.push(PlannedEntry {
                name: &entry.name,
                kind: entry.kind,
                declared_type,
                visibility: entry
                    .visibility
                    .or(stored.map(|row| row.visibility))
                    .unwrap_or(Visibility::Private),
                version: versions.get(&entry.name).copied().unwrap_or(0) + 1,
                created_at: stored.map_or(work.now_ms, |row| row.created_at),
                value,
            });
        }
        written.deleted = self
            .write
            .deletes
            .iter()
            .filter(|name| is_there(name))
            .cloned()
            .collect();
        written.created.sort();
        written.updated.sort();
        written.deleted.sort();
        Ok(Ok(Planned { entries, written }))
    }

    /// Seals, stores, records.
    async fn apply(
        &self,
        work: &mut Work,
        facts: &StageFacts,
        revision: i64,
        planned: Planned<'_>,
    ) -> Result<Verdict<Result<Written, WriteError>>, storage::Error> {
        let Planned { entries, written } = planned;
        let id: OperationId = make_id("op")?;
        let mut rows = Vec::with_capacity(entries.len());
        if !entries.is_empty() {
            let stored = storage::projects::active_data_key(&mut work.db, &facts.project)
                .await?
                .ok_or_else(|| storage::Error::Unexpected {
                    what: "the project has no data key".to_owned(),
                })?;
            let unwrapped = self.core.master_key.unwrap_data_key(
                &stored.lineage,
                stored.version,
                &stored.kek_id,
                &stored.wrapped,
            );
            let Ok(key) = unwrapped else {
                let what = format!("the data key of the project {}", self.target.project);
                return Ok(self.altered(work, what));
            };
            for entry in entries {
                let mut row = VariableRow {
                    name: entry.name.clone(),
                    version: entry.version,
                    created_at: entry.created_at,
                    updated_at: work.now_ms,
                    kind: entry.kind,
                    declared_type: entry.declared_type,
                    visibility: entry.visibility,
                    envelope_a: String::new(),
                    lineage: stored.lineage.clone(),
                    dek_version: stored.version,
                };
                row.envelope_a = key
                    .seal_value(place(facts, &row), &entry.value)
                    .map_err(no_random)?;
                rows.push(row);
            }
        }
        storage::variables::append_versions(&mut work.db, &facts.stage, &id, &rows).await?;
        let deleted: Vec<_> = written.deleted.iter().collect();
        storage::variables::delete_variables(&mut work.db, &facts.stage, &deleted, work.now_ms)
            .await?;
        if !rows.is_empty() {
            let size = storage::variables::stage_size(&mut work.db, &facts.stage).await?;
            if let Some(problem) = too_large(size) {
                return Ok(Verdict::TakeBack(Err(WriteError::Invalid { problem })));
            }
        }
        let actor = self.caller.actor();
        let touched = [&written.created, &written.updated, &written.deleted];
        let names: Vec<String> = touched
            .into_iter()
            .flatten()
            .map(ToString::to_string)
            .collect();
        let operation = OperationRow {
            id: &id,
            revision,
            kind: if !written.updated.is_empty() {
                OperationKind::Update
            } else if written.created.is_empty() {
                OperationKind::Delete
            } else {
                OperationKind::Create
            },
            actor: &actor,
            names: &names.join("\n"),
            created_at: work.now_ms,
        };
        storage::variables::insert_operation(&mut work.db, &facts.stage, &operation).await?;
        let organization = &facts.organization;
        let mut batch = Batch::default();
        storage::credentials::touch_token(&mut batch, organization, &self.token.token, work.now_ms);
        let units = i64::try_from(rows.len() + written.deleted.len()).unwrap_or(i64::MAX);
        storage::usage::add_usage(&mut batch, organization, "writes", units, work.now_ms);
        work.db.run_batch(batch).await?;
        let mut detail = Vec::with_capacity(rows.len() + written.deleted.len());
        for row in &rows {
            let digest = derive_digest_hex(row.envelope_a.as_bytes());
            detail.push(format!("{} v{} {digest}", row.name, row.version));
        }
        for name in &written.deleted {
            detail.push(format!("{name} deleted"));
        }
        let event = stage_event(
            Action::VariablesWritten,
            actor,
            (&self.target.project, &self.target.stage),
            names,
            &self.origin,
            Outcome::Allowed,
            detail.join("\n"),
        );
        work.events.push((self.chain(), event));
        work.changed_stages.push(facts.stage.clone());
        Ok(Verdict::Keep(Ok(written)))
    }
}
