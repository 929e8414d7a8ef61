-- The schema. Ids are made by the program and never change; instants are milliseconds since 1970; booleans are 0 and 1.
-- The same tables are in ../sqlite/0001_schema.sql.

-- One row. `epoch` is raised by an accepted restore, which ends every credential of an older epoch.
CREATE TABLE installation (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    epoch BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    checked_at BIGINT NOT NULL
);

-- Keys and the certificate authority, sealed by the master key that `kek_id` names.
CREATE TABLE sealed_keys (
    name TEXT COLLATE "C" NOT NULL,
    kek_id TEXT COLLATE "C" NOT NULL,
    envelope TEXT COLLATE "C" NOT NULL,
    public_text TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    PRIMARY KEY (name, kek_id)
);

CREATE TABLE organizations (
    id TEXT COLLATE "C" PRIMARY KEY,
    slug TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

-- `namespace` owns it; NULL for one that was made over the API.
CREATE TABLE projects (
    id TEXT COLLATE "C" PRIMARY KEY,
    organization_id TEXT COLLATE "C" NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    slug TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    namespace TEXT COLLATE "C",
    resource TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (organization_id, slug)
);

-- `revision` is raised by every change of the variables, `epoch` by every change that a read relies on; `seal` covers whose
-- stage it is and how it is protected, so that one that was moved or altered gives nothing.
CREATE TABLE stages (
    id TEXT COLLATE "C" PRIMARY KEY,
    project_id TEXT COLLATE "C" NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
    organization_id TEXT COLLATE "C" NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    slug TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    is_default BIGINT NOT NULL,
    protected BIGINT NOT NULL,
    custody TEXT COLLATE "C" NOT NULL,
    namespace TEXT COLLATE "C",
    resource TEXT COLLATE "C",
    revision BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    seal BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (project_id, slug)
);

-- Who may read a stage from inside a cluster; `pattern` is a name, PREFIX_* or a lone * for every variable.
CREATE TABLE access_entries (
    stage_id TEXT COLLATE "C" NOT NULL REFERENCES stages (id) ON DELETE RESTRICT,
    namespace TEXT COLLATE "C" NOT NULL,
    service_account TEXT COLLATE "C" NOT NULL,
    pattern TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (stage_id, namespace, service_account, pattern)
);

-- `stage_id` is set for the lineage of one stage alone.
CREATE TABLE lineages (
    id TEXT COLLATE "C" PRIMARY KEY,
    project_id TEXT COLLATE "C" NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
    stage_id TEXT COLLATE "C" REFERENCES stages (id) ON DELETE RESTRICT,
    created_at BIGINT NOT NULL
);
CREATE INDEX lineages_by_project ON lineages (project_id);

-- A retired key opens and seals nothing any more.
CREATE TABLE data_keys (
    lineage_id TEXT COLLATE "C" NOT NULL REFERENCES lineages (id) ON DELETE RESTRICT,
    version BIGINT NOT NULL,
    kek_id TEXT COLLATE "C" NOT NULL,
    wrapped TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    retired_at BIGINT,
    PRIMARY KEY (lineage_id, version)
);

-- A deleted variable keeps its row, so that a version number is never used twice. `sealed_bytes` is the length of the newest
-- version's envelope, so that a stage is measured without reading its envelopes.
CREATE TABLE variables (
    stage_id TEXT COLLATE "C" NOT NULL REFERENCES stages (id) ON DELETE RESTRICT,
    name TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    sealed_bytes BIGINT NOT NULL,
    deleted_at BIGINT,
    PRIMARY KEY (stage_id, name)
);

-- Appended, never changed; only re-sealing replaces an envelope.
CREATE TABLE variable_versions (
    stage_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    operation_id TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    declared_type TEXT COLLATE "C" NOT NULL,
    visibility TEXT COLLATE "C" NOT NULL,
    envelope_a TEXT COLLATE "C" NOT NULL,
    envelope_b TEXT COLLATE "C",
    chance TEXT COLLATE "C",
    curve TEXT COLLATE "C",
    lineage_id TEXT COLLATE "C" NOT NULL,
    dek_version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (stage_id, name, version),
    FOREIGN KEY (stage_id, name) REFERENCES variables (stage_id, name) ON DELETE RESTRICT,
    FOREIGN KEY (lineage_id, dek_version) REFERENCES data_keys (lineage_id, version) ON DELETE RESTRICT
);
CREATE INDEX variable_versions_by_key ON variable_versions (lineage_id, dek_version);

-- What changed in a stage, together. `names` has one name a line.
CREATE TABLE operations (
    id TEXT COLLATE "C" PRIMARY KEY,
    stage_id TEXT COLLATE "C" NOT NULL REFERENCES stages (id) ON DELETE RESTRICT,
    revision BIGINT NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    actor_kind TEXT COLLATE "C" NOT NULL,
    actor_id TEXT COLLATE "C" NOT NULL,
    actor_name TEXT COLLATE "C" NOT NULL,
    names TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX operations_by_stage ON operations (stage_id, revision);

-- `mac` is looked up; `seal` covers what stands beside it, so that an altered or planted row is no credential.
CREATE TABLE api_tokens (
    id TEXT COLLATE "C" PRIMARY KEY,
    organization_id TEXT COLLATE "C" NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    name TEXT COLLATE "C" NOT NULL,
    role TEXT COLLATE "C" NOT NULL,
    project_id TEXT COLLATE "C",
    stage_id TEXT COLLATE "C",
    mac BYTEA NOT NULL UNIQUE,
    seal BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    last_used_at BIGINT,
    epoch BIGINT NOT NULL
);
CREATE INDEX api_tokens_by_organization ON api_tokens (organization_id);

-- Where each chain ends. `chain` is an organization's id, or the word installation.
CREATE TABLE audit_heads (
    chain TEXT COLLATE "C" PRIMARY KEY,
    epoch BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    mac BYTEA NOT NULL
);

-- `names` has one name a line.
CREATE TABLE audit_records (
    chain TEXT COLLATE "C" NOT NULL,
    sequence BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    at BIGINT NOT NULL,
    action TEXT COLLATE "C" NOT NULL,
    actor_kind TEXT COLLATE "C" NOT NULL,
    actor_id TEXT COLLATE "C" NOT NULL,
    actor_name TEXT COLLATE "C" NOT NULL,
    project TEXT COLLATE "C",
    stage TEXT COLLATE "C",
    names TEXT COLLATE "C" NOT NULL,
    source TEXT COLLATE "C" NOT NULL,
    ip TEXT COLLATE "C" NOT NULL,
    user_agent TEXT COLLATE "C" NOT NULL,
    request_id TEXT COLLATE "C" NOT NULL,
    outcome TEXT COLLATE "C" NOT NULL,
    detail TEXT COLLATE "C" NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (chain, sequence)
);

-- Units a day (days since 1970).
CREATE TABLE usage (
    organization_id TEXT COLLATE "C" NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    meter TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    units BIGINT NOT NULL,
    PRIMARY KEY (organization_id, meter, day)
);

-- Requests that named themselves, so that a repeat within a day is counted once.
CREATE TABLE request_keys (
    organization_id TEXT COLLATE "C" NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    scope TEXT COLLATE "C" NOT NULL,
    request_key TEXT COLLATE "C" NOT NULL,
    units BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (organization_id, scope, request_key)
);
CREATE INDEX request_keys_by_age ON request_keys (created_at);
