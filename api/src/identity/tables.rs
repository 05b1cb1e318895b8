//! The tables. `body` holds a resource as the API shows it; the other columns repeat what is looked up or unique.

use base::store::Migration;

/// The service's tables.
pub const MIGRATIONS: &[Migration] = &[FIRST, LOCKOUT];

const LOCKOUT: Migration = Migration {
    version: 2,
    statements: &[
        // Failed log-ins in a row, and when the last one was (microseconds since the epoch).
        "ALTER TABLE identity_users ADD COLUMN failures BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE identity_users ADD COLUMN failed_us BIGINT NOT NULL DEFAULT 0",
    ],
};

const FIRST: Migration = Migration {
    version: 1,
    statements: &[
        "CREATE TABLE identity_domains (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, enabled BIGINT NOT NULL,
            body TEXT NOT NULL)",
        "CREATE TABLE identity_projects (id TEXT PRIMARY KEY, domain_id TEXT NOT NULL REFERENCES identity_domains (id),
            name TEXT NOT NULL, parent_id TEXT NOT NULL, enabled BIGINT NOT NULL, body TEXT NOT NULL,
            UNIQUE (domain_id, name))",
        "CREATE TABLE identity_users (id TEXT PRIMARY KEY, domain_id TEXT NOT NULL REFERENCES identity_domains (id),
            name TEXT NOT NULL, enabled BIGINT NOT NULL, password TEXT, body TEXT NOT NULL, UNIQUE (domain_id, name))",
        "CREATE TABLE identity_groups (id TEXT PRIMARY KEY, domain_id TEXT NOT NULL REFERENCES identity_domains (id),
            name TEXT NOT NULL, body TEXT NOT NULL, UNIQUE (domain_id, name))",
        "CREATE TABLE identity_members (group_id TEXT NOT NULL REFERENCES identity_groups (id),
            user_id TEXT NOT NULL REFERENCES identity_users (id), PRIMARY KEY (group_id, user_id))",
        "CREATE INDEX identity_members_user ON identity_members (user_id)",
        // Roles of no domain have the empty text there, so that their names are unique too.
        "CREATE TABLE identity_roles (id TEXT PRIMARY KEY, domain_id TEXT NOT NULL, name TEXT NOT NULL,
            body TEXT NOT NULL, UNIQUE (domain_id, name))",
        "CREATE TABLE identity_implied (prior_id TEXT NOT NULL REFERENCES identity_roles (id),
            implied_id TEXT NOT NULL REFERENCES identity_roles (id), PRIMARY KEY (prior_id, implied_id))",
        "CREATE TABLE identity_assignments (actor_kind TEXT NOT NULL, actor_id TEXT NOT NULL, target_kind TEXT NOT NULL,
            target_id TEXT NOT NULL, role_id TEXT NOT NULL REFERENCES identity_roles (id),
            PRIMARY KEY (actor_kind, actor_id, target_kind, target_id, role_id))",
        "CREATE INDEX identity_assignments_target ON identity_assignments (target_kind, target_id)",
        "CREATE TABLE identity_regions (id TEXT PRIMARY KEY, parent_region_id TEXT, body TEXT NOT NULL)",
        "CREATE TABLE identity_services (id TEXT PRIMARY KEY, type TEXT NOT NULL, name TEXT NOT NULL,
            enabled BIGINT NOT NULL, body TEXT NOT NULL)",
        "CREATE TABLE identity_endpoints (id TEXT PRIMARY KEY,
            service_id TEXT NOT NULL REFERENCES identity_services (id), interface TEXT NOT NULL, region_id TEXT,
            enabled BIGINT NOT NULL, body TEXT NOT NULL)",
        "CREATE TABLE identity_appcreds (id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES identity_users (id),
            project_id TEXT NOT NULL REFERENCES identity_projects (id), name TEXT NOT NULL, secret TEXT NOT NULL,
            expires_at TEXT, body TEXT NOT NULL, UNIQUE (user_id, name))",
        // subject: 'audit:ID' ends one token, 'user:ID' and 'project:ID' end those issued before.
        "CREATE TABLE identity_revocations (id TEXT PRIMARY KEY, subject TEXT NOT NULL, before_us BIGINT NOT NULL,
            expires_us BIGINT NOT NULL)",
        "CREATE INDEX identity_revocations_subject ON identity_revocations (subject)",
        // Counts changes, so that every process notices when what it remembers is old.
        "CREATE TABLE identity_changes (one BIGINT PRIMARY KEY, n BIGINT NOT NULL)",
        "INSERT INTO identity_changes (one, n) VALUES (1, 0)",
        "CREATE TABLE identity_settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ],
};
