//! What a new cloud has to begin with.

use super::groups::default_group;
use super::interfaces::join;
use super::records::{Network, Record, Router, Rule, Subnet, all};
use super::resource::Resource;
use crate::app::Shared;
use crate::bootstrap::Params;
use api_kit::Fault;
use base::store::{StoreError, Tx, Where};
use serde_json::{Map, Value, json};

/// Makes the public network, and the demo project's network, router and rules for ping and SSH; leaves alone what is
/// there by that name.
///
/// # Errors
/// What the rules refuse; when the store does not answer.
pub async fn bootstrap(app: &Shared, params: &Params) -> Result<(), Fault> {
    app.store.tx(|tx| async move { first_networks(&tx, params).await }).await?;
    app.wake.network.nudge();
    Ok(())
}

fn attributes(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

async fn named<R: Record>(tx: &Tx, project: &str, name: &str) -> Result<Option<R>, StoreError> {
    let mut select = Where::new(R::SELECT);
    select.and("project_id = ?", [project.into()]);
    select.and("name = ?", [name.into()]);
    select.end("ORDER BY created_at, id", []);
    Ok(all(tx, select).await?.into_iter().next())
}

async fn first_networks(tx: &Tx, params: &Params) -> Result<(), Fault> {
    let (admin, demo) = (&params.admin, &params.demo);
    let owner = &params.admin_project;
    let public = match named::<Network>(tx, owner, "public").await? {
        Some(network) => network,
        None => {
            let body = json!({"name": "public", "description": "Outside addresses", "router:external": true,
                "provider:network_type": "flat", "provider:physical_network": "public"});
            let network = Network::create(tx, admin, owner, &attributes(body)).await?;
            let mut body = json!({"name": "public-subnet", "network_id": network.common.id, "ip_version": 4,
                "cidr": params.public_cidr, "enable_dhcp": false});
            if let Some(gateway) = params.public_gateway {
                body["gateway_ip"] = json!(gateway);
            }
            Subnet::create(tx, admin, owner, &attributes(body)).await?;
            network
        }
    };
    let project = &params.demo_project;
    if named::<Network>(tx, project, "demo").await?.is_none() {
        let network = Network::create(tx, demo, project, &attributes(json!({"name": "demo"}))).await?;
        let body = json!({"name": "demo-subnet", "network_id": network.common.id, "ip_version": 4,
            "cidr": params.demo_cidr, "dns_nameservers": params.dns});
        let subnet = Subnet::create(tx, demo, project, &attributes(body)).await?;
        let body = json!({"name": "demo-router", "external_gateway_info": {"network_id": public.common.id}});
        let router = Router::create(tx, demo, project, &attributes(body)).await?;
        join(tx, &router, &subnet).await?;
        let group = default_group(tx, project).await?;
        for rule in [
            json!({"protocol": "icmp"}),
            json!({"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}),
        ] {
            let mut body = attributes(rule);
            body.insert("security_group_id".into(), group.clone().into());
            body.insert("direction".into(), "ingress".into());
            Rule::create(tx, demo, project, &body).await?;
        }
    }
    // Every project that exists has its default group from the start.
    default_group(tx, owner).await?;
    Ok(())
}
