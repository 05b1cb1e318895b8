//! Default rules, after upstream's secure defaults: administrators everywhere, readers of the system read, domain readers and
//! managers within their domain, users themselves.

use api_kit::policy::Rules;

/// Administrators.
pub const ADMIN: &str = "rule:admin_required";
/// Whoever reads the whole system.
pub const READER: &str = "rule:admin_required or (role:reader and system_scope:all)";
/// Any token.
pub const ANYONE: &str = "";
/// Lists that a domain's readers see their part of.
pub const LIST: &str = "rule:identity_reader or (role:reader and domain_id:%(target.domain_id)s)";

/// A user.
pub const USER: &str = "rule:identity_reader or (role:reader and domain_id:%(target.user.domain_id)s) or user_id:%(target.user.id)s";
/// Changing a user.
pub const MANAGE_USER: &str = "rule:admin_required or (role:manager and domain_id:%(target.user.domain_id)s)";
/// The user itself.
pub const SELF: &str = "rule:admin_required or user_id:%(target.user.id)s";
/// The user itself, or whoever reads the system.
pub const SELF_OR_READER: &str = "rule:identity_reader or user_id:%(target.user.id)s";
/// A project.
pub const PROJECT: &str = "rule:identity_reader or (role:reader and domain_id:%(target.project.domain_id)s) or project_id:%(target.project.id)s";
/// Changing a project.
pub const MANAGE_PROJECT: &str =
    "rule:admin_required or (role:manager and domain_id:%(target.project.domain_id)s)";
/// A domain.
pub const DOMAIN: &str =
    "rule:identity_reader or token.project.domain.id:%(target.domain.id)s or domain_id:%(target.domain.id)s";
/// A group.
pub const GROUP: &str = "rule:identity_reader or (role:reader and domain_id:%(target.group.domain_id)s)";
/// Changing a group.
pub const MANAGE_GROUP: &str =
    "rule:admin_required or (role:manager and domain_id:%(target.group.domain_id)s)";
/// A token that is asked about.
pub const TOKEN: &str = "rule:identity_reader or rule:service_api or user_id:%(target.token.user_id)s";
/// Ending a token.
pub const REVOKE: &str = "rule:admin_required or rule:service_api or user_id:%(target.token.user_id)s";

/// Rules by name.
pub const RULES: Rules = &[("identity_reader", READER)];
