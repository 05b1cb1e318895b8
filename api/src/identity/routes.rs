//! The operations.

use super::entity::{DOMAINS, ENDPOINTS, GROUPS, Kind, PROJECTS, REGIONS, ROLES, SERVICES, USERS};
use super::policy::{
    ADMIN, ANYONE, DOMAIN, GROUP, LIST, MANAGE_GROUP, MANAGE_PROJECT, MANAGE_USER, PROJECT, READER, REVOKE,
    RULES, SELF, SELF_OR_READER, TOKEN, USER,
};
use super::{appcreds, assignments, auth, crud, projects, schema, users};
use crate::app::App;
use api_kit::{Call, FaultStyle, Operation, Outcome, Reply, Service};
use axum::http::Method;
use serde_json::{Value, json};

const REFUSALS: &[u16] = &[400, 401, 403, 404, 409];
const READS: &[u16] = &[400, 401, 403, 404];

/// The service's declaration.
#[must_use]
pub fn service() -> Service<App> {
    Service::new("identity", "identity", "/identity", FaultStyle::Keystone)
        .rules(RULES)
        .operations(discovery())
        .operations(tokens())
        .operations(resources())
        .operations(project_tags())
        .operations(people())
        .operations(roles())
        .operations(credentials())
}

fn version(call: &Call<App>) -> Value {
    json!({"id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{}/v3/", call.base)}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}]})
}

async fn versions(call: Call<App>) -> Outcome {
    let link = format!("{}/v3/", call.base);
    Ok(Reply::json(300, json!({"versions": {"values": [version(&call)]}})).header("location", link))
}

async fn v3(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, json!({"version": version(&call)})))
}

fn discovery() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::GET, "/", versions)
            .name("versions")
            .summary("List versions")
            .open()
            .codes(300, &[]),
        Operation::new(Method::GET, "/v3", v3)
            .name("version")
            .summary("Show version 3")
            .open()
            .codes(200, &[]),
    ]
}

fn tokens() -> Vec<Operation<App>> {
    vec![
        Operation::new(Method::POST, "/v3/auth/tokens", auth::issue)
            .name("issue_token")
            .summary("Prove who one is and get a token")
            .open()
            .body(schema::AUTHENTICATE)
            .query(&["nocatalog"])
            .codes(201, &[400, 401, 403]),
        Operation::new(Method::GET, "/v3/auth/tokens", auth::validate)
            .name("validate_token")
            .summary("Show what a token is good for")
            .policy("identity:validate_token", TOKEN)
            .query(&["nocatalog"])
            .codes(200, READS),
        Operation::new(Method::DELETE, "/v3/auth/tokens", auth::revoke)
            .name("revoke_token")
            .summary("End a token")
            .policy("identity:revoke_token", REVOKE)
            .codes(204, READS),
        Operation::new(Method::GET, "/v3/auth/catalog", auth::catalog)
            .name("get_auth_catalog")
            .summary("List services and their endpoints")
            .policy("identity:get_auth_catalog", ANYONE)
            .codes(200, READS),
        Operation::new(Method::GET, "/v3/auth/projects", auth::projects)
            .name("get_auth_projects")
            .summary("List the projects that a token may be scoped to")
            .policy("identity:get_auth_projects", ANYONE)
            .codes(200, READS),
        Operation::new(Method::GET, "/v3/auth/domains", auth::domains)
            .name("get_auth_domains")
            .summary("List the domains that a token may be scoped to")
            .policy("identity:get_auth_domains", ANYONE)
            .codes(200, READS),
        Operation::new(Method::GET, "/v3/auth/system", auth::system)
            .name("get_auth_system")
            .summary("Show whether a token may be scoped to the system")
            .policy("identity:get_auth_system", ANYONE)
            .codes(200, READS),
    ]
}

/// How one kind is declared: paths, rules (name and default) and schemas.
struct Declared {
    kind: &'static Kind,
    paths: [&'static str; 2],
    names: [&'static str; 5],
    rules: [(&'static str, &'static str); 5],
    schemas: [&'static str; 2],
    summaries: [&'static str; 5],
}

macro_rules! declared {
    ($kind:ident, $one:literal, $many:literal, $list:ident, $show:ident, $manage:ident, $create:ident, $update:ident) => {
        Declared {
            kind: &$kind,
            paths: [concat!("/v3/", $many), concat!("/v3/", $many, "/{id}")],
            names: [
                concat!("list_", $many),
                concat!("create_", $one),
                concat!("get_", $one),
                concat!("update_", $one),
                concat!("delete_", $one),
            ],
            rules: [
                (concat!("identity:list_", $many), $list),
                (concat!("identity:create_", $one), $manage),
                (concat!("identity:get_", $one), $show),
                (concat!("identity:update_", $one), $manage),
                (concat!("identity:delete_", $one), $manage),
            ],
            schemas: [schema::$create, schema::$update],
            summaries: [
                concat!("List ", $many),
                concat!("Create a ", $one),
                concat!("Show a ", $one),
                concat!("Change a ", $one),
                concat!("Delete a ", $one),
            ],
        }
    };
}

impl Declared {
    fn operations(self) -> [Operation<App>; 5] {
        let Self { kind, paths: [all, one], names, rules, schemas, summaries } = self;
        [
            Operation::new(Method::GET, all, move |call| crud::list(call, kind))
                .list(&kind.list)
                .codes(200, &[400, 401, 403]),
            Operation::new(Method::POST, all, move |call| crud::create(call, kind))
                .body(schemas[0])
                .codes(201, REFUSALS),
            Operation::new(Method::GET, one, move |call| crud::show(call, kind)).codes(200, READS),
            Operation::new(Method::PATCH, one, move |call| crud::update(call, kind))
                .body(schemas[1])
                .codes(200, REFUSALS),
            Operation::new(Method::DELETE, one, move |call| crud::delete(call, kind)).codes(204, REFUSALS),
        ]
        .into_iter()
        .zip(names)
        .zip(rules)
        .zip(summaries)
        .map(|(((operation, name), (rule, default)), summary)| {
            operation.name(name).policy(rule, default).summary(summary)
        })
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|_| unreachable!("five in, five out"))
    }
}

fn resources() -> Vec<Operation<App>> {
    [
        declared!(DOMAINS, "domain", "domains", READER, DOMAIN, ADMIN, DOMAIN_CREATE, DOMAIN_UPDATE),
        declared!(
            PROJECTS,
            "project",
            "projects",
            LIST,
            PROJECT,
            MANAGE_PROJECT,
            PROJECT_CREATE,
            PROJECT_UPDATE
        ),
        declared!(USERS, "user", "users", LIST, USER, MANAGE_USER, USER_CREATE, USER_UPDATE),
        declared!(GROUPS, "group", "groups", LIST, GROUP, MANAGE_GROUP, GROUP_CREATE, GROUP_UPDATE),
        declared!(ROLES, "role", "roles", READER, READER, ADMIN, ROLE_CREATE, ROLE_UPDATE),
        declared!(REGIONS, "region", "regions", ANYONE, ANYONE, ADMIN, REGION_CREATE, REGION_UPDATE),
        declared!(SERVICES, "service", "services", READER, READER, ADMIN, SERVICE_CREATE, SERVICE_UPDATE),
        declared!(
            ENDPOINTS,
            "endpoint",
            "endpoints",
            READER,
            READER,
            ADMIN,
            ENDPOINT_CREATE,
            ENDPOINT_UPDATE
        ),
    ]
    .into_iter()
    .flat_map(Declared::operations)
    .collect()
}

fn project_tags() -> Vec<Operation<App>> {
    const ALL: &str = "/v3/projects/{id}/tags";
    const ONE: &str = "/v3/projects/{id}/tags/{tag}";
    vec![
        Operation::new(Method::GET, ALL, projects::list_tags)
            .name("list_project_tags")
            .summary("List a project's tags")
            .policy("identity:list_project_tags", PROJECT)
            .codes(200, READS),
        Operation::new(Method::PUT, ALL, projects::set_tags)
            .name("update_project_tags")
            .summary("Replace a project's tags")
            .policy("identity:update_project_tags", MANAGE_PROJECT)
            .body(schema::TAGS)
            .codes(200, REFUSALS),
        Operation::new(Method::DELETE, ALL, projects::clear_tags)
            .name("delete_project_tags")
            .summary("Remove all tags of a project")
            .policy("identity:delete_project_tags", MANAGE_PROJECT)
            .codes(204, READS),
        Operation::new(Method::GET, ONE, projects::has_tag)
            .name("get_project_tag")
            .summary("Check a tag of a project")
            .policy("identity:get_project_tag", PROJECT)
            .codes(204, READS),
        Operation::new(Method::PUT, ONE, projects::add_tag)
            .name("create_project_tag")
            .summary("Add a tag to a project")
            .policy("identity:create_project_tag", MANAGE_PROJECT)
            .no_schema("it has no body")
            .codes(201, REFUSALS),
        Operation::new(Method::DELETE, ONE, projects::remove_tag)
            .name("delete_project_tag")
            .summary("Remove a tag of a project")
            .policy("identity:delete_project_tag", MANAGE_PROJECT)
            .codes(204, READS),
    ]
}

fn people() -> Vec<Operation<App>> {
    const MEMBER: &str = "/v3/groups/{id}/users/{user_id}";
    vec![
        Operation::new(Method::POST, "/v3/users/{id}/password", users::change_password)
            .name("change_password")
            .summary("Change one's own password")
            .open()
            .body(schema::PASSWORD)
            .codes(204, &[400, 401]),
        Operation::new(Method::GET, "/v3/users/{id}/projects", users::projects)
            .name("list_user_projects")
            .summary("List the projects that a user has roles on")
            .policy("identity:list_user_projects", SELF_OR_READER)
            .codes(200, READS),
        Operation::new(Method::GET, "/v3/users/{id}/groups", users::groups)
            .name("list_groups_for_user")
            .summary("List the groups that a user is in")
            .policy("identity:list_groups_for_user", SELF_OR_READER)
            .codes(200, READS),
        Operation::new(Method::GET, "/v3/groups/{id}/users", users::members)
            .name("list_users_in_group")
            .summary("List the users of a group")
            .policy("identity:list_users_in_group", GROUP)
            .codes(200, READS),
        Operation::new(Method::PUT, MEMBER, users::add_member)
            .name("add_user_to_group")
            .summary("Add a user to a group")
            .policy("identity:add_user_to_group", MANAGE_GROUP)
            .no_schema("it has no body")
            .codes(204, READS),
        Operation::new(Method::GET, MEMBER, users::is_member)
            .name("check_user_in_group")
            .summary("Check whether a user is in a group")
            .policy("identity:check_user_in_group", GROUP)
            .codes(204, READS),
        Operation::new(Method::DELETE, MEMBER, users::remove_member)
            .name("remove_user_from_group")
            .summary("Remove a user from a group")
            .policy("identity:remove_user_from_group", MANAGE_GROUP)
            .codes(204, READS),
    ]
}

/// Paths of a pair of target and actor, with the names of its four operations.
const PAIRS: [(&str, &str, [&str; 4]); 10] = [
    (
        "/v3/OS-INHERIT/domains/{domain_id}/users/{user_id}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/domains/{domain_id}/users/{user_id}/roles/{role_id}/inherited_to_projects",
        [
            "list_inherited_domain_user",
            "inherit_domain_user",
            "check_inherited_domain_user",
            "disinherit_domain_user",
        ],
    ),
    (
        "/v3/OS-INHERIT/domains/{domain_id}/groups/{group_id}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/domains/{domain_id}/groups/{group_id}/roles/{role_id}/inherited_to_projects",
        [
            "list_inherited_domain_group",
            "inherit_domain_group",
            "check_inherited_domain_group",
            "disinherit_domain_group",
        ],
    ),
    (
        "/v3/OS-INHERIT/projects/{project_id}/users/{user_id}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/projects/{project_id}/users/{user_id}/roles/{role_id}/inherited_to_projects",
        [
            "list_inherited_project_user",
            "inherit_project_user",
            "check_inherited_project_user",
            "disinherit_project_user",
        ],
    ),
    (
        "/v3/OS-INHERIT/projects/{project_id}/groups/{group_id}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/projects/{project_id}/groups/{group_id}/roles/{role_id}/inherited_to_projects",
        [
            "list_inherited_project_group",
            "inherit_project_group",
            "check_inherited_project_group",
            "disinherit_project_group",
        ],
    ),
    (
        "/v3/projects/{project_id}/users/{user_id}/roles",
        "/v3/projects/{project_id}/users/{user_id}/roles/{role_id}",
        ["list_project_user_roles", "grant_project_user", "check_project_user", "revoke_project_user"],
    ),
    (
        "/v3/projects/{project_id}/groups/{group_id}/roles",
        "/v3/projects/{project_id}/groups/{group_id}/roles/{role_id}",
        ["list_project_group_roles", "grant_project_group", "check_project_group", "revoke_project_group"],
    ),
    (
        "/v3/domains/{domain_id}/users/{user_id}/roles",
        "/v3/domains/{domain_id}/users/{user_id}/roles/{role_id}",
        ["list_domain_user_roles", "grant_domain_user", "check_domain_user", "revoke_domain_user"],
    ),
    (
        "/v3/domains/{domain_id}/groups/{group_id}/roles",
        "/v3/domains/{domain_id}/groups/{group_id}/roles/{role_id}",
        ["list_domain_group_roles", "grant_domain_group", "check_domain_group", "revoke_domain_group"],
    ),
    (
        "/v3/system/users/{user_id}/roles",
        "/v3/system/users/{user_id}/roles/{role_id}",
        ["list_system_user_roles", "grant_system_user", "check_system_user", "revoke_system_user"],
    ),
    (
        "/v3/system/groups/{group_id}/roles",
        "/v3/system/groups/{group_id}/roles/{role_id}",
        ["list_system_group_roles", "grant_system_group", "check_system_group", "revoke_system_group"],
    ),
];

fn roles() -> Vec<Operation<App>> {
    const IMPLIED: &str = "/v3/roles/{id}/implies/{role_id}";
    let mut all = vec![
        Operation::new(Method::GET, "/v3/role_assignments", assignments::list)
            .name("list_role_assignments")
            .summary("List who has which role where")
            .policy("identity:list_role_assignments", READER)
            .query(&[
                "user.id",
                "group.id",
                "role.id",
                "scope.project.id",
                "scope.domain.id",
                "scope.system",
                "scope.OS-INHERIT:inherited_to",
                "effective",
                "include_names",
            ])
            .codes(200, READS),
        Operation::new(Method::GET, "/v3/role_inferences", assignments::inferences)
            .name("list_role_inference_rules")
            .summary("List which roles imply which")
            .policy("identity:list_role_inference_rules", READER)
            .codes(200, READS),
        Operation::new(Method::GET, "/v3/roles/{id}/implies", assignments::inferences)
            .name("list_implied_roles")
            .summary("List the roles that a role implies")
            .policy("identity:list_implied_roles", READER)
            .codes(200, READS),
        Operation::new(Method::PUT, IMPLIED, assignments::imply)
            .name("create_implied_role")
            .summary("Make a role imply another")
            .policy("identity:create_implied_role", ADMIN)
            .no_schema("it has no body")
            .codes(201, REFUSALS),
        Operation::new(Method::GET, IMPLIED, assignments::is_implied)
            .name("get_implied_role")
            .summary("Show whether a role implies another")
            .policy("identity:get_implied_role", READER)
            .codes(200, READS),
        Operation::new(Method::DELETE, IMPLIED, assignments::unimply)
            .name("delete_implied_role")
            .summary("Make a role no longer imply another")
            .policy("identity:delete_implied_role", ADMIN)
            .codes(204, READS),
    ];
    for (many, one, [list, grant, check, revoke]) in PAIRS {
        let system = many.starts_with("/v3/system");
        let rule =
            |project: &'static str, system_rule: &'static str| if system { system_rule } else { project };
        all.extend([
            Operation::new(Method::GET, many, assignments::list_pair)
                .name(list)
                .summary("List the roles of a user or group on a project, domain or the system")
                .policy(rule("identity:list_grants", "identity:list_system_grants"), READER)
                .codes(200, READS),
            Operation::new(Method::PUT, one, assignments::grant)
                .name(grant)
                .summary("Give a user or group a role on a project, domain or the system")
                .policy(rule("identity:create_grant", "identity:create_system_grant"), ADMIN)
                .no_schema("it has no body")
                .codes(204, REFUSALS),
            Operation::new(Method::GET, one, assignments::check)
                .name(check)
                .summary("Check whether a user or group has a role on a project, domain or the system")
                .policy(rule("identity:check_grant", "identity:check_system_grant"), READER)
                .codes(204, READS),
            Operation::new(Method::DELETE, one, assignments::ungrant)
                .name(revoke)
                .summary("Take a role on a project, domain or the system from a user or group")
                .policy(rule("identity:revoke_grant", "identity:revoke_system_grant"), ADMIN)
                .codes(204, READS),
        ]);
    }
    all
}

fn credentials() -> Vec<Operation<App>> {
    const ALL: &str = "/v3/users/{id}/application_credentials";
    const ONE: &str = "/v3/users/{id}/application_credentials/{credential_id}";
    vec![
        Operation::new(Method::GET, ALL, appcreds::list)
            .name("list_application_credentials")
            .summary("List a user's application credentials")
            .policy("identity:list_application_credentials", SELF_OR_READER)
            .query(&["name"])
            .codes(200, READS),
        Operation::new(Method::POST, ALL, appcreds::create)
            .name("create_application_credential")
            .summary("Create an application credential")
            .policy("identity:create_application_credential", "user_id:%(user_id)s")
            .body(schema::APPCRED)
            .codes(201, REFUSALS),
        Operation::new(Method::GET, ONE, appcreds::show)
            .name("get_application_credential")
            .summary("Show an application credential")
            .policy("identity:get_application_credential", SELF_OR_READER)
            .codes(200, READS),
        Operation::new(Method::DELETE, ONE, appcreds::delete)
            .name("delete_application_credential")
            .summary("Delete an application credential")
            .policy("identity:delete_application_credential", SELF)
            .codes(204, READS),
    ]
}
