//! What memory holds: sealed rows, wrapped keys, credentials and access entries *as stored*, bounded in bytes.
//!
//! Nothing here is in the clear. A reader that loads a token while the writer changes one would store what is old already:
//! it notes the [`Cache::generation`] first, and what it loaded is kept only if no change came in between. A stage may be an
//! old one: every read names the epochs that it relied on, and they are held against the database before it is answered.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::OwnedSemaphorePermit;

use crate::domain::access::{AccessGrant, StageFacts};
use crate::domain::names::{
    OrganizationId, ProjectSlug, StageId, StageSlug, TokenId, VARIABLE_NAME_BYTES_MAX, VariableName,
};
use crate::storage::credentials::TokenRow;
use crate::storage::projects::{DataKeyRow, StageRow};
use crate::storage::variables::{StageSize, VariableRow};

/// How many bytes memory may hold.
const CACHE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The largest stage, in bytes of the envelopes of its newest versions: no write makes a larger one, and of one that is
/// larger all the same the envelopes are not held.
pub(crate) const STAGE_BYTES_MAX: i64 = 8 * 1024 * 1024;
/// What an entry costs beside its texts, roughly.
const ENTRY_BYTES: usize = 256;
/// What a stage costs beside its variables, for most stages.
const OTHER_BYTES: usize = 64 * 1024;

/// A stage as it is stored: what a read needs.
#[derive(Debug)]
pub(crate) struct Environment {
    /// The stage.
    pub(crate) stage: StageRow,
    /// What decides about it.
    pub(crate) facts: StageFacts,
    /// Whether its row is as this program wrote it.
    pub(crate) sealed: bool,
    /// Who may read it from inside a cluster.
    pub(crate) grants: Vec<AccessGrant>,
    /// The newest version of every variable, sealed; `None` when they are too many bytes to hold.
    pub(crate) variables: Option<BTreeMap<VariableName, VariableRow>>,
    /// What the rows call themselves that hold something that was never written: they do not open.
    pub(crate) altered: Vec<String>,
    /// The project's wrapped data keys.
    pub(crate) keys: Vec<DataKeyRow>,
    /// Its room in memory; `None` for one that is loaded inside a group, where there is one at a time.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// How many bytes a stage of that size takes at most.
pub(crate) fn bytes_at_most(size: StageSize) -> usize {
    /// What a variable costs beside its envelope: its name is there twice.
    const VARIABLE_BYTES: usize = ENTRY_BYTES + 2 * VARIABLE_NAME_BYTES_MAX;
    let count = |count: i64| usize::try_from(count).unwrap_or(0);
    let sealed = if size.sealed_bytes <= STAGE_BYTES_MAX {
        count(size.sealed_bytes) + count(size.variables) * VARIABLE_BYTES
    } else {
        0
    };
    sealed + OTHER_BYTES
}

impl Environment {
    /// Whether opening all of it takes long enough to hold others up: some 64 KiB take a tenth of a millisecond.
    pub(crate) fn is_large(&self) -> bool {
        const LARGE_BYTES: usize = 64 * 1024;
        self.variables.is_none() || self.bytes() > LARGE_BYTES
    }

    /// How many bytes it takes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let keys = self.keys.len() * (ENTRY_BYTES + 128);
        let grants = self.grants.len() * ENTRY_BYTES;
        let variables = self
            .variables
            .iter()
            .flatten()
            .map(|(name, row)| 2 * name.as_str().len() + row.envelope_a.len() + ENTRY_BYTES);
        let altered = self.altered.iter().map(|name| name.len() + ENTRY_BYTES);
        variables.sum::<usize>() + altered.sum::<usize>() + keys + grants + 2 * ENTRY_BYTES
    }
}

/// One held thing.
struct Slot<T> {
    value: Arc<T>,
    bytes: usize,
    used: AtomicU64,
}

#[derive(Default)]
struct Held {
    tokens: HashMap<Vec<u8>, Slot<Token>>,
    environments: HashMap<String, Slot<Environment>>,
    by_stage: HashMap<StageId, String>,
    bytes: usize,
}

/// A token as it is stored, and when it was read.
pub(crate) struct Token {
    /// The row.
    pub(crate) row: TokenRow,
    /// When it was read, in milliseconds since 1970.
    pub(crate) read_at: i64,
    /// When it was last used, as far as this process knows.
    pub(crate) last_used_at: AtomicI64,
}

/// The cache. All methods are quick; none waits for the database.
#[derive(Default)]
pub(crate) struct Cache {
    held: RwLock<Held>,
    generation: AtomicU64,
    clock: AtomicU64,
}

/// What a stage is held under.
fn environment_key(
    organization: &OrganizationId,
    project: &ProjectSlug,
    stage: &StageSlug,
) -> String {
    // No id or slug holds a slash.
    let mut key = String::with_capacity(
        organization.as_str().len() + project.as_str().len() + stage.as_str().len() + 2,
    );
    key.push_str(organization.as_str());
    key.push('/');
    key.push_str(project.as_str());
    key.push('/');
    key.push_str(stage.as_str());
    key
}

impl Cache {
    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch<T>(&self, slot: &Slot<T>) -> Arc<T> {
        slot.used.store(
            self.clock.fetch_add(1, Ordering::Relaxed),
            Ordering::Relaxed,
        );
        Arc::clone(&slot.value)
    }

    /// Raised by every change of a token; noted before one is loaded.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The stage of those slugs, if it is held.
    pub(crate) fn environment(
        &self,
        organization: &OrganizationId,
        project: &ProjectSlug,
        stage: &StageSlug,
    ) -> Option<Arc<Environment>> {
        let key = environment_key(organization, project, stage);
        self.read()
            .environments
            .get(&key)
            .map(|slot| self.touch(slot))
    }

    /// The stage of that id, if it is held.
    pub(crate) fn environment_by_id(&self, stage: &StageId) -> Option<Arc<Environment>> {
        let held = self.read();
        let key = held.by_stage.get(stage)?;
        held.environments.get(key).map(|slot| self.touch(slot))
    }

    /// The token of that MAC, if it is held.
    pub(crate) fn token(&self, mac: &[u8]) -> Option<Arc<Token>> {
        self.read().tokens.get(mac).map(|slot| self.touch(slot))
    }

    /// Holds a stage, unless a newer one is held.
    pub(crate) fn hold_environment(&self, environment: Arc<Environment>) {
        let bytes = environment.bytes();
        let key = environment_key(
            &environment.facts.organization,
            &environment.stage.project_slug,
            &environment.stage.slug,
        );
        let id = environment.stage.id.clone();
        let mut held = self.write();
        let newer = held.environments.get(&key).is_some_and(|slot| {
            slot.value.stage.id == id && slot.value.stage.epoch > environment.stage.epoch
        });
        if newer {
            return;
        }
        held.by_stage.insert(id.clone(), key.clone());
        let slot = self.slot(environment, bytes);
        if let Some(old) = held.environments.insert(key, slot) {
            held.bytes = held.bytes.saturating_sub(old.bytes);
            if old.value.stage.id != id {
                // Another replica deleted the stage, and made one of the same slug.
                held.by_stage.remove(&old.value.stage.id);
            }
        }
        held.bytes += bytes;
        held.evict();
    }

    /// Holds a token that was loaded at `generation`, unless something was changed since.
    pub(crate) fn hold_token(&self, generation: u64, token: Arc<Token>) {
        let bytes = ENTRY_BYTES * 3 + token.row.name.len();
        let mac = token.row.mac.clone();
        let mut held = self.write();
        if self.generation() != generation {
            return;
        }
        let slot = self.slot(token, bytes);
        if let Some(old) = held.tokens.insert(mac, slot) {
            held.bytes = held.bytes.saturating_sub(old.bytes);
        }
        held.bytes += bytes;
        held.evict();
    }

    fn slot<T>(&self, value: Arc<T>, bytes: usize) -> Slot<T> {
        Slot {
            value,
            bytes,
            used: AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Lets go of a stage, since it changed.
    pub(crate) fn forget_stage(&self, stage: &StageId) {
        self.write().forget_stage(stage);
    }

    /// Lets go of a stage as it was at an epoch that is past; what was loaded since stays.
    pub(crate) fn forget_past_stage(&self, past: &StageRow) {
        let mut held = self.write();
        let key = held.by_stage.get(&past.id);
        let slot = key.and_then(|key| held.environments.get(key));
        if slot.is_some_and(|slot| slot.value.stage.epoch <= past.epoch) {
            held.forget_stage(&past.id);
        }
    }

    /// Lets go of a token, since it changed or may have.
    pub(crate) fn forget_token(&self, mac: &[u8]) {
        let mut held = self.write();
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(slot) = held.tokens.remove(mac) {
            held.bytes = held.bytes.saturating_sub(slot.bytes);
        }
    }

    /// Lets go of a token by its id. Rare: it looks at all of them.
    pub(crate) fn forget_token_id(&self, id: &TokenId) {
        let mac = {
            let held = self.read();
            let found = held
                .tokens
                .iter()
                .find(|(_, slot)| slot.value.row.id == *id);
            found.map(|(mac, _)| mac.clone())
        };
        if let Some(mac) = mac {
            self.forget_token(&mac);
        }
    }

    /// Lets go of everything.
    pub(crate) fn forget_all(&self) {
        let mut held = self.write();
        self.generation.fetch_add(1, Ordering::AcqRel);
        *held = Held::default();
    }
}

impl Held {
    fn forget_stage(&mut self, stage: &StageId) {
        if let Some(key) = self.by_stage.remove(stage)
            && let Some(slot) = self.environments.remove(&key)
        {
            self.bytes = self.bytes.saturating_sub(slot.bytes);
        }
    }

    /// Lets go of what was used longest ago, until a quarter of the room is free again.
    fn evict(&mut self) {
        self.evict_to(CACHE_BYTES_MAX);
    }

    fn evict_to(&mut self, bytes_max: usize) {
        if self.bytes <= bytes_max {
            return;
        }
        enum Which {
            Token(Vec<u8>),
            Environment(String),
        }
        let tokens = self.tokens.iter().map(|(mac, slot)| {
            let used = slot.used.load(Ordering::Relaxed);
            (used, Which::Token(mac.clone()))
        });
        let environments = self.environments.iter().map(|(key, slot)| {
            let used = slot.used.load(Ordering::Relaxed);
            (used, Which::Environment(key.clone()))
        });
        let mut all: Vec<_> = tokens.chain(environments).collect();
        all.sort_by_key(|(used, _)| *used);
        for (_, which) in all {
            if self.bytes <= bytes_max / 4 * 3 {
                return;
            }
            match which {
                Which::Token(mac) => {
                    if let Some(slot) = self.tokens.remove(&mac) {
                        self.bytes = self.bytes.saturating_sub(slot.bytes);
                    }
                }
                Which::Environment(key) => {
                    if let Some(slot) = self.environments.remove(&key) {
                        self.by_stage.remove(&slot.value.stage.id);
                        self.bytes = self.bytes.saturating_sub(slot.bytes);
                    }
                }
            }
        }
    }
}
