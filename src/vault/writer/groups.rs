//! Groups: what is waiting, written in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{GroupError, Job, Recorded, Recording, Usage, Waiting, Work};
use crate::domain::audit::AuditEvent;
use crate::domain::names::{OrganizationId, StageId, TokenId};
use crate::storage::audit::HeadRow;
use crate::storage::{self, Batch, Connection};
use crate::vault::Core;
use crate::vault::records::{self, Chain};
use crate::vault::refusals::Refusals;

/// How many jobs one transaction takes at most: as many rows as a file takes in one trip. Smaller groups than could be had
/// let the next one's requests be judged while this one is written.
const GROUP_JOBS_MAX: usize = 64;
/// The meter of reads.
const READS: &str = "dynamic_requests";
/// How often the use of one token is stored, in milliseconds.
const TOUCH_INTERVAL_MS: u64 = 60_000;
/// How many epochs and heads the writer remembers.
const KNOWN_MAX: usize = 10_000;
/// How long a group may take where the database is reached over a network.
const GROUP_TIMEOUT: Duration = Duration::from_secs(20);

/// What the writer has read and nobody else can have changed: SQLite has one process.
#[derive(Default)]
struct Known {
    /// The epochs of stages.
    stages: HashMap<StageId, i64>,
    /// The epochs of tokens.
    tokens: HashMap<TokenId, i64>,
    /// Where chains end.
    heads: HashMap<Chain, HeadRow>,
}

impl Known {
    fn clear(&mut self) {
        self.stages.clear();
        self.tokens.clear();
        self.heads.clear();
    }

    fn len(&self) -> usize {
        self.stages.len() + self.tokens.len() + self.heads.len()
    }
}

/// The writer, which has the writing connection.
pub(super) struct Writer {
    core: Arc<Core>,
    jobs: mpsc::Receiver<Job>,
    connection: Option<Connection>,
    known: Known,
    /// When each token was last stored as used.
    touched: HashMap<TokenId, i64>,
    /// Whose refusals are recorded one by one.
    refusals: Refusals,
    /// Whether everything that is counted is recorded now, and not when its time is over.
    counts_all: bool,
}

/// A group, sorted by kind.
#[derive(Default)]
struct Group {
    recordings: Vec<(Recording, oneshot::Sender<Result<Recorded, GroupError>>)>,
    changes: Vec<Box<dyn Waiting>>,
}

/// What a group did, once it is durable.
struct Done {
    verdicts: Vec<Recorded>,
    heads: BTreeMap<Chain, HeadRow>,
    changed_stages: Vec<StageId>,
    changed_tokens: Vec<Vec<u8>>,
    changed: bool,
    /// Whether the database refused a change's statement.
    refused: bool,
}

impl Writer {
    /// A writer of what comes through `jobs`.
    pub(super) fn new(core: Arc<Core>, jobs: mpsc::Receiver<Job>) -> Self {
        Self {
            core,
            jobs,
            connection: None,
            known: Known::default(),
            touched: HashMap::new(),
            refusals: Refusals::default(),
            counts_all: false,
        }
    }

    /// Writes one group after the other until the queue is closed.
    pub(super) async fn run(mut self) {
        let mut jobs = Vec::with_capacity(GROUP_JOBS_MAX);
        while self.jobs.recv_many(&mut jobs, GROUP_JOBS_MAX).await > 0 {
            let mut group = Group::default();
            let mut flushing = Vec::new();
            let mut closing = None;
            for job in jobs.drain(..) {
                match job {
                    Job::Record(recording, reply) => group.recordings.push((recording, reply)),
                    Job::Change(change) => group.changes.push(change),
                    Job::Flush(reply) => flushing.push(reply),
                    Job::Close(reply) => closing = Some(reply),
                }
            }
            self.counts_all = !flushing.is_empty();
            self.write(group).await;
            for reply in flushing {
                if reply.send(()).is_err() {
                    tracing::debug!("nobody waits for what was counted");
                }
            }
            if let Some(reply) = closing {
                self.jobs.close();
                if let Some(connection) = self.connection.take()
                    && let Err(error) = connection.close().await
                {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the database was not closed in good order"
                    );
                }
                if reply.send(()).is_err() {
                    tracing::debug!("nobody waits for the vault to close");
                }
                return;
            }
        }
    }

    /// Writes a group and answers everyone in it.
    async fn write(&mut self, mut group: Group) {
        let is_empty = group.recordings.is_empty() && group.changes.is_empty();
        if is_empty && !self.counts_all {
            return;
        }
        match self.write_in_time(&mut group).await {
            Ok(done) => {
                for stage in &done.changed_stages {
                    self.core.cache.forget_stage(stage);
                }
                for mac in &done.changed_tokens {
                    self.core.cache.forget_token(mac);
                }
                if done.changed {
                    self.known.clear();
                }
                self.known.heads.extend(done.heads);
                for ((_, reply), verdict) in group.recordings.into_iter().zip(done.verdicts) {
                    drop(reply.send(Ok(verdict)));
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    reads = group.recordings.len(),
                    changes = group.changes.len(),
                    "the database took nothing of a group"
                );
                let error = GroupError(Arc::new(error));
                self.known.clear();
                self.touched.clear();
                // What was half done may have been done after all, when the connection broke at its very end.
                self.core.cache.forget_all();
                for (_, reply) in group.recordings {
                    drop(reply.send(Err(error.clone())));
                }
                for change in &mut group.changes {
                    change.fail(error.clone());
                }
            }
        }
        for change in group.changes {
            change.answer();
        }
    }

    /// Writes a group, and gives it up with its connection when the database does not answer: nobody is to wait for a
    /// server that cannot be reached.
    async fn write_in_time(&mut self, group: &mut Group) -> Result<Done, storage::Error> {
        if !self.core.database.is_shared() {
            return self.try_write(group).await;
        }
        match tokio::time::timeout(GROUP_TIMEOUT, self.try_write(group)).await {
            Ok(ended) => ended,
            Err(_) => Err(storage::Error::TooSlow {
                seconds: GROUP_TIMEOUT.as_secs(),
            }),
        }
    }

    async fn try_write(&mut self, group: &mut Group) -> Result<Done, storage::Error> {
        /// How often a group is begun anew when another replica was in its way, or its connection had ended.
        const ATTEMPTS: u32 = 3;
        let mut attempt = 1;
        loop {
            let fresh = self.connection.is_none();
            let db = match self.connection.take() {
                Some(db) => db,
                None => self.core.database.writer().await?,
            };
            let mut work = Work {
                db,
                now_ms: self.core.clock.now_ms(),
                events: Vec::new(),
                changed_stages: Vec::new(),
                changed_tokens: Vec::new(),
            };
            let begins_late = self.begins_late(group);
            if !begins_late && let Err(error) = work.db.begin().await {
                if fresh {
                    return Err(error);
                }
                // The connection ended while nobody used it: a new one may do.
                attempt += 1;
                if attempt > ATTEMPTS {
                    return Err(error);
                }
                continue;
            }
            match self.fill(&mut work, group, begins_late).await {
                Ok(done) => {
                    // One that refused a statement may be good for nothing more: opened, say, while its file was read-only.
                    if !done.refused {
                        self.connection = Some(work.db);
                    }
                    return Ok(done);
                }
                Err(error) => {
                    // What was to be stored of tokens' use was taken back too.
                    self.touched.clear();
                    let rolled_back = work.db.roll_back().await.is_ok();
                    if error.is_conflict() && attempt < ATTEMPTS {
                        if rolled_back {
                            self.connection = Some(work.db);
                        }
                        attempt += 1;
                        continue;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Stores when tokens were last used, a token once in [`TOUCH_INTERVAL_MS`].
    fn touch(&mut self, batch: &mut Batch, now_ms: i64, group: &Group, verdicts: &[Recorded]) {
        if self.touched.len() > KNOWN_MAX {
            self.touched.clear();
        }
        for recording in durable(group, verdicts) {
            let Some((organization, token)) = &recording.used else {
                continue;
            };
            let stored = self.touched.get(token);
            if stored.is_none_or(|stored| stored.abs_diff(now_ms) >= TOUCH_INTERVAL_MS) {
                storage::credentials::touch_token(batch, organization, token, now_ms);
                self.touched.insert(token.clone(), now_ms);
            }
        }
    }

    /// Whether a group's transaction may begin with the first thing that it writes: nobody else writes to a file, so what
    /// was read before still holds, and the whole transaction takes one trip to the file's thread.
    fn begins_late(&self, group: &Group) -> bool {
        let named = |(recording, _): &(Recording, _)| {
            let usage = recording.usage.as_ref();
            usage.is_some_and(|usage| usage.request_key.is_some())
        };
        !self.core.database.is_shared()
            && group.changes.is_empty()
            && !group.recordings.iter().any(named)
    }

    /// A whole transaction, with its COMMIT; its BEGIN was before unless it `begins_late`.
    async fn fill(
        &mut self,
        work: &mut Work,
        group: &mut Group,
        begins_late: bool,
    ) -> Result<Done, storage::Error> {
        self.bound_known();
        let (mut tally, due) = self.refusals.begin(work.now_ms, self.counts_all);
        let mut heads = self.lock_heads(work, group, &due).await?;
        let verdicts = self.verdicts(work, group).await?;
        let (mut changed, mut refused) = (false, false);
        let mut events = Vec::new();
        for change in &mut group.changes {
            work.db.begin_member().await?;
            let (stages, tokens) = (work.changed_stages.len(), work.changed_tokens.len());
            let ended = change.run(work).await;
            if let Ok(true) = ended {
                work.db.keep_member().await?;
                changed = true;
            } else {
                if let Err(error) = work.db.take_member_back().await {
                    // The database took the whole group back by itself: what the change met says why.
                    return Err(ended.err().unwrap_or(error));
                }
                work.changed_stages.truncate(stages);
                work.changed_tokens.truncate(tokens);
            }
            if let Err(error) = ended {
                if error.is_conflict() || error.is_given_up() {
                    return Err(error);
                }
                refused = true;
                work.events.clear();
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the database took nothing of a change"
                );
                change.fail(GroupError(Arc::new(error)));
            }
            events.append(&mut work.events);
        }
        let recorded =
            durable(group, &verdicts).flat_map(|recording| recording.events.iter().cloned());
        let mut rows = Vec::with_capacity(verdicts.len() + events.len());
        let mut touched = BTreeSet::new();
        for (chain, event) in recorded.chain(events).chain(due) {
            let now = work.now_ms;
            if !self.refusals.admit(&mut tally, &chain, &event, now) {
                continue;
            }
            if !heads.contains_key(&chain) {
                let head = lock_head(work, &chain, self.core.epoch).await?;
                heads.insert(chain.clone(), head);
            }
            if let Some(head) = heads.get_mut(&chain) {
                let key = &self.core.audit_key;
                rows.push(records::append(
                    key,
                    head,
                    self.core.epoch,
                    work.now_ms,
                    event,
                ));
                touched.insert(chain);
            }
        }
        let mut batch = Batch::default();
        if begins_late {
            batch.begin();
        }
        storage::audit::insert_records(&mut batch, rows);
        for chain in &touched {
            if let Some(head) = heads.get(chain) {
                storage::audit::update_head(&mut batch, head);
            }
        }
        self.touch(&mut batch, work.now_ms, group, &verdicts);
        count(work, &mut batch, group, &verdicts).await?;
        batch.commit();
        work.db.run_batch(batch).await?;
        self.refusals.settle(tally, work.now_ms);
        Ok(Done {
            verdicts,
            heads,
            changed_stages: std::mem::take(&mut work.changed_stages),
            changed_tokens: std::mem::take(&mut work.changed_tokens),
            changed,
            refused,
        })
    }

    /// Lets go of what others may have changed, and of everything when it is too much.
    fn bound_known(&mut self) {
        if self.core.database.is_shared() || self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
    }

    /// Locks the heads of all chains that the group names, in order.
    async fn lock_heads(
        &self,
        work: &mut Work,
        group: &Group,
        due: &[(Chain, AuditEvent)],
    ) -> Result<BTreeMap<Chain, HeadRow>, storage::Error> {
        let mut chains: BTreeSet<Chain> =
            group.changes.iter().map(|change| change.chain()).collect();
        let recorded = group
            .recordings
            .iter()
            .flat_map(|(recording, _)| &recording.events);
        for (chain, _) in recorded.chain(due) {
            if !chains.contains(chain) {
                chains.insert(chain.clone());
            }
        }
        let mut heads = BTreeMap::new();
        for chain in chains {
            let head = match self.known.heads.get(&chain) {
                Some(head) => head.clone(),
                None => lock_head(work, &chain, self.core.epoch).await?,
            };
            heads.insert(chain, head);
        }
        Ok(heads)
    }

    /// Holds what each read relied on against the database.
    async fn verdicts(
        &mut self,
        work: &mut Work,
        group: &Group,
    ) -> Result<Vec<Recorded>, storage::Error> {
        let relied = || {
            group
                .recordings
                .iter()
                .map(|(recording, _)| &recording.relied)
        };
        let stages: BTreeSet<&StageId> = relied()
            .flat_map(|relied| &relied.stages)
            .map(|(stage, _)| stage)
            .filter(|stage| !self.known.stages.contains_key(stage))
            .collect();
        if !stages.is_empty() {
            let epochs = storage::projects::stage_epochs(
                &mut work.db,
                &stages.into_iter().collect::<Vec<_>>(),
            )
            .await?;
            self.known.stages.extend(epochs);
        }
        let tokens: BTreeSet<&TokenId> = relied()
            .filter_map(|relied| relied.token.as_ref())
            .map(|(token, _)| token)
            .filter(|token| !self.known.tokens.contains_key(token))
            .collect();
        if !tokens.is_empty() {
            let epochs = storage::credentials::token_epochs(
                &mut work.db,
                &tokens.into_iter().collect::<Vec<_>>(),
            )
            .await?;
            self.known.tokens.extend(epochs);
        }
        Ok(relied()
            .map(|relied| {
                let token_held = relied
                    .token
                    .as_ref()
                    .is_none_or(|(token, epoch)| self.known.tokens.get(token) == Some(epoch));
                let stages_held = relied
                    .stages
                    .iter()
                    .all(|(stage, epoch)| self.known.stages.get(stage) == Some(epoch));
                match (token_held, stages_held) {
                    (false, _) => Recorded::CredentialEnded,
                    (true, false) => Recorded::StageChanged,
                    (true, true) => Recorded::Durable,
                }
            })
            .collect())
    }
}

/// The recordings of a group that are to be durable.
fn durable<'a>(group: &'a Group, verdicts: &'a [Recorded]) -> impl Iterator<Item = &'a Recording> {
    group
        .recordings
        .iter()
        .zip(verdicts)
        .filter(|(_, verdict)| **verdict == Recorded::Durable)
        .map(|((recording, _), _)| recording)
}

/// Where a chain ends, locked; begins the chain when there is none.
async fn lock_head(work: &mut Work, chain: &Chain, epoch: i64) -> Result<HeadRow, storage::Error> {
    if let Some(head) = storage::audit::lock_head(&mut work.db, chain.as_str()).await? {
        return Ok(head);
    }
    storage::audit::insert_head(&mut work.db, chain.as_str(), epoch).await?;
    let head = storage::audit::lock_head(&mut work.db, chain.as_str()).await?;
    Ok(head.unwrap_or(HeadRow {
        chain: chain.as_str().to_owned(),
        epoch,
        sequence: 0,
        mac: Vec::new(),
    }))
}

/// Counts one use; a request that named itself and was counted before is not counted again.
pub(crate) async fn count_usage(
    db: &mut Connection,
    batch: &mut Batch,
    usage: &Usage,
    now_ms: i64,
) -> Result<(), storage::Error> {
    if is_counted(db, usage, now_ms).await? {
        storage::usage::add_usage(batch, &usage.organization, READS, usage.units, now_ms);
    }
    Ok(())
}

/// Whether a use counts: it did not name itself, or named itself for the first time.
async fn is_counted(
    db: &mut Connection,
    usage: &Usage,
    now_ms: i64,
) -> Result<bool, storage::Error> {
    let Some(key) = &usage.request_key else {
        return Ok(true);
    };
    let organization = &usage.organization;
    storage::usage::insert_request_key(db, organization, usage.scope, key, usage.units, now_ms)
        .await
}

/// Counts what was used.
async fn count(
    work: &mut Work,
    batch: &mut Batch,
    group: &Group,
    verdicts: &[Recorded],
) -> Result<(), storage::Error> {
    let mut units: BTreeMap<&OrganizationId, i64> = BTreeMap::new();
    for recording in durable(group, verdicts) {
        if let Some(usage) = &recording.usage
            && is_counted(&mut work.db, usage, work.now_ms).await?
        {
            *units.entry(&usage.organization).or_default() += usage.units;
        }
    }
    for (organization, units) in units {
        storage::usage::add_usage(batch, organization, READS, units, work.now_ms);
    }
    Ok(())
}
