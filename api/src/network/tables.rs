//! The service's tables. Each row keeps its whole record as JSON in `body`; the columns repeat what is filtered, sorted,
//! unique or joined. `network_addresses` is what makes an address given once per subnet, whoever asks at the same time.

use base::store::Migration;

/// The tables, for the component `network`.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    statements: &[
        "CREATE TABLE network_networks (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
            admin_state_up BIGINT NOT NULL, shared BIGINT NOT NULL, external BIGINT NOT NULL, mtu BIGINT NOT NULL,
            provider TEXT, revision BIGINT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE INDEX network_networks_project ON network_networks (project_id)",
        // One network to a physical network: it is the bridge.
        "CREATE UNIQUE INDEX network_networks_provider ON network_networks (provider) WHERE provider IS NOT NULL",
        "CREATE TABLE network_subnets (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
            network_id TEXT NOT NULL REFERENCES network_networks (id), ip_version BIGINT NOT NULL, cidr TEXT NOT NULL,
            gateway_ip TEXT, enable_dhcp BIGINT NOT NULL, shared BIGINT NOT NULL,
            revision BIGINT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE INDEX network_subnets_network ON network_subnets (network_id)",
        "CREATE TABLE network_ports (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
            network_id TEXT NOT NULL REFERENCES network_networks (id), mac TEXT NOT NULL, admin_state_up BIGINT NOT NULL,
            device_id TEXT NOT NULL, device_owner TEXT NOT NULL, status TEXT NOT NULL, host TEXT NOT NULL,
            revision BIGINT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, body TEXT NOT NULL,
            UNIQUE (network_id, mac))",
        "CREATE INDEX network_ports_device ON network_ports (device_id)",
        "CREATE INDEX network_ports_project ON network_ports (project_id)",
        "CREATE TABLE network_addresses (
            subnet_id TEXT NOT NULL REFERENCES network_subnets (id), ip TEXT NOT NULL,
            port_id TEXT NOT NULL REFERENCES network_ports (id), PRIMARY KEY (subnet_id, ip))",
        "CREATE INDEX network_addresses_port ON network_addresses (port_id)",
        "CREATE TABLE network_routers (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
            admin_state_up BIGINT NOT NULL, gateway_network TEXT,
            revision BIGINT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE TABLE network_floatingips (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, description TEXT NOT NULL,
            floating_network_id TEXT NOT NULL REFERENCES network_networks (id), floating_ip TEXT NOT NULL UNIQUE,
            port_id TEXT, fixed_ip TEXT, router_id TEXT, status TEXT NOT NULL,
            revision BIGINT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE UNIQUE INDEX network_floatingips_port ON network_floatingips (port_id, fixed_ip) WHERE port_id IS NOT NULL",
        "CREATE TABLE network_groups (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
            revision BIGINT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE UNIQUE INDEX network_groups_default ON network_groups (project_id) WHERE name = 'default'",
        "CREATE TABLE network_rules (
            id TEXT PRIMARY KEY, project_id TEXT NOT NULL, description TEXT NOT NULL,
            group_id TEXT NOT NULL REFERENCES network_groups (id), direction TEXT NOT NULL, ethertype TEXT NOT NULL,
            protocol TEXT, port_min BIGINT, port_max BIGINT, remote_group TEXT, remote_ip TEXT,
            revision BIGINT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE INDEX network_rules_group ON network_rules (group_id)",
        "CREATE TABLE network_port_groups (
            port_id TEXT NOT NULL REFERENCES network_ports (id), group_id TEXT NOT NULL REFERENCES network_groups (id),
            PRIMARY KEY (port_id, group_id))",
        "CREATE INDEX network_port_groups_group ON network_port_groups (group_id)",
        // What was last wanted of `netd`, whole, and its number.
        "CREATE TABLE network_wanted (
            kind TEXT NOT NULL, id TEXT NOT NULL, generation BIGINT NOT NULL, spec TEXT NOT NULL, PRIMARY KEY (kind, id))",
    ],
}];
