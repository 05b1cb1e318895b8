//! From a token to its caller, and from a caller to a new token.

use super::entity::{DOMAINS, Entity, PROJECTS, ROLES, USERS, enabled, text};
use super::state::Known;
use super::token::{METHODS, Scope, Token, audit_id};
use crate::app::{App, Shared};
use api_kit::{Authenticate, BoxFuture, Caller, Fault};
use base::args;
use base::store::{Query, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Microseconds since the epoch.
#[must_use]
pub fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// A time as the API shows it.
#[must_use]
pub fn shown(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map(api_kit::time::stored).unwrap_or_default()
}

/// Checks tokens of this cloud.
pub struct Tokens(pub Shared);

impl Authenticate for Tokens {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Arc<Caller>, Fault>> {
        Box::pin(async move { check(&self.0, token).await?.ok_or_else(Fault::unauthorized) })
    }
}

/// The caller of a token; `None` when it is not good (any more).
///
/// # Errors
/// When the store does not answer.
pub async fn check(app: &App, text: &str) -> Result<Option<Arc<Caller>>, Fault> {
    let now = now_us();
    if let Some(known) = app.identity.known(text) {
        return Ok((known.expires_us > now).then_some(known.caller));
    }
    let Some(token) = Token::unseal(&app.identity.keys(), text) else { return Ok(None) };
    if token.expires_us <= now {
        return Ok(None);
    }
    let generation = app.identity.generation();
    let Some(mut caller) = resolve(&app.store, &token).await? else { return Ok(None) };
    text.clone_into(&mut caller.token);
    let caller = Arc::new(caller);
    let known = Known { caller: caller.clone(), expires_us: token.expires_us };
    app.identity.remember(generation, text, known);
    Ok(Some(caller))
}

/// Looks up everything that a token refers to; `None` when anything of it is gone, disabled or revoked.
///
/// # Errors
/// When the store does not answer.
pub async fn resolve(query: &impl Query, token: &Token) -> Result<Option<Caller>, StoreError> {
    if revoked(query, token).await? {
        return Ok(None);
    }
    let Some((user, user_domain)) = with_domain(query, USERS.find(query, &token.user).await?).await? else {
        return Ok(None);
    };
    let mut caller = Caller {
        user_id: token.user.clone(),
        user_name: text(&user, "name").to_owned(),
        user_domain_id: text(&user_domain, "id").to_owned(),
        user_domain_name: text(&user_domain, "name").to_owned(),
        issued_at: shown(token.issued_us),
        expires_at: shown(token.expires_us),
        methods: token.method_names(),
        audit_ids: token.audit_names(),
        application_credential_id: token.appcred.clone(),
        ..Caller::default()
    };
    let roles = match &token.scope {
        Scope::Unscoped => return Ok(Some(caller)),
        Scope::Project(id) => {
            let Some((project, domain)) = with_domain(query, PROJECTS.find(query, id).await?).await? else {
                return Ok(None);
            };
            caller.project_id = Some(id.clone());
            caller.project_name = Some(text(&project, "name").to_owned());
            caller.project_domain_id = Some(text(&domain, "id").to_owned());
            caller.project_domain_name = Some(text(&domain, "name").to_owned());
            roles(query, &token.user, "project", id).await?
        }
        Scope::Domain(id) => {
            let Some(domain) = DOMAINS.find(query, id).await?.filter(enabled) else { return Ok(None) };
            caller.domain_id = Some(id.clone());
            caller.domain_name = Some(text(&domain, "name").to_owned());
            roles(query, &token.user, "domain", id).await?
        }
        Scope::System => {
            caller.system = true;
            roles(query, &token.user, "system", "all").await?
        }
    };
    let roles = match &token.appcred {
        None => roles,
        Some(id) => match super::appcreds::granted(query, id).await? {
            None => return Ok(None),
            Some(granted) => roles.into_iter().filter(|(id, _)| granted.contains(id)).collect(),
        },
    };
    if roles.is_empty() {
        return Ok(None);
    }
    (caller.role_ids, caller.roles) = roles.into_iter().unzip();
    caller.is_admin = caller.has_role("admin");
    Ok(Some(caller))
}

/// The entity with its domain, when both are enabled.
async fn with_domain(
    query: &impl Query,
    entity: Option<Entity>,
) -> Result<Option<(Entity, Entity)>, StoreError> {
    let Some(entity) = entity.filter(enabled) else { return Ok(None) };
    let domain = DOMAINS.find(query, text(&entity, "domain_id")).await?.filter(enabled);
    Ok(domain.map(|domain| (entity, domain)))
}

async fn revoked(query: &impl Query, token: &Token) -> Result<bool, StoreError> {
    let own = token.audit_names().into_iter().next().unwrap_or_default();
    let project = match &token.scope {
        Scope::Project(id) => format!("project:{id}"),
        Scope::Unscoped | Scope::Domain(_) | Scope::System => String::new(),
    };
    let row = query
        .row(
            "SELECT subject FROM identity_revocations WHERE subject IN ($1, $2, $3) AND before_us >= $4",
            args![format!("audit:{own}"), format!("user:{}", token.user), project, token.issued_us],
        )
        .await?;
    Ok(row.is_some())
}

/// A user's roles on a target, directly and through groups, with the implied ones: id and name, sorted by name.
///
/// # Errors
/// When the store does not answer.
pub async fn roles(
    query: &impl Query,
    user: &str,
    kind: &str,
    target: &str,
) -> Result<Vec<(String, String)>, StoreError> {
    let rows = query
        .rows(
            "SELECT DISTINCT role_id FROM identity_assignments WHERE target_kind = $1 AND target_id = $2
             AND ((actor_kind = 'user' AND actor_id = $3)
               OR (actor_kind = 'group' AND actor_id IN (SELECT group_id FROM identity_members WHERE user_id = $4)))",
            args![kind, target, user, user],
        )
        .await?;
    let mut ids = BTreeSet::new();
    for row in rows {
        ids.insert(row.text("role_id")?);
    }
    if kind == "project" {
        for row in inherited(query, user).await? {
            let (place, role) = row;
            // Few have any: only then the project's ancestors are looked for.
            if above(query, target).await?.contains(&place) {
                ids.insert(role);
            }
        }
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    named(query, with_implied(query, ids).await?).await
}

/// What a user is to inherit: the domain or project that it is given on, and the role.
///
/// # Errors
/// When the store does not answer.
pub async fn inherited(query: &impl Query, user: &str) -> Result<Vec<(String, String)>, StoreError> {
    let rows = query
        .rows(
            "SELECT DISTINCT target_id, role_id FROM identity_assignments WHERE target_kind IN ('domain+', 'project+')
             AND ((actor_kind = 'user' AND actor_id = $1)
               OR (actor_kind = 'group' AND actor_id IN (SELECT group_id FROM identity_members WHERE user_id = $2)))",
            args![user, user],
        )
        .await?;
    rows.iter().map(|row| Ok((row.text("target_id")?, row.text("role_id")?))).collect()
}

/// Levels of projects that are followed at most; no hierarchy is that deep.
const DEPTH: usize = 64;

/// The projects above a project, and its domain.
async fn above(query: &impl Query, project: &str) -> Result<BTreeSet<String>, StoreError> {
    let (mut out, mut id) = (BTreeSet::new(), project.to_owned());
    for _ in 0..DEPTH {
        let sql = "SELECT parent_id, domain_id FROM identity_projects WHERE id = $1";
        let Some(row) = query.row(sql, args![id]).await? else { break };
        let (parent, domain) = (row.text("parent_id")?, row.text("domain_id")?);
        let top = parent == domain;
        out.extend([parent.clone(), domain]);
        if top {
            break;
        }
        id = parent;
    }
    Ok(out)
}

/// All projects below each domain and each project.
///
/// # Errors
/// When the store does not answer.
pub async fn below(query: &impl Query) -> Result<BTreeMap<String, BTreeSet<String>>, StoreError> {
    let mut parents = BTreeMap::new();
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in query.rows("SELECT id, parent_id, domain_id FROM identity_projects", args![]).await? {
        let id = row.text("id")?;
        out.entry(row.text("domain_id")?).or_default().insert(id.clone());
        parents.insert(id, row.text("parent_id")?);
    }
    for id in parents.keys() {
        let mut at = id;
        for _ in 0..DEPTH {
            let Some(parent) = parents.get(at) else { break };
            out.entry(parent.clone()).or_default().insert(id.clone());
            at = parent;
        }
    }
    Ok(out)
}

/// Adds the roles that these imply, to any depth.
///
/// # Errors
/// When the store does not answer.
pub async fn with_implied(
    query: &impl Query,
    mut ids: BTreeSet<String>,
) -> Result<BTreeSet<String>, StoreError> {
    let mut implies: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in query.rows("SELECT prior_id, implied_id FROM identity_implied", args![]).await? {
        implies.entry(row.text("prior_id")?).or_default().push(row.text("implied_id")?);
    }
    let mut open: Vec<String> = ids.iter().cloned().collect();
    while let Some(id) = open.pop() {
        for implied in implies.get(&id).into_iter().flatten() {
            if ids.insert(implied.clone()) {
                open.push(implied.clone());
            }
        }
    }
    Ok(ids)
}

async fn named(query: &impl Query, ids: BTreeSet<String>) -> Result<Vec<(String, String)>, StoreError> {
    let mut select = base::store::Where::new(ROLES.select);
    select.and_in("id", ids.iter().map(Into::into));
    let mut out: Vec<(String, String)> = ROLES
        .rows(query, select)
        .await?
        .iter()
        .map(|role| (text(role, "id").to_owned(), text(role, "name").to_owned()))
        .collect();
    out.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(out)
}

/// What a new token is made from.
#[derive(Debug, Clone)]
pub struct Proof {
    /// Who it was proved to be.
    pub user: String,
    /// How.
    pub methods: BTreeSet<&'static str>,
    /// End and audit chain of the token that it was proved with.
    pub from: Option<(i64, Vec<[u8; 16]>, u8)>,
    /// The application credential that it was proved with.
    pub appcred: Option<String>,
}

/// Makes a token of this scope, and who it proves; `None` when the user has no role there or something is disabled.
///
/// # Errors
/// When the store or the kernel's random numbers do not answer.
pub async fn issue(app: &App, proof: &Proof, scope: Scope) -> Result<Option<(String, Arc<Caller>)>, Fault> {
    let now = now_us();
    let mut methods = METHODS
        .iter()
        .enumerate()
        .filter(|(_, name)| proof.methods.contains(**name))
        .fold(0u8, |bits, (bit, _)| bits | 1 << bit);
    let mut expires_us = now.saturating_add(i64::from(app.config.tokens.seconds) * 1_000_000);
    let mut audit = vec![audit_id().map_err(Fault::internal)?];
    if let Some((end, chain, before)) = &proof.from {
        // A token made from another one lives no longer.
        expires_us = expires_us.min(*end);
        audit.extend(chain.last());
        methods |= before;
    }
    let appcred = proof.appcred.clone();
    let token =
        Token { user: proof.user.clone(), scope, methods, issued_us: now, expires_us, audit, appcred };
    let generation = app.identity.generation();
    let Some(mut caller) = resolve(&app.store, &token).await? else { return Ok(None) };
    let text = token.seal(&app.identity.keys()).map_err(Fault::internal)?;
    caller.token.clone_from(&text);
    let caller = Arc::new(caller);
    app.identity.remember(generation, &text, Known { caller: caller.clone(), expires_us });
    Ok(Some((text, caller)))
}

/// Ends tokens: `audit:ID`, `user:ID` or `project:ID`, those issued until `before_us`. Runs inside a change.
///
/// # Errors
/// When the store does not answer.
pub async fn revoke(
    app: &App,
    tx: &base::store::Tx,
    subject: &str,
    before_us: i64,
) -> Result<(), StoreError> {
    let expires = now_us().saturating_add((i64::from(app.config.tokens.seconds) + 60) * 1_000_000);
    tx.exec(
        "INSERT INTO identity_revocations (id, subject, before_us, expires_us) VALUES ($1, $2, $3, $4)",
        args![super::entity::new_id(), subject, before_us, expires],
    )
    .await
    .map(|_| ())
}
