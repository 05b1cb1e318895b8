use crate::identity::bootstrap::{self, Listed};
use crate::testing::{Answer, Cloud};
use base::store::testing::on_both;
use bytes::Bytes;
use serde_json::{Value, json};

const LISTED: [Listed; 2] = [
    Listed { name: "keystone", kind: "identity", path: "/identity" },
    Listed { name: "cinder", kind: "block-storage", path: "/volume/v3/%(project_id)s" },
];

struct Ids {
    admin: String,
    demo: String,
    demo_project: String,
}

async fn bootstrapped(cloud: Cloud) -> (Cloud, Ids) {
    let cloud = cloud.with_tokens();
    let passwords = ("admin-password", "demo-password");
    let made = bootstrap::run(&cloud.app, "https://cloud.test", &LISTED, passwords, false).await.unwrap();
    let ids = Ids {
        admin: made.admin.user_id,
        demo: made.demo.user_id,
        demo_project: made.demo.project_id.unwrap(),
    };
    (cloud, ids)
}

async fn up() -> (Cloud, Ids) {
    bootstrapped(Cloud::new().await).await
}

fn by_password(user: &str, password: &str, scope: Value) -> Value {
    let mut auth = json!({"identity": {"methods": ["password"], "password":
        {"user": {"name": user, "domain": {"name": "Default"}, "password": password}}}});
    if !scope.is_null() {
        auth["scope"] = scope;
    }
    json!({"auth": auth})
}

fn project(name: &str) -> Value {
    json!({"project": {"name": name, "domain": {"id": "default"}}})
}

async fn post_token(cloud: &Cloud, body: Value) -> (Answer, String) {
    let answer = cloud.call("", "POST", "/identity/v3/auth/tokens", Some(body)).await;
    let token = answer.headers.get("x-subject-token").map(|token| token.to_str().unwrap().to_owned());
    (answer, token.unwrap_or_default())
}

async fn log_in(cloud: &Cloud, user: &str) -> String {
    let (answer, token) =
        post_token(cloud, by_password(user, &format!("{user}-password"), project(user))).await;
    assert_eq!(answer.status, 201, "{}", answer.json);
    token
}

async fn about(cloud: &Cloud, method: &str, token: &str, subject: &str) -> Answer {
    cloud
        .call_with(token, method, "/identity/v3/auth/tokens", &[("x-subject-token", subject)], Bytes::new())
        .await
}

async fn id_of(cloud: &Cloud, token: &str, many: &str, name: &str) -> String {
    let list = cloud.call(token, "GET", &format!("/identity/v3/{many}?name={name}"), None).await.json;
    list[many][0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn tokens_are_issued_shown_and_ended_on_both_engines() {
    on_both(|db| async move {
        let (cloud, ids) = bootstrapped(Cloud::on(db).await).await;
        let (answer, token) = post_token(&cloud, by_password("demo", "demo-password", project("demo"))).await;
        let shown = &answer.json["token"];
        assert_eq!(answer.status, 201);
        assert_eq!(shown["user"]["id"], json!(ids.demo));
        assert_eq!(shown["project"]["domain"], json!({"id": "default", "name": "Default"}));
        let names: Vec<&str> =
            shown["roles"].as_array().unwrap().iter().filter_map(|role| role["name"].as_str()).collect();
        assert_eq!(names, ["member", "reader"], "member implies reader");
        let volume =
            shown["catalog"].as_array().unwrap().iter().find(|entry| entry["type"] == "block-storage");
        // The test's requests come without TLS, so the catalog leads them on to the plain listener.
        assert_eq!(
            volume.unwrap()["endpoints"][0]["url"],
            json!(format!("http://cloud.test/volume/v3/{}", ids.demo_project))
        );
        let admin = log_in(&cloud, "admin").await;
        let seen = about(&cloud, "GET", &admin, &token).await;
        assert_eq!((seen.status, &seen.json["token"]["audit_ids"]), (200, &shown["audit_ids"]));
        assert_eq!(about(&cloud, "HEAD", &token, &token).await.status, 200, "everyone sees its own");
        assert_eq!(about(&cloud, "GET", &token, &admin).await.status, 403);
        assert_eq!(about(&cloud, "DELETE", &token, &token).await.status, 204);
        assert_eq!(about(&cloud, "GET", &admin, &token).await.status, 404);
        assert_eq!(cloud.call(&token, "GET", "/identity/v3/auth/projects", None).await.status, 401);
    })
    .await;
}

#[tokio::test]
async fn every_wrong_log_in_gets_the_same_answer() {
    let (cloud, _) = up().await;
    let (right, _) = post_token(&cloud, by_password("demo", "demo-password", Value::Null)).await;
    assert_eq!(right.status, 201);
    assert_eq!(right.json["token"]["project"]["name"], "demo", "the default project");
    let expected = json!({"error": {"code": 401, "title": "Unauthorized",
        "message": "The request you have made requires authentication."}});
    for body in [
        by_password("demo", "wrong", Value::Null),
        by_password("nobody", "demo-password", Value::Null),
        by_password("demo", "demo-password", project("admin")),
        by_password("demo", "demo-password", project("nothing")),
        by_password("demo", "demo-password", json!({"system": {"all": true}})),
        by_password("demo", "demo-password", json!({"domain": {"id": "default"}})),
        json!({"auth": {"identity": {"methods": ["telepathy"], "telepathy": {}}}}),
        json!({"auth": {"identity": {"methods": ["token"], "token": {"id": "forged"}}}}),
    ] {
        let (answer, token) = post_token(&cloud, body.clone()).await;
        assert_eq!((answer.status, &answer.json, token.as_str()), (401, &expected, ""), "{body}");
    }
    for body in [
        json!({}),
        json!({"auth": {"identity": {"methods": []}}}),
        json!({"auth": {"identity": {"methods": ["password"]}}}),
    ] {
        let (answer, _) = post_token(&cloud, body).await;
        assert_eq!((answer.status, &answer.json["error"]["title"]), (400, &json!("Bad Request")));
    }
}

#[tokio::test]
async fn a_token_is_turned_into_others_that_live_no_longer() {
    let (cloud, _) = up().await;
    let (first, token) = post_token(&cloud, by_password("admin", "admin-password", json!("unscoped"))).await;
    assert_eq!(first.json["token"].get("roles"), None);
    assert_eq!(cloud.call(&token, "GET", "/identity/v3/auth/catalog", None).await.status, 403);
    let again = |scope: Value| json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": scope}});
    for (scope, key) in [
        (project("demo"), "project"),
        (json!({"domain": {"name": "Default"}}), "domain"),
        (json!({"system": {"all": true}}), "system"),
    ] {
        let (answer, _) = post_token(&cloud, again(scope)).await;
        let shown = &answer.json["token"];
        assert_eq!(answer.status, 201, "{key}");
        assert!(!shown[key].is_null(), "{key}");
        assert_eq!(shown["expires_at"], first.json["token"]["expires_at"]);
        assert_eq!(shown["methods"], json!(["password", "token"]));
        assert_eq!(shown["audit_ids"][1], first.json["token"]["audit_ids"][0]);
    }
}

#[tokio::test]
async fn what_is_taken_away_ends_tokens_at_once() {
    let (cloud, ids) = up().await;
    let admin = log_in(&cloud, "admin").await;
    let works =
        async |token: &str| cloud.call(token, "GET", "/identity/v3/auth/catalog", None).await.status == 200;
    let user = format!("/identity/v3/users/{}", ids.demo);
    let member = id_of(&cloud, &admin, "roles", "member").await;

    // Disabled and enabled again: the old token stays ended.
    let token = log_in(&cloud, "demo").await;
    assert!(works(&token).await);
    for enabled in [false, true] {
        let body = json!({"user": {"enabled": enabled}});
        assert_eq!(cloud.call(&admin, "PATCH", &user, Some(body)).await.status, 200);
        assert!(!works(&token).await);
    }
    // A new password.
    let token = log_in(&cloud, "demo").await;
    let body = json!({"user": {"original_password": "demo-password", "password": "other"}});
    let path = format!("{user}/password");
    assert_eq!(cloud.call("", "POST", &path, Some(body.clone())).await.status, 204);
    assert!(!works(&token).await);
    assert_eq!(cloud.call("", "POST", &path, Some(body)).await.status, 401, "the old one is gone");
    let (answer, token) = post_token(&cloud, by_password("demo", "other", project("demo"))).await;
    assert_eq!(answer.status, 201);
    // The role.
    let grant = format!("/identity/v3/projects/{}/users/{}/roles/{member}", ids.demo_project, ids.demo);
    assert_eq!(cloud.call(&admin, "HEAD", &grant, None).await.status, 204);
    assert_eq!(cloud.call(&admin, "DELETE", &grant, None).await.status, 204);
    assert_eq!(cloud.call(&admin, "HEAD", &grant, None).await.status, 404);
    assert!(!works(&token).await);
    // The role through a group instead.
    let body = json!({"group": {"name": "g"}});
    let group =
        cloud.call(&admin, "POST", "/identity/v3/groups", Some(body)).await.json["group"]["id"].clone();
    let group = group.as_str().unwrap();
    for path in [
        format!("/identity/v3/projects/{}/groups/{group}/roles/{member}", ids.demo_project),
        format!("/identity/v3/groups/{group}/users/{}", ids.demo),
    ] {
        assert_eq!(cloud.call(&admin, "PUT", &path, None).await.status, 204);
    }
    let (answer, token) = post_token(&cloud, by_password("demo", "other", project("demo"))).await;
    assert_eq!(answer.status, 201);
    // The user itself.
    assert_eq!(cloud.call(&admin, "DELETE", &user, None).await.status, 204);
    assert!(!works(&token).await);
    assert!(works(&admin).await);
}

#[tokio::test]
async fn another_process_s_change_is_noticed() {
    let (cloud, ids) = up().await;
    let token = log_in(&cloud, "demo").await;
    crate::identity::state::notice_changes(&cloud.app).await.unwrap();
    assert_eq!(cloud.call(&token, "GET", "/identity/v3/auth/catalog", None).await.status, 200);
    // As a second API process would do it: rows and counter, but not this process's memory.
    let user = &ids.demo;
    cloud
        .app
        .store
        .tx(|tx| async move {
            tx.exec("UPDATE identity_users SET body = replace(body, '\"enabled\":true', '\"enabled\":false') WHERE id = $1", base::args![user]).await?;
            tx.exec("UPDATE identity_changes SET n = n + 1", base::args![]).await
        })
        .await
        .unwrap();
    assert_eq!(cloud.call(&token, "GET", "/identity/v3/auth/catalog", None).await.status, 200, "remembered");
    crate::identity::state::notice_changes(&cloud.app).await.unwrap();
    assert_eq!(cloud.call(&token, "GET", "/identity/v3/auth/catalog", None).await.status, 401);
}

#[tokio::test]
async fn resources_are_made_listed_changed_and_deleted_on_both_engines() {
    on_both(|db| async move {
        let (cloud, _) = bootstrapped(Cloud::on(db).await).await;
        let admin = log_in(&cloud, "admin").await;
        let at = |path: &str| format!("/identity/v3/{path}");
        for (one, many, new, patch) in [
            ("domain", "domains", json!({"name": "d", "color": "red"}), json!({"enabled": false})),
            ("project", "projects", json!({"name": "p", "tags": ["x"]}), json!({"description": "new"})),
            ("user", "users", json!({"name": "u", "email": "u@x", "password": "pw"}), json!({"name": "u2"})),
            ("group", "groups", json!({"name": "g"}), json!({"description": "new"})),
            ("role", "roles", json!({"name": "r"}), json!({"name": "r2"})),
            ("region", "regions", json!({"id": "R2"}), json!({"description": "new"})),
            ("service", "services", json!({"type": "dns", "name": "designate"}), json!({"enabled": false})),
        ] {
            let body = json!({one: new});
            let made = cloud.call(&admin, "POST", &at(many), Some(body.clone())).await;
            assert_eq!(made.status, 201, "{one} {}", made.json);
            let entity = &made.json[one];
            let id = entity["id"].as_str().unwrap().to_owned();
            for (key, value) in new.as_object().unwrap().iter().filter(|(key, _)| *key != "password") {
                assert_eq!(&entity[key], value, "{one} keeps {key}");
            }
            assert_eq!(entity.get("password"), None);
            let path = at(&format!("{many}/{id}"));
            assert_eq!(entity["links"]["self"], json!(format!("http://cloud.test{path}")));
            assert_eq!(cloud.call(&admin, "GET", &path, None).await.json[one], *entity);
            let listed = cloud.call(&admin, "GET", &at(many), None).await.json;
            assert!(listed[many].as_array().unwrap().contains(entity), "{one}");
            if one != "service" {
                assert_eq!(
                    cloud.call(&admin, "POST", &at(many), Some(body)).await.status,
                    409,
                    "{one} twice"
                );
            }
            let changed = cloud.call(&admin, "PATCH", &path, Some(json!({one: patch}))).await;
            assert_eq!(changed.status, 200, "{one} {}", changed.json);
            for (key, value) in patch.as_object().unwrap() {
                assert_eq!(&changed.json[one][key], value);
            }
            assert_eq!(cloud.call(&admin, "DELETE", &path, None).await.status, 204, "{one}");
            assert_eq!(cloud.call(&admin, "GET", &path, None).await.status, 404, "{one}");
            assert_eq!(
                cloud.call(&admin, "PATCH", &path, Some(json!({one: patch}))).await.status,
                404,
                "{one}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_reason() {
    let (cloud, ids) = up().await;
    let admin = log_in(&cloud, "admin").await;
    let long = "x".repeat(10_000);
    for (many, body, status, reason) in [
        ("projects", json!({"project": {"name": long}}), 400, "is too long"),
        ("projects", json!({"project": {}}), 400, "'name' is a required property"),
        (
            "projects",
            json!({"project": {"name": "p", "domain_id": "nope"}}),
            404,
            "Could not find domain: nope.",
        ),
        (
            "projects",
            json!({"project": {"name": "p", "parent_id": "nope"}}),
            404,
            "Could not find project: nope.",
        ),
        ("users", json!({"user": {"name": "demo"}}), 409, "not permitted to have two users"),
        ("users", json!({"user": {"name": "a", "password": "x".repeat(5000)}}), 400, "at most 4096 bytes"),
        (
            "endpoints",
            json!({"endpoint": {"service_id": "nope", "interface": "public", "url": "http://x"}}),
            400,
            "does not exist",
        ),
        (
            "endpoints",
            json!({"endpoint": {"service_id": "x", "interface": "secret", "url": "http://x"}}),
            400,
            "is not one of",
        ),
        ("regions", json!({"region": {"id": "RegionOne"}}), 409, "Duplicate ID"),
    ] {
        let answer = cloud.call(&admin, "POST", &format!("/identity/v3/{many}"), Some(body.clone())).await;
        let message = answer.json["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.status, status, "{body} {message}");
        assert!(message.contains(reason), "{message}");
        assert!(message.len() < 1000);
    }
    for (method, path, body, status) in [
        ("DELETE", "domains/default".to_owned(), None, 403),
        ("DELETE", "regions/RegionOne".to_owned(), None, 403),
        (
            "PATCH",
            format!("projects/{}", ids.demo_project),
            Some(json!({"project": {"domain_id": "x"}})),
            400,
        ),
    ] {
        let answer = cloud.call(&admin, method, &format!("/identity/v3/{path}"), body).await;
        assert_eq!(answer.status, status, "{path} {}", answer.json);
    }
}

#[tokio::test]
async fn members_see_themselves_and_no_one_else() {
    let (cloud, ids) = up().await;
    let demo = log_in(&cloud, "demo").await;
    for (method, path, status) in [
        ("GET", "users".to_owned(), 403),
        ("GET", "projects".to_owned(), 403),
        ("GET", "role_assignments".to_owned(), 403),
        ("GET", format!("users/{}", ids.demo), 200),
        ("GET", format!("users/{}", ids.admin), 403),
        ("GET", "users/11111111111111111111111111111111".to_owned(), 403),
        ("GET", format!("users/{}/projects", ids.demo), 200),
        ("GET", format!("users/{}/projects", ids.admin), 403),
        ("GET", format!("projects/{}", ids.demo_project), 200),
        ("DELETE", format!("projects/{}", ids.demo_project), 403),
        ("GET", "domains/default".to_owned(), 200),
        ("GET", "auth/projects".to_owned(), 200),
        ("GET", format!("users/{}/application_credentials", ids.admin), 403),
    ] {
        let answer = cloud.call(&demo, method, &format!("/identity/v3/{path}"), None).await;
        assert_eq!(answer.status, status, "{method} {path} {}", answer.json);
    }
    let own = cloud.call(&demo, "GET", "/identity/v3/auth/projects", None).await.json;
    assert_eq!(own["projects"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn role_assignments_are_listed_as_given_and_as_they_work() {
    let (cloud, ids) = up().await;
    let admin = log_in(&cloud, "admin").await;
    let list = async |query: &str| {
        let path = format!("/identity/v3/role_assignments?{query}");
        cloud.call(&admin, "GET", &path, None).await.json["role_assignments"].as_array().unwrap().clone()
    };
    let direct = list(&format!("user.id={}&include_names=true", ids.demo)).await;
    assert_eq!(direct.len(), 1);
    assert_eq!(direct[0]["role"]["name"], "member");
    assert_eq!(direct[0]["scope"]["project"]["domain"]["name"], "Default");
    let effective = list(&format!("user.id={}&effective", ids.demo)).await;
    assert_eq!(effective.len(), 2, "member and the implied reader");
    assert_eq!(list("scope.system=all").await.len(), 1);
    let inferences = cloud.call(&admin, "GET", "/identity/v3/role_inferences", None).await.json;
    assert_eq!(inferences["role_inferences"].as_array().unwrap().len(), 3);
    // A circle of implied roles is refused.
    let (reader, member) =
        (id_of(&cloud, &admin, "roles", "reader").await, id_of(&cloud, &admin, "roles", "member").await);
    let path = format!("/identity/v3/roles/{reader}/implies/{member}");
    assert_eq!(cloud.call(&admin, "PUT", &path, None).await.status, 409);
}

#[tokio::test]
async fn an_application_credential_works_until_it_is_deleted_and_makes_no_more_of_itself() {
    let (cloud, ids) = up().await;
    let demo = log_in(&cloud, "demo").await;
    let all = format!("/identity/v3/users/{}/application_credentials", ids.demo);
    let body = json!({"application_credential": {"name": "ci", "roles": [{"name": "reader"}]}});
    let made = cloud.call(&demo, "POST", &all, Some(body.clone())).await;
    assert_eq!(made.status, 201, "{}", made.json);
    assert_eq!(cloud.call(&demo, "POST", &all, Some(body.clone())).await.status, 409);
    let credential = &made.json["application_credential"];
    let (id, secret) = (credential["id"].as_str().unwrap(), credential["secret"].as_str().unwrap());
    assert_eq!(
        cloud.call(&demo, "GET", &all, None).await.json["application_credentials"][0].get("secret"),
        None
    );
    let ask = |secret: &str| {
        json!({"auth": {"identity": {"methods": ["application_credential"],
        "application_credential": {"id": id, "secret": secret}}}})
    };
    assert_eq!(post_token(&cloud, ask("wrong")).await.0.status, 401);
    let (answer, token) = post_token(&cloud, ask(secret)).await;
    let shown = &answer.json["token"];
    assert_eq!((answer.status, &shown["project"]["name"]), (201, &json!("demo")));
    assert_eq!(shown["roles"].as_array().unwrap().len(), 1);
    assert_eq!(shown["application_credential"]["restricted"], true);
    assert_eq!(cloud.call(&token, "POST", &all, Some(body)).await.status, 403);
    let wider = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}, "scope": project("demo")}});
    assert_eq!(post_token(&cloud, wider).await.0.status, 403);
    assert_eq!(cloud.call(&demo, "DELETE", &format!("{all}/{id}"), None).await.status, 204);
    assert_eq!(cloud.call(&token, "GET", "/identity/v3/auth/catalog", None).await.status, 401);
}

#[tokio::test]
async fn bootstrap_may_be_repeated_and_follows_the_address() {
    let (cloud, ids) = up().await;
    let count = async |token: &str, many: &str| {
        cloud.call(token, "GET", &format!("/identity/v3/{many}"), None).await.json[many]
            .as_array()
            .unwrap()
            .len()
    };
    let admin = log_in(&cloud, "admin").await;
    let kinds =
        ["domains", "projects", "users", "roles", "services", "endpoints", "regions", "role_assignments"];
    let mut before = Vec::new();
    for many in kinds {
        before.push(count(&admin, many).await);
    }
    let again = bootstrap::run(&cloud.app, "https://other:1", &LISTED, ("x", "y"), false).await.unwrap();
    assert_eq!(again.admin.user_id, ids.admin);
    let mut after = Vec::new();
    for many in kinds {
        after.push(count(&admin, many).await);
    }
    assert_eq!(before, after);
    let urls = cloud.call(&admin, "GET", "/identity/v3/endpoints", None).await.json;
    assert!(
        urls["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .all(|endpoint| { endpoint["url"].as_str().unwrap().starts_with("https://other:1/") })
    );
    log_in(&cloud, "demo").await; // The passwords are still the first ones.
    bootstrap::run(&cloud.app, "https://other:1", &LISTED, ("x", "y"), true).await.unwrap();
    assert_eq!(post_token(&cloud, by_password("demo", "y", Value::Null)).await.0.status, 201);
}

#[tokio::test]
async fn discovery_needs_no_token() {
    let (cloud, _) = up().await;
    let root = cloud.call("", "GET", "/identity", None).await;
    assert_eq!((root.status, &root.json["versions"]["values"][0]["status"]), (300, &json!("stable")));
    let v3 = cloud.call("", "GET", "/identity/v3/", None).await;
    assert_eq!(
        (v3.status, &v3.json["version"]["links"][0]["href"]),
        (200, &json!("http://cloud.test/identity/v3/"))
    );
}

#[tokio::test]
async fn tags_find_projects() {
    let (cloud, ids) = up().await;
    let admin = log_in(&cloud, "admin").await;
    let tags = format!("/identity/v3/projects/{}/tags", ids.demo_project);
    assert_eq!(cloud.call(&admin, "PUT", &format!("{tags}/blue"), None).await.status, 201);
    assert_eq!(cloud.call(&admin, "PUT", &tags, Some(json!({"tags": ["red", "new"]}))).await.status, 200);
    assert_eq!(cloud.call(&admin, "GET", &format!("{tags}/blue"), None).await.status, 404);
    assert_eq!(cloud.call(&admin, "GET", &format!("{tags}/red"), None).await.status, 204);
    let found = cloud.call(&admin, "GET", "/identity/v3/projects?tags=red,new", None).await.json;
    assert_eq!(found["projects"].as_array().unwrap().len(), 1);
    let found = cloud.call(&admin, "GET", "/identity/v3/projects?not-tags=red", None).await.json;
    assert_eq!(found["projects"].as_array().unwrap().len(), 2);
    assert_eq!(cloud.call(&admin, "DELETE", &tags, None).await.status, 204);
    assert_eq!(cloud.call(&admin, "GET", &tags, None).await.json["tags"], json!([]));
}

#[tokio::test]
async fn a_method_that_is_named_again_costs_no_second_hash() {
    let (cloud, _) = up().await;
    let mut body = by_password("demo", "wrong", Value::Null);
    body["auth"]["identity"]["methods"] = json!(["password", "password", "password", "password"]);
    let before = cloud.app.identity.passwords.done();
    assert_eq!(post_token(&cloud, body.clone()).await.0.status, 401);
    assert_eq!(cloud.app.identity.passwords.done() - before, 1);
    body["auth"]["identity"]["password"]["user"]["password"] = json!("demo-password");
    let before = cloud.app.identity.passwords.done();
    let (answer, _) = post_token(&cloud, body).await;
    assert_eq!((answer.status, &answer.json["token"]["methods"]), (201, &json!(["password"])));
    assert_eq!(cloud.app.identity.passwords.done() - before, 1);
}

#[tokio::test]
async fn guessing_is_slowed_down_alike_for_users_that_exist_and_those_that_do_not() {
    let (cloud, ids) = up().await;
    let (throttle, now) = (&cloud.app.identity.throttle, std::time::Instant::now());
    let mut answers = Vec::new();
    for user in ["demo", "nobody"] {
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(post_token(&cloud, by_password(user, "wrong", Value::Null)).await.0);
        }
        // Five more, without waiting for their hashes: the next one has to wait for 16 s.
        let who = super::auth::of("", &[&json!({"name": user, "domain": {"name": "Default"}})]);
        (0..5).for_each(|_| throttle.note(&who, false, now + std::time::Duration::from_secs(60)));
        // What finds nobody else makes nobody else.
        let mut disguised = by_password(user, "wrong", Value::Null);
        disguised["auth"]["identity"]["password"]["user"]["domain"]["noise"] = json!(1);
        disguised["auth"]["identity"]["password"]["user"]["noise"] = json!(1);
        assert_eq!(post_token(&cloud, disguised).await.0.status, 429);
        let before = cloud.app.identity.passwords.done();
        // The right password has to wait as well, or waiting would tell that the guess was wrong.
        seen.push(post_token(&cloud, by_password(user, &format!("{user}-password"), Value::Null)).await.0);
        assert_eq!(cloud.app.identity.passwords.done(), before, "what has to wait is not hashed");
        assert!(seen[5].headers.contains_key("retry-after"));
        let codes: Vec<u16> = seen.iter().map(|answer| answer.status).collect();
        assert_eq!(codes, [401, 401, 401, 401, 401, 429]);
        answers.push(seen.into_iter().take(5).map(|answer| answer.json).collect::<Vec<_>>());
    }
    assert_eq!(answers[0], answers[1]);
    log_in(&cloud, "admin").await;
    // The other way to try passwords.
    let path = format!("/identity/v3/users/{}/password", ids.demo);
    let body = json!({"user": {"original_password": "wrong", "password": "x"}});
    let who = super::auth::of("", &[&json!({"id": ids.demo})]);
    for _ in 0..5 {
        assert_eq!(cloud.call("", "POST", &path, Some(body.clone())).await.status, 401);
    }
    (0..5).for_each(|_| throttle.note(&who, false, now + std::time::Duration::from_secs(60)));
    assert_eq!(cloud.call("", "POST", &path, Some(body)).await.status, 429);
    let mut disguised = by_password("any name at all", "wrong", Value::Null);
    disguised["auth"]["identity"]["password"]["user"]["id"] = json!(ids.demo);
    assert_eq!(post_token(&cloud, disguised).await.0.status, 429);
}

#[tokio::test]
async fn an_account_is_locked_when_the_operator_wants_that_and_enabled_again() {
    on_both(|db| async move {
        let cloud = Cloud::configured(db, |config| {
            config.security_compliance.lockout_failure_attempts = Some(2);
        });
        let (cloud, ids) = bootstrapped(cloud.await).await;
        let right = || by_password("demo", "demo-password", Value::Null);
        let status = async |body| post_token(&cloud, body).await.0.status;
        let wrong = || by_password("demo", "wrong", Value::Null);
        assert_eq!(status(wrong()).await, 401);
        assert_eq!(status(right()).await, 201, "one failure, forgotten by the success");
        assert_eq!(status(wrong()).await, 401);
        assert_eq!(status(wrong()).await, 401);
        assert_eq!(status(right()).await, 401, "locked");
        let admin = log_in(&cloud, "admin").await;
        let path = format!("/identity/v3/users/{}", ids.demo);
        let enabled = Some(json!({"user": {"enabled": true}}));
        assert_eq!(cloud.call(&admin, "PATCH", &path, enabled).await.status, 200);
        assert_eq!(status(right()).await, 201);
    })
    .await;
}

#[tokio::test]
async fn a_role_is_inherited_by_what_is_below_and_not_where_it_is_given() {
    on_both(|db| async move {
        let (cloud, ids) = bootstrapped(Cloud::on(db).await).await;
        let admin = log_in(&cloud, "admin").await;
        let post = async |what: &str, body: Value| {
            cloud.call(&admin, "POST", &format!("/identity/v3/{what}"), Some(body)).await.json
        };
        let top = post("projects", json!({"project": {"name": "top"}})).await["project"]["id"].clone();
        let low =
            post("projects", json!({"project": {"name": "low", "parent_id": top}})).await["project"]["id"]
                .clone();
        let user = json!({"user": {"name": "heir", "password": "heir-password"}});
        let user = post("users", user).await["user"]["id"].clone();
        let (top, low, user) = (top.as_str().unwrap(), low.as_str().unwrap(), user.as_str().unwrap());
        let role = id_of(&cloud, &admin, "roles", "member").await;
        let enters = async |name: &str| {
            post_token(&cloud, by_password("heir", "heir-password", project(name))).await.0.status
        };
        let on = |place: &str| {
            format!("/identity/v3/OS-INHERIT/{place}/users/{user}/roles/{role}/inherited_to_projects")
        };
        let ask = async |method: &str, path: &str| cloud.call(&admin, method, path, None).await;

        assert_eq!(ask("GET", &on("domains/default")).await.status, 404);
        assert_eq!(ask("PUT", &on(&format!("projects/{top}"))).await.status, 204);
        assert_eq!((enters("top").await, enters("low").await), (401, 201));
        let (_, token) = post_token(&cloud, by_password("heir", "heir-password", project("low"))).await;
        let mine = cloud.call(&token, "GET", "/identity/v3/auth/projects", None).await.json;
        assert_eq!(
            mine["projects"].as_array().unwrap().iter().map(|one| &one["name"]).collect::<Vec<_>>(),
            ["low"]
        );
        let shown = ask("GET", &format!("/identity/v3/role_assignments?user.id={user}")).await.json;
        assert_eq!(shown["role_assignments"][0]["scope"]["project"]["id"], top);
        assert_eq!(shown["role_assignments"][0]["scope"]["OS-INHERIT:inherited_to"], "projects");
        let works = format!(
            "/identity/v3/role_assignments?effective&user.id={user}&scope.project.id={low}&role.id={role}"
        );
        let shown = ask("GET", &works).await.json;
        assert_eq!(shown["role_assignments"].as_array().unwrap().len(), 1, "{shown}");
        assert!(
            shown["role_assignments"][0]["links"]["assignment"]
                .as_str()
                .unwrap()
                .contains(&format!("OS-INHERIT/projects/{top}"))
        );
        assert_eq!(ask("DELETE", &on(&format!("projects/{top}"))).await.status, 204);
        assert_eq!(
            cloud.call(&token, "GET", "/identity/v3/auth/projects", None).await.status,
            401,
            "it held no longer"
        );

        assert_eq!(ask("PUT", &on("domains/default")).await.status, 204);
        assert_eq!(ask("HEAD", &on("domains/default")).await.status, 204);
        let list =
            format!("/identity/v3/OS-INHERIT/domains/default/users/{user}/roles/inherited_to_projects");
        assert_eq!(ask("GET", &list).await.json["roles"][0]["id"], role);
        assert_eq!((enters("top").await, enters("low").await, enters("demo").await), (201, 201, 201));
        let domain = json!({"domain": {"id": "default"}});
        assert_eq!(post_token(&cloud, by_password("heir", "heir-password", domain)).await.0.status, 401);
        let only = "/identity/v3/role_assignments?scope.OS-INHERIT:inherited_to=projects";
        assert_eq!(ask("GET", only).await.json["role_assignments"].as_array().unwrap().len(), 1);
        assert_eq!(ask("DELETE", &format!("/identity/v3/projects/{low}")).await.status, 204);
        assert_eq!(ask("DELETE", &on("domains/default")).await.status, 204);
        assert_eq!(ask("DELETE", &on("domains/default")).await.status, 404);
        assert_eq!(enters("demo").await, 401);
        let _ = ids;
    })
    .await;
}
