//! The operations on volume types and QoS specs.

use super::routes::{ADMIN, READER, operation};
use super::{qos, schema, types};
use crate::app::App;
use api_kit::Operation;
use axum::http::Method;

pub(super) fn operations() -> Vec<Operation<App>> {
    let mut all = types();
    all.extend(type_specs());
    all.extend(specs());
    all.extend(associations());
    all
}

fn types() -> Vec<Operation<App>> {
    const LIST: &str = "/v3/{project_id}/types";
    const ONE: &str = "/v3/{project_id}/types/{type_id}";
    const ACTION: &str = "/v3/{project_id}/types/{type_id}/action";
    vec![
        operation(
            (Method::GET, LIST),
            ("type:list", "List volume types"),
            ("volume_extension:type_get_all", READER),
            200,
            types::list,
        )
        .plain()
        .query(&["is_public", "limit", "marker", "sort"]),
        operation(
            (Method::POST, LIST),
            ("type:create", "Create a volume type"),
            ("volume_extension:type_create", ADMIN),
            200,
            types::create,
        )
        .body(schema::TYPE),
        operation(
            (Method::GET, ONE),
            ("type:show", "Show a volume type"),
            ("volume_extension:type_get", READER),
            200,
            types::show,
        )
        .plain(),
        operation(
            (Method::PUT, ONE),
            ("type:update", "Change a volume type"),
            ("volume_extension:type_update", ADMIN),
            200,
            types::update,
        )
        .body(schema::TYPE_UPDATE),
        operation(
            (Method::DELETE, ONE),
            ("type:delete", "Delete a volume type"),
            ("volume_extension:type_delete", ADMIN),
            202,
            types::delete,
        )
        .plain(),
        operation(
            (Method::GET, "/v3/{project_id}/types/{type_id}/os-volume-type-access"),
            ("type:access", "List the projects that may use a private volume type"),
            ("volume_extension:volume_type_access:get_all_for_type", ADMIN),
            200,
            types::access,
        )
        .plain(),
        operation(
            (Method::POST, ACTION),
            ("type:add-access", "Let a project use a private volume type"),
            ("volume_extension:volume_type_access:addProjectAccess", ADMIN),
            202,
            types::add_access,
        )
        .body(schema::ADD_ACCESS)
        .action("addProjectAccess"),
        operation(
            (Method::POST, ACTION),
            ("type:remove-access", "Let a project no longer use a private volume type"),
            ("volume_extension:volume_type_access:removeProjectAccess", ADMIN),
            202,
            types::remove_access,
        )
        .body(schema::REMOVE_ACCESS)
        .action("removeProjectAccess"),
    ]
}

fn type_specs() -> Vec<Operation<App>> {
    const LIST: &str = "/v3/{project_id}/types/{type_id}/extra_specs";
    const ONE: &str = "/v3/{project_id}/types/{type_id}/extra_specs/{key}";
    vec![
        operation(
            (Method::GET, LIST),
            ("type:extra-specs", "Show a type's extra specs"),
            ("volume_extension:types_extra_specs:index", READER),
            200,
            types::specs_list,
        )
        .plain(),
        operation(
            (Method::POST, LIST),
            ("type:add-specs", "Add extra specs to a type"),
            ("volume_extension:types_extra_specs:create", ADMIN),
            200,
            types::specs_add,
        )
        .body(schema::TYPE_SPECS),
        operation(
            (Method::GET, ONE),
            ("type:spec", "Show one extra spec"),
            ("volume_extension:types_extra_specs:show", READER),
            200,
            types::spec_show,
        )
        .plain(),
        operation(
            (Method::PUT, ONE),
            ("type:set-spec", "Set one extra spec"),
            ("volume_extension:types_extra_specs:update", ADMIN),
            200,
            types::spec_put,
        )
        .body(schema::TYPE_SPEC),
        operation(
            (Method::DELETE, ONE),
            ("type:delete-spec", "Remove one extra spec"),
            ("volume_extension:types_extra_specs:delete", ADMIN),
            202,
            types::spec_delete,
        )
        .plain(),
    ]
}

fn specs() -> Vec<Operation<App>> {
    const LIST: &str = "/v3/{project_id}/qos-specs";
    const ONE: &str = "/v3/{project_id}/qos-specs/{qos_id}";
    vec![
        operation(
            (Method::GET, LIST),
            ("qos:list", "List QoS specs"),
            ("volume_extension:qos_specs_manage:get_all", ADMIN),
            200,
            qos::list,
        )
        .plain()
        .query(&["limit", "marker", "sort", "sort_key", "sort_dir"]),
        operation(
            (Method::POST, LIST),
            ("qos:create", "Create QoS specs"),
            ("volume_extension:qos_specs_manage:create", ADMIN),
            200,
            qos::create,
        )
        .body(schema::QOS),
        operation(
            (Method::GET, ONE),
            ("qos:show", "Show QoS specs"),
            ("volume_extension:qos_specs_manage:get", ADMIN),
            200,
            qos::show,
        )
        .plain(),
        operation(
            (Method::PUT, ONE),
            ("qos:set", "Set keys of QoS specs"),
            ("volume_extension:qos_specs_manage:update", ADMIN),
            200,
            qos::update,
        )
        .body(schema::QOS_UPDATE),
        operation(
            (Method::DELETE, ONE),
            ("qos:delete", "Delete QoS specs"),
            ("volume_extension:qos_specs_manage:delete", ADMIN),
            202,
            qos::delete,
        )
        .plain()
        .query(&["force"]),
        operation(
            (Method::PUT, "/v3/{project_id}/qos-specs/{qos_id}/delete_keys"),
            ("qos:unset", "Take keys from QoS specs"),
            ("volume_extension:qos_specs_manage:update", ADMIN),
            202,
            qos::delete_keys,
        )
        .body(schema::QOS_KEYS),
    ]
}

fn associations() -> Vec<Operation<App>> {
    let at = |path: &'static str| (Method::GET, path);
    vec![
        operation(
            at("/v3/{project_id}/qos-specs/{qos_id}/associations"),
            ("qos:associations", "List the types that have QoS specs"),
            ("volume_extension:qos_specs_manage:get", ADMIN),
            200,
            qos::associations,
        )
        .plain(),
        operation(
            at("/v3/{project_id}/qos-specs/{qos_id}/associate"),
            ("qos:associate", "Give QoS specs to a type"),
            ("volume_extension:qos_specs_manage:update", ADMIN),
            202,
            qos::associate,
        )
        .plain()
        .query(&["vol_type_id"]),
        operation(
            at("/v3/{project_id}/qos-specs/{qos_id}/disassociate"),
            ("qos:disassociate", "Take QoS specs from a type"),
            ("volume_extension:qos_specs_manage:update", ADMIN),
            202,
            qos::disassociate,
        )
        .plain()
        .query(&["vol_type_id"]),
        operation(
            at("/v3/{project_id}/qos-specs/{qos_id}/disassociate_all"),
            ("qos:disassociate-all", "Take QoS specs from all types"),
            ("volume_extension:qos_specs_manage:update", ADMIN),
            202,
            qos::disassociate_all,
        )
        .plain(),
    ]
}
