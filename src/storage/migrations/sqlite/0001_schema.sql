-- The schema. Ids are made by the program and never change; instants are milliseconds since 1970; booleans are 0 and 1.
-- The same tables are in ../postgres/0001_schema.sql.

-- One row. `epoch` is raised by an accepted restore, which ends every credential of an older epoch.
CREATE TABLE installation (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    checked_at INTEGER NOT NULL
) STRICT;

-- Keys and the certificate authority, sealed by the master key that `kek_id` names.
CREATE TABLE sealed_keys (
    name TEXT NOT NULL,
    kek_id TEXT NOT NULL,
    envelope TEXT NOT NULL,
    public_text TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (name, kek_id)
) STRICT;

CREATE TABLE organizations (
    id TEXT PRIMARY KEY,
    slug TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

-- `namespace` owns it; NULL for one that was made over the API.
CREATE TABLE projects (
    id TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    namespace TEXT,
    resource TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (organization_id, slug)
) STRICT;

-- `revision` is raised by every change of the variables, `epoch` by every change that a read relies on; `seal` covers whose
-- stage it is and how it is protected, so that one that was moved or altered gives nothing.
CREATE TABLE stages (
    id TEXT PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    is_default INTEGER NOT NULL,
    protected INTEGER NOT NULL,
    custody TEXT NOT NULL,
    namespace TEXT,
    resource TEXT,
    revision INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    seal BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (project_id, slug)
) STRICT;

-- Who may read a stage from inside a cluster; `pattern` is a name, PREFIX_* or a lone * for every variable.
CREATE TABLE access_entries (
    stage_id TEXT NOT NULL REFERENCES stages (id) ON DELETE RESTRICT,
    namespace TEXT NOT NULL,
    service_account TEXT NOT NULL,
    pattern TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (stage_id, namespace, service_account, pattern)
) STRICT;

-- `stage_id` is set for the lineage of one stage alone.
CREATE TABLE lineages (
    id TEXT PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
    stage_id TEXT REFERENCES stages (id) ON DELETE RESTRICT,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX lineages_by_project ON lineages (project_id);

-- A retired key opens and seals nothing any more.
CREATE TABLE data_keys (
    lineage_id TEXT NOT NULL REFERENCES lineages (id) ON DELETE RESTRICT,
    version INTEGER NOT NULL,
    kek_id TEXT NOT NULL,
    wrapped TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    retired_at INTEGER,
    PRIMARY KEY (lineage_id, version)
) STRICT;

-- A deleted variable keeps its row, so that a version number is never used twice. `sealed_bytes` is the length of the newest
-- version's envelope, so that a stage is measured without reading its envelopes.
CREATE TABLE variables (
    stage_id TEXT NOT NULL REFERENCES stages (id) ON DELETE RESTRICT,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    sealed_bytes INTEGER NOT NULL,
    deleted_at INTEGER,
    PRIMARY KEY (stage_id, name)
) STRICT;

-- Appended, never changed; only re-sealing replaces an envelope.
CREATE TABLE variable_versions (
    stage_id TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    operation_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    declared_type TEXT NOT NULL,
    visibility TEXT NOT NULL,
    envelope_a TEXT NOT NULL,
    envelope_b TEXT,
    chance TEXT,
    curve TEXT,
    lineage_id TEXT NOT NULL,
    dek_version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (stage_id, name, version),
    FOREIGN KEY (stage_id, name) REFERENCES variables (stage_id, name) ON DELETE RESTRICT,
    FOREIGN KEY (lineage_id, dek_version) REFERENCES data_keys (lineage_id, version) ON DELETE RESTRICT
) STRICT;
CREATE INDEX variable_versions_by_key ON variable_versions (lineage_id, dek_version);

-- What changed in a stage, together. `names` has one name a line.
CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    stage_id TEXT NOT NULL REFERENCES stages (id) ON DELETE RESTRICT,
    revision INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    actor_name TEXT NOT NULL,
    names TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX operations_by_stage ON operations (stage_id, revision);

-- `mac` is looked up; `seal` covers what stands beside it, so that an altered or planted row is no credential.
CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    project_id TEXT,
    stage_id TEXT,
    mac BLOB NOT NULL UNIQUE,
    seal BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    last_used_at INTEGER,
    epoch INTEGER NOT NULL
) STRICT;
CREATE INDEX api_tokens_by_organization ON api_tokens (organization_id);

-- Where each chain ends. `chain` is an organization's id, or the word installation.
CREATE TABLE audit_heads (
    chain TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    mac BLOB NOT NULL
) STRICT;

-- `names` has one name a line.
CREATE TABLE audit_records (
    chain TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    at INTEGER NOT NULL,
    action TEXT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    actor_name TEXT NOT NULL,
    project TEXT,
    stage TEXT,
    names TEXT NOT NULL,
    source TEXT NOT NULL,
    ip TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    request_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (chain, sequence)
) STRICT, WITHOUT ROWID;

-- Units a day (days since 1970).
CREATE TABLE usage (
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    meter TEXT NOT NULL,
    day INTEGER NOT NULL,
    units INTEGER NOT NULL,
    PRIMARY KEY (organization_id, meter, day)
) STRICT;

-- Requests that named themselves, so that a repeat within a day is counted once.
CREATE TABLE request_keys (
    organization_id TEXT NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    scope TEXT NOT NULL,
    request_key TEXT NOT NULL,
    units INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, scope, request_key)
) STRICT;
CREATE INDEX request_keys_by_age ON request_keys (created_at);
