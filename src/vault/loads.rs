//! Loading stages out of the database: each once at a time, and no more at once than memory has room for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::{Environment, bytes_at_most};
use super::environments::{is_sealed, load_environment};
use super::{Core, Unavailable};
use crate::domain::names::StageId;
use crate::storage;
use crate::storage::projects::StageRow;

/// How many bytes of stages may be in memory: those that the cache holds, and beside them those that reads under way do.
pub(crate) const STAGES_BYTES_MAX: usize = 96 * 1024 * 1024;
/// How long a load may wait until there is room.
const ROOM_TIME_MAX: Duration = Duration::from_secs(10);

/// Why a stage was not loaded. Several callers share it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LoadError {
    /// The database.
    #[error("the stage was not loaded")]
    Database(#[source] Arc<storage::Error>),
    /// Reads of other stages hold the room.
    #[error("memory had no room for the stage within {seconds} seconds")]
    NoRoom {
        /// How long it was waited for.
        seconds: u64,
    },
}

impl From<storage::Error> for LoadError {
    fn from(error: storage::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

impl From<LoadError> for Unavailable {
    fn from(error: LoadError) -> Self {
        Self {
            source: Box::new(error),
        }
    }
}

type Loaded = Result<Arc<Environment>, LoadError>;
type Load = BoxFuture<'static, Loaded>;

/// The loads that are under way.
pub(crate) struct Loads {
    /// By stage, and the epoch that its row had when the load began.
    under_way: Mutex<HashMap<(StageId, i64), WeakShared<Load>>>,
    room: Arc<Semaphore>,
}

impl Default for Loads {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
            room: Arc::new(Semaphore::new(STAGES_BYTES_MAX)),
        }
    }
}

impl Loads {
    /// The stage of a row that was just read, with everything that reading it needs: as memory holds it, if it is the same,
    /// or out of a load. One that is under way will do when it began at the same epoch: nothing was changed in between.
    ///
    /// A row that was altered is neither of them: it may have been moved to where its reader is without a change of its epoch.
    pub(crate) async fn environment(core: &Arc<Core>, stage: StageRow) -> Loaded {
        if !is_sealed(core, &stage) {
            return load(Arc::clone(core), stage).await;
        }
        let held = core.cache.environment_by_id(&stage.id);
        if let Some(held) = held.filter(|held| held.stage.epoch == stage.epoch) {
            return Ok(held);
        }
        core.loads.join(core, stage).await
    }

    fn join(&self, core: &Arc<Core>, stage: StageRow) -> Shared<Load> {
        let key = (stage.id.clone(), stage.epoch);
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(load) = under_way.get(&key).and_then(WeakShared::upgrade) {
            return load;
        }
        // Whatever nobody waits for has ended.
        under_way.retain(|_, load| load.upgrade().is_some());
        let load = load(Arc::clone(core), stage).boxed().shared();
        if let Some(weak) = load.downgrade() {
            under_way.insert(key, weak);
        }
        load
    }

    /// Room for so many bytes, until it is dropped.
    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, LoadError> {
        let bytes = u32::try_from(bytes.min(STAGES_BYTES_MAX)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes);
        match tokio::time::timeout(ROOM_TIME_MAX, room).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) | Err(_) => Err(LoadError::NoRoom {
                seconds: ROOM_TIME_MAX.as_secs(),
            }),
        }
    }

    /// How many bytes have no stage in them.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.room.available_permits()
    }
}

async fn load(core: Arc<Core>, stage: StageRow) -> Loaded {
    // No connection is held while room is waited for.
    let mut db = core.database.reader().await?;
    let size = storage::variables::stage_size(&mut db, &stage.id).await?;
    drop(db);
    let mut room = core.loads.room(bytes_at_most(size)).await?;
    let mut db = core.database.reader().await?;
    let mut environment = load_environment(&core, &mut db, stage, size).await?;
    drop(db);
    environment.room = Some(room.split(environment.bytes()).unwrap_or(room));
    let environment = Arc::new(environment);
    if environment.sealed {
        core.cache.hold_environment(Arc::clone(&environment));
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn a_load_waits_until_others_leave_room() {
        let loads = Loads::default();
        let all = loads.room(STAGES_BYTES_MAX + 1).await.unwrap();
        assert_eq!(loads.free(), 0);
        let mut next = std::pin::pin!(loads.room(1));
        assert!(poll!(&mut next).is_pending());
        drop(all);
        drop(next.await.unwrap());
        assert_eq!(loads.free(), STAGES_BYTES_MAX);
    }
}
