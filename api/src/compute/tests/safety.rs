//! Nothing is free for others that a server still has, and nothing stays that no server has.

use super::world::World;
use crate::testing::{ADMIN_PROJECT, Answer, DEMO_PROJECT};
use base::store::testing::on_both;
use base::store::{Query, Sql};
use base::task::{Job, Next, Stop, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

impl World {
    async fn attachments(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let path = format!("/volume/v3/{DEMO_PROJECT}/attachments{path}");
        let headers = [("openstack-api-version", "volume 3.27"), ("content-type", "application/json")];
        let body = body.map_or_else(bytes::Bytes::new, |body| body.to_string().into());
        self.cloud.call_with("demo", method, &path, &headers, body).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_frees_a_volume_that_a_server_has_or_is_getting() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let (id, volume) = (world.server().await, world.volume().await);
        let body = json!({"volumeAttachment": {"volumeId": volume}});
        let path = format!("/servers/{id}/os-volume_attachments");
        assert_eq!(world.call("POST", &path, Some(body)).await.status, 200);
        let listed = world.attachments("GET", "", None).await;
        let one = format!("/{}", listed.json["attachments"][0]["id"].as_str().unwrap());
        for status in ["reserved", "in-use"] {
            assert_eq!(world.volume_status(&volume).await, status);
            let refused = world.attachments("DELETE", &one, None).await;
            assert_eq!(refused.status, 409, "{status}: {refused:?}");
            let words = refused.json["conflictingRequest"]["message"].as_str().unwrap();
            assert!(words.contains(&id) && words.contains("Compute API"), "{words}");
            assert_eq!(world.volume_status(&volume).await, status);
            world.drain().await;
        }
        // Not even a status that an administrator set gives it to another server.
        let reset = json!({"os-reset_status": {"status": "available"}});
        let action = format!("/volume/v3/{ADMIN_PROJECT}/volumes/{volume}/action");
        assert_eq!(world.cloud.call("admin", "POST", &action, Some(reset)).await.status, 202);
        let other = world.server().await;
        let body = json!({"volumeAttachment": {"volumeId": volume}});
        let taken = world.call("POST", &format!("/servers/{other}/os-volume_attachments"), Some(body)).await;
        assert_eq!(taken.status, 400, "{taken:?}");

        assert_eq!(world.call("DELETE", &format!("{path}/{volume}"), None).await.status, 202);
        world.drain().await;
        assert_eq!(world.volume_status(&volume).await, "available");
        // A reservation that compute knows nothing of is its maker's to give up.
        let body = json!({"attachment": {"volume_uuid": volume, "instance_uuid": id}});
        let made = world.attachments("POST", "", Some(body)).await;
        assert_eq!(made.status, 200, "{made:?}");
        let one = format!("/{}", made.json["attachment"]["id"].as_str().unwrap());
        assert_eq!(world.attachments("DELETE", &one, None).await.status, 200);
        assert_eq!(world.volume_status(&volume).await, "available");
    })
    .await;
}

/// Keeps a subject busy.
#[derive(Serialize, Deserialize)]
struct Other;

impl Task for Other {
    const KIND: &'static str = "test.other";
    type Context = crate::app::App;
    async fn run(&self, _: &Self::Context, _: &Job) -> Result<Next<Self>, Stop> {
        Ok(Next::Done)
    }
    async fn undo(&self, _: &Self::Context, _: &Job) -> Result<(), Stop> {
        Ok(())
    }
    async fn failed(&self, _: &Self::Context, _: &Job, _: &str) -> Result<(), Stop> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interface_whose_work_cannot_be_written_takes_no_port() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let id = world.server().await;
        let port = json!({"port": {"network_id": world.network}});
        let made = world.cloud.call("demo", "POST", "/network/v2.0/ports", Some(port)).await;
        let port = made.json["port"]["id"].as_str().unwrap().to_owned();
        let (app, subject) = (&world.cloud.app, &format!("interface:{port}"));
        app.store.tx(|tx| async move { app.tasks.enqueue(&tx, subject, &Other).await }).await.unwrap();
        let path = format!("/servers/{id}/os-interface");
        let body = || Some(json!({"interfaceAttachment": {"port_id": port}}));
        let refused = world.call("POST", &path, body()).await;
        assert_eq!(refused.status, 409, "{refused:?}");
        let sql = Sql::from("SELECT id FROM network_ports WHERE device_owner LIKE 'compute:%'");
        assert_eq!(app.store.rows(sql, Vec::new()).await.unwrap().len(), 1, "only the server's first port");
        let free = world.cloud.call("demo", "GET", &format!("/network/v2.0/ports/{port}"), None).await;
        assert_eq!(free.json["port"]["device_id"], "");

        app.store.tx(|tx| async move { tx.exec("DELETE FROM tasks", Vec::new()).await }).await.unwrap();
        // Two at once are two ports.
        let more = || Some(json!({"interfaceAttachment": {"net_id": world.network}}));
        let (one, two) = tokio::join!(world.call("POST", &path, more()), world.call("POST", &path, more()));
        assert_eq!((one.status, two.status), (200, 200), "{one:?} {two:?}");
        world.drain().await;
        assert_eq!(
            world.call("GET", &path, None).await.json["interfaceAttachments"].as_array().unwrap().len(),
            3
        );
        assert_eq!(world.call("DELETE", &format!("/servers/{id}"), None).await.status, 204);
        world.drain().await;
        assert_eq!(world.leftovers(&[]).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_a_server_that_is_gone_is_given_back_and_nothing_else() {
    on_both(|db| async move {
        let world = World::on(db).await;
        let (gone, stays) = (world.server().await, world.server().await);
        let port = json!({"port": {"network_id": world.network}});
        let made = world.cloud.call("demo", "POST", "/network/v2.0/ports", Some(port)).await;
        let claimed = made.json["port"]["id"].as_str().unwrap().to_owned();
        let body = json!({"interfaceAttachment": {"port_id": claimed}});
        assert_eq!(
            world.call("POST", &format!("/servers/{gone}/os-interface"), Some(body)).await.status,
            200
        );
        world.drain().await;
        // A tenant's own words on a port, and somebody's claim by hand, name no server either.
        let own = json!({"port": {"network_id": world.network, "device_id": wire::ids::ServerId::new(),
            "device_owner": "compute:nova"}});
        let own = world.cloud.call("demo", "POST", "/network/v2.0/ports", Some(own)).await;
        assert_eq!(own.status, 201, "{own:?}");
        let own = own.json["port"]["id"].as_str().unwrap().to_owned();
        let app = &world.cloud.app;
        let host = crate::placement::inner::rooms(&app.store).await.unwrap()[0].provider.uuid.clone();
        let hand = wire::ids::ServerId::new().to_string();
        let body =
            json!({"allocations": {host: {"resources": {"VCPU": 1}}}, "project_id": "p", "user_id": "u"});
        let headers = [("openstack-api-version", "placement 1.12"), ("content-type", "application/json")];
        let path = format!("/placement/allocations/{hand}");
        let put = world.cloud.call_with("admin", "PUT", &path, &headers, body.to_string().into()).await;
        assert_eq!(put.status, 204, "{put:?}");

        let lost = gone.parse::<wire::ids::ServerId>().unwrap();
        let forget = |tx: base::store::Tx| async move {
            tx.exec("DELETE FROM compute_servers WHERE id = $1", base::args![lost]).await
        };
        app.store.tx(forget).await.unwrap();
        let holders = async || {
            let sql = "SELECT DISTINCT consumer AS id FROM placement_allocations";
            let rows = app.store.rows(Sql::from(sql), Vec::new()).await.unwrap();
            let mut all: Vec<String> = rows.iter().map(|row| row.text("id").unwrap()).collect();
            all.sort();
            all
        };
        let mut wanted = vec![gone.clone(), stays.clone(), hand.clone()];
        wanted.sort();
        assert_eq!(holders().await, wanted);
        for _ in 0..2 {
            crate::compute::orphans::settle(app).await.unwrap();
            let mut wanted = vec![stays.clone(), hand.clone()];
            wanted.sort();
            assert_eq!(holders().await, wanted);
            let sql =
                Sql::from("SELECT device_id AS id FROM network_ports WHERE device_owner = 'compute:nova'");
            let left = app.store.rows(sql, Vec::new()).await.unwrap();
            let left: Vec<String> = left.iter().map(|row| row.text("id").unwrap()).collect();
            assert!(left.len() == 2 && left.contains(&stays) && !left.contains(&gone), "{left:?}");
        }
        // A port that was there before the server outlives it, and is free.
        let free = world.cloud.call("demo", "GET", &format!("/network/v2.0/ports/{claimed}"), None).await;
        assert_eq!(free.json["port"]["device_id"], "", "{free:?}");
        assert_eq!(
            world.cloud.call("demo", "GET", &format!("/network/v2.0/ports/{own}"), None).await.status,
            200
        );
        assert_eq!(world.show(&stays).await["status"], "ACTIVE");
    })
    .await;
}
