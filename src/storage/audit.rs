//! The audit trail: chains of records, and where each ends.

use crate::storage::{Batch, Cell, Connection, Error, Row, cells};

/// Where a chain ends.
#[derive(Debug, Clone)]
pub(crate) struct HeadRow {
    /// The organization's id, or `installation`.
    pub(crate) chain: String,
    /// The epoch of the newest record.
    pub(crate) epoch: i64,
    /// The sequence of the newest record; 0 for none.
    pub(crate) sequence: i64,
    /// The MAC of the newest record; empty for none.
    pub(crate) mac: Vec<u8>,
}

/// One record.
#[derive(Debug, Clone)]
pub(crate) struct RecordRow {
    /// The chain that it stands in.
    pub(crate) chain: String,
    /// Its place there, from 1.
    pub(crate) sequence: i64,
    /// The installation's epoch when it was written.
    pub(crate) epoch: i64,
    /// When it happened.
    pub(crate) at: i64,
    /// What happened.
    pub(crate) action: String,
    /// The kind of who did it.
    pub(crate) actor_kind: String,
    /// The id of who did it.
    pub(crate) actor_id: String,
    /// The name of who did it.
    pub(crate) actor_name: String,
    /// The project's slug.
    pub(crate) project: Option<String>,
    /// The stage's slug.
    pub(crate) stage: Option<String>,
    /// Names, one a line.
    pub(crate) names: String,
    /// The way in.
    pub(crate) source: String,
    /// The peer's address.
    pub(crate) ip: String,
    /// The peer's program.
    pub(crate) user_agent: String,
    /// The request.
    pub(crate) request_id: String,
    /// How it ended.
    pub(crate) outcome: String,
    /// What else to know.
    pub(crate) detail: String,
    /// The MAC over all that and the MAC before it.
    pub(crate) mac: Vec<u8>,
}

fn head(row: &Row) -> Result<HeadRow, Error> {
    Ok(HeadRow {
        chain: row.text(0)?.to_owned(),
        epoch: row.integer(1)?,
        sequence: row.integer(2)?,
        mac: row.bytes(3)?.to_vec(),
    })
}

fn record(row: &Row) -> Result<RecordRow, Error> {
    let text = |at| row.text(at).map(str::to_owned);
    let maybe_text = |at| Ok::<_, Error>(row.maybe_text(at)?.map(str::to_owned));
    Ok(RecordRow {
        chain: text(0)?,
        sequence: row.integer(1)?,
        epoch: row.integer(2)?,
        at: row.integer(3)?,
        action: text(4)?,
        actor_kind: text(5)?,
        actor_id: text(6)?,
        actor_name: text(7)?,
        project: maybe_text(8)?,
        stage: maybe_text(9)?,
        names: text(10)?,
        source: text(11)?,
        ip: text(12)?,
        user_agent: text(13)?,
        request_id: text(14)?,
        outcome: text(15)?,
        detail: text(16)?,
        mac: row.bytes(17)?.to_vec(),
    })
}

/// Where every chain ends.
pub(crate) async fn heads(db: &mut Connection) -> Result<Vec<HeadRow>, Error> {
    db.rows(
        "SELECT chain, epoch, sequence, mac FROM audit_heads ORDER BY chain",
        vec![],
    )
    .await?
    .iter()
    .map(head)
    .collect()
}

/// Where a chain ends, held until the transaction ends.
pub(crate) async fn lock_head(db: &mut Connection, chain: &str) -> Result<Option<HeadRow>, Error> {
    db.locked_rows(
        "SELECT chain, epoch, sequence, mac FROM audit_heads WHERE chain = $1",
        "SELECT chain, epoch, sequence, mac FROM audit_heads WHERE chain = $1 FOR UPDATE",
        cells![chain],
    )
    .await?
    .first()
    .map(head)
    .transpose()
}

/// Begins a chain; nothing happens when there is one already.
pub(crate) async fn insert_head(db: &mut Connection, chain: &str, epoch: i64) -> Result<(), Error> {
    let nothing: &[u8] = &[];
    db.execute(
        "INSERT INTO audit_heads (chain, epoch, sequence, mac) VALUES ($1, $2, 0, $3) ON CONFLICT DO NOTHING",
        cells![chain, epoch, nothing],
    )
    .await
    .map(drop)
}

/// Moves the end of a chain.
pub(crate) fn update_head(batch: &mut Batch, head: &HeadRow) {
    batch.add(
        "UPDATE audit_heads SET epoch = $2, sequence = $3, mac = $4 WHERE chain = $1",
        cells![
            head.chain.as_str(),
            head.epoch,
            head.sequence,
            head.mac.as_slice()
        ],
    );
}

/// Appends records.
pub(crate) fn insert_records(batch: &mut Batch, records: Vec<RecordRow>) {
    const COLUMNS: usize = 18;
    let mut cells = Vec::with_capacity(records.len() * COLUMNS);
    for record in records {
        let row: [Cell; COLUMNS] = [
            Cell::from(record.chain),
            Cell::from(record.sequence),
            Cell::from(record.epoch),
            Cell::from(record.at),
            Cell::from(record.action),
            Cell::from(record.actor_kind),
            Cell::from(record.actor_id),
            Cell::from(record.actor_name),
            Cell::from(record.project),
            Cell::from(record.stage),
            Cell::from(record.names),
            Cell::from(record.source),
            Cell::from(record.ip),
            Cell::from(record.user_agent),
            Cell::from(record.request_id),
            Cell::from(record.outcome),
            Cell::from(record.detail),
            Cell::Bytes(Some(record.mac)),
        ];
        cells.extend(row);
    }
    batch.insert_rows(
        "INSERT INTO audit_records (chain, sequence, epoch, at, action, actor_kind, actor_id, actor_name, project, \
         stage, names, source, ip, user_agent, request_id, outcome, detail, mac) VALUES",
        COLUMNS,
        cells,
    );
}

/// The next records of a chain after `sequence`, in order: at most 32, since one may hold the names of a whole stage.
pub(crate) async fn records_after(
    db: &mut Connection,
    chain: &str,
    sequence: i64,
) -> Result<Vec<RecordRow>, Error> {
    db.rows(
        "SELECT chain, sequence, epoch, at, action, actor_kind, actor_id, actor_name, project, stage, names, source,
                ip, user_agent, request_id, outcome, detail, mac
           FROM audit_records
          WHERE chain = $1 AND sequence > $2
          ORDER BY sequence
          LIMIT 32",
        cells![chain, sequence],
    )
    .await?
    .iter()
    .map(record)
    .collect()
}

/// Every chain that has records.
pub(crate) async fn chains(db: &mut Connection) -> Result<Vec<String>, Error> {
    db.rows(
        "SELECT DISTINCT chain FROM audit_records ORDER BY chain",
        vec![],
    )
    .await?
    .iter()
    .map(|row| row.text(0).map(str::to_owned))
    .collect()
}
