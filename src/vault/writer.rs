//! The one task that writes: changes and the records of reads, in groups.
//!
//! A group is one transaction. Each change is a member that may be taken back alone, so that one that fails leaves the
//! others whole. Whoever asked is answered when the group is durable, never before. The heads of the chains that the reads
//! and changes of a group name are locked first and in order, which is what keeps two replicas on one database from
//! overtaking each other: a change of a stage locks the head of its organization's chain, and so does a read of it. A change
//! that comes to record in a further chain (an organization that it makes) locks that one after them.

mod groups;

use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use self::groups::Writer;
pub(crate) use self::groups::count_usage;
use super::records::Chain;
use super::{Core, Unavailable};
use crate::domain::audit::AuditEvent;
use crate::domain::names::{OrganizationId, StageId, TokenId};
use crate::storage::{self, Connection};

/// How many jobs may wait; whoever comes later waits before the queue.
pub(crate) const QUEUE_JOBS_MAX: usize = 2048;

/// A failure that several callers share.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the group that held this was not written")]
pub(crate) struct GroupError(#[source] Arc<storage::Error>);

impl GroupError {
    /// Whether the group may be durable all the same.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.0.is_uncertain()
    }

    /// Whether the same will happen again.
    pub(crate) fn is_lasting(&self) -> bool {
        self.0.is_lasting()
    }
}

impl From<GroupError> for Unavailable {
    fn from(error: GroupError) -> Self {
        Self {
            source: Box::new(error),
        }
    }
}

impl From<storage::Error> for Unavailable {
    fn from(error: storage::Error) -> Self {
        Self {
            source: Box::new(error),
        }
    }
}

/// The vault was closed while something was asked of it.
#[derive(Debug, thiserror::Error)]
#[error("the vault is closed")]
pub(crate) struct Closed;

impl From<Closed> for Unavailable {
    fn from(error: Closed) -> Self {
        Self {
            source: Box::new(error),
        }
    }
}

/// What a read relied on.
#[derive(Debug, Default)]
pub(crate) struct Relied {
    /// Stages, each with the epoch that was read.
    pub(crate) stages: Vec<(StageId, i64)>,
    /// The credential, with the epoch that was read.
    pub(crate) token: Option<(TokenId, i64)>,
}

/// What a read counts.
#[derive(Debug)]
pub(crate) struct Usage {
    /// Whose.
    pub(crate) organization: OrganizationId,
    /// What kind of read, as request keys have it.
    pub(crate) scope: &'static str,
    /// How many units.
    pub(crate) units: i64,
    /// What the request called itself.
    pub(crate) request_key: Option<String>,
}

/// The record of a read, and what goes with it.
#[derive(Debug)]
pub(crate) struct Recording {
    /// What to record. Empty when only `relied` is to be checked.
    pub(crate) events: Vec<(Chain, AuditEvent)>,
    /// What the read relied on.
    pub(crate) relied: Relied,
    /// The token that was used.
    pub(crate) used: Option<(OrganizationId, TokenId)>,
    /// What is counted.
    pub(crate) usage: Option<Usage>,
}

/// What became of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is durable, and what the read relied on still held.
    Durable,
    /// A stage changed since: nothing was recorded, and the read is to be done again.
    StageChanged,
    /// The credential was revoked since: nothing was recorded.
    CredentialEnded,
}

/// Whether what a change wrote stays.
pub(crate) enum Verdict<T> {
    /// It stays.
    Keep(T),
    /// It is taken back; its events are recorded all the same.
    TakeBack(T),
}

/// What a change works with.
pub(crate) struct Work {
    /// The connection, inside the group's transaction.
    pub(crate) db: Connection,
    /// The group's time.
    pub(crate) now_ms: i64,
    /// What is to be recorded.
    pub(crate) events: Vec<(Chain, AuditEvent)>,
    /// Stages that memory must let go of.
    pub(crate) changed_stages: Vec<StageId>,
    /// Tokens (by MAC) that memory must let go of.
    pub(crate) changed_tokens: Vec<Vec<u8>>,
}

/// A change of the database: one use case.
pub(crate) trait Change: Send + Sync + 'static {
    /// What the caller is answered.
    type Answer: Send + Sync + 'static;

    /// The chain whose head is locked while it runs: that of the organization that it changes.
    fn chain(&self) -> Chain;

    /// Runs inside the group's transaction. May run again when the group has to be done again.
    fn run(
        &self,
        work: &mut Work,
    ) -> impl Future<Output = Result<Verdict<Self::Answer>, storage::Error>> + Send;
}

/// A [`Change`] with the one who waits for it.
trait Waiting: Send + Sync {
    fn chain(&self) -> Chain;
    fn run<'a>(&'a mut self, work: &'a mut Work) -> BoxFuture<'a, Result<bool, storage::Error>>;
    fn fail(&mut self, error: GroupError);
    fn answer(self: Box<Self>);
}

struct Waiter<C: Change> {
    change: C,
    answer: Option<Result<C::Answer, GroupError>>,
    reply: oneshot::Sender<Result<C::Answer, GroupError>>,
}

impl<C: Change> Waiting for Waiter<C> {
    fn chain(&self) -> Chain {
        self.change.chain()
    }

    fn run<'a>(&'a mut self, work: &'a mut Work) -> BoxFuture<'a, Result<bool, storage::Error>> {
        async move {
            let (answer, kept) = match self.change.run(work).await? {
                Verdict::Keep(answer) => (answer, true),
                Verdict::TakeBack(answer) => (answer, false),
            };
            self.answer = Some(Ok(answer));
            Ok(kept)
        }
        .boxed()
    }

    fn fail(&mut self, error: GroupError) {
        self.answer = Some(Err(error));
    }

    fn answer(self: Box<Self>) {
        if let Some(answer) = self.answer {
            // Whoever asked may have gone away.
            drop(self.reply.send(answer));
        }
    }
}

enum Job {
    Record(Recording, oneshot::Sender<Result<Recorded, GroupError>>),
    Change(Box<dyn Waiting>),
    Flush(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Queue(mpsc::Sender<Job>);

impl Queue {
    /// Starts the writer.
    pub(crate) fn start(core: Arc<Core>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_JOBS_MAX);
        tokio::spawn(Writer::new(core, receiver).run());
        Self(sender)
    }

    /// Records a read; answers when the record is durable.
    pub(crate) async fn record(&self, recording: Recording) -> Result<Recorded, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Job::Record(recording, reply))
            .await
            .map_err(|_| Closed)?;
        Ok(answer.await.map_err(|_| Closed)??)
    }

    /// Makes a change; answers when it is durable.
    pub(crate) async fn change<C: Change>(&self, change: C) -> Result<C::Answer, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let waiter = Waiter {
            change,
            answer: None,
            reply,
        };
        self.0
            .send(Job::Change(Box::new(waiter)))
            .await
            .map_err(|_| Closed)?;
        Ok(answer.await.map_err(|_| Closed)??)
    }

    /// Ends when the writer has.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }

    /// Lets the writer do what is queued, and record everything that it counts.
    pub(crate) async fn flush(&self) {
        self.tell(Job::Flush).await;
    }

    /// Lets the writer do what is queued, and ends it.
    pub(crate) async fn close(&self) {
        self.tell(Job::Close).await;
    }

    async fn tell(&self, job: impl FnOnce(oneshot::Sender<()>) -> Job) {
        let (reply, done) = oneshot::channel();
        if self.0.send(job(reply)).await.is_ok() {
            // It has ended either way.
            drop(done.await);
        }
    }
}
