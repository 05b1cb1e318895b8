//! Upstream's default rules, by the names that operators know.

/// Members of the server's project, and administrators.
pub const MEMBER: &str = "rule:project_member_or_admin";
/// Readers of the server's project, and administrators.
pub const READER: &str = "rule:project_reader_or_admin";
/// Administrators.
pub const ADMIN: &str = "rule:context_is_admin";
/// Anybody with a token.
pub const ANYBODY: &str = "@";
/// The key pair's owner, and administrators.
pub const KEYPAIR: &str = "(rule:context_is_admin) or user_id:%(user_id)s";

/// Rules that handlers and views ask for beyond those of operations.
pub const RULES: api_kit::policy::Rules = &[
    ("os_compute_api:os-extended-server-attributes", ADMIN),
    ("os_compute_api:servers:show:host_status", ADMIN),
    ("os_compute_api:servers:detail:get_all_tenants", ADMIN),
    ("os_compute_api:servers:index:get_all_tenants", ADMIN),
    ("os_compute_api:os-lock-server:unlock:unlock_override", ADMIN),
    ("os_compute_api:servers:create:forced_host", ADMIN),
    ("os_compute_api:os-flavor-access", ADMIN),
    ("os_compute_api:os-instance-actions:events", ADMIN),
    ("os_compute_api:os-instance-actions:events:details", ADMIN),
    ("os_compute_api:limits:other_project", ADMIN),
    ("os_compute_api:os-server-groups:index:all_projects", ADMIN),
    ("compute:servers:create:requested_destination", ADMIN),
];
