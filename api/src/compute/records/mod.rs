//! SQL of compute. Everything above works with the types of these modules, never with rows.

pub mod aggregates;
pub mod attachments;
pub mod flavors;
pub mod groups;
pub mod keypairs;
pub mod servers;
pub mod shape;
pub mod usage;

use base::store::Migration;

/// Tables of the component `compute`.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE compute_flavors (
            id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, vcpus BIGINT NOT NULL, memory_mb BIGINT NOT NULL,
            disk_gb BIGINT NOT NULL, ephemeral_gb BIGINT NOT NULL, swap_mb BIGINT NOT NULL,
            rxtx_factor DOUBLE PRECISION NOT NULL, is_public BIGINT NOT NULL, description TEXT,
            extra_specs TEXT NOT NULL, access TEXT NOT NULL, created_at TEXT NOT NULL)",
        "CREATE TABLE compute_keypairs (
            user_id TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, fingerprint TEXT NOT NULL,
            public_key TEXT NOT NULL, created_at TEXT NOT NULL, PRIMARY KEY (user_id, name))",
        "CREATE TABLE compute_servers (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, user_id TEXT NOT NULL, name TEXT NOT NULL,
            lifecycle TEXT NOT NULL, power TEXT NOT NULL, observed TEXT NOT NULL,
            generation BIGINT NOT NULL, reboots BIGINT NOT NULL, reboot_grace BIGINT NOT NULL,
            flavor_id TEXT NOT NULL, image_id TEXT, key_name TEXT, host TEXT, zone TEXT,
            vcpus BIGINT NOT NULL, memory_mb BIGINT NOT NULL, locked BIGINT NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL, launched_at TEXT, body TEXT NOT NULL)",
        "CREATE INDEX compute_servers_project ON compute_servers (project_id, created_at, id)",
        "CREATE INDEX compute_servers_created ON compute_servers (created_at, id)",
        "CREATE TABLE compute_attachments (
            id TEXT PRIMARY KEY, server_id TEXT NOT NULL REFERENCES compute_servers (id), volume_id TEXT NOT NULL,
            state TEXT NOT NULL, position BIGINT NOT NULL, created_at TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE UNIQUE INDEX compute_attachments_volume ON compute_attachments (server_id, volume_id)",
    ],
}, Migration {
    version: 2,
    statements: &[
        // What lists filter by. `indexed` tells rows that were written before these columns were there.
        "ALTER TABLE compute_servers ADD COLUMN description TEXT",
        "ALTER TABLE compute_servers ADD COLUMN hostname TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE compute_servers ADD COLUMN reservation_id TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE compute_servers ADD COLUMN config_drive BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE compute_servers ADD COLUMN tags TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE compute_servers ADD COLUMN group_id TEXT",
        "ALTER TABLE compute_servers ADD COLUMN indexed BIGINT NOT NULL DEFAULT 0",
        "CREATE INDEX compute_servers_group ON compute_servers (group_id)",
        "CREATE INDEX compute_servers_host ON compute_servers (host)",
        "CREATE TABLE compute_groups (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, user_id TEXT NOT NULL, name TEXT NOT NULL,
            policy TEXT NOT NULL, per_host BIGINT NOT NULL, created_at TEXT NOT NULL)",
        "CREATE INDEX compute_groups_project ON compute_groups (project_id, created_at, id)",
        "CREATE TABLE compute_usage (
            server_id TEXT PRIMARY KEY, project_id TEXT NOT NULL, name TEXT NOT NULL, flavor TEXT NOT NULL,
            vcpus BIGINT NOT NULL, memory_mb BIGINT NOT NULL, local_gb BIGINT NOT NULL,
            started_at TEXT NOT NULL, ended_at TEXT NOT NULL)",
        "CREATE INDEX compute_usage_project ON compute_usage (project_id, ended_at)",
        "CREATE INDEX compute_usage_ended ON compute_usage (ended_at)",
    ],
},
    Migration {
        version: 3,
        statements: &[
        "CREATE TABLE compute_counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
        "CREATE TABLE compute_aggregates (
            id BIGINT PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL,
            updated_at TEXT, body TEXT NOT NULL)",
        ],
    },
    Migration {
        version: 4,
        statements: &["ALTER TABLE compute_servers ADD COLUMN mode TEXT NOT NULL DEFAULT ''"],
    },
];
