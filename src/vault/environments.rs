//! Stages as a read needs them: out of memory or out of the database, sealed; and how their values are opened.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use super::access_entries::access_grants;
use super::cache::{Environment, STAGE_BYTES_MAX};
use super::loads::Loads;
use super::variables::Target;
use super::{Core, Unavailable, Vault};
use crate::crypto::envelope::ValuePlace;
use crate::crypto::keys::{DataKey, TokenKey, same_mac};
use crate::domain::access::{StageFacts, TokenCaller};
use crate::domain::names::{LineageId, Namespace, ObjectName, StageId};
use crate::domain::plaintext::Plaintext;
use crate::domain::variable::Arm;
use crate::storage;
use crate::storage::Connection;
use crate::storage::projects::{DataKeyRow, StageRow};
use crate::storage::variables::{StageSize, VariableRow};

/// Opens values, unwrapping each data key once. Made for one request; the keys are wiped with it.
pub(crate) struct Opener<'a> {
    core: &'a Core,
    facts: &'a StageFacts,
    keys: &'a [DataKeyRow],
    sealed: bool,
    unwrapped: HashMap<(&'a LineageId, i64), DataKey>,
}

/// A row does not open.
pub(crate) struct Unopened;

impl<'a> Opener<'a> {
    /// For one request on one stage.
    pub(crate) fn new(core: &'a Core, environment: &'a Environment) -> Self {
        Self {
            core,
            facts: &environment.facts,
            keys: &environment.keys,
            sealed: environment.sealed,
            unwrapped: HashMap::new(),
        }
    }

    /// The value of a row.
    pub(crate) fn open(&mut self, row: &VariableRow) -> Result<Plaintext, Unopened> {
        if !self.sealed {
            return Err(Unopened);
        }
        let stored = self
            .keys
            .iter()
            .find(|key| key.lineage == row.lineage && key.version == row.dek_version)
            .ok_or(Unopened)?;
        let key = match self.unwrapped.entry((&stored.lineage, stored.version)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(
                self.core
                    .master_key
                    .unwrap_data_key(
                        &stored.lineage,
                        stored.version,
                        &stored.kek_id,
                        &stored.wrapped,
                    )
                    .map_err(|_| Unopened)?,
            ),
        };
        key.open_value(place(self.facts, row), &row.envelope_a)
            .map_err(|_| Unopened)
    }
}

/// Opens values where that holds no other request up: much of it with the others moved to another thread.
pub(crate) fn beside_others<T>(opens_much: bool, open: impl FnOnce() -> T) -> T {
    let threads = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    if opens_much && matches!(threads, Ok(RuntimeFlavor::MultiThread)) {
        block_in_place(open)
    } else {
        open()
    }
}

/// Where the value of a row belongs.
pub(crate) fn place<'a>(facts: &'a StageFacts, row: &'a VariableRow) -> ValuePlace<'a> {
    ValuePlace {
        project: &facts.project,
        stage: &facts.stage,
        name: &row.name,
        version: row.version,
        arm: Arm::A,
        kind: row.kind,
        declared_type: row.declared_type,
        visibility: row.visibility,
        chance_or_curve: "",
    }
}

/// The facts of a stored stage.
pub(crate) fn facts_of(stage: &StageRow) -> StageFacts {
    StageFacts {
        organization: stage.organization.clone(),
        project: stage.project.clone(),
        stage: stage.id.clone(),
        protected: stage.protected,
    }
}

/// The seal over whose a stage is and how it is protected. A row without it was altered, or moved to where its reader is.
pub(crate) fn derive_stage_seal(key: &TokenKey, stage: &StageRow) -> Vec<u8> {
    let namespace = stage.namespace.as_ref().map_or("", Namespace::as_str);
    let resource = stage.resource.as_ref().map_or("", ObjectName::as_str);
    key.derive_stage_seal(&[
        stage.id.as_str().as_bytes(),
        stage.slug.as_str().as_bytes(),
        stage.project.as_str().as_bytes(),
        stage.project_slug.as_str().as_bytes(),
        stage.organization.as_str().as_bytes(),
        if stage.protected {
            b"protected"
        } else {
            b"open"
        },
        namespace.as_bytes(),
        resource.as_bytes(),
    ])
    .to_vec()
}

/// Whether a stage's row is as this program wrote it.
pub(crate) fn is_sealed(core: &Core, stage: &StageRow) -> bool {
    same_mac(&derive_stage_seal(&core.token_key, stage), &stage.seal)
}

impl Vault {
    /// The stage that a request names, and whether it came out of memory without a look at the database.
    pub(crate) async fn environment(
        &self,
        token: &TokenCaller,
        target: &Target,
        fresh: bool,
    ) -> Result<Option<(Arc<Environment>, bool)>, Unavailable> {
        let core = &self.0.core;
        let organization = &token.organization;
        if !fresh
            && let Some(held) = core
                .cache
                .environment(organization, &target.project, &target.stage)
        {
            return Ok(Some((held, true)));
        }
        let mut db = self.reader().await?;
        let stage = storage::projects::stage_by_slugs(
            &mut db,
            organization,
            &target.project,
            &target.stage,
        )
        .await?;
        drop(db);
        match stage {
            Some(stage) => Ok(Some((Loads::environment(core, stage).await?, false))),
            None => Ok(None),
        }
    }

    /// The stage of that id, out of memory or out of the database.
    pub(crate) async fn environment_by_id(
        &self,
        stage: &StageId,
        fresh: bool,
    ) -> Result<Option<Arc<Environment>>, Unavailable> {
        let core = &self.0.core;
        if !fresh && let Some(held) = core.cache.environment_by_id(stage) {
            return Ok(Some(held));
        }
        let mut db = self.reader().await?;
        let stage = storage::projects::stage_by_id(&mut db, stage).await?;
        drop(db);
        match stage {
            Some(stage) => Ok(Some(Loads::environment(core, stage).await?)),
            None => Ok(None),
        }
    }

    /// Whether a stage that came out of memory still is as the database has it. Memory lets go of one that is not.
    pub(crate) async fn is_current(&self, environment: &Environment) -> Result<bool, Unavailable> {
        let stage = &environment.stage;
        let mut db = self.reader().await?;
        let epochs = storage::projects::stage_epochs(&mut db, &[&stage.id]).await?;
        let is_current = epochs
            .first()
            .is_some_and(|(_, epoch)| *epoch == stage.epoch);
        if !is_current {
            self.core().cache.forget_past_stage(stage);
        }
        Ok(is_current)
    }
}

/// Everything that a read of a stage needs, as it is stored. The stage's row, with its epoch, was read before the rest: what
/// changed in between is found by that epoch when the read is recorded.
pub(crate) async fn load_environment(
    core: &Core,
    db: &mut Connection,
    stage: StageRow,
    size: StageSize,
) -> Result<Environment, storage::Error> {
    let grants = access_grants(storage::projects::access_entries(db, &stage.id).await?);
    let (variables, altered) = if size.sealed_bytes <= STAGE_BYTES_MAX {
        let rows = storage::variables::newest_variables(db, &stage.id).await?;
        let by_name: BTreeMap<_, _> = rows
            .whole
            .into_iter()
            .map(|row| (row.name.clone(), row))
            .collect();
        (Some(by_name), rows.altered)
    } else {
        (None, Vec::new())
    };
    // After the rows, so that the key of every row is there. What a key that was altered sealed does not open.
    let keys = storage::projects::data_keys(db, &stage.project)
        .await?
        .whole_or_told("data key");
    Ok(Environment {
        facts: facts_of(&stage),
        sealed: is_sealed(core, &stage),
        stage,
        grants,
        variables,
        altered,
        keys,
        room: None,
    })
}
