//! The shape that all resources of the service share: list, show, create (also in bulk), update, delete.

use super::input::{Attributes, missing};
use super::records::{Record, all, find};
use crate::app::App;
use api_kit::{Call, Caller, Fault, ListSpec, Outcome, Reply, Target};
use base::store::{Query, Store, Tx, Where};
use serde_json::{Map, Value, json};
use std::future::Future;
use std::sync::Arc;

/// A resource of the API.
pub trait Resource: Record {
    /// `network`
    const ONE: &'static str;
    /// `networks`
    const MANY: &'static str;
    /// `NetworkNotFound`
    const MISSING: &'static str;
    /// `Network`
    const LABEL: &'static str;
    /// Filters, sort keys and paging.
    const LIST: &'static ListSpec;

    /// Whether others than the owner may see it.
    fn public(&self) -> bool {
        false
    }

    /// Narrows a list to what a caller who is no administrator may see.
    fn narrow(select: &mut Where, project: &str) {
        select.and("project_id = ?", [project.into()]);
    }

    /// Filters that are more than a column.
    fn further(_select: &mut Where, _query: &api_kit::Query) {}

    /// What must be there before a list or a creation: the default security group.
    fn prepare(_tx: &Tx, _project: &str) -> impl Future<Output = Result<(), Fault>> + Send {
        async { Ok(()) }
    }

    /// The JSON objects of rows that the caller may see.
    fn views(
        query: &Store,
        rows: Vec<Self>,
        caller: &Caller,
    ) -> impl Future<Output = Result<Vec<Value>, Fault>> + Send;

    /// Makes one. `project` is the owner.
    fn create(
        tx: &Tx,
        caller: &Caller,
        project: &str,
        body: &Attributes,
    ) -> impl Future<Output = Result<Self, Fault>> + Send;

    /// Changes one.
    fn update(
        self,
        tx: &Tx,
        caller: &Caller,
        body: &Attributes,
    ) -> impl Future<Output = Result<Self, Fault>> + Send;

    /// Takes one away.
    fn remove(self, tx: &Tx) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// What every view begins with.
#[must_use]
pub fn view_of<R: Record>(record: &R) -> Map<String, Value> {
    let common = record.common();
    let seconds = |time: &str| Value::from(api_kit::time::seconds(time));
    let mut view = Map::new();
    view.insert("id".into(), common.id.clone().into());
    view.insert("project_id".into(), common.project_id.clone().into());
    view.insert("tenant_id".into(), common.project_id.clone().into());
    view.insert("name".into(), common.name.clone().into());
    view.insert("description".into(), common.description.clone().into());
    view.insert("revision_number".into(), common.revision.into());
    view.insert("created_at".into(), seconds(&common.created_at));
    view.insert("updated_at".into(), seconds(&common.updated_at));
    view
}

/// Adds the members of an object.
pub fn extend(view: &mut Map<String, Value>, more: Value) {
    if let Value::Object(more) = more {
        view.extend(more);
    }
}

/// Keeps the `fields` that were asked for.
fn chosen(call: &Call<App>, views: Vec<Value>) -> Vec<Value> {
    let fields: Vec<&str> = call.query.all("fields").filter(|field| !field.is_empty()).collect();
    if fields.is_empty() {
        return views;
    }
    let keep = |view: Value| match view {
        Value::Object(members) => {
            Value::Object(members.into_iter().filter(|(key, _)| fields.contains(&key.as_str())).collect())
        }
        other => other,
    };
    views.into_iter().map(keep).collect()
}

/// A row that the caller may see.
///
/// # Errors
/// 404, also for a row of somebody else.
pub async fn visible<R: Resource>(query: &impl Query, caller: &Caller, id: &str) -> Result<R, Fault> {
    let row: Option<R> = find(query, id).await?;
    let own = |row: &R| {
        caller.is_admin || row.public() || Some(&row.common().project_id) == caller.project_id.as_ref()
    };
    row.filter(own).ok_or_else(|| missing(R::MISSING, R::LABEL, id))
}

/// A row that the caller may change: 404 when it may not even be seen, 403 when it is only seen.
async fn mine<R: Resource>(call: &Call<App>, query: &impl Query, id: &str) -> Result<R, Fault> {
    let row: R = visible(query, &call.caller, id).await?;
    call.enforce(&Target::project(row.common().project_id.clone()))?;
    Ok(row)
}

/// `GET /v2.0/{many}`
pub async fn list<R: Resource>(call: Call<App>) -> Outcome {
    call.enforced_by_query();
    if let Some(project) = call.caller.project_id.clone() {
        let project = &project;
        call.app.store.tx(|tx| async move { R::prepare(&tx, project).await }).await?;
    }
    let page = call.list(R::LIST, &call.app.store).await?;
    let mut select = Where::new(R::SELECT);
    if !call.caller.is_admin {
        R::narrow(&mut select, call.caller.project_id.as_deref().unwrap_or_default());
    }
    R::further(&mut select, &call.query);
    page.apply(&mut select);
    let rows: Vec<R> = all(&call.app.store, select).await?;
    let (rows, next) = page.finish(rows, |row| row.common().id.clone());
    let views = chosen(&call, R::views(&call.app.store, rows, &call.caller).await?);
    let mut body = json!({R::MANY: views});
    if let (Some(marker), true) = (next, call.query.has("limit")) {
        let href = page.next_link(&call, &marker);
        body[format!("{}_links", R::MANY)] = json!([{"rel": "next", "href": href}]);
    }
    Ok(Reply::json(200, body))
}

async fn one<R: Resource>(call: &Call<App>, code: u16, row: R) -> Outcome {
    let views = R::views(&call.app.store, vec![row], &call.caller).await?;
    let view = chosen(call, views).pop().unwrap_or(Value::Null);
    Ok(Reply::json(code, json!({R::ONE: view})))
}

/// `GET /v2.0/{many}/{id}`
pub async fn show<R: Resource>(call: Call<App>) -> Outcome {
    call.enforced_by_query();
    let row: R = visible(&call.app.store, &call.caller, call.path("id")).await?;
    one(&call, 200, row).await
}

/// The project that a new resource is to belong to.
fn owner(call: &Call<App>, body: &Attributes) -> Result<String, Fault> {
    let asked = body.get("project_id").or_else(|| body.get("tenant_id")).and_then(Value::as_str);
    match asked {
        Some(project) => {
            call.enforce(&Target::project(project))?;
            Ok(project.to_owned())
        }
        None => {
            let project = call.project_id()?.to_owned();
            call.enforce(&Target::project(&project))?;
            Ok(project)
        }
    }
}

/// `POST /v2.0/{many}`, one or several: all are made, or none.
pub async fn create<R: Resource>(call: Call<App>) -> Outcome {
    let several = call.body.get(R::MANY).is_some();
    let bodies: Vec<Attributes> = match call.body.get(R::MANY).or_else(|| call.body.get(R::ONE)) {
        Some(Value::Object(body)) => vec![body.clone()],
        Some(Value::Array(bodies)) => bodies.iter().filter_map(Value::as_object).cloned().collect(),
        _ => Vec::new(),
    };
    if bodies.is_empty() {
        return Err(Fault::bad_request(format!("Unable to find '{}' in request body", R::ONE)));
    }
    let mut wanted = Vec::new();
    for body in bodies {
        wanted.push((owner(&call, &body)?, body));
    }
    let (wanted, caller) = (Arc::new(wanted), &call.caller);
    let rows = call
        .app
        .store
        .tx(|tx| {
            let wanted = wanted.clone();
            async move {
                let mut rows = Vec::new();
                for (project, body) in wanted.iter() {
                    R::prepare(&tx, project).await?;
                    super::quotas::check::<R>(&tx, project).await?;
                    rows.push(R::create(&tx, caller, project, body).await?);
                }
                Ok::<_, Fault>(rows)
            }
        })
        .await?;
    call.app.wake.network.nudge();
    if !several && let [row] = rows.as_slice() {
        return one(&call, 201, row.clone()).await;
    }
    let views = chosen(&call, R::views(&call.app.store, rows, &call.caller).await?);
    Ok(Reply::json(201, json!({R::MANY: views})))
}

/// `PUT /v2.0/{many}/{id}`
pub async fn update<R: Resource>(call: Call<App>) -> Outcome {
    let body: Attributes = call.inner(R::ONE).as_object().cloned().unwrap_or_default();
    let (call_ref, body) = (&call, &body);
    let row = call
        .app
        .store
        .tx(|tx| async move {
            let row: R = mine(call_ref, &tx, call_ref.path("id")).await?;
            row.update(&tx, &call_ref.caller, body).await
        })
        .await?;
    call.app.wake.network.nudge();
    one(&call, 200, row).await
}

/// `DELETE /v2.0/{many}/{id}`
pub async fn delete<R: Resource>(call: Call<App>) -> Outcome {
    let call_ref = &call;
    call.app
        .store
        .tx(|tx| async move {
            let row: R = mine(call_ref, &tx, call_ref.path("id")).await?;
            row.remove(&tx).await
        })
        .await?;
    call.app.wake.network.nudge();
    Ok(Reply::empty(204))
}

/// 403 unless the caller is an administrator, naming the attribute's rule as upstream does.
///
/// # Errors
/// 403
pub fn admin_only(caller: &Caller, rule: &str) -> Result<(), Fault> {
    if caller.is_admin {
        return Ok(());
    }
    Err(Fault::forbidden(format!("(rule:{rule}) is disallowed by policy")).kind("PolicyNotAuthorized"))
}
