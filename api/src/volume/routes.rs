//! The operations of the service.

use super::{actions, attachments, limits, listing, metadata, misc, rules, schema, snapshots, type_routes};
use crate::app::App;
use api_kit::{Call, Fault, Micro, Operation, Outcome};
use axum::http::Method;
use std::sync::Arc;

pub(super) const READER: &str = "rule:project_reader_or_admin";
const MEMBER: &str = "rule:project_member_or_admin";
pub(super) const ADMIN: &str = "rule:context_is_admin";
/// Attachments came with this version.
const ATTACHMENTS: Micro = Micro(3, 27);
/// The summary came with this version.
const SUMMARY: Micro = Micro(3, 12);

pub(super) struct Line(Operation<App>);

/// One operation with what nearly all have.
pub(super) fn operation<F, Fut>(
    (method, path): (Method, &'static str),
    (name, summary): (&'static str, &'static str),
    (rule, default): (&'static str, &'static str),
    code: u16,
    handler: F,
) -> Line
where
    F: Fn(Call<App>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let handler = Arc::new(handler);
    let checked = move |call: Call<App>| {
        let handler = handler.clone();
        async move {
            // The path names the caller's own project; of another's nothing is said, to administrators neither.
            if call.caller.project_id.as_deref() != Some(call.path("project_id")) {
                return Err(Fault::bad_request("Malformed request url"));
            }
            handler(call).await
        }
    };
    Line(
        Operation::new(method, path, checked)
            .name(name)
            .summary(summary)
            .policy(rule, default)
            .codes(code, &[400, 401, 403, 404, 409, 413]),
    )
}

impl Line {
    pub(super) fn body(self, schema: &'static str) -> Operation<App> {
        self.0.body(schema)
    }
    pub(super) fn plain(self) -> Operation<App> {
        self.0
    }
}

pub(super) fn operations() -> Vec<Operation<App>> {
    let mut all = vec![
        Operation::new(Method::GET, "/", misc::versions)
            .name("versions")
            .open()
            .codes(300, &[])
            .summary("API versions"),
        Operation::new(Method::GET, "/v3", misc::version_3).name("versions:3").open().summary("This version"),
    ];
    all.extend(volumes());
    all.extend(volume_actions());
    all.extend(snapshot_operations());
    all.extend(attachment_operations());
    all.extend(around());
    all.extend(type_routes::operations());
    all
}

fn volumes() -> Vec<Operation<App>> {
    const LIST: &str = "/v3/{project_id}/volumes";
    const DETAIL: &str = "/v3/{project_id}/volumes/detail";
    const ONE: &str = "/v3/{project_id}/volumes/{volume_id}";
    let mut all = vec![
        operation(
            (Method::GET, LIST),
            ("volume:list", "List volumes"),
            ("volume:get_all", READER),
            200,
            listing::volumes,
        )
        .plain()
        .list(&listing::VOLUMES),
        operation(
            (Method::GET, DETAIL),
            ("volume:detail", "List volumes with details"),
            ("volume:get_all", READER),
            200,
            listing::volumes_detail,
        )
        .plain()
        .list(&listing::VOLUMES),
        operation(
            (Method::GET, "/v3/{project_id}/volumes/summary"),
            ("volume:summary", "Count volumes"),
            ("volume:get_all", READER),
            200,
            listing::summary,
        )
        .plain()
        .since(SUMMARY)
        .query(&["all_tenants"]),
        operation(
            (Method::POST, LIST),
            ("volume:create", "Create a volume"),
            ("volume:create", MEMBER),
            202,
            rules::create,
        )
        .body(schema::CREATE),
        operation(
            (Method::GET, ONE),
            ("volume:show", "Show a volume"),
            ("volume:get", READER),
            200,
            rules::show,
        )
        .plain(),
        operation(
            (Method::PUT, ONE),
            ("volume:update", "Change a volume"),
            ("volume:update", MEMBER),
            200,
            rules::update,
        )
        .body(schema::UPDATE),
        operation(
            (Method::DELETE, ONE),
            ("volume:delete", "Delete a volume"),
            ("volume:delete", MEMBER),
            202,
            rules::delete,
        )
        .plain()
        .query(&["cascade", "force"]),
    ];
    all.extend(metadata_operations(
        (
            "/v3/{project_id}/volumes/{volume_id}/metadata",
            "/v3/{project_id}/volumes/{volume_id}/metadata/{key}",
        ),
        [
            "volume-metadata:show",
            "volume-metadata:add",
            "volume-metadata:replace",
            "volume-metadata:get",
            "volume-metadata:put",
            "volume-metadata:delete",
        ],
        [
            "volume:get_volume_metadata",
            "volume:create_volume_metadata",
            "volume:update_volume_metadata",
            "volume:delete_volume_metadata",
        ],
    ));
    all
}

fn metadata_operations(
    (all, one): (&'static str, &'static str),
    names: [&'static str; 6],
    policies: [&'static str; 4],
) -> Vec<Operation<App>> {
    let [read, create, update, delete] = policies;
    vec![
        operation((Method::GET, all), (names[0], "Show metadata"), (read, READER), 200, metadata::show)
            .plain(),
        operation((Method::POST, all), (names[1], "Add metadata"), (create, MEMBER), 200, metadata::add)
            .body(schema::METADATA),
        operation(
            (Method::PUT, all),
            (names[2], "Replace metadata"),
            (update, MEMBER),
            200,
            metadata::replace,
        )
        .body(schema::METADATA),
        operation((Method::GET, one), (names[3], "Show one item"), (read, READER), 200, metadata::show_one)
            .plain(),
        operation((Method::PUT, one), (names[4], "Set one item"), (update, MEMBER), 200, metadata::put_one)
            .body(schema::META),
        operation(
            (Method::DELETE, one),
            (names[5], "Remove one item"),
            (delete, MEMBER),
            200,
            metadata::delete_one,
        )
        .plain(),
    ]
}

fn volume_actions() -> Vec<Operation<App>> {
    const ACTION: &str = "/v3/{project_id}/volumes/{volume_id}/action";
    let at = || (Method::POST, ACTION);
    vec![
        operation(
            at(),
            ("volume:extend", "Extend a volume"),
            ("volume:extend", MEMBER),
            202,
            actions::extend,
        )
        .body(schema::EXTEND)
        .action("os-extend"),
        operation(
            at(),
            ("volume:set-bootable", "Say whether it boots"),
            ("volume_extension:volume_actions:set_bootable", MEMBER),
            200,
            actions::set_bootable,
        )
        .body(schema::BOOTABLE)
        .action("os-set_bootable"),
        operation(
            at(),
            ("volume:reset-status", "Set the status by hand"),
            ("volume_extension:volume_admin_actions:reset_status", ADMIN),
            202,
            actions::reset_status,
        )
        .body(schema::RESET)
        .action("os-reset_status"),
        operation(
            at(),
            ("volume:force-delete", "Delete in any status"),
            ("volume_extension:volume_admin_actions:force_delete", ADMIN),
            202,
            actions::force_delete,
        )
        .plain()
        .no_schema("the value is null or an empty object")
        .action("os-force_delete"),
        operation(
            at(),
            ("volume:reserve", "Reserve for attaching"),
            ("volume_extension:volume_actions:reserve", MEMBER),
            202,
            actions::reserve,
        )
        .plain()
        .no_schema("the value is null or an empty object")
        .action("os-reserve"),
        operation(
            at(),
            ("volume:unreserve", "Give a reservation up"),
            ("volume_extension:volume_actions:unreserve", MEMBER),
            202,
            actions::unreserve,
        )
        .plain()
        .no_schema("the value is null or an empty object")
        .action("os-unreserve"),
        operation(
            at(),
            ("volume:upload-image", "Make an image of a volume"),
            ("volume_extension:volume_actions:upload_image", MEMBER),
            202,
            actions::upload_image,
        )
        .body(schema::UPLOAD)
        .action("os-volume_upload_image"),
    ]
}

fn snapshot_operations() -> Vec<Operation<App>> {
    const LIST: &str = "/v3/{project_id}/snapshots";
    const ONE: &str = "/v3/{project_id}/snapshots/{snapshot_id}";
    let mut all = vec![
        operation(
            (Method::GET, LIST),
            ("snapshot:list", "List snapshots"),
            ("volume:get_all_snapshots", READER),
            200,
            listing::snapshots,
        )
        .plain()
        .list(&listing::SNAPSHOTS),
        operation(
            (Method::GET, "/v3/{project_id}/snapshots/detail"),
            ("snapshot:detail", "List snapshots with details"),
            ("volume:get_all_snapshots", READER),
            200,
            listing::snapshots_detail,
        )
        .plain()
        .list(&listing::SNAPSHOTS),
        operation(
            (Method::POST, LIST),
            ("snapshot:create", "Take a snapshot"),
            ("volume:create_snapshot", MEMBER),
            202,
            snapshots::create,
        )
        .body(schema::SNAPSHOT_CREATE),
        operation(
            (Method::GET, ONE),
            ("snapshot:show", "Show a snapshot"),
            ("volume:get_snapshot", READER),
            200,
            snapshots::show,
        )
        .plain(),
        operation(
            (Method::PUT, ONE),
            ("snapshot:update", "Change a snapshot"),
            ("volume:update_snapshot", MEMBER),
            200,
            snapshots::update,
        )
        .body(schema::SNAPSHOT_UPDATE),
        operation(
            (Method::DELETE, ONE),
            ("snapshot:delete", "Delete a snapshot"),
            ("volume:delete_snapshot", MEMBER),
            202,
            snapshots::delete,
        )
        .plain(),
    ];
    all.extend(metadata_operations(
        (
            "/v3/{project_id}/snapshots/{snapshot_id}/metadata",
            "/v3/{project_id}/snapshots/{snapshot_id}/metadata/{key}",
        ),
        [
            "snapshot-metadata:show",
            "snapshot-metadata:add",
            "snapshot-metadata:replace",
            "snapshot-metadata:get",
            "snapshot-metadata:put",
            "snapshot-metadata:delete",
        ],
        [
            "volume:get_snapshot_metadata",
            "volume:create_snapshot_metadata",
            "volume:update_snapshot_metadata",
            "volume:delete_snapshot_metadata",
        ],
    ));
    all
}

fn attachment_operations() -> Vec<Operation<App>> {
    const LIST: &str = "/v3/{project_id}/attachments";
    const ONE: &str = "/v3/{project_id}/attachments/{attachment_id}";
    const QUERY: &[&str] =
        &["all_tenants", "project_id", "volume_id", "instance_id", "status", "limit", "marker"];
    vec![
        operation(
            (Method::GET, LIST),
            ("attachment:list", "List attachments"),
            ("volume:get_all", READER),
            200,
            attachments::list,
        )
        .plain()
        .since(ATTACHMENTS)
        .query(QUERY),
        operation(
            (Method::GET, "/v3/{project_id}/attachments/detail"),
            ("attachment:detail", "List attachments with details"),
            ("volume:get_all", READER),
            200,
            attachments::detail,
        )
        .plain()
        .since(ATTACHMENTS)
        .query(QUERY),
        operation(
            (Method::GET, ONE),
            ("attachment:show", "Show an attachment"),
            ("volume:get", READER),
            200,
            attachments::show,
        )
        .plain()
        .since(ATTACHMENTS),
        operation(
            (Method::POST, LIST),
            ("attachment:create", "Reserve a volume for a server"),
            ("volume:attachment_create", MEMBER),
            200,
            attachments::create,
        )
        .body(schema::ATTACHMENT)
        .since(ATTACHMENTS),
        operation(
            (Method::DELETE, ONE),
            ("attachment:delete", "Give a reservation up"),
            ("volume:attachment_delete", MEMBER),
            200,
            attachments::delete,
        )
        .plain()
        .since(ATTACHMENTS),
    ]
}

fn around() -> Vec<Operation<App>> {
    const QUOTA: &str = "/v3/{project_id}/os-quota-sets/{target}";
    let read = |path: &'static str| (Method::GET, path);
    vec![
        operation(
            read("/v3/{project_id}/limits"),
            ("limits", "Show limits and usage"),
            ("limits_extension:used_limits", READER),
            200,
            limits::absolute,
        )
        .plain(),
        operation(
            read("/v3/{project_id}/os-availability-zone"),
            ("zone:list", "List availability zones"),
            ("volume:availability_zone_list", READER),
            200,
            misc::zones,
        )
        .plain(),
        operation(
            read("/v3/{project_id}/extensions"),
            ("extension:list", "List extensions"),
            ("volume:list_extensions", READER),
            200,
            misc::extensions,
        )
        .plain(),
        operation(
            read("/v3/{project_id}/os-services"),
            ("service:list", "List services"),
            ("volume_extension:services:index", ADMIN),
            200,
            misc::services,
        )
        .plain()
        .query(&["host", "binary"]),
        operation(
            read(QUOTA),
            ("quota:show", "Show quotas"),
            ("volume_extension:quotas:show", READER),
            200,
            limits::show,
        )
        .plain()
        .query(&["usage"]),
        operation(
            read("/v3/{project_id}/os-quota-sets/{target}/defaults"),
            ("quota:defaults", "Show default quotas"),
            ("volume_extension:quotas:show", READER),
            200,
            limits::defaults,
        )
        .plain(),
        operation(
            (Method::PUT, QUOTA),
            ("quota:update", "Set quotas"),
            ("volume_extension:quotas:update", ADMIN),
            200,
            limits::update,
        )
        .body(schema::QUOTA),
        operation(
            (Method::DELETE, QUOTA),
            ("quota:reset", "Take quotas back to the defaults"),
            ("volume_extension:quotas:delete", ADMIN),
            200,
            limits::reset,
        )
        .plain(),
    ]
}
