//! The microversions at which something that this service serves changed: each compared once, in a route or a view.
//!
//! Versions in between that only touch features which are not served (cells, evacuation, ...) change nothing here: their
//! operations answer 404 at every version.

use api_kit::{Micro, MicroRange};

/// What is spoken.
pub const RANGE: MicroRange =
    MicroRange { word: "compute", legacy: Some("X-OpenStack-Nova-API-Version"), min: Micro(2, 1), max: MAX };
/// Newest version that is spoken.
pub const MAX: Micro = Micro(2, 96);

/// Key pairs have a type.
pub const KEYPAIR_TYPE: Micro = Micro(2, 2);
/// Extended attributes of servers: host name, launch index, reservation, kernel, user data.
pub const EXTENDED: Micro = Micro(2, 3);
/// `locked` in servers.
pub const LOCKED: Micro = Micro(2, 9);
/// Key pairs of other users, for administrators.
pub const KEYPAIR_USER: Micro = Micro(2, 10);
/// `forced_down` in services.
pub const FORCED_DOWN: Micro = Micro(2, 11);
/// Server groups name their owner.
pub const GROUP_OWNER: Micro = Micro(2, 13);
/// Soft policies of server groups.
pub const SOFT_POLICIES: Micro = Micro(2, 15);
/// `host_status` in servers.
pub const HOST_STATUS: Micro = Micro(2, 16);
/// Descriptions of servers.
pub const DESCRIPTION: Micro = Micro(2, 19);
/// A server's migrations are listed below it.
pub const SERVER_MIGRATIONS: Micro = Micro(2, 23);
/// Tags of servers.
pub const TAGS: Micro = Micro(2, 26);
/// `cpu_info` of hypervisors is an object rather than text.
pub const CPU_INFO_OBJECT: Micro = Micro(2, 28);
/// Paging of key pairs.
pub const KEYPAIR_PAGING: Micro = Micro(2, 35);
/// Proxies to other services are gone, and their limits.
pub const NO_PROXIES: Micro = Micro(2, 36);
/// `networks` is required and may be `auto` or `none`.
pub const NETWORKS_REQUIRED: Micro = Micro(2, 37);
/// An unknown status as a filter is refused.
pub const STATUS_CHECKED: Micro = Micro(2, 38);
/// No limit on image metadata any more.
pub const NO_IMAGE_META: Micro = Micro(2, 39);
/// Paging of usage.
pub const USAGE_PAGING: Micro = Micro(2, 40);
/// Aggregates have a UUID.
pub const AGGREGATE_UUID: Micro = Micro(2, 41);
/// `createImage` answers with the id in a body.
pub const IMAGE_ID_BODY: Micro = Micro(2, 45);
/// Servers carry their flavor's content.
pub const FLAVOR_EMBEDDED: Micro = Micro(2, 47);
/// A rebuild may change the key.
pub const REBUILD_KEY: Micro = Micro(2, 54);
/// Diagnostics have one shape.
pub const DIAGNOSTICS: Micro = Micro(2, 48);
/// Events of an action for owners too.
pub const ACTION_EVENTS: Micro = Micro(2, 51);
/// Tags at creation.
pub const TAGS_AT_CREATE: Micro = Micro(2, 52);
/// Ids of services and hypervisors are UUIDs.
pub const HOST_UUIDS: Micro = Micro(2, 53);
/// Descriptions of flavors.
pub const FLAVOR_DESCRIPTION: Micro = Micro(2, 55);
/// No injected files any more.
pub const NO_PERSONALITY: Micro = Micro(2, 57);
/// `updated_at` and paging of actions.
pub const ACTION_PAGING: Micro = Micro(2, 58);
/// Paging of migrations.
pub const MIGRATION_PAGING: Micro = Micro(2, 59);
/// Extra specs within flavors.
pub const FLAVOR_SPECS: Micro = Micro(2, 61);
/// Hosts in action events.
pub const EVENT_HOST: Micro = Micro(2, 62);
/// `trusted_image_certificates` in servers.
pub const CERTIFICATES: Micro = Micro(2, 63);
/// A server group has one policy, with rules.
pub const GROUP_RULES: Micro = Micro(2, 64);
/// `changes-before` in lists.
pub const CHANGES_BEFORE: Micro = Micro(2, 66);
/// Tags in volume attachments and interfaces.
pub const ATTACHMENT_TAGS: Micro = Micro(2, 70);
/// `server_groups` in a server.
pub const SERVER_GROUPS: Micro = Micro(2, 71);
/// `locked_reason`.
pub const LOCKED_REASON: Micro = Micro(2, 73);
/// Placement on a named host.
pub const CREATE_HOST: Micro = Micro(2, 74);
/// Unknown query parameters are refused; answers of update carry all fields.
pub const STRICT: Micro = Micro(2, 75);
/// A zone may be named to unshelve into.
pub const UNSHELVE_ZONE: Micro = Micro(2, 77);
/// `delete_on_termination` of attachments.
pub const DELETE_ON_TERMINATION: Micro = Micro(2, 79);
/// Why an event failed.
pub const EVENT_DETAILS: Micro = Micro(2, 84);
/// `delete_on_termination` may be changed.
pub const ATTACHMENT_UPDATE: Micro = Micro(2, 85);
/// Extra specs of flavors are checked.
pub const SPECS_CHECKED: Micro = Micro(2, 86);
/// Hypervisors lost their usage figures and gained `uptime` and `servers`.
pub const HYPERVISOR_LEAN: Micro = Micro(2, 88);
/// Attachments name `attachment_id` and `bdm_uuid` rather than `id`.
pub const ATTACHMENT_IDS: Micro = Micro(2, 89);
/// Host names may be chosen and are shown to owners.
pub const HOSTNAME: Micro = Micro(2, 90);
/// Key pairs are imported only, and their names may hold `@` and `.`.
pub const KEYPAIR_IMPORT_ONLY: Micro = Micro(2, 92);
/// Host names may be fully qualified.
pub const HOSTNAME_FQDN: Micro = Micro(2, 94);
/// `pinned_availability_zone` in servers.
pub const PINNED_ZONE: Micro = Micro(2, 96);
