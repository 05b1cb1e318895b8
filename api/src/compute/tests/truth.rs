//! What is declared is done: filters, places, groups, usage.

use super::world::World;
use base::store::testing::on_both;
use serde_json::{Value, json};

impl World {
    async fn names(&self, filter: &str) -> Vec<String> {
        let path = format!("/servers?sort_key=name&sort_dir=asc&{filter}");
        let answer = self.call("GET", &path, None).await;
        assert_eq!(answer.status, 200, "{filter}: {answer:?}");
        let all = answer.json["servers"].as_array().unwrap();
        all.iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn made(&self, more: Value) -> String {
        let asked = self.ask(&more).await;
        assert_eq!(asked.status, 202, "{asked:?}");
        self.drain().await;
        asked.json["server"]["id"].as_str().unwrap().to_owned()
    }

    /// A request with members beside `server`.
    async fn hinted(&self, name: &str, hints: Value) -> crate::testing::Answer {
        let body = json!({"server": {"name": name, "flavorRef": "42", "imageRef": self.image, "networks": "none"},
            "os:scheduler_hints": hints});
        self.call("POST", "/servers", Some(body)).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_declared_filter_filters_before_the_page_is_cut() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let a = world
            .made(json!({"name": "a", "tags": ["x", "y"], "description": "the First", "hostname": "alpha",
                "config_drive": true, "accessIPv4": "192.0.2.7", "accessIPv6": "2001:DB8::7"}))
            .await;
        world.made(json!({"name": "b", "tags": ["y"], "description": "other"})).await;
        let c = world.made(json!({"name": "c"})).await;
        world.act(&c, json!({"os-stop": null})).await;
        let shown = world.show(&a).await;
        assert_eq!(
            (&shown["accessIPv4"], &shown["accessIPv6"]),
            (&json!("192.0.2.7"), &json!("2001:db8::7"))
        );
        let reservation = {
            let path = format!("/compute/v2.1/servers/{a}");
            let headers = [("openstack-api-version", "compute 2.90")];
            let it = world.cloud.call_with("admin", "GET", &path, &headers, bytes::Bytes::new()).await;
            it.json["server"]["OS-EXT-SRV-ATTR:reservation_id"].as_str().unwrap().to_owned()
        };
        // More conditions than SQLite takes in a row.
        let (often, tags) = ("&status=ERROR&vm_state=stopped".repeat(1100), vec!["t"; 1100].join(","));
        let often = format!("status=SHUTOFF{often}&tags-any=y&not-tags={tags}");
        assert!(world.names(&often).await.is_empty());
        let often = format!("status=SHUTOFF&not-tags={tags}{}", "&vm_state=stopped".repeat(1100));
        assert_eq!(world.names(&often).await, ["c"]);
        let many: Vec<String> = (0..1100).map(|number| number.to_string()).collect();
        let path = format!("/compute/v2.1/servers?tags-any={}", many.join(","));
        let headers = [("openstack-api-version", "compute 2.90")];
        let refused = world.cloud.call_with("demo", "GET", &path, &headers, bytes::Bytes::new()).await;
        assert_eq!(refused.status, 400, "{}", refused.json);
        for (filter, wanted) in [
            ("tags=x,y", "a"),
            ("tags=y", "a b"),
            ("tags=Y", ""),
            ("tags-any=x,z", "a"),
            ("not-tags=x,y", "b c"),
            ("not-tags-any=x,y", "c"),
            // The only match is the last of all: a page of one finds it all the same.
            ("not-tags-any=y&limit=1", "c"),
            ("description=first", ""),
            ("description=First$", "a"),
            ("hostname=^al", "a"),
            ("config_drive=true", "a"),
            ("config_drive=false", "b c"),
            ("vm_state=stopped", "c"),
            ("vm_state=active", "a b"),
            ("power_state=1", "a b"),
            ("power_state=4", "c"),
            ("status=ACTIVE&status=SHUTOFF", "a b c"),
            ("task_state=deleting", ""),
            ("availability_zone=nova", "a b c"),
            ("availability_zone=mars", ""),
            ("changes-before=2020-01-01T00:00:00Z", ""),
            ("changes-before=2999-01-01T00:00:00Z", "a b c"),
            ("host=nowhere", "a b c"),
        ] {
            assert_eq!(world.names(filter).await.join(" "), wanted, "{filter}");
        }
        assert_eq!(world.names(&format!("reservation_id={reservation}")).await, ["a"]);
        for bad in
            ["power_state=on", "changes-since=2021-01-01&changes-before=2020-01-01", "changes-before=soon"]
        {
            assert_eq!(world.call("GET", &format!("/servers?{bad}"), None).await.status, 400, "{bad}");
        }
        // A task that waits is seen by its state.
        assert_eq!(world.call("DELETE", &format!("/servers/{c}"), None).await.status, 204);
        assert_eq!(world.names("task_state=deleting").await, ["c"]);

        // Rows from before the columns were there are filtered too, once housekeeping has seen them.
        let app = &world.cloud.app;
        let forget = "UPDATE compute_servers SET indexed = 0, tags = '', description = NULL";
        app.store.tx(|tx| async move { tx.exec(forget, Vec::new()).await }).await.unwrap();
        assert_eq!(world.names("tags=x").await, Vec::<String>::new());
        crate::compute::orphans::settle(app).await.unwrap();
        assert_eq!(world.names("tags=x").await, ["a"]);
        let changed = json!({"server": {"accessIPv4": ""}});
        let changed = world.call("PUT", &format!("/servers/{a}"), Some(changed)).await;
        assert_eq!(changed.json["server"]["accessIPv4"], "", "{changed:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_and_hints_bind_the_place() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let group = |name: &str, policy: &str| json!({"server_group": {"name": name, "policy": policy}});
        let apart = world.call("POST", "/os-server-groups", Some(group("apart", "anti-affinity"))).await;
        assert_eq!(apart.status, 200, "{apart:?}");
        let apart = apart.json["server_group"]["id"].as_str().unwrap().to_owned();
        let close = world.call("POST", "/os-server-groups", Some(group("close", "affinity"))).await;
        let close = close.json["server_group"]["id"].as_str().unwrap().to_owned();
        // Both at once: whoever is second finds no host.
        let one = world.hinted("one", json!({"group": apart})).await;
        let two = world.hinted("two", json!({"group": apart})).await;
        let three = world.hinted("three", json!({"group": close})).await;
        let four = world.hinted("four", json!({"group": close})).await;
        world.drain().await;
        let id = |it: &crate::testing::Answer| it.json["server"]["id"].as_str().unwrap().to_owned();
        let mut found = Vec::new();
        for it in [&one, &two, &three, &four] {
            assert_eq!(it.status, 202, "{it:?}");
            found.push(world.show(&id(it)).await);
        }
        let mut both = [found[0]["status"].as_str().unwrap(), found[1]["status"].as_str().unwrap()];
        both.sort_unstable();
        assert_eq!(both, ["ACTIVE", "ERROR"]);
        let failed = found.iter().find(|it| it["status"] == "ERROR").unwrap();
        let why = failed["fault"]["message"].as_str().unwrap();
        assert!(why.contains("No valid host was found") && why.contains("group apart"), "{why}");
        assert_eq!((&found[2]["status"], &found[3]["status"]), (&json!("ACTIVE"), &json!("ACTIVE")));
        assert_eq!(found[2]["server_groups"], json!([close]));

        let shown = world.call("GET", &format!("/os-server-groups/{close}"), None).await;
        assert_eq!(shown.json["server_group"]["members"], json!([id(&three), id(&four)]));
        let old = world.call_at("2.12", "GET", &format!("/os-server-groups/{close}"), None).await;
        assert_eq!(old.json["server_group"]["policies"], json!(["affinity"]));
        assert!(old.json["server_group"].get("project_id").is_none());
        let path = format!("/compute/v2.1/os-server-groups/{close}");
        assert_eq!(world.cloud.call("other", "GET", &path, None).await.status, 404);
        assert_eq!(world.cloud.call("other", "DELETE", &path, None).await.status, 404);
        let listed = world.call("GET", "/os-server-groups?limit=1&offset=1", None).await;
        assert_eq!(listed.json["server_groups"][0]["id"], json!(close), "{listed:?}");

        let (same, other) = (json!({"same_host": id(&three)}), json!({"different_host": [id(&three)]}));
        let (same, other) = (world.hinted("same", same).await, world.hinted("other", other).await);
        world.drain().await;
        assert_eq!(world.show(&id(&same)).await["status"], "ACTIVE");
        let other = world.show(&id(&other)).await;
        assert!(other["fault"]["message"].as_str().unwrap().contains("different_host"), "{other}");
        for bad in [
            json!({"group": "x"}),
            json!({"group": "d3a1a3a7-1111-4222-8333-123456789abc"}),
            json!({"same_host": vec![id(&three); 101]}),
            json!({"same_host": 1}),
            json!({"query": "[\">=\", \"$free_ram_mb\", 1]"}),
        ] {
            assert_eq!(world.hinted("bad", bad.clone()).await.status, 400, "{bad}");
        }
        let rules =
            json!({"server_group": {"name": "r", "policy": "affinity", "rules": {"max_server_per_host": 2}}});
        assert_eq!(world.call("POST", "/os-server-groups", Some(rules)).await.status, 400);
        assert_eq!(world.call("DELETE", &format!("/os-server-groups/{close}"), None).await.status, 204);
        assert_eq!(world.show(&id(&three)).await["server_groups"], json!([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_host_is_for_administrators_and_counts_are_not_cut() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let ask = async |token: &str, more: Value| {
            let mut body =
                json!({"name": "s", "flavorRef": "42", "imageRef": world.image, "networks": "none"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let headers = [("openstack-api-version", "compute 2.90"), ("content-type", "application/json")];
            let body = json!({"server": body}).to_string().into();
            world.cloud.call_with(token, "POST", "/compute/v2.1/servers", &headers, body).await
        };
        for more in [
            json!({"host": "host-1"}),
            json!({"hypervisor_hostname": "host-1"}),
            json!({"availability_zone": "nova:host-1"}),
        ] {
            assert_eq!(ask("demo", more.clone()).await.status, 403, "{more}");
        }
        for more in [
            json!({"host": "host-2"}),
            json!({"host": "host-1", "hypervisor_hostname": "host-2"}),
            json!({"host": "host-1", "availability_zone": "nova:host-1"}),
            json!({"availability_zone": "nova:host-2"}),
            json!({"accessIPv4": "::1"}),
            json!({"max_count": 1001}),
        ] {
            assert_eq!(ask("admin", more.clone()).await.status, 400, "{more}");
        }
        // The quota of ten cuts what was asked for down to what it allows, unless that is less than the least.
        assert_eq!(ask("demo", json!({"min_count": 11, "max_count": 200})).await.status, 403);
        let many =
            ask("demo", json!({"min_count": 1, "max_count": 200, "return_reservation_id": true})).await;
        assert_eq!(many.status, 202, "{many:?}");
        let all = world.call("GET", "/servers", None).await;
        assert_eq!(all.json["servers"].as_array().unwrap().len(), 10);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_counts_servers_that_are_gone_too() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let (gone, stays) = (world.server().await, world.server().await);
        assert_eq!(world.call("DELETE", &format!("/servers/{gone}"), None).await.status, 204);
        world.drain().await;
        let project = crate::testing::DEMO_PROJECT;
        let path = format!("/os-simple-tenant-usage/{project}?start=2020-01-01T00:00:00");
        let used = world.call("GET", &path, None).await;
        let runs =
            used.json["tenant_usage"]["server_usages"].as_array().unwrap_or_else(|| panic!("{used:?}"));
        let state =
            |id: &str| runs.iter().find(|run| run["instance_id"] == id).map(|run| run["state"].clone());
        assert_eq!((state(&gone), state(&stays)), (Some(json!("terminated")), Some(json!("active"))));
        assert!(used.json["tenant_usage"]["total_hours"].as_f64().unwrap() > 0.0);
        let first = world.call("GET", &format!("{path}&limit=1"), None).await;
        assert_eq!(first.json["tenant_usage"]["server_usages"].as_array().unwrap().len(), 1);
        assert!(first.json["tenant_usage_links"][0]["href"].as_str().unwrap().contains("marker="));
        let before = format!("/os-simple-tenant-usage/{project}?start=2020-01-01&end=2020-01-02");
        assert_eq!(world.call("GET", &before, None).await.json, json!({"tenant_usage": {}}));
        for bad in ["start=soon", "start=2021-01-01&end=2020-01-01"] {
            let path = format!("/os-simple-tenant-usage/{project}?{bad}");
            assert_eq!(world.call("GET", &path, None).await.status, 400, "{bad}");
        }
        let all = "/compute/v2.1/os-simple-tenant-usage?detailed=1";
        assert_eq!(world.cloud.call("demo", "GET", all, None).await.status, 403);
        let all = world.cloud.call("admin", "GET", all, None).await;
        assert_eq!(all.json["tenant_usages"][0]["server_usages"].as_array().unwrap().len(), 2, "{all:?}");
        let path = format!("/compute{}", "/v2.1/os-migrations");
        assert_eq!(world.cloud.call("admin", "GET", &path, None).await.json, json!({"migrations": []}));
        assert_eq!(world.cloud.call("demo", "GET", &path, None).await.status, 403);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregates_hold_hosts_that_exist() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let call = async |method: &str, path: &str, body: Value| {
            let headers = [("openstack-api-version", "compute 2.41"), ("content-type", "application/json")];
            let body = if body.is_null() { bytes::Bytes::new() } else { body.to_string().into() };
            let path = format!("/compute/v2.1/os-aggregates{path}");
            world.cloud.call_with("admin", method, &path, &headers, body).await
        };
        let body = json!({"aggregate": {"name": "fast", "availability_zone": "nova"}});
        let made = call("POST", "", body.clone()).await;
        assert_eq!((made.status, &made.json["aggregate"]["id"]), (200, &json!(1)), "{made:?}");
        assert_eq!(call("POST", "", body).await.status, 409);
        let mars = json!({"aggregate": {"name": "far", "availability_zone": "mars"}});
        assert_eq!(call("POST", "", mars).await.status, 400);
        let host = |action: &str, host: &str| json!({action: {"host": host}});
        for (body, status) in [
            (host("add_host", "host-2"), 404),
            (host("remove_host", "host-1"), 404),
            (host("add_host", "host-1"), 200),
            (host("add_host", "host-1"), 409),
            (json!({"set_metadata": {"metadata": {"ssd": "true", "availability_zone": null}}}), 200),
        ] {
            assert_eq!(call("POST", "/1/action", body.clone()).await.status, status, "{body}");
        }
        let listed = call("GET", "", Value::Null).await;
        let it = &listed.json["aggregates"][0];
        assert_eq!((&it["hosts"], &it["metadata"]), (&json!(["host-1"]), &json!({"ssd": "true"})));
        assert!(it["availability_zone"].is_null() && it["uuid"].is_string(), "{it}");
        assert_eq!(call("DELETE", "/1", Value::Null).await.status, 400, "it has a host");
        assert_eq!(call("POST", "/1/action", host("remove_host", "host-1")).await.status, 200);
        let renamed = call("PUT", "/1", json!({"aggregate": {"name": "quick"}})).await;
        assert_eq!(renamed.json["aggregate"]["name"], "quick");
        assert_eq!(call("DELETE", "/1", Value::Null).await.status, 200);
        assert_eq!(call("GET", "/1", Value::Null).await.status, 404);
        // A number is never given twice.
        let made = call("POST", "", json!({"aggregate": {"name": "fast"}})).await;
        assert_eq!(made.json["aggregate"]["id"], 2);
        assert_eq!(world.call("GET", "/os-aggregates", None).await.status, 403);
    })
    .await;
}
