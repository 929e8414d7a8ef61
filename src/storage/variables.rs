//! Variables, their versions and the operations that changed them. Envelopes come and go sealed.

use crate::domain::access::Actor;
use crate::domain::names::{LineageId, OperationId, StageId, VariableName};
use crate::domain::operation::OperationKind;
use crate::domain::variable::{DeclaredType, Kind, Visibility};
use crate::storage::{Batch, Connection, Error, Found, Row, cells};

/// The newest version of a variable, still sealed.
#[derive(Debug, Clone)]
pub(crate) struct VariableRow {
    /// Its name.
    pub(crate) name: VariableName,
    /// Its newest version.
    pub(crate) version: i64,
    /// When it was first written.
    pub(crate) created_at: i64,
    /// When the newest version was written.
    pub(crate) updated_at: i64,
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its declared type.
    pub(crate) declared_type: DeclaredType,
    /// Its visibility.
    pub(crate) visibility: Visibility,
    /// The envelope of its value.
    pub(crate) envelope_a: String,
    /// The lineage of the data key that sealed it.
    pub(crate) lineage: LineageId,
    /// That key's version.
    pub(crate) dek_version: i64,
}

/// The newest versions `n` of the stage's variables `v` that `$which` says, with `$envelope` as their envelope, as
/// [`variable`] reads them.
macro_rules! select_newest {
    ($envelope:literal, $which:literal) => {
        concat!(
            "SELECT v.name, v.version, v.created_at, v.updated_at, n.kind, n.declared_type, n.visibility, ",
            $envelope,
            ", n.lineage_id, n.dek_version
               FROM variables v
               JOIN variable_versions n ON n.stage_id = v.stage_id AND n.name = v.name AND n.version = v.version
              WHERE v.stage_id = $1 AND v.deleted_at IS NULL ",
            $which
        )
    };
}

fn variable(row: &mut Row) -> Result<VariableRow, Error> {
    Ok(VariableRow {
        name: row.parsed(0)?,
        version: row.integer(1)?,
        created_at: row.integer(2)?,
        updated_at: row.integer(3)?,
        kind: row.parsed(4)?,
        declared_type: row.parsed(5)?,
        visibility: row.parsed(6)?,
        lineage: row.parsed(8)?,
        dek_version: row.integer(9)?,
        envelope_a: row.take_text(7)?,
    })
}

fn variables(rows: Vec<Row>) -> Found<VariableRow> {
    Found::of(rows, variable, |row| row.label(0))
}

/// The newest version of every variable of the stage, still sealed, sorted by name.
pub(crate) async fn newest_variables(
    db: &mut Connection,
    stage: &StageId,
) -> Result<Found<VariableRow>, Error> {
    db.rows(
        select_newest!("n.envelope_a", "ORDER BY v.name"),
        cells![stage.as_str()],
    )
    .await
    .map(variables)
}

/// The newest version of the named variables that are there, still sealed.
pub(crate) async fn newest_variables_by_name(
    db: &mut Connection,
    stage: &StageId,
    names: &[&VariableName],
) -> Result<Found<VariableRow>, Error> {
    db.rows_by_names(
        select_newest!("n.envelope_a", "AND v.name IN"),
        cells![stage.as_str()],
        &names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
    )
    .await
    .map(variables)
}

/// What a stage holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StageSize {
    /// How many variables.
    pub(crate) variables: i64,
    /// How many bytes the envelopes of their newest versions have, as their rows say.
    pub(crate) sealed_bytes: i64,
}

/// How much the stage holds.
pub(crate) async fn stage_size(db: &mut Connection, stage: &StageId) -> Result<StageSize, Error> {
    let row = db
        .row(
            // More than any envelope has counts as much as a stage may hold, so that no altered row makes the sum overflow.
            "SELECT COUNT(*),
                    CAST(COALESCE(SUM(CASE WHEN v.sealed_bytes BETWEEN 0 AND 8388608 THEN v.sealed_bytes
                                           ELSE 8388609 END), 0) AS BIGINT)
               FROM variables v
              WHERE v.stage_id = $1 AND v.deleted_at IS NULL",
            cells![stage.as_str()],
        )
        .await?;
    let row = row.ok_or_else(|| Error::unexpected("a count without a row"))?;
    Ok(StageSize {
        variables: row.integer(0)?,
        sealed_bytes: row.integer(1)?,
    })
}

/// The newest version of every variable of the stage, sorted by name, each with an empty envelope: for what needs no value.
pub(crate) async fn newest_without_envelopes(
    db: &mut Connection,
    stage: &StageId,
) -> Result<Found<VariableRow>, Error> {
    db.rows(
        select_newest!("''", "ORDER BY v.name"),
        cells![stage.as_str()],
    )
    .await
    .map(variables)
}

/// The names that the stage holds, sorted.
pub(crate) async fn variable_names(
    db: &mut Connection,
    stage: &StageId,
) -> Result<Found<VariableName>, Error> {
    db.rows(
        "SELECT name FROM variables WHERE stage_id = $1 AND deleted_at IS NULL ORDER BY name",
        cells![stage.as_str()],
    )
    .await
    .map(|rows| Found::of(rows, |row| row.parsed(0), |row| row.label(0)))
}

/// The highest version that each of the named variables ever had, deleted ones too.
pub(crate) async fn versions_by_name(
    db: &mut Connection,
    stage: &StageId,
    names: &[&VariableName],
) -> Result<Vec<(VariableName, i64)>, Error> {
    db.rows_by_names(
        "SELECT name, version FROM variables WHERE stage_id = $1 AND name IN",
        cells![stage.as_str()],
        &names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
    )
    .await?
    .iter()
    .map(|row| Ok((row.parsed(0)?, row.integer(1)?)))
    .collect()
}

/// Appends versions, one a variable, and makes each the newest one. A variable that was deleted is there again.
pub(crate) async fn append_versions(
    db: &mut Connection,
    stage: &StageId,
    operation: &OperationId,
    versions: &[VariableRow],
) -> Result<(), Error> {
    let newest = versions
        .iter()
        .flat_map(|version| {
            cells![
                stage.as_str(),
                version.name.as_str(),
                version.version,
                version.created_at,
                version.updated_at,
                i64::try_from(version.envelope_a.len()).unwrap_or(i64::MAX)
            ]
        })
        .collect();
    let rows = versions
        .iter()
        .flat_map(|version| {
            cells![
                stage.as_str(),
                version.name.as_str(),
                version.version,
                operation.as_str(),
                version.kind.as_str(),
                version.declared_type.as_str(),
                version.visibility.as_str(),
                version.envelope_a.as_str(),
                version.lineage.as_str(),
                version.dek_version,
                version.updated_at
            ]
        })
        .collect();
    let mut batch = Batch::default();
    batch.insert_rows_or(
        "INSERT INTO variables (stage_id, name, version, created_at, updated_at, sealed_bytes) VALUES",
        6,
        newest,
        " ON CONFLICT (stage_id, name) DO UPDATE
             SET version = excluded.version, created_at = excluded.created_at,
                 updated_at = excluded.updated_at, sealed_bytes = excluded.sealed_bytes, deleted_at = NULL",
    );
    batch.insert_rows(
        "INSERT INTO variable_versions (stage_id, name, version, operation_id, kind, declared_type, visibility, \
         envelope_a, lineage_id, dek_version, created_at) VALUES",
        11,
        rows,
    );
    db.run_batch(batch).await
}

/// Marks variables as deleted; their versions stay.
pub(crate) async fn delete_variables(
    db: &mut Connection,
    stage: &StageId,
    names: &[&VariableName],
    now_ms: i64,
) -> Result<(), Error> {
    db.execute_by_names(
        "UPDATE variables SET deleted_at = $2 WHERE stage_id = $1 AND name IN",
        cells![stage.as_str(), now_ms],
        &names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
    )
    .await
}

/// One change of a stage.
#[derive(Debug)]
pub(crate) struct OperationRow<'a> {
    /// Its id.
    pub(crate) id: &'a OperationId,
    /// The revision that it led to.
    pub(crate) revision: i64,
    /// What kind of change it is.
    pub(crate) kind: OperationKind,
    /// Who made it.
    pub(crate) actor: &'a Actor,
    /// The names that it touched.
    pub(crate) names: &'a str,
    /// When.
    pub(crate) created_at: i64,
}

/// Stores an operation.
pub(crate) async fn insert_operation(
    db: &mut Connection,
    stage: &StageId,
    operation: &OperationRow<'_>,
) -> Result<(), Error> {
    db.execute(
        "INSERT INTO operations (id, stage_id, revision, kind, actor_kind, actor_id, actor_name, names, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        cells![
            operation.id.as_str(),
            stage.as_str(),
            operation.revision,
            operation.kind.as_str(),
            operation.actor.kind,
            operation.actor.id.as_str(),
            operation.actor.name.as_str(),
            operation.names,
            operation.created_at
        ],
    )
    .await
    .map(drop)
}
