//! The operations of the service.

use super::{account, container, objects};
use crate::app::App;
use api_kit::Operation;
use axum::http::Method;

const LISTING: &[&str] =
    &["limit", "marker", "end_marker", "prefix", "delimiter", "path", "format", "reverse"];
const ACCOUNT: &str = "/v1/{account}";
const CONTAINER: &str = "/v1/{account}/{container}";
const OBJECT: &str = "/v1/{account}/{container}/{*object}";
const HEADERS: &str = "metadata is in headers";
const READ: (&str, &str) = ("object:read", "rule:project_reader_or_admin");
const WRITE: (&str, &str) = ("object:write", "rule:project_member_or_admin");

pub(super) fn operations() -> Vec<Operation<App>> {
    let copy = Method::from_bytes(b"COPY").unwrap_or(Method::TRACE);
    vec![
        Operation::new(Method::GET, "/info", account::info)
            .name("info")
            .open()
            .summary("What this store can do"),
        Operation::new(Method::GET, ACCOUNT, account::show)
            .name("account:show")
            .policy(READ.0, READ.1)
            .query(LISTING)
            .codes(200, &[401, 403])
            .summary("List containers; HEAD: show the account"),
        Operation::new(Method::POST, ACCOUNT, account::update)
            .name("account:update")
            .policy(WRITE.0, WRITE.1)
            .no_schema(HEADERS)
            .codes(204, &[400, 401, 403])
            .summary("Change the account's metadata"),
        // Open, because a container may be readable by everybody; the handler decides.
        Operation::new(Method::GET, CONTAINER, container::show)
            .name("container:show")
            .open()
            .query(LISTING)
            .codes(200, &[401, 403, 404])
            .summary("List objects; HEAD: show the container"),
        Operation::new(Method::PUT, CONTAINER, container::create)
            .name("container:create")
            .policy(WRITE.0, WRITE.1)
            .no_schema(HEADERS)
            .codes(201, &[400, 401, 403])
            .summary("Create a container"),
        Operation::new(Method::POST, CONTAINER, container::update)
            .name("container:update")
            .policy(WRITE.0, WRITE.1)
            .no_schema(HEADERS)
            .codes(204, &[400, 401, 403, 404])
            .summary("Change a container's metadata"),
        Operation::new(Method::DELETE, CONTAINER, container::delete)
            .name("container:delete")
            .policy(WRITE.0, WRITE.1)
            .codes(204, &[401, 403, 404, 409])
            .summary("Delete an empty container"),
        Operation::new(Method::GET, OBJECT, objects::show)
            .name("object:show")
            .open()
            .codes(200, &[304, 401, 403, 404, 412, 416])
            .summary("Read an object; HEAD: show it"),
        Operation::new(Method::PUT, OBJECT, objects::create)
            .name("object:create")
            .policy(WRITE.0, WRITE.1)
            .no_schema("the body is the object")
            .streams()
            .codes(201, &[400, 401, 403, 404, 411, 412, 413, 422, 507])
            .summary("Write or copy an object"),
        Operation::new(copy, OBJECT, objects::copy)
            .name("object:copy")
            .policy(READ.0, READ.1)
            .no_schema(HEADERS)
            .codes(201, &[400, 401, 403, 404])
            .summary("Copy an object to the Destination"),
        Operation::new(Method::POST, OBJECT, objects::update)
            .name("object:update")
            .policy(WRITE.0, WRITE.1)
            .no_schema(HEADERS)
            .codes(202, &[400, 401, 403, 404])
            .summary("Replace an object's metadata"),
        Operation::new(Method::DELETE, OBJECT, objects::delete)
            .name("object:delete")
            .policy(WRITE.0, WRITE.1)
            .codes(204, &[401, 403, 404])
            .summary("Delete an object"),
    ]
}
