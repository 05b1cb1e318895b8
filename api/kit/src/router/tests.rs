use super::*;
use crate::{BoxFuture, Outcome, Target};
use serde_json::json;

struct World;

struct Tokens;
impl Authenticate for Tokens {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Arc<Caller>, Fault>> {
        Box::pin(async move {
            let roles = match token {
                "admin" => vec!["admin".to_owned(), "reader".to_owned()],
                "reader" => vec!["reader".to_owned()],
                _ => return Err(Fault::unauthorized()),
            };
            Ok(Arc::new(Caller {
                user_id: token.to_owned(),
                project_id: Some("p1".to_owned()),
                is_admin: token == "admin",
                roles,
                ..Caller::default()
            }))
        })
    }
}

async fn echo(call: Call<World>) -> Outcome {
    if call.op.rule().is_some() {
        call.enforce(&Target::project("p1"))?;
    }
    forgets(call).await
}

async fn forgets(call: Call<World>) -> Outcome {
    Ok(Reply::json(
        200,
        json!({"id": call.path("id"), "version": call.version.to_string(), "body": call.body,
            "base": call.base, "raw": call.raw.len()}),
    ))
}

async fn own_only(call: Call<World>) -> Outcome {
    call.enforce(&Target::new().with("target.user.id", call.path("id")))?;
    Ok(Reply::empty(204))
}

/// Whether [`hasty`] could have changed something.
static CHANGED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

async fn hasty(call: Call<World>) -> Outcome {
    base::gate::pass().map_err(Fault::internal)?;
    CHANGED.store(true, std::sync::atomic::Ordering::Relaxed);
    call.enforce(&Target::project(call.path("id")))?;
    Ok(Reply::empty(204))
}

async fn looks_first(call: Call<World>) -> Outcome {
    call.enforced_by_query();
    let early = base::gate::pass().is_ok();
    call.enforce(&Target::project(call.path("id")))?;
    Ok(Reply::json(200, json!({"early": early, "now": base::gate::pass().is_ok()})))
}

async fn panics(_: Call<World>) -> Outcome {
    panic!("a bug")
}

const READER: &str = "rule:project_reader_or_admin";

fn service() -> Service<World> {
    let range = MicroRange {
        word: "compute",
        legacy: Some("X-OpenStack-Nova-API-Version"),
        min: Micro(2, 1),
        max: Micro(2, 20),
    };
    Service::new("compute", "compute", "/compute", FaultStyle::Nova)
        .micro(range)
        .unknown_query(UnknownQuery::RefuseFrom(Micro(2, 15)))
        .operations([
            Operation::new(Method::GET, "/", echo).name("root").summary("r").open(),
            Operation::new(Method::GET, "/things/{id}", echo)
                .name("show")
                .summary("s")
                .policy("show", READER)
                .query(&["deep"]),
            Operation::new(Method::GET, "/things/new", echo)
                .name("new")
                .summary("n")
                .policy("new", READER)
                .since(Micro(2, 10)),
            Operation::new(Method::POST, "/things", echo)
                .name("create")
                .summary("c")
                .policy("create", "role:admin")
                .body(r#"{"type": "object", "required": ["thing"]}"#)
                .body_from(Micro(2, 5), r#"{"type": "object", "required": ["object"]}"#),
            Operation::new(Method::POST, "/things/{id}/action", echo)
                .name("start")
                .summary("a")
                .policy("start", "role:admin")
                .action("os-start")
                .body(r#"{"properties": {"os-start": {"type": "null"}}}"#),
            Operation::new(Method::POST, "/things/{id}/action", echo)
                .name("log")
                .summary("l")
                .policy("log", READER)
                .action("os-log")
                .no_schema("test"),
            Operation::new(Method::PUT, "/things/{id}/file", echo)
                .name("file")
                .summary("f")
                .policy("file", READER)
                .raw(16),
            Operation::new(Method::DELETE, "/users/{id}", own_only)
                .name("own")
                .summary("o")
                .policy("own", "user_id:%(target.user.id)s"),
            Operation::new(Method::DELETE, "/hasty/{id}", hasty)
                .name("hasty")
                .summary("h")
                .policy("hasty", READER),
            Operation::new(Method::DELETE, "/looking/{id}", looks_first)
                .name("looking")
                .summary("l")
                .policy("looking", READER),
            Operation::new(Method::GET, "/lax/{id}", forgets).name("lax").summary("l").policy("lax", READER),
            Operation::new(Method::GET, "/forgetful/{id}", forgets)
                .name("forgetful")
                .summary("f")
                .policy("forgetful", "user_id:%(target.user.id)s"),
            Operation::new(Method::GET, "/panic", panics).name("panic").summary("p").policy("panic", ""),
        ])
}

fn router(settings: Settings) -> Arc<Router<World>> {
    let metrics = base::metrics::Metrics::default();
    Arc::new(Router::new(Arc::new(World), Arc::new(Tokens), vec![service()], settings, &metrics).unwrap())
}

struct Got {
    status: u16,
    headers: HeaderMap,
    json: Value,
}

async fn send(
    router: &Arc<Router<World>>,
    method: &str,
    path: &str,
    token: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Got {
    let mut request = Request::builder().method(method).uri(path).header("host", "cloud:8443");
    if !token.is_empty() {
        request = request.header(TOKEN_HEADER, token);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().handle(request.body(Body::from(body.to_owned())).unwrap()).await;
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Got {
        status: parts.status.as_u16(),
        headers: parts.headers,
        json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
    }
}

#[tokio::test]
async fn a_request_meets_its_operation_and_the_answer_says_which_version_spoke() {
    let router = router(Settings::default());
    let got = send(&router, "GET", "/compute/things/a%20b?deep=1", "reader", &[], "").await;
    assert_eq!((got.status, &got.json["id"]), (200, &json!("a b")));
    assert_eq!(got.json["base"], "http://cloud:8443/compute");
    assert_eq!(got.headers["openstack-api-version"], "compute 2.1");
    assert_eq!(got.headers["x-openstack-nova-api-version"], "2.1");
    assert!(got.headers["x-compute-request-id"].to_str().unwrap().starts_with("req-"));
    let got = send(&router, "HEAD", "/compute/things/x", "reader", &[], "").await;
    assert_eq!((got.status, got.json), (200, Value::Null));
    assert_ne!(got.headers["content-length"], "0");
    // A static segment wins over a parameter; below its version it does not exist.
    let new = [("openstack-api-version", "compute 2.10")];
    assert_eq!(send(&router, "GET", "/compute/things/new", "reader", &new, "").await.json["version"], "2.10");
    assert_eq!(send(&router, "GET", "/compute/things/new", "reader", &[], "").await.status, 404);
    assert_eq!(send(&router, "GET", "/compute", "", &[], "").await.status, 200);
    assert_eq!(send(&router, "GET", "/compute/", "", &[], "").await.status, 200);
}

#[tokio::test]
async fn refusals_have_the_service_s_shape() {
    let router = router(Settings::default());
    let got = send(&router, "GET", "/compute/things/x", "", &[], "").await;
    assert_eq!((got.status, &got.json["error"]["code"]), (401, &json!(401)));
    assert_eq!(got.headers["www-authenticate"], "Keystone uri=\"http://cloud:8443/identity/v3\"");
    let got = send(&router, "POST", "/compute/things", "reader", &[], "{}").await;
    assert_eq!(got.json["forbidden"]["message"], "Policy doesn't allow create to be performed.");
    let got = send(&router, "PATCH", "/compute/things/x", "admin", &[], "{}").await;
    assert_eq!((got.status, &got.headers["allow"]), (405, &HeaderValue::from_static("GET, HEAD")));
    assert_eq!(got.json["badMethod"]["code"], 405);
    assert_eq!(
        send(&router, "GET", "/compute/nothing", "admin", &[], "").await.json["itemNotFound"]["code"],
        404
    );
    let far = [("openstack-api-version", "compute 2.21")];
    let got = send(&router, "GET", "/compute/things/x", "admin", &far, "").await;
    assert_eq!(got.status, 406);
    assert_eq!(
        got.json["computeFault"]["message"],
        "Version 2.21 is not supported by the API. Minimum is 2.1 and maximum is 2.20."
    );
    let got = send(&router, "GET", "/compute/panic", "admin", &[], "").await;
    assert_eq!((got.status, &got.json["computeFault"]["code"]), (500, &json!(500)));
    let strict = [("openstack-api-version", "compute 2.15")];
    let got = send(&router, "GET", "/compute/things/x?deep=1&wide=1", "admin", &strict, "").await;
    assert_eq!(
        got.json["badRequest"]["message"],
        "Additional properties are not allowed ('wide' was unexpected)"
    );
}

#[tokio::test]
async fn bodies_are_bounded_parsed_and_checked_against_the_version_s_schema() {
    let router = router(Settings { body_limit: 64, ..Settings::default() });
    let post = async |body: &str, headers: &[(&str, &str)]| {
        send(&router, "POST", "/compute/things", "admin", headers, body).await
    };
    assert_eq!(post("{\"thing\": 1}", &[]).await.json["body"], json!({"thing": 1}));
    assert_eq!(post("{}", &[]).await.json["badRequest"]["message"], "'thing' is a required property");
    let newer = [("openstack-api-version", "compute 2.6")];
    assert_eq!(post("{}", &newer).await.json["badRequest"]["message"], "'object' is a required property");
    let got = post("{", &[]).await;
    assert!(got.json["badRequest"]["message"].as_str().unwrap().starts_with("Malformed request body"));
    assert_eq!(post(&format!("{{\"thing\": \"{}\"}}", "x".repeat(64)), &[]).await.status, 413);
    // A length that the header announces is refused without reading.
    assert_eq!(post("{}", &[("content-length", "1073741824")]).await.status, 413);
    assert_eq!(post("", &[]).await.json["badRequest"]["message"], "None is not of type 'object'");
    let deep = format!("{{\"thing\": {}}}", "[".repeat(50));
    assert_eq!(post(&deep, &[]).await.status, 400);
    let got = send(&router, "PUT", "/compute/things/x/file", "reader", &[], "not json").await;
    assert_eq!(got.json["raw"], 8);
    assert_eq!(
        send(&router, "PUT", "/compute/things/x/file", "reader", &[], &"x".repeat(17)).await.status,
        413
    );
}

#[tokio::test]
async fn actions_are_chosen_by_the_body() {
    let router = router(Settings::default());
    let act = async |token: &str, body: &str| {
        send(&router, "POST", "/compute/things/x/action", token, &[], body).await
    };
    assert_eq!(act("admin", "{\"os-start\": null}").await.status, 200);
    assert_eq!(act("admin", "{\"os-start\": 5}").await.status, 400);
    assert_eq!(act("reader", "{\"os-start\": null}").await.status, 403);
    assert_eq!(act("reader", "{\"os-log\": {}}").await.status, 200);
    assert_eq!(
        act("admin", "{\"os-fly\": null}").await.json["badRequest"]["message"],
        "There is no such action: os-fly"
    );
    for bad in ["{}", "[]", "{\"os-start\": null, \"os-log\": 1}", ""] {
        assert_eq!(act("admin", bad).await.status, 400, "{bad}");
    }
    assert_eq!(act("", "{\"os-start\": null}").await.status, 401);
}

#[tokio::test]
async fn a_rule_about_the_row_is_enforced_by_the_handler_or_the_answer_is_withheld() {
    let router = router(Settings::default());
    assert_eq!(send(&router, "DELETE", "/compute/users/reader", "reader", &[], "").await.status, 204);
    assert_eq!(send(&router, "DELETE", "/compute/users/admin", "reader", &[], "").await.status, 403);
    assert_eq!(send(&router, "GET", "/compute/forgetful/reader", "reader", &[], "").await.status, 500);
    // A row may be of any project: that the rule is met in the token's own one is not enough, unless it does not matter.
    assert_eq!(send(&router, "GET", "/compute/lax/x", "reader", &[], "").await.status, 500);
    assert_eq!(send(&router, "GET", "/compute/lax/x", "admin", &[], "").await.status, 200);
}

#[tokio::test]
async fn nothing_can_be_changed_before_the_policy_was_enforced() {
    let router = router(Settings::default());
    let delete = async |path: &str| send(&router, "DELETE", path, "reader", &[], "").await;
    assert_eq!(delete("/compute/hasty/p2").await.status, 500);
    assert_eq!(delete("/compute/hasty/p1").await.status, 500);
    assert!(!CHANGED.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(delete("/compute/looking/p2").await.status, 403);
    let own = delete("/compute/looking/p1").await;
    assert_eq!((own.status, own.json), (200, json!({"early": false, "now": true})));
}

#[tokio::test]
async fn operators_replace_rules_and_misspelt_ones_are_found() {
    let with = |service: &str, rule: &str, text: &str| Settings {
        policy: [(service.to_owned(), [(rule.to_owned(), text.to_owned())].into())].into(),
        ..Settings::default()
    };
    let router = router(with("compute", "create", "role:reader"));
    assert_eq!(send(&router, "POST", "/compute/things", "reader", &[], "{\"thing\": 1}").await.status, 200);
    for (service, rule, text) in
        [("compute", "creat", "!"), ("compote", "create", "!"), ("compute", "create", "x")]
    {
        let metrics = base::metrics::Metrics::default();
        let made = Router::new(
            Arc::new(World),
            Arc::new(Tokens),
            vec![super::tests::service()],
            with(service, rule, text),
            &metrics,
        );
        assert!(made.is_err(), "{service} {rule} {text}");
    }
}

#[tokio::test]
async fn a_flood_of_one_user_is_slowed_down() {
    let rate = Some(Limit { per_second: 0.001, burst: 2.0 });
    let router = router(Settings { rate, ..Settings::default() });
    let ask = async |token: &str| send(&router, "GET", "/compute/things/x", token, &[], "").await;
    assert_eq!(ask("reader").await.status, 200);
    assert_eq!(ask("reader").await.status, 200);
    let got = ask("reader").await;
    assert_eq!((got.status, &got.json["overLimit"]["code"]), (429, &json!(429)));
    assert!(got.headers.contains_key("retry-after"));
    assert_eq!(ask("admin").await.status, 200);
}

#[tokio::test]
async fn links_do_not_carry_what_a_client_puts_into_its_host_header() {
    let router = router(Settings { default_host: "real:1".to_owned(), ..Settings::default() });
    for bad in ["evil/path", "a b", "user@evil", "x\"y", ""] {
        let mut request = Request::builder().uri("/compute/things/x").header(TOKEN_HEADER, "reader");
        request = request.header("host", bad);
        let response = router.clone().handle(request.body(Body::empty()).unwrap()).await;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["base"], "http://real:1/compute", "{bad}");
    }
}

#[tokio::test]
async fn the_declarations_become_a_document_and_gaps_in_them_are_found() {
    let router = router(Settings::default());
    let document = send(&router, "GET", "/openapi.json", "", &[], "").await.json;
    assert_eq!(document["openapi"], "3.1.0");
    let create = &document["paths"]["/compute/things"]["post"];
    assert_eq!(create["operationId"], "compute:create");
    assert_eq!(
        create["requestBody"]["content"]["application/json"]["schema"]["oneOf"].as_array().unwrap().len(),
        2
    );
    assert_eq!(
        document["paths"]["/compute/things/{id}/action#os-start"]["post"]["x-openstack-policy"],
        "start"
    );
    assert_eq!(send(&router, "GET", "/healthcheck", "", &[], "").await.status, 200);
    assert_eq!(send(&router, "GET", "/", "", &[], "").await.json["services"][0]["name"], "compute");

    assert_eq!(crate::coverage::faults(&[service()]), Vec::<String>::new());
    let gaps: Service<World> = Service::new("x", "x", "/x", FaultStyle::Nova).operations([
        Operation::new(Method::POST, "/a", echo).name("a").summary("s"),
        Operation::new(Method::GET, "/b", echo).name("a").summary("s").policy("p", "rule:missing"),
        Operation::new(Method::PUT, "/c", echo)
            .name("c")
            .policy("q", "")
            .body("{\"type\": 5}")
            .since(Micro(1, 1)),
    ]);
    let found = crate::coverage::faults(&[gaps]).join("\n");
    for expected in [
        "no policy",
        "no schema",
        "shares its name",
        "rule 'missing'",
        "no summary",
        "not a schema",
        "version range",
    ] {
        assert!(found.contains(expected), "{expected} in\n{found}");
    }
}
