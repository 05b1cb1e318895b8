//! The operations of the service.

use super::{data, limits, members, rules, schema};
use crate::app::App;
use api_kit::{Call, Operation, Outcome, Reply};
use axum::http::Method;
use serde_json::json;

const READER: &str = "rule:project_reader_or_admin";
const MEMBER: &str = "rule:project_member_or_admin";
const IMAGES: &str = "/v2/images";
const IMAGE: &str = "/v2/images/{image_id}";
const FILE: &str = "/v2/images/{image_id}/file";
const TAG: &str = "/v2/images/{image_id}/tags/{tag}";
const MEMBERS: &str = "/v2/images/{image_id}/members";
const ONE_MEMBER: &str = "/v2/images/{image_id}/members/{member_id}";

pub(super) fn operations() -> Vec<Operation<App>> {
    let read = Method::GET;
    vec![
        Operation::new(read.clone(), "/", versions)
            .name("versions")
            .open()
            .codes(300, &[])
            .summary("API versions"),
        Operation::new(read.clone(), "/versions", versions_ok)
            .name("versions:list")
            .open()
            .summary("API versions"),
        Operation::new(read.clone(), IMAGES, rules::list)
            .name("image:list")
            .policy("get_images", READER)
            .list(&rules::LIST)
            .codes(200, &[400, 401, 403])
            .summary("List images"),
        Operation::new(Method::POST, IMAGES, rules::create)
            .name("image:create")
            .policy("add_image", MEMBER)
            .body(schema::CREATE)
            .codes(201, &[400, 401, 403, 409, 413])
            .summary("Create an image without data"),
        Operation::new(read.clone(), IMAGE, rules::show)
            .name("image:show")
            .policy("get_image", READER)
            .codes(200, &[401, 403, 404])
            .summary("Show an image"),
        Operation::new(Method::PATCH, IMAGE, rules::update)
            .name("image:update")
            .policy("modify_image", MEMBER)
            .no_schema("a JSON patch, checked change by change")
            .raw(1 << 20)
            .codes(200, &[400, 401, 403, 404, 409, 415])
            .summary("Change an image"),
        Operation::new(Method::DELETE, IMAGE, rules::delete)
            .name("image:delete")
            .policy("delete_image", MEMBER)
            .codes(204, &[401, 403, 404])
            .summary("Delete an image"),
        Operation::new(Method::PUT, FILE, data::upload)
            .name("image:upload")
            .policy("upload_image", MEMBER)
            .no_schema("the body is the image")
            .streams()
            .codes(204, &[400, 401, 403, 404, 409, 413, 415, 507])
            .summary("Upload an image's data"),
        Operation::new(read.clone(), FILE, data::download)
            .name("image:download")
            .policy("download_image", READER)
            .codes(200, &[204, 401, 403, 404, 416])
            .summary("Download an image's data"),
        Operation::new(Method::POST, "/v2/images/{image_id}/actions/deactivate", rules::deactivate)
            .name("image:deactivate")
            .policy("deactivate", "rule:context_is_admin")
            .no_schema("no body")
            .codes(204, &[401, 403, 404])
            .summary("Forbid the use of an image's data"),
        Operation::new(Method::POST, "/v2/images/{image_id}/actions/reactivate", rules::reactivate)
            .name("image:reactivate")
            .policy("reactivate", "rule:context_is_admin")
            .no_schema("no body")
            .codes(204, &[401, 403, 404])
            .summary("Allow it again"),
        Operation::new(Method::PUT, TAG, rules::add_tag)
            .name("tag:add")
            .policy("modify_image", MEMBER)
            .no_schema("no body")
            .codes(204, &[400, 401, 403, 404, 413])
            .summary("Add a tag"),
        Operation::new(Method::DELETE, TAG, rules::remove_tag)
            .name("tag:remove")
            .policy("modify_image", MEMBER)
            .codes(204, &[401, 403, 404])
            .summary("Remove a tag"),
        Operation::new(read.clone(), MEMBERS, members::list)
            .name("member:list")
            .policy("get_members", READER)
            .codes(200, &[401, 403, 404])
            .summary("List projects that an image is shared with"),
        Operation::new(Method::POST, MEMBERS, members::create)
            .name("member:create")
            .policy("add_member", MEMBER)
            .body(schema::MEMBER_CREATE)
            .codes(200, &[400, 401, 403, 404, 409])
            .summary("Share an image with a project"),
        Operation::new(read.clone(), ONE_MEMBER, members::show)
            .name("member:show")
            .policy("get_member", READER)
            .codes(200, &[401, 403, 404])
            .summary("Show a member"),
        Operation::new(Method::PUT, ONE_MEMBER, members::update)
            .name("member:update")
            .policy("modify_member", MEMBER)
            .body(schema::MEMBER_UPDATE)
            .codes(200, &[400, 401, 403, 404])
            .summary("Accept or reject a shared image"),
        Operation::new(Method::DELETE, ONE_MEMBER, members::delete)
            .name("member:delete")
            .policy("delete_member", MEMBER)
            .codes(204, &[401, 403, 404])
            .summary("Stop sharing an image with a project"),
        Operation::new(read.clone(), "/v2/info/usage", limits::show)
            .name("usage:show")
            .policy("get_usage", READER)
            .codes(200, &[401, 403])
            .summary("What the project has of its limits"),
        document("/v2/schemas/image", "schema:image", |_| async { Ok(Reply::json(200, schema::image())) }),
        document("/v2/schemas/images", "schema:images", |_| async { Ok(Reply::json(200, schema::images())) }),
        document("/v2/schemas/member", "schema:member", |_| async { Ok(Reply::json(200, schema::member())) }),
        document("/v2/schemas/members", "schema:members", |_| async {
            Ok(Reply::json(200, schema::members()))
        }),
    ]
}

fn document<F, Fut>(path: &'static str, name: &'static str, handler: F) -> Operation<App>
where
    F: Fn(Call<App>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    Operation::new(Method::GET, path, handler)
        .name(name)
        .policy("get_schema", "@")
        .summary("A schema document")
}

async fn versions(call: Call<App>) -> Outcome {
    Ok(Reply::json(300, listed(&call)))
}

async fn versions_ok(call: Call<App>) -> Outcome {
    Ok(Reply::json(200, listed(&call)))
}

/// What is here corresponds to 2.9: members, tags, hashes, hidden and community images.
fn listed(call: &Call<App>) -> serde_json::Value {
    let version = |id: &str, status: &str| json!({"id": id, "status": status, "links": [{"rel": "self", "href": format!("{}/v2/", call.base)}]});
    let supported: Vec<_> = (0..9).rev().map(|minor| version(&format!("v2.{minor}"), "SUPPORTED")).collect();
    let mut all = vec![version("v2.9", "CURRENT")];
    all.extend(supported);
    json!({"versions": all})
}
