//! Projects, stages, access entries, lineages and wrapped data keys.

use crate::domain::names::{
    LineageId, Namespace, ObjectName, OrganizationId, ProjectId, ProjectSlug, StageId, StageSlug,
};
use crate::storage::{Batch, Connection, Error, Found, Row, cells};

/// A project.
#[derive(Debug, Clone)]
pub(crate) struct ProjectRow {
    /// Its id.
    pub(crate) id: ProjectId,
    /// Its organization.
    pub(crate) organization: OrganizationId,
    /// Its slug.
    pub(crate) slug: ProjectSlug,
    /// What people call it.
    pub(crate) name: String,
    /// The namespace that owns it.
    pub(crate) namespace: Option<Namespace>,
    /// When it was made.
    pub(crate) created_at: i64,
    /// When it was last changed.
    pub(crate) updated_at: i64,
    /// How many variables its stages hold.
    pub(crate) variables: i64,
}

/// A stage.
#[derive(Debug, Clone)]
pub(crate) struct StageRow {
    /// Its id.
    pub(crate) id: StageId,
    /// Its project.
    pub(crate) project: ProjectId,
    /// Its organization.
    pub(crate) organization: OrganizationId,
    /// Its slug.
    pub(crate) slug: StageSlug,
    /// What people call it.
    pub(crate) name: String,
    /// Whether it was made with the project.
    pub(crate) is_default: bool,
    /// Whether it is protected.
    pub(crate) protected: bool,
    /// The namespace that owns it.
    pub(crate) namespace: Option<Namespace>,
    /// The resource that declares it.
    pub(crate) resource: Option<ObjectName>,
    /// Raised by every change of the variables.
    pub(crate) revision: i64,
    /// Raised by every change that a read relies on.
    pub(crate) epoch: i64,
    /// When it was made.
    pub(crate) created_at: i64,
    /// When it was last changed.
    pub(crate) updated_at: i64,
    /// How many variables it holds.
    pub(crate) variables: i64,
    /// The slug of its project.
    pub(crate) project_slug: ProjectSlug,
    /// The seal over whose it is and how it is protected.
    pub(crate) seal: Vec<u8>,
}

/// One access entry: one service account, and one name, pattern or `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AccessRow {
    /// The namespace.
    pub(crate) namespace: String,
    /// The service account.
    pub(crate) service_account: String,
    /// A name, `PREFIX_*`, or `*` for every variable.
    pub(crate) pattern: String,
}

/// A wrapped data key.
#[derive(Debug, Clone)]
pub(crate) struct DataKeyRow {
    /// Its lineage.
    pub(crate) lineage: LineageId,
    /// Its version there.
    pub(crate) version: i64,
    /// The master key that wraps it.
    pub(crate) kek_id: String,
    /// The envelope.
    pub(crate) wrapped: String,
    /// When it was made.
    pub(crate) created_at: i64,
}

/// The projects `p` that `$which` says, as [`project`] reads them.
macro_rules! select_projects {
    ($which:literal) => {
        concat!(
            "SELECT p.id, p.organization_id, p.slug, p.name, p.namespace, p.created_at, p.updated_at,
                    (SELECT COUNT(*) FROM variables v JOIN stages s ON s.id = v.stage_id
                      WHERE s.project_id = p.id AND v.deleted_at IS NULL)
               FROM projects p ",
            $which
        )
    };
}

fn project(row: &Row) -> Result<ProjectRow, Error> {
    Ok(ProjectRow {
        id: row.parsed(0)?,
        organization: row.parsed(1)?,
        slug: row.parsed(2)?,
        name: row.text(3)?.to_owned(),
        namespace: row.maybe_parsed(4)?,
        created_at: row.integer(5)?,
        updated_at: row.integer(6)?,
        variables: row.integer(7)?,
    })
}

/// The stages `s`, each of a project `p`, that `$which` says, as [`stage`] reads them.
macro_rules! select_stages {
    ($which:literal) => {
        concat!(
            "SELECT s.id, s.project_id, p.organization_id, s.slug, s.name, s.is_default, s.protected, s.namespace,
                    s.resource, s.revision, s.epoch, s.created_at, s.updated_at,
                    (SELECT COUNT(*) FROM variables v WHERE v.stage_id = s.id AND v.deleted_at IS NULL), p.slug, s.seal
               FROM stages s JOIN projects p ON p.id = s.project_id ",
            $which
        )
    };
}

fn stage(row: &Row) -> Result<StageRow, Error> {
    Ok(StageRow {
        id: row.parsed(0)?,
        project: row.parsed(1)?,
        organization: row.parsed(2)?,
        slug: row.parsed(3)?,
        name: row.text(4)?.to_owned(),
        is_default: row.truth(5)?,
        protected: row.truth(6)?,
        namespace: row.maybe_parsed(7)?,
        resource: row.maybe_parsed(8)?,
        revision: row.integer(9)?,
        epoch: row.integer(10)?,
        created_at: row.integer(11)?,
        updated_at: row.integer(12)?,
        variables: row.integer(13)?,
        project_slug: row.parsed(14)?,
        seal: row.bytes(15)?.to_vec(),
    })
}

/// Stages call themselves `project/stage`.
fn found_stages(rows: Vec<Row>) -> Found<StageRow> {
    let label = |row: &Row| format!("{}/{}", row.label(14), row.label(3));
    Found::of(rows, |row| stage(row), label)
}

/// The data keys `k`, each of a lineage `l`, that `$which` says, as [`data_key`] reads them.
macro_rules! select_data_keys {
    ($which:literal) => {
        concat!(
            "SELECT k.lineage_id, k.version, k.kek_id, k.wrapped, k.created_at
               FROM data_keys k JOIN lineages l ON l.id = k.lineage_id ",
            $which
        )
    };
}

fn data_key(row: &Row) -> Result<DataKeyRow, Error> {
    Ok(DataKeyRow {
        lineage: row.parsed(0)?,
        version: row.integer(1)?,
        kek_id: row.text(2)?.to_owned(),
        wrapped: row.text(3)?.to_owned(),
        created_at: row.integer(4)?,
    })
}

/// The organization's projects, newest first.
pub(crate) async fn projects(
    db: &mut Connection,
    organization: &OrganizationId,
) -> Result<Found<ProjectRow>, Error> {
    db.rows(
        select_projects!(
            "WHERE p.organization_id = $1
             ORDER BY p.created_at DESC, p.id DESC"
        ),
        cells![organization.as_str()],
    )
    .await
    .map(|rows| Found::of(rows, |row| project(row), |row| row.label(2)))
}

/// The project of that slug.
pub(crate) async fn project_by_slug(
    db: &mut Connection,
    organization: &OrganizationId,
    slug: &ProjectSlug,
) -> Result<Option<ProjectRow>, Error> {
    db.row(
        select_projects!("WHERE p.organization_id = $1 AND p.slug = $2"),
        cells![organization.as_str(), slug.as_str()],
    )
    .await?
    .as_ref()
    .map(project)
    .transpose()
}

/// Makes a project; `false` when the slug is taken.
pub(crate) async fn insert_project(
    db: &mut Connection,
    project: &ProjectRow,
    resource: Option<&ObjectName>,
) -> Result<bool, Error> {
    let inserted = db
        .execute(
            "INSERT INTO projects (id, organization_id, slug, name, namespace, resource, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                 ON CONFLICT DO NOTHING",
            cells![
                project.id.as_str(),
                project.organization.as_str(),
                project.slug.as_str(),
                project.name.as_str(),
                project.namespace.as_ref().map(Namespace::as_str),
                resource.map(ObjectName::as_str),
                project.created_at,
                project.updated_at
            ],
        )
        .await?;
    Ok(inserted == 1)
}

/// Changes what people call a project.
pub(crate) async fn rename_project(
    db: &mut Connection,
    project: &ProjectId,
    name: &str,
    now_ms: i64,
) -> Result<(), Error> {
    db.execute(
        "UPDATE projects SET name = $2, updated_at = $3 WHERE id = $1",
        cells![project.as_str(), name, now_ms],
    )
    .await
    .map(drop)
}

/// Deletes a project that has no stages left, with its keys.
pub(crate) async fn delete_project(db: &mut Connection, project: &ProjectId) -> Result<(), Error> {
    for statement in [
        "DELETE FROM data_keys WHERE lineage_id IN (SELECT id FROM lineages WHERE project_id = $1)",
        "DELETE FROM lineages WHERE project_id = $1",
        "DELETE FROM projects WHERE id = $1",
    ] {
        db.execute(statement, cells![project.as_str()]).await?;
    }
    Ok(())
}

/// The project's stages, oldest first.
pub(crate) async fn stages(
    db: &mut Connection,
    project: &ProjectId,
) -> Result<Found<StageRow>, Error> {
    db.rows(
        select_stages!(
            "WHERE s.project_id = $1
             ORDER BY s.created_at, s.id"
        ),
        cells![project.as_str()],
    )
    .await
    .map(found_stages)
}

/// Every stage of an organization.
pub(crate) async fn stages_of_organization(
    db: &mut Connection,
    organization: &OrganizationId,
) -> Result<Found<StageRow>, Error> {
    db.rows(
        select_stages!(
            "WHERE s.organization_id = $1
             ORDER BY s.id"
        ),
        cells![organization.as_str()],
    )
    .await
    .map(found_stages)
}

/// The stage of those slugs.
pub(crate) async fn stage_by_slugs(
    db: &mut Connection,
    organization: &OrganizationId,
    project: &ProjectSlug,
    slug: &StageSlug,
) -> Result<Option<StageRow>, Error> {
    db.row(
        select_stages!("WHERE p.organization_id = $1 AND p.slug = $2 AND s.slug = $3"),
        cells![organization.as_str(), project.as_str(), slug.as_str()],
    )
    .await?
    .as_ref()
    .map(stage)
    .transpose()
}

/// The stage of that id.
pub(crate) async fn stage_by_id(
    db: &mut Connection,
    id: &StageId,
) -> Result<Option<StageRow>, Error> {
    db.row(select_stages!("WHERE s.id = $1"), cells![id.as_str()])
        .await?
        .as_ref()
        .map(stage)
        .transpose()
}

/// Makes a stage; `false` when the slug is taken.
pub(crate) async fn insert_stage(db: &mut Connection, stage: &StageRow) -> Result<bool, Error> {
    let inserted = db
        .execute(
            "INSERT INTO stages (id, project_id, organization_id, slug, name, is_default, protected, custody, namespace,
                                 resource, revision, epoch, seal, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'managed', $8, $9, $10, $11, $12, $13, $14)
                 ON CONFLICT DO NOTHING",
            cells![
                stage.id.as_str(),
                stage.project.as_str(),
                stage.organization.as_str(),
                stage.slug.as_str(),
                stage.name.as_str(),
                stage.is_default,
                stage.protected,
                stage.namespace.as_ref().map(Namespace::as_str),
                stage.resource.as_ref().map(ObjectName::as_str),
                stage.revision,
                stage.epoch,
                stage.seal.as_slice(),
                stage.created_at,
                stage.updated_at
            ],
        )
        .await?;
    Ok(inserted == 1)
}

/// Raises a stage's revision and epoch, which locks it until the transaction ends; the new revision, if there is the stage.
pub(crate) async fn raise_revision(
    db: &mut Connection,
    stage: &StageId,
    now_ms: i64,
) -> Result<Option<i64>, Error> {
    db.row(
        "UPDATE stages SET revision = revision + 1, epoch = epoch + 1, updated_at = $2 WHERE id = $1
         RETURNING revision",
        cells![stage.as_str(), now_ms],
    )
    .await?
    .map(|row| row.integer(0))
    .transpose()
}

/// Raises a stage's epoch alone, which locks it until the transaction ends; whether there is the stage.
pub(crate) async fn raise_epoch(
    db: &mut Connection,
    stage: &StageId,
    now_ms: i64,
) -> Result<bool, Error> {
    let raised = db
        .execute(
            "UPDATE stages SET epoch = epoch + 1, updated_at = $2 WHERE id = $1",
            cells![stage.as_str(), now_ms],
        )
        .await?;
    Ok(raised == 1)
}

/// Stores who declares a stage, and whether it is protected, with the seal over that.
pub(crate) async fn update_stage(db: &mut Connection, stage: &StageRow) -> Result<(), Error> {
    db.execute(
        "UPDATE stages SET protected = $2, resource = $3, seal = $4 WHERE id = $1",
        cells![
            stage.id.as_str(),
            stage.protected,
            stage.resource.as_ref().map(ObjectName::as_str),
            stage.seal.as_slice()
        ],
    )
    .await
    .map(drop)
}

/// Deletes a stage with everything in it.
pub(crate) async fn delete_stage(db: &mut Connection, stage: &StageId) -> Result<(), Error> {
    for statement in [
        "DELETE FROM access_entries WHERE stage_id = $1",
        "DELETE FROM variable_versions WHERE stage_id = $1",
        "DELETE FROM variables WHERE stage_id = $1",
        "DELETE FROM operations WHERE stage_id = $1",
        "DELETE FROM stages WHERE id = $1",
    ] {
        db.execute(statement, cells![stage.as_str()]).await?;
    }
    Ok(())
}

/// The epochs of stages that are there.
pub(crate) async fn stage_epochs(
    db: &mut Connection,
    stages: &[&StageId],
) -> Result<Vec<(StageId, i64)>, Error> {
    db.rows_by_names(
        "SELECT id, epoch FROM stages WHERE id IN",
        vec![],
        &stages.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
    )
    .await?
    .iter()
    .map(|row| Ok((row.parsed(0)?, row.integer(1)?)))
    .collect()
}

/// The stage's access entries, sorted.
pub(crate) async fn access_entries(
    db: &mut Connection,
    stage: &StageId,
) -> Result<Vec<AccessRow>, Error> {
    db.rows(
        "SELECT namespace, service_account, pattern FROM access_entries WHERE stage_id = $1
          ORDER BY namespace, service_account, pattern",
        cells![stage.as_str()],
    )
    .await?
    .iter()
    .map(|row| {
        Ok(AccessRow {
            namespace: row.text(0)?.to_owned(),
            service_account: row.text(1)?.to_owned(),
            pattern: row.text(2)?.to_owned(),
        })
    })
    .collect()
}

/// Puts `entries` in the place of what the stage has.
pub(crate) async fn replace_access_entries(
    db: &mut Connection,
    stage: &StageId,
    entries: &[AccessRow],
    now_ms: i64,
) -> Result<(), Error> {
    let mut batch = Batch::default();
    batch.add(
        "DELETE FROM access_entries WHERE stage_id = $1",
        cells![stage.as_str()],
    );
    let rows = entries
        .iter()
        .flat_map(|entry| {
            cells![
                stage.as_str(),
                entry.namespace.as_str(),
                entry.service_account.as_str(),
                entry.pattern.as_str(),
                now_ms
            ]
        })
        .collect();
    batch.insert_rows(
        "INSERT INTO access_entries (stage_id, namespace, service_account, pattern, created_at) VALUES",
        5,
        rows,
    );
    db.run_batch(batch).await
}

/// Every stage that has access entries: stage, and the namespace and resource that declared them.
pub(crate) async fn stages_with_access(
    db: &mut Connection,
) -> Result<Found<(StageId, Namespace, ObjectName)>, Error> {
    db.rows(
        "SELECT id, namespace, resource FROM stages
          WHERE namespace IS NOT NULL AND resource IS NOT NULL
            AND EXISTS (SELECT 1 FROM access_entries a WHERE a.stage_id = stages.id)
          ORDER BY id",
        vec![],
    )
    .await
    .map(|rows| {
        let parse = |row: &mut Row| Ok((row.parsed(0)?, row.parsed(1)?, row.parsed(2)?));
        Found::of(rows, parse, |row| row.label(0))
    })
}

/// The stages that a resource declares.
pub(crate) async fn stages_of_resource(
    db: &mut Connection,
    namespace: &Namespace,
    resource: &ObjectName,
) -> Result<Found<StageId>, Error> {
    db.rows(
        "SELECT id FROM stages WHERE namespace = $1 AND resource = $2 ORDER BY id",
        cells![namespace.as_str(), resource.as_str()],
    )
    .await
    .map(|rows| Found::of(rows, |row| row.parsed(0), |row| row.label(0)))
}

/// Makes a lineage for a project.
pub(crate) async fn insert_lineage(
    db: &mut Connection,
    project: &ProjectId,
    lineage: &LineageId,
    now_ms: i64,
) -> Result<(), Error> {
    db.execute(
        "INSERT INTO lineages (id, project_id, stage_id, created_at) VALUES ($1, $2, NULL, $3)",
        cells![lineage.as_str(), project.as_str(), now_ms],
    )
    .await
    .map(drop)
}

/// Stores a wrapped data key.
pub(crate) async fn insert_data_key(db: &mut Connection, key: &DataKeyRow) -> Result<(), Error> {
    db.execute(
        "INSERT INTO data_keys (lineage_id, version, kek_id, wrapped, created_at, retired_at)
         VALUES ($1, $2, $3, $4, $5, NULL)",
        cells![
            key.lineage.as_str(),
            key.version,
            key.kek_id.as_str(),
            key.wrapped.as_str(),
            key.created_at
        ],
    )
    .await
    .map(drop)
}

/// The project's newest data key that still seals.
pub(crate) async fn active_data_key(
    db: &mut Connection,
    project: &ProjectId,
) -> Result<Option<DataKeyRow>, Error> {
    db.row(
        select_data_keys!(
            "WHERE l.project_id = $1 AND l.stage_id IS NULL AND k.retired_at IS NULL
             ORDER BY k.version DESC
             LIMIT 1"
        ),
        cells![project.as_str()],
    )
    .await?
    .as_ref()
    .map(data_key)
    .transpose()
}

/// Every data key of the project, retired ones too.
pub(crate) async fn data_keys(
    db: &mut Connection,
    project: &ProjectId,
) -> Result<Found<DataKeyRow>, Error> {
    db.rows(
        select_data_keys!(
            "WHERE l.project_id = $1
             ORDER BY k.lineage_id, k.version"
        ),
        cells![project.as_str()],
    )
    .await
    .map(|rows| Found::of(rows, |row| data_key(row), |row| row.label(0)))
}
